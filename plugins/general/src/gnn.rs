//! Graph networks: messages along edges, or products with an adjacency matrix.
//!
//! | way of writing it | evidence | file |
//! |---|---|---|
//! | by edges | rows are picked by one list of integers, what comes of them is summed into rows by another list as long, or by the ends of segments | `rows` |
//! | by neighbours | rows of features are picked by a list for each of these rows, in one table or in a loop, and pooled | `rows` |
//! | by a matrix | a matrix that is no parameter multiplies features from the left: a square one layer after layer, one of edges by nodes with its transpose | `matrices` |
//! | by pairs | what is computed for every two nodes weighs features: masked scores through a softmax, or filters from distances | `pairs` |

mod matrices;
mod pairs;
mod rows;
#[cfg(test)]
mod tests;

use genie_plugin::dataflow::{leads_down, seen_through};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use crate::facts::Facts;

/// Nodes that are looked at above or below a node.
const LOOK_MAX: usize = 32;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    // An image model that scatters is no graph network.
    if sees_images(facts) {
        return;
    }
    let edges = rows::edges(facts);
    let found = [edges.confidence(), rows::neighbours(facts), matrices::mixes(facts)];
    let confidence = found.into_iter().fold(pairs::weighs(facts), f32::max);
    if confidence < evidence::CLAIM_MIN {
        return;
    }
    notes.workload("gnn", confidence);
    if edges.len > 0 {
        notes.attribute("edges", edges.len.to_string());
    }
    if !facts.flow.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("gnn.layers", "gnn.message_passing", "", confidence, nodes);
    }
}

/// Whether convolutions over planes or volumes run.
fn sees_images(facts: &Facts<'_>) -> bool {
    let graph = facts.graph;
    facts.nodes.iter().filter(|node| graph.roles(**node).has(Roles::CONVOLUTION)).any(|node| {
        graph.input(*node, 1).is_some_and(|weight| weight.dims() >= 4 && weight.size(-1) > 1)
    })
}

/// Whether a pool over a dimension lies below a value.
fn is_pooled(graph: &Graph, value: ValueId) -> bool {
    leads_down(graph, value, LOOK_MAX, |node| graph.roles(node).has(Roles::REDUCTION), |_| true)
}

/// Whether a node is a product whose right operand is a parameter, and not this matrix.
fn projects(graph: &Graph, node: NodeId, matrix: ValueId) -> bool {
    let right = match graph.name(node) {
        "mm" | "linear" | "matmul" => graph.input(node, 1),
        "addmm" => graph.input(node, 2),
        _ => None,
    };
    right.map(|right| seen_through(graph, right.value)).is_some_and(|weight| {
        // Without other parameters the matrix may be one itself.
        weight != matrix && is_given(graph, weight)
    })
}
