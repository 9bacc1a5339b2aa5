//! What a session wants done.

use genie_wire::control::{Hello, TraceQuestion};
use genie_wire::frame::FrameKind;

use crate::history::Snapshot;
use crate::segmenter::NewTopology;

/// One thing for the session's thread to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Connect to the node and send it this hello; then give its frames to the session.
    ConnectNode(Hello),
    /// Send the frame that was just received from the client to the node, as it is, with the
    /// memory that came beside it.
    ForwardToNode,
    /// The node needs these bytes of a region before the next frame.
    PayloadToNode {
        region: u32,
        offset: u64,
        bytes: u64,
    },
    /// Send the frame that was just received from the node to the client, as it is.
    ForwardToClient,
    ToClient(FrameKind, Vec<u8>),
    ToNode(FrameKind, Vec<u8>),
    /// A topology was met for the first time: have it recognized, some time.
    Analyze(Box<NewTopology>),
    /// Answer what the session ran, some time; the answer goes to the client under this token.
    AnswerTrace {
        token: u64,
        question: TraceQuestion,
        snapshot: Box<Snapshot>,
    },
    /// Send what is queued for the client, then close both links.
    End,
}
