//! Matrices that are no parameters and multiply features from the left.

use std::collections::BTreeMap;

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, leads_down, leads_up, seen_through};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::{level, projects};
use crate::facts::Facts;

/// What makes features of its operands.
const WORKS: Roles = Roles::PRODUCT
    .and(Roles::CONVOLUTION)
    .and(Roles::RECURRENCE)
    .and(Roles::FUSED_LAYER)
    .and(Roles::NORM)
    .and(Roles::GATHER);

/// What a value is of a given matrix: scaled, shifted and masked at most.
#[derive(Debug, Clone, Copy)]
struct Outside {
    /// The matrix; `None` for constants and other given numbers.
    matrix: Option<ValueId>,
    /// It was scaled by its own sums.
    by_degree: bool,
}

/// A matrix that stands on the left of products: how often.
#[derive(Debug, Default)]
struct Mixer {
    rows: i64,
    /// It has another row for each edge, or was scaled by its own sums: no batch of rows.
    sure: bool,
    square: bool,
    /// Before computed features, before given ones, and as its transpose.
    computed: i64,
    given: i64,
    back: i64,
}

impl Mixer {
    fn confidence(&self) -> f32 {
        match (self.square, self.computed, self.computed + self.given) {
            (false, ..) => level(self.computed.min(self.back), true),
            // A square batch of rows times a parameter looks the same.
            (true, 0, _) => 0.0,
            (true, _, 1) if !self.sure => 0.0,
            (true, _, rounds) => level(rounds, self.sure),
        }
    }
}

/// How sure it is that such a matrix multiplies features in a row with products by parameters.
pub(super) fn mixes(facts: &Facts<'_>) -> f32 {
    let (graph, outside) = (facts.graph, outside(facts));
    let mut mixers: BTreeMap<(ValueId, u64), Mixer> = BTreeMap::new();
    for node in &facts.nodes {
        let Some((left, right)) = operands(graph, *node) else { continue };
        let Some(Outside { matrix: Some(matrix), by_degree }) = outside[left] else { continue };
        let source = seen_through(graph, right.value);
        if !is_matrix(left) || source == matrix || !is_in_a_layer(graph, *node, right, matrix) {
            continue;
        }
        let rows = left.size(-2);
        let mixer = mixers.entry((matrix, left.offset)).or_insert(Mixer {
            rows,
            square: is_square(left),
            ..Mixer::default()
        });
        mixer.sure |= by_degree;
        *match (is_given(graph, source), rows == mixer.rows) {
            (true, _) => &mut mixer.given,
            (false, true) => &mut mixer.computed,
            (false, false) => &mut mixer.back,
        } += 1;
    }
    mixers.values().map(Mixer::confidence).fold(0.0, f32::max)
}

/// The operands of a product, left and right.
fn operands(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Tensor<'_>)> {
    let first = match graph.name(node) {
        "mm" | "bmm" | "matmul" => 0,
        "addmm" | "baddbmm" => 1,
        _ => return None,
    };
    Some((graph.input(node, first)?, graph.input(node, first + 1)?))
}

fn is_matrix(tensor: Tensor<'_>) -> bool {
    tensor.dims() >= 2 && tensor.size(-1).min(tensor.size(-2)) > 2
}

fn is_square(tensor: Tensor<'_>) -> bool {
    tensor.dims() >= 2 && tensor.size(-1) == tensor.size(-2)
}

/// Whether a parameter multiplies features just before or after the node, with elementwise work
/// between.
fn is_in_a_layer(graph: &Graph, node: NodeId, features: Tensor<'_>, matrix: ValueId) -> bool {
    let projects = |node: NodeId| projects(graph, node, matrix);
    let between = |node: NodeId| graph.roles(node).has(Roles::ELEMENTWISE.and(Roles::NORM));
    leads_up(graph, features.value, CLIMB_MAX, |_, node| projects(node), between)
        || graph.outputs(node).any(|out| leads_down(graph, out.value, CLIMB_MAX, projects, between))
}

/// For each value, what it is of a given matrix, if it is that.
fn outside(facts: &Facts<'_>) -> ByValue<Option<Outside>> {
    let graph = facts.graph;
    let given = ByValue::given(graph, |value| {
        let matrix = graph.output(graph.producer(value), 0).is_some_and(is_matrix);
        Some(Outside { matrix: matrix.then_some(value), by_degree: false })
    });
    carry(graph, &facts.nodes, given, |known, node| {
        let written = places(facts, node);
        let carried = carried(graph, node, known);
        move |out: Tensor<'_>| match written {
            true => Some(Outside { matrix: Some(out.value), by_degree: false }),
            false => carried,
        }
    })
}

/// Whether a node puts ones where integers that the program gave say so.
fn places(facts: &Facts<'_>, node: NodeId) -> bool {
    matches!(facts.graph.name(node), "scatter" | "eq" | "one_hot")
        && facts.graph.inputs(node).any(|input| {
            let integers = facts.modalities.integers(input.value);
            integers.given() && !integers.chosen()
        })
}

/// What the results of a node are of the one matrix that its operands are of.
fn carried(graph: &Graph, node: NodeId, known: &ByValue<Option<Outside>>) -> Option<Outside> {
    // Integers besides a matrix are indexes and sizes.
    let is_known = |input: &Tensor<'_>| known[*input].is_some_and(|of| of.matrix.is_some());
    let inputs = || graph.inputs(node).filter(|input| !input.dtype.is_integer() || is_known(input));
    // Products are of something else, unless they scale rows and columns.
    let scales = matches!(graph.name(node), "mm" | "bmm") && inputs().all(is_square);
    if graph.roles(node).has(WORKS) && !scales {
        return None;
    }
    let mut sum = Outside { matrix: None, by_degree: graph.name(node) == "sum" };
    for input in inputs() {
        // Memory that nothing was written to yet is nothing.
        let is_memory = || !graph.is_op(graph.producer(input.value));
        let blank = Outside { matrix: None, by_degree: false };
        let part = known[input].or_else(|| is_memory().then_some(blank))?;
        sum.matrix = sum.matrix.or(part.matrix);
        sum.by_degree |= part.by_degree;
    }
    Some(sum)
}
