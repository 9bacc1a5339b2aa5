//! A network namespace without a way out: no interface but a loopback that is down.
//!
//! Only with `CAP_SYS_ADMIN`. Others could make one inside a new user namespace, but there the
//! kernel tells every other user, root too, as the overflow user (65534). A worker could not tell
//! who is at the other end of a socket, and one that itself runs as 65534 would take everybody for
//! its own user. Without the namespace, seccomp refuses sockets.

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::Report;

pub fn leave(report: &mut Report) {
    // SAFETY: descriptors and memory stay shared as they are; only the network changes.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Ok(()) => report.network_namespace = true,
        Err(errno) => report.lacks(format!("network namespace (CAP_SYS_ADMIN): {errno}")),
    }
}
