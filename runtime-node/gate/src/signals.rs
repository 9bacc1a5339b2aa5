//! Signals as a descriptor.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::Context;

/// How the node is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: sessions may finish.
    Drain,
    /// SIGINT or SIGHUP.
    AtOnce(&'static str),
}

/// The signals that end the node.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The ending signals, blocked and read one by one.
pub struct EndingSignals(OwnedFd);

impl EndingSignals {
    /// Blocks the ending signals in this thread and those it starts.
    pub fn block() -> anyhow::Result<Self> {
        ending_signals().map(EndingSignals)
    }

    /// The next one that came, if any.
    pub fn next(&self) -> Option<Signal> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut info).ok()?;
        // The signal's number is the first field, of 32 bits.
        let number = info.first_chunk::<4>().filter(|_| read == info.len())?;
        Some(match u32::from_ne_bytes(*number) as libc::c_int {
            libc::SIGTERM => Signal::Drain,
            libc::SIGINT => Signal::AtOnce("SIGINT"),
            _ => Signal::AtOnce("SIGHUP"),
        })
    }
}

/// Readable when one came.
impl AsFd for EndingSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn ending_signals() -> anyhow::Result<OwnedFd> {
    // SAFETY: an all-zero `sigset_t` is valid storage; `sigemptyset` initialises it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writes.
    unsafe { libc::sigemptyset(&mut set) };
    for signal in ENDING {
        // SAFETY: `set` is initialised and `signal` is a valid number.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    // SAFETY: `set` is initialised; the old mask is not wanted.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(std::io::Error::from_raw_os_error(error)).context("block signals");
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("wait for signals");
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
