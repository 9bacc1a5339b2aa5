//! The receiving half of a link: bytes and descriptors in, frames out.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use genie_transport::{Frame, LinkError, SharedMemory};
use genie_wire::WireError;
use genie_wire::control::Region;
use genie_wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg,
};

use crate::link::failure;

/// The buffer of an idle link; one system call reads as much as fits.
pub(crate) const READ_BYTES: usize = 128 << 10;
/// Descriptors one message may carry before the kernel cuts the rest off (one is ever valid).
const DESCRIPTORS_MAX: usize = 4;

/// Bytes received and not yet handed out as frames.
///
/// Invariant: `buffer[start..end]` are the unread bytes; `start_position` is the position in the
/// stream of `buffer[start]`.
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    start_position: u64,
    /// Descriptors with the stream position one past the bytes they came with. The kernel ends a
    /// read after bytes that carry descriptors, so the byte before it lies in their frame.
    descriptors: VecDeque<(u64, OwnedFd)>,
    /// The last read took everything there was, so the next may be saved.
    drained: bool,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Inbox {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            start_position: 0,
            descriptors: VecDeque::new(),
            drained: false,
        }
    }

    /// The next whole frame, reading from `socket` only when none is buffered.
    pub(crate) fn poll(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if self.drained {
                self.drained = false;
                return Ok(None);
            }
            if !self.read(socket)? {
                return Ok(None);
            }
        }
    }

    /// Bytes that the frame at the front needs, as far as is known.
    fn needed(&self) -> Result<usize, LinkError> {
        match self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>() {
            None => Ok(HEADER_BYTES),
            Some(header) => Ok(HEADER_BYTES + FrameHeader::decode(*header)?.body_bytes as usize),
        }
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        let unread = &self.buffer[self.start..self.end];
        let Some(header) = unread.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(*header)?;
        let frame_bytes = HEADER_BYTES + header.body_bytes as usize;
        let Some(frame) = unread.get(..frame_bytes) else {
            return Ok(None);
        };
        let body = frame[HEADER_BYTES..].to_vec();
        self.start += frame_bytes;
        self.start_position += frame_bytes as u64;
        let memory = self.take_memory(header.kind, &body)?;
        Ok(Some(Frame { kind: header.kind, body, memory }))
    }

    /// The memory of the frame that ends at `start_position`.
    fn take_memory(
        &mut self,
        kind: FrameKind,
        body: &[u8],
    ) -> Result<Option<SharedMemory>, LinkError> {
        let mut descriptor = None;
        while self.descriptors.front().is_some_and(|(end, _)| *end <= self.start_position) {
            let (_, fd) = self.descriptors.pop_front().expect("front was just seen");
            if kind != FrameKind::Region || descriptor.replace(fd).is_some() {
                return Err(malformed("a descriptor came with it that it does not announce"));
            }
        }
        match (kind, descriptor) {
            (FrameKind::Region, Some(fd)) => {
                let region = Region::decode(body).map_err(WireError::from)?;
                Ok(Some(SharedMemory::adopt(fd, region.bytes)?))
            }
            (FrameKind::Region, None) => Err(malformed("a region came without its descriptor")),
            _ => Ok(None),
        }
    }

    /// Reads once; `false` when there is nothing now.
    fn read(&mut self, socket: BorrowedFd<'_>) -> Result<bool, LinkError> {
        self.make_room()?;
        let mut control = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut control);
        let space = &mut self.buffer[self.end..];
        let space_bytes = space.len();
        let received = loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(socket, &mut [IoSliceMut::new(space)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        let RecvMsg { bytes, flags, .. } = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(failure("receive from the peer", errno)),
        };
        if bytes == 0 {
            return Err(LinkError::Closed);
        }
        self.end += bytes;
        let position = self.start_position + (self.end - self.start) as u64;
        let mut carried = flags.contains(ReturnFlags::CTRUNC);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds.map(|fd| (position, fd)));
                carried = true;
            }
        }
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(malformed(
                "descriptors that came with it were cut off: there are more than any frame has, or \
                 this process may open no more files (`ulimit -n`)",
            ));
        }
        self.drained = bytes < space_bytes && !carried;
        Ok(true)
    }

    /// Makes room for at least one more byte, for the whole frame at the front once its size is
    /// known, and gives back what a large frame took.
    fn make_room(&mut self) -> Result<(), LinkError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > READ_BYTES {
                self.buffer = Vec::new();
            }
        }
        let size = self.needed()?.max(READ_BYTES);
        if self.start > 0 && self.start + size > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // Grown by doubling, so that a header alone does not claim a whole frame's memory.
        if self.end == self.buffer.len() {
            self.buffer.resize(size.min((2 * self.end).max(READ_BYTES)), 0);
        }
        Ok(())
    }
}

fn malformed(why: &'static str) -> LinkError {
    LinkError::Wire(WireError::Malformed { what: "frame", why })
}
