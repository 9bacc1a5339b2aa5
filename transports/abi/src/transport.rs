//! What a transport implements.
//!
//! A **transport** makes connections. A **connection** carries two things:
//! - *frames*: small control messages, whole and in order (only with [`Capabilities::CONTROL`]);
//! - *placed writes*: the receiver offers registered memory as a **window**; the sender writes a
//!   scatter list of its registered memory to an offset of that window, as one **message**. Bytes
//!   may land in any order; the completion says when all are there.
//!
//! Nothing blocks and nothing happens behind the caller's back: progress is made in
//! [`Connection::poll`], and the event descriptor becomes readable when a poll is due (data, a
//! timer, room to send). A connection is used by one thread at a time. A transport that needs a
//! thread of its own (a runtime, a device that is polled) keeps it inside.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::SharedMemory;

/// The largest body of one frame.
pub const FRAME_BYTES_MAX: usize = genie_wire::limits::FRAME_BYTES_MAX + 64;
/// Bytes of frames that a connection queues for a peer that does not read.
pub const FRAME_QUEUE_BYTES_MAX: usize = 8 << 20;
/// Windows a connection may have offered at a time, and so accept from its peer.
pub const WINDOWS_MAX: usize = 1024;
/// Messages that may be posted and not yet written.
pub const MESSAGES_MAX: usize = 4096;
/// Parts of one scatter list.
pub const PARTS_MAX: usize = 64;
/// The largest message.
pub const MESSAGE_BYTES_MAX: u64 = 1 << 32;
/// Memories a connection may have registered at a time.
pub const MEMORIES_MAX: usize = 4096;
/// Completions one poll returns at most.
pub const COMPLETIONS_MAX: usize = 256;

/// What a transport can do, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Carries frames, knows who its peer is, and can derive secrets for data connections.
    pub const CONTROL: Capabilities = Capabilities(1);
    /// Carries placed writes.
    pub const DATA: Capabilities = Capabilities(1 << 1);
    /// Passes shared memory to the peer beside a frame: no payload needs to be written.
    pub const SHARES_MEMORY: Capabilities = Capabilities(1 << 2);
    /// Reads and writes memory of a GPU without a copy through host memory.
    pub const GPU_MEMORY: Capabilities = Capabilities(1 << 3);
    /// Hands registered memory to a network device without a copy by the processor.
    pub const ZERO_COPY: Capabilities = Capabilities(1 << 4);
    /// Moves bytes by remote DMA. No transport of this repository has it: it is the mark by which
    /// one that does is preferred (docs/reference/transports.md).
    pub const RDMA: Capabilities = Capabilities(1 << 5);
    /// Reaches other machines.
    pub const NETWORK: Capabilities = Capabilities(1 << 6);

    pub const fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    pub const fn has(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }

    /// Names of the known bits, for people.
    pub fn names(self) -> Vec<&'static str> {
        [
            (Capabilities::CONTROL, "control"),
            (Capabilities::DATA, "data"),
            (Capabilities::SHARES_MEMORY, "shares-memory"),
            (Capabilities::GPU_MEMORY, "gpu-memory"),
            (Capabilities::ZERO_COPY, "zero-copy"),
            (Capabilities::RDMA, "rdma"),
            (Capabilities::NETWORK, "network"),
        ]
        .into_iter()
        .filter_map(|(bit, name)| self.has(bit).then_some(name))
        .collect()
    }
}

/// Who a transport is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// One word of lower case: `udp`. What is written in options and shown in statistics.
    pub name: String,
    /// The version of the plugin, for people.
    pub version: String,
    pub capabilities: Capabilities,
}

/// How to probe, listen or connect. Crosses the C ABI as a JSON object of the same fields.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Options {
    /// Where to listen or connect, in the transport's own form: `HOST:PORT` for IP (port 0 takes a
    /// free one), a path for a Unix socket.
    pub address: String,
    /// The directory with `ca.pem`, `cert.pem` and `key.pem`; transports that speak TLS need it
    /// unless `trusted`.
    pub certificates: Option<PathBuf>,
    /// The name the peer's certificate must carry; the host part of the address when absent.
    pub peer_name: Option<String>,
    /// The network is trusted: no encryption and no certificates. Integrity is still checked.
    pub trusted: bool,
    /// Of a data connection: its number, and the secret both ends got from their control session.
    pub connection: u64,
    pub secret: Option<[u8; 32]>,
    /// Milliseconds without a sign of life after which a connection fails with `TimedOut`.
    pub deadline_ms: u64,
    /// Milliseconds that setting up a connection may take.
    pub connect_ms: u64,
    /// A listener takes only this many connections, then no more; 0: any number.
    pub accept_max: u32,
    /// The largest frame accepted from a peer, and the largest message.
    pub frame_bytes_max: u64,
    pub message_bytes_max: u64,
    /// Settings of this transport alone (`flows`, `mtu`, `eal`, ...), each documented by it.
    pub settings: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            address: String::new(),
            certificates: None,
            peer_name: None,
            trusted: false,
            connection: 0,
            secret: None,
            deadline_ms: 30_000,
            connect_ms: 5_000,
            accept_max: 0,
            frame_bytes_max: FRAME_BYTES_MAX as u64,
            message_bytes_max: MESSAGE_BYTES_MAX,
            settings: BTreeMap::new(),
        }
    }
}

/// Why something did not work. The text says what, to which thing, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TransportError {
    pub cause: Cause,
    pub message: String,
}

/// The kinds of failure that a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Cause {
    /// Not an end: try again after [`Completion::Writable`].
    OutOfCredit = -1,
    /// The peer closed the connection in an orderly way.
    Closed = -2,
    /// The peer gave no sign of life within the deadline.
    TimedOut = -3,
    /// The peer is not who it should be, or does not accept us.
    Refused = -4,
    /// The peer speaks no version that we speak.
    Version = -5,
    /// The peer broke the protocol, or what it sent was damaged beyond repair.
    Protocol = -6,
    /// The transport cannot do this.
    Unsupported = -7,
    /// The caller asked for something that makes no sense (an unknown window, a range outside).
    Invalid = -8,
    /// The operating system or the device failed.
    Io = -9,
    /// The plugin failed inside (it panicked); the connection is unusable.
    Internal = -10,
}

impl Cause {
    pub fn from_i32(value: i32) -> Option<Cause> {
        use Cause::*;
        [
            OutOfCredit,
            Closed,
            TimedOut,
            Refused,
            Version,
            Protocol,
            Unsupported,
            Invalid,
            Io,
            Internal,
        ]
        .into_iter()
        .find(|cause| *cause as i32 == value)
    }
}

impl TransportError {
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        TransportError { cause, message: message.into() }
    }

    pub fn unsupported(transport: &str, what: &str) -> Self {
        TransportError::new(Cause::Unsupported, format!("the transport {transport} has no {what}"))
    }
}

pub type Result<T> = std::result::Result<T, TransportError>;

/// Where memory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    Host = 0,
    /// Host memory that is pinned for a GPU.
    Pinned = 1,
    /// Memory of a GPU; its address is a device pointer.
    Gpu = 2,
    /// Memory named by a dma-buf descriptor; its address may be null.
    DmaBuf = 3,
}

/// Memory to register with a connection. The owner lives until the connection gave it up.
#[derive(Clone)]
pub struct Memory {
    address: *mut u8,
    bytes: u64,
    kind: MemoryKind,
    /// Number of the GPU; -1 for host memory.
    device: i32,
    /// A memfd or dma-buf behind the memory; -1 for none. Owned by `owner`.
    descriptor: i32,
    owner: Arc<dyn Any + Send + Sync>,
}

impl Memory {
    /// Shared memory, kept alive by the reference.
    pub fn shared(memory: Arc<SharedMemory>) -> Self {
        use std::os::fd::AsRawFd;
        Memory {
            address: memory.address(),
            bytes: memory.bytes(),
            kind: MemoryKind::Host,
            device: -1,
            descriptor: memory.fd().as_raw_fd(),
            owner: memory,
        }
    }

    /// Any memory.
    ///
    /// # Safety
    /// For as long as `owner` lives, `address` must be valid for reads and writes of `bytes` bytes
    /// (or be a device pointer, or null with a dma-buf), from any thread, by this process and by
    /// devices. Others may change the bytes at any time; nobody may hold Rust references to them.
    pub unsafe fn from_raw(
        address: *mut u8,
        bytes: u64,
        kind: MemoryKind,
        device: i32,
        descriptor: i32,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Memory { address, bytes, kind, device, descriptor, owner }
    }

    /// Zeroed host memory of its own, for tests and benchmarks.
    pub fn allocate(
        bytes: u64,
    ) -> std::result::Result<(Self, Arc<SharedMemory>), crate::MemoryError> {
        let memory = Arc::new(SharedMemory::create(bytes)?);
        Ok((Memory::shared(memory.clone()), memory))
    }

    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    pub fn device(&self) -> i32 {
        self.device
    }

    pub fn descriptor(&self) -> i32 {
        self.descriptor
    }

    pub fn owner(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.owner
    }
}

// SAFETY: the constructors promise that the memory may be used from any thread while the owner
// lives, and the owner itself is Send and Sync; the address is plain data.
unsafe impl Send for Memory {}
// SAFETY: as above; `Memory` gives out no references to its bytes.
unsafe impl Sync for Memory {}

/// Registered memory, by the connection's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryKey(pub u64);

/// A range of registered memory: one entry of a scatter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Part {
    pub key: MemoryKey,
    pub offset: u64,
    pub bytes: u64,
}

/// What a poll returns.
#[derive(Debug)]
pub enum Completion {
    /// The peer is there and is who it should be. Comes once, before anything else.
    Connected,
    /// A frame arrived; `memory` came beside it (transports with [`Capabilities::SHARES_MEMORY`]).
    Frame { kind: u8, body: Vec<u8>, memory: Option<OwnedFd> },
    /// The peer has all bytes of this message: their memory may be reused.
    Written { message: u64 },
    /// All bytes of the peer's message lie in the window. Comes exactly once for each message.
    Placed { message: u64, window: u32, offset: u64, bytes: u64 },
    /// What was refused for lack of credit may be tried again.
    Writable,
}

/// Makes connections. One value for a process; usable from any thread.
pub trait Transport: Send + Sync {
    fn facts(&self) -> Facts;

    /// Whether connections could be made here with these settings; says in one line what would be
    /// used, or what is missing. Opens no connection and leaves nothing behind.
    fn probe(&self, options: &Options) -> Result<String>;

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>>;

    /// Begins to connect; [`Completion::Connected`] or an error of [`Connection::poll`] follows
    /// within [`Options::connect_ms`].
    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>>;
}

/// Waits for connections. Dropping it stops listening; connections stay.
pub trait Listener: Send {
    /// Where peers connect to, in the form [`Options::address`] takes, with the real port.
    fn address(&self) -> String;

    /// Readable when [`Listener::accept`] is due.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// The next connection, if one waits. An error concerns one connection only, and names the peer.
    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>>;
}

/// One connection. Dropping it closes it at once; queued bytes may be lost (see [`Connection::close`]).
///
/// After an error other than `OutOfCredit`, `Unsupported` or `Invalid` the connection is unusable.
pub trait Connection: Send {
    /// Readable (level triggered) when [`Connection::poll`] is due.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Call before sleeping on the event descriptor. `true`: there is something to poll already.
    fn arm(&mut self) -> Result<bool>;

    /// Makes progress and appends at most [`COMPLETIONS_MAX`] completions, in order.
    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()>;

    /// Queues a frame: the concatenation of `parts`. `memory` goes beside it where the transport
    /// shares memory. Refused with `OutOfCredit` above [`FRAME_QUEUE_BYTES_MAX`].
    fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()>;

    /// Bytes of frames that are queued and not yet given to the network.
    fn queued_bytes(&self) -> u64;

    fn register(&mut self, memory: Memory) -> Result<MemoryKey>;

    /// Gives memory up, when this returns or, of a closed connection, as soon as the device has done
    /// with it: the memory's owner lives until then, and the call does not wait. Refused with
    /// `Invalid` while a window or a message that is not yet written uses it.
    fn unregister(&mut self, key: MemoryKey) -> Result<()>;

    /// Lets the peer write to this memory, and tells it so.
    fn offer(&mut self, window: u32, part: Part) -> Result<()>;

    /// Ends an offer: nothing is placed any more when this returns.
    fn withdraw(&mut self, window: u32) -> Result<()>;

    /// Writes the concatenation of `parts` to the peer's window. Message numbers rise strictly.
    /// A window that the peer has not offered yet is waited for. The parts must not change until
    /// [`Completion::Written`].
    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()>;

    /// 32 secret bytes that only the two ends of this connection can derive, one for each label
    /// (transports with [`Capabilities::CONTROL`]).
    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]>;

    /// Who the peer proved to be: `host/NAME` or `node/NAME` by certificate, `uid/N` on one
    /// machine, empty when nothing was proved.
    fn peer_identity(&self) -> String;

    /// The peer's address, for people.
    fn peer_address(&self) -> String;

    /// Counters by name, such as `packets_sent`, `retransmitted`, `srtt_us`.
    fn statistics(&self) -> Vec<(String, u64)>;

    /// Asks for an orderly end: queued frames are still sent, then the peer sees `Closed`. Poll
    /// until it returns `Closed`.
    fn close(&mut self, reason: &str);
}
