//! A connection's registered memory, and who uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use genie_bulk::{Piece, PlaceError, Span, WindowMemory};
use genie_transport::transport::{
    Cause, MEMORIES_MAX, Memory, MemoryKey, MemoryKind, Part, Result, TransportError, WINDOWS_MAX,
};

use crate::external::External;
use crate::gpu::{ForeignMapping, Gpu};
use crate::packet::Lease;
use crate::tail::Tail;

/// Memory of ours is registered with DPDK in such pages.
const PAGE: usize = 4096;

/// The caller's memory; packets that are attached to it keep it.
struct Foreign {
    /// For a device that needs it: asked for with the first packet. Before the memory, to go first.
    external: OnceLock<Option<External>>,
    memory: Memory,
}

impl Foreign {
    /// Whether the device of `port` may read it now.
    fn is_registered_for(&self, port: u16) -> bool {
        let register = || {
            let (address, bytes) = (self.memory.address(), self.memory.bytes() as usize);
            // Neighbours in the same pages are not ours to show to a device.
            let whole_pages = (address as usize).is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
            // SAFETY: the memory lives while `self` does, and packets keep it.
            let made = || unsafe { External::register_for(port, address, bytes, PAGE) };
            whole_pages.then(made)?.ok()
        };
        self.external.get_or_init(register).is_some()
    }
}

struct Registered {
    foreign: Arc<Foreign>,
    /// For memory of a GPU: how the processor reaches it.
    gpu: Option<(Gpu, ForeignMapping)>,
    /// Windows and messages that use it.
    uses: usize,
    /// The caller gave it up while packets of messages that are over were out; it goes with them.
    given_up: bool,
}

/// A message on its way.
struct Sending {
    parts: Vec<Part>,
    /// Of each part that packets were attached to; empty while there was none.
    leases: Vec<Option<Lease>>,
}

impl Sending {
    /// References that packets hold.
    fn references(&self) -> usize {
        // The lease itself is one.
        self.leases.iter().flatten().map(|lease| usize::from(lease.references()) - 1).sum()
    }

    fn is_back(&self) -> bool {
        self.references() == 0
    }
}

/// What the protocol said of a message.
#[derive(Debug)]
pub enum Ended {
    Written(u64),
    Failed(TransportError),
}

/// Memory stays registered while a window or a message uses it.
#[derive(Default)]
pub struct Memories {
    registered: BTreeMap<u64, Registered>,
    next: u64,
    windows: HashMap<u32, MemoryKey>,
    /// Messages that are not over.
    messages: HashMap<u64, Sending>,
    /// Messages that are over while packets are out, and what is to be told when they are back.
    out: Vec<(Option<Ended>, Sending)>,
    is_closed: bool,
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
            None => self.foreign.memory.address(),
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
        let foreign = Arc::new(Foreign { external: OnceLock::new(), memory });
        self.registered.insert(self.next, Registered { foreign, gpu, uses: 0, given_up: false });
        Ok(MemoryKey(self.next))
    }

    /// Gives memory up: now, or when the packets are back if only they use it and their connection
    /// is closed.
    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        let uses = self.get(key)?.uses;
        if uses > 0 && self.is_closed && self.is_only_out(key) {
            self.get(key)?.given_up = true;
            return Ok(());
        }
        if uses > 0 {
            let packets = self.references_to(key);
            let key = key.0;
            return Err(invalid(format!(
                "memory {key} is used by {uses} windows or messages, of which the device has \
                 {packets} packets"
            )));
        }
        self.registered.remove(&key.0);
        Ok(())
    }

    /// The range, checked. Its memory lives while it is counted as used.
    pub fn span(&mut self, part: Part) -> Result<Span> {
        let registered = self.get(part.key)?;
        let (key, have) = (part.key.0, registered.foreign.memory.bytes());
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
        parts.iter().for_each(|part| self.use_one(part.key));
        let sending = Sending { parts: parts.to_vec(), leases: Vec::new() };
        self.messages.insert(message, sending);
    }

    /// A message is over: gives what is to be told, now or, while packets are out, by
    /// [`Memories::reap`].
    pub fn release_message(&mut self, message: u64, ended: Ended) -> Option<Ended> {
        let Some(sending) = self.messages.remove(&message) else { return Some(ended) };
        if sending.is_back() {
            self.release_parts(&sending);
            return Some(ended);
        }
        self.out.push((Some(ended), sending));
        None
    }

    /// Gives what is to be told of messages whose packets are back.
    pub fn reap(&mut self, mut each: impl FnMut(Ended)) {
        let mut out = std::mem::take(&mut self.out);
        for (ended, sending) in out.extract_if(.., |(_, sending)| sending.is_back()) {
            self.release_parts(&sending);
            ended.into_iter().for_each(&mut each);
        }
        self.out = out;
    }

    /// Whether packets are out whose messages are over.
    pub fn has_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether messages are over that nobody was told of.
    pub fn owes(&self) -> bool {
        self.out.iter().any(|(ended, _)| ended.is_some())
    }

    /// Whether nothing but packets in the device uses the memory.
    pub fn is_only_out(&self, key: MemoryKey) -> bool {
        let parts = self.out.iter().flat_map(|(_, sending)| &sending.parts);
        let out = parts.filter(|part| part.key == key).count();
        out > 0 && self.registered.get(&key.0).is_some_and(|it| it.uses == out)
    }

    /// References that packets hold to all memory.
    pub fn references(&self) -> usize {
        let sendings = self.messages.values().chain(self.out.iter().map(|(_, sending)| sending));
        sendings.map(Sending::references).sum()
    }

    fn references_to(&self, key: MemoryKey) -> usize {
        let sendings = self.messages.values().chain(self.out.iter().map(|(_, sending)| sending));
        sendings
            .filter(|sending| sending.parts.iter().any(|part| part.key == key))
            .map(Sending::references)
            .sum()
    }

    /// Attaches pieces of messages behind a datagram's head; `false`: none, they are to be copied.
    pub fn attach(&mut self, pieces: &[Piece], tail: &mut Tail) -> bool {
        if !pieces.iter().all(|piece| self.lease(piece, tail.registers())) {
            return false;
        }
        for piece in pieces {
            let leases = &self.messages[&piece.message].leases;
            let lease = leases[piece.part].as_ref().expect("leased just now");
            tail.attach(lease, piece.at, piece.bytes.len());
        }
        true
    }

    /// Leases the part that a piece lies in, unless it is; `false`: the device cannot read it.
    fn lease(&mut self, piece: &Piece, registers: Option<u16>) -> bool {
        let Some(sending) = self.messages.get_mut(&piece.message) else { return false };
        sending.leases.resize_with(sending.parts.len(), || None);
        if sending.leases[piece.part].is_some() {
            return true;
        }
        let part = sending.parts[piece.part];
        // Memory of a GPU is reached through a mapping, which is the processor's alone.
        let Some(Registered { foreign, gpu: None, .. }) = self.registered.get(&part.key.0) else {
            return false;
        };
        if registers.is_some_and(|port| !foreign.is_registered_for(port)) {
            return false;
        }
        let address = foreign.memory.address().wrapping_add(part.offset as usize);
        // SAFETY: within the memory, as `span` checked before the message was queued. It lives
        // while the lease does, which keeps it; nobody holds Rust references to it.
        let lease = unsafe { Lease::new(address, part.bytes as usize, foreign.clone(), || {}) };
        sending.leases[piece.part] = Some(lease);
        true
    }

    /// The connection is closed: nothing reads or writes any more but packets that are out.
    pub fn release_all(&mut self) {
        self.is_closed = true;
        self.windows.clear();
        self.registered.values_mut().for_each(|registered| registered.uses = 0);
        let messages = std::mem::take(&mut self.messages).into_values();
        self.out.extend(messages.filter(|sending| !sending.is_back()).map(|it| (None, it)));
        let keys: Vec<_> = self.out.iter().flat_map(|(_, sending)| &sending.parts).collect();
        let keys: Vec<_> = keys.into_iter().map(|part| part.key).collect();
        keys.into_iter().for_each(|key| self.use_one(key));
    }

    fn release_parts(&mut self, sending: &Sending) {
        sending.parts.iter().for_each(|part| self.release(part.key));
    }

    fn get(&mut self, key: MemoryKey) -> Result<&mut Registered> {
        let unknown = || invalid(format!("memory {} is not registered", key.0));
        let registered = self.registered.get_mut(&key.0).filter(|registered| !registered.given_up);
        registered.ok_or_else(unknown)
    }

    fn use_one(&mut self, key: MemoryKey) {
        if let Some(registered) = self.registered.get_mut(&key.0) {
            registered.uses += 1;
        }
    }

    fn release(&mut self, key: MemoryKey) {
        if let Some(registered) = self.registered.get_mut(&key.0) {
            registered.uses -= 1;
            if registered.given_up && registered.uses == 0 {
                self.registered.remove(&key.0);
            }
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
        assert!(matches!(memories.release_message(1, Ended::Written(1)), Some(Ended::Written(1))));
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
