//! The semantically rich graph (SRG) of a program, segment by segment.
//!
//! A *segment* is what lies between two reads of the program, or a bounded window of it. While a
//! segment streams by, [`SegmentHasher`] hashes its records as they come and notes them compactly;
//! [`Segments`] then says whether the segment is known. Only for a new topology the notes are
//! turned into an [`Srg`]: a petgraph graph in memory SSA form, with costs and residencies.
//!
//! This crate never does I/O and never reads a clock; the same records give the same hashes and
//! graphs in every process.
//!
//! Start reading at [`hash`], then [`graph`].

pub mod cost;
pub mod digest;
pub mod graph;
pub mod hash;
pub mod id_map;
mod mix;
pub mod segments;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod window;

pub use cost::Cost;
pub use digest::TemplateDigest;
pub use graph::{Edge, EdgeKind, Node, NodeKind, Residency, Srg};
pub use hash::{SegmentHasher, SegmentHashes};
pub use id_map::IdMap;
pub use mix::Hash128;
pub use segments::{Lookup, Segments};
pub use trace::{LocalStorage, Origin, Stage, Trace, Version};
pub use window::{Noted, Window};
