//! The kernel's limits on one process.
//!
//! Not used: `RLIMIT_NPROC` counts all processes of the user, the gate and other programs among
//! them, and not for root; seccomp refuses new processes. `RLIMIT_FSIZE` counts memfds too, which
//! tensors live in; files are refused by Landlock and seccomp. `RLIMIT_AS` counts what is reserved,
//! and allocators reserve more than any machine has; `RLIMIT_DATA` counts what may be written.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Report;

/// Of a thousand parts of the machine's memory, how many a worker seems to have more than it has.
const OOM_SCORE: &str = "200";

/// How many descriptors a worker may have open: a few for each region of shared memory.
pub const OPEN_FILES: u64 = 4096;

pub fn set(own_bytes: Option<u64>, report: &mut Report) {
    // A core file would hold the client's tensors. Where cores go to a program instead of a file the
    // kernel ignores this limit; `privileges` stops those too.
    lower(Resource::Core, 0, report);
    lower(Resource::Nofile, OPEN_FILES, report);
    if let Some(more) = own_bytes {
        match own_memory() {
            Some(now) => lower(Resource::Data, now.saturating_add(more), report),
            None => report.lacks("limit Data: /proc/self/status does not tell VmData"),
        }
    }
    // Where the machine's memory ends, the kernel looks for somebody: rather a worker than the gate.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        report.lacks(format!("oom_score_adj: {error}"));
    }
}

/// Bytes that [`Resource::Data`] counts.
fn own_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Sets both the limit and how far it can be raised again, never above what they are.
fn lower(resource: Resource, to: u64, report: &mut Report) {
    let maximum = getrlimit(resource).maximum.map_or(to, |maximum| maximum.min(to));
    let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    if let Err(errno) = setrlimit(resource, limit) {
        report.lacks(format!("limit {resource:?}: {errno}"));
    }
}
