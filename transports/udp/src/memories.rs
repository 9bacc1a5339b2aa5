//! Registered memory, and who uses it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use genie_bulk::Span;
use genie_transport::transport::{
    Cause, MEMORIES_MAX, Memory, MemoryKey, MemoryKind, Part, Result, TransportError, WINDOWS_MAX,
};

use crate::invalid;

struct Registered {
    memory: Memory,
    /// Windows and messages that use it.
    uses: usize,
}

/// A connection's registered memory. It stays registered while a window or a message uses it.
#[derive(Default)]
pub(crate) struct Memories {
    registered: BTreeMap<u64, Registered>,
    next: u64,
    windows: HashMap<u32, MemoryKey>,
    /// Of each message that is not yet written, and each part of it: the memory. Sorted: message
    /// numbers rise, and mostly the oldest is written first.
    messages: VecDeque<(u64, MemoryKey)>,
}

impl Memories {
    pub fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        if !matches!(memory.kind(), MemoryKind::Host | MemoryKind::Pinned) {
            let message = "udp: the kernel's UDP reads and writes host memory only: copy there";
            return Err(TransportError::new(Cause::Unsupported, message));
        }
        if memory.address().is_null() {
            return Err(invalid("memory without an address"));
        }
        if self.registered.len() >= MEMORIES_MAX {
            return Err(invalid(format!("{MEMORIES_MAX} memories are registered already")));
        }
        self.next += 1;
        self.registered.insert(self.next, Registered { memory, uses: 0 });
        Ok(MemoryKey(self.next))
    }

    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        let uses = self.get(key)?.uses;
        if uses > 0 {
            let key = key.0;
            return Err(invalid(format!("memory {key} is used by {uses} windows or messages")));
        }
        self.registered.remove(&key.0);
        Ok(())
    }

    /// The range, checked. Its memory lives while it is counted as used.
    pub fn span(&mut self, part: Part) -> Result<Span> {
        let memory = &self.get(part.key)?.memory;
        let (key, have) = (part.key.0, memory.bytes());
        let inside = part.offset.checked_add(part.bytes).is_some_and(|end| end <= have);
        if !inside {
            let Part { offset, bytes, .. } = part;
            let what = format!("bytes {offset}..{offset}+{bytes} lie outside memory {key}");
            return Err(invalid(format!("{what}, which has {have}")));
        }
        // SAFETY: the range lies inside memory that `Memory` promises to be valid while its owner
        // lives; the owner is kept while the range is counted as used (`hold_*` follows).
        Ok(unsafe { Span::new(memory.address().add(part.offset as usize), part.bytes as usize) })
    }

    pub fn hold_for_window(&mut self, window: u32, key: MemoryKey) {
        self.use_one(key);
        self.windows.insert(window, key);
    }

    pub fn release_window(&mut self, window: u32) {
        if let Some(key) = self.windows.remove(&window) {
            self.release(key);
        }
    }

    pub fn windows_full(&self) -> bool {
        self.windows.len() >= WINDOWS_MAX
    }

    pub fn hold_for_message(&mut self, message: u64, parts: &[Part]) {
        for part in parts {
            self.use_one(part.key);
            self.messages.push_back((message, part.key));
        }
    }

    pub fn release_message(&mut self, message: u64) {
        let first = self.messages.partition_point(|(held, _)| *held < message);
        while let Some((_, key)) = self.messages.get(first).filter(|(held, _)| *held == message) {
            let key = *key;
            self.messages.remove(first);
            self.release(key);
        }
    }

    /// Nothing reads or writes any more: the connection is closed.
    pub fn release_all(&mut self) {
        self.windows.clear();
        self.messages.clear();
        self.registered.values_mut().for_each(|registered| registered.uses = 0);
    }

    fn get(&mut self, key: MemoryKey) -> Result<&mut Registered> {
        let unknown = || invalid(format!("memory {} is not registered", key.0));
        self.registered.get_mut(&key.0).ok_or_else(unknown)
    }

    fn use_one(&mut self, key: MemoryKey) {
        if let Some(registered) = self.registered.get_mut(&key.0) {
            registered.uses += 1;
        }
    }

    fn release(&mut self, key: MemoryKey) {
        if let Some(registered) = self.registered.get_mut(&key.0) {
            registered.uses -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_stays_registered() {
        let (memory, _shared) = Memory::allocate(4096).unwrap();
        let mut memories = Memories::default();
        let key = memories.register(memory).unwrap();
        let part = Part { key, offset: 4000, bytes: 96 };
        assert_eq!(memories.span(part).unwrap().len(), 96);
        memories.hold_for_window(7, key);
        memories.hold_for_message(1, &[part, part]);
        assert_eq!(memories.unregister(key).unwrap_err().cause, Cause::Invalid);
        memories.release_window(7);
        assert_eq!(memories.unregister(key).unwrap_err().cause, Cause::Invalid);
        memories.release_message(1);
        memories.unregister(key).unwrap();
        assert_eq!(memories.unregister(key).unwrap_err().cause, Cause::Invalid);
    }

    #[test]
    fn ranges_outside_are_refused() {
        let (memory, _shared) = Memory::allocate(4096).unwrap();
        let mut memories = Memories::default();
        let key = memories.register(memory).unwrap();
        for (offset, bytes) in [(0, 4097), (4096, 1), (u64::MAX, 2), (1, u64::MAX)] {
            let refused = memories.span(Part { key, offset, bytes }).unwrap_err();
            assert_eq!(refused.cause, Cause::Invalid);
        }
        let key = MemoryKey(99);
        assert!(memories.span(Part { key, offset: 0, bytes: 0 }).is_err());
    }
}
