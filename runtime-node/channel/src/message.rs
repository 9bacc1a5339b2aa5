//! The messages of gate, zygote and workers. All are of one build: nothing here has versions.

use genie_wire::control::Device;

/// What travels: one message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    #[prost(
        oneof = "Message",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, \
                23, 24, 25"
    )]
    pub message: Option<Message>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Message {
    /// From the zygote, once: libtorch is loaded.
    #[prost(message, tag = "1")]
    Loaded(Loaded),
    /// From the zygote, instead: it cannot be used.
    #[prost(message, tag = "2")]
    Unusable(Unusable),
    /// To the zygote: fork a worker. With its [`crate::Ends`].
    #[prost(message, tag = "3")]
    Fork(Fork),
    /// From the zygote: a worker runs, or does not.
    #[prost(message, tag = "4")]
    Forked(Forked),
    /// From the zygote: a worker ended.
    #[prost(message, tag = "5")]
    Ended(Ended),
    /// To a worker: a connection, whose first frame is its hello. With its socket.
    #[prost(message, tag = "6")]
    Session(Session),
    /// From a worker: it is done with a connection.
    #[prost(message, tag = "7")]
    SessionEnded(SessionEnded),
    /// To a worker: tell the sessions why and end.
    #[prost(message, tag = "8")]
    Stop(Stop),
    /// To a worker: a weight is to go to another node.
    #[prost(message, tag = "9")]
    Leave(Leave),
    /// From a worker: it has the weight; its bytes are being copied. With the copy's memory.
    #[prost(message, tag = "10")]
    Leaving(Leaving),
    /// From a worker: so much of it is copied.
    #[prost(message, tag = "11")]
    Copied(Copied),
    /// From a worker: the weight does not go.
    #[prost(message, tag = "12")]
    NotLeaving(NotLeaving),
    /// To a worker: nobody reads the copy any more.
    #[prost(message, tag = "13")]
    Left(Left),
    /// From a worker: a session wants a weight from another node. With the memory it goes to.
    #[prost(message, tag = "14")]
    Fetch(Fetch),
    /// To a worker: it is there, or does not come. Nobody writes the memory any more.
    #[prost(message, tag = "15")]
    Fetched(Fetched),
    /// From a worker: nobody waits for a weight any more.
    #[prost(message, tag = "16")]
    Unfetch(Unfetch),
    /// From a worker, once: what its sandbox keeps out, for the log.
    #[prost(message, tag = "17")]
    Confined(Confined),
    /// To the zygote: end a worker at once.
    #[prost(message, tag = "18")]
    Kill(Kill),
    /// To a worker: its device's memory is short; give up weights that no tensor uses.
    #[prost(message, tag = "19")]
    Shed(Shed),
    /// From a worker: it gave up what it could.
    #[prost(message, tag = "20")]
    Lightened(Lightened),
    /// From a worker: is this weight shared?
    #[prost(message, tag = "21")]
    Seek(SharedWeight),
    /// To a worker: it is; the worker has it from now on. With its memory.
    #[prost(message, tag = "22")]
    Found(Found),
    /// From a worker: a weight that it has, to share. With its memory.
    #[prost(message, tag = "23")]
    Offer(SharedWeight),
    /// To a worker: a weight is not shared, or an offer is taken or not.
    #[prost(message, tag = "24")]
    Shelved(Shelved),
    /// From a worker: it does not have a shared weight any more.
    #[prost(message, tag = "25")]
    Unshelve(Unshelve),
}

impl Message {
    /// How many descriptors travel with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Message::Fork(_) => 5,
            Message::Session(_) | Message::Leaving(_) | Message::Fetch(_) => 1,
            Message::Found(_) | Message::Offer(_) => 1,
            _ => 0,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Loaded {
    /// Version of libtorch.
    #[prost(string, tag = "1")]
    pub torch: String,
    /// Their memory is 0 where it is the machine's.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<Device>,
    /// Why there is no CUDA device, when that was looked for.
    #[prost(string, tag = "3")]
    pub no_cuda: String,
    /// Operators that a device runs.
    #[prost(uint64, tag = "4")]
    pub ops: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Unusable {
    #[prost(string, tag = "1")]
    pub reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Fork {
    /// The gate's number for the worker.
    #[prost(uint64, tag = "1")]
    pub worker: u64,
    #[prost(uint32, tag = "2")]
    pub device: u32,
    #[prost(message, optional, tag = "3")]
    pub limits: Option<Limits>,
    /// All devices of the node, as clients are told.
    #[prost(message, repeated, tag = "4")]
    pub devices: Vec<Device>,
    /// The node's process, as clients are told.
    #[prost(uint32, tag = "5")]
    pub node_pid: u32,
    /// The files by which it joins its control groups.
    #[prost(string, repeated, tag = "6")]
    pub groups: Vec<String>,
}

/// What a worker may use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Limits {
    /// Bytes of sessions and weights together.
    #[prost(uint64, tag = "1")]
    pub memory_bytes: u64,
    /// Bytes of weights while no tensor uses them.
    #[prost(uint64, tag = "2")]
    pub unheld_bytes: u64,
    /// Bytes that its sessions may send in a second.
    #[prost(uint64, tag = "3")]
    pub bytes_per_s: u64,
    /// CPU threads for clients that do not say how many.
    #[prost(uint32, tag = "4")]
    pub threads: u32,
    /// CPU threads at most, whatever a client says.
    #[prost(uint32, tag = "5")]
    pub threads_max: u32,
    /// Whether it is closed in (`genie_sandbox`).
    #[prost(bool, tag = "6")]
    pub sandbox: bool,
    /// Whether its weights are shared with other workers ([`crate::Shelf`]).
    #[prost(bool, tag = "7")]
    pub shares: bool,
    /// Whether memory is zeroed when a tensor gives it back.
    #[prost(bool, tag = "8")]
    pub scrub: bool,
    /// Bytes of its process beside what it shares with others, tensors among them; 0: no bound.
    #[prost(uint64, tag = "9")]
    pub own_bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Forked {
    #[prost(uint64, tag = "1")]
    pub worker: u64,
    /// 0: there is none.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Why not.
    #[prost(string, tag = "3")]
    pub failed: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ended {
    #[prost(uint64, tag = "1")]
    pub worker: u64,
    /// The signal that ended it; 0 when it ended by itself.
    #[prost(uint32, tag = "2")]
    pub signal: u32,
    #[prost(uint32, tag = "3")]
    pub status: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Kill {
    #[prost(uint64, tag = "1")]
    pub worker: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Shed {
    /// How much would do.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Lightened {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SharedWeight {
    /// The worker's number for the question.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Found {
    #[prost(uint64, tag = "1")]
    pub number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Shelved {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(bool, tag = "2")]
    pub taken: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Unshelve {
    #[prost(bytes = "vec", tag = "1")]
    pub hash: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Session {
    /// The gate's number for the connection.
    #[prost(uint64, tag = "1")]
    pub connection: u64,
    /// Who the host proved to be; empty for one on this machine.
    #[prost(string, tag = "2")]
    pub peer: String,
    /// Whether the gate passes the frames on: then the worker says which payloads they need.
    #[prost(bool, tag = "3")]
    pub relayed: bool,
    /// The client's name for messages to people.
    #[prost(string, tag = "4")]
    pub name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionEnded {
    #[prost(uint64, tag = "1")]
    pub connection: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Stop {
    #[prost(string, tag = "1")]
    pub why: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Leave {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Whose weight; see [`Session::peer`] and a hello's identity.
    #[prost(string, tag = "2")]
    pub identity: String,
    #[prost(bytes = "vec", tag = "3")]
    pub hash: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Leaving {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Copied {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Bytes from the start.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NotLeaving {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub reason: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Left {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Whether the other node has it.
    #[prost(bool, tag = "2")]
    pub whole: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Fetch {
    /// The worker's number for the move.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What the host asked ([`genie_wire::control::WeightFetch`]).
    #[prost(bytes = "vec", tag = "2")]
    pub fetch: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Fetched {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Why it does not come; empty when it is there.
    #[prost(string, tag = "2")]
    pub failed: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Unfetch {
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Confined {
    /// Whether it was to be closed in at all.
    #[prost(bool, tag = "1")]
    pub wanted: bool,
    /// Whether what is missing lets it out: no layer stands for another.
    #[prost(bool, tag = "2")]
    pub is_weak: bool,
    /// What the kernel lacks, in words.
    #[prost(string, repeated, tag = "3")]
    pub missing: Vec<String>,
}

/// Whose weights these are: what a host says of its client holds within what the host itself proved
/// to be.
pub fn identity(peer: &str, client: &str) -> String {
    match peer.is_empty() {
        true => client.to_owned(),
        false => format!("{peer}/{client}"),
    }
}
