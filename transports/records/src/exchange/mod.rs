//! The state of one connection, without its socket and its clock.
//!
//! Callers post frames, offers and writes; a carrier moves what [`Exchange::outgoing`] names and
//! feeds what arrives. Completions come out in order.
//!
//! Here: the state, what completes and what fails. `greeting` comes first on a connection;
//! `frames`, `windows` and `writes` are what callers ask for; `outgoing` and `incoming` are what
//! carriers move; `liveness` is time and the end.

mod frames;
mod greeting;
mod incoming;
mod liveness;
mod outgoing;
mod windows;
mod writes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use genie_transport::transport::{
    COMPLETIONS_MAX, Cause, Completion, FRAME_QUEUE_BYTES_MAX, Options, Result, TransportError,
};

use self::outgoing::Sending;
use self::windows::PeerWindow;
use self::writes::Message;
use crate::lane::{Lane, Span};
use crate::memory::Memories;
use crate::record::Hello;
use crate::sharing::Sharing;

/// The lane of records; and of payload, where a transport has one lane only.
pub const CONTROL: usize = 0;
/// The second lane, of payload alone.
pub const DATA: usize = 1;

/// What may wait for a peer before no more is taken from it: answers cannot pile up.
const ANSWERS_BYTES_MAX: usize = FRAME_QUEUE_BYTES_MAX + (1 << 20);
/// Bodies of frames that wait for the caller before no more is read.
const ARRIVED_BYTES_MAX: usize = FRAME_QUEUE_BYTES_MAX;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits for the peer's greeting.
    Greeting,
    /// Waits for the peer's proof.
    Proving,
    Open,
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

    fn has_much_news(&self) -> bool {
        self.completions.len() >= COMPLETIONS_MAX || self.arrived_bytes >= ARRIVED_BYTES_MAX
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
}
