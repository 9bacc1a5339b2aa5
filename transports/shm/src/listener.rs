//! Accepting connections at a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use genie_transport::LinkError;
use rustix::fs::{FileType, Mode, fchmod, lstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

use crate::link::{UnixLink, failure};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A Unix socket that only its user can reach. Its file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket's file, so that drop never removes another's.
    file: (u64, u64),
}

/// Why a path cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{path} is already served by a living process; choose another path or stop it")]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket; it is left as it is, choose another path")]
    NotASocket { path: PathBuf },
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

impl Listener {
    /// Listens at `path` with mode 0600. A socket file whose process is gone is replaced.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        let path = path.as_ref();
        let io = |doing| {
            move |errno: Errno| BindError::Io { doing, path: path.into(), source: errno.into() }
        };
        let address = SocketAddrUnix::new(path).map_err(io("use as a socket's path"))?;
        remove_stale(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(io("make a socket for"))?;
        // Linux gives the file the socket's own mode, so it is never open to others.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io("protect the socket of"))?;
        bind(&socket, &address).map_err(io("bind a socket to"))?;
        let stat = lstat(path).map_err(io("look at the new socket"))?;
        let listener = Listener { socket, path: path.into(), file: (stat.st_dev, stat.st_ino) };
        listen(&listener.socket, BACKLOG).map_err(io("listen at"))?;
        Ok(listener)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Becomes readable when a connection waits.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next connection that waits, if any. An error concerns that connection (or the
    /// process's descriptor limit); the listener stays usable.
    pub fn accept(&self) -> Result<Option<UnixLink>, LinkError> {
        self.accept_socket()?.map(UnixLink::over).transpose()
    }

    /// As [`Listener::accept`], for other protocols than a link's: the nonblocking socket alone.
    /// Who connected is not looked at: see [`crate::vouch`].
    pub fn accept_socket(&self) -> Result<Option<OwnedFd>, LinkError> {
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(socket)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(failure("accept a connection", errno)),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = lstat(&self.path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file);
        if ours {
            // Nothing is left to do about a directory that vanished or became read-only.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let io = |doing| {
        move |errno: Errno| BindError::Io { doing, path: path.into(), source: errno.into() }
    };
    match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(io("look at")(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(io("make a socket for"))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io("remove the stale socket")(errno)),
        },
        Err(Errno::NOENT) => Ok(()),
        // Connected, or its backlog is full: somebody is there.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse { path: path.into() }),
        Err(errno) => Err(io("see who listens at")(errno)),
    }
}
