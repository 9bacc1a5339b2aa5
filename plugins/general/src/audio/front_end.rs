//! From samples to frames, before any matrix is applied.

use genie_plugin::dataflow::{NodeSet, add_servants, reach};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;

use super::{Sound, Source, attends};

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

/// From the first convolution over the waveform to the last one before any matrix, with what
/// bends and scales its result.
fn convolved(sound: &Sound<'_>) -> NodeSet {
    let (graph, nodes) = (sound.facts.graph, &sound.facts.nodes);
    let front = reach(graph, nodes, [sound.entry], |node| keeps_frames(graph, node));
    let is_residual = |node: NodeId| {
        let branches = graph.predecessors(node).filter(|before| front.contains(*before));
        graph.name(node) == "add" && branches.count() > 1
    };
    let has_products = nodes.iter().any(|node| product(graph, *node).is_some());
    // A codec is one encoder from the waveform on.
    if !has_products || front.iter().any(is_residual) && !attends(sound.facts) {
        return NodeSet::new(graph);
    }
    let convolutions = front.iter().filter(|node| graph.roles(*node).has(Roles::CONVOLUTION));
    let last = convolutions.last().unwrap_or(sound.entry);
    let tail = reach(graph, nodes, [last], |node| front.contains(node) && !begins(graph, node));
    NodeSet::of(graph, front.iter().filter(|node| *node <= last || tail.contains(*node)))
}

/// From frames to the logarithm of their spectrum.
fn transformed(sound: &Sound<'_>) -> NodeSet {
    let (graph, nodes) = (sound.facts.graph, &sound.facts.nodes);
    let encodes = Roles::CONVOLUTION.and(Roles::ATTENTION).and(Roles::FUSED_LAYER);
    let front = reach(graph, nodes, [sound.entry], |node| {
        !graph.roles(node).has(encodes) && graph.name(node) != "addmm"
    });
    let ends = |node: &NodeId| {
        matches!(graph.name(*node), "log" | "log10" | "log2" | "log1p" | "abs" | "view_as_real")
    };
    let last = front.iter().filter(ends).last().unwrap_or(sound.entry);
    NodeSet::of(graph, front.iter().filter(|node| *node <= last))
}

/// Work that a front end does with frames.
fn keeps_frames(graph: &Graph, node: NodeId) -> bool {
    let roles = Roles::CONVOLUTION
        .and(Roles::ELEMENTWISE)
        .and(Roles::ACTIVATION)
        .and(Roles::NORM)
        .and(Roles::POOL);
    let name = graph.name(node);
    graph.roles(node).has(roles) || name.contains("pad") || name == "glu"
}

/// Whether an encoder begins here: frames are normed, and no activation reads the result, which
/// would be the norm of a convolution.
fn begins(graph: &Graph, node: NodeId) -> bool {
    let mut readers = graph.successors(node);
    graph.name(node).contains("layer_norm")
        && !readers.any(|reader| graph.roles(reader).has(Roles::ACTIVATION))
}
