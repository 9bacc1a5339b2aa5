//! The measured connection, driven as a session drives one: poll, then sleep on its descriptor.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use genie_transport::SharedMemory;
use genie_transport::transport::{Cause, Completion, Connection, Memory, MemoryKey, Part};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of a small message.
pub const SMALL: u64 = 64;
/// Time in which a step of the protocol between the sides must come.
pub const STEP: Duration = Duration::from_secs(20);

/// Windows of the serving side.
pub const REQUESTS: u32 = 1;
pub const BULK: u32 = 2;
/// Windows of the measuring side.
pub const REPLIES: u32 = 3;
pub const REPORT: u32 = 4;
/// Bytes of a report.
pub const REPORT_BYTES: u64 = 64 << 10;

/// What a request asks for; numbers may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Write the reply, and nothing else.
    Echo,
    /// Offer memory for this many large messages of so many bytes.
    Begin { in_flight: u64, bytes: u64 },
    /// Count from now.
    Mark,
    /// Write the report.
    Report,
}

impl Request {
    pub fn encode(self) -> [u8; SMALL as usize] {
        let (kind, a, b) = match self {
            Request::Echo => (1, 0, 0),
            Request::Begin { in_flight, bytes } => (2, in_flight, bytes),
            Request::Mark => (3, 0, 0),
            Request::Report => (4, 0, 0),
        };
        let mut out = [0; SMALL as usize];
        for (index, number) in [kind, a, b].into_iter().enumerate() {
            out[index * 8..][..8].copy_from_slice(&u64::to_le_bytes(number));
        }
        out
    }

    pub fn decode(bytes: &[u8; SMALL as usize]) -> anyhow::Result<Self> {
        let number =
            |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("8 bytes"));
        Ok(match number(0) {
            1 => Request::Echo,
            2 => Request::Begin { in_flight: number(1), bytes: number(2) },
            3 => Request::Mark,
            4 => Request::Report,
            other => anyhow::bail!("the other side asks for {other}, which this version lacks"),
        })
    }
}

/// Registered memory.
pub struct Block {
    pub memory: Arc<SharedMemory>,
    key: MemoryKey,
    bytes: u64,
}

impl Block {
    pub fn part(&self, offset: u64, bytes: u64) -> Part {
        Part { key: self.key, offset, bytes }
    }

    pub fn whole(&self) -> Part {
        self.part(0, self.bytes)
    }

    pub fn put(&self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.memory.write(offset, bytes).context("registered memory")
    }

    pub fn get<const N: usize>(&self, offset: u64) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.memory.read(offset, &mut bytes).context("registered memory")?;
        Ok(bytes)
    }
}

/// The connection, and what arrived and was not taken.
pub struct Wire<'a> {
    pub connection: Box<dyn Connection>,
    stop: Option<BorrowedFd<'a>>,
    queue: VecDeque<Completion>,
    scratch: Vec<Completion>,
    message: u64,
}

/// Ctrl-C, which is no failure.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl<'a> Wire<'a> {
    /// `stop` ends every wait when it becomes readable.
    pub fn new(connection: Box<dyn Connection>, stop: Option<BorrowedFd<'a>>) -> Self {
        let (queue, scratch) = (VecDeque::new(), Vec::new());
        Wire { connection, stop, queue, scratch, message: 0 }
    }

    pub fn block(&mut self, bytes: u64) -> anyhow::Result<Block> {
        let (memory, shared) = Memory::allocate(bytes).context("memory for messages")?;
        // Touched now: the first message should not pay for the pages.
        let page = vec![1; 1 << 16];
        for offset in (0..bytes).step_by(page.len()) {
            let len = (bytes - offset).min(page.len() as u64) as usize;
            shared.write(offset, &page[..len]).context("memory for messages")?;
        }
        let key = self.connection.register(memory).context("register memory")?;
        Ok(Block { memory: shared, key, bytes })
    }

    /// The next completion; `None` at the time `until`.
    pub fn next(&mut self, until: Instant) -> anyhow::Result<Option<Completion>> {
        loop {
            if let Some(completion) = self.queue.pop_front() {
                return Ok(Some(completion));
            }
            let polled = self.connection.poll(&mut self.scratch);
            self.queue.extend(self.scratch.drain(..));
            if self.queue.is_empty() {
                polled?;
                if !self.connection.arm()? {
                    let fd = self.connection.event_fd();
                    let fds = [Some(fd), self.stop];
                    if sleep(&fds, until)? {
                        return Err(Interrupted.into());
                    }
                }
                if Instant::now() >= until {
                    return Ok(None);
                }
            }
        }
    }

    pub fn expect(&mut self, what: &str) -> anyhow::Result<Completion> {
        self.next(Instant::now() + STEP)?
            .with_context(|| format!("{what} did not come within {STEP:?}"))
    }

    pub fn connected(&mut self) -> anyhow::Result<()> {
        match self.expect("the connection")? {
            Completion::Connected => Ok(()),
            other => anyhow::bail!("{other:?} came before the connection"),
        }
    }

    /// Posts one message and returns its number, or `None` when there is no credit now.
    pub fn post(&mut self, part: Part, window: u32, offset: u64) -> anyhow::Result<Option<u64>> {
        match self.connection.write(self.message + 1, &[part], window, offset) {
            Ok(()) => {
                self.message += 1;
                Ok(Some(self.message))
            }
            Err(error) if error.cause == Cause::OutOfCredit => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The number that the next message has.
    pub fn next_message(&self) -> u64 {
        self.message + 1
    }
}

/// Sleeps until something is readable, or `until`. Whether the second (or a later) one is: those
/// ask to stop.
pub fn sleep(fds: &[Option<BorrowedFd<'_>>], until: Instant) -> anyhow::Result<bool> {
    let left = until.saturating_duration_since(Instant::now());
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(left).context("a wait")?;
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno).context("wait"),
    }
    Ok(polled[1..].iter().any(|fd| !fd.revents().is_empty()))
}

/// Seconds of processor time of this process.
pub fn cpu_seconds() -> f64 {
    // SAFETY: a zeroed `rusage` is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back() {
        let begin = Request::Begin { in_flight: 4, bytes: 8 << 20 };
        for request in [Request::Echo, begin, Request::Mark, Request::Report] {
            assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        }
        assert!(Request::decode(&[9; SMALL as usize]).is_err());
    }
}
