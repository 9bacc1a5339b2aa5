//! Signals as a descriptor.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::Context;

/// The signals that stop a host.
const STOPPING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

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
