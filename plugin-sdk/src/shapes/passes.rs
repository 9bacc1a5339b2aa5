//! Passes over tokens: from one lookup of tokens to the next.

use std::collections::HashSet;

use crate::graph::{Graph, NodeId, StorageId, ValueId};
use crate::shapes::attention::{Attention, Causality};
use crate::shapes::flow::{Flow, is_given, is_weighted, product};
use crate::shapes::modality::{Modalities, Modality, lookup};

/// What happened between two lookups of tokens.
#[derive(Debug, Clone)]
pub struct Pass {
    /// The lookup, and the node after the pass's last.
    pub start: NodeId,
    pub end: NodeId,
    /// Tokens of one sequence that are looked up.
    pub tokens: i64,
    /// Rows of the table.
    pub vocabulary: i64,
    /// Whether the tokens were chosen by scores: argmax or sampling.
    pub chosen: bool,
    /// Attentions of the pass, by their index.
    pub attentions: Vec<usize>,
    /// Those whose keys do not depend on the pass's own tokens.
    pub crossing: Vec<usize>,
    pub causal: bool,
    pub bidirectional: bool,
    /// Positions from before the pass that its attentions look at (0: none).
    pub past: i64,
    /// Products that score every row of the vocabulary.
    pub scores: Vec<NodeId>,
    /// What flows into the pass from outside: modalities of crossing keys and of what is mixed
    /// into the tokens.
    pub mixed: Modality,
    /// Products with parameters.
    pub weighted: usize,
}

impl Pass {
    fn new(start: NodeId, graph: &Graph, tokens: i64, vocabulary: i64, chosen: bool) -> Pass {
        Pass {
            start,
            end: NodeId(graph.len() as u32),
            tokens,
            vocabulary,
            chosen,
            attentions: Vec::new(),
            crossing: Vec::new(),
            causal: false,
            bidirectional: false,
            past: 0,
            scores: Vec::new(),
            mixed: Modality::NONE,
            weighted: 0,
        }
    }
}

/// All passes of a window, and for each value the latest pass it depends on.
#[derive(Debug, Clone, Default)]
pub struct Passes {
    pub list: Vec<Pass>,
    latest: Vec<u32>,
}

/// Stands for "no pass".
const NO_PASS: u32 = u32::MAX;

impl Passes {
    /// The index of the latest pass whose tokens a value depends on.
    pub fn latest(&self, value: ValueId) -> Option<usize> {
        match self.latest[value.0 as usize] {
            NO_PASS => None,
            pass => Some(pass as usize),
        }
    }

    /// The pass that a node is in, by program order.
    pub fn at(&self, node: NodeId) -> Option<usize> {
        let after = self.list.partition_point(|pass| pass.start <= node);
        after.checked_sub(1)
    }

    pub fn of(
        graph: &Graph,
        flow: &Flow,
        modalities: &Modalities,
        attentions: &[Attention],
    ) -> Passes {
        let mut list: Vec<Pass> = Vec::new();
        let tables = token_tables(graph, flow, modalities);
        let mut latest = vec![NO_PASS; graph.values().len()];
        let mut worked = true;
        let mut last_read = None;
        for node in graph.nodes() {
            if !flow.is_forward(node) {
                continue;
            }
            let found = lookup(graph, node).filter(|lookup| {
                let integers = modalities.integers(lookup.index.value);
                let begins =
                    integers.filled() && tables.contains(&graph.storage(lookup.table.value));
                (modalities.node_of(graph, node).has(Modality::TOKENS) || begins)
                    && lookup.index.elements() > 0
            });
            if found.is_none()
                && worked
                && let Some(rows) = row_of(graph, node, &tables)
            {
                // A row that was chosen by the program itself, as a number.
                if let Some(last) = list.last_mut() {
                    last.end = node;
                }
                list.push(Pass::new(node, graph, 1, rows, false));
                worked = false;
                last_read = None;
            }
            if let Some(lookup) = found {
                // The next tokens of the same text, read one after another, go on with the pass.
                let read = (lookup.index.value, graph.storage(lookup.table.value));
                let goes_on = last_read.is_some_and(|(last, offset)| {
                    last == read && offset != lookup.offset && !list.is_empty()
                });
                last_read = Some((read, lookup.offset));
                if goes_on && worked {
                    let pass = list.last_mut().expect("checked above");
                    pass.tokens += lookup.tokens;
                } else if worked {
                    if let Some(last) = list.last_mut() {
                        last.end = node;
                    }
                    let chosen = modalities.integers(lookup.index.value).chosen();
                    let rows = lookup.table.size(-2);
                    list.push(Pass::new(node, graph, lookup.tokens, rows, chosen));
                    worked = false;
                }
                let current = list.len() as u32 - 1;
                for output in graph.outputs(node) {
                    latest[output.value.0 as usize] = current;
                }
                continue;
            }
            let mut newest = NO_PASS;
            if list.last().is_some_and(|pass| pass.start == node) {
                newest = list.len() as u32 - 1;
            }
            for input in graph.inputs(node) {
                let pass = latest[input.value.0 as usize];
                if pass != NO_PASS && (newest == NO_PASS || pass > newest) {
                    newest = pass;
                }
            }
            for output in graph.outputs(node) {
                let slot = &mut latest[output.value.0 as usize];
                // Chosen tokens begin anew: they are given to the next pass.
                *slot = if output.dtype.is_floating() { newest } else { NO_PASS };
            }
            if newest != NO_PASS && is_weighted(graph, node) {
                worked = true;
                let pass = &mut list[newest as usize];
                pass.weighted += 1;
                pass.mixed = pass.mixed.with(modalities.node_of(graph, node));
                let out = graph.output(node, 0).map_or(0, |out| out.size(-1));
                if out == pass.vocabulary && out > 1 && product(graph, node).is_some() {
                    pass.scores.push(node);
                }
            }
        }
        let mut passes = Passes { list, latest };
        passes.add_attentions(graph, modalities, attentions);
        passes
    }

    fn add_attentions(&mut self, graph: &Graph, modalities: &Modalities, all: &[Attention]) {
        for (index, attention) in all.iter().enumerate() {
            let Some(current) = self.latest(attention.query) else { continue };
            let own = self.latest(attention.key) == Some(current);
            let continued = attention.k_len > attention.q_len
                && own
                && continues(graph, self, attention.key, current, attention.q_len);
            let pass = &mut self.list[current];
            pass.attentions.push(index);
            let key = modalities.value(attention.key);
            if !own {
                pass.crossing.push(index);
                pass.mixed = pass.mixed.with(key);
                continue;
            }
            pass.mixed = pass.mixed.with(modalities.value(attention.query));
            match attention.causality {
                Causality::Causal => pass.causal = true,
                Causality::Bidirectional => pass.bidirectional = true,
                Causality::Single => {}
            }
            if continued {
                pass.past = pass.past.max(attention.k_len - attention.q_len);
            }
        }
    }
}

/// The rows of a token table of which a node that is no lookup reads one: `table[3] + ...`.
fn row_of(graph: &Graph, node: NodeId, tables: &HashSet<StorageId>) -> Option<i64> {
    if product(graph, node).is_some() {
        return None;
    }
    graph.inputs(node).find_map(|input| {
        let storage = graph.storage(input.value);
        let width = input.elements();
        let row = is_given(graph, input.value)
            && input.dtype.is_floating()
            && input.dims() <= 2
            && width == input.size(-1) as u64
            && tables.contains(&storage);
        let all = graph.output(graph.producer(input.value), 0)?;
        (row && all.elements() >= 2 * width && all.size(-1) == input.size(-1)).then(|| all.size(-2))
    })
}

/// Tables that tokens are looked up in somewhere in the window.
fn token_tables(graph: &Graph, flow: &Flow, modalities: &Modalities) -> HashSet<StorageId> {
    graph
        .nodes()
        .filter(|node| flow.is_forward(*node))
        .filter(|node| modalities.node_of(graph, *node).has(Modality::TOKENS))
        .filter_map(|node| lookup(graph, node))
        .filter(|lookup| {
            modalities.integers(lookup.index.value).chosen() || lookup.index.dims() >= 1
        })
        .map(|lookup| graph.storage(lookup.table.value))
        .collect()
}

/// Whether keys were put behind, or into, keys from before this pass.
fn continues(graph: &Graph, passes: &Passes, key: ValueId, current: usize, q_len: i64) -> bool {
    let mut at = key;
    for _ in 0..16 {
        let node = graph.producer(at);
        match graph.op_name(node) {
            "cat" | "stack" => return true,
            "index_copy_" | "index_put_" | "_index_put_impl_" | "scatter_" | "copy_"
            | "index_copy" | "index_put" | "scatter" | "slice_scatter" | "select_scatter" => {
                if let Some(earlier) = written_earlier(graph, passes, node, current) {
                    return earlier || q_len <= 1;
                }
                // A cast: the copy fills all of a fresh tensor.
                match graph.input(node, 1) {
                    Some(source) if graph.op_name(node) == "copy_" => at = source.value,
                    _ => return q_len <= 1,
                }
            }
            _ => match crate::shapes::flow::passed_on(graph, node) {
                Some(next) => at = next.value,
                None => return false,
            },
        }
    }
    false
}

/// Whether the tensor that a node writes into was written in an earlier pass; `None` where the
/// node fills a fresh tensor.
fn written_earlier(graph: &Graph, passes: &Passes, node: NodeId, current: usize) -> Option<bool> {
    let into = graph.input(node, 0)?;
    let before = graph.producer(into.value);
    match graph.op(before) {
        "genie::alloc" | "genie::resize" => None,
        "genie::source" | "genie::upload" | "genie::weight" => Some(false),
        _ => {
            let earlier = passes.at(before).is_some_and(|pass| pass < current);
            let filled = matches!(
                graph.op_name(before),
                "fill_" | "zero_" | "zeros" | "zeros_like" | "full"
            );
            Some(earlier && !filled)
        }
    }
}
