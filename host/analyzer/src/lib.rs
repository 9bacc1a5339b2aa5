//! From a window of the program to words about it.
//!
//! [`columns`] turns the graph of a window into what plugins see, [`merge`] makes one reading out
//! of what several recognizers said, [`explanation`] tells it to people and programs, and
//! [`picture`] draws it. This crate runs no plugin, does no I/O and reads no clock.
//!
//! Start reading at [`columns`], then [`merge`].

pub mod columns;
pub mod components;
pub mod explanation;
pub mod merge;
pub mod picture;
pub mod scramble;

pub use columns::{StorageFacts, columns};
pub use explanation::Explanation;
pub use merge::{Reading, merge};
