//! What writes words or waves.

use genie_plugin::dataflow::{ByValue, NodeSet, add_servants, carry, reach};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use super::Sound;

/// What depends on words or makes a waveform, and what only serves that.
pub(super) fn of(sound: &Sound<'_>) -> NodeSet {
    let (graph, nodes) = (sound.facts.graph, &sound.facts.nodes);
    let counted = counted(sound);
    let begins = |node: &NodeId| sound.made == Some(*node) || is_word(graph, &counted, *node);
    let begin: Vec<NodeId> = nodes.iter().copied().filter(begins).collect();
    let Some(first) = begin.first().copied() else { return NodeSet::new(graph) };
    let heard = |node| sound.heard.contains(node);
    // Masks and positions of words serve words also where the program reads them itself.
    let ends = graph.nodes().filter(|node| {
        *node > first
            && graph.successors(*node).count() == 0
            && !graph.predecessors(*node).any(heard)
    });
    let mut decoder = reach(graph, nodes, begin.into_iter().chain(ends), |_| true);
    add_servants(graph, nodes, &mut decoder, |node| node > first || !heard(node));
    decoder
}

/// Whether words are looked up.
fn is_word(graph: &Graph, counted: &ByValue<bool>, node: NodeId) -> bool {
    let (Some(table), Some(index)) = (graph.input(node, 0), graph.input(node, 1)) else {
        return false;
    };
    // A square of numbers says how far apart two positions are.
    let pairs = index.dims() >= 2 && index.size(-1) == index.size(-2) && index.size(-1) > 1;
    graph.name(node) == "embedding" && is_given(graph, table.value) && !counted[index] && !pairs
}

/// Numbers that were counted up, or chosen among scores: positions, codes of sound.
fn counted(sound: &Sound<'_>) -> ByValue<bool> {
    let (graph, nodes) = (sound.facts.graph, &sound.facts.nodes);
    carry(graph, nodes, ByValue::new(graph), |counted, node| {
        let counts = counted.any(graph, node)
            || matches!(graph.name(node), "arange" | "cumsum" | "linspace" | "range")
            || matches!(graph.name(node), "argmax" | "argmin" | "max" | "min" | "topk");
        // Distances between positions may be numbers with a fraction for a while.
        let carries = graph.roles(node).has(Roles::ELEMENTWISE);
        move |out| counts && (carries || !out.dtype.is_floating())
    })
}
