//! Two ends in one thread, and a network between them that misbehaves on request.

#![allow(dead_code)]

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use genie_transport::SharedMemory;
use genie_transport::import::Imported;
use genie_transport::transport::{
    Cause, Completion, Connection, Listener, Memory, Options, Part, Result, Transport,
    TransportError,
};
use genie_udp::Udp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// No wait of a test lasts longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn options(address: &str) -> Options {
    let mut options = Options {
        address: address.to_owned(),
        connection: 0x0123_4567_89ab_cdef,
        secret: Some([7; 32]),
        accept_max: 1,
        ..Options::default()
    };
    options.settings.insert("mtu".to_owned(), "1500".to_owned());
    options
}

/// This crate's transport, directly and behind its C table.
pub fn transports() -> [(&'static str, Box<dyn Transport>); 2] {
    // SAFETY: the entry returns this crate's own table, which is valid for ever.
    let imported = unsafe { Imported::new(genie_udp::genie_transport_v1()) }.unwrap();
    [("direct", Box::new(Udp)), ("table", Box::new(imported))]
}

/// A connection and all it told.
pub struct End {
    pub connection: Box<dyn Connection>,
    pub told: Vec<Completion>,
    pub failed: Option<TransportError>,
    pub refused: Vec<TransportError>,
}

impl End {
    pub fn new(connection: Box<dyn Connection>) -> Self {
        End { connection, told: Vec::new(), failed: None, refused: Vec::new() }
    }

    /// Polls until the connection may sleep.
    pub fn work(&mut self) {
        loop {
            if self.failed.is_some() {
                return;
            }
            match self.connection.poll(&mut self.told) {
                Ok(()) => {}
                Err(error) if error.cause == Cause::Invalid => self.refused.push(error),
                Err(error) => self.failed = Some(error),
            }
            match self.connection.arm() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.failed = Some(error),
            }
        }
    }

    pub fn connected(&self) -> bool {
        self.told.iter().any(|told| matches!(told, Completion::Connected))
    }

    pub fn placed(&self) -> Vec<u64> {
        let placed = |told: &Completion| match told {
            Completion::Placed { message, .. } => Some(*message),
            _ => None,
        };
        self.told.iter().filter_map(placed).collect()
    }

    pub fn written(&self) -> Vec<u64> {
        let written = |told: &Completion| match told {
            Completion::Written { message } => Some(*message),
            _ => None,
        };
        self.told.iter().filter_map(written).collect()
    }

    pub fn statistic(&self, name: &str) -> u64 {
        let found = self.connection.statistics().into_iter().find(|(have, _)| have == name);
        found.unwrap_or_else(|| panic!("no statistic {name}")).1
    }

    /// Registers memory of these bytes and offers it as `window`.
    pub fn offer(&mut self, window: u32, bytes: u64) -> Arc<SharedMemory> {
        let (memory, shared) = Memory::allocate(bytes).unwrap();
        let key = self.connection.register(memory).unwrap();
        self.connection.offer(window, Part { key, offset: 0, bytes }).unwrap();
        shared
    }

    /// Registers a copy of `bytes`.
    pub fn source(&mut self, bytes: &[u8]) -> Part {
        let (memory, shared) = Memory::allocate(bytes.len().max(1) as u64).unwrap();
        shared.write(0, bytes).unwrap();
        let key = self.connection.register(memory).unwrap();
        Part { key, offset: 0, bytes: bytes.len() as u64 }
    }
}

/// Sleeps until a descriptor is readable, at most until `until` and never for long: a descriptor
/// that stays silent though a poll is due makes the test slow, and `late` counts it.
fn sleep(fds: &mut [PollFd<'_>], until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    assert!(!left.is_zero(), "nothing happened within {PATIENCE:?}");
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    poll(fds, Some(&timeout)).unwrap();
}

/// Lets both ends work until `done`. Sleeps on the event descriptors only.
pub fn drive(a: &mut End, b: &mut End, mut done: impl FnMut(&mut End, &mut End) -> bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        a.work();
        b.work();
        if done(a, b) {
            return;
        }
        // What `done` called for leaves here.
        let due = |end: &mut End| end.failed.is_none() && end.connection.arm().unwrap_or(true);
        if due(a) | due(b) {
            continue;
        }
        let mut fds = Vec::new();
        for end in [&*a, &*b] {
            if end.failed.is_none() {
                let fd = end.connection.event_fd();
                // SAFETY: the connection outlives the call; it is not touched meanwhile.
                let fd = unsafe {
                    std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd))
                };
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
        }
        assert!(!fds.is_empty(), "both ends failed: {:?} and {:?}", a.failed, b.failed);
        sleep(&mut fds, until);
    }
}

/// Accepts while the other end works; the error of whichever fails first.
pub fn meet(
    mut client: End,
    listener: &mut dyn Listener,
) -> std::result::Result<(End, End), TransportError> {
    let until = Instant::now() + PATIENCE;
    let mut server = None;
    loop {
        client.work();
        if let Some(error) = client.failed.take() {
            return Err(error);
        }
        if server.is_none() {
            server = listener.accept()?.map(End::new);
        }
        if let Some(server) = &mut server {
            server.work();
            if let Some(error) = server.failed.take() {
                return Err(error);
            }
        }
        if client.connected() && server.as_ref().is_some_and(End::connected) {
            return Ok((client, server.expect("just seen")));
        }
        let at = client.connection.event_fd();
        let by = match &server {
            Some(server) => server.connection.event_fd(),
            None => listener.event_fd(),
        };
        let fd = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        sleep(&mut [fd(at), fd(by)], until);
    }
}

/// Two connected ends: the connecting one and the accepting one.
pub fn pair(transport: &dyn Transport, adapt: impl Fn(&mut Options)) -> (End, End) {
    let mut listening = options("127.0.0.1:0");
    adapt(&mut listening);
    let mut listener = transport.listen(&listening).unwrap();
    let connecting = Options { address: listener.address(), ..listening };
    let client = End::new(transport.connect(&connecting).unwrap());
    meet(client, &mut *listener).unwrap()
}

/// Two connected ends with a relay between them.
pub fn relayed(faults: Faults, adapt: impl Fn(&mut Options)) -> (End, End, Relay) {
    let mut listening = options("127.0.0.1:0");
    adapt(&mut listening);
    let mut listener = Udp.listen(&listening).unwrap();
    let relay = Relay::start(listener.address().parse().unwrap(), faults);
    let connecting = Options { address: relay.address.to_string(), ..listening };
    let client = End::new(Udp.connect(&connecting).unwrap());
    let (client, server) = meet(client, &mut *listener).unwrap();
    (client, server, relay)
}

/// How often the relay does what, out of 1000 datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub seed: u64,
    pub lost: u64,
    pub late: u64,
    pub twice: u64,
    pub damaged: u64,
}

#[derive(Default)]
pub struct Switches {
    /// Nothing passes.
    pub cut: AtomicBool,
    /// Everything passed is sent again, once.
    pub replay: AtomicBool,
    pub replayed: AtomicU64,
    pub damaged: AtomicU64,
    stop: AtomicBool,
}

/// A network between a client and a server, in a thread.
pub struct Relay {
    pub address: SocketAddr,
    pub switches: Arc<Switches>,
    thread: Option<JoinHandle<()>>,
}

/// Datagrams kept for a replay.
const KEPT_MAX: usize = 512;

impl Relay {
    pub fn start(server: SocketAddr, faults: Faults) -> Relay {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = front.local_addr().unwrap();
        let switches = Arc::new(Switches::default());
        let shared = switches.clone();
        let thread = std::thread::spawn(move || run(&front, server, faults, &shared));
        Relay { address, switches, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.switches.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// One way of one flow: what is sent here goes there.
struct Way {
    to: SocketAddr,
    late: Option<Vec<u8>>,
}

fn run(front: &UdpSocket, server: SocketAddr, faults: Faults, switches: &Switches) {
    front.set_nonblocking(true).unwrap();
    let mut random = fastrand::Rng::with_seed(faults.seed);
    // Each flow of the client gets a socket towards the server.
    let mut backs: Vec<(UdpSocket, Way, Way)> = Vec::new();
    let mut flows: HashMap<SocketAddr, usize> = HashMap::new();
    let mut kept: Vec<(usize, bool, Vec<u8>)> = Vec::new();
    let mut buffer = vec![0; 65_536];
    while !switches.stop.load(Ordering::Relaxed) {
        let mut fds = vec![PollFd::new(front, PollFlags::IN)];
        fds.extend(backs.iter().map(|(back, ..)| PollFd::new(back, PollFlags::IN)));
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 2_000_000 })).unwrap();
        drop(fds);
        while let Ok((bytes, from)) = front.recv_from(&mut buffer) {
            let flow = *flows.entry(from).or_insert_with(|| {
                let back = UdpSocket::bind("127.0.0.1:0").unwrap();
                back.set_nonblocking(true).unwrap();
                let way = |to| Way { to, late: None };
                backs.push((back, way(server), way(from)));
                backs.len() - 1
            });
            if kept.len() < KEPT_MAX {
                kept.push((flow, true, buffer[..bytes].to_vec()));
            }
            let (back, forth, _) = &mut backs[flow];
            pass(back, forth, &mut buffer[..bytes], &mut random, faults, switches);
        }
        for (flow, (back, _, home)) in backs.iter_mut().enumerate() {
            while let Ok((bytes, _)) = back.recv_from(&mut buffer) {
                if kept.len() < KEPT_MAX {
                    kept.push((flow, false, buffer[..bytes].to_vec()));
                }
                pass(front, home, &mut buffer[..bytes], &mut random, faults, switches);
            }
        }
        // Nothing stays late for ever.
        for (back, forth, home) in &mut backs {
            flush(back, forth);
            flush(front, home);
        }
        if switches.replay.swap(false, Ordering::Relaxed) {
            for (flow, forth, bytes) in &kept {
                let (back, to_server, to_client) = &backs[*flow];
                let _ = match forth {
                    true => back.send_to(bytes, to_server.to),
                    false => front.send_to(bytes, to_client.to),
                };
            }
            switches.replayed.fetch_add(kept.len() as u64, Ordering::Relaxed);
        }
    }
}

fn flush(socket: &UdpSocket, way: &mut Way) {
    if let Some(late) = way.late.take() {
        let _ = socket.send_to(&late, way.to);
    }
}

fn pass(
    socket: &UdpSocket,
    way: &mut Way,
    bytes: &mut [u8],
    random: &mut fastrand::Rng,
    faults: Faults,
    switches: &Switches,
) {
    let mut happens = |permille: u64| permille > 0 && random.u64(..1000) < permille;
    if switches.cut.load(Ordering::Relaxed) || happens(faults.lost) {
        return;
    }
    if happens(faults.damaged) && !bytes.is_empty() {
        let at = fastrand::usize(..bytes.len());
        bytes[at] ^= 1 << fastrand::u32(..8);
        switches.damaged.fetch_add(1, Ordering::Relaxed);
    }
    if happens(faults.late) && way.late.is_none() {
        way.late = Some(bytes.to_vec());
        return;
    }
    // A full buffer of the receiver is loss as well.
    let _ = socket.send_to(bytes, way.to);
    if happens(faults.twice) {
        let _ = socket.send_to(bytes, way.to);
    }
    flush(socket, way);
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut made = vec![0; bytes];
    random.fill(&mut made);
    made
}

pub fn content(memory: &SharedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes() as usize];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

/// What must be an error of this cause.
pub fn cause<T>(result: Result<T>) -> Cause {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error.cause,
    }
}
