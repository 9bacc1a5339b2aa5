//! What a session ran since its trace was reset, bounded: the ground of explanations.

use std::sync::Arc;

use genie_srg::{IdMap, Noted, Origin};
use genie_wire::record::StorageId;
use genie_wire::template::OutputSpec;

use crate::fold::{Fold, Noting};
use crate::storages::{Storage, Storages};

/// Records kept since the last reset; what comes later is counted only.
pub const HISTORY_RECORDS_MAX: usize = 1 << 14;
/// Operands of all kept records: a record that joins thousands of tensors weighs as much as its list.
pub const HISTORY_OPERANDS_MAX: usize = 1 << 20;
/// Freed storages whose origin is remembered.
const FREED_MAX: usize = 1 << 16;
/// Records before a new segment that are analyzed together with it.
pub const CONTEXT_RECORDS_MAX: usize = 1 << 11;

/// Segments that may have ended while a synchronous operator was under way.
const RUN_LOOK_BACK: usize = 8;

/// What a session knows of a storage, alive or freed since the reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownStorage {
    pub bytes: u64,
    pub origin: Origin,
    pub alive: bool,
}

/// Segments to be analyzed together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub segments: Vec<Arc<Noted>>,
    /// How often each of them ran: repeats are kept once.
    pub times: Vec<u32>,
    /// The storages that the segments touch.
    pub storages: IdMap<u64, KnownStorage>,
    /// Whether the history was full before the program got here.
    pub truncated: bool,
}

/// The segments since the last reset.
#[derive(Debug, Default)]
pub struct History {
    segments: Vec<Arc<Noted>>,
    times: Vec<u32>,
    fold: Fold,
    records: usize,
    operands: usize,
    truncated: bool,
    freed: IdMap<u64, Storage>,
    /// At so many freed storages those that nothing names are forgotten.
    freed_room: usize,
}

impl History {
    pub(crate) fn reset(&mut self) {
        *self = History::default();
    }

    /// Whether the next segment is kept.
    pub(crate) fn has_room(&self) -> bool {
        !self.truncated
            && self.records < HISTORY_RECORDS_MAX
            && self.operands < HISTORY_OPERANDS_MAX
    }

    /// A segment was not kept: from here on nothing is.
    pub(crate) fn truncate(&mut self) {
        self.truncated = true;
    }

    /// Keeps a finished segment, or counts it as one of a repeat.
    pub(crate) fn note(&mut self, noted: Arc<Noted>) {
        match self.fold.note(&self.segments, noted) {
            Noting::Waits => {}
            Noting::Counted(kept) => {
                for at in kept {
                    self.times[at] = self.times[at].saturating_add(1);
                }
            }
            Noting::Kept(all) => {
                let last = all.len() - 1;
                for (at, noted) in all.into_iter().enumerate() {
                    self.records += noted.trace().len();
                    self.operands += noted.trace().operands();
                    self.segments.push(noted);
                    self.times.push(1);
                    self.fold.kept(&self.segments, self.records, at == last);
                }
            }
        }
    }

    /// A storage is gone; windows may still name it.
    #[inline]
    pub(crate) fn freed(&mut self, id: StorageId, storage: Storage) {
        if self.truncated {
            return;
        }
        if self.freed.len() >= self.freed_room {
            self.forget_freed();
        }
        if self.freed.len() < FREED_MAX {
            self.freed.insert(id.0, storage);
        }
    }

    /// Forgets freed storages that no kept segment names: those of counted repeats. The newest may
    /// be of a segment that is not finished yet; what repeats has their like.
    fn forget_freed(&mut self) {
        let kept = self.segments.iter().chain(self.fold.begun());
        let named = kept.flat_map(|noted| noted.trace().storages());
        let named: std::collections::HashSet<u64> = named.map(|id| id.0).collect();
        self.freed.retain(|id, _| named.contains(id));
        // Not again before as many more were freed.
        let room = self.freed.len() + FREED_MAX / 4;
        self.freed_room = if room <= FREED_MAX { room } else { usize::MAX };
    }

    /// A synchronous operator answered. It ended its segment, so that is a recent one.
    pub(crate) fn run_made(&mut self, first: StorageId, bytes: &[u64], outputs: &[OutputSpec]) {
        let begun = self.fold.begun_mut().iter_mut().rev();
        let mut recent = begun.chain(self.segments.iter_mut().rev()).take(RUN_LOOK_BACK);
        if let Some(noted) = recent.find(|noted| noted.runs(first)) {
            Arc::make_mut(noted).run_made(first, bytes, outputs);
        }
    }

    /// Everything since the reset.
    pub(crate) fn snapshot(&self, storages: &Storages) -> Snapshot {
        let (mut segments, mut times) = (self.segments.clone(), self.times.clone());
        segments.extend_from_slice(self.fold.begun());
        times.resize(segments.len(), 1);
        self.snapshot_of(segments, times, storages)
    }

    /// The last segments, `noted` included and last.
    pub(crate) fn context_of(&self, noted: &Arc<Noted>, storages: &Storages) -> Snapshot {
        let mut records = 0;
        let mut segments: Vec<Arc<Noted>> = Vec::new();
        let mut found = false;
        for each in self.segments.iter().rev() {
            found |= Arc::ptr_eq(each, noted);
            if !found {
                continue;
            }
            records += each.trace().len();
            if !segments.is_empty() && records > CONTEXT_RECORDS_MAX {
                break;
            }
            segments.push(each.clone());
        }
        segments.reverse();
        if segments.is_empty() {
            segments.push(noted.clone());
        }
        let times = vec![1; segments.len()];
        self.snapshot_of(segments, times, storages)
    }

    fn snapshot_of(
        &self,
        segments: Vec<Arc<Noted>>,
        times: Vec<u32>,
        storages: &Storages,
    ) -> Snapshot {
        let mut known = IdMap::default();
        for id in segments.iter().flat_map(|noted| noted.trace().storages()) {
            if known.contains_key(&id.0) {
                continue;
            }
            let (storage, alive) = match (storages.get(id), self.freed.get(&id.0)) {
                (Some(storage), _) => (storage, true),
                (None, Some(storage)) => (storage, false),
                (None, None) => continue,
            };
            let known_storage =
                KnownStorage { bytes: storage.bytes, origin: storage.origin, alive };
            known.insert(id.0, known_storage);
        }
        Snapshot { segments, times, storages: known, truncated: self.truncated }
    }
}
