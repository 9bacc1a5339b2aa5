//! What a worker is doing, in a page that its gate reads: also when the worker cannot answer any
//! more, because it computes or is dead.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use genie_transport::{MemoryError, SharedMemory};

/// The longest operator name that is told whole.
const NAME_BYTES_MAX: usize = 120;

/// The page. Its gate takes nothing in it for true that matters to others.
#[repr(C)]
struct Page {
    /// Operators begun so far.
    begun: AtomicU64,
    /// The connection whose turn it is; 0: none.
    connection: AtomicU64,
    name_bytes: AtomicU64,
    name: [AtomicU8; NAME_BYTES_MAX],
}

const PAGE_BYTES: u64 = 4096;
const _: () = assert!(size_of::<Page>() <= PAGE_BYTES as usize);

/// The worker's side.
#[derive(Debug)]
pub struct Progress(SharedMemory);

/// The gate's side.
#[derive(Debug)]
pub struct Watched(SharedMemory);

/// What a worker was doing at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Doing {
    /// Operators begun so far.
    pub begun: u64,
    /// The connection whose turn it is.
    pub connection: Option<u64>,
    /// The operator that it runs, or ran last.
    pub operator: String,
}

impl Progress {
    /// The page that came from the gate.
    pub fn adopt(fd: OwnedFd) -> Result<Self, MemoryError> {
        SharedMemory::adopt(fd, PAGE_BYTES).map(Progress)
    }

    /// Whose turn begins; `None` at its end.
    pub fn turn(&self, connection: Option<u64>) {
        page(&self.0).connection.store(connection.unwrap_or(0), Ordering::Relaxed);
    }

    /// An operator begins.
    #[inline]
    pub fn begin(&self, operator: &str) {
        let page = page(&self.0);
        let name = &operator.as_bytes()[..operator.len().min(NAME_BYTES_MAX)];
        for (to, from) in page.name.iter().zip(name) {
            to.store(*from, Ordering::Relaxed);
        }
        page.name_bytes.store(name.len() as u64, Ordering::Relaxed);
        page.begun.store(page.begun.load(Ordering::Relaxed) + 1, Ordering::Release);
    }
}

impl Watched {
    /// A new page, and its descriptor for the worker.
    pub fn new() -> Result<(Self, OwnedFd), MemoryError> {
        let memory = SharedMemory::create(PAGE_BYTES)?;
        let what = "pass on shared memory";
        let fd = memory.fd().try_clone_to_owned();
        let fd = fd.map_err(|source| MemoryError::Os { what, source })?;
        Ok((Watched(memory), fd))
    }

    pub fn look(&self) -> Doing {
        let page = page(&self.0);
        let begun = page.begun.load(Ordering::Acquire);
        let len = page.name_bytes.load(Ordering::Relaxed).min(NAME_BYTES_MAX as u64);
        let name: Vec<u8> =
            page.name[..len as usize].iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
        // It goes to logs and to people: nothing but what names are made of.
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_:.".contains(byte);
        let operator = match name.iter().all(plain) {
            true => String::from_utf8_lossy(&name).into_owned(),
            false => String::new(),
        };
        let connection = page.connection.load(Ordering::Relaxed);
        Doing { begun, connection: (connection != 0).then_some(connection), operator }
    }
}

fn page(memory: &SharedMemory) -> &Page {
    // SAFETY: the mapping has PAGE_BYTES, at least a `Page`, begins at a page's bound, and lives as
    // long as `memory`. All fields are atomics, for which any bytes are valid, and the other process
    // is expected to change them.
    unsafe { &*memory.address().cast::<Page>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_sees_what_the_worker_does() {
        let (watched, fd) = Watched::new().unwrap();
        let progress = Progress::adopt(fd).unwrap();
        assert_eq!(watched.look(), Doing::default());
        progress.turn(Some(7));
        progress.begin("aten::mm");
        let doing = Doing { begun: 1, connection: Some(7), operator: "aten::mm".to_owned() };
        assert_eq!(watched.look(), doing);
        progress.turn(None);
        progress.begin(&"x".repeat(1000));
        let doing = watched.look();
        assert_eq!(
            (doing.begun, doing.connection, doing.operator.len()),
            (2, None, NAME_BYTES_MAX)
        );
        progress.begin("a\n\x1b[31m");
        assert_eq!(watched.look().operator, "", "nothing that a terminal would act on");
    }
}
