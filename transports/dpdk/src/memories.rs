//! A connection's registered memory, and who uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use genie_bulk::{PlaceError, Span, WindowMemory};
use genie_transport::transport::{
    Cause, MEMORIES_MAX, Memory, MemoryKey, MemoryKind, Part, Result, TransportError, WINDOWS_MAX,
};

use crate::gpu::{ForeignMapping, Gpu};

struct Registered {
    memory: Memory,
    /// For memory of a GPU: how the processor reaches it.
    gpu: Option<(Gpu, ForeignMapping)>,
    /// Windows and messages that use it.
    uses: usize,
}

/// Memory stays registered while a window or a message uses it.
#[derive(Default)]
pub struct Memories {
    registered: BTreeMap<u64, Registered>,
    next: u64,
    windows: HashMap<u32, MemoryKey>,
    /// Of each message that is not yet written: the memory of its parts.
    messages: HashMap<u64, Vec<MemoryKey>>,
}

/// Memory that is about to be registered: mapped, where that is needed.
pub struct Prepared {
    memory: Memory,
    gpu: Option<(Gpu, ForeignMapping)>,
}

impl Prepared {
    /// Checks memory, and maps it for the processor if it is a GPU's.
    pub fn new(memory: Memory) -> Result<Prepared> {
        match memory.kind() {
            MemoryKind::Host | MemoryKind::Pinned => {
                if memory.address().is_null() {
                    return Err(invalid("memory without an address"));
                }
                Ok(Prepared { memory, gpu: None })
            }
            MemoryKind::Gpu => Prepared::of_gpu(memory),
            MemoryKind::DmaBuf => Err(unsupported(
                "GPUDev has no call that takes a dma-buf; register the GPU's memory by its address"
                    .to_owned(),
            )),
        }
    }

    fn of_gpu(memory: Memory) -> Result<Prepared> {
        let number = memory.device();
        let gpu = Gpu::by_number(number).ok_or_else(|| {
            unsupported(format!(
                "GPUDev knows no GPU {number}: give its driver with the setting eal \
                 (`-d .../librte_gpu_cuda.so`, docs/dpdk.md)"
            ))
        })?;
        // SAFETY: `Memory` promises that the address is this much memory of the device while its
        // owner lives; the mapping is dropped before the memory is given up.
        let mapped = unsafe { gpu.map_foreign(memory.address(), memory.bytes() as usize) };
        let mapping = mapped.map_err(|error| {
            unsupported(format!(
                "{error}. DPDK's CUDA driver maps only memory that GPUDev itself allocated"
            ))
        })?;
        Ok(Prepared { memory, gpu: Some((gpu, mapping)) })
    }
}

impl Registered {
    /// Where the processor reads and writes it.
    fn address(&self) -> *mut u8 {
        match &self.gpu {
            Some((_, mapping)) => mapping.address(),
            None => self.memory.address(),
        }
    }
}

/// A window on memory of a GPU: written through its mapping.
struct Window(Span);

impl WindowMemory for Window {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn place(&self, offset: u64, bytes: &[u8]) -> std::result::Result<(), PlaceError> {
        self.0.write(offset as usize, bytes);
        Ok(())
    }
}

impl Memories {
    pub fn register(&mut self, prepared: Prepared) -> Result<MemoryKey> {
        if self.registered.len() >= MEMORIES_MAX {
            return Err(invalid(format!("{MEMORIES_MAX} memories are registered already")));
        }
        self.next += 1;
        let Prepared { memory, gpu } = prepared;
        self.registered.insert(self.next, Registered { memory, gpu, uses: 0 });
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
        let registered = self.get(part.key)?;
        let (key, have) = (part.key.0, registered.memory.bytes());
        if part.offset.checked_add(part.bytes).is_none_or(|end| end > have) {
            let Part { offset, bytes, .. } = part;
            let what = format!("bytes {offset}..{offset}+{bytes} lie outside memory {key}");
            return Err(invalid(format!("{what}, which has {have}")));
        }
        // SAFETY: the range lies inside memory that `Memory` promises to be valid while its owner
        // lives (a mapping: while it is kept, beside the owner). Both are kept while the range is
        // counted as used (`hold_*` follows), and `unregister` refuses until then.
        Ok(unsafe {
            Span::new(registered.address().add(part.offset as usize), part.bytes as usize)
        })
    }

    /// The range as something that is placed into.
    pub fn window(&mut self, part: Part) -> Result<Arc<dyn WindowMemory>> {
        let span = self.span(part)?;
        Ok(if self.get(part.key)?.gpu.is_some() { Arc::new(Window(span)) } else { Arc::new(span) })
    }

    /// Makes what was placed into a window visible to the window's GPU, if it is on one.
    pub fn make_visible(&self, window: u32) -> crate::error::Result<()> {
        let key = self.windows.get(&window);
        let registered = key.and_then(|key| self.registered.get(&key.0));
        match registered.and_then(|registered| registered.gpu.as_ref()) {
            Some((gpu, _)) => gpu.write_barrier(),
            None => Ok(()),
        }
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
        let keys: Vec<_> = parts.iter().map(|part| part.key).collect();
        keys.iter().for_each(|key| self.use_one(*key));
        self.messages.insert(message, keys);
    }

    pub fn release_message(&mut self, message: u64) {
        for key in self.messages.remove(&message).unwrap_or_default() {
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

fn invalid(message: impl std::fmt::Display) -> TransportError {
    TransportError::new(Cause::Invalid, format!("dpdk: {message}"))
}

fn unsupported(message: String) -> TransportError {
    TransportError::new(Cause::Unsupported, format!("dpdk: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_stays_registered() {
        let (memory, _shared) = Memory::allocate(4096).unwrap();
        let mut memories = Memories::default();
        let key = memories.register(Prepared::new(memory).unwrap()).unwrap();
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
        let key = memories.register(Prepared::new(memory).unwrap()).unwrap();
        for (offset, bytes) in [(0, 4097), (4096, 1), (u64::MAX, 2), (1, u64::MAX)] {
            let refused = memories.span(Part { key, offset, bytes }).unwrap_err();
            assert_eq!(refused.cause, Cause::Invalid);
        }
    }
}
