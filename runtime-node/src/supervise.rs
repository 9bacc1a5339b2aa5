//! What ends the node: a signal, its parent's end, or a server's end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::signals::ending_signals;

/// How long servers may finish their turns when the node ends.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for what ends the node.
pub struct Supervisor {
    signals: OwnedFd,
    parent: Option<OwnedFd>,
    /// Counts servers that ended.
    ended: Arc<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Signal,
    Parent,
    Server,
}

impl Ended {
    pub fn exit_code(self) -> i32 {
        match self {
            Ended::Signal | Ended::Parent => 0,
            Ended::Server => 1,
        }
    }
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

impl Supervisor {
    /// Call before starting threads: they inherit the signal mask.
    pub fn new(parent_pid: Option<i32>) -> anyhow::Result<Self> {
        let signals = ending_signals()?;
        let parent = parent_pid.map(parent).transpose()?;
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Supervisor { signals, parent, ended })
    }

    pub fn ended_flag(&self) -> anyhow::Result<EndedFlag> {
        Ok(EndedFlag(self.ended.clone()))
    }

    /// Waits for the first thing that ends the node.
    pub fn wait(&self) -> anyhow::Result<Ended> {
        let mut fds = vec![(Ended::Signal, &self.signals), (Ended::Server, &*self.ended)];
        fds.extend(self.parent.iter().map(|parent| (Ended::Parent, parent)));
        loop {
            let mut polled: Vec<_> =
                fds.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::IN)).collect();
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result.context("wait for the end")?,
            };
            let ready = polled.iter().position(|fd| !fd.revents().is_empty());
            if let Some(index) = ready {
                return Ok(fds[index].0);
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
            let mut count = [0u8; 8];
            if rustix::io::read(&*self.ended, &mut count).is_ok() {
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

/// A descriptor that becomes readable when the process ends.
fn parent(pid: i32) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).context("--parent-pid must be positive")?;
    pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("watch the parent process {pid} (--parent-pid); did it end?"))
}
