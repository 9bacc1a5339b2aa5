//! Questions about a graph that several recognizers ask. Each index is built once per graph, in
//! time linear in its length (or times its logarithm), and borrows it.
//!
//! | question | answer |
//! |---|---|
//! | where are the convolutions? | [`OpIndex`] |
//! | what runs in `model.layers.0`? | [`ModuleIndex`] |
//! | what does this lead to, what leads here? | [`ancestors`], [`descendants`], [`reaches`] |
//! | which layers repeat? | [`repeated_blocks`] |
//! | how long does a storage live, does it grow? | [`Lifetimes`] |
//! | which weights does a node use, is this tensor that one in disguise? | [`lineage`] |
//! | what is the longest chain of dependent work? | [`longest_chain`], [`depths`] |

mod blocks;
mod chains;
mod lifetimes;
pub mod lineage;
mod modules;
mod node_set;
mod ops;
mod reach;

pub use blocks::{Block, Detail, PERIOD_MAX, Repeats, all_repeats, repeated_blocks};
pub use chains::{depths, longest_chain};
pub use lifetimes::{Growth, Lifetime, Lifetimes};
pub use lineage::{derived_from, is_elementwise, is_transparent, seen_through, weights_of};
pub use modules::ModuleIndex;
pub use node_set::NodeSet;
pub use ops::{OpIndex, plain_name};
pub use reach::{Reached, ancestors, descendants, reaches};
