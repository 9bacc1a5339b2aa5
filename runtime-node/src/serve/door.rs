//! Where connections come in: a Unix socket for hosts of this machine, a transport's listener for
//! others.

use std::os::fd::BorrowedFd;
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

impl Door {
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
                Ok(listener.accept()?.map(|link| Box::new(link) as Box<dyn Link>))
            }
            Door::Remote { listener, transport, settings } => {
                let Some(control) = listener.accept().map_err(LinkError::from_transport)? else {
                    return Ok(None);
                };
                let transport = transport.as_ref();
                let link = RemoteLink::new(Role::Node, control, transport, settings.clone())?;
                Ok(Some(Box::new(link)))
            }
        }
    }
}
