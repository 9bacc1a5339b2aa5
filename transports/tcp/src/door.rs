//! The listening socket.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use genie_records::{Course, Door, io};
use genie_transport::transport::{Cause, Options, Result, TransportError};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, bind, getsockname, listen, sockopt};
use rustls::ServerConfig;

use crate::socket::{Socket, Tuning, make, resolve};
use crate::{Carrier, course, tls};

/// Connections that may wait to be accepted: a burst of strangers must not fill it, for the kernel
/// drops who comes then. It allows `net.core.somaxconn`, 4,096 by default.
const BACKLOG: i32 = 4096;

pub(crate) struct TcpDoor {
    fd: OwnedFd,
    address: SocketAddr,
    options: Options,
    config: Option<Arc<ServerConfig>>,
}

impl TcpDoor {
    pub fn open(options: &Options) -> Result<Self> {
        let tuning = Tuning::read(options)?;
        let config = match options.trusted {
            true => None,
            false => Some(tls::server_config(options)?),
        };
        let address = resolve(&options.address)?;
        let fd = make(&address)?;
        tuning.apply(fd.as_fd())?;
        sockopt::set_socket_reuseaddr(&fd, true).map_err(io("prepare a listening socket"))?;
        let at = |errno: Errno| {
            let error = std::io::Error::from(errno);
            TransportError::new(Cause::Io, format!("listen at {address}: {error}"))
        };
        bind(&fd, &address).map_err(at)?;
        listen(&fd, BACKLOG).map_err(at)?;
        let address = getsockname(&fd).map_err(at)?.try_into().map_err(at)?;
        Ok(TcpDoor { fd, address, options: options.clone(), config })
    }
}

impl Door for TcpDoor {
    type Carrier = Carrier;

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn address(&self) -> String {
        self.address.to_string()
    }

    fn next(&mut self) -> Result<Option<Course<Carrier>>> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (fd, peer) = match acceptfrom_with(&self.fd, flags) {
                Ok((fd, Some(peer))) => (fd, peer),
                Ok((_, None)) | Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(io("accept a connection")(errno)),
            };
            let peer = SocketAddr::try_from(peer).map_err(io("read a peer's address"))?;
            let carrier = Carrier::accepted(Socket::accepted(fd, peer), self.config.as_ref())?;
            return course(carrier, &self.options, false).map(Some);
        }
    }
}
