//! One session's connection, as the engine's surroundings see it.
//!
//! The shape is completion based: sends are posted and may be refused for lack of credit, what
//! arrived is polled, an event descriptor tells when to poll, and tensor payloads lie in shared or
//! registered memory named by (region, offset) instead of passing through frames.

use std::os::fd::BorrowedFd;

use genie_wire::WireError;
use genie_wire::frame::FrameKind;

use crate::transport::{Cause, TransportError};
use crate::{MemoryError, SharedMemory};

/// Bytes a link queues for a peer that does not read, before [`Link::post_send`] refuses.
pub const SEND_QUEUE_BYTES_MAX: usize = 8 << 20;

/// One connection to a peer. Used by one thread at a time; never blocks.
pub trait Link: Send {
    /// Becomes readable when [`Link::poll`] may have something to return.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Whether queued sends wait for the peer: then also watch the descriptor for writability
    /// and call [`Link::flush`].
    fn wants_write(&self) -> bool;

    /// Bytes queued for the peer and not yet taken by it.
    fn queued_bytes(&self) -> usize;

    /// Queues one frame whose body is the concatenation of `parts` and sends what the peer takes
    /// at once. `memory` travels beside a `Region` frame and may be used by the peer from then on.
    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError>;

    /// Sends queued bytes as far as the peer takes them.
    fn flush(&mut self) -> Result<(), LinkError>;

    /// The next frame that arrived whole, or `None` when there is none now.
    fn poll(&mut self) -> Result<Option<Frame>, LinkError>;

    /// Makes sure that the peer has these bytes of a region before any frame that is posted later.
    /// They must not change before the peer answered such a frame. Where the ends share the
    /// region's memory there is nothing to do.
    fn post_payload(&mut self, _region: u32, _offset: u64, _bytes: u64) -> Result<(), LinkError> {
        Ok(())
    }

    /// Whether [`Link::drive`] must be called when the event descriptor is readable although frames
    /// are not polled now.
    fn needs_drive(&self) -> bool {
        false
    }

    /// Keeps the connection alive and payloads moving while frames are not polled.
    fn drive(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    /// How the link goes; `None` for one on this machine.
    fn way(&self) -> Option<LinkWay> {
        None
    }

    /// Counts how often [`Link::way`] changed.
    fn changes(&self) -> u32 {
        0
    }

    /// Counters of the transports below, by name.
    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Who the peer proved to be; empty for a peer of this machine, whom the socket's permissions
    /// let in.
    fn peer_identity(&self) -> String {
        String::new()
    }

    /// Begins an orderly end, so that what was posted still arrives. `true`: drive the link until
    /// polling fails, or for a moment; `false`: it may be dropped at once.
    fn close(&mut self, _reason: &str) -> bool {
        false
    }

    /// Who is at the other end, for messages to people.
    fn peer(&self) -> String;
}

/// How a link goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkWay {
    /// The execution mode: `local_remote`, `remote` or `remote_zero_copy`.
    pub mode: String,
    /// The same for people, and why not a stronger one.
    pub route: String,
    /// The transport that tensors take; empty while there is none.
    pub transport: String,
}

/// A frame that arrived.
#[derive(Debug)]
pub struct Frame {
    pub kind: FrameKind,
    pub body: Vec<u8>,
    /// The memory that travelled beside a `Region` frame.
    pub memory: Option<SharedMemory>,
}

/// Why a link failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the connection or its process ended.
    #[error("the peer closed the connection")]
    Closed,
    /// Not an end: the queue is full; post again after [`Link::flush`] made room.
    #[error("{queued} bytes already wait for the peer (limit {SEND_QUEUE_BYTES_MAX})")]
    OutOfCredit { queued: usize },
    #[error("the peer sent something this version does not accept: {0}")]
    Wire(#[from] WireError),
    #[error("the peer's shared memory is refused: {0}")]
    Memory(#[from] MemoryError),
    /// A Unix socket's other end is a process of another user.
    #[error(
        "the process there ({pid}) belongs to user {uid}, this one to user {own}; no tensors go to \
         another user. Use a socket of your own, in a directory that only you can write to"
    )]
    Stranger { pid: u32, uid: u32, own: u32 },
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
    /// The transport below failed; the message says which peer, what and what to do.
    #[error(transparent)]
    Transport(TransportError),
}

impl LinkError {
    /// Whether it is the peer's fault and worth telling it.
    pub fn is_refusable(&self) -> bool {
        match self {
            LinkError::Wire(_) | LinkError::Memory(_) => true,
            LinkError::Transport(error) => error.cause == Cause::Protocol,
            _ => false,
        }
    }

    /// A transport's orderly end is an end like any other.
    pub fn from_transport(error: TransportError) -> Self {
        match error.cause {
            Cause::Closed => LinkError::Closed,
            _ => LinkError::Transport(error),
        }
    }
}
