//! Connections that did not say yet what they want.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use genie_shm::UnixLink;
use genie_transport::{Link, LinkError};
use genie_wire::WireError;
use genie_wire::control::{Hello, WeightServe};
use genie_wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use prost::Message;
use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};

use crate::door::Arrived;

/// The largest first frame.
const FIRST_BYTES_MAX: usize = 64 << 10;

/// Somebody who came in.
pub(crate) struct Newcomer {
    pub(crate) who: Who,
    /// When it must have said what it wants.
    pub(crate) until: Instant,
    /// What its descriptor is watched for.
    pub(crate) interest: epoll::EventFlags,
}

pub(crate) enum Who {
    /// Its frames are left in the socket, for the worker that gets it.
    Here(OwnedFd),
    Elsewhere(Box<dyn Link>),
}

/// What a connection begins with.
pub(crate) enum First {
    Hello(Hello),
    Serve(WeightServe),
}

impl Newcomer {
    pub(crate) fn new(arrived: Arrived, until: Instant) -> Self {
        let (who, interest) = match arrived {
            // An incomplete frame stays readable: only what is new wakes.
            Arrived::Here(socket) => {
                (Who::Here(socket), epoll::EventFlags::IN | epoll::EventFlags::ET)
            }
            Arrived::Elsewhere(link) => (Who::Elsewhere(link), epoll::EventFlags::IN),
        };
        Newcomer { who, until, interest }
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        match &self.who {
            Who::Here(socket) => socket.as_fd(),
            Who::Elsewhere(link) => link.event_fd(),
        }
    }

    /// For messages to people.
    pub(crate) fn peer(&self) -> String {
        match &self.who {
            Who::Here(socket) => match genie_shm::peer_credentials(socket.as_fd()) {
                Ok((pid, _)) => format!("process {pid}"),
                Err(_) => "a process of this machine".to_owned(),
            },
            Who::Elsewhere(link) => link.peer(),
        }
    }

    /// What it wants, once it is there whole.
    pub(crate) fn first(&mut self) -> Result<Option<First>, LinkError> {
        match &mut self.who {
            Who::Here(socket) => peek(socket),
            Who::Elsewhere(link) => {
                if link.wants_write() {
                    link.flush()?;
                }
                match link.poll()? {
                    Some(frame) => first(frame.kind, &frame.body).map(Some),
                    None => Ok(None),
                }
            }
        }
    }

    pub(crate) fn into_link(self) -> Result<Box<dyn Link>, LinkError> {
        Ok(match self.who {
            Who::Here(socket) => Box::new(UnixLink::over(socket)?),
            Who::Elsewhere(link) => link,
        })
    }
}

/// Looks at the first frame and leaves it where it is.
fn peek(socket: &OwnedFd) -> Result<Option<First>, LinkError> {
    let mut bytes = vec![0; FIRST_BYTES_MAX + HEADER_BYTES];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let read = match recv(socket, bytes.as_mut_slice(), flags) {
        Ok((_, 0)) => return Err(LinkError::Closed),
        Ok((_, read)) => read,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(rustix::io::Errno::CONNRESET) => return Err(LinkError::Closed),
        Err(errno) => {
            return Err(LinkError::Io { doing: "look at a first frame", source: errno.into() });
        }
    };
    let bytes = &bytes[..read];
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let header = FrameHeader::decode(*header)?;
    if header.body_bytes as usize > FIRST_BYTES_MAX {
        return Err(LinkError::Wire(WireError::TooLarge {
            what: "first frame",
            value: header.body_bytes.into(),
            max: FIRST_BYTES_MAX as u64,
        }));
    }
    match bytes[HEADER_BYTES..].get(..header.body_bytes as usize) {
        Some(body) => first(header.kind, body).map(Some),
        None => Ok(None),
    }
}

fn first(kind: FrameKind, body: &[u8]) -> Result<First, LinkError> {
    match kind {
        FrameKind::Hello => Ok(First::Hello(Hello::decode(body).map_err(WireError::from)?)),
        FrameKind::WeightServe => {
            Ok(First::Serve(WeightServe::decode(body).map_err(WireError::from)?))
        }
        _ => Err(LinkError::Wire(WireError::Malformed {
            what: "connection",
            why: "it does not begin with a hello",
        })),
    }
}
