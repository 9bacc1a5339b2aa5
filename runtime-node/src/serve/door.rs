//! Where connections come in: a Unix socket for hosts of this machine, a transport's listener for
//! others.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use genie_remote::{LinkSettings, RemoteLink, Role};
use genie_transport::transport::{Listener, Transport};
use genie_transport::{Link, LinkError};

use super::relief::Relief;

/// One way in.
pub enum Door {
    Unix(genie_shm::Listener),
    Remote {
        listener: Box<dyn Listener>,
        transport: Arc<dyn Transport>,
        settings: Arc<LinkSettings>,
        /// Drives its links while their device is busy.
        relief: Arc<Relief>,
    },
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
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        match self {
            Door::Unix(listener) => listener.event_fd(),
            Door::Remote { listener, .. } => listener.event_fd(),
        }
    }

    /// The next connection that waits, if any. An error concerns that connection alone.
    pub fn accept(&mut self) -> Result<Option<Box<dyn Link>>, LinkError> {
        match self {
            Door::Unix(listener) => {
                let Some(link) = listener.accept()? else { return Ok(None) };
                genie_shm::vouch(link.event_fd())?;
                Ok(Some(Box::new(link)))
            }
            Door::Remote { listener, transport, settings, relief } => {
                let Some(control) = listener.accept().map_err(LinkError::from_transport)? else {
                    return Ok(None);
                };
                let transport = transport.as_ref();
                let link = RemoteLink::new(Role::Node, control, transport, settings.clone())?;
                let looked_after = relief.look_after(Box::new(link));
                let doing = "watch a connection";
                looked_after.map(Some).map_err(|source| LinkError::Io { doing, source })
            }
        }
    }
}
