//! What is computed for every two nodes and weighs their features.

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, leads_down};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::{level, projects};
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
                i64::from(known.of_inputs(graph, node).any(|of| of.signs & scored == scored));
        }
        filtered +=
            i64::from(pairs.signs & FILTER != 0 && meets_features(graph, node, pairs, known));
        move |out: Tensor<'_>| if out.dtype.is_floating() { pairs } else { Pairs::default() }
    });
    level(attended, true).max(level(filtered, false))
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
    let crosses = |i: isize, j: isize| {
        let n = out.size(i);
        (out.size(j), a.size(i), a.size(j), b.size(i), b.size(j)) == (n, n, 1, 1, n)
    };
    let cross = || {
        let i =
            (1..out.dims().min(8) as isize).find(|i| crosses(-i, -i - 1) || crosses(-i - 1, -i))?;
        Some(out.size(-i))
    };
    let (nodes, sign) = match graph.name(node) {
        "add" => (cross()?, SUM),
        "sub" if a.value == b.value => (cross()?, APART),
        "_cdist_forward" | "cdist" | "_euclidean_dist" if a.value == b.value => {
            (if out.size(-1) == out.size(-2) { out.size(-1) } else { 0 }, APART)
        }
        _ => return None,
    };
    (nodes > 2).then_some((nodes, sign))
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
        && graph.outputs(node).any(|out| {
            let pools = |node: NodeId| graph.roles(node).has(Roles::REDUCTION);
            leads_down(graph, out.value, 2 * CLIMB_MAX, pools, |_| true)
        })
}
