//! Frames: the unit a stream transport carries. An 8-byte header, then the body.

use crate::WireError;
use crate::limits::FRAME_BYTES_MAX;

pub const HEADER_BYTES: usize = 8;

/// What a frame's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// To the server: [`crate::control::Hello`], the first frame of a connection.
    Hello = 1,
    /// To the server: whole records.
    Tape = 2,
    /// To the server: [`crate::control::Region`]; its file descriptor travels beside it.
    Region = 3,
    /// To the host: [`crate::control::Have`], which weights are already there?
    Have = 4,
    /// To the server: [`crate::control::StatusRequest`].
    StatusRequest = 5,
    /// To the host: [`crate::control::TraceRequest`], what did the session run?
    TraceRequest = 6,
    /// To a node, the first frame of a connection, and again: [`crate::control::WeightServe`], give
    /// a weight to another node.
    WeightServe = 7,
    /// To a node, in a session: [`crate::control::WeightFetch`], take a weight from another node.
    WeightFetch = 8,
    /// From the server: [`crate::control::Welcome`], the answer to a hello.
    Welcome = 129,
    /// From the server: [`crate::Reply`].
    Reply = 130,
    /// From the server: [`crate::control::Released`], upload bytes of a region may be reused.
    Released = 131,
    /// From the host: [`crate::control::HaveAnswer`].
    HaveAnswer = 132,
    /// From the node: [`crate::control::WeightStored`].
    WeightStored = 133,
    /// From the server: [`crate::control::Status`].
    Status = 134,
    /// From the server: [`crate::control::Refusal`]; the connection ends after it.
    Refusal = 135,
    /// From the host: [`crate::control::TraceAnswer`], in parts.
    TraceAnswer = 136,
    /// From a node: [`crate::control::WeightServing`], the answer to a `WeightServe`.
    WeightServing = 137,
    /// From a node's worker to its gate: [`crate::control::Payload`], bytes that the frames behind
    /// need. It never leaves the node.
    Payload = 138,
}

impl FrameKind {
    pub fn from_u8(value: u8) -> Option<Self> {
        use FrameKind::*;
        [
            Hello,
            Tape,
            Region,
            Have,
            StatusRequest,
            TraceRequest,
            WeightServe,
            WeightFetch,
            Welcome,
            Reply,
            Released,
            HaveAnswer,
            WeightStored,
            Status,
            Refusal,
            TraceAnswer,
            WeightServing,
            Payload,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == value)
    }
}

/// A frame's header: body length and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub body_bytes: u32,
}

impl FrameHeader {
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let len = self.body_bytes.to_le_bytes();
        [len[0], len[1], len[2], len[3], self.kind as u8, 0, 0, 0]
    }

    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let body_bytes = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if body_bytes as usize > FRAME_BYTES_MAX {
            return Err(WireError::TooLarge {
                what: "frame",
                value: body_bytes.into(),
                max: FRAME_BYTES_MAX as u64,
            });
        }
        let kind = FrameKind::from_u8(bytes[4])
            .ok_or(WireError::Unknown { what: "frame kind", value: bytes[4].into() })?;
        if bytes[5..] != [0, 0, 0] {
            return Err(WireError::Malformed { what: "frame", why: "reserved bytes are not zero" });
        }
        Ok(FrameHeader { kind, body_bytes })
    }
}
