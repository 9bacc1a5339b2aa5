//! Payloads: uploads by content hash, in the tape or through the upload region; downloads in the
//! reply or through the download region.

use std::collections::VecDeque;

use genie_transport::SharedMemory;
use genie_wire::control::WantedWeight;
use genie_wire::limits::INLINE_BYTES_MAX;
use genie_wire::record::{RegionSpan, WeightHash};
use genie_wire::{PROTOCOL_WANTED, Reply, StorageId};

use crate::client::core::{Answer, Core, DOWNLOAD_REGION, Leftover, UPLOAD_REGION};
use crate::client::limits::{
    CHUNK_BYTES, DOWNLOAD_SLOTS, INLINE_UPLOAD_BYTES_MAX, SIGHT_BYTES_MIN, WEIGHT_BYTES_MIN,
};
use crate::client::session::{Session, lock};
use crate::client::sights::{Look, Sample};
use crate::client::weights::{self, Known};
use crate::client::{ClientError, Pause};

/// The upload region as a ring. Positions count bytes since the session began; the host's
/// `Released` messages, which come in order, move the tail.
///
/// Invariant: records name spans in the order the ring gave them out (the ring's lock is held
/// from the reservation to the record).
pub(super) struct UploadRing {
    memory: Option<SharedMemory>,
    bytes: u64,
    head: u64,
}

impl UploadRing {
    pub fn new(memory: SharedMemory) -> Self {
        let bytes = memory.bytes();
        UploadRing { memory: Some(memory), bytes, head: 0 }
    }

    pub fn close(&mut self) {
        self.memory = None;
    }

    /// The next contiguous span: offset and length, at most `len` and a quarter of the ring, so
    /// that filling, sending and consuming overlap.
    fn next_span(&self, len: u64) -> (u64, u64) {
        let offset = self.head % self.bytes;
        let step = len.min(CHUNK_BYTES).min(self.bytes / 4).min(self.bytes - offset);
        (offset, step)
    }
}

/// The download region, cut in slots.
pub(super) struct Download {
    memory: Option<SharedMemory>,
    slot_bytes: u64,
}

impl Download {
    pub fn new(memory: SharedMemory) -> Self {
        let slot_bytes = CHUNK_BYTES.min(memory.bytes() / DOWNLOAD_SLOTS);
        Download { memory: Some(memory), slot_bytes }
    }

    pub fn close(&mut self) {
        self.memory = None;
    }
}

/// What an upload brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Some bytes of a storage.
    Part,
    /// All of a storage, so the node may have it already.
    Whole,
    /// All of a storage, and a parameter: the node shall know it the next time.
    Weight,
}

/// Memory for an upload that travels inside the tape, aligned as tensors are.
#[repr(align(64))]
struct Aligned([u8; INLINE_UPLOAD_BYTES_MAX as usize]);

/// One step of a download in flight.
struct Step {
    token: u64,
    slot: u32,
    at: usize,
    len: usize,
}

impl Session {
    /// Copies `from` into a storage at `offset`; returns after it was read.
    pub fn upload(
        &self,
        id: u64,
        offset: u64,
        from: &[u8],
        content: Content,
    ) -> Result<(), ClientError> {
        if from.is_empty() {
            return Ok(());
        }
        let len = from.len() as u64;
        let mut pause = Pause::new(self.hooks);
        if len > INLINE_UPLOAD_BYTES_MAX {
            pause.enter();
        }
        if content == Content::Part || self.welcome().protocol < PROTOCOL_WANTED {
            return self.upload_payload(id, offset, from, content != Content::Part, &mut pause);
        }
        let moving = weights::is_moving();
        let announced = if moving { self.announced(from, &mut pause)? } else { None };
        if let Some(Known { hash, held_by }) = announced {
            return match held_by {
                Some(held_by) => {
                    let mut core = self.lock();
                    core.tape.bind_weight(StorageId(id), &hash);
                    core.note_upload(id, true);
                    core.free(held_by);
                    core.count_bound(len);
                    Ok(())
                }
                None => self.upload_weight(id, from, &hash, &mut pause),
            };
        }
        let is_weight = moving || content == Content::Weight;
        let Some(hash) = self.hash_worth_asking(from, is_weight) else {
            return self.upload_payload(id, offset, from, true, &mut pause);
        };
        let wanted = WantedWeight { storage: id, bytes: len, hash: hash.to_vec() };
        let found = self.ask_for_weights(vec![wanted], Leftover::Nothing, &mut pause)?;
        if found == [true] {
            let mut core = self.lock();
            core.note_bound(id);
            core.count_bound(len);
            return Ok(());
        }
        self.upload_weight(id, from, &hash, &mut pause)
    }

    /// The hash of what the node may know or shall learn: a weight, or content that came before.
    fn hash_worth_asking(&self, from: &[u8], is_weight: bool) -> Option<WeightHash> {
        let len = from.len() as u64;
        if is_weight {
            return (len > INLINE_UPLOAD_BYTES_MAX).then(|| blake3::hash(from).into());
        }
        if len < SIGHT_BYTES_MIN {
            return None;
        }
        let sample = Sample::of(from);
        if self.lock().sights.look(sample) == Look::New {
            return None;
        }
        let hash = blake3::hash(from).into();
        self.lock().sights.is_worth_asking(sample, hash).then_some(hash)
    }

    /// Uploads all of a storage, for the node to keep as a weight. The bytes are read again here:
    /// if another thread changed them since they were hashed, the node keeps them for this storage
    /// alone.
    fn upload_weight(
        &self,
        id: u64,
        from: &[u8],
        hash: &WeightHash,
        pause: &mut Pause,
    ) -> Result<(), ClientError> {
        self.upload_payload(id, 0, from, true, pause)?;
        let mut core = self.lock();
        core.tape.store_weight(StorageId(id), hash);
        core.note_upload(id, true);
        Ok(())
    }

    fn upload_payload(
        &self,
        id: u64,
        offset: u64,
        from: &[u8],
        whole: bool,
        pause: &mut Pause,
    ) -> Result<(), ClientError> {
        let len = from.len() as u64;
        if len > INLINE_UPLOAD_BYTES_MAX {
            return self.upload_through_ring(id, offset, from, whole, pause);
        }
        self.wait(pause, None, |core| (!core.is_congested()).then_some(()))?;
        let mut core = self.lock();
        core.live()?;
        // Through aligned memory: where another thread writes the source, each element comes over as
        // it was before or after, for no load lies across one.
        let mut staged = Aligned([0; INLINE_UPLOAD_BYTES_MAX as usize]);
        let staged = &mut staged.0[..from.len()];
        staged.copy_from_slice(from);
        core.tape.upload_inline(StorageId(id), offset, staged);
        core.note_upload(id, whole);
        if len >= WEIGHT_BYTES_MIN {
            core.counters.payload_bytes_up += len;
        }
        if core.is_due() {
            core.send_tape();
        }
        Ok(())
    }

    fn upload_through_ring(
        &self,
        id: u64,
        offset: u64,
        from: &[u8],
        whole: bool,
        pause: &mut Pause,
    ) -> Result<(), ClientError> {
        pause.enter();
        let mut ring = lock(&self.upload);
        let mut rest = from;
        let mut at = offset;
        while !rest.is_empty() {
            let (span, step) = ring.next_span(rest.len() as u64);
            let (head, bytes) = (ring.head, ring.bytes);
            self.wait(pause, None, |core| (head + step <= core.released + bytes).then_some(()))?;
            let (now, later) = rest.split_at(step as usize);
            let Some(memory) = &ring.memory else {
                return self.lock().live();
            };
            memory.write(span, now).map_err(|error| ClientError::protocol(error.to_string()))?;
            let source = RegionSpan { region: UPLOAD_REGION, offset: span };
            let mut core = self.lock();
            core.live()?;
            core.tape.upload(StorageId(id), at, step, source);
            core.note_upload(id, whole);
            core.counters.payload_bytes_up += step;
            core.send_tape();
            drop(core);
            ring.head += step;
            at += step;
            rest = later;
        }
        Ok(())
    }

    /// Copies bytes of a storage, from `offset` on, into `to`.
    pub fn read(&self, id: u64, offset: u64, to: &mut [u8]) -> Result<(), ClientError> {
        if to.is_empty() {
            return Ok(());
        }
        if to.len() > INLINE_BYTES_MAX {
            return self.read_through_region(id, offset, to);
        }
        let token = {
            let mut core = self.lock_to_ask(Core::may_ask, None)?;
            let token = core.open_token();
            core.tape.read(token, StorageId(id), offset, to.len() as u64, None);
            core.send_tape();
            token
        };
        self.reply(token, Leftover::Nothing, |reply| match reply {
            Reply::Bytes(bytes) if bytes.len() == to.len() => {
                to.copy_from_slice(bytes);
                Some(())
            }
            _ => None,
        })?;
        self.lock().counters.payload_bytes_down += to.len() as u64;
        Ok(())
    }

    fn read_through_region(&self, id: u64, offset: u64, to: &mut [u8]) -> Result<(), ClientError> {
        let mut pause = Pause::new(self.hooks);
        pause.enter();
        let download = lock(&self.download);
        let mut steps = VecDeque::new();
        let result = self.read_steps(id, offset, to, &download, &mut steps, &mut pause);
        // After an error: late answers give their slots back.
        let mut core = self.lock();
        for step in steps {
            core.abandon(step.token, Leftover::Slot(step.slot));
        }
        if result.is_ok() {
            core.counters.payload_bytes_down += to.len() as u64;
        }
        result
    }

    fn read_steps(
        &self,
        id: u64,
        offset: u64,
        to: &mut [u8],
        download: &Download,
        steps: &mut VecDeque<Step>,
        pause: &mut Pause,
    ) -> Result<(), ClientError> {
        let Some(memory) = &download.memory else {
            return self.lock().live();
        };
        let mut asked = 0;
        while asked < to.len() || !steps.is_empty() {
            if asked < to.len() && steps.len() < DOWNLOAD_SLOTS as usize {
                let wanted = (to.len() - asked).min(download.slot_bytes as usize);
                if let Some(step) = self.ask_for_step(id, offset, asked, wanted, download) {
                    steps.push_back(step);
                    asked += wanted;
                    continue;
                }
            }
            let Some(step) = steps.front() else {
                // Answers that an interrupted read left behind still own every slot.
                let all = (1u64 << DOWNLOAD_SLOTS) - 1;
                let free = |core: &mut Core| core.busy_slots != all && core.may_ask();
                self.wait(pause, None, |core| free(core).then_some(()))?;
                continue;
            };
            let answer = self.wait(pause, None, |core| core.take_answer(step.token))?;
            let Answer::Reply(body) = answer else {
                return Err(ClientError::protocol(
                    "the host answered a read with a control message",
                ));
            };
            let step = steps.pop_front().expect("it was looked at above");
            let mut core = self.lock();
            core.counters.round_trips += 1;
            let done = super::session::done(&body);
            if done.is_ok() {
                drop(core);
                let target = &mut to[step.at..step.at + step.len];
                memory
                    .read(u64::from(step.slot) * download.slot_bytes, target)
                    .map_err(|error| ClientError::protocol(error.to_string()))?;
                core = self.lock();
            }
            core.busy_slots &= !(1 << step.slot);
            drop(core);
            done.map_err(|error| self.noting_loss(error))?;
        }
        Ok(())
    }

    /// Asks for the next step, if a slot is free.
    fn ask_for_step(
        &self,
        id: u64,
        offset: u64,
        at: usize,
        len: usize,
        download: &Download,
    ) -> Option<Step> {
        let mut core = self.lock();
        let slot = core.busy_slots.trailing_ones();
        if u64::from(slot) >= DOWNLOAD_SLOTS || !core.may_ask() {
            return None;
        }
        core.busy_slots |= 1 << slot;
        let token = core.open_token();
        let dest =
            RegionSpan { region: DOWNLOAD_REGION, offset: u64::from(slot) * download.slot_bytes };
        core.tape.read(token, StorageId(id), offset + at as u64, len as u64, Some(dest));
        core.send_tape();
        Some(Step { token, slot, at, len })
    }
}
