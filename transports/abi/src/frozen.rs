//! Memory that several processes read and none can change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate};
use rustix::mm::{MapFlags, ProtFlags};

use crate::memory::{MemoryError, check_size, os};

const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// A memfd whose size and bytes are sealed, mapped privately: what this process writes to its
/// mapping is a copy of its own, page by page.
#[derive(Debug)]
pub struct FrozenMemory {
    address: NonNull<u8>,
    bytes: usize,
}

impl FrozenMemory {
    /// A copy of these bytes, and its descriptor for others.
    pub fn of(content: &[u8]) -> Result<(Self, OwnedFd), MemoryError> {
        let bytes = content.len() as u64;
        check_size(bytes)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("genie-frozen", flags)
            .map_err(os("create memory to share"))?;
        ftruncate(&fd, bytes).map_err(os("size memory to share"))?;
        let mut left = content;
        while !left.is_empty() {
            match rustix::io::write(&fd, left) {
                Ok(written) => left = &left[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(os("fill memory to share")(errno)),
            }
        }
        fcntl_add_seals(&fd, SEALS).map_err(os("seal memory to share"))?;
        Ok((FrozenMemory::map(fd.as_fd(), bytes)?, fd))
    }

    /// Whether it is what another process may map as [`FrozenMemory`].
    pub fn check(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), MemoryError> {
        check_size(bytes)?;
        let seals = fcntl_get_seals(fd).map_err(os("read the seals of shared memory"))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
            return Err(MemoryError::NotSealed);
        }
        let have = fstat(fd).map_err(os("stat shared memory"))?.st_size as u64;
        if have != bytes {
            return Err(MemoryError::WrongSize { have, expected: bytes });
        }
        Ok(())
    }

    /// Maps what came from another process, who announced `bytes` bytes.
    pub fn adopt(fd: BorrowedFd<'_>, bytes: u64) -> Result<Self, MemoryError> {
        FrozenMemory::check(fd, bytes)?;
        FrozenMemory::map(fd, bytes)
    }

    fn map(fd: BorrowedFd<'_>, bytes: u64) -> Result<Self, MemoryError> {
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor's size is
        // `bytes` (set or checked by the callers) and sealed against shrinking.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
                fd,
                0,
            )
        }
        .map_err(os("map shared memory"))?;
        let address = NonNull::new(address.cast()).expect("mmap never maps address 0 here");
        Ok(FrozenMemory { address, bytes: bytes as usize })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The start of the mapping, valid for [`FrozenMemory::bytes`] while `self` lives.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped for `bytes` while `self` lives; other processes cannot change it (it is
        // sealed, and private), and this one only through `address`, whose user then holds `self`.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for FrozenMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this address and size and is not used after.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmapping our own mapping cannot fail");
    }
}

// SAFETY: the mapping is process-wide, and it has one owner.
unsafe impl Send for FrozenMemory {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedMemory;

    #[test]
    fn nobody_changes_what_others_read() {
        let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let (mine, fd) = FrozenMemory::of(&content).unwrap();
        let theirs = FrozenMemory::adopt(fd.as_fd(), 100_000).unwrap();
        // SAFETY: inside the mapping, which lives.
        unsafe { theirs.address().write(77) };
        assert_eq!((theirs.as_slice()[0], mine.as_slice()), (77, &content[..]));
        assert!(rustix::io::write(&fd, b"x").is_err());
        assert_eq!(FrozenMemory::adopt(fd.as_fd(), 100_000).unwrap().as_slice(), &content[..]);
    }

    #[test]
    fn what_can_be_changed_is_refused() {
        let writable = SharedMemory::create(100).unwrap();
        let refused = FrozenMemory::adopt(writable.fd(), 100);
        assert!(matches!(refused, Err(MemoryError::NotSealed)), "{refused:?}");
        let (_, fd) = FrozenMemory::of(&[1; 100]).unwrap();
        let refused = FrozenMemory::adopt(fd.as_fd(), 101);
        assert!(matches!(refused, Err(MemoryError::WrongSize { .. })), "{refused:?}");
    }
}
