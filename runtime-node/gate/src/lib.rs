//! The node's process: everything but computing.
//!
//! One thread has all links, admits sessions, moves weights between nodes and watches the workers;
//! it never waits for a device and has no libtorch. Each client identity has a **worker** of its own
//! on each device that it uses, a process that can read and break nothing but itself. A host on this
//! machine speaks to its worker directly: the gate looks at its hello and passes the socket on. For a
//! host elsewhere the gate passes the frames on ([`relay`]).
//!
//! Start reading at [`Gate::run`].

mod door;
mod gate;
mod groups;
pub mod memory;
mod moves;
mod newcomers;
mod quotas;
mod relay;
mod sessions;
mod workers;
mod zygote;

pub use door::Door;
pub use gate::{Gate, GateError, GateParts, NodeFacts, Why};
pub use groups::{Groups, WEIGHT_MAX};
pub use quotas::{QuotaLimits, Quotas};
pub use workers::{Nursery, Told, WorkerLimits};
pub use zygote::{Zygote, ZygoteSettings};

#[cfg(test)]
mod moves_tests;
#[cfg(test)]
mod tests;
