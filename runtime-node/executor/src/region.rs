//! The shared memory that a session's payloads pass through.

use genie_transport::{MemoryError, SharedMemory};

use crate::pinned::Pinned;
use crate::{Backend, Failure};

/// Where a device does not reach the peer's memory, bytes pass through private memory in pieces
/// of this size.
const BOUNCE_BYTES: usize = 1 << 20;

/// Memory shared with the peer, pinned for the device where that helps.
pub(crate) struct Region {
    /// Before the memory, so that it ends first.
    _pinned: Option<Pinned>,
    memory: SharedMemory,
}

impl Region {
    pub(crate) fn new<B: Backend>(memory: SharedMemory, backend: &B) -> Self {
        Region { _pinned: backend.pin(&memory), memory }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Whether a range lies inside.
    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<(), MemoryError> {
        self.memory.span(offset, len).map(drop)
    }

    /// Copies from here into a storage. The ranges were checked on both sides.
    pub(crate) fn upload<B: Backend>(
        &self,
        from: u64,
        len: u64,
        backend: &B,
        storage: &mut B::Storage,
        offset: u64,
    ) -> Result<(), Failure> {
        if let Some(bytes) = backend.slice_mut(storage) {
            let to = &mut bytes[offset as usize..(offset + len) as usize];
            return Ok(self.memory.read(from, to)?);
        }
        if let Some(done) = backend.copy_in_shared(storage, offset, &self.memory, from, len) {
            return done;
        }
        for_chunks(len, |at, chunk| {
            self.memory.read(from + at, chunk)?;
            backend.copy_in(storage, offset + at, chunk)
        })
    }

    /// Copies from a storage to here. The ranges were checked on both sides.
    pub(crate) fn download<B: Backend>(
        &self,
        to: u64,
        len: u64,
        backend: &B,
        storage: &B::Storage,
        offset: u64,
    ) -> Result<(), Failure> {
        if let Some(bytes) = backend.slice(storage) {
            let from = &bytes[offset as usize..(offset + len) as usize];
            return Ok(self.memory.write(to, from)?);
        }
        if let Some(done) = backend.copy_out_shared(storage, offset, &self.memory, to, len) {
            return done;
        }
        for_chunks(len, |at, chunk| {
            backend.copy_out(storage, offset + at, chunk)?;
            Ok(self.memory.write(to + at, chunk)?)
        })
    }
}

/// Calls `copy` with a buffer for each piece of `len` bytes.
pub(crate) fn for_chunks(
    len: u64,
    mut copy: impl FnMut(u64, &mut [u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; BOUNCE_BYTES.min(len as usize)];
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(BOUNCE_BYTES as u64);
        copy(at, &mut buffer[..piece as usize])?;
        at += piece;
    }
    Ok(())
}
