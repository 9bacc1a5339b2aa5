//! The state of one connection, without its socket and its clock.
//!
//! Callers post frames, offers and writes; a carrier moves what [`Exchange::outgoing`] names and
//! feeds what arrives. Completions come out in order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use genie_transport::transport::{
    COMPLETIONS_MAX, Cause, Completion, FRAME_QUEUE_BYTES_MAX, MESSAGES_MAX, Memory, MemoryKey,
    Options, Part, Result, TransportError, WINDOWS_MAX,
};
use ring::hmac;

use crate::lane::{Arriving, Lane, Outgoing, Span, Whole};
use crate::memory::{Memories, invalid};
use crate::record::{FRAME, HEAD_BYTES, Hello, Offer, REASON_BYTES_MAX, Record, Write, protocol};
use crate::sharing::Sharing;

/// The lane of records; and of payload, where a transport has one lane only.
pub const CONTROL: usize = 0;
/// The second lane, of payload alone.
pub const DATA: usize = 1;

/// Payload that is sent before waiting frames get their turn.
const CHUNK_BYTES: u64 = 512 << 10;
/// Messages up to this size are copied behind the records, so that many leave in one call.
const INLINE_BYTES: u64 = 4 << 10;
/// Records and inline payload that are put together at a time.
const GATHER_BYTES: usize = 64 << 10;
/// Bytes copied into shared memory in one step.
const COPY_BYTES: usize = 256 << 10;
/// Bytes copied into shared memory in one call.
const COPY_BUDGET_BYTES: usize = 4 << 20;
/// What may wait for a peer before no more is taken from it: answers cannot pile up.
const ANSWERS_BYTES_MAX: usize = FRAME_QUEUE_BYTES_MAX + (1 << 20);
/// Bodies of frames that wait for the caller before no more is read.
const ARRIVED_BYTES_MAX: usize = FRAME_QUEUE_BYTES_MAX;
/// A sign of life is given this many times within the deadline.
const SIGNS_PER_DEADLINE: u32 = 4;
/// Descriptors that may have come and not yet belong to a record.
const DESCRIPTORS_MAX: usize = 4;

/// How a connection is set up.
pub struct Setup<'a> {
    pub transport: &'static str,
    pub options: &'a Options,
    /// This end made the connection; it speaks second.
    pub initiator: bool,
    /// Payload goes on a second lane.
    pub two_lanes: bool,
    /// Signs of life are given and awaited here; not where the carrier does it.
    pub watch: bool,
    pub sharing: Option<Box<dyn Sharing>>,
    pub nonce: [u8; 32],
    pub now: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits for the peer's greeting.
    Greeting,
    /// Waits for the peer's proof.
    Proving,
    Open,
}

struct PeerWindow {
    generation: u64,
    bytes: u64,
}

/// A posted message.
struct Message {
    parts: Vec<Part>,
    window: u32,
    offset: u64,
    bytes: u64,
    /// All of it went to the carrier: the peer may answer.
    sent: bool,
}

/// The message that is being sent.
struct Sending {
    message: u64,
    write: Write,
    /// The next byte: which part, and where in it.
    part: usize,
    part_offset: u64,
    left: u64,
}

/// See the module.
pub struct Exchange {
    transport: &'static str,
    initiator: bool,
    data_lane: usize,
    /// Payload goes through shared memory, by `sharing`.
    shares: bool,
    sharing: Option<Box<dyn Sharing>>,
    frame_bytes_max: u64,
    message_bytes_max: u64,
    connection: u64,
    secret: Option<[u8; 32]>,
    nonce: [u8; 32],
    binding: Vec<u8>,
    greeted: bool,
    stage: Stage,
    peer: Option<Hello>,

    lanes: [Lane; 2],
    /// Frames and offers from before the connection stood.
    held: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    held_bytes: usize,
    descriptors: VecDeque<OwnedFd>,

    memories: Memories,
    peer_windows: HashMap<u32, PeerWindow>,
    peer_generation: u64,
    messages: BTreeMap<u64, Message>,
    last_message: Option<u64>,
    ready: VecDeque<u64>,
    waiting: HashMap<u32, VecDeque<u64>>,
    sending: Option<Sending>,
    spans: Vec<Span>,

    completions: VecDeque<Completion>,
    arrived_bytes: usize,
    /// A post was refused.
    wants_frames: bool,
    wants_messages: bool,
    /// Told once each, after the completions before them.
    complaints: VecDeque<TransportError>,
    failure: Option<TransportError>,
    closing: bool,
    closing_since: Option<Instant>,
    /// The peer said goodbye, or never will.
    peer_closed: bool,

    begun: Instant,
    connect_time: Duration,
    deadline: Duration,
    watch: bool,
    heard: Instant,
    sent: Instant,
    counters: Counters,
}

/// What has happened, for people.
#[derive(Default, Clone, Copy)]
struct Counters {
    frames_sent: u64,
    frames_received: u64,
    messages_written: u64,
    messages_placed: u64,
    messages_dropped: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Exchange {
    pub fn new(setup: Setup<'_>) -> Self {
        let Setup { transport, options, initiator, two_lanes, watch, sharing, nonce, now } = setup;
        Exchange {
            transport,
            initiator,
            data_lane: if two_lanes { DATA } else { CONTROL },
            shares: sharing.is_some(),
            sharing,
            frame_bytes_max: options.frame_bytes_max.min(FRAME_QUEUE_BYTES_MAX as u64),
            message_bytes_max: options.message_bytes_max,
            connection: options.connection,
            secret: options.secret,
            nonce,
            binding: Vec::new(),
            greeted: false,
            stage: Stage::Greeting,
            peer: None,
            lanes: Default::default(),
            held: VecDeque::new(),
            held_bytes: 0,
            descriptors: VecDeque::new(),
            memories: Memories::default(),
            peer_windows: HashMap::new(),
            peer_generation: 0,
            messages: BTreeMap::new(),
            last_message: None,
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            sending: None,
            spans: Vec::new(),
            completions: VecDeque::new(),
            arrived_bytes: 0,
            wants_frames: false,
            wants_messages: false,
            complaints: VecDeque::new(),
            failure: None,
            closing: false,
            closing_since: None,
            peer_closed: false,
            begun: now,
            connect_time: Duration::from_millis(options.connect_ms),
            deadline: Duration::from_millis(options.deadline_ms.max(1)),
            watch,
            heard: now,
            sent: now,
            counters: Counters::default(),
        }
    }

    /// The carrier can take bytes. `binding` is what ties a proof to this very connection: 32 bytes
    /// of the TLS exporter, or nothing.
    pub fn greet(&mut self, binding: Vec<u8>, now: Instant) -> Result<()> {
        self.binding = binding;
        self.heard = now;
        if !self.initiator {
            self.send_hello()?;
            if self.data_lane == DATA {
                Record::Lane.encode(self.lanes[DATA].record(None));
            }
        }
        Ok(())
    }

    fn send_hello(&mut self) -> Result<()> {
        self.greeted = true;
        let beside = self.sharing.as_mut().map(|sharing| sharing.greeting()).transpose()?;
        let hello = Hello {
            frame_bytes_max: self.frame_bytes_max,
            message_bytes_max: self.message_bytes_max,
            connection: self.connection,
            secured: self.secret.is_some(),
            nonce: self.nonce,
            beside: beside.is_some(),
        };
        Record::Hello(hello).encode(self.lanes[CONTROL].record(beside));
        Ok(())
    }

    /// Whether the peer is there and is who it should be.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    pub fn failure(&self) -> Option<&TransportError> {
        self.failure.as_ref()
    }

    /// The connection ends with this; the first error counts. The peer is told why.
    pub fn fail(&mut self, error: TransportError) {
        if self.failure.is_some() {
            return;
        }
        if matches!(error.cause, Cause::Refused | Cause::Version | Cause::Protocol) {
            self.push_close(&error.message);
        }
        self.failure = Some(error);
    }

    // What callers ask for.

    pub fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.usable()?;
        if memory.is_some() && self.sharing.is_none() {
            return Err(TransportError::unsupported(self.transport, "way to pass memory on"));
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let limit = self
            .peer
            .map_or(self.frame_bytes_max, |peer| peer.frame_bytes_max.min(self.frame_bytes_max));
        if bytes as u64 > limit {
            return Err(invalid(format!("a frame of {bytes} bytes, the limit is {limit}")));
        }
        let queued = self.queued_bytes();
        if queued > 0 && queued + bytes > FRAME_QUEUE_BYTES_MAX {
            self.wants_frames = true;
            let message = format!(
                "{queued} bytes of frames already wait for the peer (limit \
                 {FRAME_QUEUE_BYTES_MAX}); try again when the connection is writable"
            );
            return Err(TransportError::new(Cause::OutOfCredit, message));
        }
        let memory = memory.map(|fd| fd.try_clone_to_owned()).transpose().map_err(|error| {
            TransportError::new(Cause::Io, format!("duplicate the descriptor of memory: {error}"))
        })?;
        self.counters.frames_sent += 1;
        if self.is_open() {
            let beside = memory.is_some();
            let out = self.lanes[CONTROL].record(memory);
            Record::encode_frame(kind, beside, parts, out);
        } else {
            let mut out = Vec::new();
            Record::encode_frame(kind, memory.is_some(), parts, &mut out);
            self.hold(out, memory);
        }
        Ok(())
    }

    fn usable(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.closing => Err(TransportError::new(
                Cause::Closed,
                "the connection is being closed; nothing more can be sent on it",
            )),
            None => Ok(()),
        }
    }

    fn hold(&mut self, record: Vec<u8>, beside: Option<OwnedFd>) {
        self.held_bytes += record.len();
        self.held.push_back((record, beside));
    }

    fn post(&mut self, record: Record<'_>, beside: Option<OwnedFd>) {
        if self.is_open() {
            record.encode(self.lanes[CONTROL].record(beside));
        } else {
            let mut out = Vec::new();
            record.encode(&mut out);
            self.hold(out, beside);
        }
    }

    pub fn queued_bytes(&self) -> usize {
        self.held_bytes + self.lanes[CONTROL].queued()
    }

    pub fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.memories.register(self.transport, memory)
    }

    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.memories.unregister(key)
    }

    pub fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.usable()?;
        let memory = self.memories.may_offer(window, &part)?;
        let (mut gate, mut beside, mut base) = (0, None, 0);
        if let Some(sharing) = &mut self.sharing {
            let (given, fd) = sharing.offer(self.memories.generation + 1, memory)?;
            (gate, beside, base) = (given, Some(fd), part.offset);
        }
        let generation = self.memories.offer(window, part, gate);
        let is_beside = beside.is_some();
        let bytes = part.bytes;
        let offer = Offer { window, gate, generation, bytes, base, beside: is_beside };
        self.post(Record::Offer(offer), beside);
        Ok(())
    }

    pub fn withdraw(&mut self, window: u32) -> Result<()> {
        let withdrawn = self.memories.withdraw(window)?;
        for lane in &mut self.lanes {
            if let Some(arriving) = &mut lane.incoming.arriving
                && arriving.write.generation == withdrawn.generation
            {
                arriving.target = None;
            }
        }
        if let Some(sharing) = &mut self.sharing
            && let Err(error) = sharing.withdraw(withdrawn.gate)
        {
            self.fail(error.clone());
            return Err(error);
        }
        self.post(Record::Withdraw { window, generation: withdrawn.generation }, None);
        Ok(())
    }

    pub fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.usable()?;
        let bytes = self.memories.check_all(parts)?;
        if let Some(last) = self.last_message
            && message <= last
        {
            return Err(invalid(format!(
                "message {message} after message {last}: numbers must rise"
            )));
        }
        let limit = self.peer.map_or(self.message_bytes_max, |peer| {
            peer.message_bytes_max.min(self.message_bytes_max)
        });
        if bytes > limit {
            return Err(invalid(format!(
                "message {message} has {bytes} bytes, the limit is {limit}; split it"
            )));
        }
        let open = self.peer_windows.get(&window);
        if let Some(open) = open {
            fits(message, window, offset, bytes, open.bytes)?;
        }
        if self.messages.len() >= MESSAGES_MAX {
            self.wants_messages = true;
            let message = format!(
                "{MESSAGES_MAX} messages are posted and not yet written; try again when the \
                 connection is writable"
            );
            return Err(TransportError::new(Cause::OutOfCredit, message));
        }
        self.last_message = Some(message);
        match open {
            Some(_) => self.ready.push_back(message),
            None => self.waiting.entry(window).or_default().push_back(message),
        }
        for part in parts {
            self.memories.hold(part);
        }
        self.messages
            .insert(message, Message { parts: parts.to_vec(), window, offset, bytes, sent: false });
        Ok(())
    }

    /// Queued frames are still sent; then the peer is told.
    pub fn close(&mut self, reason: &str, now: Instant) {
        if self.closing || self.failure.is_some() {
            return;
        }
        if self.is_open() {
            self.push_close(reason);
        } else {
            // Nothing was sent that anybody could miss.
            self.failure = Some(closed_here());
        }
        self.closing = true;
        self.closing_since = Some(now);
    }

    fn push_close(&mut self, reason: &str) {
        let mut bytes = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(bytes) {
            bytes -= 1;
        }
        let reason = &reason.as_bytes()[..bytes];
        Record::Close { reason }.encode(self.lanes[CONTROL].record(None));
    }

    /// Whether everything that this end had to say is on its way, goodbye included.
    pub fn has_said_all(&self) -> bool {
        self.closing && self.lanes[CONTROL].queued() == 0 && self.lanes[CONTROL].chunk.is_none()
    }

    /// 32 bytes from the two nonces: for transports without TLS. Who reads along knows them.
    pub fn plain_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        let Some(peer) = self.peer.filter(|_| self.is_open()) else {
            return Err(invalid("the connection is not set up: it has no secret yet".into()));
        };
        let (first, second) = self.in_order(&self.nonce, &peer.nonce);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[first.as_slice(), second].concat());
        Ok(tag(&key, &[b"genie secret v1", label]))
    }

    fn in_order<'a>(&self, ours: &'a [u8; 32], theirs: &'a [u8; 32]) -> (&'a [u8; 32], &'a [u8]) {
        if self.initiator { (ours, theirs) } else { (theirs, ours) }
    }

    // What callers get.

    /// Appends what has completed; then come complaints and the failure, one at a time.
    pub fn take_completions(&mut self, out: &mut Vec<Completion>) -> Result<()> {
        if self.completions.is_empty() {
            if let Some(complaint) = self.complaints.pop_front() {
                return Err(complaint);
            }
            if let Some(failure) = &self.failure {
                return Err(failure.clone());
            }
        }
        let count = self.completions.len().min(COMPLETIONS_MAX);
        for completion in self.completions.drain(..count) {
            if let Completion::Frame { body, .. } = &completion {
                self.arrived_bytes -= body.len();
            }
            out.push(completion);
        }
        Ok(())
    }

    pub fn has_news(&self) -> bool {
        !self.completions.is_empty() || !self.complaints.is_empty() || self.failure.is_some()
    }

    /// Whether reading must wait until the caller took, or the peer read, what is there.
    pub fn is_full(&self) -> bool {
        self.has_much_news() || self.lanes[CONTROL].queued() >= ANSWERS_BYTES_MAX
    }

    fn has_much_news(&self) -> bool {
        self.completions.len() >= COMPLETIONS_MAX || self.arrived_bytes >= ARRIVED_BYTES_MAX
    }

    // What carriers move.

    /// What to send next on a lane; nothing to send has 0 bytes.
    pub fn outgoing(&mut self, lane: usize) -> Result<Outgoing<'_>> {
        if lane == self.data_lane && self.is_open() && self.failure.is_none() {
            match self.sharing.is_some() {
                true => self.copy_shared()?,
                false => self.open_chunk(),
            }
        }
        let left = self.lanes[lane].chunk.as_ref().map(|chunk| chunk.left);
        self.spans.clear();
        if let (Some(left), Some(sending)) = (left, &self.sending) {
            let (mut left, mut part_offset) = (left, sending.part_offset);
            for part in &self.messages[&sending.message].parts[sending.part..] {
                let bytes = (part.bytes - part_offset).min(left);
                if bytes > 0 {
                    let from = Part { offset: part.offset + part_offset, ..*part };
                    let address = self.memories.address(&from);
                    self.spans.push(Span { address, bytes: bytes as usize });
                }
                left -= bytes;
                part_offset = 0;
                if left == 0 {
                    break;
                }
            }
        }
        let (records, beside, whole) = self.lanes[lane].records();
        Ok(Outgoing { records, beside, payload: if whole { &self.spans } else { &[] } })
    }

    /// Whether [`Exchange::outgoing`] would have something on some lane.
    pub fn wants_to_send(&self) -> bool {
        self.lanes.iter().any(|lane| lane.queued() > 0 || lane.chunk.is_some())
            || (self.is_open()
                && !self.closing
                && self.failure.is_none()
                && (self.sending.is_some() || !self.ready.is_empty()))
    }

    /// The carrier took `bytes` bytes of what was named.
    pub fn advance(&mut self, lane: usize, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.sent = now;
            self.counters.bytes_sent += bytes as u64;
        }
        let payload = self.lanes[lane].advance(bytes);
        if payload > 0 {
            let sending = self.sending.as_mut().expect("payload belongs to a message");
            sending.left -= payload;
            let mut payload = payload;
            let parts = &self.messages[&sending.message].parts;
            while payload > 0 {
                let step = (parts[sending.part].bytes - sending.part_offset).min(payload);
                sending.part_offset += step;
                payload -= step;
                if sending.part_offset == parts[sending.part].bytes {
                    sending.part += 1;
                    sending.part_offset = 0;
                }
            }
            if sending.left == 0 {
                let message = sending.message;
                self.sending = None;
                self.mark_sent(message);
            }
        }
        if self.wants_frames && self.queued_bytes() <= FRAME_QUEUE_BYTES_MAX / 2 {
            self.wants_frames = false;
            self.completions.push_back(Completion::Writable);
        }
    }

    /// Takes the next message whose window is offered.
    fn next_message(&mut self) -> Option<(u64, Write)> {
        if self.closing {
            return None;
        }
        while let Some(number) = self.ready.pop_front() {
            let message = &self.messages[&number];
            let &Message { window, offset, bytes, .. } = message;
            let Some(open) = self.peer_windows.get(&window) else {
                self.waiting.entry(window).or_default().push_back(number);
                continue;
            };
            let limit = self.peer.expect("it offered a window").message_bytes_max;
            let fits = match bytes <= limit {
                true => fits(number, window, offset, bytes, open.bytes),
                false => Err(invalid(format!(
                    "message {number} has {bytes} bytes, the peer accepts {limit}; it is not sent"
                ))),
            };
            if let Err(complaint) = fits {
                self.complaints.push_back(complaint);
                self.end_message(number);
                continue;
            }
            let generation = open.generation;
            let done = self.shares;
            return Some((
                number,
                Write { message: number, window, generation, offset, bytes, done },
            ));
        }
        None
    }

    fn mark_sent(&mut self, number: u64) {
        self.messages.get_mut(&number).expect("it was being sent").sent = true;
    }

    fn end_message(&mut self, number: u64) {
        if let Some(message) = self.messages.remove(&number) {
            for part in &message.parts {
                self.memories.release(part);
            }
        }
        if self.wants_messages && self.messages.len() <= MESSAGES_MAX / 4 * 3 {
            self.wants_messages = false;
            self.completions.push_back(Completion::Writable);
        }
    }

    /// Puts small messages behind the records, and opens the next chunk of a large one.
    fn open_chunk(&mut self) {
        let lane = self.data_lane;
        while self.lanes[lane].chunk.is_none() && self.lanes[lane].queued() < GATHER_BYTES {
            if self.sending.is_none() {
                let Some((message, write)) = self.next_message() else { return };
                let out = self.lanes[lane].record(None);
                Record::Write(write).encode(out);
                if write.bytes == 0 {
                    self.mark_sent(message);
                    continue;
                }
                if write.bytes <= INLINE_BYTES {
                    Record::Data { bytes: write.bytes as u32 }.encode(out);
                    for part in &self.messages[&message].parts {
                        // SAFETY: the part was checked to lie inside its memory, which is held.
                        unsafe { append(out, self.memories.address(part), part.bytes as usize) };
                    }
                    self.mark_sent(message);
                    continue;
                }
                let left = write.bytes;
                self.sending = Some(Sending { message, write, part: 0, part_offset: 0, left });
            }
            if self.closing {
                return;
            }
            let sending = self.sending.as_ref().expect("set above");
            let bytes = sending.left.min(CHUNK_BYTES);
            Record::Data { bytes: bytes as u32 }.encode(self.lanes[lane].record(None));
            self.lanes[lane].open_chunk(bytes);
        }
    }

    /// Copies messages into windows that both ends have mapped.
    fn copy_shared(&mut self) -> Result<()> {
        let mut budget = COPY_BUDGET_BYTES;
        let mut sharing = self.sharing.take().expect("asked by the caller");
        let copied = loop {
            if self.sending.is_none() {
                let Some((message, write)) = self.next_message() else { break Ok(()) };
                let left = write.bytes;
                self.sending = Some(Sending { message, write, part: 0, part_offset: 0, left });
            }
            let Sending { message, write, mut part, mut part_offset, mut left } =
                self.sending.take().expect("set above");
            let parts = &self.messages[&message].parts;
            let mut outcome = Ok(true);
            while left > 0 && budget > 0 && matches!(outcome, Ok(true)) {
                let from = parts[part];
                let rest = (from.bytes - part_offset).min(COPY_BYTES.min(budget) as u64);
                if rest == 0 {
                    (part, part_offset) = (part + 1, 0);
                    continue;
                }
                let at = Part { offset: from.offset + part_offset, ..from };
                let span = Span { address: self.memories.address(&at), bytes: rest as usize };
                let offset = write.offset + (write.bytes - left);
                outcome = sharing.copy(write.generation, offset, span);
                budget -= rest as usize;
                part_offset += rest;
                left -= rest;
            }
            match outcome {
                Err(error) => break Err(error),
                // Withdrawn: the record that says so is on its way.
                Ok(false) => self.waiting.entry(write.window).or_default().push_back(message),
                Ok(true) if left == 0 => {
                    self.counters.bytes_sent += write.bytes;
                    Record::Write(write).encode(self.lanes[CONTROL].record(None));
                    self.mark_sent(message);
                }
                Ok(true) => {
                    self.sending = Some(Sending { message, write, part, part_offset, left });
                    break Ok(());
                }
            }
        };
        self.sharing = Some(sharing);
        copied
    }

    /// A descriptor arrived; it belongs to the next record that says so.
    pub fn feed_descriptor(&mut self, descriptor: OwnedFd) -> Result<()> {
        if self.sharing.is_none() || self.descriptors.len() >= DESCRIPTORS_MAX {
            return Err(protocol("more descriptors than any record has".into()));
        }
        self.descriptors.push_back(descriptor);
        Ok(())
    }

    /// Where payload that comes next on a lane belongs, if the carrier can put it there itself.
    pub fn direct(&self, lane: usize) -> Option<Span> {
        let incoming = &self.lanes[lane].incoming;
        if incoming.chunk_left == 0 {
            return None;
        }
        let address = incoming.arriving.as_ref()?.address()?;
        Some(Span { address, bytes: incoming.chunk_left as usize })
    }

    /// The carrier put `bytes` bytes at the place named by [`Exchange::direct`].
    pub fn placed_directly(&mut self, lane: usize, bytes: usize, now: Instant) {
        self.heard = now;
        self.counters.bytes_received += bytes as u64;
        self.payload_arrived(lane, bytes as u64);
    }

    /// Bytes arrived on a lane.
    pub fn feed(&mut self, lane: usize, mut bytes: &[u8], now: Instant) -> Result<()> {
        self.heard = now;
        self.counters.bytes_received += bytes.len() as u64;
        while !bytes.is_empty() && !self.peer_closed {
            let incoming = &mut self.lanes[lane].incoming;
            if incoming.chunk_left > 0 {
                let count = (incoming.chunk_left).min(bytes.len() as u64) as usize;
                let (payload, rest) = bytes.split_at(count);
                if let Some(to) = incoming.arriving.as_ref().and_then(Arriving::address) {
                    // SAFETY: the target holds what is left of the chunk, and `payload` is private
                    // memory.
                    unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), to, count) };
                }
                bytes = rest;
                self.payload_arrived(lane, count as u64);
                continue;
            }
            // A stranger gets no memory for frames.
            let frame_bytes_max = if self.stage == Stage::Open { self.frame_bytes_max } else { 0 };
            match incoming.take(&mut bytes, frame_bytes_max)? {
                None => {}
                Some(Whole::InPlace(head, body)) => {
                    self.on_record(lane, head.record(body)?, None)?;
                }
                Some(Whole::Collected(head, body)) => match head.record(&body)? {
                    Record::Frame { kind, beside, .. } => {
                        let frame = Record::Frame { kind, beside, body: &[] };
                        self.on_record(lane, frame, Some(body))?;
                    }
                    record => self.on_record(lane, record, None)?,
                },
            }
        }
        Ok(())
    }

    fn payload_arrived(&mut self, lane: usize, bytes: u64) {
        let incoming = &mut self.lanes[lane].incoming;
        incoming.chunk_left -= bytes;
        let arriving = incoming.arriving.as_mut().expect("payload belongs to a message");
        arriving.done += bytes;
        if arriving.done == arriving.write.bytes {
            let arriving = incoming.arriving.take().expect("seen above");
            self.arrived(arriving);
        }
    }

    fn arrived(&mut self, arriving: Arriving) {
        let Write { message, window, offset, bytes, .. } = arriving.write;
        let answer = match arriving.target {
            Some(_) => {
                self.counters.messages_placed += 1;
                let placed = Completion::Placed { message, window, offset, bytes };
                self.completions.push_back(placed);
                Record::Written { message }
            }
            None => Record::Dropped { message },
        };
        answer.encode(self.lanes[CONTROL].record(None));
    }

    fn on_record(
        &mut self,
        lane: usize,
        record: Record<'_>,
        collected: Option<Vec<u8>>,
    ) -> Result<()> {
        if lane == DATA && !matches!(record, Record::Lane | Record::Write(_) | Record::Data { .. })
        {
            return Err(protocol("a control record on its stream for payload".into()));
        }
        match (self.stage, record) {
            (Stage::Greeting, Record::Hello(hello)) => self.on_hello(hello),
            (_, Record::Lane) if lane == DATA => Ok(()),
            (Stage::Proving, Record::Proof(proof)) => self.on_proof(&proof),
            (Stage::Greeting | Stage::Proving, Record::Close { reason }) => {
                let reason = String::from_utf8_lossy(reason);
                let message = format!("the peer refused the connection: {reason}");
                Err(TransportError::new(Cause::Refused, message))
            }
            (Stage::Open, record) => self.on_open_record(lane, record, collected),
            (Stage::Greeting, _) => {
                Err(protocol("something before its greeting; it may be another program".into()))
            }
            (Stage::Proving, _) => {
                Err(refused("sent something before its proof that it may use this connection"))
            }
        }
    }

    fn on_hello(&mut self, hello: Hello) -> Result<()> {
        self.peer = Some(hello);
        if hello.secured != self.secret.is_some() {
            return Err(refused(match hello.secured {
                true => "asks for a data connection's secret, this end was given none",
                false => "knows no secret, this end asks for a data connection's",
            }));
        }
        if hello.connection != self.connection {
            let (theirs, ours) = (hello.connection, self.connection);
            return Err(refused(&format!("means connection {theirs:#x}, this end {ours:#x}")));
        }
        if let Some(sharing) = &mut self.sharing {
            let beside = self.descriptors.pop_front().filter(|_| hello.beside);
            let beside = beside.ok_or_else(|| protocol("a greeting without its memory".into()))?;
            sharing.greeted(beside)?;
        } else if hello.beside {
            return Err(protocol("a greeting with memory, which cannot be passed here".into()));
        }
        if self.initiator {
            self.send_hello()?;
        }
        match self.secret {
            None => self.open(),
            Some(_) if self.initiator => {
                self.send_proof();
                self.stage = Stage::Proving;
            }
            Some(_) => self.stage = Stage::Proving,
        }
        Ok(())
    }

    /// The key and what is proved, for one of the two ends.
    fn proof_of(&self, initiator: bool) -> Option<(hmac::Key, Vec<u8>)> {
        let (secret, peer) = (self.secret?, self.peer?);
        let (first, second) = self.in_order(&self.nonce, &peer.nonce);
        let mut proved = b"genie data connection v1".to_vec();
        proved.push(initiator.into());
        proved.extend_from_slice(&self.connection.to_le_bytes());
        proved.extend_from_slice(first);
        proved.extend_from_slice(second);
        proved.extend_from_slice(&self.binding);
        Some((hmac::Key::new(hmac::HMAC_SHA256, &secret), proved))
    }

    fn send_proof(&mut self) {
        let (key, proved) = self.proof_of(self.initiator).expect("both are known here");
        let proof = tag(&key, &[&proved]);
        Record::Proof(proof).encode(self.lanes[CONTROL].record(None));
    }

    fn on_proof(&mut self, proof: &[u8; 32]) -> Result<()> {
        let (key, proved) = self.proof_of(!self.initiator).expect("both are known here");
        if hmac::verify(&key, &proved, proof).is_err() {
            return Err(refused("does not know the secret of this data connection"));
        }
        if !self.initiator {
            self.send_proof();
        }
        self.open();
        Ok(())
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.completions.push_back(Completion::Connected);
        self.held_bytes = 0;
        let limit = self.peer.expect("it greeted").frame_bytes_max;
        for (record, beside) in std::mem::take(&mut self.held) {
            let bytes = record.len() - HEAD_BYTES;
            if record[0] == FRAME && bytes as u64 > limit {
                let complaint =
                    format!("a frame of {bytes} bytes, the peer accepts {limit}; it is not sent");
                self.complaints.push_back(invalid(complaint));
                continue;
            }
            self.lanes[CONTROL].record(beside).extend_from_slice(&record);
        }
    }

    fn on_open_record(
        &mut self,
        lane: usize,
        record: Record<'_>,
        collected: Option<Vec<u8>>,
    ) -> Result<()> {
        match record {
            Record::Frame { kind, beside, body } => {
                let body = collected.unwrap_or_else(|| body.to_vec());
                let memory = match beside {
                    true => Some(self.take_descriptor()?),
                    false => None,
                };
                self.counters.frames_received += 1;
                self.arrived_bytes += body.len();
                self.completions.push_back(Completion::Frame { kind, body, memory });
            }
            Record::Offer(offer) => self.on_offer(offer)?,
            Record::Withdraw { window, generation } => {
                match self.peer_windows.get(&window) {
                    Some(open) if open.generation == generation => {
                        self.peer_windows.remove(&window);
                    }
                    _ => return Err(protocol(format!("an end of window {window}, unknown here"))),
                }
                if let Some(sharing) = &mut self.sharing {
                    sharing.forget(generation);
                }
            }
            Record::Write(write) => self.on_write(lane, write)?,
            Record::Data { bytes } => {
                let incoming = &mut self.lanes[lane].incoming;
                match &incoming.arriving {
                    Some(open) if u64::from(bytes) <= open.write.bytes - open.done => {
                        incoming.chunk_left = bytes.into();
                    }
                    Some(_) => return Err(protocol("more payload than its message has".into())),
                    None => return Err(protocol("payload of no message".into())),
                }
            }
            Record::Written { message } => {
                self.answered(message)?;
                self.counters.messages_written += 1;
                self.end_message(message);
                self.completions.push_back(Completion::Written { message });
            }
            Record::Dropped { message } => {
                let window = self.answered(message)?;
                self.counters.messages_dropped += 1;
                self.messages.get_mut(&message).expect("checked by answered").sent = false;
                match self.peer_windows.contains_key(&window) {
                    true => self.ready.push_back(message),
                    false => self.waiting.entry(window).or_default().push_back(message),
                }
            }
            Record::Alive => {}
            Record::Close { reason } => {
                self.peer_closed = true;
                let reason = String::from_utf8_lossy(reason);
                let error = match self.closing {
                    true => closed_here(),
                    false => {
                        // So that the peer knows that its goodbye was heard.
                        self.push_close("");
                        let text = match reason.is_empty() {
                            true => "the peer closed the connection".to_owned(),
                            false => format!("the peer closed the connection: {reason}"),
                        };
                        TransportError::new(Cause::Closed, text)
                    }
                };
                self.failure.get_or_insert(error);
            }
            Record::Hello(_) | Record::Proof(_) | Record::Lane => {
                return Err(protocol("a second greeting".into()));
            }
        }
        Ok(())
    }

    fn take_descriptor(&mut self) -> Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| protocol("a record without the memory it announces".into()))
    }

    fn on_offer(&mut self, offer: Offer) -> Result<()> {
        let Offer { window, generation, bytes, .. } = offer;
        if generation <= self.peer_generation
            || bytes == 0
            || self.peer_windows.contains_key(&window)
            || self.peer_windows.len() >= WINDOWS_MAX
            || offer.beside != self.sharing.is_some()
        {
            return Err(protocol(format!("an offer of window {window} that cannot be")));
        }
        if offer.beside {
            let beside = self.take_descriptor()?;
            self.sharing.as_mut().expect("checked above").adopt(&offer, beside)?;
        }
        self.peer_generation = generation;
        self.peer_windows.insert(window, PeerWindow { generation, bytes });
        if let Some(waiting) = self.waiting.remove(&window) {
            self.ready.extend(waiting);
        }
        Ok(())
    }

    fn on_write(&mut self, lane: usize, write: Write) -> Result<()> {
        if lane != self.data_lane || write.done != self.sharing.is_some() {
            return Err(protocol("a message in a way that this transport has not".into()));
        }
        if self.lanes[lane].incoming.arriving.is_some() {
            return Err(protocol("a message inside another".into()));
        }
        if write.bytes > self.message_bytes_max {
            let (bytes, limit) = (write.bytes, self.message_bytes_max);
            return Err(protocol(format!("a message of {bytes} bytes, the limit is {limit}")));
        }
        let Write { window, generation, offset, bytes, .. } = write;
        let target = self.memories.target(window, generation, offset, bytes)?;
        let arriving = Arriving { write, done: 0, target };
        if write.done || bytes == 0 {
            self.arrived(arriving);
        } else {
            self.lanes[lane].incoming.arriving = Some(arriving);
        }
        Ok(())
    }

    /// The window of a message that the peer may answer now.
    fn answered(&self, message: u64) -> Result<u32> {
        let sent = self.messages.get(&message).filter(|posted| posted.sent);
        match sent {
            Some(posted) => Ok(posted.window),
            None => Err(protocol(format!("an answer to message {message}, which was not sent"))),
        }
    }

    /// Counters by name.
    pub fn statistics(&self) -> Vec<(String, u64)> {
        let Counters {
            frames_sent,
            frames_received,
            messages_written,
            messages_placed,
            messages_dropped,
            bytes_sent,
            bytes_received,
        } = self.counters;
        [
            ("frames_sent", frames_sent),
            ("frames_received", frames_received),
            ("messages_written", messages_written),
            ("messages_placed", messages_placed),
            ("messages_dropped", messages_dropped),
            ("bytes_sent", bytes_sent),
            ("bytes_received", bytes_received),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    // Time.

    /// What is due by now: signs of life, and the ends of patience.
    pub fn tick(&mut self, now: Instant) {
        if self.failure.is_some() {
            return;
        }
        if !self.is_open() {
            if now >= self.begun + self.connect_time {
                self.fail(TransportError::new(
                    Cause::TimedOut,
                    format!(
                        "the peer did not answer within {} ms; is it reachable, and does it speak \
                         this transport?",
                        self.connect_time.as_millis()
                    ),
                ));
            }
            return;
        }
        if let Some(closed) = self.closing_since
            && now >= closed + self.deadline
        {
            self.failure = Some(closed_here());
            return;
        }
        if !self.watch {
            return;
        }
        if self.has_much_news() {
            // It is the caller who does not take what the peer sent.
            self.heard = now;
        }
        if now >= self.heard + self.deadline {
            self.fail(TransportError::new(
                Cause::TimedOut,
                format!("no sign of life from the peer for {} ms", self.deadline.as_millis()),
            ));
        } else if now >= self.sent + self.deadline / SIGNS_PER_DEADLINE && !self.wants_to_send() {
            Record::Alive.encode(self.lanes[CONTROL].record(None));
            self.sent = now;
        }
    }

    /// When [`Exchange::tick`] is due next.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        if self.failure.is_some() {
            return None;
        }
        if !self.is_open() {
            return Some(self.begun + self.connect_time);
        }
        if let Some(closed) = self.closing_since {
            return Some(closed + self.deadline);
        }
        if !self.watch {
            return None;
        }
        let sign = self.sent + self.deadline / SIGNS_PER_DEADLINE;
        let end = self.heard + self.deadline;
        // A sign that is overdue cannot leave: the peer reads nothing, its own are awaited.
        Some(if sign > now { sign.min(end) } else { end })
    }
}

fn fits(message: u64, window: u32, offset: u64, bytes: u64, window_bytes: u64) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= window_bytes => Ok(()),
        _ => Err(invalid(format!(
            "message {message} of {bytes} bytes at {offset} does not fit window {window}, which \
             has {window_bytes} bytes; it is not sent"
        ))),
    }
}

fn refused(what: &str) -> TransportError {
    let message = format!("the peer is refused: it {what}");
    TransportError::new(Cause::Refused, message)
}

fn closed_here() -> TransportError {
    TransportError::new(Cause::Closed, "the connection was closed by this end")
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Appends `bytes` bytes at `from`.
///
/// # Safety
/// `from` must be valid for reads of `bytes` bytes, and not lie in `out`.
unsafe fn append(out: &mut Vec<u8>, from: *const u8, bytes: usize) {
    out.reserve(bytes);
    // SAFETY: room was reserved; the caller vouches for the source; after the copy the bytes up to
    // the new length are initialised.
    unsafe {
        std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().add(out.len()), bytes);
        out.set_len(out.len() + bytes);
    }
}
