//! The sending half of a link: what the peer does not take at once waits here.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_transport::{LinkError, SEND_QUEUE_BYTES_MAX};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::link::failure;

/// Parts a frame may have (its header included) before they are joined in one buffer.
const PARTS_MAX: usize = 8;
/// A queued segment is not appended to beyond this, so that sent bytes are given back soon.
const SEGMENT_BYTES_MAX: usize = 256 << 10;

/// Bytes that wait for the peer.
#[derive(Default)]
pub(crate) struct Outbox {
    segments: VecDeque<Segment>,
    queued: usize,
}

/// Bytes that are sent together; a descriptor travels with the first of them.
struct Segment {
    bytes: Vec<u8>,
    sent: usize,
    descriptor: Option<OwnedFd>,
}

impl Outbox {
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Sends the concatenation of `parts`, queueing what the peer does not take at once.
    pub(crate) fn post(
        &mut self,
        socket: BorrowedFd<'_>,
        parts: &[&[u8]],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), LinkError> {
        if self.queued > 0 {
            self.flush(socket)?;
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if self.queued + total > SEND_QUEUE_BYTES_MAX {
            return Err(LinkError::OutOfCredit { queued: self.queued });
        }
        let sent = if self.queued == 0 { send_parts(socket, parts, descriptor)? } else { 0 };
        if sent < total {
            let descriptor = match descriptor {
                Some(fd) if sent == 0 => Some(fd.try_clone_to_owned().map_err(|source| {
                    LinkError::Io { doing: "keep a descriptor for the peer", source }
                })?),
                _ => None,
            };
            self.enqueue(parts, sent, total, descriptor);
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        parts: &[&[u8]],
        mut sent: usize,
        total: usize,
        descriptor: Option<OwnedFd>,
    ) {
        let rest = total - sent;
        let joins = descriptor.is_none()
            && self.segments.back().is_some_and(|last| {
                last.descriptor.is_none() && last.bytes.len() + rest <= SEGMENT_BYTES_MAX
            });
        if !joins {
            let bytes = Vec::with_capacity(rest);
            self.segments.push_back(Segment { bytes, sent: 0, descriptor });
        }
        let bytes = &mut self.segments.back_mut().expect("pushed or seen above").bytes;
        for part in parts {
            let skip = sent.min(part.len());
            bytes.extend_from_slice(&part[skip..]);
            sent -= skip;
        }
        self.queued += rest;
    }

    /// Sends queued bytes as far as the peer takes them.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), LinkError> {
        while let Some(segment) = self.segments.front_mut() {
            let rest = &segment.bytes[segment.sent..];
            let descriptor = segment.descriptor.as_ref().map(AsFd::as_fd);
            let sent = send(socket, &[IoSlice::new(rest)], descriptor)?;
            if sent == 0 {
                return Ok(());
            }
            segment.descriptor = None;
            segment.sent += sent;
            self.queued -= sent;
            if segment.sent < segment.bytes.len() {
                return Ok(());
            }
            self.segments.pop_front();
        }
        Ok(())
    }
}

fn send_parts(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<usize, LinkError> {
    if parts.len() > PARTS_MAX {
        return send(socket, &[IoSlice::new(&parts.concat())], descriptor);
    }
    let mut slices = [IoSlice::new(&[]); PARTS_MAX];
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    send(socket, &slices[..parts.len()], descriptor)
}

/// One system call; returns the bytes the peer took (0 when its buffer is full).
fn send(
    socket: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<usize, LinkError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let descriptors: [BorrowedFd<'_>; 1];
    let mut control = SendAncillaryBuffer::default();
    if let Some(fd) = descriptor {
        descriptors = [fd];
        control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "the buffer was sized for one descriptor");
    }
    loop {
        match sendmsg(socket, slices, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(errno) => return Err(failure("send to the peer", errno)),
        }
    }
}
