//! What a node's gate, its zygote and its workers say to each other: messages with descriptors
//! over a socket that keeps their bounds ([`Channel`], [`message`]), a page of memory in which a worker
//! tells what it is doing ([`Progress`]), one by which it borrows its device's memory
//! ([`Borrower`]), and the weights that workers share ([`Shelf`]).
//!
//! Either end may be taken over by whoever attacks it: what is received is bounded and checked, and
//! an end that breaks the form is left.

mod channel;
mod ends;
mod lease;
pub mod message;
mod progress;
mod shelf;

pub use channel::{Channel, ChannelError, MESSAGE_BYTES_MAX, QUEUE_MAX};
pub use ends::Ends;
pub use lease::{Ask, Borrower, Lender};
pub use message::Message;
pub use progress::{Doing, Progress, Watched};
pub use shelf::{SHARED_BYTES_MIN, Shelf};
