//! The connection: everything a carrier calls.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::acks::Acks;
use crate::config::{
    Config, MESSAGE_BYTES_MAX, MESSAGES_AHEAD_MAX, MICROSECOND, MILLISECOND, PARTS_MAX, Protection,
    REASON_BYTES_MAX, Role, Time,
};
use crate::congestion::{Congestion, Feedback};
use crate::control::{Inbox, Outbox};
use crate::error::{CloseReason, ConfigError, WindowError, WriteError};
use crate::event::{Event, Statistics, Transmit};
use crate::hello::{Greeter, HELLO_BYTES_MAX, Heard, common_version, session_keys};
use crate::memory::{Parts, Span, WindowMemory};
use crate::protect::{FORGERIES_MAX, Keys, tag_bytes};
use crate::receive::{Incoming, Refused, Taken};
use crate::send::{Outgoing, Over};
use crate::sent::{Cargo, Outcome, Sent};
use crate::split::{Piece, SPLIT_BYTES_MIN};
use crate::wire::{
    ACK_BYTES_MIN, CLOSE_BYTES_MAX, Frame, HEADER_BYTES, Header, Kind, MORE_BYTES, Malformed,
    NUMBERS, Reader, Sequenced, Writer, encode_close, encode_ping,
};

/// From this version on, an acknowledgement may ride behind a message's last byte.
const VERSION_RIDING_ACKS: u8 = 2;
/// Packets a probe may send beyond pacing and allowance.
const PROBE_PACKETS: usize = 2;
/// A close is told again to a peer that goes on sending, this often.
const CLOSE_EVERY: Time = 10 * MILLISECOND;
/// Packets of a flow before the next takes over (equal-cost paths stay evenly used, batches stay whole).
const FLOW_TURN: u64 = 64;

/// What a session has once the peer's nonce is known.
struct Session {
    peer_nonce: [u8; 16],
    version: u8,
    seal: Keys,
    open: Keys,
    /// The peer proved that it is there now, not replayed.
    is_proven: bool,
}

/// One end of a connection. Every call that can depend on time is told it.
pub struct Connection {
    config: Config,
    tag_bytes: usize,
    /// The smaller of both ends'.
    datagram_bytes: usize,
    greeter: Greeter,
    session: Option<Session>,
    closed: Option<CloseReason>,
    close_at: Option<Time>,
    events: VecDeque<(Event, Option<u64>)>,
    acks: Acks,
    sent: Sent,
    congestion: Congestion,
    inbox: Inbox,
    outbox: Outbox,
    incoming: Incoming,
    outgoing: Outgoing,
    was_refused: bool,
    /// `delivered` up to which measurements are starved by the application.
    starved_until: u64,
    probe_packets: usize,
    ping_wanted: bool,
    confirmation_at: Time,
    flow: u16,
    flow_left: u64,
    /// The flow that the peer's last packet came on: acknowledgements go back there.
    reply_flow: u16,
    heard_at: Time,
    /// Since when something is unacknowledged without a word from the peer.
    waiting_since: Option<Time>,
    kept_alive_at: Time,
    statistics: Statistics,
    ranges: Vec<(u64, u64)>,
    cargoes: Vec<Cargo>,
}

impl Connection {
    /// A new end; the client's first `poll_transmit` says hello.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: Config, now: Time) -> Result<Self, ConfigError> {
        config.check()?;
        let (rate, rate_max) = (config.rate_initial, config.rate_max);
        Ok(Self {
            tag_bytes: tag_bytes(&config.protection),
            datagram_bytes: config.datagram_bytes,
            greeter: Greeter::new(&config, now),
            session: None,
            closed: None,
            close_at: None,
            events: VecDeque::new(),
            acks: Acks::new(config.datagram_bytes),
            sent: Sent::new(config.flows),
            congestion: Congestion::new(config.datagram_bytes, rate, rate_max, now),
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            incoming: Incoming::new(config.messages_ahead),
            outgoing: Outgoing::default(),
            was_refused: false,
            starved_until: 0,
            probe_packets: 0,
            ping_wanted: false,
            confirmation_at: now,
            flow: 0,
            flow_left: FLOW_TURN,
            reply_flow: 0,
            heard_at: now,
            // The handshake itself is waited for.
            waiting_since: Some(now),
            kept_alive_at: now,
            statistics: Statistics::default(),
            ranges: Vec::new(),
            cargoes: Vec::new(),
            config,
        })
    }

    /// The connection id a datagram names, for carriers that share a socket between connections.
    /// `None`: too short to be of this protocol.
    pub fn id_of(datagram: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(datagram.get(8..16)?.try_into().ok()?))
    }

    /// Lets the peer write into `memory` under the id `window`. May be called before `Connected`.
    ///
    /// # Errors
    /// The id is in use, or too many windows are offered, or the connection is closed.
    pub fn offer(&mut self, window: u32, memory: Arc<dyn WindowMemory>) -> Result<(), WindowError> {
        if let Some(reason) = &self.closed {
            return Err(WindowError::Closed(reason.clone()));
        }
        if self.outbox.is_full() {
            return Err(WindowError::TooMany);
        }
        let bytes = memory.bytes();
        let serial = self.incoming.offer(window, memory)?;
        self.outbox.push(Sequenced::Offer { serial, window, bytes });
        Ok(())
    }

    /// Takes a window back. When this returns nothing will be placed into its memory any more, and
    /// messages that were partly placed are forgotten (the peer's writes fail). The id may be
    /// offered again at once.
    ///
    /// # Errors
    /// The window is not offered.
    pub fn withdraw(&mut self, window: u32) -> Result<(), WindowError> {
        if let Some(reason) = &self.closed {
            return Err(WindowError::Closed(reason.clone()));
        }
        let serial = self.incoming.withdraw(window)?;
        self.outbox.push(Sequenced::Withdraw { serial });
        Ok(())
    }

    /// Queues a message of the bytes of `parts`, one after another, for `offset` in the peer's
    /// `window`. If the peer has not offered the window yet, the message waits for it. Ids must
    /// rise. Messages are independent: a short one may overtake a long one.
    ///
    /// # Errors
    /// Nothing was queued, see [`WriteError`].
    pub fn write(
        &mut self,
        message: u64,
        parts: Vec<Span>,
        window: u32,
        offset: u64,
    ) -> Result<(), WriteError> {
        if let Some(reason) = &self.closed {
            return Err(WriteError::Closed(reason.clone()));
        }
        if parts.len() > PARTS_MAX {
            return Err(WriteError::TooManyParts { message, parts: parts.len() });
        }
        let parts = Parts::new(parts);
        let bytes = parts.bytes();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(WriteError::TooLong { message, bytes });
        }
        let queued = self.outgoing.queued;
        if queued >= self.config.writes_queued {
            self.was_refused = true;
            return Err(WriteError::OutOfCredit { queued });
        }
        self.outgoing.write(message, parts, window, offset)
    }

    /// Handles one datagram received on `flow`, which it may change (it is opened in place).
    pub fn handle(&mut self, now: Time, flow: u16, datagram: &mut [u8]) {
        let bytes = datagram.len() as u64;
        let header = datagram.first_chunk().and_then(Header::decode);
        let Some(header) = header.filter(|it| it.connection_id == self.config.connection_id) else {
            self.statistics.foreign_dropped += 1;
            return;
        };
        let taken = if header.kind == Kind::Hello {
            self.handle_hello(now, &header, datagram)
        } else {
            self.handle_packet(now, &header, datagram)
        };
        if taken {
            self.statistics.packets_received += 1;
            self.statistics.bytes_received += bytes;
            self.heard_at = now;
            self.reply_flow = flow % self.config.flows;
            if self.waiting_since.is_some() {
                let waits = self.sent.in_flight() > 0 || !self.is_connected();
                self.waiting_since = waits.then_some(now);
            }
        }
        self.settle(now);
    }

    /// Takes a hello; `true`: it was made now, not replayed.
    fn handle_hello(&mut self, now: Time, header: &Header, datagram: &mut [u8]) -> bool {
        let Some(heard) = Greeter::open(&self.config, header, datagram) else {
            self.corrupt();
            return false;
        };
        if self.closed.is_some() {
            return false;
        }
        let is_server = self.config.role == Role::Server;
        let proven = self.session.as_ref().filter(|session| session.is_proven);
        if let Some(session) = proven {
            let is_known = session.peer_nonce == heard.nonce;
            if !is_known && heard.is_fresh {
                self.end(now, CloseReason::PeerRestarted);
            } else if !is_known || !is_server {
                // A new instance of the peer, or a replay: only the former can echo our nonce. Or a
                // server that did not hear our answer.
                self.greeter.answer(now, Some(heard.nonce));
            }
        } else if is_server {
            self.greeter.answer(now, Some(heard.nonce));
            if self.adopt(now, &heard) && heard.is_fresh {
                self.prove(now);
            }
        } else if heard.is_fresh && self.adopt(now, &heard) {
            self.greeter.rest();
            self.greeter.answer(now, Some(heard.nonce));
            self.prove(now);
        }
        heard.is_fresh
    }

    /// Makes the session that a hello proposes. `false`: there is no version in common.
    fn adopt(&mut self, now: Time, heard: &Heard) -> bool {
        let (ours, theirs) = (self.config.versions, heard.hello.versions);
        let Some(version) = common_version(ours, theirs) else {
            self.end(now, CloseReason::Version { ours, theirs });
            return false;
        };
        if self.session.as_ref().is_some_and(|session| session.peer_nonce == heard.nonce) {
            return true;
        }
        let (seal, open) = session_keys(&self.config, &heard.nonce);
        let peer_nonce = heard.nonce;
        self.session = Some(Session { peer_nonce, version, seal, open, is_proven: false });
        let theirs = heard.hello.datagram_bytes as usize;
        self.datagram_bytes =
            self.config.datagram_bytes.min(theirs.max(crate::config::DATAGRAM_BYTES_MIN));
        self.outgoing.credited(heard.hello.messages_ahead.min(MESSAGES_AHEAD_MAX).into());
        true
    }

    /// The peer is there now: the connection begins.
    fn prove(&mut self, now: Time) {
        let Some(session) = self.session.as_mut().filter(|session| !session.is_proven) else {
            return;
        };
        session.is_proven = true;
        if let Some(rtt) = self.greeter.round_trip(now) {
            self.sent.rtt.sample(rtt);
        }
        // So that the server hears from us even if nothing is written.
        self.ping_wanted = self.config.role == Role::Client;
        let version = session.version;
        self.events.push_back((Event::Connected { version }, None));
    }

    /// Takes a session packet; `true`: it was the peer's.
    fn handle_packet(&mut self, now: Time, header: &Header, datagram: &mut [u8]) -> bool {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let Some((front, body)) = datagram.split_at_mut_checked(body_at) else {
            self.statistics.foreign_dropped += 1;
            return false;
        };
        let Some(session) = &mut self.session else {
            if self.config.role == Role::Server {
                // A client that talks to our predecessor, perhaps: say that we are new.
                self.greeter.answer(now, None);
            }
            self.statistics.foreign_dropped += 1;
            return false;
        };
        if header.version != session.version {
            self.statistics.foreign_dropped += 1;
            return false;
        }
        if self.acks.is_replay(header.number) {
            self.statistics.replays_ignored += 1;
            return false;
        }
        let (clear, tag) = front.split_at(HEADER_BYTES);
        if !session.open.open(header.number, clear, tag, body) {
            if self.config.role == Role::Server && !session.is_proven {
                self.greeter.answer(now, None);
            }
            self.corrupt();
            return false;
        }
        self.prove(now);
        if let Some(reason) = &self.closed {
            let tell = !matches!(reason, CloseReason::Peer { .. } | CloseReason::PeerFailed { .. });
            if tell {
                self.close_at.get_or_insert(now + CLOSE_EVERY);
            }
            return true;
        }
        if let Err(reason) = self.take_body(now, header, body) {
            self.end(now, reason);
        }
        true
    }

    /// Takes what an authentic packet says.
    fn take_body(&mut self, now: Time, header: &Header, body: &[u8]) -> Result<(), CloseReason> {
        let is_control = header.kind == Kind::Control;
        let mut frames = body;
        if !is_control {
            let taken = match self.incoming.take(header.kind == Kind::First, body) {
                Ok(taken) => taken,
                Err(Refused::Unheard) => {
                    self.statistics.limit_dropped += 1;
                    return Ok(());
                }
                Err(Refused::Close(reason)) => return Err(reason),
            };
            frames = &body[taken.frames_at..];
            self.note_taken(taken);
        }
        let wants_ack = self
            .take_frames(now, frames)
            .map_err(|Malformed(what)| CloseReason::Protocol { what })?;
        let rtt = self.sent.rtt.smoothed();
        self.acks.received(now, header.number, wants_ack || !is_control, rtt);
        while let Some(frame) = self.inbox.pop() {
            self.take_sequenced(frame)?;
        }
        Ok(())
    }

    fn note_taken(&mut self, taken: Taken) {
        self.statistics.payload_placed += taken.new;
        self.statistics.duplicate_bytes += taken.again;
        if let Some((sequence, event)) = taken.placed {
            self.statistics.messages_placed += 1;
            self.events.push_back((event, Some(sequence)));
        }
    }

    /// Takes frames; `true`: they want an acknowledgement.
    fn take_frames(&mut self, now: Time, frames: &[u8]) -> Result<bool, Malformed> {
        let mut reader = Reader::new(frames);
        let mut wants_ack = false;
        let mut ranges = std::mem::take(&mut self.ranges);
        while !reader.is_empty() && self.closed.is_none() {
            match Frame::decode(&mut reader, &mut ranges)? {
                Frame::Ping => {
                    wants_ack = true;
                    self.acks.asked(now);
                }
                Frame::Ack { delay_us } => {
                    let delay = Time::from(delay_us) * MICROSECOND;
                    self.take_ack(now, &ranges, delay)?;
                }
                Frame::Sequenced { first, count } => {
                    wants_ack = true;
                    for at in 0..u64::from(count) {
                        let frame = Sequenced::decode(&mut reader)?;
                        if !self.inbox.take(first.saturating_add(at), frame) {
                            return Err(Malformed("a sequenced frame too far ahead"));
                        }
                    }
                }
                Frame::Close { engine: true, reason, .. } => {
                    self.end(now, CloseReason::PeerFailed { reason });
                }
                Frame::Close { engine: false, code, reason } => {
                    self.end(now, CloseReason::Peer { code, reason });
                }
            }
        }
        self.ranges = ranges;
        Ok(wants_ack)
    }

    fn take_ack(&mut self, now: Time, ranges: &[(u64, u64)], delay: Time) -> Result<(), Malformed> {
        let mut cargoes = std::mem::take(&mut self.cargoes);
        cargoes.clear();
        let outcome = self
            .sent
            .acknowledge(now, ranges, delay, &mut cargoes)
            .ok_or(Malformed("an acknowledgement of what was never sent"))?;
        for cargo in &cargoes {
            match *cargo {
                Cargo::Fragment { sequence, at, bytes } => {
                    self.outgoing.acknowledged(sequence, at, bytes);
                }
                Cargo::Sequenced { first, count } => self.outbox.acknowledged(first, count),
                Cargo::Ping { reported: Some(highest) } => self.acks.confirmed(highest),
                Cargo::Ping { reported: None } => {}
            }
        }
        self.cargoes = cargoes;
        self.lose(now, &outcome);
        Ok(())
    }

    /// Declares what is lost, queues it again, and tells the model of the path.
    fn lose(&mut self, now: Time, outcome: &Outcome) {
        let mut cargoes = std::mem::take(&mut self.cargoes);
        cargoes.clear();
        let lost = self.sent.detect_losses(now, &mut cargoes);
        for cargo in &cargoes {
            self.again(*cargo);
        }
        self.cargoes = cargoes;
        if outcome.acknowledged > 0 || lost > 0 {
            self.congestion.feedback(&Feedback {
                now,
                rtt: outcome.rtt,
                rate: outcome.rate,
                acknowledged: outcome.acknowledged,
                lost,
                delivered: self.sent.delivered(),
                delivered_before: outcome.delivered_before,
                in_flight: self.sent.in_flight(),
            });
        }
    }

    fn again(&mut self, cargo: Cargo) {
        match cargo {
            Cargo::Fragment { sequence, at, bytes } => self.outgoing.again(sequence, at, bytes),
            Cargo::Sequenced { first, count } => self.outbox.lost(first, count),
            // A lost ping has done its work: what matters is asked again when it is due.
            Cargo::Ping { .. } => {}
        }
    }

    fn take_sequenced(&mut self, frame: Sequenced) -> Result<(), CloseReason> {
        match frame {
            Sequenced::Offer { serial, window, bytes } => {
                self.outgoing.offered(serial, window, bytes)
            }
            Sequenced::Withdraw { serial } => self.outgoing.withdrawn(serial),
            Sequenced::Credit { messages } => {
                self.outgoing.credited(messages);
                Ok(())
            }
            Sequenced::Abandon { sequence } => {
                self.incoming.abandoned(sequence)?;
                self.grant();
                Ok(())
            }
        }
    }

    fn grant(&mut self) {
        if let Some(messages) = self.incoming.new_credit() {
            self.outbox.push(Sequenced::Credit { messages });
        }
    }

    /// Tells what became of messages, after anything that may have ended some.
    fn settle(&mut self, now: Time) {
        if self.closed.is_some() {
            return;
        }
        let mut over = std::mem::take(&mut self.outgoing.over);
        for message in over.drain(..) {
            match message {
                Over::Written { message } => {
                    self.statistics.messages_written += 1;
                    self.events.push_back((Event::Written { message }, None));
                }
                Over::Failed { message, reason, abandoned } => {
                    self.events.push_back((Event::Failed { message, reason }, None));
                    if let Some(sequence) = abandoned {
                        self.outbox.push(Sequenced::Abandon { sequence });
                    }
                }
            }
        }
        self.outgoing.over = over;
        if self.was_refused && self.outgoing.queued < self.config.writes_queued {
            self.was_refused = false;
            self.events.push_back((Event::Writable, None));
        }
        if self.sent.next() >= NUMBERS - 1 {
            self.end(now, CloseReason::Exhausted);
        }
    }

    fn corrupt(&mut self) {
        self.statistics.corrupt_dropped += 1;
    }

    /// Ends the connection for `reason`, once.
    fn end(&mut self, now: Time, reason: CloseReason) {
        if self.closed.is_some() {
            return;
        }
        let tell = !matches!(
            reason,
            CloseReason::Peer { .. } | CloseReason::PeerFailed { .. } | CloseReason::PeerRestarted
        );
        self.close_at = tell.then_some(now);
        if self.config.role == Role::Client || !matches!(reason, CloseReason::Version { .. }) {
            self.greeter.rest();
        }
        self.incoming.clear();
        self.outgoing = Outgoing::default();
        self.events.push_back((Event::Closed(reason.clone()), None));
        self.closed = Some(reason);
    }

    /// Fills `buf` with datagrams to send on one flow: as many as `segments_max`, `buf`, credit and
    /// pacing allow. `None`: nothing to send before [`Connection::poll_timeout`], the next datagram
    /// or call.
    ///
    /// # Panics
    /// If `buf` does not hold one datagram of `Config::datagram_bytes`.
    pub fn poll_transmit(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
    ) -> Option<Transmit> {
        self.transmit(now, buf, segments_max, None)
    }

    /// As [`Connection::poll_transmit`] for one datagram, whose payload may stay where it lies:
    /// `pieces` (cleared first) then says where, at most [`crate::PIECES_MAX`] of them, and `head`
    /// holds what comes before, [`Transmit::bytes`] less the pieces. Together they are the very
    /// bytes of `poll_transmit`; the check is made by reading.
    ///
    /// Only trusted connections split, and not all their datagrams. The pieces must stay as they
    /// are until the carrier has sent them, perhaps after `Written`: that is for the carrier to
    /// see to.
    ///
    /// # Panics
    /// As `poll_transmit`.
    pub fn poll_transmit_split(
        &mut self,
        now: Time,
        head: &mut [u8],
        pieces: &mut Vec<Piece>,
    ) -> Option<Transmit> {
        pieces.clear();
        self.transmit(now, head, 1, Some(pieces))
    }

    fn transmit(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
        pieces: Option<&mut Vec<Piece>>,
    ) -> Option<Transmit> {
        const { assert!(HELLO_BYTES_MAX <= crate::DATAGRAM_BYTES_MIN) };
        assert!(buf.len() >= self.config.datagram_bytes, "the buffer holds a datagram");
        if let Some(bytes) = self.greeter.write(&self.config, now, buf) {
            return Some(self.single(self.reply_flow, bytes));
        }
        if self.closed.is_some() {
            return self.transmit_close(now, buf);
        }
        if !self.is_connected() {
            return None;
        }
        let transmit = if self.wants_control(now) {
            self.transmit_control(now, buf)
        } else {
            self.transmit_fragments(now, buf, segments_max, pieces)
        };
        if transmit.is_some() && self.sent.in_flight() > 0 {
            self.waiting_since.get_or_insert(now);
        }
        transmit
    }

    fn single(&mut self, flow: u16, bytes: usize) -> Transmit {
        self.statistics.packets_sent += 1;
        self.statistics.bytes_sent += bytes as u64;
        Transmit { flow, segments: 1, segment_bytes: bytes, bytes }
    }

    fn transmit_close(&mut self, now: Time, buf: &mut [u8]) -> Option<Transmit> {
        const { assert!(HEADER_BYTES + 16 + CLOSE_BYTES_MAX <= crate::DATAGRAM_BYTES_MIN) };
        if self.close_at? > now {
            return None;
        }
        self.close_at = None;
        self.session.as_ref()?;
        let (engine, code, reason) = match self.closed.as_ref()? {
            CloseReason::Here { code, reason } => (false, *code, reason.clone()),
            reason => (true, 0, reason.to_string()),
        };
        let body_at = HEADER_BYTES + self.tag_bytes;
        let mut writer = Writer::new(&mut buf[body_at..self.datagram_bytes]);
        encode_close(&mut writer, engine, code, &reason);
        let len = body_at + writer.at();
        let flow = self.reply_flow;
        self.seal(now, Kind::Control, flow, &mut buf[..len], &[], None);
        Some(self.single(flow, len))
    }

    fn wants_control(&self, now: Time) -> bool {
        self.acks.is_due(now)
            || self.ping_wanted
            || !self.sent.is_full() && self.outbox.wants_to_send()
    }

    fn transmit_control(&mut self, now: Time, buf: &mut [u8]) -> Option<Transmit> {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let mut writer = Writer::new(&mut buf[body_at..self.datagram_bytes]);
        let mut cargo = None;
        let mut reported = None;
        if self.acks.is_pending() && self.acks.write(now, &mut writer) {
            reported = Some(self.acks.highest());
        }
        if !self.sent.is_full() {
            let run = self.outbox.write(&mut writer);
            cargo = run.map(|(first, count)| Cargo::Sequenced { first, count });
        }
        let confirm =
            reported.is_some() && self.acks.wants_confirmation() && now >= self.confirmation_at;
        if cargo.is_none() && (self.ping_wanted || confirm) {
            encode_ping(&mut writer);
            cargo = Some(Cargo::Ping { reported });
            self.confirmation_at = now + self.sent.rtt.smoothed();
        }
        // Whatever goes asks for an acknowledgement as a ping does.
        self.ping_wanted &= cargo.is_none();
        let len = body_at + writer.at();
        if writer.at() == 0 {
            return None;
        }
        let flow = self.reply_flow;
        self.seal(now, Kind::Control, flow, &mut buf[..len], &[], cargo);
        Some(self.single(flow, len))
    }

    fn transmit_fragments(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
        mut pieces: Option<&mut Vec<Piece>>,
    ) -> Option<Transmit> {
        let in_flight = self.sent.in_flight();
        let allowance = self.congestion.allowance();
        if !self.outgoing.wants_to_send() {
            if in_flight < allowance {
                self.starved_until = self.sent.delivered() + in_flight.max(1);
            }
            return None;
        }
        let packet = self.datagram_bytes;
        let is_probe = self.probe_packets > 0;
        let bytes_max = if is_probe {
            std::mem::take(&mut self.probe_packets) * packet
        } else {
            let window = allowance.saturating_sub(in_flight);
            if window == 0 {
                return None;
            }
            self.congestion.budget(now).min(window) as usize
        };
        if bytes_max == 0 {
            return None;
        }
        self.turn_flow();
        let flow = self.flow;
        let (mut bytes, mut segments) = (0, 0);
        while segments < segments_max
            && bytes < bytes_max
            && bytes + packet <= buf.len()
            && (is_probe || !self.sent.is_full())
        {
            let space = &mut buf[bytes..bytes + packet];
            let pieces = pieces.as_deref_mut();
            let Some(len) = self.write_fragment(now, flow, space, pieces) else { break };
            bytes += len;
            segments += 1;
            if len < packet {
                break;
            }
        }
        if segments == 0 {
            return None;
        }
        self.congestion.spend(bytes as u64);
        self.flow_left = self.flow_left.saturating_sub(segments as u64);
        self.statistics.packets_sent += segments as u64;
        self.statistics.data_packets += segments as u64;
        self.statistics.bytes_sent += bytes as u64;
        Some(Transmit { flow, segments, segment_bytes: bytes.min(packet), bytes })
    }

    fn turn_flow(&mut self) {
        if self.flow_left == 0 {
            self.flow = (self.flow + 1) % self.config.flows;
            self.flow_left = FLOW_TURN;
        }
    }

    /// Makes one packet of the next fragment, or its head, if `pieces` may take the payload; gives
    /// the length of both.
    fn write_fragment(
        &mut self,
        now: Time,
        flow: u16,
        buf: &mut [u8],
        pieces: Option<&mut Vec<Piece>>,
    ) -> Option<usize> {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let fragment = self.outgoing.next(buf.len() - body_at, MORE_BYTES)?;
        let mut writer = Writer::new(&mut buf[body_at..]);
        let kind = match &fragment.first {
            Some(first) => {
                first.encode(&mut writer);
                Kind::First
            }
            None => {
                writer.u32(fragment.sequence as u32);
                writer.u32(fragment.at as u32);
                Kind::More
            }
        };
        let payload = fragment.bytes as usize;
        let version = self.session.as_ref().map_or(0, |session| session.version);
        let rides = fragment.is_last
            && version >= VERSION_RIDING_ACKS
            && self.acks.is_pending()
            && writer.room() >= payload + ACK_BYTES_MIN;
        let is_whole = rides
            || payload < SPLIT_BYTES_MIN
            || !matches!(self.config.protection, Protection::Trusted);
        // What stays where it lies; nothing, if the packet is whole.
        let pieces: &[Piece] = match pieces.filter(|_| !is_whole) {
            Some(pieces) => {
                self.outgoing.pieces(&fragment, pieces);
                pieces
            }
            None => &[],
        };
        if pieces.is_empty() {
            self.outgoing.read(&fragment, writer.space(payload));
        }
        if rides {
            self.acks.write(now, &mut writer);
        }
        let len = body_at + writer.at();
        let bytes = u64::from(fragment.bytes);
        if fragment.is_resent {
            self.statistics.payload_resent += bytes;
        } else {
            self.statistics.payload_sent += bytes;
        }
        let (sequence, at, bytes) = (fragment.sequence, fragment.at, fragment.bytes);
        let cargo = Cargo::Fragment { sequence, at, bytes };
        Some(self.seal(now, kind, flow, &mut buf[..len], pieces, Some(cargo)))
    }

    /// Numbers, seals and notes a packet whose body is in place, or goes on in `pieces`; gives its
    /// length.
    fn seal(
        &mut self,
        now: Time,
        kind: Kind,
        flow: u16,
        packet: &mut [u8],
        pieces: &[Piece],
        cargo: Option<Cargo>,
    ) -> usize {
        let session = self.session.as_mut().expect("only a session sends packets");
        let number = self.sent.next();
        let connection_id = self.config.connection_id;
        let header = Header { kind, version: session.version, number, connection_id }.encode();
        let len = packet.len() + pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
        let (front, body) = packet.split_at_mut(HEADER_BYTES + self.tag_bytes);
        let (clear, tag) = front.split_at_mut(HEADER_BYTES);
        clear.copy_from_slice(&header);
        if pieces.is_empty() {
            session.seal.seal(number, &header, tag, body);
        } else {
            session.seal.sign(number, &header, tag, body, pieces);
        }
        let starved = self.sent.delivered() < self.starved_until;
        self.sent.sent(now, flow, len, cargo, starved);
        len
    }

    /// When to call [`Connection::handle_timeout`] and then [`Connection::poll_transmit`], if nothing
    /// happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.closed.is_some() {
            return min(self.close_at, self.greeter.wanted_at());
        }
        let mut at = min(self.greeter.wanted_at(), self.deadline());
        if self.is_connected() {
            at = min(at, self.acks.due_at());
            at = min(at, self.sent.loss_at());
            at = min(at, self.sent.probe_at());
            at = min(at, self.keepalive_at());
            if self.outgoing.wants_to_send()
                && self.sent.in_flight() < self.congestion.allowance()
                && !self.sent.is_full()
            {
                at = min(at, Some(self.congestion.send_at()));
            }
        }
        at
    }

    /// When the peer's silence ends the connection.
    fn deadline(&self) -> Option<Time> {
        Some(self.waiting_since?.max(self.heard_at).saturating_add(self.config.peer_timeout))
    }

    fn keepalive_at(&self) -> Option<Time> {
        let since = self.heard_at.max(self.kept_alive_at);
        Some(since.saturating_add(self.config.keepalive?))
    }

    /// Does what is due at `now`. Calling it early does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.closed.is_some() {
            return;
        }
        if self.deadline().is_some_and(|at| at <= now) {
            let waited_ms = self.config.peer_timeout / MILLISECOND;
            self.end(now, CloseReason::TimedOut { waited_ms });
            return;
        }
        if matches!(self.config.protection, Protection::Sealed { .. })
            && self.statistics.corrupt_dropped >= FORGERIES_MAX
        {
            let failed = self.statistics.corrupt_dropped;
            self.end(now, CloseReason::Forgeries { failed });
            return;
        }
        if !self.is_connected() {
            return;
        }
        if self.sent.loss_at().is_some_and(|at| at <= now) {
            self.lose(now, &Outcome::default());
        }
        if self.sent.probe_at().is_some_and(|at| at <= now) {
            self.probe(now);
        }
        if self.keepalive_at().is_some_and(|at| at <= now) {
            self.kept_alive_at = now;
            self.ping_wanted = true;
        }
    }

    /// The tail may be lost: sends its oldest packets again, or asks.
    fn probe(&mut self, now: Time) {
        self.statistics.probes += 1;
        let mut cargoes = std::mem::take(&mut self.cargoes);
        cargoes.clear();
        self.sent.probe(now, PROBE_PACKETS, &mut cargoes);
        for cargo in &cargoes {
            self.again(*cargo);
        }
        self.cargoes = cargoes;
        self.probe_packets = PROBE_PACKETS;
        self.ping_wanted |= !self.outgoing.wants_to_send();
    }

    /// The next event. Polling `Placed` gives the peer credit for another message.
    pub fn poll_event(&mut self) -> Option<Event> {
        let (event, sequence) = self.events.pop_front()?;
        if let Some(sequence) = sequence {
            self.incoming.polled(sequence);
            if self.closed.is_none() {
                self.grant();
            }
        }
        Some(event)
    }

    /// Closes with the application's code and words (cut at [`REASON_BYTES_MAX`]). The peer is told
    /// by the next `poll_transmit`, and again if it still sends.
    pub fn close(&mut self, now: Time, code: u32, reason: &str) {
        let reason = reason.chars().take(REASON_BYTES_MAX).collect();
        self.end(now, CloseReason::Here { code, reason });
    }

    /// Whether both ends have proven themselves and the connection is not closed.
    pub fn is_connected(&self) -> bool {
        self.closed.is_none() && self.session.as_ref().is_some_and(|session| session.is_proven)
    }

    /// Why the connection is closed, if it is.
    pub fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// Nothing to send, nothing unacknowledged, nothing to acknowledge and no event waiting: the
    /// carrier may sleep until a call, a datagram or `poll_timeout` (a keepalive).
    pub fn is_idle(&self) -> bool {
        self.events.is_empty()
            && self.greeter.wanted_at().is_none()
            && self.close_at.is_none()
            && (self.closed.is_some()
                || self.is_connected()
                    && !self.outgoing.wants_to_send()
                    && self.outbox.is_settled()
                    && self.sent.in_flight() == 0
                    && !self.acks.is_pending()
                    && !self.ping_wanted)
    }

    /// Counters and the present view of the path.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            packets_lost: self.sent.lost_total,
            losses_spurious: self.sent.spurious_total,
            srtt: self.sent.rtt.smoothed(),
            rtt_min: self.congestion.rtt_min().unwrap_or(0),
            delivery_rate: self.congestion.delivery_rate(),
            pacing_rate: self.congestion.pacing_rate(),
            window_bytes: self.congestion.allowance(),
            in_flight: self.sent.in_flight(),
            ..self.statistics.clone()
        }
    }

    /// What it was configured with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn min(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
