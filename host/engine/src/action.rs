//! What a session wants done.

use genie_wire::control::Hello;
use genie_wire::frame::FrameKind;

/// One thing for the session's thread to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Connect to the node and send it this hello; then give its frames to the session.
    ConnectNode(Hello),
    /// Send the frame that was just received from the client to the node, as it is, with the
    /// memory that came beside it.
    ForwardToNode,
    /// Send the frame that was just received from the node to the client, as it is.
    ForwardToClient,
    ToClient(FrameKind, Vec<u8>),
    ToNode(FrameKind, Vec<u8>),
    /// Send what is queued for the client, then close both links.
    End,
}
