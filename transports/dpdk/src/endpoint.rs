//! What the DPDK thread looks after: devices, and the connections and listeners on each.
//!
//! A connection's protocol state lies behind a lock that its caller and the thread share; each
//! holds it for one call or one round. Bounds are the protocol's own (writes queued, messages
//! ahead), so nothing else queues between the two. What belongs to the device (routes, addresses)
//! is the thread's alone.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{DpdkError, Result};
use crate::framing::{Datagram, Frame, Mac};
use crate::lane::{Lane, Shared};
use crate::neighbours::Neighbours;
use crate::packet::Packet;
use crate::port::{BURST, Interrupt, Port};
use crate::settings::{DeviceSettings, datagram_bytes};

/// Bursts taken from a device before its connections send again.
const BURSTS_A_TURN: usize = 4;
/// Packets queued for a device that does not take them; then connections wait.
const QUEUED_MAX: usize = 4 * BURST;
/// How long packets wait for a device that takes none, before they are dropped.
const STUCK: Duration = Duration::from_millis(20);
/// How long the device of a connection whose user is gone may take to give back its memory. After
/// that the packets keep it: it is given up with the last.
const GIVE_BACK: Duration = Duration::from_secs(1);
/// How long the last user of a device waits for it to have sent everything: the last words (a close,
/// mostly) may still lie there, and closing it would take them along.
const LAST_WORDS: Duration = Duration::from_millis(10);
/// How often it is asked whether it has.
const PARTING_STEP: Duration = Duration::from_millis(1);
/// The ports given to those who do not ask for one (RFC 6335).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// All devices of the process.
#[derive(Default)]
pub struct Endpoints {
    list: Vec<Endpoint>,
    partings: Vec<Parting>,
    next: u64,
}

/// A user of a device who has gone while the device has packets of it. It counts as a user.
struct Parting {
    endpoint: Number,
    /// Whose memory packets may still be attached to.
    shared: Option<Arc<Shared>>,
    until: Instant,
}

/// Names an endpoint, or a connection of it, for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number(pub u64);

/// What a round did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Turn {
    pub worked: bool,
    /// When the next round is due, if nothing happens before.
    pub next: Option<Instant>,
}

impl Turn {
    fn due(&mut self, at: Option<Instant>) {
        self.next = match (self.next, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// A device with its users.
pub struct Endpoint {
    number: Number,
    settings: DeviceSettings,
    port: Port,
    neighbours: Neighbours,
    users: usize,
    lanes: BTreeMap<Number, Lane>,
    /// Our UDP port and the connection's number on the wire.
    routes: HashMap<(u16, u64), Number>,
    listeners: HashMap<u16, Waiting>,
    arrived: Vec<Packet>,
    scratch: Vec<u8>,
    /// Since when the device has taken nothing.
    stuck_since: Option<Instant>,
    counters: Counters,
}

/// What became of frames that were not for a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    pub bad_checksums: u64,
    pub not_ours: u64,
    pub no_connection: u64,
    pub no_buffer: u64,
}

/// Makes the state for a peer that named our connection, from its address and the bytes of a
/// datagram; also says how many flows it may have.
type Make = dyn FnMut(SocketAddrV4, usize) -> Option<(Arc<Shared>, u16)> + Send;
/// Told when a peer proved itself, or failed to.
type Taken = dyn FnMut(Number, &Arc<Shared>, SocketAddrV4) + Send;

/// What makes connections of peers that call.
pub struct Waiting {
    connection: u64,
    make: Box<Make>,
    taken: Box<Taken>,
    candidate: Option<Number>,
    peer_mac: Option<Mac>,
}

impl Waiting {
    pub fn new(
        connection: u64,
        peer_mac: Option<Mac>,
        make: impl FnMut(SocketAddrV4, usize) -> Option<(Arc<Shared>, u16)> + Send + 'static,
        taken: impl FnMut(Number, &Arc<Shared>, SocketAddrV4) + Send + 'static,
    ) -> Self {
        let (make, taken) = (Box::new(make), Box::new(taken));
        Waiting { connection, make, taken, candidate: None, peer_mac }
    }
}

impl Endpoints {
    /// Opens the device, or joins those who use it with the same settings.
    pub fn open(&mut self, settings: &DeviceSettings) -> Result<Number> {
        let name = |device: &str| device.split(',').next().map(str::to_owned);
        let same =
            |endpoint: &&mut Endpoint| name(&endpoint.settings.device) == name(&settings.device);
        if let Some(left) = self.list.iter_mut().find(same).map(|endpoint| endpoint.number) {
            self.hurry(left);
        }
        if let Some(open) = self.list.iter_mut().find(same) {
            if open.settings != *settings {
                return Err(DpdkError::DeviceBusy { device: settings.device.clone() });
            }
            open.users += 1;
            return Ok(open.number);
        }
        let port = Port::open(settings)?;
        Ok(self.adopt(port, settings))
    }

    /// Takes a port that was opened already.
    pub fn adopt(&mut self, port: Port, settings: &DeviceSettings) -> Number {
        self.next += 1;
        let number = Number(self.next);
        self.list.push(Endpoint {
            number,
            settings: settings.clone(),
            neighbours: Neighbours::new(port.mac(), settings.ip),
            port,
            users: 1,
            lanes: BTreeMap::new(),
            routes: HashMap::new(),
            listeners: HashMap::new(),
            arrived: Vec::with_capacity(BURST),
            scratch: Vec::new(),
            stuck_since: None,
            counters: Counters::default(),
        });
        number
    }

    /// One user more; `false` if it was closed.
    pub fn join(&mut self, number: Number) -> bool {
        self.get(number).map(|endpoint| endpoint.users += 1).is_some()
    }

    /// One user less, as soon as the device has sent what it has of it and gives back the memory of
    /// the connection that it had; the last closes the device.
    pub fn part(&mut self, endpoint: Number, shared: Option<Arc<Shared>>, now: Instant) {
        let patience = if shared.is_some() { GIVE_BACK } else { LAST_WORDS };
        self.partings.push(Parting { endpoint, shared, until: now + patience });
        self.let_go(now);
    }

    /// A device that nobody has but those who part is not waited for.
    fn hurry(&mut self, endpoint: Number) {
        let parting = self.partings.iter().filter(|parting| parting.endpoint == endpoint).count();
        if self.get(endpoint).is_some_and(|endpoint| endpoint.users == parting) {
            self.partings.retain(|parting| parting.endpoint != endpoint);
            self.list.retain(|open| open.number != endpoint);
        }
    }

    fn let_go(&mut self, now: Instant) {
        for parting in std::mem::take(&mut self.partings) {
            let Some(endpoint) = self.get(parting.endpoint) else { continue };
            endpoint.port.flush();
            endpoint.port.reclaim();
            let is_back = parting.shared.as_ref().is_none_or(|shared| {
                let mut state = shared.lock();
                state.settle_out();
                !state.memories.has_out()
            });
            match now >= parting.until || (is_back && self.may_leave(parting.endpoint)) {
                true => self.leave(parting.endpoint),
                false => self.partings.push(parting),
            }
        }
    }

    /// Whether a user may leave without taking packets along that the device has not sent: others
    /// stay, or all buffers are back.
    fn may_leave(&mut self, number: Number) -> bool {
        let Some(endpoint) = self.get(number) else { return true };
        if endpoint.users > 1 {
            return true;
        }
        endpoint.port.flush();
        endpoint.port.reclaim();
        endpoint.port.queued() == 0 && endpoint.port.is_drained()
    }

    /// One user less; the last closes the device.
    pub fn leave(&mut self, number: Number) {
        if let Some(at) = self.list.iter().position(|endpoint| endpoint.number == number) {
            self.list[at].users -= 1;
            if self.list[at].users == 0 {
                self.list.swap_remove(at);
            }
        }
    }

    pub fn get(&mut self, number: Number) -> Option<&mut Endpoint> {
        self.list.iter_mut().find(|endpoint| endpoint.number == number)
    }

    /// One round over everything.
    pub fn turn(&mut self, now: Instant) -> Turn {
        let mut turn = Turn::default();
        for endpoint in &mut self.list {
            endpoint.turn(now, &mut turn);
        }
        if !self.partings.is_empty() {
            self.let_go(now);
            turn.due((!self.partings.is_empty()).then(|| now + PARTING_STEP));
        }
        turn
    }

    /// Ends all connections after a fault inside: nobody knows which of them it was.
    pub fn fail_all(&mut self) {
        for endpoint in &mut self.list {
            for lane in endpoint.lanes.values() {
                let shared = lane.shared();
                let mut state = shared.lock();
                state.fail_inside();
                state.signal(shared);
            }
            endpoint.lanes.clear();
            endpoint.routes.clear();
        }
    }

    /// Whether the thread may sleep until a device interrupts: there are devices, and all can.
    pub fn arm_interrupts(&mut self) -> bool {
        !self.list.is_empty()
            && self.list.iter().all(|endpoint| endpoint.port.interrupt_fd().is_some())
            && self.list.iter().all(|endpoint| endpoint.port.set_interrupt(true))
    }

    pub fn disarm_interrupts(&mut self) {
        for endpoint in &self.list {
            endpoint.port.set_interrupt(false);
        }
    }

    pub fn interrupt_fds(&self) -> Vec<Interrupt> {
        self.list.iter().filter_map(|endpoint| endpoint.port.interrupt_fd()).collect()
    }
}

impl Endpoint {
    pub fn port(&mut self) -> &mut Port {
        &mut self.port
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of a datagram's payload here.
    pub fn datagram_bytes(&self) -> usize {
        datagram_bytes(self.port.mtu())
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        let link = match self.port.link_is_up() {
            Some(true) => "link up",
            Some(false) => "link down",
            None => "link unknown",
        };
        format!(
            "{} ({}), {}, MTU {}, {link}",
            self.settings.device,
            self.port.driver(),
            self.port.mac(),
            self.port.mtu()
        )
    }

    /// The port asked for, or a free one for 0.
    pub fn take_port(&self, wanted: u16) -> Result<u16> {
        let used = |port: u16| {
            self.listeners.contains_key(&port) || self.routes.keys().any(|(used, _)| *used == port)
        };
        let taken = |what: String| DpdkError::Port {
            device: self.settings.device.clone(),
            step: what,
            reason: "this process uses it already".to_owned(),
        };
        if wanted != 0 {
            return if used(wanted) {
                Err(taken(format!("take the UDP port {wanted}")))
            } else {
                Ok(wanted)
            };
        }
        EPHEMERAL.rev().find(|&port| !used(port)).ok_or_else(|| taken("take a UDP port".to_owned()))
    }

    /// A free port that is not among `others`, which are about to be used.
    pub fn take_port_beside(&self, others: &[u16]) -> Result<u16> {
        let below = others.iter().min().copied().unwrap_or(u16::MAX);
        (*EPHEMERAL.start()..=below)
            .rev()
            .find(|port| !others.contains(port) && self.take_port(*port).is_ok())
            .map_or_else(|| self.take_port(0), Ok)
    }

    pub fn listen(&mut self, port: u16, waiting: Waiting) {
        self.listeners.insert(port, waiting);
    }

    /// Forgets a listener, and who was about to be accepted.
    pub fn unlisten(&mut self, port: u16) {
        if let Some(candidate) = self.listeners.remove(&port).and_then(|w| w.candidate) {
            self.remove(candidate);
        }
    }

    /// Looks after a connection from now on.
    pub fn insert(&mut self, number: Number, lane: Lane, now: Instant) {
        for port in lane.local_ports() {
            self.routes.insert((port, lane.id()), number);
        }
        self.lanes.insert(number, lane);
        // Its first words leave at once, if the way is known.
        let mut turn = Turn::default();
        self.serve(number, now, &mut turn);
        self.port.flush();
    }

    /// Ends a connection: the peer is told once, and nothing touches its memory after.
    pub fn remove(&mut self, number: Number) {
        let Some(lane) = self.lanes.get(&number) else { return };
        lane.shared().lock().end("its user is gone");
        let mut turn = Turn::default();
        self.serve(number, Instant::now(), &mut turn);
        self.port.flush();
        self.lanes.remove(&number);
        self.routes.retain(|_, to| *to != number);
    }

    pub fn lane(&self, number: Number) -> Option<&Lane> {
        self.lanes.get(&number)
    }

    /// The address of ours that a listener or a connection has.
    pub fn address(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.settings.ip, port)
    }

    /// Where packets for `peer` go next.
    pub fn next_hop(&self, peer: Ipv4Addr) -> Result<Ipv4Addr> {
        self.settings.next_hop(peer).ok_or_else(|| DpdkError::Port {
            device: self.settings.device.clone(),
            step: format!("find a way to {peer}"),
            reason: format!(
                "it is outside {}/{} and the setting gateway is missing",
                self.settings.ip, self.settings.prefix
            ),
        })
    }

    fn turn(&mut self, now: Instant, turn: &mut Turn) {
        for _ in 0..BURSTS_A_TURN {
            let (port, arrived) = (&mut self.port, &mut self.arrived);
            let count = port.receive(|packet| arrived.push(packet));
            let mut arrived = std::mem::take(&mut self.arrived);
            for packet in arrived.drain(..) {
                self.arrive(packet, now);
            }
            self.arrived = arrived;
            turn.worked |= count > 0;
            if count < BURST {
                break;
            }
        }
        let numbers: Vec<Number> = self.lanes.keys().copied().collect();
        for number in numbers {
            self.serve(number, now, turn);
        }
        self.give_to_device(now, turn);
    }

    fn give_to_device(&mut self, now: Instant, turn: &mut Turn) {
        if self.port.queued() == 0 {
            self.stuck_since = None;
            return;
        }
        if self.port.flush() > 0 {
            turn.worked = true;
            self.stuck_since = None;
        } else {
            let since = *self.stuck_since.get_or_insert(now);
            if now - since >= STUCK {
                // The peer of a vhost or memif is not there, or the link is down.
                self.port.drop_queued();
                self.stuck_since = None;
            } else {
                turn.due(Some(since + STUCK));
            }
        }
    }

    fn arrive(&mut self, mut packet: Packet, now: Instant) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let (found, frame) = self.port.read(&mut packet, &mut scratch);
        match found {
            Frame::Arp(arp) => {
                if let Some(answer) = self.neighbours.heard(&arp, now) {
                    self.port.send_arp(&answer);
                }
            }
            Frame::Datagram(datagram) if *datagram.to.ip() == self.settings.ip => {
                let end = datagram.payload_at + datagram.payload_len;
                self.deliver(&datagram, &mut frame[datagram.payload_at..end], now);
            }
            Frame::Other(crate::framing::NotOurs::BadChecksum) => self.counters.bad_checksums += 1,
            Frame::Datagram(_) | Frame::Other(_) => self.counters.not_ours += 1,
        }
        self.scratch = scratch;
    }

    fn deliver(&mut self, datagram: &Datagram, payload: &mut [u8], now: Instant) {
        let to = datagram.to.port();
        let Some(id) = genie_bulk::Connection::id_of(payload) else {
            self.counters.not_ours += 1;
            return;
        };
        self.consider(to, id, datagram, now);
        let lane = self.routes.get(&(to, id)).and_then(|number| self.lanes.get_mut(number));
        match lane {
            Some(lane) => lane.arrive(datagram, payload, now),
            None => self.counters.no_connection += 1,
        }
    }

    /// A datagram for a listener's connection: its sender becomes the candidate, unless there is
    /// one that has proved something. Invariant: one candidate a listener.
    fn consider(&mut self, port: u16, id: u64, datagram: &Datagram, now: Instant) {
        let Some(waiting) = self.listeners.get_mut(&port).filter(|w| w.connection == id) else {
            return;
        };
        if let Some(lane) = waiting.candidate.and_then(|number| self.lanes.get(&number))
            && (lane.peer() == datagram.from || lane.has_proof())
        {
            return;
        }
        let Some(next_hop) = self.settings.next_hop(*datagram.from.ip()) else { return };
        let bytes = datagram_bytes(self.port.mtu());
        let Some((shared, flows)) = (waiting.make)(datagram.from, bytes) else { return };
        let peer_mac = waiting.peer_mac;
        self.next_lane_number(port, |endpoint, number| {
            let lane = Lane::server(shared, id, port, datagram.from, next_hop, peer_mac, flows);
            endpoint.insert(number, lane, now);
        });
    }

    fn next_lane_number(&mut self, port: u16, insert: impl FnOnce(&mut Self, Number)) {
        let number = crate::lane::next_number();
        let before = self.listeners.get_mut(&port).and_then(|w| w.candidate.replace(number));
        if let Some(before) = before {
            self.lanes.remove(&before);
            self.routes.retain(|_, to| *to != before);
        }
        insert(self, number);
    }

    /// One connection's round: timers, events, and what it has to send.
    fn serve(&mut self, number: Number, now: Instant, turn: &mut Turn) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let shared = lane.shared().clone();
        let mut state = shared.lock();
        let (known, ask) = match lane.peer_mac() {
            Some(mac) => (Some(mac), None),
            // Over a device that loops back, such as net_ring.
            None if lane.next_hop() == self.settings.ip => (Some(self.port.mac()), None),
            None => self.neighbours.look_up(lane.next_hop(), now),
        };
        if let Some(ask) = ask {
            self.port.send_arp(&ask);
            turn.worked = true;
        }
        if state.memories.has_out() {
            self.port.reclaim();
        }
        state.round(now, known.is_some());
        if let Some(mac) = known {
            while self.port.queued() < QUEUED_MAX {
                let bytes = datagram_bytes(self.port.mtu());
                let (ip, own) = (self.settings.ip, self.port.mac());
                let attach = state.attaches();
                let sent = self.port.send_with(bytes, attach, |buffer, tail| {
                    let (bytes, flow) = state.transmit(now, buffer, tail)?;
                    Some((bytes, lane.path(flow, ip, own, mac)))
                });
                match sent {
                    crate::port::Sent::Queued => turn.worked = true,
                    crate::port::Sent::Nothing => break,
                    crate::port::Sent::NoBuffer => {
                        self.counters.no_buffer += 1;
                        break;
                    }
                }
                if self.port.queued() >= BURST {
                    self.port.flush();
                }
            }
        } else {
            turn.due(self.neighbours.ask_at(lane.next_hop()));
        }
        turn.due(state.due());
        state.signal(&shared);
        let settled = state.is_settled();
        let peer = lane.peer();
        drop(state);
        if settled {
            self.settle(number, &shared, peer);
        }
    }

    /// Tells a listener about its candidate, once it is connected or has failed.
    fn settle(&mut self, number: Number, shared: &Arc<Shared>, peer: SocketAddrV4) {
        let found = self.listeners.iter().find(|(_, waiting)| waiting.candidate == Some(number));
        let Some(port) = found.map(|(port, _)| *port) else { return };
        let connected = shared.lock().is_connected();
        let mut waiting = self.listeners.remove(&port).expect("found above");
        waiting.candidate = None;
        (waiting.taken)(number, shared, peer);
        if !connected {
            // It failed: the listener waits for the next.
            self.lanes.remove(&number);
            self.routes.retain(|_, to| *to != number);
            self.listeners.insert(port, waiting);
        }
    }
}
