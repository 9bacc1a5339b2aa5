//! A session whose host is elsewhere: its frames pass through the gate, its tensors through memory
//! that link and worker map.

use std::os::fd::BorrowedFd;

use genie_shm::UnixLink;
use genie_transport::{Frame, Link, LinkError};
use genie_wire::control::Payload;
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::epoll::EventFlags;

/// Unread bytes at one end after which nothing more is taken from the other.
const UNREAD_BYTES_MAX: usize = 1 << 20;
/// Frames of one session between two looks at the others.
const FRAMES_AT_ONCE: usize = 32;

/// Two links, each of whose frames go to the other.
pub(crate) struct Relay {
    /// To the host.
    pub(crate) host: Box<dyn Link>,
    /// To the worker.
    worker: UnixLink,
    /// The worker hung up.
    parted: bool,
    /// There is more to do at once.
    pub(crate) runnable: bool,
    /// The worker said something, perhaps.
    pub(crate) worker_speaks: bool,
    pub(crate) host_interest: EventFlags,
    pub(crate) worker_interest: EventFlags,
}

/// Why a relay ends.
pub(crate) enum RelayEnd {
    /// The host is gone, or broke the form.
    Host(LinkError),
    /// The worker hung up: it said its last words, or is dead.
    Worker(LinkError),
}

impl Relay {
    pub(crate) fn new(host: Box<dyn Link>, worker: UnixLink) -> Self {
        Relay {
            host,
            worker,
            parted: false,
            runnable: true,
            worker_speaks: true,
            host_interest: EventFlags::IN,
            worker_interest: EventFlags::IN,
        }
    }

    pub(crate) fn worker_fd(&self) -> BorrowedFd<'_> {
        self.worker.event_fd()
    }

    /// Passes a frame on to the worker that was taken from the host before.
    pub(crate) fn begin(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), LinkError> {
        self.worker.post_send(kind, &[body], None)
    }

    /// Passes on what is there.
    pub(crate) fn turn(&mut self) -> Result<(), RelayEnd> {
        if self.host.wants_write() {
            self.host.flush().map_err(RelayEnd::Host)?;
        }
        if self.worker.wants_write() && !self.parted {
            // What it said before it hung up is still to be heard.
            let _ = self.worker.flush();
        }
        self.runnable = false;
        for _ in 0..FRAMES_AT_ONCE {
            let up = self.pass_up()?;
            let down = self.pass_down()?;
            if !up && !down {
                return Ok(());
            }
        }
        self.runnable = true;
        Ok(())
    }

    /// Whether the worker hung up, and all that it said was passed on.
    pub(crate) fn has_parted(&self) -> bool {
        self.parted
    }

    fn pass_down(&mut self) -> Result<bool, RelayEnd> {
        if self.parted {
            self.host.drive().map_err(RelayEnd::Host)?;
            return Ok(false);
        }
        if self.worker.queued_bytes() > UNREAD_BYTES_MAX {
            // The worker computes; the host's link lives on.
            self.host.drive().map_err(RelayEnd::Host)?;
            return Ok(false);
        }
        let Some(Frame { kind, body, memory }) = self.host.poll().map_err(RelayEnd::Host)? else {
            return Ok(false);
        };
        match self.worker.post_send(kind, &[&body], memory.as_ref()) {
            // It hung up, and what it said before is still to be heard.
            Ok(()) | Err(LinkError::Closed) => Ok(true),
            Err(error) => Err(RelayEnd::Worker(error)),
        }
    }

    fn pass_up(&mut self) -> Result<bool, RelayEnd> {
        if self.host.queued_bytes() > UNREAD_BYTES_MAX {
            if self.host.needs_drive() {
                // It may make room itself, and nobody else would tell.
                self.host.drive().map_err(RelayEnd::Host)?;
            }
            return Ok(false);
        }
        if self.parted || !self.worker_speaks {
            return Ok(false);
        }
        let polled = self.worker.poll();
        self.parted = polled.is_err();
        let Some(frame) = polled.map_err(RelayEnd::Worker)? else {
            self.worker_speaks = false;
            return Ok(false);
        };
        let passed = match frame.kind {
            FrameKind::Payload => match Payload::decode(&frame.body[..]) {
                Ok(Payload { region, offset, bytes }) => {
                    self.host.post_payload(region, offset, bytes)
                }
                Err(error) => return Err(RelayEnd::Worker(LinkError::Wire(error.into()))),
            },
            kind => self.host.post_send(kind, &[&frame.body], None),
        };
        passed.map(|()| true).map_err(RelayEnd::Host)
    }

    /// What the two descriptors are to be watched for now.
    pub(crate) fn interests(&self) -> (EventFlags, EventFlags) {
        let (mut host, mut worker) = (EventFlags::empty(), EventFlags::empty());
        let reads_host = self.worker.queued_bytes() <= UNREAD_BYTES_MAX;
        host.set(EventFlags::IN, reads_host || self.host.needs_drive());
        host.set(EventFlags::OUT, self.host.wants_write());
        worker.set(EventFlags::IN, self.host.queued_bytes() <= UNREAD_BYTES_MAX);
        worker.set(EventFlags::OUT, self.worker.wants_write());
        (host, worker)
    }

    pub(crate) fn into_host(self) -> Box<dyn Link> {
        self.host
    }
}
