//! The SDK for Genie's plugins.
//!
//! A plugin is a WASM component that the host runs in a sandbox. It sees the graph of a window of
//! the program ([`Graph`]) and gives [`Annotations`] (a recognizer), a [`Plan`] (a policy),
//! [`Edit`]s (a rewriter) or [`Hint`]s. It never touches tensors, files, clocks or the network: a
//! wrong plugin costs speed, never an answer.
//!
//! Implement one trait of [`plugin`], hand it to one macro, and test it natively with the
//! `harness` feature. Start reading at [`plugin`], then [`graph`]; rules are made of [`operators`],
//! [`dataflow`] and [`shapes`].

pub mod annotations;
#[cfg(any(test, feature = "harness"))]
pub mod builder;
pub mod columns;
pub mod cost;
pub mod dataflow;
pub mod evidence;
pub mod graph;
#[doc(hidden)]
pub mod guest;
#[cfg(feature = "harness")]
pub mod harness;
pub mod log;
pub mod operators;
pub mod plan;
pub mod plugin;
#[cfg(feature = "harness")]
pub mod recorded;
pub mod shapes;
pub mod symbols;
#[cfg(test)]
mod testing;

pub use annotations::{Annotations, Match, ResidencyClaim, WorkloadClaim};
pub use columns::{Columns, MalformedColumns};
pub use graph::{Arg, DType, Graph, NodeId, Origin, Stage, StorageId, Tensor, ValueId};
pub use operators::Roles;
pub use plan::{Cluster, Device, Directive, Edit, Hint, Info, Link, Plan, Region, Sample};
pub use plugin::{HintGiver, Plugin, Policy, Recognizer, Rewriter};

/// What a plugin usually needs.
pub mod prelude {
    pub use crate::dataflow::climb;
    pub use crate::shapes::flow::{data_of, is_weighted};
    pub use crate::{
        Annotations, Arg, Cluster, DType, Edit, Graph, Hint, HintGiver, Info, NodeId, Origin, Plan,
        Plugin, Policy, Recognizer, Rewriter, Roles, Sample, Stage, StorageId, Tensor, ValueId,
    };
}
