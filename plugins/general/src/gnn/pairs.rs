//! What is computed for every two nodes and weighs their features.

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, leads_down};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::{level, projects};
use crate::facts::Facts;

/// The difference of two places, or their distance.
const APART: u8 = 1;
/// Computed from that by parameters.
const FILTER: u8 = 2;
/// The sum of a score for each of the two.
const SUM: u8 = 4;
/// Such a sum, bent by an activation, and masked.
const BENT: u8 = 8;
const MASKED: u8 = 16;
const WEIGHTS: u8 = SUM | BENT | MASKED;

/// What a value has for every two of `nodes` nodes; of no nodes, nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Pairs {
    nodes: i64,
    signs: u8,
}

/// How sure it is that sums of scores, masked and through a softmax, or filters from distances
/// weigh features.
pub(super) fn weighs(facts: &Facts<'_>) -> f32 {
    let graph = facts.graph;
    let (mut attended, mut filtered) = (0, 0);
    carry(graph, &facts.nodes, ByValue::<Pairs>::new(graph), |known, node| {
        let mut before = known.of_inputs(graph, node);
        let weighs = before.any(|of| of.signs & WEIGHTS == WEIGHTS);
        attended += i64::from(weighs && graph.roles(node).has(Roles::SOFTMAX));
        let here = pairs(graph, node, known);
        filtered += i64::from(here.signs & FILTER != 0 && filters(graph, node, here.nodes, known));
        move |out: Tensor<'_>| if out.dtype.is_floating() { here } else { Pairs::default() }
    });
    level(attended, true).max(level(filtered, false))
}

/// What the results of a node have for pairs.
fn pairs(graph: &Graph, node: NodeId, known: &ByValue<Pairs>) -> Pairs {
    let elements = graph.output(node, 0).map_or(0, |out| out.elements());
    let both = |a: Pairs, b: Pairs| Pairs { nodes: a.nodes.max(b.nodes), signs: a.signs | b.signs };
    let before = || known.of_inputs(graph, node).fold(Pairs::default(), both);
    let Pairs { nodes, signs } = crossed(graph, node).unwrap_or_else(before);
    // What was summed over one of the two is of no pair any more.
    let whole = elements.is_multiple_of(nodes.saturating_mul(nodes) as u64);
    if nodes == 0 || elements == 0 || !whole {
        return Pairs::default();
    }
    let kept = if graph.roles(node).has(Roles::ELEMENTWISE) { signs } else { signs & !SUM };
    let new = match graph.name(node) {
        "where" | "masked_fill" => MASKED,
        "leaky_relu" | "elu" | "relu" => BENT,
        _ if signs & APART != 0 && projects(graph, node, ValueId(u32::MAX)) => FILTER,
        _ => 0,
    };
    Pairs { nodes, signs: kept | new }
}

/// What a node computes for all pairs, of `[.., n, 1, ..]` and `[.., 1, n, ..]`.
fn crossed(graph: &Graph, node: NodeId) -> Option<Pairs> {
    let (a, b, out) = (graph.input(node, 0)?, graph.input(node, 1)?, graph.output(node, 0)?);
    let crosses = |i: isize, j: isize| {
        let n = out.size(i);
        (out.size(j), a.size(i), a.size(j), b.size(i), b.size(j)) == (n, n, 1, 1, n)
    };
    let either = |i: &isize| crosses(-i, -i - 1) || crosses(-i - 1, -i);
    let cross = || (1..out.dims() as isize).find(either).map(|i| out.size(-i));
    let (nodes, signs) = match graph.name(node) {
        "add" => (cross()?, SUM),
        "sub" if a.value == b.value => (cross()?, APART),
        "_cdist_forward" | "_euclidean_dist" if a.value == b.value => (out.size(-1), APART),
        _ => return None,
    };
    (nodes > 2).then_some(Pairs { nodes, signs })
}

/// Whether filters multiply computed features of one of two nodes, and that is pooled.
fn filters(graph: &Graph, node: NodeId, nodes: i64, known: &ByValue<Pairs>) -> bool {
    let mut features = graph.inputs(node).filter(|input| {
        let many = input.elements() >= 2 * nodes as u64;
        many && known[*input].nodes == 0 && !is_given(graph, input.value)
    });
    let pools = |node: NodeId| graph.roles(node).has(Roles::REDUCTION);
    graph.name(node) == "mul"
        && features.next().is_some()
        && graph
            .output(node, 0)
            .is_some_and(|out| leads_down(graph, out.value, 2 * CLIMB_MAX, pools, |_| true))
}
