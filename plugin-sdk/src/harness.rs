//! Tests of plugins without wasm, host or accelerator (feature `harness`).
//!
//! ```
//! use genie_plugin::{builder::GraphBuilder, harness, prelude::*};
//!
//! # #[derive(Default)]
//! # struct Dense;
//! # impl Plugin for Dense { fn info() -> Info { Info::default() } }
//! # impl Recognizer for Dense {
//! #     fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
//! #         let mut notes = Annotations::new();
//! #         notes.matched("dense", "other.forward", "", 0.9, graph.nodes().filter(|n| graph.is_op(*n)));
//! #         notes.workload("other", 0.9);
//! #         Ok(notes)
//! #     }
//! # }
//! let mut g = GraphBuilder::new();
//! let (x, w) = (g.input(&[2, 4]), g.weight(&[4, 3]));
//! g.op("aten::mm", &[x, w], &[2, 3]);
//! let graph = g.build();
//!
//! let seen = harness::recognize::<Dense>(&graph);
//! seen.assert_workload("other");
//! seen.assert_phase_of("mm", "other.forward");
//! seen.assert_matched("dense");
//! println!("{}", seen.snapshot());
//! // Random graphs: no panic, nothing out of range.
//! harness::fuzz_recognizer::<Dense>(32);
//! ```
//!
//! Graphs come from [`crate::builder`] (by hand), from [`recorded`] (files of
//! `genie.export_graph(path)`) and from [`random_graphs`].

mod clusters;
mod fuzz;
mod outcome;
mod random;

use std::path::Path;

pub use clusters::{simulated_cluster, with_free_memory};
pub use fuzz::{
    fuzz_policy, fuzz_recognizer, fuzz_rewriter, in_range, plan_in_range, rewrite_in_range,
};
pub use outcome::{Outcome, Scheduled};
pub use random::{NODES_MAX, random_graphs};

use crate::recorded::Recorded;
use crate::{Annotations, Cluster, Edit, Graph, Policy, Recognizer, Rewriter};

/// The graph of a file that `genie.export_graph(path)` wrote.
///
/// # Panics
/// If it cannot be read; the message says why.
pub fn recorded(path: impl AsRef<Path>) -> Graph {
    let read = Recorded::read(path.as_ref()).unwrap_or_else(|error| panic!("{error}"));
    read.into_graph().unwrap_or_else(|error| panic!("{error}"))
}

/// What a recognizer says of a graph, with the default configuration.
///
/// # Panics
/// If the plugin fails or says something of nodes or storages that do not exist.
pub fn recognize<P: Recognizer>(graph: &Graph) -> Outcome<'_> {
    recognize_with(&configured::<P>("{}"), graph)
}

/// What a configured recognizer (see [`configured`]) says of a graph.
pub fn recognize_with<'g>(plugin: &impl Recognizer, graph: &'g Graph) -> Outcome<'g> {
    let notes = plugin.recognize(graph).unwrap_or_else(|error| panic!("recognize: {error}"));
    in_range(graph, &notes).unwrap_or_else(|error| panic!("{error}"));
    Outcome::new(graph, notes)
}

/// What a policy proposes, with the default configuration.
///
/// # Panics
/// If the plugin fails or the plan is not complete, on known devices and in a possible order.
pub fn schedule<P: Policy>(graph: &Graph, notes: &Annotations, now: &Cluster) -> Scheduled {
    let plan = configured::<P>("{}").schedule(graph, notes, now);
    let plan = plan.unwrap_or_else(|error| panic!("schedule: {error}"));
    plan_in_range(graph, now, &plan).unwrap_or_else(|error| panic!("{error}"));
    Scheduled::new(plan)
}

/// What a rewriter proposes, with the default configuration.
///
/// # Panics
/// If the plugin fails or names nodes that do not exist.
pub fn rewrite<P: Rewriter>(graph: &Graph, notes: &Annotations) -> Vec<Edit> {
    let edits = configured::<P>("{}").rewrite(graph, notes);
    let edits = edits.unwrap_or_else(|error| panic!("rewrite: {error}"));
    rewrite_in_range(graph, &edits).unwrap_or_else(|error| panic!("{error}"));
    edits
}

/// A plugin that took this `[config]` table (as JSON).
///
/// # Panics
/// If the plugin refuses it.
pub fn configured<P: crate::Plugin>(json: &str) -> P {
    let mut plugin = P::default();
    plugin.configure(json).unwrap_or_else(|error| panic!("configure: {error}"));
    plugin
}
