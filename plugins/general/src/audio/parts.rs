//! The front end and the decoder; between them lies the encoder.

use genie_plugin::dataflow::{NodeSet, add_servants, reach};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_residual;
use genie_plugin::shapes::modality::lookup;

use super::{Sound, Source};

/// The nodes of the front end, with what is only there for it: padding, windows, norms of its
/// weights. Empty where spectrograms come in.
pub(super) fn front_end(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let mut front = match sound.source {
        Source::Wave { .. } => convolved(sound),
        Source::Spectrum => transformed(sound),
        _ => NodeSet::new(graph),
    };
    let serves = |node| node < sound.entry || !sound.heard.contains(node);
    add_servants(graph, &sound.facts.nodes, &mut front, serves);
    front
}

/// From the first convolution over the waveform on, with what bends and scales its result. Empty
/// for a codec: it is one encoder from the waveform on.
fn convolved(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let roles = Roles::CONVOLUTION.and(Roles::ELEMENTWISE).and(Roles::ACTIVATION);
    let roles = roles.and(Roles::NORM).and(Roles::POOL);
    let bends = |node| graph.roles(node).has(Roles::ACTIVATION);
    let keeps_frames = |node: NodeId| match graph.name(node) {
        // An encoder norms frames first, but a norm that an activation reads is a convolution's.
        "native_layer_norm" | "layer_norm" => graph.successors(node).any(bends),
        name => graph.roles(node).has(roles) || name.contains("pad") || name == "glu",
    };
    let mut front = NodeSet::of(graph, sound.entries.iter().copied());
    for node in sound.facts.nodes.iter().filter(|node| keeps_frames(**node)) {
        let mut heard =
            graph.predecessors(*node).filter(|from| sound.heard.contains(*from)).peekable();
        // Not where a branch that does more comes back to it.
        if heard.peek().is_some() && heard.all(|from| front.contains(from)) {
            front.insert(*node);
        }
    }
    let is_codec = !sound.attends && front.iter().any(|node| is_residual(graph, node));
    if is_codec { NodeSet::new(graph) } else { front }
}

/// From frames to the logarithm of their spectrum.
fn transformed(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let encodes = Roles::CONVOLUTION.and(Roles::ATTENTION).and(Roles::FUSED_LAYER);
    let front = reach(graph, &sound.facts.nodes, sound.entries.iter().copied(), |node| {
        !graph.roles(node).has(encodes) && graph.name(node) != "addmm"
    });
    let ends = ["log", "log10", "log2", "log1p", "abs", "view_as_real"];
    let last = front.iter().filter(|node| ends.contains(&graph.name(*node))).last();
    NodeSet::of(graph, front.iter().filter(|node| *node <= last.unwrap_or(sound.entry)))
}

/// What depends on words or makes a waveform, and what only serves that.
pub(super) fn decoder(sound: &Sound<'_>) -> NodeSet {
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

/// More numbers in a row are a word's.
const HEADS_MAX: i64 = 32;

/// Whether words are looked up: neither positions, nor codes chosen among scores of sound.
fn is_word(sound: &Sound<'_>, node: NodeId) -> bool {
    let (graph, modalities) = (sound.facts.graph, &sound.facts.modalities);
    lookup(graph, node).is_some_and(|found| {
        let (index, from) = (found.index, modalities.integers(found.index.value));
        // A square of numbers says how far apart two positions are, to each head.
        let square = index.dims() >= 2 && index.size(-1) == index.size(-2) && index.size(-1) > 1;
        let pairs = square && found.table.size(-1) <= HEADS_MAX;
        (from.given() || from.filled()) && !pairs && !modalities.is_positional(graph, node, found)
    })
}
