//! What a session counts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::client::session::lock;

/// Counted under the session's lock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub ops: u64,
    pub runs: u64,
    pub marks: u64,
    /// Records of every kind; a script's run is one.
    pub records: u64,
    pub scripts: u64,
    pub script_runs: u64,
    pub frames: u64,
    /// Records sent, inline uploads included.
    pub tape_bytes: u64,
    /// Tensor bytes sent to the host: uploads of at least `WEIGHT_BYTES_MIN` bytes.
    pub payload_bytes_up: u64,
    /// Tensor bytes that the program read.
    pub payload_bytes_down: u64,
    /// Bytes that uploads found in the node's weight store.
    pub weight_bytes_saved: u64,
    pub weights_bound: u64,
    /// Times the program waited for an answer of the node or, for a hash, of the host.
    pub round_trips: u64,
    pub weight_queries: u64,
    /// Times capturing waited for room in the queue.
    pub stalls: u64,
}

/// Bytes of storages that the program holds. Counted without a lock.
#[derive(Debug, Default)]
pub struct Memory {
    live_bytes: AtomicU64,
    live_storages: AtomicU64,
    peak_bytes: AtomicU64,
    peak_storages: AtomicU64,
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    /// What was made and freed when the program last set these sums back.
    before: Mutex<Before>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Before {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
}

/// A reading of [`Memory`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub live_bytes: u64,
    pub live_storages: u64,
    pub peak_bytes: u64,
    pub peak_storages: u64,
    pub allocations: u64,
    pub allocated_bytes: u64,
    pub frees: u64,
    pub freed_bytes: u64,
}

impl Memory {
    pub fn add(&self, bytes: u64) {
        let live = self.live_storages.fetch_add(1, Relaxed) + 1;
        if live > self.peak_storages.load(Relaxed) {
            self.peak_storages.fetch_max(live, Relaxed);
        }
        self.allocations.fetch_add(1, Relaxed);
        self.grow(bytes);
    }

    pub fn remove(&self, bytes: u64) {
        self.live_storages.fetch_sub(1, Relaxed);
        self.live_bytes.fetch_sub(bytes, Relaxed);
    }

    pub fn resize(&self, old_bytes: u64, new_bytes: u64) {
        self.live_bytes.fetch_sub(old_bytes, Relaxed);
        self.grow(new_bytes);
    }

    /// So many bytes more are alive for a while.
    pub fn touch(&self, bytes: u64) {
        self.grow(bytes);
        self.live_bytes.fetch_sub(bytes, Relaxed);
    }

    fn grow(&self, bytes: u64) {
        self.allocated_bytes.fetch_add(bytes, Relaxed);
        let live = self.live_bytes.fetch_add(bytes, Relaxed) + bytes;
        if live > self.peak_bytes.load(Relaxed) {
            self.peak_bytes.fetch_max(live, Relaxed);
        }
    }

    pub fn read(&self) -> MemoryUse {
        let (sums, before) = (self.sums(), *lock(&self.before));
        MemoryUse {
            live_bytes: self.live_bytes.load(Relaxed),
            live_storages: self.live_storages.load(Relaxed),
            peak_bytes: self.peak_bytes.load(Relaxed),
            peak_storages: self.peak_storages.load(Relaxed),
            allocations: sums.allocations.saturating_sub(before.allocations),
            allocated_bytes: sums.allocated_bytes.saturating_sub(before.allocated_bytes),
            frees: sums.frees.saturating_sub(before.frees),
            freed_bytes: sums.freed_bytes.saturating_sub(before.freed_bytes),
        }
    }

    /// What is freed is what was made and does not live any more.
    fn sums(&self) -> Before {
        let (allocations, allocated_bytes) =
            (self.allocations.load(Relaxed), self.allocated_bytes.load(Relaxed));
        Before {
            allocations,
            allocated_bytes,
            frees: allocations.saturating_sub(self.live_storages.load(Relaxed)),
            freed_bytes: allocated_bytes.saturating_sub(self.live_bytes.load(Relaxed)),
        }
    }

    pub fn reset_peak(&self) {
        self.peak_bytes.store(self.live_bytes.load(Relaxed), Relaxed);
        self.peak_storages.store(self.live_storages.load(Relaxed), Relaxed);
    }

    pub fn reset_accumulated(&self) {
        *lock(&self.before) = self.sums();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_bytes_return_and_the_peak_stays() {
        let memory = Memory::default();
        memory.add(100);
        memory.add(50);
        memory.resize(50, 10);
        memory.remove(100);
        memory.remove(10);
        let sums = MemoryUse {
            allocations: 2,
            allocated_bytes: 160,
            frees: 2,
            freed_bytes: 160,
            ..MemoryUse::default()
        };
        assert_eq!(memory.read(), MemoryUse { peak_bytes: 150, peak_storages: 2, ..sums });
        memory.reset_peak();
        assert_eq!(memory.read(), sums);
        memory.add(7);
        memory.reset_accumulated();
        memory.remove(7);
        let peaks = MemoryUse { peak_bytes: 7, peak_storages: 1, ..MemoryUse::default() };
        assert_eq!(memory.read(), MemoryUse { frees: 1, freed_bytes: 7, ..peaks });
    }
}
