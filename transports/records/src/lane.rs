//! One direction-pair of bytes: what waits to be sent on it, and what has arrived of a record.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_transport::transport::{Memory, Result};

use crate::record::{HEAD_BYTES, Head, Write};

/// Bytes of records below which sent ones are not cut off the front.
const COMPACT_BYTES: usize = 64 << 10;

/// A range of registered memory, as an address. Peers may change its bytes at any time, so they
/// are copied or given to the kernel, never borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub address: *mut u8,
    pub bytes: usize,
}

// SAFETY: an address and a number; whoever copies through it vouches for the memory.
unsafe impl Send for Span {}

/// What goes out next on a lane: first `records`, then the bytes of `payload`.
pub struct Outgoing<'a> {
    pub records: &'a [u8],
    /// Goes beside the first byte of `records`.
    pub beside: Option<BorrowedFd<'a>>,
    pub payload: &'a [Span],
}

impl Outgoing<'_> {
    pub fn bytes(&self) -> usize {
        self.records.len() + self.payload.iter().map(|span| span.bytes).sum::<usize>()
    }
}

/// Payload that follows the records before position `at`.
pub(crate) struct Chunk {
    pub at: u64,
    pub left: u64,
}

/// Invariant: `position` is the position in the stream of records of `bytes[start]`; marks and the
/// chunk lie at or behind it.
#[derive(Default)]
pub(crate) struct Lane {
    bytes: Vec<u8>,
    start: usize,
    position: u64,
    marks: VecDeque<(u64, OwnedFd)>,
    pub chunk: Option<Chunk>,
    pub incoming: Incoming,
}

impl Lane {
    pub fn queued(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn end(&self) -> u64 {
        self.position + self.queued() as u64
    }

    /// The place for a record; `beside` goes with its first byte.
    pub fn record(&mut self, beside: Option<OwnedFd>) -> &mut Vec<u8> {
        if let Some(beside) = beside {
            self.marks.push_back((self.end(), beside));
        }
        &mut self.bytes
    }

    /// Payload of `bytes` bytes follows what was queued so far.
    pub fn open_chunk(&mut self, bytes: u64) {
        debug_assert!(self.chunk.is_none(), "one at a time");
        self.chunk = Some(Chunk { at: self.end(), left: bytes });
    }

    /// The records to send now, what goes beside them, and whether the payload follows at once.
    pub fn records(&self) -> (&[u8], Option<BorrowedFd<'_>>, bool) {
        let mut end = self.chunk.as_ref().map_or(self.end(), |chunk| chunk.at);
        let mut marks = self.marks.iter();
        let mut next = marks.next();
        let mut beside = None;
        if let Some((at, fd)) = next
            && *at == self.position
        {
            beside = Some(fd.as_fd());
            next = marks.next();
        }
        if let Some((at, _)) = next {
            end = end.min(*at);
        }
        let bytes = (end - self.position) as usize;
        let whole = self.chunk.as_ref().is_some_and(|chunk| chunk.at == end);
        (&self.bytes[self.start..self.start + bytes], beside, whole)
    }

    /// Takes off `sent` bytes; returns how many of them were payload.
    pub fn advance(&mut self, sent: usize) -> u64 {
        if sent == 0 {
            return 0;
        }
        let limit = self.chunk.as_ref().map_or(self.end(), |chunk| chunk.at);
        let records = sent.min((limit - self.position) as usize);
        if records > 0 && self.marks.front().is_some_and(|(at, _)| *at == self.position) {
            self.marks.pop_front();
        }
        self.start += records;
        self.position += records as u64;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > COMPACT_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let payload = (sent - records) as u64;
        if let Some(chunk) = &mut self.chunk {
            chunk.left -= payload;
            if chunk.left == 0 {
                self.chunk = None;
            }
        }
        payload
    }
}

/// A message that is arriving.
pub(crate) struct Arriving {
    pub write: Write,
    pub done: u64,
    /// Where its first byte belongs; `None` when it is received for nothing.
    pub target: Option<(Memory, u64)>,
}

impl Arriving {
    /// Where the next byte belongs.
    pub fn address(&self) -> Option<*mut u8> {
        let (memory, offset) = self.target.as_ref()?;
        // SAFETY: the target was checked to hold the whole message inside the memory, and `done`
        // never passes the message's end.
        Some(unsafe { memory.address().add((offset + self.done) as usize) })
    }
}

/// What has arrived and is not complete.
#[derive(Default)]
pub(crate) struct Incoming {
    /// The begin of a record.
    partial: Vec<u8>,
    head: Option<Head>,
    pub arriving: Option<Arriving>,
    /// Bytes of payload that come next.
    pub chunk_left: u64,
}

/// A whole record: its head and body.
pub(crate) enum Whole<'a> {
    InPlace(Head, &'a [u8]),
    Collected(Head, Vec<u8>),
}

impl Incoming {
    /// The next whole record, taken off the front of `bytes`. `None`: all of `bytes` was kept.
    pub fn take<'a>(
        &mut self,
        bytes: &mut &'a [u8],
        frame_bytes_max: u64,
    ) -> Result<Option<Whole<'a>>> {
        if self.partial.is_empty() && self.head.is_none() {
            let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
                self.partial.extend_from_slice(bytes);
                *bytes = &[];
                return Ok(None);
            };
            let head = Head::decode(*head, frame_bytes_max)?;
            if let Some((body, rest)) = rest.split_at_checked(head.body_bytes()) {
                *bytes = rest;
                return Ok(Some(Whole::InPlace(head, body)));
            }
            self.head = Some(head);
            *bytes = rest;
        }
        if self.head.is_none() {
            self.collect(bytes, HEAD_BYTES);
            let Some(head) = self.partial.first_chunk::<HEAD_BYTES>() else {
                return Ok(None);
            };
            self.head = Some(Head::decode(*head, frame_bytes_max)?);
            self.partial.clear();
        }
        let head = self.head.expect("set above");
        // The vector grows with what arrives: a head alone claims no memory.
        self.collect(bytes, head.body_bytes());
        if self.partial.len() < head.body_bytes() {
            return Ok(None);
        }
        self.head = None;
        Ok(Some(Whole::Collected(head, std::mem::take(&mut self.partial))))
    }

    fn collect(&mut self, bytes: &mut &[u8], size: usize) {
        let missing = size.saturating_sub(self.partial.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(taken);
        *bytes = rest;
    }
}
