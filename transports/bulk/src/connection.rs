//! The connection: what a carrier calls, and its timers; what arrives and what is sent have modules of their own.

mod arrive;
mod transmit;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::acks::Acks;
use crate::config::{
    Config, MESSAGE_BYTES_MAX, MILLISECOND, PARTS_MAX, Protection, REASON_BYTES_MAX, Role, Time,
    VERSION_RETURNS,
};
use crate::congestion::Congestion;
use crate::control::{Inbox, Outbox};
use crate::error::{CloseReason, ConfigError, WindowError, WriteError};
use crate::event::{Event, Statistics};
use crate::hello::Greeter;
use crate::memory::{Parts, Span, WindowMemory};
use crate::protect::{FORGERIES_MAX, Keys, tag_bytes};
use crate::receive::Incoming;
use crate::send::{Outgoing, Over};
use crate::sent::{Cargo, Outcome, Sent};
use crate::wire::{NUMBERS, Sequenced};

/// Packets a probe may send beyond pacing and allowance.
const PROBE_PACKETS: usize = 2;
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
    /// messages that were partly placed are forgotten: the peer's writes wait for the next offer (with
    /// a peer of version 1 they fail). The id may be offered again at once.
    ///
    /// # Errors
    /// The window is not offered.
    pub fn withdraw(&mut self, window: u32) -> Result<(), WindowError> {
        if let Some(reason) = &self.closed {
            return Err(WindowError::Closed(reason.clone()));
        }
        let (serial, returned) = self.incoming.withdraw(window)?;
        self.outbox.push(Sequenced::Withdraw { serial });
        if self.returns() {
            // Bounded by the messages that the peer may start.
            returned
                .into_iter()
                .for_each(|sequence| self.outbox.push(Sequenced::Return { sequence }));
        }
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
                Over::Failed { message, reason } => {
                    self.events.push_back((Event::Failed { message, reason }, None));
                }
                Over::Abandoned { sequence } => self.outbox.push(Sequenced::Abandon { sequence }),
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

    /// What the session speaks; 0 before there is one.
    fn version(&self) -> u8 {
        self.session.as_ref().map_or(0, |session| session.version)
    }

    /// Whether messages that meet a withdrawn window return to their sender.
    fn returns(&self) -> bool {
        self.version() >= VERSION_RETURNS
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
