//! From samples to frames, before any matrix is applied.

use genie_plugin::dataflow::{NodeSet, add_servants, reach};
use genie_plugin::prelude::*;

use super::{Sound, Source};

/// The nodes of the front end, with what is only there for it: padding, windows, norms of its
/// weights. Empty where spectrograms come in.
pub(super) fn of(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let mut front = match sound.source {
        Source::Wave { .. } if sound.attends || !is_codec(sound) => convolved(sound),
        Source::Spectrum => transformed(sound),
        _ => NodeSet::new(graph),
    };
    add_servants(graph, &sound.facts.nodes, &mut front, |_| true);
    front
}

/// From the first convolution over the waveform on, with what bends and scales its result.
fn convolved(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let roles = Roles::CONVOLUTION.and(Roles::ELEMENTWISE).and(Roles::ACTIVATION);
    let roles = roles.and(Roles::NORM).and(Roles::POOL);
    // An encoder norms frames first; a norm that an activation reads is that of a convolution.
    let begins = |node| {
        graph.name(node).contains("layer_norm")
            && !graph.successors(node).any(|reader| graph.roles(reader).has(Roles::ACTIVATION))
    };
    reach(graph, &sound.facts.nodes, [sound.entry], |node| {
        let name = graph.name(node);
        (graph.roles(node).has(roles) || name.contains("pad") || name == "glu") && !begins(node)
    })
}

/// A codec is one encoder from the waveform on, with residual connections and without attention.
fn is_codec(sound: &Sound<'_>) -> bool {
    let (graph, front) = (sound.facts.graph, convolved(sound));
    let is_residual = |node: NodeId| {
        let branches = graph.predecessors(node).filter(|before| front.contains(*before));
        graph.name(node) == "add" && branches.count() > 1
    };
    front.iter().any(is_residual)
}

/// From frames to the logarithm of their spectrum.
fn transformed(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let encodes = Roles::CONVOLUTION.and(Roles::ATTENTION).and(Roles::FUSED_LAYER);
    let front = reach(graph, &sound.facts.nodes, [sound.entry], |node| {
        !graph.roles(node).has(encodes) && graph.name(node) != "addmm"
    });
    let ends = |node: &NodeId| {
        matches!(graph.name(*node), "log" | "log10" | "log2" | "log1p" | "abs" | "view_as_real")
    };
    let last = front.iter().filter(ends).last().unwrap_or(sound.entry);
    NodeSet::of(graph, front.iter().filter(|node| *node <= last))
}
