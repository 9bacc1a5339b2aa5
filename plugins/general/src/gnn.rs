//! Graph networks: messages along edges, or products with an adjacency matrix.
//!
//! | file | evidence |
//! |---|---|
//! | [`rows`] | a list of integers picks rows, another list or the ends of segments sum them |
//! | [`rows`] | each row of features has a list that picks rows of them, which are pooled |
//! | [`matrices`] | a matrix that is no parameter multiplies features, layer after layer |
//! | [`pairs`] | scores or filters for every two nodes weigh features |

mod matrices;
mod pairs;
mod rows;
#[cfg(test)]
mod tests;

use genie_plugin::dataflow::seen_through;
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{factors, is_given};

use crate::facts::Facts;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    // An image model that scatters is no graph network.
    if sees_images(facts) {
        return;
    }
    let rows = rows::summed(facts);
    let others = matrices::mixes(facts).max(pairs::weighs(facts));
    let confidence = rows.confidence(graph).max(others);
    if confidence < evidence::CLAIM_MIN {
        return;
    }
    notes.workload("gnn", confidence);
    if rows.edges > 0 {
        notes.attribute("edges", rows.edges.to_string());
    }
    if !facts.flow.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("gnn.layers", "gnn.message_passing", "", confidence, nodes);
    }
}

/// Whether convolutions over planes or volumes run.
fn sees_images(facts: &Facts<'_>) -> bool {
    let mut weights = facts.with(Roles::CONVOLUTION).filter_map(|node| facts.graph.input(node, 1));
    weights.any(|weight| weight.dims() >= 4 && weight.size(-1) > 1)
}

/// How sure so many rounds of messages are, by a sign that is sure or that others share.
fn level(rounds: i64, sure: bool) -> f32 {
    match (rounds, sure) {
        (..=0, _) => 0.0,
        (1, false) => evidence::PLAUSIBLE,
        (1, true) | (_, false) => evidence::LIKELY,
        (_, true) => evidence::STRONG,
    }
}

/// Whether a node is a product whose right operand is a parameter, and not this matrix.
fn projects(graph: &Graph, node: NodeId, matrix: ValueId) -> bool {
    factors(graph, node).is_some_and(|(_, right)| {
        let weight = seen_through(graph, right.value);
        weight != matrix && is_given(graph, weight)
    })
}
