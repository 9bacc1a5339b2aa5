//! What moves bytes between processes.
//!
//! - [`Link`]: one session's connection as the engine's surroundings see it: whole frames in
//!   order, and tensors in memory that both ends name by (region, offset).
//! - [`transport`]: what a transport implements, in safe Rust: listeners and connections with
//!   frames, registered memory, placed writes and completions. Authors start here.
//! - [`abi`]: the same as a C vtable, for transports that are loaded at run time. [`export`]
//!   makes one of a Rust transport, [`import`] makes a transport of one.
//!
//! - `load` (feature `load`): finds plugins in a directory, vets them, probes them in a child
//!   process, loads them.
//! - `kit` (feature `kit`): the checks that every transport must pass, for its author's tests.
//! - `asynchronous` (feature `tokio`): a connection as futures.
//!
//! This crate never opens a socket; `transports/*` do.

pub mod abi;
#[cfg(feature = "tokio")]
pub mod asynchronous;
pub mod export;
mod frozen;
pub mod import;
#[cfg(feature = "kit")]
pub mod kit;
mod link;
#[cfg(feature = "load")]
pub mod load;
mod memory;
#[cfg(feature = "load")]
pub mod probe;
pub mod transport;
#[cfg(feature = "load")]
pub mod vet;

pub use frozen::FrozenMemory;
pub use link::{Frame, Link, LinkError, LinkWay, SEND_QUEUE_BYTES_MAX};
pub use memory::{MemoryError, SharedMemory};
