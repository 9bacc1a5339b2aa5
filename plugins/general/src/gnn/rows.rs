//! Rows of features that are picked by lists of integers, and pooled.

use std::ops::ControlFlow;

use genie_plugin::dataflow::{
    ByValue, CLIMB_MAX, carry, climb, leads_down, leads_up, seen_through,
};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::is_given;

use super::LOOK_MAX;
use crate::facts::Facts;

/// A list of integers that says which rows: two views of one tensor are two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct List {
    value: ValueId,
    offset: u64,
    len: i64,
}

/// Rows picked by a list.
#[derive(Debug, Clone, Copy)]
struct Picked {
    by: List,
    /// Rows picked by another list as long took part: both ends of edges.
    ends: bool,
    /// Each row is the sum of all rows up to it.
    running: bool,
}

/// Rows that were picked by one list and summed by another.
#[derive(Debug, Default)]
pub(super) struct Edges {
    rounds: usize,
    /// The longest list.
    pub len: i64,
}

impl Edges {
    pub fn confidence(&self) -> f32 {
        match self.rounds {
            0 => 0.0,
            1 => evidence::GOOD,
            _ => evidence::UNMISTAKABLE,
        }
    }
}

/// Experts of a language model pick and sum by the same list, or by one that scores chose; that is
/// no graph.
pub(super) fn edges(facts: &Facts<'_>) -> Edges {
    let (graph, mut found) = (facts.graph, Edges::default());
    carry(graph, &facts.nodes, ByValue::<Option<Picked>>::new(graph), |picked, node| {
        let from = together(graph, node, picked.of_inputs(graph, node).flatten());
        let sum = from.and_then(|from| summed(graph, node, from, picked));
        if let Some(list) = sum.filter(|list| !routes_words(facts, *list)) {
            found.rounds += 1;
            found.len = found.len.max(list.len);
        }
        let here = match (picks(graph, node), from) {
            _ if sum.is_some() => None,
            // The ends of segments pick rows of a running sum.
            (Some(by), None | Some(Picked { running: false, .. })) => {
                Some(Picked { by, ends: false, running: false })
            }
            (_, Some(from)) => {
                Some(Picked { running: from.running || runs(graph, node, from), ..from })
            }
            (None, None) => None,
        };
        move |out: Tensor<'_>| here.filter(|_| out.dtype.is_floating())
    });
    found
}

/// What the operands of a node were picked by; of several, that of which its result has one row
/// each.
fn together(graph: &Graph, node: NodeId, of: impl Iterator<Item = Picked>) -> Option<Picked> {
    let sizes = graph.output(node, 0).map_or(&[][..], |out| out.sizes);
    of.reduce(|held, next| match held.by.len == next.by.len {
        true => Picked {
            ends: held.ends || next.ends || held.by != next.by,
            running: held.running || next.running,
            ..held
        },
        false if sizes.contains(&next.by.len) => next,
        false => held,
    })
}

/// The list that picked the rows, if the node adds them into others by another list, or takes the
/// difference between where a running sum of them ends and where it began.
fn summed(
    graph: &Graph,
    node: NodeId,
    from: Picked,
    picked: &ByValue<Option<Picked>>,
) -> Option<List> {
    let adds = match graph.name(node) {
        "sub" => {
            let running = |of: Option<Picked>| of.is_some_and(|of| of.running);
            let fewer = graph.output(node, 0)?.size(0) != from.by.len;
            fewer && graph.inputs(node).len() == 2 && picked.of_inputs(graph, node).all(running)
        }
        "index_put" | "_index_put_impl" | "_unsafe_index_put" => {
            graph.args(node).any(|arg| arg == Arg::Bool(true)) && by_other(graph, node, from)
        }
        _ => graph.roles(node).has(Roles::SCATTER_SUM) && by_other(graph, node, from),
    };
    adds.then_some(from.by)
}

/// Whether the node's list is as long as the one that picked the rows, and another one.
fn by_other(graph: &Graph, node: NodeId, from: Picked) -> bool {
    let to = graph.input(node, 1).and_then(|index| list(graph, index));
    to.is_some_and(|to| to.len == from.by.len && (to != from.by || from.ends))
}

/// Whether the node sums picked rows up one after another.
fn runs(graph: &Graph, node: NodeId, from: Picked) -> bool {
    let Some(out) = graph.output(node, 0).filter(|_| graph.name(node) == "cumsum") else {
        return false;
    };
    let dim = graph.args(node).nth(1).and_then(|arg| arg.as_i64());
    (dim == Some(0) || dim == Some(-(out.dims() as i64))) && from.by.len == out.size(0)
}

/// Whether scores chose these numbers in a model of words: they send words to experts.
fn routes_words(facts: &Facts<'_>, list: List) -> bool {
    let mut entries = facts.modalities.entries.iter();
    facts.modalities.integers(list.value).chosen()
        && entries.any(|(_, entered)| entered.has(Modality::TOKENS))
}

/// The list by which a node picks rows of a tensor of numbers.
fn picks(graph: &Graph, node: NodeId) -> Option<List> {
    list(graph, picked_from(graph, node)?.1)
}

/// What a node picks rows of, and by which integers.
fn picked_from(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Tensor<'_>)> {
    let (table, index) = (graph.input(node, 0)?, graph.input(node, 1)?);
    // Types of nodes and words are looked up in parameters; edges pick among the nodes.
    let words = graph.name(node) == "embedding" && is_given(graph, table.value);
    let rows = graph.roles(node).has(Roles::GATHER) && graph.inputs(node).len() == 2 && !words;
    (rows && table.dtype.is_floating() && index.dtype.is_integer()).then_some((table, index))
}

fn list(graph: &Graph, index: Tensor<'_>) -> Option<List> {
    // One index for each row, also where it is repeated along the row.
    let rows = index.sizes.iter().zip(index.strides).filter(|(_, stride)| **stride != 0);
    let len = rows.fold(1i64, |product, (size, _)| product.saturating_mul(*size));
    let value = seen_through(graph, index.value);
    let list = List { value, offset: index.offset, len };
    (index.dtype.is_integer() && len > 1).then_some(list)
}

/// Features of which lists picked rows.
#[derive(Debug, Clone, Copy)]
struct Listed<'g> {
    of: Tensor<'g>,
    lists: i64,
}

/// A list of neighbours for each row of features: how sure. The lists stand in one table, or a
/// loop takes one after another.
pub(super) fn neighbours(facts: &Facts<'_>) -> f32 {
    let (mut found, mut near): (Vec<Listed<'_>>, _) = (Vec::new(), 0);
    for node in &facts.nodes {
        let Some((of, index)) = picked_from(facts.graph, *node) else { continue };
        let lists = pooled_lists(facts, *node, of, index);
        if lists > 0 {
            match found.iter_mut().rev().take(LOOK_MAX).find(|old| old.of.value == of.value) {
                Some(old) => old.lists += lists,
                None => found.push(Listed { of, lists }),
            }
        } else {
            near += usize::from(picks_nearest(facts.graph, *node, of, index));
        }
    }
    let (mut rounds, mut computed) = (0, false);
    for Listed { of, lists } in found {
        // A node without neighbours needs no list.
        let here = (2 * lists + of.size(0) - 1) / (2 * of.size(0));
        rounds += here;
        computed |= here > 0 && !is_given(facts.graph, of.value);
    }
    match (rounds, near) {
        (2.., _) if computed => evidence::STRONG,
        (1, _) if computed => evidence::LIKELY,
        (_, 2..) => evidence::LIKELY,
        (_, 1) => evidence::PLAUSIBLE,
        _ => 0.0,
    }
}

/// How many lists of rows a node reads of those that the program gave, if what they pick is
/// pooled.
fn pooled_lists(facts: &Facts<'_>, node: NodeId, of: Tensor<'_>, index: Tensor<'_>) -> i64 {
    let graph = facts.graph;
    let integers = facts.modalities.integers(seen_through(graph, index.value));
    let (rows, len) = (of.size(0), index.elements() as i64);
    if rows <= 2 || of.dims() != 2 || !integers.given() || integers.chosen() {
        return 0;
    }
    let lists = match index.dims() {
        1 if len >= 2 * rows && len % rows == 0 => rows,
        1 => 1,
        _ if graph.name(node) == "gather" => return 0,
        // For each row, or for each but one: what stands for no neighbour.
        _ if (rows - 1..=rows).contains(&index.size(0)) && index.size(-1) >= 2 => rows,
        _ => return 0,
    };
    // One list is pooled at once: anything may happen to a few rows.
    let pools = |reader: NodeId| {
        graph.roles(reader).has(Roles::REDUCTION)
            && graph.output(reader, 0).is_some_and(|sum| {
                lists > 1 || sum.elements() == of.size(-1) as u64 && sum.size(-1) > 1
            })
    };
    let out = graph.output(node, 0).map(|out| out.value);
    let pooled = out.is_some_and(|out| leads_down(graph, out, LOOK_MAX, pools, |_| lists > 1));
    if pooled { lists } else { 0 }
}

/// Whether a node picks neighbours that are the best of a matrix of distances between all pairs,
/// and what it picks is pooled.
fn picks_nearest(graph: &Graph, node: NodeId, of: Tensor<'_>, index: Tensor<'_>) -> bool {
    let scores = climb(graph, index.value, CLIMB_MAX, |_, node| {
        match (graph.name(node), graph.input(node, 0)) {
            ("topk" | "sort" | "argsort", scores) => ControlFlow::Break(scores),
            (_, Some(input)) if input.dtype.is_integer() => ControlFlow::Continue(input.value),
            _ => ControlFlow::Break(None),
        }
    });
    let is_softmax = |_, node| graph.roles(node).has(Roles::SOFTMAX);
    scores.is_some_and(|scores| {
        scores.size(-1) == scores.size(-2)
            && scores.size(-1) > 2
            && !leads_up(graph, scores.value, 8, is_softmax, |_| true)
    }) && graph.output(node, 0).is_some_and(|out| {
        out.elements() >= 2 * of.elements() && super::is_pooled(graph, out.value)
    })
}
