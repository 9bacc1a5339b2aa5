//! Patterns of dataflow, written in the order the data flows.
//!
//! ```
//! use genie_plugin::matcher::{op, weight};
//! # use genie_plugin::builder::GraphBuilder;
//! # let mut g = GraphBuilder::new();
//! # let (x, up, down) = (g.input(&[2, 4]), g.weight(&[4, 8]), g.weight(&[8, 4]));
//! # let y = g.op("aten::mm", &[x, up], &[2, 8]);
//! # let y = g.op("aten::gelu", &[y], &[2, 8]);
//! # g.op("aten::mm", &[y, down], &[2, 4]);
//! # let graph = g.build();
//! // Two products of weights with an activation between them.
//! let mlp = op(["mm", "addmm"])
//!     .with(weight())
//!     .named("up")
//!     .then(["relu", "gelu", "silu"])
//!     .then(["mm", "addmm"])
//!     .with(weight())
//!     .named("down");
//! for found in mlp.find(&graph) {
//!     assert_eq!(found.nodes().len(), 3);
//!     assert_eq!(graph.op_name(found.node("up").unwrap()), "mm");
//! }
//! # assert_eq!(mlp.find(&graph).len(), 1);
//! ```
//!
//! - [`op`] begins with an operator, [`weight`], [`tensor`] and [`anything`] with an operand.
//! - [`Pattern::then`] adds an operator that uses the result so far as one of its operands;
//!   [`Pattern::maybe`], [`Pattern::repeated`] and [`Pattern::any_number`] add one that may be
//!   missing or come several times in a row.
//! - [`Pattern::with`] says what else the last operator uses. Operands match in any order unless
//!   [`Pattern::operand`] gives the position.
//! - [`Pattern::or`] is another way to write the same thing.
//! - [`Pattern::when`] asks a question of your own about the last operator.
//! - Names: a name without `::` is any overload, in place or not (`add` is `aten::add_.Tensor`);
//!   with `::` it is the whole name; with `*` at its end it is how the name begins.
//! - Views are no nodes, so they never stand in the way; copies and casts between two steps are
//!   passed over (and belong to the match), unless [`Pattern::strict`] forbids it.
//!
//! A search is bounded: [`STEPS_MAX`] steps for each node it could end with. Where that does not
//! suffice the node counts as no match.

mod pattern;
mod search;

pub use pattern::{IntoOps, Ops, Pattern, anything, op, tensor, weight};
pub use search::{Found, OPERANDS_MAX, REPEATS_MAX, STEPS_MAX, disjoint};
