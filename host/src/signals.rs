//! Signals as a descriptor.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::Context;

/// How a host is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: sessions may finish.
    Drain,
    /// SIGINT or SIGHUP.
    AtOnce(&'static str),
}

/// The signals that stop a host.
const STOPPING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Ends the process when whoever reads its output has seen enough, as other commands do; Rust's programs
/// get an error instead. Sockets of ours never signal.
pub fn end_with_reader() {
    // SAFETY: the default action takes no handler that could be wrong.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Becomes readable when the process is asked to stop.
pub struct StopSignals {
    fd: OwnedFd,
}

impl StopSignals {
    /// Blocks the signals for this thread and those it starts, so that the descriptor gets them.
    /// Call before any thread is started.
    pub fn block() -> anyhow::Result<Self> {
        let set = stopping();
        // SAFETY: `set` is an initialised signal set; the old mask is not asked for.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(std::io::Error::from_raw_os_error(result)).context("block signals");
        }
        // SAFETY: -1 asks for a new descriptor; `set` outlives the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("make a signal descriptor");
        }
        // SAFETY: signalfd returned a new descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(StopSignals { fd })
    }

    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal that came, if any.
    pub fn next(&self) -> Option<Stop> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.fd, &mut info).ok()?;
        // The signal's number is the first field, of 32 bits.
        let number = info.first_chunk::<4>().filter(|_| read == info.len())?;
        Some(match u32::from_ne_bytes(*number) as libc::c_int {
            libc::SIGTERM => Stop::Drain,
            libc::SIGINT => Stop::AtOnce("SIGINT"),
            _ => Stop::AtOnce("SIGHUP"),
        })
    }
}

/// Lets a child get the signals again. Safe to call between fork and exec.
pub fn unblock_in_child() -> std::io::Result<()> {
    let set = stopping();
    // SAFETY: async-signal-safe, on an initialised signal set.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

fn stopping() -> libc::sigset_t {
    // SAFETY: a signal set is plain memory, which sigemptyset initialises.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in STOPPING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}
