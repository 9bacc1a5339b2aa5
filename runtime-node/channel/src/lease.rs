//! What a worker may take of its device's memory: the gate lends it, and lends more when asked.
//!
//! Both see two words of shared memory: what the worker has in use, and its lease. The worker
//! raises the first and then reads the second; the gate lowers the second and then reads the first.
//! So one of them sees what the other did, and the gate takes back what lies idle without a word to
//! the worker. A worker that asks waits for the answer, for there the operator stands.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::{MemoryError, SharedMemory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// How long a worker waits for an answer, before it takes it for a no.
const ANSWER_MAX: Duration = Duration::from_secs(10);

const PAGE_BYTES: u64 = 4096;

#[repr(C)]
struct Page {
    in_use: AtomicU64,
    lease: AtomicU64,
}

/// The worker's side.
#[derive(Debug)]
pub struct Borrower {
    memory: SharedMemory,
    socket: OwnedFd,
    /// Questions so far; locked while one is asked.
    asked: Mutex<u64>,
}

/// The gate's side.
#[derive(Debug)]
pub struct Lender {
    memory: SharedMemory,
    socket: OwnedFd,
    /// What was lent: the worker could write another into the page.
    lease: u64,
}

/// A worker's question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    number: u64,
    /// The bytes that it would have in use, all together.
    pub wanted: u64,
}

impl Borrower {
    /// The page and the socket that came from the gate.
    pub fn adopt(page: OwnedFd, socket: OwnedFd) -> Result<Self, MemoryError> {
        let memory = SharedMemory::adopt(page, PAGE_BYTES)?;
        Ok(Borrower { memory, socket, asked: Mutex::default() })
    }

    /// Where the worker counts what it has in use. Add before you take, subtract after you gave
    /// back, both sequentially consistent.
    pub fn in_use(&self) -> &AtomicU64 {
        &page(&self.memory).in_use
    }

    /// Read it, sequentially consistent, after adding to [`Borrower::in_use`].
    pub fn lease(&self) -> &AtomicU64 {
        &page(&self.memory).lease
    }

    /// Whether the worker may have so many bytes in use: asks for them if they are not lent.
    pub fn ask(&self, wanted: u64) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted <= self.lease().load(Ordering::SeqCst) {
            return true;
        }
        *asked += 1;
        let question = [*asked, wanted].map(u64::to_ne_bytes).concat();
        if send(&self.socket, &question, SendFlags::NOSIGNAL).is_err() {
            return false;
        }
        let until = Instant::now() + ANSWER_MAX;
        loop {
            let mut answer = [0; 8];
            match recv(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                // An earlier answer came too late.
                Ok((_, 8)) if u64::from_ne_bytes(answer) < *asked => {}
                Ok((_, 8)) => return wanted <= self.lease().load(Ordering::SeqCst),
                Ok(_) => return false,
                Err(Errno::AGAIN | Errno::INTR) => {
                    let left = until.saturating_duration_since(Instant::now());
                    let Ok(timeout) = Timespec::try_from(left) else { return false };
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
                    if matches!(poll(&mut fds, Some(&timeout)), Ok(0)) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

impl Lender {
    /// With nothing lent; the page and the socket for the worker.
    pub fn new() -> Result<(Self, OwnedFd, OwnedFd), MemoryError> {
        let os = |what| move |source: std::io::Error| MemoryError::Os { what, source };
        let memory = SharedMemory::create(PAGE_BYTES)?;
        let page = memory.fd().try_clone_to_owned().map_err(os("pass on shared memory"))?;
        let (socket, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|errno| os("make a socket for leases")(errno.into()))?;
        Ok((Lender { memory, socket, lease: 0 }, page, its))
    }

    /// Readable when [`Lender::asked`] has something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What the worker asks, if it does; an error when it is gone or asks in no known form.
    pub fn asked(&self) -> std::io::Result<Option<Ask>> {
        let mut bytes = [0; 16];
        match recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, 16)) => {
                let (number, wanted) = bytes.split_at(8);
                let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
                Ok(Some(Ask { number: word(number), wanted: word(wanted) }))
            }
            Ok((_, 0)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(std::io::ErrorKind::InvalidData.into()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Tells the worker that its question was decided: its lease says how.
    pub fn answer(&self, ask: Ask) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // One that is gone needs no answer; one that reads none gets none.
        let _ = send(&self.socket, &ask.number.to_ne_bytes(), flags);
    }

    pub fn lease(&self) -> u64 {
        self.lease
    }

    /// Lends so many bytes from now on, no fewer than before.
    pub fn lend(&mut self, bytes: u64) {
        assert!(bytes >= self.lease, "what is lent is taken back by another way");
        self.set(bytes);
    }

    /// Takes back what the worker does not have in use; returns how much that is.
    pub fn take_back(&mut self) -> u64 {
        let before = self.lease;
        let first = self.in_use().min(before);
        self.set(first);
        // What it took before it could see that.
        let now = self.in_use().clamp(first, before);
        self.set(now);
        before - now
    }

    fn in_use(&self) -> u64 {
        page(&self.memory).in_use.load(Ordering::SeqCst)
    }

    fn set(&mut self, lease: u64) {
        self.lease = lease;
        page(&self.memory).lease.store(lease, Ordering::SeqCst);
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

    fn pair() -> (Lender, Borrower) {
        let (lender, page, socket) = Lender::new().unwrap();
        (lender, Borrower::adopt(page, socket).unwrap())
    }

    #[test]
    fn a_worker_gets_what_it_asks_for_or_a_no() {
        let (mut lender, borrower) = pair();
        let worker =
            std::thread::spawn(move || (borrower.ask(100), borrower.ask(50), borrower.ask(101)));
        let next = |lender: &Lender| loop {
            if let Some(ask) = lender.asked().unwrap() {
                return ask;
            }
            std::thread::yield_now();
        };
        let ask = next(&lender);
        assert_eq!(ask.wanted, 100);
        lender.lend(100);
        lender.answer(ask);
        let ask = next(&lender);
        assert_eq!(ask.wanted, 101, "50 are lent already");
        lender.answer(ask);
        assert_eq!(worker.join().unwrap(), (true, true, false));
        assert!(lender.asked().is_err(), "it is gone");
    }

    #[test]
    fn what_lies_idle_is_taken_back() {
        let (mut lender, borrower) = pair();
        lender.lend(100);
        borrower.in_use().fetch_add(30, Ordering::SeqCst);
        assert_eq!((lender.take_back(), lender.lease()), (70, 30));
        assert_eq!(borrower.lease().load(Ordering::SeqCst), 30);
        // Whatever a worker claims, the gate's books hold.
        borrower.in_use().store(u64::MAX, Ordering::SeqCst);
        borrower.lease().store(u64::MAX, Ordering::SeqCst);
        assert_eq!((lender.take_back(), lender.lease()), (0, 30));
    }

    #[test]
    fn what_is_in_use_is_never_lent_twice() {
        let (mut lender, borrower) = pair();
        let (held, done) = (&AtomicU64::new(0), &AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..100_000 {
                    let now = borrower.in_use().fetch_add(1, Ordering::SeqCst) + 1;
                    if now <= borrower.lease().load(Ordering::SeqCst) {
                        held.store(1, Ordering::SeqCst);
                        held.store(0, Ordering::SeqCst);
                    }
                    borrower.in_use().fetch_sub(1, Ordering::SeqCst);
                }
                done.store(1, Ordering::SeqCst);
            });
            while done.load(Ordering::SeqCst) == 0 {
                lender.lend(1);
                lender.take_back();
                assert!(lender.lease() == 1 || held.load(Ordering::SeqCst) == 0);
            }
        });
    }
}
