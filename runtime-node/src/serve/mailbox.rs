//! How the other threads of the process reach a server.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use genie_transport::Link;

use super::connection::First;
use rustix::event::{EventfdFlags, eventfd};

/// Connections passed on by another device's server, and orders of the main thread.
#[derive(Debug)]
pub struct Mailbox {
    event: OwnedFd,
    ordered: AtomicBool,
    orders: Mutex<Vec<Order>>,
    links: Mutex<Vec<Delivered>>,
}

/// What the main thread wants of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Refuse new sessions with these words, and end with the last that runs.
    Drain(String),
    /// End after this turn; sessions that still run are told these words.
    Stop(String),
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
        Ok(Mailbox {
            event,
            ordered: AtomicBool::new(false),
            orders: Mutex::default(),
            links: Mutex::default(),
        })
    }

    /// The server does so after the turn it is in.
    pub fn order(&self, order: Order) {
        self.orders.lock().expect("no holder of this lock panics").push(order);
        self.ordered.store(true, Ordering::Release);
        self.wake();
    }

    /// The orders since the last look, in order; looked for in every round, so without a lock.
    pub(super) fn orders(&self) -> Vec<Order> {
        match self.ordered.swap(false, Ordering::AcqRel) {
            true => std::mem::take(&mut *self.orders.lock().expect("no holder panics")),
            false => Vec::new(),
        }
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
