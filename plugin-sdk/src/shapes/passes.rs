//! Passes over tokens: from one lookup of tokens to the next.

use crate::graph::{Graph, NodeId, ValueId};
use crate::shapes::attention::{Attention, Causality};
use crate::shapes::flow::{Flow, is_weighted, product};
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
        let mut latest = vec![NO_PASS; graph.values().len()];
        let mut worked = true;
        for node in graph.nodes() {
            if !flow.is_forward(node) {
                continue;
            }
            let found = lookup(graph, node).filter(|lookup| {
                let integers = modalities.integers(lookup.index.value);
                (integers.given() || integers.chosen()) && lookup.index.elements() > 0
            });
            if let Some(lookup) = found {
                if worked {
                    if let Some(last) = list.last_mut() {
                        last.end = node;
                    }
                    list.push(Pass {
                        start: node,
                        end: NodeId(graph.len() as u32),
                        tokens: if lookup.index.dims() == 0 { 1 } else { lookup.index.size(-1) },
                        vocabulary: lookup.table.size(0),
                        chosen: modalities.integers(lookup.index.value).chosen(),
                        attentions: Vec::new(),
                        crossing: Vec::new(),
                        causal: false,
                        bidirectional: false,
                        past: 0,
                        scores: Vec::new(),
                        mixed: Modality::NONE,
                        weighted: 0,
                    });
                    worked = false;
                }
                let current = list.len() as u32 - 1;
                for output in graph.outputs(node) {
                    latest[output.value.0 as usize] = current;
                }
                continue;
            }
            let mut newest = NO_PASS;
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
            if attention.k_len > attention.q_len && appended(graph, attention.key) {
                pass.past = pass.past.max(attention.k_len - attention.q_len);
            }
        }
    }
}

/// Whether keys were put behind, or into, keys from before.
fn appended(graph: &Graph, key: ValueId) -> bool {
    let mut at = key;
    for _ in 0..16 {
        let node = graph.producer(at);
        match graph.op_name(node) {
            "cat" | "index_copy_" | "index_copy" | "index_put_" | "index_put" | "_index_put_impl_"
            | "scatter_" | "scatter" | "slice_scatter" | "copy_" | "select_scatter" | "stack" => {
                return true;
            }
            _ => match crate::shapes::flow::passed_on(graph, node) {
                Some(next) => at = next.value,
                None => return false,
            },
        }
    }
    false
}
