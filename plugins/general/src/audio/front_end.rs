//! From samples to frames, before any matrix is applied.

use genie_plugin::dataflow::{NodeSet, add_servants, reach};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_residual;

use super::{Sound, Source};

/// The nodes of the front end, with what is only there for it: padding, windows, norms of its
/// weights. Empty where spectrograms come in.
pub(super) fn of(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let mut front = match sound.source {
        Source::Wave { .. } => convolved(sound),
        Source::Spectrum => transformed(sound),
        _ => NodeSet::new(graph),
    };
    add_servants(graph, &sound.facts.nodes, &mut front, |_| true);
    front
}

/// From the first convolution over the waveform on, with what bends and scales its result. Empty
/// for a codec: it is one encoder from the waveform on.
fn convolved(sound: &Sound<'_>) -> NodeSet {
    let graph = sound.facts.graph;
    let roles = Roles::CONVOLUTION.and(Roles::ELEMENTWISE).and(Roles::ACTIVATION);
    let roles = roles.and(Roles::NORM).and(Roles::POOL);
    let bends = |node| graph.roles(node).has(Roles::ACTIVATION);
    let front = reach(graph, &sound.facts.nodes, [sound.entry], |node| match graph.name(node) {
        // An encoder norms frames first, but a norm that an activation reads is a convolution's.
        "native_layer_norm" | "layer_norm" => graph.successors(node).any(bends),
        name => graph.roles(node).has(roles) || name.contains("pad") || name == "glu",
    });
    let is_codec = !sound.attends && front.iter().any(|node| is_residual(graph, node));
    if is_codec { NodeSet::new(graph) } else { front }
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
