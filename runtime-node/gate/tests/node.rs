//! The binary, spoken to over its socket as a host would.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use genie_shm::{UnixLink, connect};
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{Hello, Refusal, Region, Status, StatusRequest, WeightStored, Welcome};
use genie_wire::frame::FrameKind;
use genie_wire::record::RegionSpan;
use genie_wire::{
    DType, ErrorCode, OutputSpec, PROTOCOL_VERSION, Reply, StorageId, TapeWriter, Template,
    TensorMeta, Value,
};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// How long anything that is waited for may take: what a fault costs, not how fast a machine is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Its workers' program is beside it (`cargo build -p genie-worker`).
const BINARY: &str = env!("CARGO_BIN_EXE_genie-node");

/// A running node in a directory of its own.
struct Node {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(arguments: &[&str]) -> Node {
        Node::start_by(Command::new(BINARY), arguments)
    }

    /// `command` runs the binary with the arguments it is given.
    fn start_by(mut command: Command, arguments: &[&str]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("node");
        let mut child = command
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(["--device", "cpu"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("ready unix:{}\n", socket.display()));
        Node { child, socket, _dir: dir }
    }

    fn client(&self) -> Client {
        self.client_of("me")
    }

    /// A connection that said hello and has no answer yet.
    fn newcomer(&self, identity: &str) -> Client {
        let link = connect(&self.socket).unwrap();
        let mut client = Client { link, tape: TapeWriter::new(), token: 0, later: Vec::new() };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: "test".to_owned(),
            threads: 1,
            identity: identity.to_owned(),
            ..Hello::default()
        };
        // A node that takes nobody may have hung up already: its refusal is still there to be read.
        match client.link.post_send(FrameKind::Hello, &[&hello.encode_to_vec()], None) {
            Ok(()) => assert!(!client.link.wants_write(), "so little fits at once"),
            Err(LinkError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
        client
    }

    fn client_of(&self, identity: &str) -> Client {
        let mut client = self.newcomer(identity);
        let welcome = Welcome::decode(&client.next_of(FrameKind::Welcome)[..]).unwrap();
        assert_eq!(welcome.pid, self.child.id());
        assert_eq!(welcome.devices[0].kind, "cpu");
        assert!(welcome.ops.len() > 1000, "{} operators", welcome.ops.len());
        client
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end and returns whether it was a success.
    fn ended(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "the node lives on");
            std::thread::yield_now();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ended already in the tests about its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all of a worker may take is the kernel's to enforce, where the node may make control groups.
#[test]
fn a_control_group_bounds_whatever_takes_memory() {
    let groups = genie_gate::Groups::take();
    if !groups.are_there().0 {
        eprintln!("not tried: {:?}", groups.missing);
        return;
    }
    let group = groups.make(1, 32 << 20, 1).unwrap();
    let door = group.doors().remove(0);
    let hog = |bytes: &str| {
        let joins = format!("echo 0 > {door} && exec head -c {bytes} /dev/zero | tail -c 300M");
        let ran = Command::new("sh").args(["-c", &joins]).stdout(Stdio::null()).status().unwrap();
        assert_eq!(ran.success(), !group.was_full(), "{ran}");
        group.was_full()
    };
    assert!(!hog("1M"));
    assert!(hog("200M"));
    let dir = PathBuf::from(&door).parent().unwrap().to_owned();
    assert!(dir.exists());
    drop(group);
    assert!(!dir.exists(), "an empty group is removed");
}

struct Client {
    link: UnixLink,
    tape: TapeWriter,
    token: u64,
    later: Vec<Frame>,
}

impl Client {
    fn send(&mut self, kind: FrameKind, body: &[u8]) {
        self.link.post_send(kind, &[body], None).unwrap();
        while self.link.wants_write() {
            wait(&self.link, PollFlags::OUT);
            self.link.flush().unwrap();
        }
    }

    fn flush(&mut self) {
        let bytes = self.tape.take(Vec::new());
        self.send(FrameKind::Tape, &bytes);
    }

    fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.link.poll()? {
                return Ok(frame);
            }
            wait(&self.link, PollFlags::IN);
        }
    }

    /// The words of the refusal that comes next, if one does.
    fn refusal(&mut self) -> Option<Refusal> {
        let frame = self.next().ok()?;
        (frame.kind == FrameKind::Refusal).then(|| Refusal::decode(&frame.body[..]).unwrap())
    }

    /// The next frame of a kind; others are kept for later.
    fn next_of(&mut self, kind: FrameKind) -> Vec<u8> {
        if let Some(index) = self.later.iter().position(|frame| frame.kind == kind) {
            return self.later.remove(index).body;
        }
        loop {
            let frame = self.next().unwrap();
            if frame.kind == kind {
                return frame.body;
            }
            assert_ne!(frame.kind, FrameKind::Refusal, "{:?}", Refusal::decode(&frame.body[..]));
            self.later.push(frame);
        }
    }

    fn define(&mut self, template: Template) -> genie_wire::TemplateId {
        self.tape.define(&encoded(&template))
    }

    fn upload(&mut self, values: &[f32]) -> StorageId {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let id = self.tape.alloc(bytes.len() as u64);
        self.tape.upload_inline(id, 0, &bytes);
        id
    }

    fn read(&mut self, id: StorageId, values: usize) -> Result<Vec<f32>, (ErrorCode, String)> {
        self.token += 1;
        let token = self.token;
        self.tape.read(token, id, 0, values as u64 * 4, None);
        self.flush();
        let body = self.next_of(FrameKind::Reply);
        match Reply::decode(&body).unwrap() {
            (answered, Reply::Bytes(bytes)) if answered == token => Ok(floats(bytes)),
            (answered, Reply::Error { code, message }) if answered == token => {
                Err((code, message.to_owned()))
            }
            other => panic!("{other:?}"),
        }
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.send(FrameKind::StatusRequest, &StatusRequest { token: 1 }.encode_to_vec());
        let status = Status::decode(&self.next_of(FrameKind::Status)[..]).unwrap();
        status.counters.iter().find(|counter| counter.name == name).expect(name).value
    }

    fn store(&mut self, id: StorageId, hash: [u8; 32]) -> WeightStored {
        self.tape.store_weight(id, &hash);
        self.flush();
        WeightStored::decode(&self.next_of(FrameKind::WeightStored)[..]).unwrap()
    }
}

fn wait(link: &UnixLink, flags: PollFlags) {
    let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(link, flags)], Some(&timeout)).unwrap(), 1, "nothing came");
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn vector(values: u64) -> TensorMeta {
    TensorMeta::contiguous(DType::FLOAT32, &[values])
}

fn encoded(template: &Template) -> Vec<u8> {
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}

/// An operator over float32 vectors of one length that makes one.
fn op(name: &str, values: u64, slots: u32, args: Vec<Value>) -> Template {
    Template {
        op: name.to_owned(),
        slots,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![values * 4],
        args,
        outputs: vec![OutputSpec::New { index: 0, meta: vector(values) }],
    }
}

fn add(values: u64) -> Template {
    let tensor = |slot| Value::Tensor { slot, meta: vector(values) };
    op("aten::add.Tensor", values, 2, vec![tensor(0), tensor(1), Value::Int(1)])
}

/// `aten::fill_.Scalar` over the vector in slot 0.
fn fill(values: u64, value: f64) -> Template {
    Template {
        mutated: vec![0],
        new_storages: vec![],
        outputs: vec![OutputSpec::Alias { slot: 0, meta: vector(values) }],
        ..op(
            "aten::fill_.Scalar",
            values,
            1,
            vec![Value::Tensor { slot: 0, meta: vector(values) }, Value::Double(value)],
        )
    }
}

#[test]
fn operators_run_and_errors_are_told_at_the_read() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let x = client.upload(&[1.0, 2.0, 3.0]);
    let y = client.upload(&[10.0, 20.0, 30.0]);
    let add = client.define(add(3));
    let sum = client.tape.op(add, &[x.0, y.0], &[], 1);
    let twice = client.tape.op(add, &[sum.0, sum.0], &[], 1);
    assert_eq!(client.read(twice, 3).unwrap(), [22.0, 44.0, 66.0]);

    let empty = client.tape.alloc(12);
    let fill = client.define(fill(3, 0.5));
    client.tape.op(fill, &[empty.0], &[], 0);
    assert_eq!(client.read(empty, 3).unwrap(), [0.5; 3]);

    // The inferred output is not what the operator makes.
    let mut wrong = op("aten::relu", 3, 1, vec![Value::Tensor { slot: 0, meta: vector(3) }]);
    wrong.outputs = vec![OutputSpec::New { index: 0, meta: vector(2) }];
    wrong.new_storages = vec![8];
    let wrong = client.define(wrong);
    let symbol = client.tape.symbol("act\0ReLU");
    client.tape.mark(genie_wire::record::MarkKind::ModuleEnter, symbol);
    let bad = client.tape.op(wrong, &[x.0], &[], 1);
    client.tape.mark(genie_wire::record::MarkKind::ModuleExit, symbol);
    let worse = client.tape.op(add, &[bad.0, x.0], &[], 1);
    let (code, message) = client.read(worse, 2).unwrap_err();
    assert_eq!(code, ErrorCode::TemplateMismatch, "{message}");
    assert!(message.contains("aten::relu") && message.contains("act (ReLU)"), "{message}");

    let unknown = client.define(op("aten::no_such_op", 1, 0, vec![]));
    let id = client.tape.op(unknown, &[], &[], 1);
    let (_, message) = client.read(id, 1).unwrap_err();
    assert!(message.contains("no_such_op"), "{message}");
    assert_eq!(client.read(sum, 3).unwrap(), [11.0, 22.0, 33.0]);
    assert_eq!(client.counter("node.op_errors"), 2);
}

#[test]
fn shapes_that_depend_on_data_are_answered() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let x = client.upload(&[0.0, 5.0, 0.0, 7.0]);
    let nonzero = Template {
        new_storages: vec![],
        outputs: vec![],
        ..op("aten::nonzero", 4, 1, vec![Value::Tensor { slot: 0, meta: vector(4) }])
    };
    let first = client.tape.run(3, &encoded(&nonzero), &[x.0], &[], 2);
    client.flush();
    let body = client.next_of(FrameKind::Reply);
    let (token, Reply::Outputs { storage_bytes, outputs, .. }) = Reply::decode(&body).unwrap()
    else {
        panic!("{body:?}");
    };
    assert_eq!((token, storage_bytes.as_slice()), (3, [16].as_slice()));
    let meta = outputs[0].meta().unwrap();
    assert_eq!((meta.dtype, meta.sizes.as_slice()), (DType::INT64, [2, 1].as_slice()));
    client.tape.read(4, first, 0, 16, None);
    client.flush();
    let body = client.next_of(FrameKind::Reply);
    let expect: Vec<u8> = [1i64, 3].iter().flat_map(|index| index.to_le_bytes()).collect();
    assert_eq!(Reply::decode(&body), Ok((4, Reply::Bytes(&expect))));
}

#[test]
fn a_weight_of_one_session_is_bound_by_another() {
    let node = Node::start(&[]);
    let (mut one, mut other, mut stranger) =
        (node.client(), node.client(), node.client_of("stranger"));
    let values: Vec<f32> = (0..4096).map(|i| i as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let hash = *blake3::hash(&bytes).as_bytes();
    let memory = SharedMemory::create(1 << 16).unwrap();
    let region = Region { id: 0, bytes: 1 << 16 }.encode_to_vec();
    one.link.post_send(FrameKind::Region, &[&region], Some(&memory)).unwrap();
    memory.write(256, &bytes).unwrap();
    let w = one.tape.alloc(bytes.len() as u64);
    one.tape.upload(w, 0, bytes.len() as u64, RegionSpan { region: 0, offset: 256 });
    assert_eq!(one.store(w, hash).refused, "");

    let bound = other.tape.alloc(bytes.len() as u64);
    other.tape.bind_weight(bound, &hash);
    assert_eq!(other.read(bound, 4096).unwrap(), values);
    assert_eq!(other.counter("node.weight_bytes"), bytes.len() as u64);
    // Its write is its own.
    let fill = other.define(fill(4096, 1.0));
    other.tape.op(fill, &[bound.0], &[], 0);
    assert_eq!(other.read(bound, 4096).unwrap(), [1.0; 4096]);
    assert_eq!(one.read(w, 4096).unwrap(), values);

    let denied = stranger.tape.alloc(bytes.len() as u64);
    stranger.tape.bind_weight(denied, &hash);
    assert_eq!(stranger.read(denied, 1).unwrap_err().0, ErrorCode::WeightMissing);
    let liar = stranger.upload(&[0.0]);
    assert!(!stranger.store(liar, hash).refused.is_empty());
}

#[test]
fn too_much_memory_is_an_error_at_the_read_and_the_node_goes_on() {
    let node = Node::start(&["--memory-bytes", "1000000"]);
    let mut client = node.client();
    let huge = client.tape.alloc(2_000_000);
    assert_eq!(client.read(huge, 1).unwrap_err().0, ErrorCode::OutOfMemory);
    let x = client.upload(&[1.0]);
    assert_eq!(client.read(x, 1).unwrap(), [1.0]);
}

#[test]
fn it_runs_within_8_gb_of_address_space() {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 8388608 && exec \"$0\" \"$@\"", BINARY]);
    let node = Node::start_by(limited, &[]);
    let mut client = node.client();
    let budget = client.counter("node.budget_bytes");
    assert!(budget <= 8 << 30, "{budget}");
    // Within the budget or not, what the machine refuses is an error at the read.
    let huge = client.tape.alloc(budget + 1);
    assert_eq!(client.read(huge, 1).unwrap_err().0, ErrorCode::OutOfMemory);
    let x = client.upload(&[1.0]);
    let product = client.define(add(1));
    let y = client.tape.op(product, &[x.0, x.0], &[], 1);
    assert_eq!(client.read(y, 1).unwrap(), [2.0]);
}

/// A long program without a read is executed as it goes and leaves nothing behind.
#[test]
fn memory_does_not_grow_with_the_program() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let mut x = client.upload(&[0.0; 64]);
    let add = client.define(add(64));
    let mut resident = Vec::new();
    for _ in 0..4 {
        for _ in 0..50 {
            for _ in 0..1000 {
                let y = client.tape.op(add, &[x.0, x.0], &[], 1);
                client.tape.free(x);
                x = y;
            }
            client.flush();
        }
        client.read(x, 1).unwrap();
        assert_eq!(client.counter("node.storages"), 1);
        assert_eq!(client.counter("node.storage_bytes"), 256);
        resident.push(client.counter("node.resident_bytes"));
    }
    assert_eq!(client.counter("node.ops_executed"), 200_000);
    let grown = resident[3].saturating_sub(resident[0]);
    assert!(grown < 8 << 20, "resident memory: {resident:?}");
}

#[test]
fn the_generator_is_that_of_pytorch() {
    let node = Node::start(&[]);
    let mut client = node.client();
    // torch.manual_seed(0); torch.rand(3)
    client.tape.seed(0);
    let x = client.tape.alloc(12);
    let uniform = Template {
        mutated: vec![0],
        random: true,
        new_storages: vec![],
        outputs: vec![OutputSpec::Alias { slot: 0, meta: vector(3) }],
        ..op(
            "aten::uniform_",
            3,
            1,
            vec![
                Value::Tensor { slot: 0, meta: vector(3) },
                Value::Double(0.0),
                Value::Double(1.0),
                Value::Generator,
            ],
        )
    };
    let uniform = client.define(uniform);
    client.tape.op(uniform, &[x.0], &[], 0);
    let expect = [0.496_256_6, 0.768_221_8, 0.088_477_43];
    for (found, expect) in client.read(x, 3).unwrap().iter().zip(expect) {
        assert!((found - expect).abs() < 1e-6, "{found} {expect}");
    }
    client.tape.get_generator_state(9);
    client.flush();
    let body = client.next_of(FrameKind::Reply);
    let (_, Reply::Bytes(state)) = Reply::decode(&body).unwrap() else { panic!("{body:?}") };
    assert_eq!(state.len(), 5056);
    let state = state.to_vec();
    client.tape.op(uniform, &[x.0], &[], 0);
    let drawn = client.read(x, 3).unwrap();
    client.tape.set_generator_state(&state);
    client.tape.op(uniform, &[x.0], &[], 0);
    assert_eq!(client.read(x, 3).unwrap(), drawn);
}

#[test]
fn malformed_messages_are_refused_and_others_are_served() {
    let node = Node::start(&[]);
    let mut witness = node.client();
    let kept = witness.upload(&[4.0]);
    for bytes in [[0xff; 12], [0; 12]] {
        let mut stream = std::os::unix::net::UnixStream::connect(&node.socket).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert_eq!(answer[4], FrameKind::Refusal as u8);
        assert_eq!(witness.read(kept, 1).unwrap(), [4.0]);
    }
    let mut client = node.client();
    client.send(FrameKind::Tape, &[0xff; 100]);
    let refusal = Refusal::decode(&client.next().unwrap().body[..]).unwrap();
    assert_eq!(refusal.code, ErrorCode::Protocol as u32);
    // A template whose bytes lie about themselves is an error of its operator.
    let mut template = add(3);
    template.args = vec![Value::Int(7); 3];
    let template = witness.define(template);
    let bad = witness.tape.op(template, &[kept.0, kept.0], &[], 1);
    assert!(witness.read(bad, 1).is_err());
    // So is one that reaches outside its storage.
    let outside = witness.define(add(1000));
    let bad = witness.tape.op(outside, &[kept.0, kept.0], &[], 1);
    assert!(witness.read(bad, 1).is_err());
    assert_eq!(witness.read(kept, 1).unwrap(), [4.0]);
}

#[test]
fn it_ends_on_signals_and_removes_its_socket() {
    for (signal, with_a_session) in [(Signal::TERM, false), (Signal::INT, true)] {
        let mut node = Node::start(&[]);
        let _client = with_a_session.then(|| node.client());
        node.signal(signal);
        assert!(node.ended());
        assert!(!node.socket.exists());
    }
}

/// What a newcomer is told by a node that was just asked to stop.
fn refused(node: &Node) -> Refusal {
    loop {
        if let Some(refusal) = node.newcomer("me").refusal() {
            return refusal;
        }
    }
}

#[test]
fn asked_to_stop_it_lets_sessions_finish_and_takes_no_new_ones() {
    let mut node = Node::start(&["--drain-s", "1000"]);
    let mut client = node.client();
    let x = client.upload(&[1.0]);
    node.signal(Signal::TERM);
    let refusal = refused(&node);
    assert_eq!(refusal.code, ErrorCode::Unavailable as u32);
    assert!(refusal.message.contains("takes no new sessions"), "{}", refusal.message);
    assert_eq!(client.read(x, 1).unwrap(), [1.0], "the old session goes on");
    drop(client);
    assert!(node.ended());
}

#[test]
fn a_session_that_outlasts_the_drain_is_told_why_it_ends() {
    let mut node = Node::start(&["--drain-s", "1"]);
    let mut client = node.client();
    node.signal(Signal::TERM);
    let refusal = client.refusal().expect("it is told");
    assert_eq!(refusal.code, ErrorCode::NodeLost as u32);
    assert!(refusal.message.contains("--drain-s"), "{}", refusal.message);
    assert!(node.ended());

    let mut node = Node::start(&["--drain-s", "1000"]);
    let mut client = node.client();
    node.signal(Signal::TERM);
    refused(&node);
    node.signal(Signal::INT);
    assert!(client.refusal().unwrap().message.contains("SIGINT"));
    assert!(node.ended());
}

impl Node {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32).unwrap()
    }

    /// Sets how many files it may open at once; returns what held before.
    fn may_open(&self, limit: Rlimit) -> Rlimit {
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap()
    }
}

/// Once, a door that failed was opened again only by the end of a connection.
#[test]
fn out_of_descriptors_without_a_session_it_is_not_deaf_for_ever() {
    let mut command = Command::new(BINARY);
    command.stderr(Stdio::piped());
    let mut node = Node::start_by(command, &["--log", "warn"]);
    let mut stderr = BufReader::new(node.child.stderr.take().unwrap());
    let most = getrlimit(Resource::Nofile).maximum;
    let before = node.may_open(Rlimit { current: Some(3), maximum: most });
    let mut client = node.newcomer("me");
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("not accepted"), "{line}");
    node.may_open(before);
    client.next_of(FrameKind::Welcome);
}

#[test]
fn it_opens_as_many_files_as_it_may() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 100; exec \"$0\" \"$@\"", BINARY]);
    let node = Node::start_by(command, &[]);
    let own = getrlimit(Resource::Nofile);
    let limit = node.may_open(own);
    assert_eq!((limit.current, limit.maximum), (own.maximum, own.maximum));
}

#[test]
fn it_ends_with_its_parent() {
    // `cat` lives until its input ends.
    let mut parent = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let mut node = Node::start(&["--parent-pid", &parent.id().to_string()]);
    let mut client = node.client();
    // Also in the middle of much work: a thousand products of large matrices, minutes of it.
    let meta = TensorMeta::contiguous(DType::FLOAT32, &[3000, 3000]);
    let matrix = |slot| Value::Tensor { slot, meta: meta.clone() };
    let product = Template {
        new_storages: vec![3000 * 3000 * 4],
        outputs: vec![OutputSpec::New { index: 0, meta: meta.clone() }],
        ..op("aten::mm", 1, 2, vec![matrix(0), matrix(1)])
    };
    let product = client.define(product);
    let x = client.tape.alloc(3000 * 3000 * 4);
    for _ in 0..1000 {
        let y = client.tape.op(product, &[x.0, x.0], &[], 1);
        client.tape.free(y);
    }
    client.flush();
    drop(parent.stdin.take());
    parent.wait().unwrap();
    assert!(node.ended());
    assert!(!node.socket.exists());
}

#[test]
fn a_living_socket_is_not_taken() {
    let node = Node::start(&[]);
    let output = Command::new(BINARY)
        .arg("--listen")
        .arg(format!("unix:{}", node.socket.display()))
        .args(["--device", "cpu"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("already served"), "{message}");
    node.client();
}
