//! Memory that both ends of a link can reach.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use genie_wire::limits::REGION_BYTES_MAX;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapped memfd whose size is sealed, so that a peer cannot shrink it under a reader.
///
/// Its bytes may change at any time: the peer maps them too. So they are only ever copied, never
/// borrowed as slices.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    address: NonNull<u8>,
    bytes: usize,
}

/// Why a piece of shared memory was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("{what}: {source}")]
    Os { what: &'static str, source: std::io::Error },
    #[error("its size is not sealed, the sender could cut it off while it is read")]
    NotSealed,
    #[error("it has {have} bytes, {expected} were announced")]
    WrongSize { have: u64, expected: u64 },
    #[error("it has {bytes} bytes, the limit is {REGION_BYTES_MAX}")]
    TooLarge { bytes: u64 },
    #[error("bytes {offset}..{offset}+{len} lie outside its {bytes} bytes")]
    OutOfRange { offset: u64, len: u64, bytes: u64 },
}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl SharedMemory {
    /// New zeroed memory of `bytes` bytes.
    pub fn create(bytes: u64) -> Result<Self, MemoryError> {
        check_size(bytes)?;
        let fd = rustix::fs::memfd_create(
            "genie-region",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(os("create shared memory"))?;
        ftruncate(&fd, bytes).map_err(os("size shared memory"))?;
        fcntl_add_seals(&fd, SEALS).map_err(os("seal shared memory"))?;
        SharedMemory::map(fd, bytes)
    }

    /// Maps memory received from a peer, who announced `bytes` bytes.
    pub fn adopt(fd: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        check_size(bytes)?;
        let seals = fcntl_get_seals(&fd).map_err(os("read the seals of shared memory"))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(MemoryError::NotSealed);
        }
        let have = fstat(&fd).map_err(os("stat shared memory"))?.st_size as u64;
        if have != bytes {
            return Err(MemoryError::WrongSize { have, expected: bytes });
        }
        SharedMemory::map(fd, bytes)
    }

    fn map(fd: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor's size is at
        // least `bytes` (set or checked by the callers) and sealed against shrinking.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
        .map_err(os("map shared memory"))?;
        let address = NonNull::new(address.cast()).expect("mmap never maps address 0 here");
        Ok(SharedMemory { fd, address, bytes: bytes as usize })
    }

    /// The same memory, mapped once more.
    pub fn try_clone(&self) -> Result<Self, MemoryError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|source| MemoryError::Os { what: "keep shared memory", source })?;
        SharedMemory::map(fd, self.bytes())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The descriptor, to pass on to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The start of the mapping, valid for [`SharedMemory::bytes`] while `self` lives. Peers may
    /// change the bytes at any time.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Copies `from` to `offset`.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.span(offset, from.len() as u64)?;
        // SAFETY: `span` checked that the range lies inside the mapping; `from` is private memory,
        // so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Copies from `offset` into `to`.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.span(offset, to.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// The address of a range, checked to lie inside.
    pub fn span(&self, offset: u64, len: u64) -> Result<*mut u8, MemoryError> {
        let bytes = self.bytes as u64;
        match offset.checked_add(len) {
            Some(end) if end <= bytes => {
                // SAFETY: offset <= bytes, inside the mapping or one past its end.
                Ok(unsafe { self.address.as_ptr().add(offset as usize) })
            }
            _ => Err(MemoryError::OutOfRange { offset, len, bytes }),
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this address and size and is not used after.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping cannot fail");
    }
}

// SAFETY: the mapping is process-wide and its bytes are only copied, by whichever thread.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; concurrent copies of the same bytes by peers are expected.
unsafe impl Sync for SharedMemory {}

pub(crate) fn check_size(bytes: u64) -> Result<(), MemoryError> {
    if bytes == 0 || bytes > REGION_BYTES_MAX {
        return Err(MemoryError::TooLarge { bytes });
    }
    Ok(())
}

pub(crate) fn os(what: &'static str) -> impl Fn(rustix::io::Errno) -> MemoryError {
    move |errno| MemoryError::Os { what, source: errno.into() }
}
