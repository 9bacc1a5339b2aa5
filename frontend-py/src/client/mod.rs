//! A session, as the program's side sees it: a tape, a link and the answers waited for.
//!
//! Threads append to one tape under one lock ([`core`](self)); whole records leave in frames of a
//! few KiB. Nothing waits until the program reads a value: then one waiting thread polls the link
//! for all of them. The interpreter is never asked for while the lock is held, so a thread that
//! holds the interpreter may take the lock. Start reading at [`Session`].

mod core;
mod counters;
mod error;
mod handshake;
pub mod limits;
mod linger;
mod marks;
mod pause;
mod script;
mod session;
mod sights;
#[cfg(test)]
mod tests;
mod transfer;
mod weights;

pub use counters::{Counters, MemoryUse};
pub use error::{ClientError, INTERRUPTED};
pub use handshake::Options;
pub use pause::{Hooks, NO_INTERPRETER, Pause};
pub use script::Noted;
pub use session::{Session, Settings, Stage};
pub use transfer::Content;
pub use weights::{begin_weights, end_weights};
