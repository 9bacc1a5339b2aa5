//! What arrives: bytes, descriptors and payload, record by record.

use std::os::fd::OwnedFd;
use std::time::Instant;

use genie_transport::transport::{Cause, Completion, Result, TransportError};

use super::greeting::refused;
use super::{CONTROL, DATA, Exchange, Stage};
use crate::lane::{Arriving, Span, Whole};
use crate::record::{Record, Write, protocol};

/// Descriptors that may have come and not yet belong to a record.
const DESCRIPTORS_MAX: usize = 4;

impl Exchange {
    /// Bytes arrived on a lane.
    pub fn feed(&mut self, lane: usize, mut bytes: &[u8], now: Instant) -> Result<()> {
        self.heard = now;
        self.counters.bytes_received += bytes.len() as u64;
        while !bytes.is_empty() && !self.peer_closed {
            let incoming = &mut self.lanes[lane].incoming;
            if incoming.chunk_left > 0 {
                let count = (incoming.chunk_left).min(bytes.len() as u64) as usize;
                let (payload, rest) = bytes.split_at(count);
                if let Some(to) = incoming.arriving.as_ref().and_then(Arriving::address) {
                    // SAFETY: the target holds what is left of the chunk, and `payload` is private
                    // memory.
                    unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), to, count) };
                }
                bytes = rest;
                self.payload_arrived(lane, count as u64);
                continue;
            }
            // A stranger gets no memory for frames.
            let frame_bytes_max = if self.stage == Stage::Open { self.frame_bytes_max } else { 0 };
            match incoming.take(&mut bytes, frame_bytes_max)? {
                None => {}
                Some(Whole::InPlace(head, body)) => {
                    self.on_record(lane, head.record(body)?, None)?;
                }
                Some(Whole::Collected(head, body)) => match head.record(&body)? {
                    Record::Frame { kind, beside, .. } => {
                        let frame = Record::Frame { kind, beside, body: &[] };
                        self.on_record(lane, frame, Some(body))?;
                    }
                    record => self.on_record(lane, record, None)?,
                },
            }
        }
        Ok(())
    }

    /// A descriptor arrived; it belongs to the next record that says so.
    pub fn feed_descriptor(&mut self, descriptor: OwnedFd) -> Result<()> {
        if self.sharing.is_none() || self.descriptors.len() >= DESCRIPTORS_MAX {
            return Err(protocol("more descriptors than any record has".into()));
        }
        self.descriptors.push_back(descriptor);
        Ok(())
    }

    /// Where payload that comes next on a lane belongs, if the carrier can put it there itself.
    pub fn direct(&self, lane: usize) -> Option<Span> {
        let incoming = &self.lanes[lane].incoming;
        if incoming.chunk_left == 0 {
            return None;
        }
        let address = incoming.arriving.as_ref()?.address()?;
        Some(Span { address, bytes: incoming.chunk_left as usize })
    }

    /// The carrier put `bytes` bytes at the place named by [`Exchange::direct`].
    pub fn placed_directly(&mut self, lane: usize, bytes: usize, now: Instant) {
        self.heard = now;
        self.counters.bytes_received += bytes as u64;
        self.payload_arrived(lane, bytes as u64);
    }

    fn on_record(
        &mut self,
        lane: usize,
        record: Record<'_>,
        collected: Option<Vec<u8>>,
    ) -> Result<()> {
        if lane == DATA && !matches!(record, Record::Lane | Record::Write(_) | Record::Data { .. })
        {
            return Err(protocol("a control record on its stream for payload".into()));
        }
        match (self.stage, record) {
            (Stage::Greeting, Record::Hello(hello)) => self.on_hello(hello),
            (_, Record::Lane) if lane == DATA => Ok(()),
            (Stage::Proving, Record::Proof(proof)) => self.on_proof(&proof),
            (Stage::Greeting | Stage::Proving, Record::Close { reason }) => {
                let reason = String::from_utf8_lossy(reason);
                let message = format!("the peer refused the connection: {reason}");
                Err(TransportError::new(Cause::Refused, message))
            }
            (Stage::Open, record) => self.on_open_record(lane, record, collected),
            (Stage::Greeting, _) => {
                Err(protocol("something before its greeting; it may be another program".into()))
            }
            (Stage::Proving, _) => {
                Err(refused("sent something before its proof that it may use this connection"))
            }
        }
    }

    fn on_open_record(
        &mut self,
        lane: usize,
        record: Record<'_>,
        collected: Option<Vec<u8>>,
    ) -> Result<()> {
        match record {
            Record::Frame { kind, beside, body } => {
                self.on_frame(kind, beside, collected.unwrap_or_else(|| body.to_vec()))
            }
            Record::Offer(offer) => self.on_offer(offer),
            Record::Withdraw { window, generation } => self.on_withdraw(window, generation),
            Record::Write(write) => self.on_write(lane, write),
            Record::Data { bytes } => self.on_data(lane, bytes),
            Record::Written { message } => self.on_written(message),
            Record::Dropped { message } => self.on_dropped(message),
            Record::Alive => Ok(()),
            Record::Close { reason } => {
                self.on_close(reason);
                Ok(())
            }
            Record::Hello(_) | Record::Proof(_) | Record::Lane => {
                Err(protocol("a second greeting".into()))
            }
        }
    }

    fn on_write(&mut self, lane: usize, write: Write) -> Result<()> {
        if lane != self.data_lane || write.done != self.sharing.is_some() {
            return Err(protocol("a message in a way that this transport has not".into()));
        }
        if self.lanes[lane].incoming.arriving.is_some() {
            return Err(protocol("a message inside another".into()));
        }
        if write.bytes > self.message_bytes_max {
            let (bytes, limit) = (write.bytes, self.message_bytes_max);
            return Err(protocol(format!("a message of {bytes} bytes, the limit is {limit}")));
        }
        let Write { window, generation, offset, bytes, .. } = write;
        let target = self.memories.target(window, generation, offset, bytes)?;
        let arriving = Arriving { write, done: 0, target };
        if write.done || bytes == 0 {
            self.arrived(arriving);
        } else {
            self.lanes[lane].incoming.arriving = Some(arriving);
        }
        Ok(())
    }

    fn on_data(&mut self, lane: usize, bytes: u32) -> Result<()> {
        let incoming = &mut self.lanes[lane].incoming;
        match &incoming.arriving {
            Some(open) if u64::from(bytes) <= open.write.bytes - open.done => {
                incoming.chunk_left = bytes.into();
                Ok(())
            }
            Some(_) => Err(protocol("more payload than its message has".into())),
            None => Err(protocol("payload of no message".into())),
        }
    }

    fn payload_arrived(&mut self, lane: usize, bytes: u64) {
        let incoming = &mut self.lanes[lane].incoming;
        incoming.chunk_left -= bytes;
        let arriving = incoming.arriving.as_mut().expect("payload belongs to a message");
        arriving.done += bytes;
        if arriving.done == arriving.write.bytes {
            let arriving = incoming.arriving.take().expect("seen above");
            self.arrived(arriving);
        }
    }

    fn arrived(&mut self, arriving: Arriving) {
        let Write { message, window, offset, bytes, .. } = arriving.write;
        let answer = match arriving.target {
            Some(_) => {
                self.counters.messages_placed += 1;
                let placed = Completion::Placed { message, window, offset, bytes };
                self.completions.push_back(placed);
                Record::Written { message }
            }
            None => Record::Dropped { message },
        };
        answer.encode(self.lanes[CONTROL].record(None));
    }

    pub(super) fn take_descriptor(&mut self) -> Result<OwnedFd> {
        self.descriptors
            .pop_front()
            .ok_or_else(|| protocol("a record without the memory it announces".into()))
    }
}
