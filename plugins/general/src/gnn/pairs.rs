//! What is computed for every two nodes and weighs their features.

use genie_plugin::dataflow::{ByValue, carry};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::{is_pooled, projects};
use crate::facts::Facts;

/// The difference of two places, or their distance.
const APART: u8 = 1;
/// Computed from differences by parameters.
const FILTER: u8 = 2;
/// The sum of a score for each of the two, with elementwise work since.
const SUM: u8 = 4;
/// Such a sum, bent by an activation; masked.
const BENT: u8 = 8;
const MASKED: u8 = 16;

/// What is known of a value that has something for every two of `nodes` nodes.
#[derive(Debug, Clone, Copy, Default)]
struct Pairs {
    /// 0: it has not.
    nodes: i64,
    signs: u8,
}

/// How sure it is that scores of pairs, masked and through a softmax, or filters from distances
/// weigh features.
pub(super) fn weighs(facts: &Facts<'_>) -> f32 {
    let graph = facts.graph;
    let (mut attended, mut filtered) = (0, 0);
    carry(graph, &facts.nodes, ByValue::<Pairs>::new(graph), |known, node| {
        let pairs = pairs(graph, node, known);
        let scored = SUM | BENT | MASKED;
        if graph.roles(node).has(Roles::SOFTMAX) {
            attended +=
                usize::from(known.of_inputs(graph, node).any(|of| of.signs & scored == scored));
        }
        filtered +=
            usize::from(pairs.signs & FILTER != 0 && meets_features(graph, node, pairs, known));
        move |out: Tensor<'_>| if out.dtype.is_floating() { pairs } else { Pairs::default() }
    });
    match (attended, filtered) {
        (1.., _) => evidence::GOOD,
        (_, 2..) => evidence::LIKELY,
        (_, 1) => evidence::PLAUSIBLE,
        _ => 0.0,
    }
}

/// What a node's results have for pairs.
fn pairs(graph: &Graph, node: NodeId, known: &ByValue<Pairs>) -> Pairs {
    let Some(out) = graph.output(node, 0) else { return Pairs::default() };
    let (nodes, mut signs) = crossed(graph, node).unwrap_or_else(|| {
        known
            .of_inputs(graph, node)
            .fold((0, 0), |(nodes, signs), of| (of.nodes.max(nodes), of.signs | signs))
    });
    // What was summed over one of the two is of no pair any more.
    if nodes == 0 || out.elements() == 0 || out.elements() % (nodes * nodes) as u64 != 0 {
        return Pairs::default();
    }
    if signs & APART != 0 && projects(graph, node, out.value) {
        signs |= FILTER;
    }
    if !graph.roles(node).has(Roles::ELEMENTWISE) {
        signs &= !SUM;
    }
    signs |= match graph.name(node) {
        "where" | "masked_fill" => MASKED,
        "leaky_relu" | "elu" | "relu" => BENT,
        _ => 0,
    };
    Pairs { nodes, signs }
}

/// Of how many nodes a node computes something for all pairs, `[.., n, 1, ..]` against
/// `[.., 1, n, ..]`, and what.
fn crossed(graph: &Graph, node: NodeId) -> Option<(i64, u8)> {
    let (a, b, out) = (graph.input(node, 0)?, graph.input(node, 1)?, graph.output(node, 0)?);
    let sign = match graph.name(node) {
        "sub" | "_cdist_forward" | "cdist" | "_euclidean_dist" if a.value == b.value => APART,
        "add" => SUM,
        _ => return None,
    };
    if !matches!(graph.name(node), "sub" | "add") {
        return (out.size(-1) == out.size(-2) && out.size(-1) > 2).then_some((out.size(-1), sign));
    }
    let dims = out.dims().min(8) as isize;
    let crosses = |i: isize, j: isize| {
        let n = out.size(-i);
        n > 2
            && out.size(-j) == n
            && (a.size(-i), a.size(-j), b.size(-i), b.size(-j)) == (n, 1, 1, n)
    };
    let pair = (1..=dims).find(|i| (1..=dims).any(|j| crosses(*i, j)))?;
    Some((out.size(-pair), sign))
}

/// Whether filters multiply computed features of one of the two nodes, and that is pooled.
fn meets_features(graph: &Graph, node: NodeId, pairs: Pairs, known: &ByValue<Pairs>) -> bool {
    let is_features = |input: Tensor<'_>| {
        known[input].nodes == 0
            && input.elements() >= 2 * pairs.nodes as u64
            && !is_given(graph, input.value)
    };
    graph.name(node) == "mul"
        && graph.inputs(node).any(is_features)
        && graph.output(node, 0).is_some_and(|out| is_pooled(graph, out.value))
}
