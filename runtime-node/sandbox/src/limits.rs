//! The kernel's limits on one process.
//!
//! Not used: `RLIMIT_NPROC` counts all processes of the user, the gate and other programs among
//! them, and not for root; seccomp refuses new processes. `RLIMIT_FSIZE` counts memfds too, which
//! tensors live in; files are refused by Landlock and seccomp. `RLIMIT_AS` counts what is reserved,
//! and drivers reserve more than any machine has.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Report;

/// How many descriptors a worker may have open: a few for each region of shared memory.
pub const OPEN_FILES: u64 = 4096;

pub fn set(report: &mut Report) {
    // A core file would hold the client's tensors. Where cores go to a program instead of a file the
    // kernel ignores this limit; `privileges` stops those too.
    lower(Resource::Core, 0, report);
    lower(Resource::Nofile, OPEN_FILES, report);
}

/// Sets both the limit and how far it can be raised again, never above what they are.
fn lower(resource: Resource, to: u64, report: &mut Report) {
    let maximum = getrlimit(resource).maximum.map_or(to, |maximum| maximum.min(to));
    let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    if let Err(errno) = setrlimit(resource, limit) {
        report.lacks(format!("limit {resource:?}: {errno}"));
    }
}
