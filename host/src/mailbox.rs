//! What other threads of the host tell a session's thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// An answer to a question about the trace, by the question's token.
pub type Answer = (u64, Result<Vec<u8>, String>);

/// One session's mailbox; its descriptor is readable while something lies in it.
pub struct Mailbox {
    event: OwnedFd,
    letters: Mutex<Letters>,
}

/// What lies in a mailbox.
#[derive(Debug, Default)]
pub struct Letters {
    /// As many at most as the queue of questions holds, for a session asks no others.
    pub answers: Vec<Answer>,
    /// The session is to end, for this reason.
    pub end: Option<String>,
}

impl Mailbox {
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { event, letters: Mutex::default() })
    }

    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub fn answer(&self, token: u64, answer: Result<Vec<u8>, String>) {
        self.lock().answers.push((token, answer));
        self.ring();
    }

    /// Ends the session; the first reason stays.
    pub fn end(&self, reason: &str) {
        self.lock().end.get_or_insert_with(|| reason.to_owned());
        self.ring();
    }

    pub fn take(&self) -> Letters {
        // Cleared first: what is put in from here on rings again.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        std::mem::take(&mut *self.lock())
    }

    fn ring(&self) {
        // Fails only where it is readable anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Letters are plain values: a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
