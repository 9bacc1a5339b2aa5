//! Where the executor's answers go.

use genie_wire::frame::FrameKind;

/// Takes frames for the session's peer, in order.
pub trait Outbox {
    fn send(&mut self, kind: FrameKind, body: &[u8]);

    /// The peer needs these bytes of a region before the next frame. Nothing to do where it shares
    /// the region's memory.
    fn payload(&mut self, _region: u32, _offset: u64, _bytes: u64) {}
}

/// Keeps the frames, for `local` mode and for tests.
#[derive(Debug, Default)]
pub struct SentFrames(pub std::collections::VecDeque<(FrameKind, Vec<u8>)>);

impl Outbox for SentFrames {
    fn send(&mut self, kind: FrameKind, body: &[u8]) {
        self.0.push_back((kind, body.to_vec()));
    }
}
