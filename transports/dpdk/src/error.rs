//! What can go wrong with DPDK, and what to do about it.

use std::ffi::CStr;

use dpdk_sys as sys;

/// Why the device layer could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DpdkError {
    #[error("the setting {name} = {value:?} is not understood: {expected}")]
    Setting { name: &'static str, value: String, expected: &'static str },
    #[error("the setting {name} is missing: {expected}")]
    Missing { name: &'static str, expected: &'static str },
    #[error(
        "libdpdk {found} was found at run time, but this plugin was built with {built}: \
         build it again (`make test-dpdk`) or install the other"
    )]
    Version { found: String, built: String },
    #[error(
        "DPDK did not start with \"{arguments}\": {reason}. Its own words are on standard error"
    )]
    Start { arguments: String, reason: String },
    #[error(
        "DPDK runs in this process already, started with \"{running}\"; \"{asked}\" needs a process \
         of its own (DPDK starts once in a process)"
    )]
    Running { running: String, asked: String },
    #[error("the device {device} is not there: {reason}. {advice}")]
    NoDevice { device: String, reason: String, advice: &'static str },
    #[error("the device {device} is in use by this process with other settings")]
    DeviceBusy { device: String },
    #[error("could not {step} ({device}): {reason}")]
    Port { device: String, step: String, reason: String },
    #[error("no memory for {what}: {reason}. Give DPDK more (setting memory_mb)")]
    NoMemory { what: String, reason: String },
    #[error("{bytes} bytes at {address:#x} could not be {step}: {reason}")]
    Memory { address: usize, bytes: usize, step: &'static str, reason: String },
    #[error("GPU {gpu}: could not {step}: {reason}")]
    Gpu { gpu: i16, step: &'static str, reason: String },
    #[error("the file {path} is in the way: {reason}")]
    Socket { path: String, reason: String },
    #[error("{what}: {reason}")]
    Os { what: &'static str, reason: String },
    #[error("the DPDK thread ended; restart the process")]
    Ended,
}

pub type Result<T> = std::result::Result<T, DpdkError>;

/// DPDK's text for an errno, given positive or negative.
pub fn reason(errno: i32) -> String {
    // SAFETY: rte_strerror accepts any number and returns a string that lives until this thread's
    // next call of it; it is copied at once.
    let text = unsafe { CStr::from_ptr(sys::rte_strerror(errno.saturating_abs())) };
    text.to_string_lossy().into_owned()
}

/// The text for this thread's `rte_errno`.
pub fn last_reason() -> String {
    // SAFETY: reads a thread-local number.
    reason(unsafe { sys::genie_errno() })
}
