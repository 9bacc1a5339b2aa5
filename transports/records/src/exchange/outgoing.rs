//! What leaves: records, payload in chunks, and copies into shared memory.

use std::time::Instant;

use genie_transport::transport::{Completion, FRAME_QUEUE_BYTES_MAX, Part, Result};

use super::{CONTROL, Exchange};
use crate::lane::{Outgoing, Span};
use crate::record::{Record, Write};

/// Payload that is sent before waiting frames get their turn.
const CHUNK_BYTES: u64 = 512 << 10;
/// Messages up to this size are copied behind the records, so that many leave in one call.
const INLINE_BYTES: u64 = 4 << 10;
/// Records and inline payload that are put together at a time.
const GATHER_BYTES: usize = 64 << 10;
/// Bytes copied into shared memory in one step.
const COPY_BYTES: usize = 256 << 10;
/// Bytes copied into shared memory in one call.
const COPY_BUDGET_BYTES: usize = 4 << 20;

/// The message that is being sent.
pub(super) struct Sending {
    message: u64,
    write: Write,
    /// The next byte: which part, and where in it.
    part: usize,
    part_offset: u64,
    left: u64,
}

impl Exchange {
    /// What to send next on a lane; nothing to send has 0 bytes.
    pub fn outgoing(&mut self, lane: usize) -> Result<Outgoing<'_>> {
        if lane == self.data_lane && self.is_open() && self.failure.is_none() {
            match self.sharing.is_some() {
                true => self.copy_shared()?,
                false => self.open_chunk(),
            }
        }
        let left = self.lanes[lane].chunk.as_ref().map(|chunk| chunk.left);
        self.spans.clear();
        if let (Some(left), Some(sending)) = (left, &self.sending) {
            let (mut left, mut part_offset) = (left, sending.part_offset);
            for part in &self.messages[&sending.message].parts[sending.part..] {
                let bytes = (part.bytes - part_offset).min(left);
                if bytes > 0 {
                    let from = Part { offset: part.offset + part_offset, ..*part };
                    let address = self.memories.address(&from);
                    self.spans.push(Span { address, bytes: bytes as usize });
                }
                left -= bytes;
                part_offset = 0;
                if left == 0 {
                    break;
                }
            }
        }
        let (records, beside, whole) = self.lanes[lane].records();
        Ok(Outgoing { records, beside, payload: if whole { &self.spans } else { &[] } })
    }

    /// Whether [`Exchange::outgoing`] would have something on some lane.
    pub fn wants_to_send(&self) -> bool {
        self.lanes.iter().any(|lane| lane.queued() > 0 || lane.chunk.is_some())
            || (self.is_open()
                && !self.closing
                && self.failure.is_none()
                && (self.sending.is_some() || !self.ready.is_empty()))
    }

    /// The carrier took `bytes` bytes of what was named.
    pub fn advance(&mut self, lane: usize, bytes: usize, now: Instant) {
        if bytes > 0 {
            self.sent = now;
            self.counters.bytes_sent += bytes as u64;
        }
        let payload = self.lanes[lane].advance(bytes);
        if payload > 0 {
            let sending = self.sending.as_mut().expect("payload belongs to a message");
            sending.left -= payload;
            let mut payload = payload;
            let parts = &self.messages[&sending.message].parts;
            while payload > 0 {
                let step = (parts[sending.part].bytes - sending.part_offset).min(payload);
                sending.part_offset += step;
                payload -= step;
                if sending.part_offset == parts[sending.part].bytes {
                    sending.part += 1;
                    sending.part_offset = 0;
                }
            }
            if sending.left == 0 {
                let message = sending.message;
                self.sending = None;
                self.mark_sent(message);
            }
        }
        if self.wants_frames && self.queued_bytes() <= FRAME_QUEUE_BYTES_MAX / 2 {
            self.wants_frames = false;
            self.completions.push_back(Completion::Writable);
        }
    }

    /// Puts small messages behind the records, and opens the next chunk of a large one.
    fn open_chunk(&mut self) {
        let lane = self.data_lane;
        while self.lanes[lane].chunk.is_none() && self.lanes[lane].queued() < GATHER_BYTES {
            if self.sending.is_none() {
                let Some((message, write)) = self.next_message() else { return };
                let out = self.lanes[lane].record(None);
                Record::Write(write).encode(out);
                if write.bytes == 0 {
                    self.mark_sent(message);
                    continue;
                }
                if write.bytes <= INLINE_BYTES {
                    Record::Data { bytes: write.bytes as u32 }.encode(out);
                    for part in &self.messages[&message].parts {
                        // SAFETY: the part was checked to lie inside its memory, which is held.
                        unsafe { append(out, self.memories.address(part), part.bytes as usize) };
                    }
                    self.mark_sent(message);
                    continue;
                }
                let left = write.bytes;
                self.sending = Some(Sending { message, write, part: 0, part_offset: 0, left });
            }
            if self.closing {
                return;
            }
            let sending = self.sending.as_ref().expect("set above");
            let bytes = sending.left.min(CHUNK_BYTES);
            Record::Data { bytes: bytes as u32 }.encode(self.lanes[lane].record(None));
            self.lanes[lane].open_chunk(bytes);
        }
    }

    /// Copies messages into windows that both ends have mapped.
    fn copy_shared(&mut self) -> Result<()> {
        let mut budget = COPY_BUDGET_BYTES;
        let mut sharing = self.sharing.take().expect("asked by the caller");
        let copied = loop {
            if self.sending.is_none() {
                let Some((message, write)) = self.next_message() else { break Ok(()) };
                let left = write.bytes;
                self.sending = Some(Sending { message, write, part: 0, part_offset: 0, left });
            }
            let Sending { message, write, mut part, mut part_offset, mut left } =
                self.sending.take().expect("set above");
            let parts = &self.messages[&message].parts;
            let mut outcome = Ok(true);
            while left > 0 && budget > 0 && matches!(outcome, Ok(true)) {
                let from = parts[part];
                let rest = (from.bytes - part_offset).min(COPY_BYTES.min(budget) as u64);
                if rest == 0 {
                    (part, part_offset) = (part + 1, 0);
                    continue;
                }
                let at = Part { offset: from.offset + part_offset, ..from };
                let span = Span { address: self.memories.address(&at), bytes: rest as usize };
                let offset = write.offset + (write.bytes - left);
                outcome = sharing.copy(write.generation, offset, span);
                budget -= rest as usize;
                part_offset += rest;
                left -= rest;
            }
            match outcome {
                Err(error) => break Err(error),
                // Withdrawn: the record that says so is on its way.
                Ok(false) => self.waiting.entry(write.window).or_default().push_back(message),
                Ok(true) if left == 0 => {
                    self.counters.bytes_sent += write.bytes;
                    Record::Write(write).encode(self.lanes[CONTROL].record(None));
                    self.mark_sent(message);
                }
                Ok(true) => {
                    self.sending = Some(Sending { message, write, part, part_offset, left });
                    break Ok(());
                }
            }
        };
        self.sharing = Some(sharing);
        copied
    }
}

/// Appends `bytes` bytes at `from`.
///
/// # Safety
/// `from` must be valid for reads of `bytes` bytes, and not lie in `out`.
unsafe fn append(out: &mut Vec<u8>, from: *const u8, bytes: usize) {
    out.reserve(bytes);
    // SAFETY: room was reserved; the caller vouches for the source; after the copy the bytes up to
    // the new length are initialised.
    unsafe {
        std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().add(out.len()), bytes);
        out.set_len(out.len() + bytes);
    }
}
