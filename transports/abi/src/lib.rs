//! What moves bytes between processes.
//!
//! - [`Link`]: one session's connection as the engine's surroundings see it: whole frames in
//!   order, and tensors in memory that both ends name by (region, offset).
//! - [`transport`]: what a transport implements, in safe Rust: listeners and connections with
//!   frames, registered memory, placed writes and completions. Authors start here.
//! - [`abi`]: the same as a C vtable, for transports that are loaded at run time. [`export`]
//!   makes one of a Rust transport, [`import`] makes a transport of one.
//!
//! This crate never opens a socket; `transports/*` do.

pub mod abi;
pub mod export;
pub mod import;
mod link;
mod memory;
pub mod transport;

pub use link::{Frame, Link, LinkError, SEND_QUEUE_BYTES_MAX};
pub use memory::{MemoryError, SharedMemory};
