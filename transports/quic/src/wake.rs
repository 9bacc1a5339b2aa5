//! Waking a caller who sleeps on a descriptor: a waker for futures that the caller polls itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use genie_records::io;
use genie_transport::transport::Result;
use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that is written once until it is cleared.
pub(crate) struct Bell {
    fd: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    pub fn new() -> Result<Arc<Self>> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(io("make an eventfd"))?;
        Ok(Arc::new(Bell { fd, rung: AtomicBool::new(false) }))
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }

    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Cannot fail: the count is 0 or 1.
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// To be called before looking at what it rings for: who rings from then on rings anew.
    pub fn clear(&self) {
        if self.rung.load(Ordering::Acquire) {
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
            self.rung.store(false, Ordering::Release);
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}
