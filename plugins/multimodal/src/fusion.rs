//! Where pixels and tokens meet.

use genie_plugin::evidence::{CLAIM_MIN, FAIR, GOOD, PLAUSIBLE, STRONG};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_weighted, passed_on};
use genie_plugin::shapes::{Attention, Convolution, Modality, Pass, View};

const VISION: &str = "mm.vision_encoder";
const TEXT: &str = "mm.text_encoder";
const FUSION: &str = "mm.fusion";

/// Operators between a projection and the attention that it is for.
const PROJECTION_STEPS_MAX: usize = 8;

/// Products between an embedding and the first attention of a block that begins with one.
const PROJECTIONS_OF_QUERY_MAX: usize = 3;

/// The window, with what is seen in it: pixels, or features of regions.
struct Scene<'a> {
    view: &'a View<'a>,
    seen: Modality,
}

pub fn recognize(view: &View, notes: &mut Annotations) {
    let pixels = Modality::IMAGE.with(Modality::SERIES);
    let seen = if view.other_inputs().has(pixels) { pixels } else { Modality::NONE };
    let scene =
        Scene { view, seen: view.regions().map_or(seen, |regions| seen.with(regions.kind)) };
    let Some(confidence) = claim(&scene) else { return };
    notes.workload("multimodal", confidence);
    if view.flow.training {
        return;
    }
    let phases = phases(&scene);
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
fn claim(scene: &Scene<'_>) -> Option<f32> {
    let graph = scene.view.graph;
    let others = scene.view.other_inputs();
    if !others.has(scene.seen) || others.has(Modality::AUDIO) {
        return None;
    }
    // Text: a sequence of tokens that parameters work on.
    let text = scene.view.passes.list.iter().any(|pass| pass.tokens > 1 || pass.chosen);
    if !text {
        return None;
    }
    let mut both = 0usize;
    let mut seen_alone = 0usize;
    for node in graph.nodes().filter(|node| scene.view.flow.is_forward(*node)) {
        let of = scene.view.modalities.node_of(graph, node);
        both += usize::from(of.has(Modality::TOKENS) && of.has(scene.seen));
        seen_alone += usize::from(of.only(scene.seen));
    }
    if both == 0 || seen_alone == 0 {
        return None;
    }
    let pixels = others.has(Modality::IMAGE) && !is_longish(scene);
    let attends = !scene.view.attentions.is_empty();
    let regions = scene.view.regions().is_some_and(|regions| !regions.are_frames());
    Some(match (pixels, attends, regions) {
        (true, true, _) => STRONG,
        (true, false, _) => GOOD,
        (false, true, true) => GOOD,
        (false, false, true) => FAIR,
        (false, true, false) => PLAUSIBLE,
        (false, false, false) => CLAIM_MIN,
    })
}

/// Whether all pictures are one plane that is longer than wide: a spectrogram as likely.
fn is_longish(scene: &Scene<'_>) -> bool {
    let pictures = scene.view.modalities.entries.iter().filter(|(_, of)| of.has(Modality::IMAGE));
    let mut planes = pictures.map(|(node, _)| Convolution::of(scene.view.graph, *node));
    planes.all(|found| {
        found.is_some_and(|found| {
            let (a, b) = (found.data.size(-1), found.data.size(-2));
            found.channels() == 1 && a.max(b) * 4 >= a.min(b) * 5
        })
    })
}

fn phases(scene: &Scene<'_>) -> Vec<Option<&'static str>> {
    let graph = scene.view.graph;
    let mut phases: Vec<Option<&'static str>> = vec![None; graph.len()];
    let writers: Vec<Writer> =
        scene.view.passes.list.iter().map(|pass| writer(scene, pass)).collect();
    // Without a tower of its own, text belongs to the fusion from its first token on.
    let towers = scene
        .view
        .passes
        .list
        .iter()
        .zip(&writers)
        .any(|(pass, writer)| pass.weighted > 0 && *writer != Writer::Decoder);
    // A single projection is no tower: what is seen goes straight into the joint encoder.
    let projections = graph
        .nodes()
        .filter(|node| scene.view.flow.is_forward(*node) && is_weighted(graph, *node))
        .filter(|node| scene.view.modalities.node_of(graph, *node).only(scene.seen))
        .count();
    let mut joined = connected(scene);
    projections_of_crossing(scene, &mut joined);
    for attention in crossing(scene) {
        own_self_attention(scene, attention, &mut joined);
    }
    if writers.contains(&Writer::Decoder) {
        weights_of_decoder(scene, &mut joined);
    }
    let embedded: Vec<NodeId> =
        scene.view.passes.list.iter().map(|pass| end_of_embedding(scene, pass)).collect();
    let pixels = scene.view.other_inputs().has(Modality::IMAGE);
    for node in graph.nodes().filter(|node| scene.view.flow.is_forward(*node)) {
        let of = scene.view.modalities.node_of(graph, node);
        let pass = graph
            .outputs(node)
            .find_map(|out| scene.view.passes.latest(out.value))
            .filter(|_| of.has(Modality::TOKENS));
        let phase = match (of.has(Modality::TOKENS), of.has(scene.seen)) {
            (true, true) => Some(FUSION),
            (true, _) | (_, true) if joined[node.0 as usize] => Some(FUSION),
            // Learned queries and the like look as if they were given; beside pixels they are not.
            (false, true) if pixels && !of.has(Modality::IMAGE) => None,
            (false, true) if projections == 1 && !is_weighted(graph, node) => Some(FUSION),
            (false, true) => Some(VISION),
            (true, false) => Some(match pass.map(|pass| (pass, writers[pass])) {
                Some((_, Writer::Decoder)) => FUSION,
                Some((pass, Writer::Interleaved)) if node >= embedded[pass] => FUSION,
                _ if !towers => FUSION,
                _ => TEXT,
            }),
            (false, false) => None,
        };
        phases[node.0 as usize] = phase;
    }
    // Masks, positions and the like belong to what uses them first, else to what came before.
    for node in graph.nodes().rev().filter(|node| scene.view.flow.is_forward(*node)) {
        if phases[node.0 as usize].is_none() {
            let user = graph.successors(node).find_map(|user| phases[user.0 as usize]);
            phases[node.0 as usize] = user;
        }
    }
    let mut last = None;
    for node in graph.nodes().filter(|node| scene.view.flow.is_forward(*node)) {
        let phase = &mut phases[node.0 as usize];
        match phase {
            Some(_) => last = *phase,
            None => *phase = last,
        }
    }
    phases
}

/// Nodes behind a connector: learned queries, more than one, that look at what is seen and hand
/// it on to the text.
fn connected(scene: &Scene<'_>) -> Vec<bool> {
    let graph = scene.view.graph;
    let mut connected = vec![false; graph.len()];
    for attention in scene.view.attentions.iter().filter(|attention| is_connector(scene, attention))
    {
        attention.nodes.iter().for_each(|node| connected[node.0 as usize] = true);
    }
    for node in graph.nodes().filter(|node| scene.view.flow.is_forward(*node)) {
        if graph.predecessors(node).any(|from| connected[from.0 as usize]) {
            connected[node.0 as usize] = true;
        }
    }
    connected
}

/// Marks the projections with which an attention between modalities begins: they make its query,
/// key and value, each still of one modality.
fn projections_of_crossing(scene: &Scene<'_>, joined: &mut [bool]) {
    let graph = scene.view.graph;
    for attention in crossing(scene) {
        for start in [attention.query, attention.key, attention.value] {
            let mut at = start;
            for _ in 0..PROJECTION_STEPS_MAX {
                let node = graph.producer(at);
                if !scene.view.flow.is_forward(node) {
                    break;
                }
                joined[node.0 as usize] = true;
                match passed_on(graph, node) {
                    Some(next) if !is_weighted(graph, node) => at = next.value,
                    _ => break,
                }
            }
        }
    }
}

/// Attentions between modalities, and of learned queries over what is seen.
fn crossing<'a>(scene: &'a Scene<'a>) -> impl Iterator<Item = &'a Attention> {
    scene.view.attentions.iter().filter(|attention| {
        let query = scene.view.modalities.value(attention.query);
        let key = scene.view.modalities.value(attention.key);
        (query.has(Modality::TOKENS) && key.only(scene.seen))
            || (query.only(scene.seen) && key.has(Modality::TOKENS))
            || is_connector(scene, attention)
    })
}

/// Whether learned queries, more than one, look at what is seen.
fn is_connector(scene: &Scene<'_>, attention: &Attention) -> bool {
    let query = scene.view.modalities.value(attention.query);
    // Beside pixels, rows of numbers are learned ones; without, they are what is seen.
    let queries = match scene.view.other_inputs().has(Modality::IMAGE) {
        true => !query.has(Modality::TOKENS.with(Modality::IMAGE)),
        false => query == Modality::NONE,
    };
    queries && attention.q_len > 1 && scene.view.modalities.value(attention.key).only(scene.seen)
}

/// Marks the self-attention that stands in one block with an attention between modalities: nothing
/// but norms, projections and a sum between them. Where a block of its own ends, an activation
/// stands between.
fn own_self_attention(scene: &Scene<'_>, crossing: &Attention, joined: &mut [bool]) {
    let graph = scene.view.graph;
    let query = scene.view.modalities.value(crossing.query);
    let same = |node: NodeId| scene.view.modalities.node_of(graph, node) == query;
    let before = scene.view.attentions.iter().rev().find(|attention| {
        attention.node < crossing.node
            && scene.view.modalities.value(attention.query) == query
            && scene.view.modalities.value(attention.key) == query
    });
    let Some(own) = before else { return };
    if !in_one_block(scene, own, crossing) {
        return;
    }
    // From the norm before its projections on.
    let mut start = own.nodes.first().copied().unwrap_or(own.node);
    for value in [own.query, own.key, own.value] {
        let mut node = graph.producer(value);
        for _ in 0..PROJECTION_STEPS_MAX {
            start = start.min(node);
            match passed_on(graph, node) {
                Some(next) if !is_weighted(graph, node) => node = graph.producer(next.value),
                _ => break,
            }
        }
        if let Some(data) = graph.inputs(node).find(|input| input.dims() >= 2) {
            let norm = graph.producer(data.value);
            if graph.op_name(norm).contains("norm") && same(norm) {
                start = start.min(norm);
            }
        }
    }
    for node in (start.0..crossing.node.0).map(NodeId).filter(|node| same(*node)) {
        joined[node.0 as usize] = true;
    }
}

/// Whether nothing but norms, projections and sums stands between two attentions on the way of the
/// first one's tokens.
fn in_one_block(scene: &Scene<'_>, own: &Attention, crossing: &Attention) -> bool {
    let graph = scene.view.graph;
    let query = scene.view.modalities.value(own.query);
    let mut between = (own.output.0..crossing.node.0)
        .map(NodeId)
        .filter(|node| scene.view.modalities.node_of(graph, *node) == query);
    !between.any(|node| {
        matches!(
            graph.op_name(node),
            "gelu"
                | "relu"
                | "relu_"
                | "silu"
                | "tanh"
                | "sigmoid"
                | "hardswish"
                | "elu"
                | "mish"
                | "leaky_relu"
                | "pow"
        )
    })
}

/// Marks what works with the parameters of the text's decoder, also where it works on what is seen
/// (a recurrent decoder that begins with the picture).
fn weights_of_decoder(scene: &Scene<'_>, joined: &mut [bool]) {
    let graph = scene.view.graph;
    let mut weights = std::collections::HashSet::new();
    let weighted = |node: &NodeId| scene.view.flow.is_forward(*node) && is_weighted(graph, *node);
    for node in graph.nodes().filter(weighted) {
        if scene.view.modalities.node_of(graph, node).has(Modality::TOKENS) {
            weights.extend(graph.inputs(node).map(|input| graph.storage(input.value)));
        }
    }
    for node in graph.nodes().filter(|node| scene.view.flow.is_forward(*node)) {
        let shared = is_weighted(graph, node)
            && graph.inputs(node).any(|input| weights.contains(&graph.storage(input.value)));
        let seen = scene.view.modalities.node_of(graph, node).only(scene.seen);
        let behind = || graph.predecessors(node).any(|from| joined[from.0 as usize]);
        if seen && (shared || behind()) {
            joined[node.0 as usize] = true;
        }
    }
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

fn writer(scene: &Scene<'_>, pass: &Pass) -> Writer {
    let sees = pass.mixed.has(scene.seen);
    if !sees {
        return Writer::Tower;
    }
    let told =
        |node: &NodeId| scene.view.modalities.node_of(scene.view.graph, *node).has(scene.seen);
    let writes =
        pass.chosen || pass.past > 0 || (!pass.bidirectional && pass.scores.iter().any(told));
    let looks = !pass.scores.is_empty() && !pass.crossing.is_empty() && !pass.bidirectional;
    if writes || looks {
        return Writer::Decoder;
    }
    let attentions: Vec<&Attention> =
        pass.attentions.iter().map(|index| &scene.view.attentions[*index]).collect();
    let sees = |attention: &&Attention| scene.view.modalities.value(attention.key).has(scene.seen);
    let Some(first) = attentions.iter().position(sees) else { return Writer::Tower };
    let interleaved = match attentions[..first] {
        // Recurrence reads the text before anything looks at what is seen.
        [] => work_before(scene, pass, attentions[first]) <= PROJECTIONS_OF_QUERY_MAX,
        [own] => in_one_block(scene, own, attentions[first]),
        _ => false,
    };
    if interleaved { Writer::Interleaved } else { Writer::Tower }
}

/// Products of parameters with the pass's tokens alone before an attention.
fn work_before(scene: &Scene<'_>, pass: &Pass, attention: &Attention) -> usize {
    let graph = scene.view.graph;
    let alone = |node: &NodeId| {
        is_weighted(graph, *node)
            && scene.view.modalities.node_of(graph, *node).only(Modality::TOKENS)
    };
    (pass.start.0..attention.node.0).map(NodeId).filter(alone).count()
}

/// The pass's first product of tokens with a parameter; the end of the graph where there is none.
fn end_of_embedding(scene: &Scene<'_>, pass: &Pass) -> NodeId {
    let end = scene.view.graph.len() as u32;
    let mut nodes = (pass.start.0..end).map(NodeId);
    let first = nodes.find(|node| {
        is_weighted(scene.view.graph, *node)
            && scene.view.modalities.node_of(scene.view.graph, *node).has(Modality::TOKENS)
    });
    first.unwrap_or(NodeId(end))
}
