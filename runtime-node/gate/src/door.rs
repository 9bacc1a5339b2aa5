//! Where connections come in: a Unix socket for hosts of this machine, a transport's listener for
//! others.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use genie_remote::{LinkSettings, RemoteLink, Role};
use genie_transport::transport::{Listener, Transport};
use genie_transport::{Link, LinkError};

/// One way in.
pub enum Door {
    Unix(genie_shm::Listener),
    Remote {
        listener: Box<dyn Listener>,
        transport: Arc<dyn Transport>,
        settings: Arc<LinkSettings>,
    },
}

/// Who came in.
pub(crate) enum Arrived {
    /// A process of this user on this machine.
    Here(OwnedFd),
    Elsewhere(Box<dyn Link>),
}

impl Door {
    /// The transports of links that come in here; `None` where links stay on this machine.
    pub fn links(&self) -> Option<&Arc<LinkSettings>> {
        match self {
            Door::Unix(_) => None,
            Door::Remote { settings, .. } => Some(settings),
        }
    }

    /// Readable when a connection waits.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        match self {
            Door::Unix(listener) => listener.event_fd(),
            Door::Remote { listener, .. } => listener.event_fd(),
        }
    }

    /// The next connection that waits, if any. An error concerns that connection alone.
    pub(crate) fn accept(&mut self) -> Result<Option<Arrived>, LinkError> {
        match self {
            Door::Unix(listener) => {
                let Some(socket) = listener.accept_socket()? else { return Ok(None) };
                genie_shm::vouch(socket.as_fd())?;
                Ok(Some(Arrived::Here(socket)))
            }
            Door::Remote { listener, transport, settings } => {
                let Some(control) = listener.accept().map_err(LinkError::from_transport)? else {
                    return Ok(None);
                };
                let transport = transport.as_ref();
                let link = RemoteLink::new(Role::Node, control, transport, settings.clone())?;
                Ok(Some(Arrived::Elsewhere(Box::new(link))))
            }
        }
    }
}
