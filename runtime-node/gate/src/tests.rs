//! A gate over real sockets, whose workers run on threads, on a backend in plain memory.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use genie_channel::message::{Ended, Fork, Forked, Limits};
use genie_channel::{Channel, Ends, Progress};
use genie_executor::Executor;
use genie_executor::fake::Fake;
use genie_executor::serve::{Server, ServerParts};
use genie_remote::LinkSettings;
use genie_shm::{Listener, UnixLink};
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{Device, Hello, Refusal, Region, Status, StatusRequest, Welcome};
use genie_wire::frame::FrameKind;
use genie_wire::limits::FRAME_BYTES_MAX;
use genie_wire::record::RegionSpan;
use genie_wire::{DType, ErrorCode, OutputSpec, PROTOCOL_VERSION, Reply, StorageId};
use genie_wire::{TapeWriter, Template, TensorMeta};
use prost::Message;
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::*;

const GRACE: Duration = Duration::from_secs(2);

/// Workers that are threads of this process.
struct Threads {
    event: Arc<OwnedFd>,
    told: Arc<Mutex<Vec<Told>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn new() -> Self {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Threads { event: Arc::new(event), told: Arc::default(), threads: Vec::new() }
    }
}

impl Nursery for Threads {
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&*self.event))
    }

    fn start(&mut self, fork: Fork, ends: Ends) -> Result<(), String> {
        let (event, told, worker) = (self.event.clone(), self.told.clone(), fork.worker);
        let tell = move |news: Told| {
            told.lock().unwrap().push(news);
            rustix::io::write(&*event, &1u64.to_ne_bytes()).unwrap();
        };
        tell(Told::Forked(Forked { worker, pid: 0, failed: String::new() }));
        self.threads.push(std::thread::spawn(move || {
            let limits = fork.limits.unwrap();
            let server = Server::new(ServerParts {
                executor: Executor::new(Fake::default(), limits.memory_bytes),
                facts: genie_executor::serve::NodeFacts {
                    software: "node under test".to_owned(),
                    torch: "0".to_owned(),
                    devices: fork.devices,
                    threads: 1,
                    pid: fork.node_pid,
                },
                ops: [u64::from(fork.device)].into(),
                device: fork.device,
                channel: Channel::over(ends.channel),
                progress: Progress::adopt(ends.progress).unwrap(),
                bytes_per_s: limits.bytes_per_s,
            });
            let status = server.unwrap().run().is_err().into();
            tell(Told::Ended(Ended { worker, signal: 0, status }));
        }));
        Ok(())
    }

    fn end(&mut self, _worker: u64) {}

    fn poll(&mut self) -> Option<Told> {
        let mut told = self.told.lock().unwrap();
        if told.is_empty() {
            let _ = rustix::io::read(&*self.event, &mut [0u8; 8]);
            return None;
        }
        Some(told.remove(0))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            thread.join().expect("a worker never panics");
        }
    }
}

/// A node of fake devices on threads of this process.
pub(super) struct Node {
    stop: Arc<OwnedFd>,
    gate: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

pub(super) fn node(devices: usize, sessions_max: usize) -> Node {
    node_with(devices, sessions_max, 1 << 20, None)
}

pub(super) fn node_with(
    devices: usize,
    sessions_max: usize,
    memory_bytes: u64,
    links: Option<Arc<LinkSettings>>,
) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let doors = vec![Door::Unix(Listener::bind(dir.path().join("node")).unwrap())];
    let device = |i| Device { kind: "fake".to_owned(), name: format!("{i}"), memory_bytes: 1 };
    let limits = Limits { memory_bytes, bytes_per_s: u64::MAX, ..Limits::default() };
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let interrupt = Some(stop.try_clone().unwrap());
    let gate = std::thread::spawn(move || {
        let mut gate = Gate::new(GateParts {
            facts: NodeFacts {
                software: "node under test".to_owned(),
                devices: (0..devices).map(device).collect(),
                sessions_max,
            },
            doors,
            quotas: Quotas::default(),
            limits: vec![WorkerLimits(limits); devices],
            nursery: Box::new(Threads::new()),
            linger: Duration::from_secs(600),
            operator_max: Duration::from_secs(10),
            client_operator_max: None,
            sharing: vec![],
            groups: Groups::default(),
            weights: BTreeMap::new(),
            session_bytes: 0,
            links,
            interrupt,
        })
        .unwrap();
        assert_eq!(gate.run(None).unwrap(), Why::Interrupted);
        gate.cut("the test ends", GRACE);
    });
    Node { stop, gate: Some(gate), dir }
}

impl Node {
    pub(super) fn connect(&self) -> Client {
        let link = genie_shm::connect(self.dir.path().join("node")).unwrap();
        Client { link, tape: TapeWriter::new(), token: 0 }
    }

    /// A connection that was greeted.
    pub(super) fn client(&self) -> Client {
        let mut client = self.connect();
        client.hello(0);
        assert_eq!(client.next().unwrap().kind, FrameKind::Welcome);
        client
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        rustix::io::write(&*self.stop, &1u64.to_ne_bytes()).unwrap();
        self.gate.take().unwrap().join().expect("a gate never panics");
        assert!(!self.dir.path().join("node").exists(), "the socket was left behind");
    }
}

pub(super) struct Client {
    pub(super) link: UnixLink,
    pub(super) tape: TapeWriter,
    token: u64,
}

impl Client {
    pub(super) fn hello(&mut self, device: u32) {
        let hello = Hello { protocol: PROTOCOL_VERSION, device, ..Hello::default() };
        self.send(FrameKind::Hello, &hello.encode_to_vec());
    }

    pub(super) fn send(&mut self, kind: FrameKind, body: &[u8]) {
        self.link.post_send(kind, &[body], None).unwrap();
        while self.link.wants_write() {
            wait(&self.link, rustix::event::PollFlags::OUT);
            self.link.flush().unwrap();
        }
    }

    pub(super) fn flush(&mut self) {
        let bytes = self.tape.take(Vec::new());
        self.send(FrameKind::Tape, &bytes);
    }

    pub(super) fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.link.poll()? {
                return Ok(frame);
            }
            wait(&self.link, rustix::event::PollFlags::IN);
        }
    }

    fn read(&mut self, id: StorageId, len: u64) -> Result<Vec<u8>, ErrorCode> {
        self.read_at(id, 0, len)
    }

    pub(super) fn read_at(
        &mut self,
        id: StorageId,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, ErrorCode> {
        self.token += 1;
        let token = self.token;
        self.tape.read(token, id, offset, len, None);
        self.flush();
        let frame = self.next().unwrap();
        match Reply::decode(&frame.body).unwrap() {
            (answered, Reply::Bytes(bytes)) if answered == token => Ok(bytes.to_vec()),
            (answered, Reply::Error { code, .. }) if answered == token => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn upload(&mut self, bytes: &[u8]) -> StorageId {
        let id = self.tape.alloc(bytes.len() as u64);
        self.tape.upload_inline(id, 0, bytes);
        id
    }

    /// The refusal that ends the connection.
    fn refusal(&mut self) -> Refusal {
        loop {
            let frame = self.next().expect("a refusal before the end");
            if frame.kind == FrameKind::Refusal {
                assert!(matches!(self.next(), Err(LinkError::Closed)));
                return Refusal::decode(&frame.body[..]).unwrap();
            }
        }
    }

    pub(super) fn counter(&mut self, name: &str) -> u64 {
        self.send(FrameKind::StatusRequest, &StatusRequest { token: 5 }.encode_to_vec());
        let status = Status::decode(&self.next().unwrap().body[..]).unwrap();
        assert_eq!(status.token, 5);
        status.counters.iter().find(|counter| counter.name == name).expect(name).value
    }
}

fn wait(link: &UnixLink, flags: rustix::event::PollFlags) {
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(link, flags)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing for 20 s");
}

fn op(name: &str, slots: u32, new: &[u64]) -> Vec<u8> {
    let template = Template {
        op: name.to_owned(),
        slots,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: new.to_vec(),
        args: vec![],
        outputs: (0..)
            .zip(new)
            .map(|(index, bytes)| OutputSpec::New {
                index,
                meta: TensorMeta::contiguous(DType::UINT8, &[*bytes]),
            })
            .collect(),
    };
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}

#[test]
fn a_session_is_greeted_executes_and_reads() {
    let node = node(1, 8);
    let mut client = node.connect();
    client.hello(0);
    let welcome = Welcome::decode(&client.next().unwrap().body[..]).unwrap();
    assert_eq!(welcome.protocol, PROTOCOL_VERSION);
    assert_eq!((welcome.ops.as_slice(), welcome.session), ([0].as_slice(), 1));
    assert_eq!((welcome.pid, welcome.devices.len()), (std::process::id(), 1));
    let x = client.upload(&[1, 2]);
    let add = client.tape.define(&op("fake::add", 2, &[2]));
    let sum = client.tape.op(add, &[x.0, x.0], &[], 1);
    assert_eq!(client.read(sum, 2).unwrap(), [2, 4]);
    assert_eq!(client.counter("node.sessions"), 1);
    assert_eq!(client.counter("node.ops_executed"), 1);
    assert!(client.counter("node.resident_bytes") > 0);
    drop(client);
    // The session's bytes are given back once its end is noticed.
    let mut other = node.client();
    while other.counter("node.sessions") > 1 {}
    assert_eq!(other.counter("node.storage_bytes"), 0);
}

#[test]
fn sessions_do_not_reach_each_others_storages() {
    let node = node(1, 8);
    let (mut one, mut other) = (node.client(), node.client());
    let secret = one.upload(&[42]);
    assert_eq!(one.read(secret, 1).unwrap(), [42]);
    // The same number is another storage there, or none.
    let own = other.upload(&[7]);
    assert_eq!(own, secret);
    assert_eq!(other.read(own, 1).unwrap(), [7]);
    other.tape.skip(10);
    other.tape.read(9, StorageId(5), 0, 1, None);
    other.flush();
    assert_eq!(other.refusal().code, ErrorCode::Protocol as u32);
    assert_eq!(one.read(secret, 1).unwrap(), [42]);
}

/// What a peer may do wrong; the node says so and keeps serving others.
#[test]
fn bad_input_ends_one_session_with_a_reason() {
    let node = node(1, 8);
    let mut witness = node.client();
    let kept = witness.upload(&[1]);
    witness.read(kept, 1).unwrap();
    type Sin = fn(&mut Client);
    let greeted: [(&str, Sin, &str); 6] = [
        ("garbage for a tape", |c| c.send(FrameKind::Tape, &[0xff; 64]), ""),
        ("an unknown record", |c| c.send(FrameKind::Tape, &[31]), "unknown record"),
        ("a second hello", |c| c.hello(0), "hello"),
        ("a host's frame", |c| c.send(FrameKind::TraceRequest, &[]), "does not take"),
        ("a malformed request", |c| c.send(FrameKind::StatusRequest, &[0xff; 3]), "malformed"),
        (
            "one region twice",
            |c| {
                for _ in 0..2 {
                    let memory = SharedMemory::create(4096).unwrap();
                    let body = Region { id: 0, bytes: 4096 }.encode_to_vec();
                    c.link.post_send(FrameKind::Region, &[&body], Some(&memory)).unwrap();
                }
            },
            "registered already",
        ),
    ];
    for (what, sin, expect) in greeted {
        let mut client = node.client();
        sin(&mut client);
        let refusal = client.refusal();
        assert_eq!(refusal.code, ErrorCode::Protocol as u32, "{what}");
        assert!(refusal.message.contains(expect), "{what}: {}", refusal.message);
        assert_eq!(witness.read(kept, 1).unwrap(), [1], "{what}");
    }
    let ungreeted: [(&str, Sin, &str); 4] = [
        (
            "a tape before the hello",
            |c| c.send(FrameKind::Tape, &[]),
            "does not begin with a hello",
        ),
        ("an unknown device", |c| c.hello(7), "device 7 does not exist"),
        (
            "another version",
            |c| {
                let hello = Hello { protocol: 0, software: "old".into(), ..Hello::default() };
                c.send(FrameKind::Hello, &hello.encode_to_vec());
            },
            "speaks 0",
        ),
        ("a malformed hello", |c| c.send(FrameKind::Hello, &[0xff; 9]), "malformed"),
    ];
    for (what, sin, expect) in ungreeted {
        let mut client = node.connect();
        sin(&mut client);
        let refusal = client.refusal();
        assert!(refusal.message.contains(expect), "{what}: {}", refusal.message);
        assert_eq!(witness.read(kept, 1).unwrap(), [1], "{what}");
    }
}

#[test]
fn malformed_and_oversized_frames_are_refused() {
    let node = node(1, 8);
    let oversized = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    let oversized = [&oversized[..], &[FrameKind::Tape as u8, 0, 0, 0]].concat();
    for bytes in [oversized, vec![0xee; 8], vec![0; 8]] {
        use std::io::{Read, Write};
        let mut stream = UnixStream::connect(node.dir.path().join("node")).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        // The node closes with our bytes unread or read: both are an end.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer[4], FrameKind::Refusal as u8);
        let refusal = Refusal::decode(&answer[8..]).unwrap();
        assert_eq!(refusal.code, ErrorCode::Protocol as u32);
    }
    node.client();
}

#[test]
fn a_panic_in_one_session_ends_only_that_one() {
    let node = node(1, 8);
    let (mut witness, mut victim) = (node.client(), node.client());
    let kept = witness.upload(&[1]);
    witness.read(kept, 1).unwrap();
    victim.upload(&[0; 1000]);
    let panic = victim.tape.define(&op("fake::panic", 0, &[]));
    victim.tape.op(panic, &[], &[], 0);
    victim.flush();
    let refusal = victim.refusal();
    assert!(refusal.message.contains("told to panic"), "{}", refusal.message);
    assert_eq!(witness.read(kept, 1).unwrap(), [1]);
    assert_eq!(witness.counter("node.storage_bytes"), 1);
}

#[test]
fn a_long_tape_does_not_keep_the_others_waiting() {
    let node = node(1, 8);
    let (mut long, mut short) = (node.client(), node.client());
    let first = long.upload(&[1]);
    let add = long.tape.define(&op("fake::add", 1, &[1]));
    let mut last = first;
    for _ in 0..400_000 {
        let next = long.tape.op(add, &[last.0], &[], 1);
        long.tape.free(last);
        last = next;
    }
    long.flush();
    let x = short.upload(&[3]);
    assert_eq!(short.read(x, 1).unwrap(), [3]);
    assert_eq!(long.read(last, 1).unwrap(), [1]);
}

#[test]
fn a_peer_that_does_not_read_waits_and_loses_nothing() {
    let node = node(1, 8);
    let mut client = node.client();
    let x = client.upload(&[7; 60_000]);
    // 60 MB of answers, asked for by a few kilobytes.
    for token in 0..1000 {
        client.tape.read(token, x, 0, 60_000, None);
    }
    client.flush();
    let mut other = node.client();
    let y = other.upload(&[1]);
    assert_eq!(other.read(y, 1).unwrap(), [1]);
    for token in 0..1000 {
        let frame = client.next().unwrap();
        let (answered, reply) = Reply::decode(&frame.body).unwrap();
        assert_eq!((answered, reply), (token, Reply::Bytes(&[7; 60_000])));
    }
    // One that leaves instead of reading frees its place.
    for token in 0..1000 {
        client.tape.read(token, x, 0, 60_000, None);
    }
    client.flush();
    drop(client);
    while other.counter("node.sessions") > 1 {}
}

#[test]
fn connections_are_bounded_and_a_place_is_given_on() {
    let node = node(1, 2);
    let (one, _two) = (node.client(), node.client());
    let mut third = node.connect();
    third.hello(0);
    let refusal = third.refusal();
    assert!(refusal.message.contains("--max-sessions"), "{}", refusal.message);
    drop(one);
    // Its place is free once the node noticed.
    loop {
        let mut client = node.connect();
        // The refusal may come, and the end, before the hello is sent.
        let hello = Hello { protocol: PROTOCOL_VERSION, ..Hello::default() };
        let sent = client.link.post_send(FrameKind::Hello, &[&hello.encode_to_vec()], None);
        assert!(matches!(sent, Ok(()) | Err(LinkError::Closed)));
        if client.next().unwrap().kind == FrameKind::Welcome {
            break;
        }
    }
}

#[test]
fn a_connection_goes_to_the_device_it_names() {
    let node = node(3, 8);
    for device in [2, 0, 1] {
        let mut client = node.connect();
        client.hello(device);
        // Sent at once, so part of it may already be buffered when the connection moves.
        let x = client.upload(&[device as u8]);
        client.tape.read(1, x, 0, 1, None);
        client.flush();
        let welcome = Welcome::decode(&client.next().unwrap().body[..]).unwrap();
        assert_eq!(welcome.ops, [u64::from(device)]);
        let frame = client.next().unwrap();
        assert_eq!(Reply::decode(&frame.body), Ok((1, Reply::Bytes(&[device as u8]))));
    }
}

#[test]
fn payloads_pass_through_regions() {
    let node = node(1, 8);
    let mut client = node.client();
    let memory = SharedMemory::create(1 << 16).unwrap();
    let body = Region { id: 4, bytes: 1 << 16 }.encode_to_vec();
    client.link.post_send(FrameKind::Region, &[&body], Some(&memory)).unwrap();
    memory.write(10, b"payload").unwrap();
    let x = client.tape.alloc(7);
    client.tape.upload(x, 0, 7, RegionSpan { region: 4, offset: 10 });
    client.tape.read(1, x, 0, 7, Some(RegionSpan { region: 4, offset: 1000 }));
    client.flush();
    let kinds: Vec<_> = (0..2).map(|_| client.next().unwrap().kind).collect();
    assert!(kinds.contains(&FrameKind::Released) && kinds.contains(&FrameKind::Reply));
    let mut back = [0; 7];
    memory.read(1000, &mut back).unwrap();
    assert_eq!(&back, b"payload");
}
