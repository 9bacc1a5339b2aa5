//! A connection as futures, for programs that run on tokio.
//!
//! One task owns the connection, as one thread does otherwise. All futures here may be dropped at
//! any time: what has arrived stays queued.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;

use crate::transport::{
    Cause, Completion, Connection, Listener, Memory, MemoryKey, Part, Result, TransportError,
};

/// Completions that are kept for [`AsyncConnection::next`] while something else is waited for.
pub const QUEUE_MAX: usize = 16 << 10;

/// A connection whose calls wait instead of being refused.
pub struct AsyncConnection {
    connection: Box<dyn Connection>,
    // A descriptor of its own for the same event, so that tokio never holds a closed one.
    event: AsyncFd<OwnedFd>,
    queue: VecDeque<Completion>,
    scratch: Vec<Completion>,
    failed: Option<TransportError>,
    writable: u64,
}

/// A listener whose accept waits.
pub struct AsyncListener {
    listener: Box<dyn Listener>,
    event: AsyncFd<OwnedFd>,
}

fn watched(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>> {
    let watch = |fd| {
        // SAFETY: the descriptor is a copy that the `AsyncFd` owns: it stays open, and the same,
        // until that is dropped.
        unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
    };
    let failure = |error: std::io::Error| {
        TransportError::new(Cause::Io, format!("cannot watch an event descriptor: {error}"))
    };
    fd.try_clone_to_owned().and_then(watch).map_err(failure)
}

/// Waits until the descriptor is readable. tokio hears of changes only; a descriptor that is
/// readable all along must be seen too.
async fn readable(event: &AsyncFd<OwnedFd>) -> Result<()> {
    let mut now = [PollFd::new(event.get_ref(), PollFlags::IN)];
    if matches!(poll(&mut now, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
        // A plugin that is always due must not keep the other tasks from running.
        tokio::task::consume_budget().await;
        return Ok(());
    }
    match event.readable().await {
        Ok(mut guard) => {
            guard.clear_ready();
            Ok(())
        }
        Err(error) => Err(TransportError::new(Cause::Io, format!("waiting failed: {error}"))),
    }
}

impl AsyncListener {
    /// Call on a runtime with I/O.
    pub fn new(listener: Box<dyn Listener>) -> Result<Self> {
        let event = watched(listener.event_fd())?;
        Ok(AsyncListener { listener, event })
    }

    pub fn address(&self) -> String {
        self.listener.address()
    }

    /// The next connection. An error concerns one connection only.
    pub async fn accept(&mut self) -> Result<AsyncConnection> {
        loop {
            if let Some(connection) = self.listener.accept()? {
                return AsyncConnection::new(connection);
            }
            readable(&self.event).await?;
        }
    }
}

impl AsyncConnection {
    /// Call on a runtime with I/O.
    pub fn new(connection: Box<dyn Connection>) -> Result<Self> {
        let event = watched(connection.event_fd())?;
        let (queue, scratch) = (VecDeque::new(), Vec::new());
        Ok(AsyncConnection { connection, event, queue, scratch, failed: None, writable: 0 })
    }

    /// The next completion, in order; [`Completion::Writable`] is used up here. The error that
    /// ended the connection comes after everything that arrived before it, each time.
    pub async fn next(&mut self) -> Result<Completion> {
        loop {
            if let Some(completion) = self.queue.pop_front() {
                return Ok(completion);
            }
            self.progress().await?;
        }
    }

    /// The next completion if one is there; makes progress without waiting.
    pub fn try_next(&mut self) -> Result<Option<Completion>> {
        if self.queue.is_empty() {
            self.poll()?;
        }
        Ok(self.queue.pop_front())
    }

    /// Sends a frame; waits while the queue is full.
    pub async fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.with_credit(|connection| connection.send_frame(kind, parts, memory)).await
    }

    /// Posts a message; waits while too many are under way. [`Completion::Written`] comes by
    /// [`AsyncConnection::next`].
    pub async fn write(
        &mut self,
        message: u64,
        parts: &[Part],
        window: u32,
        offset: u64,
    ) -> Result<()> {
        self.with_credit(|connection| connection.write(message, parts, window, offset)).await
    }

    /// Waits until the peer has the message. Other completions stay for
    /// [`AsyncConnection::next`].
    pub async fn written(&mut self, message: u64) -> Result<()> {
        let is_it =
            |done: &Completion| matches!(done, Completion::Written { message: m } if *m == message);
        loop {
            if let Some(at) = self.queue.iter().position(is_it) {
                self.queue.remove(at);
                return Ok(());
            }
            self.room()?;
            self.progress().await?;
        }
    }

    /// Closes in an orderly way, and waits for the end. What still arrives is dropped.
    pub async fn close(&mut self, reason: &str) -> Result<()> {
        self.connection.close(reason);
        loop {
            self.queue.clear();
            match self.progress().await {
                Ok(()) => {}
                Err(error) if error.cause == Cause::Closed => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    pub fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.connection.register(memory)
    }

    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.connection.unregister(key)
    }

    pub fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.connection.offer(window, part)
    }

    pub fn withdraw(&mut self, window: u32) -> Result<()> {
        self.connection.withdraw(window)
    }

    /// For what needs no waiting: secrets, names, statistics.
    pub fn get_ref(&self) -> &dyn Connection {
        self.connection.as_ref()
    }

    /// The connection, and what arrived and was not taken.
    pub fn into_inner(self) -> (Box<dyn Connection>, VecDeque<Completion>) {
        (self.connection, self.queue)
    }

    async fn with_credit(
        &mut self,
        mut call: impl FnMut(&mut dyn Connection) -> Result<()>,
    ) -> Result<()> {
        loop {
            match call(self.connection.as_mut()) {
                Err(error) if error.cause == Cause::OutOfCredit => {}
                result => return result,
            }
            let before = self.writable;
            while self.writable == before {
                self.room()?;
                self.progress().await?;
            }
        }
    }

    /// Refuses to wait for one thing while nobody takes the others.
    fn room(&self) -> Result<()> {
        if self.queue.len() < QUEUE_MAX {
            return Ok(());
        }
        let message = format!("{QUEUE_MAX} completions wait: take them with `next` first");
        Err(TransportError::new(Cause::OutOfCredit, message))
    }

    fn poll(&mut self) -> Result<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let polled = self.connection.poll(&mut self.scratch);
        for completion in self.scratch.drain(..) {
            match completion {
                Completion::Writable => self.writable += 1,
                other => self.queue.push_back(other),
            }
        }
        self.failed = polled.err();
        Ok(())
    }

    /// Polls, and waits if nothing came of it.
    async fn progress(&mut self) -> Result<()> {
        let before = (self.queue.len(), self.writable);
        self.poll()?;
        if before != (self.queue.len(), self.writable) || self.failed.is_some() {
            return Ok(());
        }
        if self.connection.arm()? {
            tokio::task::consume_budget().await;
            return Ok(());
        }
        readable(&self.event).await
    }

    /// The descriptor that tells when a poll is due.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.get_ref().as_fd()
    }
}
