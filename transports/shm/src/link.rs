//! One connection.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::WireError;
use genie_wire::frame::{FrameHeader, FrameKind};
use genie_wire::limits::FRAME_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, socketpair,
};

use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::peer::{peer_credentials, vouch};

/// How long a connection may wait for a server whose backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Slices of a frame that are sent without being joined first.
const PARTS_INLINE: usize = 7;

/// A [`Link`] over a nonblocking Unix stream socket.
pub struct UnixLink {
    socket: OwnedFd,
    peer: (u32, u32),
    inbox: Inbox,
    outbox: Outbox,
    /// The receiving half failed or ended: nothing more will come.
    ended: bool,
}

/// Connects to the server listening at `path`, if it belongs to this user or to root: whoever may
/// write to a directory can put a socket of his own in another's place. See [`vouch`].
pub fn connect(path: impl AsRef<Path>) -> Result<UnixLink, LinkError> {
    UnixLink::over(connect_socket(path, CONNECT_TIMEOUT)?)
}

/// As [`connect`], for other protocols than a link's: the nonblocking socket alone. Waits at most
/// `timeout` for a server whose backlog is full.
pub fn connect_socket(path: impl AsRef<Path>, timeout: Duration) -> Result<OwnedFd, LinkError> {
    let address = SocketAddrUnix::new(path.as_ref())
        .map_err(|errno| failure("use the socket's path (longer than 107 bytes?)", errno))?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| failure("make a socket", errno))?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))
        .map_err(|errno| failure("bound the time to connect", errno))?;
    rustix::net::connect(&socket, &address)
        .map_err(|errno| failure("connect to the socket", errno))?;
    vouch(socket.as_fd())?;
    rustix::io::ioctl_fionbio(&socket, true)
        .map_err(|errno| failure("make the socket nonblocking", errno))?;
    Ok(socket)
}

impl UnixLink {
    /// Wraps a connected, nonblocking Unix stream socket.
    pub fn over(socket: OwnedFd) -> Result<Self, LinkError> {
        let peer = peer_credentials(socket.as_fd())?;
        let (inbox, outbox) = (Inbox::new(), Outbox::default());
        Ok(UnixLink { socket, peer, inbox, outbox, ended: false })
    }

    /// Two links connected to each other, for tests and for links inside one process.
    pub fn pair() -> Result<(Self, Self), LinkError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| failure("make a pair of sockets", errno))?;
        Ok((UnixLink::over(one)?, UnixLink::over(other)?))
    }

    /// Process id and user id of the peer when it connected (or listened), told by the kernel.
    /// The process id is 0 when the peer lives in a process namespace that is not visible here.
    pub fn peer_credentials(&self) -> (u32, u32) {
        self.peer
    }
}

impl AsFd for UnixLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for UnixLink {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.outbox.queued() > 0
    }

    fn queued_bytes(&self) -> usize {
        self.outbox.queued()
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        let body_bytes: usize = parts.iter().map(|part| part.len()).sum();
        if body_bytes > FRAME_BYTES_MAX {
            return Err(LinkError::Wire(WireError::TooLarge {
                what: "frame",
                value: body_bytes as u64,
                max: FRAME_BYTES_MAX as u64,
            }));
        }
        debug_assert_eq!(kind == FrameKind::Region, memory.is_some(), "regions carry memory");
        let header = FrameHeader { kind, body_bytes: body_bytes as u32 }.encode();
        let descriptor = memory.map(SharedMemory::fd);
        let socket = self.socket.as_fd();
        if parts.len() <= PARTS_INLINE {
            let mut with_header: [&[u8]; PARTS_INLINE + 1] = [&[]; PARTS_INLINE + 1];
            with_header[0] = &header;
            with_header[1..=parts.len()].copy_from_slice(parts);
            self.outbox.post(socket, &with_header[..=parts.len()], descriptor)
        } else {
            self.outbox.post(socket, &[&header, &parts.concat()], descriptor)
        }
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.outbox.flush(self.socket.as_fd())
    }

    /// Returns `None` without a system call when the last read took all there was; the event
    /// descriptor is level triggered and tells when there is more.
    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        if self.ended {
            return Err(LinkError::Closed);
        }
        let polled = self.inbox.poll(self.socket.as_fd());
        self.ended = polled.is_err();
        polled
    }

    fn peer(&self) -> String {
        format!("process {}", self.peer.0)
    }
}

/// A peer that is gone is `Closed`, whichever call notices.
pub(crate) fn failure(doing: &'static str, errno: Errno) -> LinkError {
    match errno {
        Errno::PIPE | Errno::CONNRESET => LinkError::Closed,
        _ => LinkError::Io { doing, source: errno.into() },
    }
}
