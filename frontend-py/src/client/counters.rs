//! What a session counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted under the session's lock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub ops: u64,
    pub runs: u64,
    pub marks: u64,
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
    allocations: AtomicU64,
}

/// A reading of [`Memory`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub live_bytes: u64,
    pub live_storages: u64,
    pub peak_bytes: u64,
    pub allocations: u64,
}

impl Memory {
    pub fn add(&self, bytes: u64) {
        self.live_storages.fetch_add(1, Relaxed);
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

    fn grow(&self, bytes: u64) {
        let live = self.live_bytes.fetch_add(bytes, Relaxed) + bytes;
        if live > self.peak_bytes.load(Relaxed) {
            self.peak_bytes.fetch_max(live, Relaxed);
        }
    }

    pub fn read(&self) -> MemoryUse {
        MemoryUse {
            live_bytes: self.live_bytes.load(Relaxed),
            live_storages: self.live_storages.load(Relaxed),
            peak_bytes: self.peak_bytes.load(Relaxed),
            allocations: self.allocations.load(Relaxed),
        }
    }

    pub fn reset_peak(&self) {
        self.peak_bytes.store(self.live_bytes.load(Relaxed), Relaxed);
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
        let seen = memory.read();
        assert_eq!(seen, MemoryUse { peak_bytes: 150, allocations: 2, ..MemoryUse::default() });
        memory.reset_peak();
        assert_eq!(memory.read().peak_bytes, 0);
    }
}
