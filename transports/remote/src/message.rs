//! What two ends of a remote link say to each other, beside the frames they carry.
//!
//! Kinds 1-63 and 128-255 of the control connection are [`FrameKind`](genie_wire::frame::FrameKind)s:
//! 8 bytes little endian (how many payloads the sender posted before it), then the body. Kinds
//! 64-127 are the messages here, bare protobuf.

use crate::payloads::Arrivals;

/// The newest version of these messages that this end speaks.
pub const LINK_VERSION: u32 = 2;
/// The oldest. Version 1 knew no `instance`.
pub const LINK_VERSION_OLDEST: u32 = 1;
/// From this version on nodes give weights to each other (the frames `WeightServe`, `WeightFetch`).
pub const LINK_VERSION_MOVES: u32 = 2;

pub const HELLO: u8 = 64;
pub const WELCOME: u8 = 65;
pub const OPEN: u8 = 66;
pub const LISTENING: u8 = 67;
pub const GONE: u8 = 68;

/// Bytes before a frame's body.
pub const AFTER_BYTES: usize = 8;
/// Data transports one side may name.
pub const TRANSPORTS_MAX: usize = 32;
/// Bytes of a transport's name, an address or a reason.
pub const TEXT_BYTES_MAX: usize = 4 << 10;
/// The name by which payloads over the control connection are asked for.
pub const OVER_CONTROL: &str = "control";

/// From the host, first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Newest and oldest version the sender speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(uint32, tag = "2")]
    pub oldest: u32,
    /// Name and version of the program, for people.
    #[prost(string, tag = "3")]
    pub software: String,
}

/// From the node, the answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The version both will use.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, tag = "2")]
    pub software: String,
    /// Data transports the node has, by name.
    #[prost(string, repeated, tag = "3")]
    pub transports: Vec<String>,
    /// A number that the node chose when it started: what it held is lost when it changes.
    #[prost(fixed64, tag = "4")]
    pub instance: u64,
    /// Not empty: the node does not serve the host, and why.
    #[prost(string, tag = "5")]
    pub refused: String,
}

/// From the host: open a data connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Open {
    /// Counts up; answers to earlier attempts are passed over.
    #[prost(uint32, tag = "1")]
    pub attempt: u32,
    /// The transport, or [`OVER_CONTROL`].
    #[prost(string, tag = "2")]
    pub transport: String,
    /// The number of the data connection.
    #[prost(fixed64, tag = "3")]
    pub connection: u64,
    /// Which payloads of the node the host has.
    #[prost(message, optional, tag = "4")]
    pub arrived: Option<Arrived>,
}

/// From the node: it listens, or cannot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Listening {
    #[prost(uint32, tag = "1")]
    pub attempt: u32,
    /// Where, in the transport's form. An unspecified IP address means the one of the control
    /// connection.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Not empty: it cannot, and why.
    #[prost(string, tag = "3")]
    pub refused: String,
    /// Which payloads of the host the node has.
    #[prost(message, optional, tag = "4")]
    pub arrived: Option<Arrived>,
}

/// From the node: the data connection of this attempt failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Gone {
    #[prost(uint32, tag = "1")]
    pub attempt: u32,
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Payloads that arrived: all up to `through`, and these ranges above.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Arrived {
    #[prost(uint64, tag = "1")]
    pub through: u64,
    /// First and last, alternating.
    #[prost(uint64, repeated, tag = "2")]
    pub above: Vec<u64>,
}

impl From<&Arrivals> for Arrived {
    fn from(arrivals: &Arrivals) -> Self {
        let above = arrivals.above().flat_map(|(first, last)| [first, last]).collect();
        Arrived { through: arrivals.through(), above }
    }
}

impl Arrived {
    pub fn has(&self, payload: u64) -> bool {
        payload <= self.through
            || self.above.chunks_exact(2).any(|range| (range[0]..=range[1]).contains(&payload))
    }
}
