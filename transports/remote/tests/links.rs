//! Two ends of a remote link in one process, over real TCP connections whose data half can be made
//! to fail.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use genie_remote::message::{HELLO, Hello, LINK_VERSION, LINK_VERSION_OLDEST, WELCOME, Welcome};
use genie_remote::{LinkSettings, RemoteLink, Role};
use genie_tcp::Tcp;
use genie_transport::transport::*;
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::Region;
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PATIENCE: Duration = Duration::from_secs(60);

/// TCP under another name, whose connections fail after so many written bytes.
struct Frail {
    name: &'static str,
    /// Bytes that connections may still write before they break.
    budget: Arc<AtomicU64>,
    listens: Arc<AtomicBool>,
}

impl Frail {
    fn new(name: &'static str, budget: u64) -> Self {
        let (budget, listens) = (Arc::new(budget.into()), Arc::new(true.into()));
        Frail { name, budget, listens }
    }
}

impl Transport for Frail {
    fn facts(&self) -> Facts {
        Facts { name: self.name.into(), ..Tcp.facts() }
    }

    fn probe(&self, options: &Options) -> Result<String> {
        Tcp.probe(options)
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        match self.listens.load(Ordering::Relaxed) {
            true => Tcp.listen(options),
            false => Err(TransportError::new(Cause::Io, "its device is gone")),
        }
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        let inner = Tcp.connect(options)?;
        Ok(Box::new(FrailConnection { inner, budget: self.budget.clone(), broken: false }))
    }
}

struct FrailConnection {
    inner: Box<dyn Connection>,
    budget: Arc<AtomicU64>,
    broken: bool,
}

fn broken() -> TransportError {
    TransportError::new(Cause::Io, "the cable was pulled")
}

impl Connection for FrailConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.inner.event_fd()
    }
    fn arm(&mut self) -> Result<bool> {
        self.inner.arm()
    }
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        if self.broken { Err(broken()) } else { self.inner.poll(completions) }
    }
    fn send_frame(&mut self, k: u8, p: &[&[u8]], m: Option<BorrowedFd<'_>>) -> Result<()> {
        self.inner.send_frame(k, p, m)
    }
    fn queued_bytes(&self) -> u64 {
        self.inner.queued_bytes()
    }
    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.inner.register(memory)
    }
    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.inner.unregister(key)
    }
    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.inner.offer(window, part)
    }
    fn withdraw(&mut self, window: u32) -> Result<()> {
        self.inner.withdraw(window)
    }
    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        let left = self.budget.load(Ordering::Relaxed);
        self.broken |= left < bytes;
        if self.broken {
            return Err(broken());
        }
        self.inner.write(message, parts, window, offset)?;
        self.budget.store(left - bytes, Ordering::Relaxed);
        Ok(())
    }
    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        self.inner.export_secret(label)
    }
    fn peer_identity(&self) -> String {
        self.inner.peer_identity()
    }
    fn peer_address(&self) -> String {
        self.inner.peer_address()
    }
    fn statistics(&self) -> Vec<(String, u64)> {
        self.inner.statistics()
    }
    fn close(&mut self, reason: &str) {
        self.inner.close(reason);
    }
}

fn settings(transports: &[Arc<dyn Transport>]) -> Arc<LinkSettings> {
    Arc::new(LinkSettings {
        software: "test".into(),
        transports: transports.to_vec(),
        trusted: true,
        certificates: None,
        deadline_ms: 10_000,
        data_address: "127.0.0.1:0".into(),
        transport_settings: BTreeMap::new(),
        region_bytes_max: 64 << 20,
        instance: 7,
    })
}

/// Both ends, greeted and with a way for payloads.
fn pair(host: &[Arc<dyn Transport>], node: &[Arc<dyn Transport>]) -> (RemoteLink, RemoteLink) {
    let options = Options { address: "127.0.0.1:0".into(), trusted: true, ..Options::default() };
    let mut listener = Tcp.listen(&options).unwrap();
    let options = Options { address: listener.address(), ..options };
    let control = Tcp.connect(&options).unwrap();
    let mut host = RemoteLink::new(Role::Host, control, &Tcp, settings(host)).unwrap();
    let started = Instant::now();
    let accepted = loop {
        host.drive().unwrap();
        if let Some(accepted) = listener.accept().unwrap() {
            break accepted;
        }
        assert!(started.elapsed() < PATIENCE, "no connection came");
    };
    let mut node = RemoteLink::new(Role::Node, accepted, &Tcp, settings(node)).unwrap();
    while !host.is_ready() || node.way().unwrap().transport.is_empty() {
        assert!(host.poll().unwrap().is_none() && node.poll().unwrap().is_none());
        wait(&host, &node, started);
    }
    (host, node)
}

fn wait(host: &RemoteLink, node: &RemoteLink, started: Instant) {
    assert!(started.elapsed() < PATIENCE, "nothing happens any more");
    let mut fds = [PollFd::new(host, PollFlags::IN), PollFd::new(node, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
}

/// The next frame at `to`, both ends being driven.
fn next(to: &mut RemoteLink, other: &mut RemoteLink) -> Frame {
    let started = Instant::now();
    loop {
        if let Some(frame) = to.poll().unwrap() {
            return frame;
        }
        other.drive().unwrap();
        wait(to, other, started);
    }
}

/// A region of both ends: the host's memory and the node's copy.
fn region(host: &mut RemoteLink, node: &mut RemoteLink, id: u32) -> (SharedMemory, SharedMemory) {
    let memory = SharedMemory::create(1 << 20).unwrap();
    let body = Region { id, bytes: memory.bytes() }.encode_to_vec();
    host.post_send(FrameKind::Region, &[&body], Some(&memory)).unwrap();
    let frame = next(node, host);
    assert_eq!((frame.kind, &frame.body), (FrameKind::Region, &body));
    (memory, frame.memory.expect("the node made a copy"))
}

fn pattern(round: u64) -> Vec<u8> {
    (0..4096u64).map(|at| (at.wrapping_mul(31) ^ round.wrapping_mul(7)) as u8).collect()
}

/// Payloads there and back, each before its frame, through few places that are used again and
/// again.
fn exchange(host: &mut RemoteLink, node: &mut RemoteLink, rounds: u64) {
    let (ours, theirs) = region(host, node, 0);
    let places = 4;
    for round in 0..rounds {
        for place in 0..places {
            let offset = place * 8192;
            ours.write(offset, &pattern(round * places + place)).unwrap();
            host.post_payload(0, offset, 4096).unwrap();
            host.post_send(FrameKind::Tape, &[&[1], &(round as u32).to_le_bytes()], None).unwrap();
        }
        for place in 0..places {
            let frame = next(node, host);
            assert_eq!(frame.kind, FrameKind::Tape);
            let mut bytes = vec![0; 4096];
            theirs.read(place * 8192, &mut bytes).unwrap();
            assert_eq!(bytes, pattern(round * places + place), "round {round}, place {place}");
            let back: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
            theirs.write(place * 8192 + 4096, &back).unwrap();
            node.post_payload(0, place * 8192 + 4096, 4096).unwrap();
            node.post_send(FrameKind::Reply, &[b"done"], None).unwrap();
        }
        for place in 0..places {
            let frame = next(host, node);
            assert_eq!((frame.kind, &frame.body[..]), (FrameKind::Reply, &b"done"[..]));
            let mut bytes = vec![0; 4096];
            ours.read(place * 8192 + 4096, &mut bytes).unwrap();
            let expected: Vec<u8> =
                pattern(round * places + place).iter().map(|byte| !byte).collect();
            assert_eq!(bytes, expected, "round {round}, place {place}, back");
        }
    }
}

#[test]
fn a_payload_comes_before_its_frame_over_a_connection_of_its_own() {
    let fast: Arc<dyn Transport> = Arc::new(Frail::new("fast", u64::MAX));
    let (mut host, mut node) = pair(std::slice::from_ref(&fast), std::slice::from_ref(&fast));
    assert_eq!(host.way().unwrap().transport, "fast");
    exchange(&mut host, &mut node, 30);
}

#[test]
fn without_a_common_transport_payloads_take_the_control_connection() {
    let one: Arc<dyn Transport> = Arc::new(Frail::new("one", 0));
    let other: Arc<dyn Transport> = Arc::new(Frail::new("other", 0));
    let (mut host, mut node) = pair(&[one], &[other]);
    let way = host.way().unwrap();
    assert_eq!(way.transport, "tcp");
    assert!(way.route.contains("not over one: the node has no such transport"), "{way:?}");
    exchange(&mut host, &mut node, 30);
}

#[test]
fn a_transport_that_breaks_gives_way_to_the_next_and_nothing_is_lost() {
    for budget in [0, 4096, 5 * 4096, 23 * 4096, 50 * 4096] {
        let first: Arc<dyn Transport> = Arc::new(Frail::new("first", budget));
        let second: Arc<dyn Transport> = Arc::new(Frail::new("second", 2 * budget));
        let all = [first, second];
        let (mut host, mut node) = pair(&all, &all);
        let before = host.changes();
        exchange(&mut host, &mut node, 40);
        assert!(budget == 0 || host.changes() > before + 1, "asked for, and then open");
        let way = host.way().unwrap();
        assert_eq!(way.transport, "tcp", "budget {budget}: {way:?}");
        assert!(way.route.contains("not over second: the cable was pulled"), "{way:?}");
    }
}

#[test]
fn a_transport_the_node_cannot_use_is_passed_over() {
    let gone = Frail::new("gone", u64::MAX);
    gone.listens.store(false, Ordering::Relaxed);
    let next: Arc<dyn Transport> = Arc::new(Frail::new("next", u64::MAX));
    let all: [Arc<dyn Transport>; 2] = [Arc::new(gone), next];
    let (mut host, mut node) = pair(&all, &all);
    let way = host.way().unwrap();
    assert_eq!(way.transport, "next");
    assert!(way.route.contains("not over gone: its device is gone"), "{way:?}");
    exchange(&mut host, &mut node, 3);
}

#[test]
fn a_region_beyond_the_limit_ends_the_link_with_a_reason() {
    let (mut host, mut node) = pair(&[], &[]);
    let memory = SharedMemory::create(65 << 20).unwrap();
    let body = Region { id: 0, bytes: memory.bytes() }.encode_to_vec();
    host.post_send(FrameKind::Region, &[&body], Some(&memory)).unwrap();
    let started = Instant::now();
    let error = loop {
        match node.poll() {
            Ok(None) => {}
            Ok(Some(frame)) => panic!("{frame:?}"),
            Err(error) => break error,
        }
        host.drive().unwrap();
        wait(&host, &node, started);
    };
    assert!(matches!(&error, LinkError::Transport(error) if error.cause == Cause::Protocol));
    assert!(error.to_string().contains("GENIE_UPLOAD_BYTES"), "{error}");
}

/// What a node answers to the hello of a host that speaks these versions.
fn welcome_to(version: u32, oldest: u32) -> Welcome {
    let options = Options { address: "127.0.0.1:0".into(), trusted: true, ..Options::default() };
    let mut listener = Tcp.listen(&options).unwrap();
    let options = Options { address: listener.address(), ..options };
    let mut peer = Tcp.connect(&options).unwrap();
    let (started, mut node, mut greeted) = (Instant::now(), None, false);
    loop {
        assert!(started.elapsed() < PATIENCE, "no welcome");
        let mut seen = Vec::new();
        peer.poll(&mut seen).unwrap();
        for completion in seen {
            if let Completion::Frame { kind: WELCOME, body, .. } = completion {
                return Welcome::decode(&body[..]).unwrap();
            }
        }
        match &mut node {
            None => {
                let accepted = listener.accept().unwrap();
                node = accepted
                    .map(|link| RemoteLink::new(Role::Node, link, &Tcp, settings(&[])).unwrap());
            }
            Some(node) => {
                if !std::mem::replace(&mut greeted, true) {
                    let hello = Hello { version, oldest, software: "genie-host 9".into() };
                    peer.send_frame(HELLO, &[&hello.encode_to_vec()], None).unwrap();
                }
                assert!(node.poll().unwrap().is_none());
            }
        }
    }
}

#[test]
fn versions_before_and_after_ours_are_served_and_strange_ones_told_both() {
    for (version, oldest, used) in [
        (LINK_VERSION, LINK_VERSION_OLDEST, LINK_VERSION),
        (LINK_VERSION - 1, 1, LINK_VERSION - 1),
        (LINK_VERSION + 1, LINK_VERSION, LINK_VERSION),
    ] {
        let welcome = welcome_to(version, oldest);
        assert_eq!((welcome.version, &welcome.refused[..]), (used, ""));
    }
    for (version, oldest) in [(0, 0), (LINK_VERSION + 2, LINK_VERSION + 1)] {
        let refused = welcome_to(version, oldest).refused;
        let theirs = format!("genie-host 9 speaks {oldest} to {version}");
        let ours = format!("test speaks versions {LINK_VERSION_OLDEST} to {LINK_VERSION}");
        assert!(refused.contains(&theirs) && refused.contains(&ours), "{refused}");
    }
}

#[test]
fn garbage_among_the_links_messages_is_an_error() {
    for (kind, body) in
        [(66u8, &b"\xff\xff"[..]), (64, b"\x08"), (99, b""), (2, b"short"), (77, b"")]
    {
        let options =
            Options { address: "127.0.0.1:0".into(), trusted: true, ..Options::default() };
        let mut listener = Tcp.listen(&options).unwrap();
        let options = Options { address: listener.address(), ..options };
        let mut peer = Tcp.connect(&options).unwrap();
        let started = Instant::now();
        let mut seen = Vec::new();
        let accepted = loop {
            peer.poll(&mut seen).unwrap();
            if let Some(accepted) = listener.accept().unwrap() {
                break accepted;
            }
            assert!(started.elapsed() < PATIENCE);
        };
        let mut node = RemoteLink::new(Role::Node, accepted, &Tcp, settings(&[])).unwrap();
        let mut connected = false;
        let error = loop {
            let _ = peer.poll(&mut seen);
            if !connected && seen.iter().any(|one| matches!(one, Completion::Connected)) {
                connected = true;
                peer.send_frame(kind, &[body], None).unwrap();
            }
            match node.poll() {
                Ok(None) => {}
                Ok(Some(frame)) => panic!("{frame:?}"),
                Err(error) => break error,
            }
            assert!(started.elapsed() < PATIENCE, "kind {kind}");
        };
        assert!(matches!(error, LinkError::Transport(_)), "kind {kind}: {error}");
    }
}
