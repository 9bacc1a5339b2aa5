//! How the other threads of the process reach a server.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use genie_transport::Link;

use super::connection::First;
use rustix::event::{EventfdFlags, eventfd};

/// Connections passed on by another device's server, and the word to stop.
#[derive(Debug)]
pub struct Mailbox {
    event: OwnedFd,
    stop: AtomicBool,
    links: Mutex<Vec<Delivered>>,
}

struct Delivered(Box<dyn Link>, First);

impl std::fmt::Debug for Delivered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Delivered").finish_non_exhaustive()
    }
}

impl Mailbox {
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { event, stop: AtomicBool::new(false), links: Mutex::new(Vec::new()) })
    }

    /// Ends the server after the turn it is in.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn deliver(&self, link: Box<dyn Link>, first: First) {
        self.links.lock().expect("no holder of this lock panics").push(Delivered(link, first));
        self.wake();
    }

    pub(super) fn take(&self) -> Vec<(Box<dyn Link>, First)> {
        // An event counter that is not readable was taken before: nothing to do about that.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        let links = std::mem::take(&mut *self.links.lock().expect("no holder panics"));
        links.into_iter().map(|Delivered(link, first)| (link, first)).collect()
    }

    pub(super) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn wake(&self) {
        // Fails only when 2^64 wakes are pending already, and then it is readable anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}
