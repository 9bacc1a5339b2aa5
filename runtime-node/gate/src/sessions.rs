//! The sessions that the workers serve.

use std::os::fd::OwnedFd;

use genie_wire::ErrorCode;
use genie_wire::control::Refusal;
use genie_wire::frame::{FrameHeader, FrameKind};
use prost::Message;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use crate::quotas::Admission;
use crate::relay::Relay;

/// One session.
pub(crate) struct Session {
    /// The gate's number for the worker that serves it.
    pub(crate) worker: u64,
    pub(crate) device: u32,
    pub(crate) way: Way,
    /// The worker said that it is over.
    pub(crate) ended: bool,
    pub(crate) _admission: Admission,
}

pub(crate) enum Way {
    /// The worker has the connection; the gate keeps it too, to see its end and to have the last
    /// word when the worker cannot.
    Direct(OwnedFd),
    Relayed(Box<Relay>),
}

/// Tells the peer of a connection whose worker is dead why, if that still arrives, and hangs up.
pub(crate) fn last_word(socket: &OwnedFd, code: ErrorCode, message: &str) {
    let body = Refusal { code: code as u32, message: message.to_owned() }.encode_to_vec();
    let header = FrameHeader { kind: FrameKind::Refusal, body_bytes: body.len() as u32 }.encode();
    let frame = [&header[..], &body].concat();
    // One that the worker died in the middle of is read as malformed, or not at all.
    if let Err(error) = send(socket, &frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        tracing::debug!(%error, "a client does not take its refusal");
    }
    let _ = shutdown(socket, Shutdown::Both);
}
