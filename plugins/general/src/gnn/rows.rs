//! Rows of features that lists of integers pick, and what sums them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use genie_plugin::dataflow::{ByValue, CLIMB_MAX, carry, climb, leads_up, seen_through};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::is_given;

use super::level;
use crate::facts::Facts;

/// Rows of features that a list picked.
#[derive(Debug, Clone, Copy)]
struct Picked<'g> {
    of: Tensor<'g>,
    by: Tensor<'g>,
    /// Rows that another list as long picked took part: both ends of edges.
    both: bool,
    /// Each row is the sum of all rows up to it.
    running: bool,
}

/// What becomes of picked rows.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// The longest list of edges.
    pub edges: i64,
    by_other: usize,
    /// Of features: how many lists of their rows are pooled, and how many rows they have.
    lists: BTreeMap<ValueId, (i64, i64)>,
    /// Pools over the nearest neighbours.
    nearest: i64,
}

/// Follows rows from where they are picked to where they are summed.
pub(super) fn summed(facts: &Facts<'_>) -> Sums {
    let (graph, mut sums) = (facts.graph, Sums::default());
    carry(graph, &facts.nodes, ByValue::<Option<Picked<'_>>>::new(graph), |picked, node| {
        let from = together(graph, node, picked.of_inputs(graph, node).flatten());
        let ends = picked.of_inputs(graph, node).all(|of| of.is_some_and(|of| of.running));
        let here = match from {
            Some(from) if sums.adds(facts, node, from, ends) => None,
            // The ends of segments pick rows of a running sum.
            Some(from) if from.running || graph.name(node) == "cumsum" => {
                Some(Picked { running: true, ..from })
            }
            from => picks(graph, node).or(from),
        };
        move |out: Tensor<'_>| here.filter(|_| out.dtype.is_floating())
    });
    sums
}

impl Sums {
    pub fn confidence(&self, graph: &Graph) -> f32 {
        let edges = [0.0, evidence::GOOD, evidence::UNMISTAKABLE][self.by_other.min(2)];
        let (mut rounds, mut computed) = (0, false);
        for (of, (lists, rows)) in &self.lists {
            // As many lists as rows are one round; a node without neighbours needs none.
            let here = (2 * lists + rows - 1) / (2 * rows);
            rounds += here;
            computed |= here > 0 && !is_given(graph, *of);
        }
        let neighbours = if computed { level(rounds, true) } else { 0.0 };
        edges.max(neighbours).max(level(self.nearest, false))
    }

    /// Whether the node adds picked rows into rows by another list, or takes differences between
    /// the `ends` of segments of a running sum. Pools over lists are counted on the way.
    fn adds(&mut self, facts: &Facts<'_>, node: NodeId, from: Picked<'_>, ends: bool) -> bool {
        let graph = facts.graph;
        let Some(out) = graph.output(node, 0) else { return false };
        let adds = match graph.name(node) {
            "sub" => ends && out.size(0) != len(from.by),
            "index_put" | "_index_put_impl" => graph.args(node).any(|arg| arg == Arg::Bool(true)),
            _ => graph.roles(node).has(Roles::SCATTER_SUM),
        };
        let other = |to: Tensor<'_>| len(to) == len(from.by) && (from.both || !same(to, from.by));
        let by_other = ends || list(graph, node).is_some_and(other);
        if adds && by_other && !routes_words(facts, from.by.value) {
            self.by_other += 1;
            self.edges = self.edges.max(len(from.by));
        } else if graph.roles(node).has(Roles::REDUCTION) {
            self.pool(facts, from, out);
        }
        adds
    }

    /// Counts lists of neighbours: they stand in one table, or a loop takes one after another.
    fn pool(&mut self, facts: &Facts<'_>, from: Picked<'_>, sum: Tensor<'_>) {
        let (rows, len, one) = (from.of.size(0), len(from.by), from.by.dims() == 1);
        if rows < 3 {
            return;
        }
        let integers = facts.modalities.integers(from.by.value);
        let given = integers.by_program() && from.of.dims() == 2;
        // A table may have no list for what stands for no neighbour.
        let fits = if one { len % rows == 0 } else { (rows - 1..=rows).contains(&from.by.size(0)) };
        let each = fits && len >= 2 * rows && sum.elements() >= rows as u64;
        if given && (each || one && sum.elements() == from.of.size(-1) as u64) {
            let lists = &mut self.lists.entry(from.of.value).or_insert((0, rows)).0;
            *lists += if each { rows } else { 1 };
        } else if len >= 2 * rows && is_nearest(facts.graph, from.by.value) {
            self.nearest += 1;
        }
    }
}

/// What picked the operands of a node; of several lists, that of which its result has one row each.
fn together<'g>(
    graph: &Graph,
    node: NodeId,
    picked: impl Iterator<Item = Picked<'g>>,
) -> Option<Picked<'g>> {
    picked.reduce(|held, next| {
        let one_each = |out: Tensor<'_>| out.sizes.contains(&len(next.by));
        match len(held.by) == len(next.by) {
            true => Picked { both: held.both || next.both || !same(held.by, next.by), ..held },
            false if graph.output(node, 0).is_some_and(one_each) => next,
            false => held,
        }
    })
}

/// The rows that a node picks of a tensor of numbers.
fn picks(graph: &Graph, node: NodeId) -> Option<Picked<'_>> {
    let (of, by) = (graph.input(node, 0)?, list(graph, node)?);
    // Types of nodes and words are looked up in parameters; edges pick among the nodes.
    let words = graph.name(node) == "embedding" && is_given(graph, of.value);
    let rows = graph.roles(node).has(Roles::GATHER) && graph.inputs(node).len() == 2;
    let picked = Picked { of, by, both: false, running: false };
    (rows && !words && of.dtype.is_floating()).then_some(picked)
}

/// The integers by which a node may pick or sum rows, behind copies.
fn list(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    let by = graph.input(node, 1).filter(|by| by.dtype.is_integer() && len(*by) > 1)?;
    Some(Tensor { value: seen_through(graph, by.value), ..by })
}

/// How many rows a list names, also where it is repeated along the row.
fn len(list: Tensor<'_>) -> i64 {
    let dims = list.sizes.iter().zip(list.strides).filter(|(_, stride)| **stride != 0);
    dims.fold(1, |product: i64, (size, _)| product.saturating_mul(*size))
}

/// Whether two lists are one: two views of one tensor are two.
fn same(a: Tensor<'_>, b: Tensor<'_>) -> bool {
    (a.value, a.offset) == (b.value, b.offset)
}

/// Whether scores chose these numbers in a model of words: they send words to experts.
fn routes_words(facts: &Facts<'_>, list: ValueId) -> bool {
    let mut entries = facts.modalities.entries.iter();
    facts.modalities.integers(list).chosen() && entries.any(|(_, of)| of.has(Modality::TOKENS))
}

/// Whether integers are the best of a matrix of distances between all pairs.
fn is_nearest(graph: &Graph, index: ValueId) -> bool {
    let scores =
        climb(graph, index, CLIMB_MAX, |_, node| match (graph.name(node), graph.input(node, 0)) {
            ("topk" | "sort" | "argsort", scores) => ControlFlow::Break(scores),
            (_, Some(input)) if input.dtype.is_integer() => ControlFlow::Continue(input.value),
            _ => ControlFlow::Break(None),
        });
    let attends = |_, node| graph.roles(node).has(Roles::SOFTMAX);
    scores.is_some_and(|scores| {
        scores.size(-1) == scores.size(-2)
            && scores.size(-1) > 2
            && !leads_up(graph, scores.value, 8, attends, |_| true)
    })
}
