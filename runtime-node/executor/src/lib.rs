//! The node: executes a session's tape on one device and answers its reads.
//!
//! [`Executor`] is a state machine: records in, frames out through an [`Outbox`]. It does no I/O
//! and reads no clock, so the front end's `local` mode drives it directly, a node's worker
//! drives it from sockets ([`serve`]), and its tests drive it on a backend in plain memory.
//!
//! An operator that fails poisons what it would have written; nothing else changes. Only a peer
//! that breaks the protocol ends its session, and never another one.
//!
//! Start reading at [`Executor::execute`].

mod backend;
mod credits;
mod executor;
mod failure;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod ledger;
pub mod memory;
mod modules;
mod outbox;
mod pinned;
mod region;
pub mod serve;
mod session;
mod sharing;
mod storages;
pub mod transit;
mod weights;

pub use backend::{Backend, Pinned};
pub use executor::{Executor, ExecutorLimits, SessionSettings};
pub use failure::{Failure, SessionError};
pub use outbox::{Outbox, SentFrames};
pub use session::Session;
