//! Control messages (protobuf): rare, extensible, never on the hot path.

/// The first frame of a connection, from front end to host and from host to node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// The newest version the sender speaks.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Version of the program that sends it, for messages to people.
    #[prost(string, tag = "2")]
    pub software: String,
    /// `torch.__version__` of the client.
    #[prost(string, tag = "3")]
    pub torch: String,
    /// CPU threads the client's PyTorch uses; the node uses as many, so that sums agree.
    #[prost(uint32, tag = "4")]
    pub threads: u32,
    /// Process id of the client, for messages to people.
    #[prost(uint32, tag = "5")]
    pub pid: u32,
    /// Which device of the node this connection is for.
    #[prost(uint32, tag = "6")]
    pub device: u32,
    /// Whose weights this session may share (set by the host from the peer's credentials).
    #[prost(string, tag = "7")]
    pub identity: String,
    /// Whether `threads` holds whatever the tape says later (set by the host).
    #[prost(bool, tag = "8")]
    pub threads_fixed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// `cpu` or `cuda`.
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Bytes that sessions may allocate on it.
    #[prost(uint64, tag = "3")]
    pub memory_bytes: u64,
}

/// The answer to a [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub software: String,
    #[prost(string, tag = "3")]
    pub torch: String,
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    /// FNV-1a hash of `name.overload` + NUL + the schema's text, for each operator the node runs.
    #[prost(fixed64, repeated, tag = "5")]
    pub ops: Vec<u64>,
    #[prost(uint64, tag = "6")]
    pub session: u64,
    #[prost(uint32, tag = "7")]
    pub pid: u32,
    /// Process id of the node behind a host (0 from a node).
    #[prost(uint32, tag = "8")]
    pub node_pid: u32,
    /// How the host reaches the node: `local_remote`, `remote` or `remote_zero_copy` (empty from
    /// a node, and before version 2).
    #[prost(string, tag = "9")]
    pub mode: String,
    /// The same for people, and why not a stronger one.
    #[prost(string, tag = "10")]
    pub route: String,
    /// Whether scripts may be defined (false from whoever does not know them, and so from a host
    /// whose node does not).
    #[prost(bool, tag = "14")]
    pub scripts: bool,
}

/// A shared memory region; its descriptor travels in the same message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Region {
    /// Chosen by the sender, counted from 0.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// Upload bytes of `region` that were consumed since the last such message, in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Released {
    #[prost(uint32, tag = "1")]
    pub region: u32,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// Bytes of `region` that the host must have before it gets the frames behind.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    #[prost(uint32, tag = "1")]
    pub region: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// Asks the node for weights, at most [`crate::limits::WANTED_MAX`]: each that it has becomes the
/// content of the storage named with it. Since version 3; before, one hash without a storage was
/// asked for (tag 2), which reads as a question for nothing, and its answer as "absent".
#[derive(Clone, PartialEq, prost::Message)]
pub struct Have {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(message, repeated, tag = "3")]
    pub wanted: Vec<WantedWeight>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WantedWeight {
    /// A storage of this size; or an id that was passed over (`Skip`), which then comes alive.
    #[prost(uint64, tag = "1")]
    pub storage: u64,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// BLAKE3 hash, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub hash: Vec<u8>,
}

/// Which of the weights asked for are now the content of their storages, in the order of the
/// question. (Version 2 had one, in tags 2 and 3.)
#[derive(Clone, PartialEq, prost::Message)]
pub struct HaveAnswer {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(bool, repeated, tag = "4")]
    pub found: Vec<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightStored {
    #[prost(bytes = "vec", tag = "1")]
    pub hash: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Empty when stored; otherwise why not. The storage keeps its content either way.
    #[prost(string, tag = "3")]
    pub refused: String,
}

/// To the node that has a weight: wait for another node, and write the weight to it. Answered by
/// [`WeightServing`], in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightServe {
    /// Whose weight; it counts within what the asking host proved to be, as in a [`Hello`].
    #[prost(string, tag = "1")]
    pub identity: String,
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// The data connection's number and its secret (32 bytes), random, from the host.
    #[prost(fixed64, tag = "3")]
    pub connection: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub secret: Vec<u8>,
    /// The data transport to listen with.
    #[prost(string, tag = "5")]
    pub transport: String,
    /// The device that has it; the same in all frames of one connection.
    #[prost(uint32, tag = "6")]
    pub device: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightServing {
    /// Where the node listens; an unspecified IP address is the one of its control connection.
    #[prost(string, tag = "1")]
    pub address: String,
    /// The weight's size.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Not empty: it does not, and why.
    #[prost(string, tag = "3")]
    pub refused: String,
}

/// To the node of a session: take a weight from another node, as the content of a storage (as in
/// [`WantedWeight`]). Answered by the [`HaveAnswer`] of this token, within the deadline.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WeightFetch {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    /// Where the other node listens, how, and for which connection.
    #[prost(string, tag = "4")]
    pub address: String,
    #[prost(fixed64, tag = "5")]
    pub connection: u64,
    #[prost(bytes = "vec", tag = "6")]
    pub secret: Vec<u8>,
    #[prost(string, tag = "7")]
    pub transport: String,
    /// Milliseconds for all of it.
    #[prost(uint32, tag = "8")]
    pub deadline_ms: u32,
    #[prost(uint64, tag = "9")]
    pub storage: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {
    #[prost(uint64, tag = "1")]
    pub token: u64,
}

/// Counters, by name, of the session and of the process that answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(message, repeated, tag = "2")]
    pub counters: Vec<Counter>,
    /// Facts that are no numbers.
    #[prost(message, repeated, tag = "3")]
    pub words: Vec<Word>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Word {
    /// Dotted: `host.session.transport`, `host.session.node`.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Counter {
    /// Dotted: `host.session.bytes_to_node`, `node.storage_bytes`, `node.resident_bytes`.
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub value: u64,
}

/// What a [`TraceRequest`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum TraceQuestion {
    /// Forget what ran so far.
    Reset = 0,
    /// Explain what ran since the last reset, as JSON.
    Explain = 1,
    /// The graph of what ran since the last reset, as a recorded graph (JSON).
    Graph = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceRequest {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(enumeration = "TraceQuestion", tag = "2")]
    pub question: i32,
}

/// One part of an answer; the parts of an answer come in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceAnswer {
    #[prost(uint64, tag = "1")]
    pub token: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub part: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub last: bool,
    /// Empty, or why there is no answer.
    #[prost(string, tag = "4")]
    pub refused: String,
}

/// Why a connection is ended by the server.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refusal {
    /// [`crate::ErrorCode`] as a number.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    #[prost(string, tag = "2")]
    pub message: String,
}
