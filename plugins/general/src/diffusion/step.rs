//! Where vectors of the step meet maps or tokens.

use genie_plugin::dataflow::{ByValue, carry};
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::product;
use genie_plugin::shapes::modality::lookup;

use crate::facts::Facts;

/// Depends on the step.
const STEP: u8 = 1;
/// Has many positions for each sample.
const WIDE: u8 = 2;
/// Depends on something else that is one number or index for each sample: a step in disguise.
const MAYBE: u8 = 4;

/// Nodes that spread a vector over positions: one of the step, or of what may be one.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub by_step: Vec<NodeId>,
    pub by_vector: Vec<NodeId>,
}

pub(super) fn uses(facts: &Facts<'_>) -> Uses {
    let graph = facts.graph;
    let steps = step_products(facts);
    let samples = steps.iter().filter_map(|step| rows(graph, *step)).max();
    let mut uses = Uses::default();
    carry(graph, &facts.nodes, ByValue::<u8>::new(graph), |bits, node| {
        match spreads(graph, node, bits) {
            Some(STEP) => uses.by_step.push(node),
            Some(_) => uses.by_vector.push(node),
            None => {}
        }
        let here = match lookup(graph, node) {
            _ if steps.binary_search(&node).is_ok() => STEP,
            Some(lookup) if lookup.index.dims() <= 1 => MAYBE,
            _ => bits.bits(graph, node) | entered(facts, node, samples),
        };
        move |_| here
    });
    uses
}

/// Whether a node makes waves of numbers that no parameter took part in: what encodes steps.
pub(super) fn makes_waves(facts: &Facts<'_>, node: NodeId) -> bool {
    let mut outputs = facts.graph.outputs(node);
    facts.graph.roles(node).has(Roles::WAVE)
        && outputs.all(|out| out.dims() <= 3 && !facts.modalities.is_touched(out.value))
}

/// Products that read such waves: where a step enters.
fn step_products(facts: &Facts<'_>) -> Vec<NodeId> {
    let graph = facts.graph;
    let waves = carry(graph, &facts.nodes, ByValue::<bool>::new(graph), |waves, node| {
        let waved = waves.any(graph, node) || makes_waves(facts, node);
        move |out: Tensor<'_>| waved && !facts.modalities.is_touched(out.value)
    });
    let reads = |node: &NodeId| {
        product(graph, *node).is_some_and(|found| found.weighted && waves[found.data])
    };
    facts.nodes.iter().copied().filter(reads).collect()
}

/// What an input is where it first meets a parameter; there are vectors of the step for so many
/// samples, if any.
fn entered(facts: &Facts<'_>, node: NodeId, samples: Option<u64>) -> u8 {
    let entries = &facts.modalities.entries;
    let Ok(at) = entries.binary_search_by_key(&node, |(entry, _)| *entry) else { return 0 };
    if lookup(facts.graph, node).is_some() || !entries[at].1.has(Modality::VECTOR) {
        return WIDE;
    }
    match (samples, rows(facts.graph, node)) {
        (Some(samples), Some(rows)) if rows > samples => WIDE,
        _ if product(facts.graph, node).is_some_and(|found| found.data.size(-1) == 1) => MAYBE,
        _ => 0,
    }
}

/// Rows of data that a product reads.
fn rows(graph: &Graph, node: NodeId) -> Option<u64> {
    product(graph, node).map(|found| found.data.elements() / found.data.size(-1).max(1) as u64)
}

/// What vector the node spreads over positions, or sets beside them.
fn spreads(graph: &Graph, node: NodeId, bits: &ByValue<u8>) -> Option<u8> {
    let beside = match graph.name(node) {
        "add" | "sub" | "mul" | "div" | "addcmul" | "lerp" => false,
        "cat" => true,
        _ => return None,
    };
    let elements = graph.output(node, 0)?.elements();
    let vectors = graph.inputs(node).filter(|input| {
        bits[*input] & WIDE == 0
            && bits[*input] & (STEP | MAYBE) != 0
            && (beside || input.elements() < elements)
            && input.dtype.is_floating()
    });
    let wide = bits.bits(graph, node) & WIDE != 0;
    vectors.map(|input| bits[input] & STEP).max().filter(|_| wide)
}
