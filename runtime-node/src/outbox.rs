//! Where the executor's answers go.

use genie_wire::frame::FrameKind;

/// Takes frames for the session's peer, in order.
pub trait Outbox {
    fn send(&mut self, kind: FrameKind, body: &[u8]);
}

/// Keeps the frames, for `local` mode and for tests.
#[derive(Debug, Default)]
pub struct SentFrames(pub std::collections::VecDeque<(FrameKind, Vec<u8>)>);

impl Outbox for SentFrames {
    fn send(&mut self, kind: FrameKind, body: &[u8]) {
        self.0.push_back((kind, body.to_vec()));
    }
}
