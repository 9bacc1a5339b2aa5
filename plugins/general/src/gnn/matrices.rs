//! Matrices that are no parameters and multiply features from the left.

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, leads_down, leads_up, seen_through};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::{LOOK_MAX, projects};
use crate::facts::Facts;

/// What a value is of a given matrix: scaled, shifted and masked at most.
#[derive(Debug, Clone, Copy)]
struct Outside {
    /// The matrix; `None` for constants and other given numbers.
    matrix: Option<ValueId>,
    /// It was scaled by its own sums.
    by_degree: bool,
}

/// A matrix that stands on the left of products.
#[derive(Debug)]
struct Mixer {
    matrix: ValueId,
    offset: u64,
    rows: i64,
    /// Of edges by nodes, or of nodes by edges.
    oblong: bool,
    by_degree: bool,
    /// How often it multiplies computed features, given ones, and computed ones as its transpose.
    computed: usize,
    given: usize,
    back: usize,
}

impl Mixer {
    fn confidence(&self) -> f32 {
        if self.oblong {
            return match self.computed.min(self.back) {
                0 => 0.0,
                1 => evidence::FAIR,
                _ => evidence::GOOD,
            };
        }
        match (self.computed, self.computed + self.given, self.by_degree) {
            // A square batch of rows times a parameter looks the same.
            (0, _, _) | (_, 1, false) => 0.0,
            (_, 2.., true) => evidence::STRONG,
            _ => evidence::LIKELY,
        }
    }
}

/// How sure it is that such a matrix multiplies features in a row with products by parameters.
pub(super) fn mixes(facts: &Facts<'_>) -> f32 {
    let graph = facts.graph;
    let outside = outside(facts);
    let mut mixers: Vec<Mixer> = Vec::new();
    for node in &facts.nodes {
        let Some((left, right, sparse)) = operands(graph, *node) else { continue };
        let Some(Outside { matrix: Some(matrix), by_degree }) = outside[left] else { continue };
        let source = seen_through(graph, right.value);
        if source == matrix || !is_in_a_layer(graph, *node, right, matrix) {
            continue;
        }
        let known = |mixer: &Mixer| mixer.matrix == matrix && mixer.offset == left.offset;
        let known = mixers.iter().rev().take(LOOK_MAX).position(known);
        let at = known.map_or(mixers.len(), |back| mixers.len() - 1 - back);
        let (rows, oblong) = (left.size(-2), !sparse && left.size(-2) != left.size(-1));
        if known.is_none() {
            let (offset, by_degree) = (left.offset, by_degree || sparse);
            let (computed, given, back) = (0, 0, 0);
            mixers.push(Mixer { matrix, offset, rows, oblong, by_degree, computed, given, back });
        }
        let mixer = &mut mixers[at];
        mixer.by_degree |= by_degree;
        *match (is_given(graph, source), rows == mixer.rows) {
            (true, _) => &mut mixer.given,
            (false, true) => &mut mixer.computed,
            (false, false) => &mut mixer.back,
        } += 1;
    }
    mixers.iter().map(Mixer::confidence).fold(0.0, f32::max)
}

/// The operands of a product that may mix rows, left and right, and whether the left one is sparse.
fn operands(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Tensor<'_>, bool)> {
    let (first, sparse) = match graph.name(node) {
        "mm" | "bmm" | "matmul" => (0, false),
        "addmm" | "baddbmm" => (1, false),
        "_sparse_mm" | "spmm" => (0, true),
        _ => return None,
    };
    let (left, right) = (graph.input(node, first)?, graph.input(node, first + 1)?);
    (sparse || is_matrix(left)).then_some((left, right, sparse))
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
    let name = graph.name(node);
    // Integers besides a matrix are indexes and sizes.
    let is_matrix = |input: &Tensor<'_>| known[*input].is_some_and(|of| of.matrix.is_some());
    let floats =
        || graph.inputs(node).filter(|input| !input.dtype.is_integer() || is_matrix(input));
    // Scaled from both sides.
    let scaled = matches!(name, "mm" | "bmm") && floats().all(is_square);
    let keeps = graph.roles(node).has(Roles::ELEMENTWISE)
        || matches!(name, "sum" | "eye" | "diag" | "diag_embed" | "diagonal" | "fill_diagonal")
        || matches!(name, "zero" | "repeat" | "index_put" | "ones_like");
    if !scaled && !keeps {
        return None;
    }
    let mut sum = Outside { matrix: None, by_degree: name == "sum" };
    for input in floats() {
        match known[input] {
            Some(part) => {
                sum.matrix = sum.matrix.or(part.matrix);
                sum.by_degree |= part.by_degree;
            }
            // Memory that nothing was written to yet.
            None if !graph.is_op(graph.producer(input.value)) => {}
            None => return None,
        }
    }
    Some(sum)
}
