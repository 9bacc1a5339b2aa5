//! Memory the connection reads messages from and places them into.
//!
//! Other processes may change this memory at any time (it is often shared), so no Rust reference to
//! its bytes is ever made: bytes are copied out and in by raw pointers, each once.

use crate::error::PlaceError;

/// A stretch of readable (for writes) or writable (for windows) memory.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a span is an address and a length; `Span::new` makes its caller answer for the memory on every thread.
unsafe impl Send for Span {}
// SAFETY: as above; the copies below tolerate concurrent changes of the bytes by design.
unsafe impl Sync for Span {}

impl Span {
    /// A span of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The memory must stay mapped and readable, and writable if the span is placed into, from any
    /// thread: for a write until its `Written`, `Failed` or `Closed` event is polled or the connection is dropped,
    /// for a window until `withdraw` returns, `Closed` is polled or the connection is dropped. No Rust reference to it may live that long.
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of it from `at`.
    pub(crate) fn part(&self, at: usize, len: usize) -> Span {
        assert!(at <= self.len && len <= self.len - at, "a part lies within its span");
        Span { ptr: self.ptr.wrapping_add(at), len }
    }

    /// Copies bytes from `at` into `to`.
    ///
    /// # Panics
    /// If the bytes are not within the span.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at <= self.len && to.len() <= self.len - at, "read within the span");
        // SAFETY: within the span by the assertion, readable by the contract of `new`; `to` is ours
        // alone, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.add(at), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` to the bytes at `at`.
    ///
    /// # Panics
    /// If the bytes are not within the span.
    pub fn write(&self, at: usize, from: &[u8]) {
        assert!(at <= self.len && from.len() <= self.len - at, "write within the span");
        // SAFETY: within the span by the assertion, writable by the contract of `new`; `from` is a
        // packet buffer, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.add(at), from.len()) }
    }
}

/// Where arriving bytes go. Implemented for [`Span`]; a carrier implements it for device memory.
pub trait WindowMemory: Send + Sync {
    /// The window's size in bytes.
    fn bytes(&self) -> u64;

    /// Puts verified bytes at `offset`. The connection calls it with `offset + bytes.len()` within
    /// [`WindowMemory::bytes`], in any order; a byte may come again before its message is whole,
    /// never after.
    ///
    /// # Errors
    /// If the memory cannot take bytes any more; the connection closes with that reason.
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<(), PlaceError>;
}

impl WindowMemory for Span {
    fn bytes(&self) -> u64 {
        self.len as u64
    }

    fn place(&self, offset: u64, bytes: &[u8]) -> Result<(), PlaceError> {
        self.write(offset as usize, bytes);
        Ok(())
    }
}

/// A message's bytes: spans one after another.
#[derive(Debug)]
pub(crate) struct Parts {
    spans: Vec<Span>,
    /// Where each span ends in the message; empty for a single one (most messages, no allocation).
    ends: Vec<u64>,
    bytes: u64,
}

impl Parts {
    pub(crate) fn new(spans: Vec<Span>) -> Self {
        let mut bytes = 0;
        let mut ends = Vec::new();
        if let [one] = spans.as_slice() {
            bytes = one.len as u64;
        } else {
            ends.extend(spans.iter().map(|span| {
                bytes += span.len as u64;
                bytes
            }));
        }
        Self { spans, ends, bytes }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn end(&self, part: usize) -> u64 {
        self.ends.get(part).copied().unwrap_or(self.bytes)
    }

    /// Copies the message's bytes from `at` into `to`, which must lie within the message.
    pub(crate) fn read(&self, at: u64, mut to: &mut [u8]) {
        for (_, _, piece) in self.pieces(at, to.len()) {
            let (head, rest) = to.split_at_mut(piece.len);
            piece.read(0, head);
            to = rest;
        }
    }

    /// Where `len` bytes of the message lie, from `at`: which span, where in it, and the piece.
    pub(crate) fn pieces(&self, at: u64, len: usize) -> impl Iterator<Item = (usize, usize, Span)> {
        let mut part = self.ends.partition_point(|&end| end <= at);
        let (mut at, mut left) = (at, len);
        std::iter::from_fn(move || {
            while left > 0 {
                let (this, span) = (part, &self.spans[part]);
                let within = (at - (self.end(part) - span.len as u64)) as usize;
                let here = left.min(span.len - within);
                left -= here;
                at += here as u64;
                part += 1;
                if here > 0 {
                    return Some((this, within, span.part(within, here)));
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(bytes: &mut [u8]) -> Span {
        // SAFETY: the test's vector outlives the span.
        unsafe { Span::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    #[test]
    fn parts_read_across_spans_and_empty_spans() {
        let (mut a, mut b) = (vec![1, 2, 3], vec![4, 5]);
        let parts = Parts::new(vec![span(&mut a), span(&mut []), span(&mut b)]);
        assert_eq!(parts.bytes(), 5);
        for at in 0..5_usize {
            let mut to = vec![0; 5 - at];
            parts.read(at as u64, &mut to);
            assert_eq!(to, [1, 2, 3, 4, 5][at..]);
        }
    }

    #[test]
    #[should_panic(expected = "write within the span")]
    fn a_span_refuses_bytes_beyond_its_end() {
        span(&mut [0; 4]).write(2, &[1, 2, 3]);
    }
}
