//! Where pixels and tokens meet.

use genie_plugin::prelude::*;
use genie_plugin::shapes::{Modality, Pass, View};

const VISION: &str = "mm.vision_encoder";
const TEXT: &str = "mm.text_encoder";
const FUSION: &str = "mm.fusion";

/// What is seen, in pixels or in features of regions.
const SEEN: Modality = Modality(Modality::IMAGE.0 | Modality::SERIES.0);

pub fn recognize(view: &View, notes: &mut Annotations) {
    let Some(confidence) = claim(view) else { return };
    notes.workload("multimodal", confidence);
    if view.flow.training {
        return;
    }
    let phases = phases(view);
    let graph = view.graph;
    for (phase, pattern, modality) in [
        (VISION, "multimodal.tower", "image"),
        (TEXT, "multimodal.tower", "text"),
        (FUSION, "multimodal.fusion", "image+text"),
    ] {
        let nodes = graph.nodes().filter(|node| phases[node.0 as usize] == Some(phase));
        notes.matched(pattern, phase, modality, confidence, nodes);
    }
    let crossing = view.passes.list.iter().flat_map(|pass| &pass.crossing);
    let nodes = crossing.flat_map(|index| view.attentions[*index].nodes.iter().copied());
    notes.matched("multimodal.cross_attention", "", "", confidence, nodes);
    let generates = view.passes.list.iter().any(|pass| pass.chosen || pass.past > 0);
    notes.attribute("architecture", if generates { "generative" } else { "joint encoder" });
}

/// How sure it is that the window fuses modalities; `None` when it does not.
fn claim(view: &View) -> Option<f32> {
    let graph = view.graph;
    let others = view.other_inputs();
    if !others.has(SEEN) || others.has(Modality::AUDIO) {
        return None;
    }
    // Text: a sequence of tokens that parameters work on.
    let text = view.passes.list.iter().any(|pass| pass.tokens > 1 || pass.chosen);
    if !text {
        return None;
    }
    let mut both = 0usize;
    let mut seen_alone = 0usize;
    for node in graph.nodes().filter(|node| view.flow.is_forward(*node)) {
        let of = view.modalities.node_of(graph, node);
        both += usize::from(of.has(Modality::TOKENS) && of.has(SEEN));
        seen_alone += usize::from(of.only(SEEN));
    }
    if both == 0 || seen_alone == 0 {
        return None;
    }
    let pixels = others.has(Modality::IMAGE);
    let attends = !view.attentions.is_empty();
    Some(match (pixels, attends) {
        (true, true) => 0.94,
        (true, false) => 0.85,
        (false, true) => 0.6,
        (false, false) => 0.3,
    })
}

fn phases(view: &View) -> Vec<Option<&'static str>> {
    let graph = view.graph;
    let mut phases: Vec<Option<&'static str>> = vec![None; graph.len()];
    let writers: Vec<Writer> = view.passes.list.iter().map(|pass| writer(view, pass)).collect();
    for node in graph.nodes().filter(|node| view.flow.is_forward(*node)) {
        let of = view.modalities.node_of(graph, node);
        let pass = graph
            .outputs(node)
            .find_map(|out| view.passes.latest(out.value))
            .filter(|_| of.has(Modality::TOKENS));
        let phase = match (of.has(Modality::TOKENS), of.has(SEEN)) {
            (true, true) => Some(FUSION),
            (false, true) => Some(VISION),
            (true, false) => Some(match pass.map(|pass| (pass, writers[pass])) {
                Some((_, Writer::Decoder)) => FUSION,
                Some((pass, Writer::Interleaved)) if is_past_embedding(view, node, pass) => FUSION,
                _ => TEXT,
            }),
            (false, false) => None,
        };
        phases[node.0 as usize] = phase;
    }
    // Masks, positions and the like belong to what uses them first, else to what came before.
    for node in graph.nodes().rev().filter(|node| view.flow.is_forward(*node)) {
        if phases[node.0 as usize].is_none() {
            let user = graph.successors(node).find_map(|user| phases[user.0 as usize]);
            phases[node.0 as usize] = user;
        }
    }
    let mut last = None;
    for node in graph.nodes().filter(|node| view.flow.is_forward(*node)) {
        let phase = &mut phases[node.0 as usize];
        match phase {
            Some(_) => last = *phase,
            None => *phase = last,
        }
    }
    phases
}

/// How a pass over tokens relates to what is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Works on tokens alone first.
    Tower,
    /// Looks at what is seen from its first layer on.
    Interleaved,
    /// Writes text about what is seen: fusion from the first token on.
    Decoder,
}

fn writer(view: &View, pass: &Pass) -> Writer {
    let sees = pass.mixed.has(SEEN);
    if !sees {
        return Writer::Tower;
    }
    let writes = pass.chosen || pass.past > 0 || (pass.causal && !pass.bidirectional);
    if writes || (pass.bidirectional && !pass.scores.is_empty() && !pass.crossing.is_empty()) {
        return Writer::Decoder;
    }
    let alone = pass
        .attentions
        .iter()
        .take_while(|index| {
            let attention = &view.attentions[**index];
            let key = view.modalities.value(attention.key);
            !key.has(SEEN)
        })
        .count();
    if alone <= 1 && alone < pass.attentions.len() { Writer::Interleaved } else { Writer::Tower }
}

/// Whether a node comes after the pass's first product with a parameter.
fn is_past_embedding(view: &View, node: NodeId, pass: usize) -> bool {
    let start = view.passes.list[pass].start;
    (start.0..=node.0).map(NodeId).any(|each| {
        genie_plugin::shapes::flow::is_weighted(view.graph, each)
            && view.modalities.node_of(view.graph, each).has(Modality::TOKENS)
    })
}
