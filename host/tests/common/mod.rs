//! A host as a child process and a client of it, for tests.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use genie_shm::UnixLink;
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{
    Have, HaveAnswer, Hello, Refusal, Region, Status, StatusRequest, WantedWeight, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::{PROTOCOL_VERSION, Reply, StorageId, TapeWriter};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Nothing in a test takes this long unless it hangs.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// What is told when it happens comes within this on a busy machine too; no deadline is so short.
pub const AT_ONCE: Duration = Duration::from_secs(20);

pub fn host_binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_genie-host"))
}

/// The node of `fake_node.rs`.
pub fn fake_node() -> PathBuf {
    let path = host_binary().with_file_name("examples").join("fake_node");
    assert!(path.exists(), "build it: cargo build -p genie-host --examples");
    path
}

pub struct Host {
    pub child: Child,
    pub socket: PathBuf,
}

impl Host {
    pub fn start() -> Host {
        Host::start_with(&fake_node(), &[], &[])
    }

    pub fn start_with(node: &Path, args: &[&str], env: &[(&str, &str)]) -> Host {
        let mut command = Command::new(host_binary());
        command.arg("serve").arg("--node-binary").arg(node).args(args);
        command.envs(env.iter().copied()).env_remove("GENIE_SPIN_US");
        Host::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Host {
        Host::spawn_with(&mut command)
    }

    pub fn spawn_with(command: &mut Command) -> Host {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the host starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the host says `ready`");
        let socket = line.trim().strip_prefix("ready unix:").expect("ready unix:PATH").into();
        Host { child, socket }
    }

    pub fn client(&self) -> Client {
        let mut client = self.stranger();
        client.hello();
        client
    }

    /// A connection that has said nothing yet.
    pub fn stranger(&self) -> Client {
        let link = genie_shm::connect(&self.socket).expect("the host listens");
        Client {
            link,
            tape: TapeWriter::new(),
            welcome: Welcome::default(),
            arrived: VecDeque::new(),
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let fd = watch(self.child.id()).expect("not reaped yet");
        assert!(ended(&fd), "the host does not end");
        self.child.wait().unwrap()
    }
}

impl Drop for Host {
    /// Gently, so that neither nodes nor sockets are left behind.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::INT);
            if !watch(self.child.id()).is_some_and(|pidfd| ended(&pidfd)) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

pub fn watch(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

/// Whether the process ends in time.
pub fn ended(pidfd: &OwnedFd) -> bool {
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

/// Looks again and again until `test` is true.
pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !test() {
        assert!(Instant::now() < end, "{what} does not happen");
        std::thread::yield_now();
    }
}

pub struct Client {
    pub link: UnixLink,
    pub tape: TapeWriter,
    pub welcome: Welcome,
    /// Frames that came while something was sent.
    arrived: VecDeque<Frame>,
}

impl Client {
    pub fn hello(&mut self) {
        let hello = Hello { protocol: PROTOCOL_VERSION, threads: 1, ..Hello::default() };
        self.send(FrameKind::Hello, &hello.encode_to_vec());
        let frame = self.wait(FrameKind::Welcome).expect("a welcome");
        self.welcome = Welcome::decode(&frame.body[..]).unwrap();
    }

    /// Sends a frame; takes in what arrives meanwhile, as a client must.
    pub fn send(&mut self, kind: FrameKind, body: &[u8]) {
        self.link.post_send(kind, &[body], None).expect("the host takes it");
        while self.link.wants_write() {
            let timeout = Timespec::try_from(TIMEOUT).unwrap();
            let both = PollFlags::IN | PollFlags::OUT;
            let ready = poll(&mut [PollFd::new(&self.link, both)], Some(&timeout)).unwrap();
            assert!(ready > 0, "the host takes nothing and says nothing");
            while let Some(frame) = self.link.poll().unwrap() {
                self.arrived.push_back(frame);
            }
            self.link.flush().unwrap();
        }
    }

    pub fn flush(&mut self) {
        let bytes = self.tape.take(Vec::new());
        self.send(FrameKind::Tape, &bytes);
    }

    pub fn region(&mut self, id: u32, memory: &SharedMemory) {
        let region = Region { id, bytes: memory.bytes() }.encode_to_vec();
        self.link.post_send(FrameKind::Region, &[&region], Some(memory)).unwrap();
    }

    /// The next frame, or how the link ended.
    pub fn next(&mut self) -> Result<Frame, LinkError> {
        let end = Instant::now() + TIMEOUT;
        if let Some(frame) = self.arrived.pop_front() {
            return Ok(frame);
        }
        loop {
            if let Some(frame) = self.link.poll()? {
                return Ok(frame);
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no frame came in time");
            let timeout = Timespec::try_from(left).unwrap();
            poll(&mut [PollFd::new(&self.link, PollFlags::IN)], Some(&timeout)).unwrap();
        }
    }

    /// The next frame of this kind; a refusal is an error.
    pub fn wait(&mut self, kind: FrameKind) -> Result<Frame, String> {
        loop {
            let frame = self.next().map_err(|error| error.to_string())?;
            if frame.kind == FrameKind::Refusal {
                return Err(Refusal::decode(&frame.body[..]).unwrap().message);
            }
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// The bytes of the next reply, or its error.
    pub fn reply(&mut self) -> Result<Vec<u8>, String> {
        let frame = self.wait(FrameKind::Reply)?;
        match Reply::decode(&frame.body).unwrap() {
            (_, Reply::Bytes(bytes)) => Ok(bytes.to_vec()),
            (_, Reply::Error { code, message }) => Err(format!("{code:?}: {message}")),
            _ => Ok(vec![]),
        }
    }

    /// Asks for a weight as the content of a storage.
    pub fn have(&mut self, id: StorageId, bytes: u64, hash: [u8; 32]) -> bool {
        self.flush();
        let wanted = WantedWeight { storage: id.0, bytes, hash: hash.to_vec() };
        let have = Have { token: 1, wanted: vec![wanted] }.encode_to_vec();
        self.send(FrameKind::Have, &have);
        let frame = self.wait(FrameKind::HaveAnswer).unwrap();
        HaveAnswer::decode(&frame.body[..]).unwrap().found == [true]
    }

    pub fn status(&mut self) -> Status {
        self.send(FrameKind::StatusRequest, &StatusRequest { token: 5 }.encode_to_vec());
        Status::decode(&self.wait(FrameKind::Status).unwrap().body[..]).unwrap()
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        let status = self.status();
        let counter = status.counters.iter().find(|counter| counter.name == name);
        counter.unwrap_or_else(|| panic!("no counter {name}")).value
    }
}

pub fn run(command: &mut Command) -> (ExitStatus, String, String) {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pidfd = watch(child.id()).unwrap();
    // Its output is short enough to wait in the pipes.
    assert!(ended(&pidfd), "it does not end");
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (child.wait().unwrap(), out, err)
}
