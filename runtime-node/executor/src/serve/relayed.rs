//! The link of a session whose host is elsewhere: the gate passes its frames on.

use std::os::fd::BorrowedFd;

use genie_shm::UnixLink;
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::Payload;
use genie_wire::frame::FrameKind;
use prost::Message;

/// As a [`UnixLink`], but the host does not share the regions' memory: the gate is told which bytes
/// the frames behind need.
pub(super) struct RelayedLink {
    link: UnixLink,
    identity: String,
    peer: String,
}

impl RelayedLink {
    pub(super) fn new(link: UnixLink, identity: String, peer: String) -> Self {
        RelayedLink { link, identity, peer }
    }
}

impl Link for RelayedLink {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.link.event_fd()
    }

    fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    fn queued_bytes(&self) -> usize {
        self.link.queued_bytes()
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        self.link.post_send(kind, parts, memory)
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.link.flush()
    }

    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        self.link.poll()
    }

    fn post_payload(&mut self, region: u32, offset: u64, bytes: u64) -> Result<(), LinkError> {
        let payload = Payload { region, offset, bytes };
        self.link.post_send(FrameKind::Payload, &[&payload.encode_to_vec()], None)
    }

    fn peer_identity(&self) -> String {
        self.identity.clone()
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}
