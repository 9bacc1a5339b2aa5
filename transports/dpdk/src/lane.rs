//! One connection between its caller and the DPDK thread.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use genie_bulk::{CloseReason, Event, Piece, Protection, Time};
use genie_transport::transport::{COMPLETIONS_MAX, Cause, Completion, TransportError};
use rustix::event::{EventfdFlags, eventfd};

use crate::endpoint::Number;
use crate::framing::{Datagram, Mac, Path};
use crate::memories::{Ended, Memories};
use crate::tail::Tail;

/// Completions kept for a caller that does not poll; then the protocol keeps its events, and the
/// peer gets no more credit.
const COMPLETIONS_KEPT_MAX: usize = 4 * COMPLETIONS_MAX;

/// How long a failure waits for the device to give back memory of messages that the peer has.
const FAILURE_WAITS: Duration = Duration::from_millis(100);
/// How soon to look again whether it has.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// The protocol's clock: nanoseconds since some moment of this process.
pub fn time(at: Instant) -> Time {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // The first call may come with a moment before it.
    at.saturating_duration_since(*START).as_nanos() as Time + Time::from(u32::MAX)
}

fn instant(at: Time, now: Instant) -> Instant {
    now + Duration::from_nanos(at.saturating_sub(time(now)))
}

/// A number for a connection, unique in the process.
pub fn next_number() -> Number {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Number(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What the caller and the thread share.
pub struct Shared {
    state: Mutex<State>,
    event: OwnedFd,
}

/// A connection's state, under its lock.
pub struct State {
    pub bulk: genie_bulk::Connection,
    pub memories: Memories,
    completions: VecDeque<Completion>,
    /// Messages that the peer will never have, to be told one by one.
    undelivered: VecDeque<TransportError>,
    pub failed: Option<TransportError>,
    /// When the failure was first to be told.
    failed_at: Option<Instant>,
    /// Payloads may be sent from where they lie.
    zero_copy: bool,
    zero_copy_packets: u64,
    pieces: Vec<Piece>,
    /// Until the peer has answered: when to give up, and the milliseconds granted.
    connecting: Option<(Instant, u64)>,
    peer: String,
    signalled: bool,
}

impl Shared {
    pub fn new(
        bulk: genie_bulk::Connection,
        connecting: Option<(Instant, u64)>,
        peer: String,
        zero_copy: bool,
    ) -> std::io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let is_trusted = matches!(bulk.config().protection, Protection::Trusted);
        let state = State {
            bulk,
            memories: Memories::default(),
            completions: VecDeque::new(),
            undelivered: VecDeque::new(),
            failed: None,
            failed_at: None,
            zero_copy: zero_copy && is_trusted,
            zero_copy_packets: 0,
            pieces: Vec::new(),
            connecting,
            peer,
            signalled: false,
        };
        Ok(Arc::new(Shared { state: Mutex::new(state), event }))
    }

    /// The state; also after a panic elsewhere, whose connection fails by its own checks.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl State {
    /// Timers and events.
    pub fn round(&mut self, now: Instant, way_known: bool) {
        let time = time(now);
        if self.bulk.poll_timeout().is_some_and(|at| at <= time) {
            self.bulk.handle_timeout(time);
        }
        self.take_events();
        self.settle_out();
        if self.failed.is_none()
            && let Some((until, granted_ms)) = self.connecting
            && until <= now
        {
            self.give_up(granted_ms, way_known);
        }
    }

    fn take_events(&mut self) {
        while self.completions.len() < COMPLETIONS_KEPT_MAX {
            let Some(event) = self.bulk.poll_event() else { return };
            match event {
                Event::Connected { .. } => {
                    self.connecting = None;
                    self.completions.push_back(Completion::Connected);
                }
                Event::Placed { message, window, offset, len } => {
                    if let Err(error) = self.memories.make_visible(window) {
                        let message = format!("dpdk: message {message}: {error}");
                        self.failed = Some(TransportError::new(Cause::Io, message));
                        return;
                    }
                    let bytes = len;
                    self.completions.push_back(Completion::Placed {
                        message,
                        window,
                        offset,
                        bytes,
                    });
                }
                Event::Written { message } => {
                    let ended = self.memories.release_message(message, Ended::Written(message));
                    ended.into_iter().for_each(|ended| self.tell(ended));
                }
                Event::Failed { message, reason } => {
                    let error = TransportError::new(
                        Cause::Invalid,
                        format!("dpdk: message {message} was not delivered: {reason}"),
                    );
                    let ended = self.memories.release_message(message, Ended::Failed(error));
                    ended.into_iter().for_each(|ended| self.tell(ended));
                }
                Event::Writable => self.completions.push_back(Completion::Writable),
                Event::Closed(reason) => {
                    self.memories.release_all();
                    self.failed.get_or_insert(ended(&self.peer, &reason));
                }
            }
        }
    }

    fn tell(&mut self, ended: Ended) {
        match ended {
            Ended::Written(message) => self.completions.push_back(Completion::Written { message }),
            Ended::Failed(error) => self.undelivered.push_back(error),
        }
    }

    /// Tells of messages that waited for the device to give their memory back.
    pub fn settle_out(&mut self) {
        if self.memories.has_out() {
            let mut late = Vec::new();
            self.memories.reap(|ended| late.push(ended));
            late.into_iter().for_each(|ended| self.tell(ended));
        }
        if self.failed.is_some() {
            self.failed_at.get_or_insert_with(Instant::now);
        }
    }

    fn give_up(&mut self, granted_ms: u64, way_known: bool) {
        self.connecting = None;
        let why = if way_known {
            "is its port open, and its secret ours?"
        } else {
            "nobody answers ARP for its address: is it on this link (settings ip, gateway, peer_mac)?"
        };
        let message = format!("dpdk: no answer from {} within {granted_ms} ms; {why}", self.peer);
        self.failed.get_or_insert(TransportError::new(Cause::TimedOut, message));
        self.end("no answer");
    }

    /// The thread failed; it looks after this connection no more.
    pub fn fail_inside(&mut self) {
        let message = "dpdk: the thread that polls the device failed inside (see standard error)";
        self.failed.get_or_insert(TransportError::new(Cause::Internal, message));
    }

    /// Closes; what the peer is told goes with the next transmit. Nothing touches the connection's
    /// memory after this.
    pub fn end(&mut self, reason: &str) {
        self.bulk.close(time(Instant::now()), 0, reason);
        // The protocol holds on to memory until its last event was taken.
        while let Some(event) = self.bulk.poll_event() {
            if let Event::Closed(reason) = event {
                self.failed.get_or_insert(ended(&self.peer, &reason));
            }
        }
        self.memories.release_all();
    }

    /// Whether payloads may be sent from where they lie, if the device can.
    pub fn attaches(&self) -> bool {
        self.zero_copy
    }

    /// The next datagram, if one is to be sent: its bytes in `buffer` (the rest is in the tail) and
    /// its flow.
    pub fn transmit(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
        tail: Option<&mut Tail>,
    ) -> Option<(usize, u16)> {
        let Some(tail) = tail else {
            let sent = self.bulk.poll_transmit(time(now), buffer, 1)?;
            return Some((sent.bytes, sent.flow));
        };
        let sent = self.bulk.poll_transmit_split(time(now), buffer, &mut self.pieces)?;
        let behind: usize = self.pieces.iter().map(|piece| piece.bytes.len()).sum();
        let mut bytes = sent.bytes - behind;
        if behind > 0 && self.memories.attach(&self.pieces, tail) {
            self.zero_copy_packets += 1;
        } else {
            for piece in &self.pieces {
                let end = bytes + piece.bytes.len();
                piece.bytes.read(0, &mut buffer[bytes..end]);
                bytes = end;
            }
        }
        Some((bytes, sent.flow))
    }

    /// Packets whose payload was sent from where it lay, and packets whose payload was copied.
    pub fn copies(&self) -> (u64, u64) {
        let data = self.bulk.statistics().data_packets;
        (self.zero_copy_packets, data - self.zero_copy_packets)
    }

    /// When the next round is due.
    pub fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let timer = self.bulk.poll_timeout().map(|at| instant(at, now));
        let look = self.memories.has_out().then(|| now + LOOK_AGAIN);
        [timer, self.connecting.map(|(until, _)| until), look].into_iter().flatten().min()
    }

    /// Whether to tell that the connection failed: behind what its messages came to, for which the
    /// device may have to give memory back first.
    fn may_fail(&self) -> bool {
        let waited = || self.failed_at.is_some_and(|at| at.elapsed() >= FAILURE_WAITS);
        self.failed.is_some() && (!self.memories.owes() || waited())
    }

    fn has_news(&self) -> bool {
        !self.completions.is_empty() || !self.undelivered.is_empty() || self.may_fail()
    }

    /// Makes the caller's descriptor readable when there is something to poll.
    pub fn signal(&mut self, shared: &Shared) {
        if self.has_news() && !self.signalled {
            self.signalled = true;
            let _ = rustix::io::write(&shared.event, &1u64.to_ne_bytes());
        }
    }

    /// Gives the caller what there is, in order; an error comes when nothing else is left. `true`:
    /// there was no room for more events, and now there is.
    pub fn poll(
        &mut self,
        shared: &Shared,
        completions: &mut Vec<Completion>,
    ) -> Result<bool, TransportError> {
        self.settle_out();
        let was_full = self.completions.len() >= COMPLETIONS_KEPT_MAX;
        let count = self.completions.len().min(COMPLETIONS_MAX);
        completions.extend(self.completions.drain(..count));
        let outcome = if count > 0 {
            Ok(was_full)
        } else if let Some(error) = self.undelivered.pop_front() {
            Err(error)
        } else {
            self.failed.clone().filter(|_| self.may_fail()).map_or(Ok(false), Err)
        };
        if !self.has_news() && self.signalled {
            self.signalled = false;
            let mut counter = [0u8; 8];
            let _ = rustix::io::read(&shared.event, &mut counter);
        }
        outcome
    }

    pub fn is_ready(&self) -> bool {
        self.has_news()
    }

    pub fn is_connected(&self) -> bool {
        self.bulk.is_connected()
    }

    /// Whether it is decided if this becomes a connection.
    pub fn is_settled(&self) -> bool {
        self.bulk.is_connected() || self.bulk.closed().is_some() || self.failed.is_some()
    }

    /// Whether calls make sense.
    pub fn usable(&self) -> Result<(), TransportError> {
        match (&self.failed, self.bulk.closed()) {
            (Some(failed), _) => Err(failed.clone()),
            (None, Some(reason)) => Err(ended(&self.peer, reason)),
            (None, None) => Ok(()),
        }
    }
}

/// Why a connection ended, in the words of the trait.
pub fn ended(peer: &str, reason: &CloseReason) -> TransportError {
    let cause = match reason {
        CloseReason::Here { .. } | CloseReason::Peer { .. } | CloseReason::PeerRestarted => {
            Cause::Closed
        }
        CloseReason::TimedOut { .. } => Cause::TimedOut,
        CloseReason::Version { .. } => Cause::Version,
        CloseReason::PeerFailed { .. } | CloseReason::Protocol { .. } | CloseReason::Exhausted => {
            Cause::Protocol
        }
        CloseReason::Forgeries { .. } => Cause::Refused,
        CloseReason::Placement { .. } => Cause::Io,
    };
    TransportError::new(cause, format!("dpdk: {peer}: {reason}"))
}

/// The thread's side of a connection: where its datagrams go.
pub struct Lane {
    shared: Arc<Shared>,
    id: u64,
    peer: Ipv4Addr,
    next_hop: Ipv4Addr,
    peer_mac: Option<Mac>,
    /// Our port and the peer's, of each flow.
    flows: Vec<(u16, u16)>,
    /// A server learns the peer's ports, up to so many.
    flows_max: usize,
}

impl Lane {
    /// A connection that we began, from a port of ours for each flow.
    pub fn client(
        shared: Arc<Shared>,
        id: u64,
        ports: &[u16],
        peer: SocketAddrV4,
        next_hop: Ipv4Addr,
        peer_mac: Option<Mac>,
    ) -> Lane {
        let flows: Vec<_> = ports.iter().map(|own| (*own, peer.port())).collect();
        let flows_max = flows.len();
        Lane { shared, id, peer: *peer.ip(), next_hop, peer_mac, flows, flows_max }
    }

    /// A connection that a peer began with our port.
    pub fn server(
        shared: Arc<Shared>,
        id: u64,
        port: u16,
        peer: SocketAddrV4,
        next_hop: Ipv4Addr,
        peer_mac: Option<Mac>,
        flows_max: u16,
    ) -> Lane {
        let flows = vec![(port, peer.port())];
        let flows_max = usize::from(flows_max);
        Lane { shared, id, peer: *peer.ip(), next_hop, peer_mac, flows, flows_max }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn peer(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.peer, self.flows[0].1)
    }

    pub fn next_hop(&self) -> Ipv4Addr {
        self.next_hop
    }

    pub fn peer_mac(&self) -> Option<Mac> {
        self.peer_mac
    }

    pub fn local_ports(&self) -> Vec<u16> {
        self.flows.iter().map(|(own, _)| *own).collect()
    }

    /// Whether a datagram's check held: the peer knows the secret (or the CRC, where trusted).
    pub fn has_proof(&self) -> bool {
        self.shared.lock().bulk.statistics().packets_received > 0
    }

    /// Addresses of a datagram of `flow`.
    pub fn path(&self, flow: u16, own_ip: Ipv4Addr, own_mac: Mac, mac: Mac) -> Path {
        let (own, theirs) = self.flows[usize::from(flow) % self.flows.len()];
        Path {
            from_mac: own_mac,
            to_mac: mac,
            from: SocketAddrV4::new(own_ip, own),
            to: SocketAddrV4::new(self.peer, theirs),
        }
    }

    /// A datagram for this connection. Who sends from another address is not the peer; another
    /// port of the peer's is a flow of its own, once a datagram from it was found genuine.
    pub fn arrive(&mut self, datagram: &Datagram, payload: &mut [u8], now: Instant) {
        if *datagram.from.ip() != self.peer {
            return;
        }
        let ports = (datagram.to.port(), datagram.from.port());
        let known = self.flows.iter().position(|flow| *flow == ports);
        let mut state = self.shared.lock();
        if let Some(flow) = known {
            state.bulk.handle(time(now), flow as u16, payload);
            return;
        }
        let before = state.bulk.statistics().packets_received;
        let new = self.flows.len() as u16;
        let flow = if self.flows.len() < self.flows_max { new } else { 0 };
        state.bulk.handle(time(now), flow, payload);
        if flow == new && state.bulk.statistics().packets_received > before {
            self.flows.push(ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use genie_bulk::{Config, Protection, Role};

    use super::*;

    fn pair() -> [Arc<Shared>; 2] {
        [Role::Client, Role::Server].map(|role| {
            let config = Config::new(1, role, Protection::Trusted, [role as u8 + 1; 16]);
            let bulk = genie_bulk::Connection::new(config, time(Instant::now())).unwrap();
            Shared::new(bulk, None, "the peer".to_owned(), true).unwrap()
        })
    }

    fn readable(shared: &Shared) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&shared.event_fd(), PollFlags::IN)], Some(&now)) == Ok(1)
    }

    /// Moves datagrams until both are quiet.
    fn talk(ends: &[Arc<Shared>; 2]) {
        let mut quiet = 0;
        while quiet < 2 {
            quiet += 1;
            for (from, to) in [(0, 1), (1, 0)] {
                let mut buffer = vec![0; 1472];
                let now = Instant::now();
                while let Some((bytes, flow)) = ends[from].lock().transmit(now, &mut buffer, None) {
                    ends[to].lock().bulk.handle(time(now), flow, &mut buffer[..bytes]);
                    quiet = 0;
                }
                for shared in ends {
                    let mut state = shared.lock();
                    state.round(now, true);
                    state.signal(shared);
                }
            }
        }
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_there_is_something_to_poll() {
        let ends = pair();
        assert!(!readable(&ends[0]));
        talk(&ends);
        let mut completions = Vec::new();
        for shared in &ends {
            assert!(readable(shared) && shared.lock().is_ready());
            shared.lock().poll(shared, &mut completions).unwrap();
            assert!(matches!(completions.pop(), Some(Completion::Connected)));
            assert!(!readable(shared) && !shared.lock().is_ready());
        }
    }

    #[test]
    fn after_the_end_the_error_stays_and_so_does_the_descriptor() {
        let ends = pair();
        talk(&ends);
        {
            let mut state = ends[0].lock();
            state.end("enough");
            state.signal(&ends[0]);
        }
        talk(&ends);
        for shared in &ends {
            let mut completions = Vec::new();
            shared.lock().poll(shared, &mut completions).unwrap();
            for _ in 0..2 {
                let error = shared.lock().poll(shared, &mut completions).unwrap_err();
                assert_eq!(error.cause, Cause::Closed, "{error}");
                assert!(readable(shared));
            }
            assert!(shared.lock().usable().is_err());
        }
    }

    #[test]
    fn nobody_who_answers_is_given_up_with_the_likely_reason() {
        for (way_known, word) in [(true, "secret"), (false, "ARP")] {
            let [client, _] = pair();
            let now = Instant::now();
            client.lock().connecting = Some((now, 250));
            client.lock().round(now, way_known);
            let error = client.lock().usable().unwrap_err();
            assert_eq!(error.cause, Cause::TimedOut);
            assert!(error.message.contains("250 ms") && error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn a_fault_inside_is_told() {
        let [client, _] = pair();
        client.lock().fail_inside();
        let failed = client.lock().poll(&client, &mut Vec::new()).unwrap_err();
        assert_eq!(failed.cause, Cause::Internal);
    }
}
