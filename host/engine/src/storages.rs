//! The storages that are alive in a session.

use genie_srg::{IdMap, Origin};
use genie_wire::record::StorageId;

use crate::SessionError;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage {
    pub(crate) bytes: u64,
    pub(crate) origin: Origin,
}

/// Live storages by id, and the bytes they were made with.
#[derive(Debug, Default)]
pub(crate) struct Storages {
    alive: IdMap<u64, Storage>,
    bytes: u64,
    max: u64,
}

impl Storages {
    pub(crate) fn new(max: u64) -> Self {
        Storages { max, ..Storages::default() }
    }

    pub(crate) fn count(&self) -> u64 {
        self.alive.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[inline]
    pub(crate) fn check(&self, id: StorageId) -> Result<(), SessionError> {
        if self.alive.contains_key(&id.0) {
            Ok(())
        } else {
            Err(SessionError::StorageNotAlive(id.0))
        }
    }

    pub(crate) fn get(&self, id: StorageId) -> Option<&Storage> {
        self.alive.get(&id.0)
    }

    #[inline]
    pub(crate) fn make(
        &mut self,
        id: StorageId,
        bytes: u64,
        origin: Origin,
    ) -> Result<(), SessionError> {
        if self.count() >= self.max {
            let (value, max) = (self.count() + 1, self.max);
            return Err(SessionError::Limit { what: "live storages", value, max });
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.alive.insert(id.0, Storage { bytes, origin });
        Ok(())
    }

    #[inline]
    pub(crate) fn free(&mut self, id: StorageId) -> Result<Storage, SessionError> {
        let freed = self.alive.remove(&id.0).ok_or(SessionError::StorageNotAlive(id.0))?;
        self.bytes = self.bytes.saturating_sub(freed.bytes);
        Ok(freed)
    }

    pub(crate) fn resize(&mut self, id: StorageId, bytes: u64) -> Result<(), SessionError> {
        let storage = self.alive.get_mut(&id.0).ok_or(SessionError::StorageNotAlive(id.0))?;
        self.bytes = self.bytes.saturating_sub(storage.bytes).saturating_add(bytes);
        storage.bytes = bytes;
        Ok(())
    }

    pub(crate) fn set_origin(&mut self, id: StorageId, origin: Origin) -> Result<(), SessionError> {
        let storage = self.alive.get_mut(&id.0).ok_or(SessionError::StorageNotAlive(id.0))?;
        storage.origin = origin;
        Ok(())
    }
}
