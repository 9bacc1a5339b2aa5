//! The storages of one session, by id.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use genie_wire::limits::STORAGES_MAX;
use genie_wire::record::WeightHash;
use genie_wire::{ErrorCode, StorageId};

use crate::weights::{Holdings, Weight};
use crate::{Backend, Failure, SessionError};

/// One storage.
pub(crate) enum Slot<S> {
    /// Promised, not made yet: nobody wrote or read it.
    Unallocated { bytes: u64 },
    /// The session's own. `bytes` are in the ledger.
    Live { storage: S, bytes: u64 },
    /// A stored weight, to be copied before the first write.
    Shared(Arc<Weight<S>>),
    /// What should have been here failed.
    Poisoned(Arc<Failure>),
}

/// All storages of a session.
///
/// Invariant: the ledger holds the bytes of every `Live` slot, and counts every slot.
pub(crate) struct Storages<S> {
    slots: HashMap<u64, Slot<S>, BuildHasherDefault<IdHasher>>,
}

impl<S> Storages<S> {
    pub(crate) fn new() -> Self {
        Storages { slots: HashMap::default() }
    }

    #[inline]
    pub(crate) fn get(&self, id: StorageId) -> Option<&Slot<S>> {
        self.slots.get(&id.0)
    }

    /// The bytes of a storage, for an operator to read (or to write, when it is not shared).
    #[inline]
    pub(crate) fn content(&self, id: StorageId) -> Option<&S> {
        match self.slots.get(&id.0)? {
            Slot::Live { storage, .. } => Some(storage),
            Slot::Shared(weight) => Some(&weight.storage),
            Slot::Unallocated { .. } | Slot::Poisoned(_) => None,
        }
    }

    /// The size in bytes; `None` for a storage that is poisoned or does not exist.
    pub(crate) fn bytes(&self, id: StorageId) -> Option<u64> {
        match self.slots.get(&id.0)? {
            Slot::Unallocated { bytes } | Slot::Live { bytes, .. } => Some(*bytes),
            Slot::Shared(weight) => Some(weight.bytes),
            Slot::Poisoned(_) => None,
        }
    }

    /// Puts a storage in a place, releasing what was there.
    pub(crate) fn put(
        &mut self,
        id: StorageId,
        slot: Slot<S>,
        holdings: &mut Holdings<S>,
    ) -> Result<(), SessionError> {
        if self.slots.len() >= STORAGES_MAX && !self.slots.contains_key(&id.0) {
            return Err(SessionError::TooMany { what: "storages", max: STORAGES_MAX as u64 });
        }
        if let Slot::Live { bytes, .. } = slot {
            holdings.ledger.charge(bytes);
        }
        match self.slots.insert(id.0, slot) {
            None => holdings.ledger.storages += 1,
            Some(before) => discharge(before, holdings),
        }
        Ok(())
    }

    /// Whether there was such a storage.
    #[inline]
    pub(crate) fn remove(&mut self, id: StorageId, holdings: &mut Holdings<S>) -> bool {
        let Some(slot) = self.slots.remove(&id.0) else {
            return false;
        };
        holdings.ledger.storages -= 1;
        discharge(slot, holdings);
        true
    }

    pub(crate) fn clear(&mut self, holdings: &mut Holdings<S>) {
        holdings.ledger.storages -= self.slots.len() as u64;
        for (_, slot) in self.slots.drain() {
            discharge(slot, holdings);
        }
    }

    /// Makes a promised storage real.
    pub(crate) fn materialize<B: Backend<Storage = S>>(
        &mut self,
        id: StorageId,
        backend: &B,
        holdings: &mut Holdings<S>,
    ) -> Result<(), Failure> {
        if let Some(slot @ Slot::Unallocated { .. }) = self.slots.get_mut(&id.0) {
            let Slot::Unallocated { bytes } = *slot else { unreachable!("matched above") };
            *slot = fresh(bytes, backend, holdings)?;
        }
        Ok(())
    }

    /// Makes a storage real and the session's own, so that it may be written. With `overwrite`
    /// its bytes need not survive.
    pub(crate) fn own<B: Backend<Storage = S>>(
        &mut self,
        id: StorageId,
        overwrite: bool,
        backend: &B,
        holdings: &mut Holdings<S>,
    ) -> Result<&mut S, Failure> {
        let slot = self.slots.get_mut(&id.0).ok_or_else(gone)?;
        let owned = match slot {
            Slot::Live { .. } => None,
            Slot::Unallocated { bytes } => Some(fresh(*bytes, backend, holdings)?),
            Slot::Shared(weight) if overwrite => Some(fresh(weight.bytes, backend, holdings)?),
            Slot::Shared(weight) => {
                holdings.room(weight.bytes)?;
                let storage = holdings.taking(|| backend.duplicate(&weight.storage))?;
                holdings.ledger.charge(weight.bytes);
                Some(Slot::Live { storage, bytes: weight.bytes })
            }
            Slot::Poisoned(failure) => return Err(failure.as_ref().clone()),
        };
        if let Some(owned) = owned {
            discharge(std::mem::replace(slot, owned), holdings);
        }
        match slot {
            Slot::Live { storage, .. } => Ok(storage),
            _ => Err(gone()),
        }
    }

    /// Changes the size, keeping the bytes that fit.
    pub(crate) fn resize<B: Backend<Storage = S>>(
        &mut self,
        id: StorageId,
        bytes: u64,
        backend: &B,
        holdings: &mut Holdings<S>,
    ) -> Result<(), Failure> {
        if let Some(Slot::Unallocated { bytes: promised }) = self.slots.get_mut(&id.0) {
            *promised = bytes;
            return Ok(());
        }
        let before = self.bytes(id).unwrap_or(0);
        let storage = self.own(id, false, backend, holdings)?;
        holdings.room(bytes.saturating_sub(before))?;
        holdings.taking(|| backend.resize(storage, bytes))?;
        self.recount(id, backend, holdings);
        Ok(())
    }

    /// Brings the ledger up to date with a storage that an operator may have resized.
    pub(crate) fn recount<B: Backend<Storage = S>>(
        &mut self,
        id: StorageId,
        backend: &B,
        holdings: &mut Holdings<S>,
    ) {
        if let Some(Slot::Live { storage, bytes }) = self.slots.get_mut(&id.0) {
            let now = backend.bytes(storage);
            if now != *bytes {
                holdings.ledger.release(*bytes);
                holdings.ledger.charge(now);
                *bytes = now;
            }
        }
    }

    /// Turns a session's own storage into a stored weight that it keeps holding; `shelved` is its
    /// content in memory that other clients map too.
    pub(crate) fn share(
        &mut self,
        id: StorageId,
        hash: WeightHash,
        shelved: Option<S>,
        holdings: &mut Holdings<S>,
    ) {
        if !matches!(self.slots.get(&id.0), Some(Slot::Live { .. })) {
            return;
        }
        let Some(Slot::Live { storage, bytes }) = self.slots.remove(&id.0) else {
            return;
        };
        // The ledger's charge passes on to the weight.
        let account = holdings.ledger.current();
        let is_shelved = shelved.is_some();
        let storage = shelved.unwrap_or(storage);
        let weight = Arc::new(Weight { storage, bytes, hash, account, shelved: is_shelved });
        holdings.store(&weight);
        self.slots.insert(id.0, Slot::Shared(weight));
    }
}

fn fresh<B: Backend>(
    bytes: u64,
    backend: &B,
    holdings: &mut Holdings<B::Storage>,
) -> Result<Slot<B::Storage>, Failure> {
    holdings.room(bytes)?;
    let storage = holdings.taking(|| backend.allocate(bytes))?;
    holdings.ledger.charge(bytes);
    Ok(Slot::Live { storage, bytes })
}

fn discharge<S>(slot: Slot<S>, holdings: &mut Holdings<S>) {
    match slot {
        Slot::Live { bytes, .. } => holdings.ledger.release(bytes),
        Slot::Shared(weight) => holdings.release(weight),
        Slot::Unallocated { .. } | Slot::Poisoned(_) => {}
    }
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Runtime, "the storage vanished while it was prepared")
}

/// Ids are dense and chosen by the writer's counter: one multiplication spreads them.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}
