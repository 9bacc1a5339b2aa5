//! Registered memory and the windows offered on it.

use std::collections::HashMap;

use genie_transport::transport::{
    Cause, MEMORIES_MAX, Memory, MemoryKey, MemoryKind, PARTS_MAX, Part, Result, TransportError,
    WINDOWS_MAX,
};

/// The caller asked for something that makes no sense.
pub(crate) fn invalid(message: String) -> TransportError {
    TransportError::new(Cause::Invalid, message)
}

struct Registered {
    memory: Memory,
    /// Windows and messages that use it.
    uses: usize,
}

/// A window that this end offered.
pub(crate) struct Window {
    pub generation: u64,
    pub part: Part,
    pub gate: u32,
}

/// What is registered and offered on one connection.
#[derive(Default)]
pub(crate) struct Memories {
    registered: HashMap<u64, Registered>,
    windows: HashMap<u32, Window>,
    last_key: u64,
    /// Offers made so far.
    pub generation: u64,
}

impl Memories {
    pub fn register(&mut self, transport: &str, memory: Memory) -> Result<MemoryKey> {
        if !matches!(memory.kind(), MemoryKind::Host | MemoryKind::Pinned) {
            let what = "access to memory of a GPU or a dma-buf; register host memory";
            return Err(TransportError::unsupported(transport, what));
        }
        if memory.address().is_null() || memory.bytes() == 0 {
            return Err(invalid("memory without an address or of 0 bytes".into()));
        }
        if self.registered.len() >= MEMORIES_MAX {
            return Err(invalid(format!(
                "{MEMORIES_MAX} memories are registered already; unregister some"
            )));
        }
        self.last_key += 1;
        self.registered.insert(self.last_key, Registered { memory, uses: 0 });
        Ok(MemoryKey(self.last_key))
    }

    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        match self.registered.get(&key.0) {
            None => Err(invalid(format!("no memory is registered as {}", key.0))),
            Some(registered) if registered.uses > 0 => Err(invalid(format!(
                "memory {} is used by {} windows or messages that are not written yet; withdraw \
                 them or wait for them first",
                key.0, registered.uses
            ))),
            Some(_) => {
                self.registered.remove(&key.0);
                Ok(())
            }
        }
    }

    /// The memory of a part that lies inside it.
    pub fn check(&self, part: &Part) -> Result<&Memory> {
        let Some(registered) = self.registered.get(&part.key.0) else {
            return Err(invalid(format!("no memory is registered as {}", part.key.0)));
        };
        match part.offset.checked_add(part.bytes) {
            Some(end) if end <= registered.memory.bytes() => Ok(&registered.memory),
            _ => Err(invalid(format!(
                "bytes {}..+{} lie outside memory {}, which has {} bytes",
                part.offset,
                part.bytes,
                part.key.0,
                registered.memory.bytes()
            ))),
        }
    }

    /// Checks a scatter list and returns its size.
    pub fn check_all(&self, parts: &[Part]) -> Result<u64> {
        if parts.len() > PARTS_MAX {
            let count = parts.len();
            return Err(invalid(format!("a list has {count} parts, {PARTS_MAX} are allowed")));
        }
        let mut bytes = 0u64;
        for part in parts {
            self.check(part)?;
            bytes = bytes.saturating_add(part.bytes);
        }
        Ok(bytes)
    }

    /// The address of a part that was checked and is in use.
    pub fn address(&self, part: &Part) -> *mut u8 {
        let memory = &self.registered[&part.key.0].memory;
        // SAFETY: the part was checked to lie inside when it was taken, and memory in use is not
        // given up.
        unsafe { memory.address().add(part.offset as usize) }
    }

    pub fn hold(&mut self, part: &Part) {
        self.registered.get_mut(&part.key.0).expect("it was checked").uses += 1;
    }

    pub fn release(&mut self, part: &Part) {
        self.registered.get_mut(&part.key.0).expect("memory in use stays").uses -= 1;
    }

    /// Whether a window of this number may be offered now.
    pub fn may_offer(&self, window: u32, part: &Part) -> Result<&Memory> {
        let memory = self.check(part)?;
        if part.bytes == 0 {
            return Err(invalid(format!("window {window} would have 0 bytes")));
        }
        if self.windows.contains_key(&window) {
            return Err(invalid(format!("window {window} is offered already; withdraw it first")));
        }
        if self.windows.len() >= WINDOWS_MAX {
            return Err(invalid(format!(
                "{WINDOWS_MAX} windows are offered already; withdraw some"
            )));
        }
        Ok(memory)
    }

    /// Enters an offer; returns its generation.
    pub fn offer(&mut self, window: u32, part: Part, gate: u32) -> u64 {
        self.hold(&part);
        self.generation += 1;
        self.windows.insert(window, Window { generation: self.generation, part, gate });
        self.generation
    }

    pub fn withdraw(&mut self, window: u32) -> Result<Window> {
        let Some(withdrawn) = self.windows.remove(&window) else {
            return Err(invalid(format!("window {window} is not offered")));
        };
        self.release(&withdrawn.part);
        Ok(withdrawn)
    }

    /// Where the peer's write to a window goes; `None` when that offer has ended.
    pub fn target(
        &self,
        window: u32,
        generation: u64,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<(Memory, u64)>> {
        if generation == 0 || generation > self.generation {
            return Err(crate::record::protocol(format!(
                "a write to window {window} before it was offered"
            )));
        }
        let Some(open) = self.windows.get(&window).filter(|open| open.generation == generation)
        else {
            return Ok(None);
        };
        match offset.checked_add(bytes) {
            Some(end) if end <= open.part.bytes => {
                let memory = self.registered[&open.part.key.0].memory.clone();
                Ok(Some((memory, open.part.offset + offset)))
            }
            _ => Err(crate::record::protocol(format!(
                "a write of bytes {offset}..+{bytes} of window {window}, which has {}",
                open.part.bytes
            ))),
        }
    }
}
