//! What the main thread waits for: signals, its parent's end, and what becomes of the servers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::signals::{EndingSignals, Signal};

/// How long servers may finish their turns when the node ends.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for what the servers and the world around tell.
pub struct Supervisor {
    signals: EndingSignals,
    parent: Option<OwnedFd>,
    /// Counts servers that ended.
    ended: Arc<OwnedFd>,
    /// Counts servers that serve.
    serving: Arc<OwnedFd>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Signal(Signal),
    /// The process given by `--parent-pid` ended.
    Parent,
    /// So many more servers ended, by themselves or drained. Their threads may take a moment more.
    Ended(u64),
    /// So many more servers serve.
    Serving(u64),
}

/// Tells the supervisor when a server's thread is about to end.
pub struct EndedFlag(Arc<OwnedFd>);

impl EndedFlag {
    pub fn after<T>(self, serve: impl FnOnce() -> T) -> T {
        // Dropped at the end, by a panic too.
        let _flag = self;
        serve()
    }
}

impl Drop for EndedFlag {
    fn drop(&mut self) {
        // Fails only when 2^64 servers ended before.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Tells the supervisor that a server serves.
pub struct ServingFlag(Arc<OwnedFd>);

impl ServingFlag {
    pub fn raise(self) {
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Supervisor {
    /// Call before starting threads: they inherit the signal mask.
    pub fn new(parent_pid: Option<i32>) -> anyhow::Result<Self> {
        let signals = EndingSignals::block()?;
        let parent = parent_pid.map(parent).transpose()?;
        let counter = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (ended, serving) = (Arc::new(counter()?), Arc::new(counter()?));
        Ok(Supervisor { signals, parent, ended, serving })
    }

    pub fn ended_flag(&self) -> EndedFlag {
        EndedFlag(self.ended.clone())
    }

    pub fn serving_flag(&self) -> ServingFlag {
        ServingFlag(self.serving.clone())
    }

    /// Waits for the next thing that happens; `None` when nothing did until the deadline.
    pub fn wait(&self, deadline: Option<Instant>) -> anyhow::Result<Option<Event>> {
        loop {
            let mut fds = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&*self.ended, PollFlags::IN),
                PollFd::new(&*self.serving, PollFlags::IN),
            ];
            fds.extend(self.parent.iter().map(|parent| PollFd::new(parent, PollFlags::IN)));
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Ok(None),
                result => result.context("wait for the end")?,
            };
            let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened.get(3) == Some(&true) {
                return Ok(Some(Event::Parent));
            }
            if happened[0]
                && let Some(signal) = self.signals.next()
            {
                return Ok(Some(Event::Signal(signal)));
            }
            if happened[1] {
                return Ok(Some(Event::Ended(take(&self.ended))));
            }
            if happened[2] {
                return Ok(Some(Event::Serving(take(&self.serving))));
            }
        }
    }

    /// Waits until all servers ended, but not longer than [`GRACE`].
    pub fn wait_for<T>(&self, servers: &[JoinHandle<T>]) -> bool {
        let deadline = Instant::now() + GRACE;
        while servers.iter().any(|server| !server.is_finished()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // A server counts itself just before its thread ends, hence short waits after that.
            if take(&self.ended) > 0 {
                std::thread::yield_now();
            }
            let wait = left.min(Duration::from_millis(10));
            let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
            // An error here only makes the loop look again.
            let _ = poll(&mut [PollFd::new(&*self.ended, PollFlags::IN)], Some(&wait));
        }
        true
    }
}

/// What was counted since the last look.
fn take(counter: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(counter, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// A descriptor that becomes readable when the process ends.
fn parent(pid: i32) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).context("--parent-pid must be positive")?;
    pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("watch the parent process {pid} (--parent-pid); did it end?"))
}
