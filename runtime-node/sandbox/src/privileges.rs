//! What the process may do beyond its user's rights, and what its user may do to it.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

use crate::Report;

pub fn give_up(report: &mut Report) {
    if let Err(errno) = set_no_new_privs(true) {
        report.lacks(format!("no_new_privs: {errno}"));
    }
    // A node that root runs: its workers have none of root's powers.
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    if let Err(errno) = set_capabilities(None, none) {
        report.lacks(format!("dropping capabilities: {errno}"));
    }
    // Last, as a change of rights may reset it. Other processes of this user cannot trace this one
    // or read its memory, and no core is written, by no way.
    if let Err(errno) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        report.lacks(format!("closing the memory to others: {errno}"));
    }
}
