//! Windows as memory that both ends have mapped, each guarded by a gate.
//!
//! Each end has a page of gates for the windows it offers; the peer maps it. A gate is one word:
//! the generation of the offer it guards, and the number of copies that are under way.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use genie_records::record::Offer;
use genie_records::{Sharing, Span, io};
use genie_transport::transport::{Cause, Memory, Result, TransportError, WINDOWS_MAX};
use genie_transport::{MemoryError, SharedMemory};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::NAME;

const GATES_BYTES: u64 = (WINDOWS_MAX * size_of::<u64>()) as u64;
/// The low bits of a gate count copies, the others are the generation.
const COPIES_BITS: u32 = 16;
const COPIES: u64 = (1 << COPIES_BITS) - 1;
/// How long a withdrawal waits for a copy of the peer's: one is of 256 KiB.
const COPY_TIME: Duration = Duration::from_secs(1);

/// A window of the peer's.
struct PeerWindow {
    memory: Arc<SharedMemory>,
    base: u64,
    bytes: u64,
    gate: u32,
}

/// See the module.
pub(crate) struct Gates {
    ours: SharedMemory,
    free: Vec<u32>,
    theirs: Option<SharedMemory>,
    windows: HashMap<u64, PeerWindow>,
    /// Memories that several windows lie in are mapped once. By device and inode.
    mapped: HashMap<(u64, u64), Weak<SharedMemory>>,
}

impl Gates {
    pub fn new() -> Result<Self> {
        let ours = SharedMemory::create(GATES_BYTES)
            .map_err(|error| TransportError::new(Cause::Io, error.to_string()))?;
        Ok(Gates {
            ours,
            free: (0..WINDOWS_MAX as u32).rev().collect(),
            theirs: None,
            windows: HashMap::new(),
            mapped: HashMap::new(),
        })
    }
}

/// The word of a gate.
fn gate(gates: &SharedMemory, gate: u32) -> &AtomicU64 {
    assert!((gate as usize) < WINDOWS_MAX, "gates are checked when they are taken");
    // SAFETY: inside the mapping, which lives as long as the reference; aligned, as the mapping
    // begins at a page; both processes touch it by atomic operations alone.
    unsafe { AtomicU64::from_ptr(gates.address().cast::<u64>().add(gate as usize)) }
}

fn protocol(what: String) -> TransportError {
    let message = format!("the peer sent {what}; the connection is given up");
    TransportError::new(Cause::Protocol, message)
}

fn strange(error: MemoryError) -> TransportError {
    protocol(format!("memory that is refused: {error}"))
}

impl Sharing for Gates {
    fn greeting(&mut self) -> Result<OwnedFd> {
        self.ours.fd().try_clone_to_owned().map_err(duplicate)
    }

    fn greeted(&mut self, beside: OwnedFd) -> Result<()> {
        self.theirs = Some(SharedMemory::adopt(beside, GATES_BYTES).map_err(strange)?);
        Ok(())
    }

    fn offer(&mut self, generation: u64, memory: &Memory) -> Result<(u32, OwnedFd)> {
        let unsupported = |what| TransportError::unsupported(NAME, what);
        if memory.descriptor() < 0 {
            return Err(unsupported("way to offer memory that lies in no memfd"));
        }
        // SAFETY: the owner of registered memory keeps its descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(memory.descriptor()) };
        let sealed = fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        if !sealed {
            return Err(unsupported(
                "way to offer a memfd whose size is not sealed (F_SEAL_SHRINK)",
            ));
        }
        let fd = fd.try_clone_to_owned().map_err(duplicate)?;
        let free = self.free.pop().expect("there are as many gates as windows");
        gate(&self.ours, free).store(generation << COPIES_BITS, Ordering::Release);
        Ok((free, fd))
    }

    fn withdraw(&mut self, number: u32) -> Result<()> {
        let word = gate(&self.ours, number);
        word.fetch_and(COPIES, Ordering::AcqRel);
        let end = Instant::now() + COPY_TIME;
        while word.load(Ordering::Acquire) != 0 {
            if Instant::now() >= end {
                return Err(TransportError::new(
                    Cause::Io,
                    format!(
                        "a copy of the peer's into a window did not end within {} ms; it may have \
                         been stopped in the middle",
                        COPY_TIME.as_millis()
                    ),
                ));
            }
            std::thread::yield_now();
        }
        self.free.push(number);
        Ok(())
    }

    fn adopt(&mut self, offer: &Offer, beside: OwnedFd) -> Result<()> {
        let stat = fstat(&beside).map_err(io("look at the peer's memory"))?;
        let file = (stat.st_dev, stat.st_ino);
        let memory = match self.mapped.get(&file).and_then(Weak::upgrade) {
            Some(memory) => memory,
            None => {
                let bytes = stat.st_size as u64;
                Arc::new(SharedMemory::adopt(beside, bytes).map_err(strange)?)
            }
        };
        memory.span(offer.base, offer.bytes).map_err(strange)?;
        if offer.gate as usize >= WINDOWS_MAX {
            return Err(protocol(format!("a window with the gate {}", offer.gate)));
        }
        self.mapped.retain(|_, memory| memory.strong_count() > 0);
        self.mapped.insert(file, Arc::downgrade(&memory));
        let Offer { base, bytes, gate, generation, .. } = *offer;
        self.windows.insert(generation, PeerWindow { memory, base, bytes, gate });
        Ok(())
    }

    fn forget(&mut self, generation: u64) {
        self.windows.remove(&generation);
    }

    fn copy(&mut self, generation: u64, offset: u64, from: Span) -> Result<bool> {
        let (Some(window), Some(gates)) = (self.windows.get(&generation), &self.theirs) else {
            return Ok(false);
        };
        let end = offset.checked_add(from.bytes as u64);
        if end.is_none_or(|end| end > window.bytes) {
            return Err(TransportError::new(Cause::Internal, "a copy outside its window"));
        }
        let to = window.memory.span(window.base + offset, from.bytes as u64).map_err(strange)?;
        let word = gate(gates, window.gate);
        let enter = |now: u64| {
            (now >> COPIES_BITS == generation && now & COPIES < COPIES).then_some(now + 1)
        };
        if word.try_update(Ordering::AcqRel, Ordering::Acquire, enter).is_err() {
            return Ok(false);
        }
        // SAFETY: both ranges lie inside memory that lives: the source is registered and held by
        // its message, the target is mapped. They may overlap when both ends are one process.
        unsafe { std::ptr::copy(from.address.cast_const(), to, from.bytes) };
        word.fetch_sub(1, Ordering::Release);
        Ok(true)
    }
}

fn duplicate(error: std::io::Error) -> TransportError {
    TransportError::new(Cause::Io, format!("duplicate the descriptor of memory: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends that know each other's gates.
    fn pair() -> (Gates, Gates) {
        let (mut one, mut other) = (Gates::new().unwrap(), Gates::new().unwrap());
        other.greeted(one.greeting().unwrap()).unwrap();
        one.greeted(other.greeting().unwrap()).unwrap();
        (one, other)
    }

    fn offer(gates: &mut Gates, generation: u64, memory: &Memory) -> (Offer, OwnedFd) {
        let (gate, fd) = gates.offer(generation, memory).unwrap();
        let bytes = memory.bytes();
        (Offer { window: 1, gate, generation, bytes, base: 0, beside: true }, fd)
    }

    #[test]
    fn nothing_is_copied_after_a_withdrawal() {
        let (mut owner, mut writer) = pair();
        let (memory, shared) = Memory::allocate(100).unwrap();
        let (first, fd) = offer(&mut owner, 1, &memory);
        writer.adopt(&first, fd).unwrap();
        let mut bytes = *b"hello";
        let from = Span { address: bytes.as_mut_ptr(), bytes: bytes.len() };
        assert!(writer.copy(1, 95, from).unwrap());
        let mut read = [0; 5];
        shared.read(95, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        owner.withdraw(first.gate).unwrap();
        assert!(!writer.copy(1, 0, from).unwrap());
        // The gate guards another window now, which the old offer does not open.
        let (second, fd) = offer(&mut owner, 2, &memory);
        assert_eq!(second.gate, first.gate);
        assert!(!writer.copy(1, 0, from).unwrap());
        writer.adopt(&second, fd).unwrap();
        assert!(writer.copy(2, 0, from).unwrap());
    }

    #[test]
    fn a_copy_that_does_not_end_is_told() {
        let (mut owner, _writer) = pair();
        let (memory, _shared) = Memory::allocate(100).unwrap();
        let (offer, _fd) = offer(&mut owner, 1, &memory);
        gate(&owner.ours, offer.gate).fetch_add(1, Ordering::Relaxed);
        let error = owner.withdraw(offer.gate).unwrap_err();
        assert_eq!(error.cause, Cause::Io);
    }

    #[test]
    fn memory_that_could_shrink_is_refused() {
        let (mut owner, mut writer) = pair();
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("unsealed", flags).unwrap();
        rustix::fs::ftruncate(&fd, 100).unwrap();
        let offer = Offer { window: 1, gate: 0, generation: 1, bytes: 100, base: 0, beside: true };
        assert_eq!(writer.adopt(&offer, fd).unwrap_err().cause, Cause::Protocol);
        // And memory without a descriptor cannot be offered.
        let owned: Arc<[u8; 64]> = Arc::new([0; 64]);
        let address = owned.as_ptr().cast_mut();
        let kind = genie_transport::transport::MemoryKind::Host;
        // SAFETY: nobody writes to it here, and it lives in the owner.
        let memory = unsafe { Memory::from_raw(address, 64, kind, -1, -1, owned) };
        assert_eq!(owner.offer(1, &memory).unwrap_err().cause, Cause::Unsupported);
    }

    #[test]
    fn windows_outside_their_memory_are_refused() {
        let (mut owner, mut writer) = pair();
        let (memory, _shared) = Memory::allocate(100).unwrap();
        for (base, bytes, gate) in [(0, 101, 0), (100, 1, 0), (u64::MAX, 2, 0), (0, 100, 1024)] {
            let (_, fd) = owner.offer(1, &memory).unwrap();
            let offer = Offer { window: 1, gate, generation: 1, bytes, base, beside: true };
            assert_eq!(writer.adopt(&offer, fd).unwrap_err().cause, Cause::Protocol);
        }
    }
}
