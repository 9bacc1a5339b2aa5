//! The transport on one machine: frames over a Unix stream socket, tensor payloads in sealed
//! shared memory whose descriptors travel beside `Region` frames.
//!
//! A link never blocks, never starts a thread and never trusts its peer: what it receives is
//! bounded, and a descriptor that was not announced is closed. Start reading at [`UnixLink`];
//! [`Listener`] accepts them.

mod inbox;
mod link;
mod listener;
mod outbox;
mod peer;

pub use link::{UnixLink, connect, connect_socket};
pub use listener::{BindError, Listener};
pub use peer::{peer_credentials, vouch};
