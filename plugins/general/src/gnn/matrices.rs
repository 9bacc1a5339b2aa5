//! Matrices that are no parameters and multiply features from the left.

use std::collections::BTreeMap;

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, leads_down, leads_up, seen_through};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{factors, is_given, is_weighted};

use super::{level, projects};
use crate::facts::Facts;

/// What a value is, scaled, shifted and masked at most; of several operands, the last of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Constants, and given numbers that are no matrix.
    Numbers,
    /// A given matrix.
    Matrix(ValueId),
    #[default]
    Computed,
}

/// A matrix that stands on the left of products.
#[derive(Debug)]
struct Mixer {
    rows: i64,
    square: bool,
    /// It was scaled by its own sums.
    by_degree: bool,
    /// How often: before computed features, before given ones, as its transpose.
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
            (true, _, 1) if !self.by_degree => 0.0,
            (true, _, rounds) => level(rounds, self.by_degree),
        }
    }
}

/// How sure it is that such a matrix multiplies features in a row with products by parameters.
pub(super) fn mixes(facts: &Facts<'_>) -> f32 {
    let (graph, sources) = (facts.graph, sources(facts));
    let mut mixers: BTreeMap<(ValueId, u64), Mixer> = BTreeMap::new();
    for node in &facts.nodes {
        // One vector is a state, not features of several nodes.
        let of_rows = factors(graph, *node).filter(|(_, right)| right.dims() >= 2);
        let Some((left, right)) = of_rows else { continue };
        let Source::Matrix(matrix) = sources[left] else { continue };
        let features = seen_through(graph, right.value);
        if !is_matrix(left) || features == matrix || !is_in_a_layer(graph, *node, right, matrix) {
            continue;
        }
        let (rows, square) = (left.size(-2), is_square(left));
        let is_sum = |_, node| graph.name(node) == "sum";
        let by_degree = leads_up(graph, left.value, CLIMB_MAX, is_sum, |_| true);
        let new = Mixer { rows, square, by_degree, computed: 0, given: 0, back: 0 };
        let mixer = mixers.entry((matrix, left.offset)).or_insert(new);
        *match (is_given(graph, features), rows == mixer.rows) {
            (true, _) => &mut mixer.given,
            (false, true) => &mut mixer.computed,
            (false, false) => &mut mixer.back,
        } += 1;
    }
    mixers.values().map(Mixer::confidence).fold(0.0, f32::max)
}

fn is_matrix(tensor: Tensor<'_>) -> bool {
    tensor.dims() >= 2 && tensor.size(-1).min(tensor.size(-2)) > 2
}

fn is_square(tensor: Tensor<'_>) -> bool {
    tensor.dims() >= 2 && tensor.size(-1) == tensor.size(-2)
}

/// Whether a parameter multiplies features just before or after a node.
fn is_in_a_layer(graph: &Graph, node: NodeId, features: Tensor<'_>, matrix: ValueId) -> bool {
    let layer = |node: NodeId| projects(graph, node, matrix);
    let between = |node: NodeId| graph.roles(node).has(Roles::ELEMENTWISE.and(Roles::NORM));
    leads_up(graph, features.value, CLIMB_MAX, |_, node| layer(node), between)
        || graph.outputs(node).any(|out| leads_down(graph, out.value, CLIMB_MAX, layer, between))
}

fn sources(facts: &Facts<'_>) -> ByValue<Source> {
    let graph = facts.graph;
    let mut known = ByValue::new(graph);
    for out in graph.nodes().filter(|node| !graph.is_op(*node)).flat_map(|node| graph.outputs(node))
    {
        let matrix = is_matrix(out) && is_given(graph, out.value);
        known.set(out.value, if matrix { Source::Matrix(out.value) } else { Source::Numbers });
    }
    carry(graph, &facts.nodes, known, |known, node| {
        // Integers besides a matrix are indexes and sizes.
        let counts = |input: &Tensor<'_>| {
            !input.dtype.is_integer() || matches!(known[*input], Source::Matrix(_))
        };
        let inputs = || graph.inputs(node).filter(counts);
        let scales = matches!(graph.name(node), "mm" | "bmm") && inputs().all(is_square);
        let works =
            is_weighted(graph, node) || graph.roles(node).has(Roles::PRODUCT.and(Roles::GATHER));
        let (ones, of) = (writes_ones(facts, node), inputs().map(|input| known[input]).max());
        move |out: Tensor<'_>| match of {
            _ if ones => Source::Matrix(out.value),
            _ if works && !scales => Source::Computed,
            of => of.unwrap_or(Source::Numbers),
        }
    })
}

/// Whether a node puts ones where integers that the program gave say so.
fn writes_ones(facts: &Facts<'_>, node: NodeId) -> bool {
    let by_program = |input: Tensor<'_>| facts.modalities.integers(input.value).by_program();
    matches!(facts.graph.name(node), "scatter" | "eq" | "one_hot")
        && facts.graph.inputs(node).any(by_program)
}
