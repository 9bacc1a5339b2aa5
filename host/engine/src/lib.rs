//! What the host decides, without doing it: the state machine of one client's session.
//!
//! [`Session`] is fed with frames from the client, frames from the node and the news that a link
//! closed; it answers with [`Action`]s. It validates every record before a node sees it, follows
//! the program's segments, keeps the counts, and answers for a node that is lost.
//!
//! This crate never does I/O, never reads a clock, the environment or randomness. A session holds
//! no other session's state; which weights there are only the node knows.
//!
//! Start reading at [`session`].

pub mod action;
pub mod counters;
mod error;
mod fold;
pub mod history;
pub mod plan;
mod regions;
pub mod segmenter;
pub mod session;
mod storages;
mod tape;
mod tokens;

pub use action::Action;
pub use counters::Counters;
pub use error::SessionError;
pub use history::Snapshot;
pub use plan::Plan;
pub use segmenter::NewTopology;
pub use session::{Limits, Session, SessionConfig};
pub use tokens::HOST_TOKENS;
