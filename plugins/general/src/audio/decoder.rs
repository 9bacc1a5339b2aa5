//! What writes words or waves.

use genie_plugin::dataflow::{NodeSet, add_servants, reach};
use genie_plugin::prelude::*;
use genie_plugin::shapes::modality::lookup;

use super::Sound;

/// What depends on words or makes a waveform, and what only serves that.
pub(super) fn of(sound: &Sound<'_>) -> NodeSet {
    let (graph, nodes) = (sound.facts.graph, &sound.facts.nodes);
    let begins = |node: &NodeId| sound.made == Some(*node) || is_word(sound, *node);
    let begin: Vec<NodeId> = nodes.iter().copied().filter(begins).collect();
    let Some(first) = begin.first().copied() else { return NodeSet::new(graph) };
    let heard = |node| sound.heard.contains(node);
    // Masks and positions of words serve words also where the program reads them itself.
    let unread = |node: &NodeId| *node > first && graph.successors(*node).next().is_none();
    let ends = graph.nodes().filter(unread).filter(|node| !graph.predecessors(*node).any(heard));
    let mut decoder = reach(graph, nodes, begin.into_iter().chain(ends), |_| true);
    add_servants(graph, nodes, &mut decoder, |node| node > first || !heard(node));
    decoder
}

/// Whether words are looked up: neither positions, nor codes chosen among scores of sound.
fn is_word(sound: &Sound<'_>, node: NodeId) -> bool {
    let (graph, modalities) = (sound.facts.graph, &sound.facts.modalities);
    lookup(graph, node).is_some_and(|found| {
        let (index, from) = (found.index, modalities.integers(found.index.value));
        // A square of numbers says how far apart two positions are.
        let pairs = index.dims() >= 2 && index.size(-1) == index.size(-2) && index.size(-1) > 1;
        (from.given() || from.filled()) && !pairs && !modalities.is_positional(graph, node, found)
    })
}
