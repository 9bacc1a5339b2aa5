//! Frames, and what is held back until the connection stands.

use std::os::fd::{BorrowedFd, OwnedFd};

use genie_transport::transport::{
    Cause, Completion, FRAME_QUEUE_BYTES_MAX, Result, TransportError,
};

use super::{CONTROL, Exchange};
use crate::memory::invalid;
use crate::record::Record;

impl Exchange {
    pub fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.usable()?;
        if memory.is_some() && self.sharing.is_none() {
            return Err(TransportError::unsupported(self.transport, "way to pass memory on"));
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let limit = self
            .peer
            .map_or(self.frame_bytes_max, |peer| peer.frame_bytes_max.min(self.frame_bytes_max));
        if bytes as u64 > limit {
            return Err(invalid(format!("a frame of {bytes} bytes, the limit is {limit}")));
        }
        let queued = self.queued_bytes();
        if queued > 0 && queued + bytes > FRAME_QUEUE_BYTES_MAX {
            self.wants_frames = true;
            let message = format!(
                "{queued} bytes of frames already wait for the peer (limit \
                 {FRAME_QUEUE_BYTES_MAX}); try again when the connection is writable"
            );
            return Err(TransportError::new(Cause::OutOfCredit, message));
        }
        let memory = memory.map(|fd| fd.try_clone_to_owned()).transpose().map_err(|error| {
            TransportError::new(Cause::Io, format!("duplicate the descriptor of memory: {error}"))
        })?;
        self.counters.frames_sent += 1;
        if self.is_open() {
            let beside = memory.is_some();
            let out = self.lanes[CONTROL].record(memory);
            Record::encode_frame(kind, beside, parts, out);
        } else {
            let mut out = Vec::new();
            Record::encode_frame(kind, memory.is_some(), parts, &mut out);
            self.hold(out, memory);
        }
        Ok(())
    }

    pub fn queued_bytes(&self) -> usize {
        self.held_bytes + self.lanes[CONTROL].queued()
    }

    pub(super) fn on_frame(&mut self, kind: u8, beside: bool, body: Vec<u8>) -> Result<()> {
        let memory = match beside {
            true => Some(self.take_descriptor()?),
            false => None,
        };
        self.counters.frames_received += 1;
        self.arrived_bytes += body.len();
        self.completions.push_back(Completion::Frame { kind, body, memory });
        Ok(())
    }

    pub(super) fn post(&mut self, record: Record<'_>, beside: Option<OwnedFd>) {
        if self.is_open() {
            record.encode(self.lanes[CONTROL].record(beside));
        } else {
            let mut out = Vec::new();
            record.encode(&mut out);
            self.hold(out, beside);
        }
    }

    fn hold(&mut self, record: Vec<u8>, beside: Option<OwnedFd>) {
        self.held_bytes += record.len();
        self.held.push_back((record, beside));
    }
}
