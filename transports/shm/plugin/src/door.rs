//! The listening socket.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use genie_records::{Course, Door};
use genie_shm::{Listener, vouch};
use genie_transport::transport::{Cause, Options, Result, TransportError};

use crate::carrier::Carrier;
use crate::{course, failure};

pub(crate) struct ShmDoor {
    listener: Listener,
    options: Options,
}

impl ShmDoor {
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let listener = Listener::bind(path)
            .map_err(|error| TransportError::new(Cause::Io, error.to_string()))?;
        Ok(ShmDoor { listener, options: options.clone() })
    }
}

impl Door for ShmDoor {
    type Carrier = Carrier;

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.listener.event_fd()
    }

    fn address(&self) -> String {
        self.listener.path().display().to_string()
    }

    fn next(&mut self) -> Result<Option<Course<Carrier>>> {
        let path = self.listener.path();
        let accepted = self.listener.accept_socket().map_err(|error| failure(path, error))?;
        let Some(socket) = accepted else { return Ok(None) };
        vouch(socket.as_fd()).map_err(|error| failure(path, error))?;
        course(Carrier::new(socket, path)?, &self.options, false).map(Some)
    }
}
