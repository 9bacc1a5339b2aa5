//! Recognizes vision models: stem, backbone stages, heads, detection.
//!
//! A vision model takes planes of pixels. Where they meet the first weight, the stem begins
//! ([`stem`]); where the last block ends, the head ([`head`]). Names of modules are never looked
//! at. Start reading at [`Vision`].

mod facts;
mod head;
mod stages;
mod stem;

use std::collections::HashMap;

use genie_plugin::evidence::{
    self, BESIDE_A_SIGNATURE, FAIR, GOOD, LIKELY, PLAUSIBLE, POSSIBLE, STRONG, WEAK,
};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;
use genie_plugin::shapes::{Flow, Modalities, Modality};

use crate::facts::{Facts, Kind};
use crate::head::{Pass, Split, Task, split};

/// The least confidence at which phases are claimed.
const CLAIM_MIN: f32 = WEAK;
/// What other inputs leave of the confidence.
const MIXED: f32 = FAIR;
/// Below this the planes alone do not tell a picture.
const PLANES_SURE: f32 = LIKELY;
/// Products with one weight, for each picture, that make a recurrence.
const STEPS_MIN: usize = 8;
/// How sure the phases of a sure model are.
const PHASE_CONFIDENCE: f32 = STRONG;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Vision;

impl Plugin for Vision {
    fn info() -> Info {
        let summary = "Recognizes vision models: stem, backbone stages, heads, detection";
        Info::new("vision", env!("CARGO_PKG_VERSION"), summary, &[])
    }
}

impl Recognizer for Vision {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        let flow = Flow::of(graph);
        let modalities = Modalities::of(graph, &flow);
        let entries = entries(&modalities);
        if entries.is_empty() {
            return Ok(notes);
        }
        let facts = Facts::of(graph, flow);
        let confidence = confidence(&facts, &modalities, &entries);
        notes.workload("vision", confidence);
        if facts.flow.training || confidence < CLAIM_MIN {
            return Ok(notes);
        }
        for pass in passes(&facts, &entries) {
            let split = split(&facts, pass);
            annotate(&facts, pass, split, confidence.min(PHASE_CONFIDENCE), &mut notes);
        }
        Ok(notes)
    }
}

/// Where planes meet the first weight.
fn entries(modalities: &Modalities) -> Vec<NodeId> {
    let planes = Modality::IMAGE.with(Modality::LATENT);
    modalities
        .entries
        .iter()
        .filter(|(_, modality)| modality.has(planes))
        .map(|(node, _)| *node)
        .collect()
}

/// How sure it is that the window is a vision model.
fn confidence(facts: &Facts<'_>, modalities: &Modalities, entries: &[NodeId]) -> f32 {
    let has = |modality: Modality| modalities.entries.iter().any(|(_, other)| other.has(modality));
    // Joined with words or sounds it is another's.
    if has(Modality::TOKENS) || has(Modality::AUDIO) || has_spectrum(facts) {
        return STRONG * BESIDE_A_SIGNATURE;
    }
    let best = entries.iter().map(|entry| entry_confidence(facts, *entry)).fold(0.0, f32::max);
    let others = has(Modality::SERIES) || has(Modality::VECTOR);
    // One plane that is then read step by step is a spectrum over time as likely.
    let steps = best < PLANES_SURE && has_steps(facts, entries);
    if others || steps || has_wave_of_scalar(facts) { best * MIXED } else { best }
}

fn entry_confidence(facts: &Facts<'_>, entry: NodeId) -> f32 {
    let graph = facts.graph;
    let Kind::Convolution(convolution) = facts.kind(entry) else { return LIKELY };
    if convolution.transposed {
        return evidence::CLAIM_MIN;
    }
    let Some(data) = graph.input(entry, 0) else { return 0.0 };
    if data.dims() < 4 {
        // Windows of a picture, by hand.
        return LIKELY;
    }
    // A transposed or shifted plane was no picture to begin with.
    let dense = data.strides.last() == Some(&1) || data.size(-1) == 1 || data.size(1) > 1;
    match (data.dims(), data.size(1)) {
        (4.., 3) => STRONG,
        (5.., 1..=4) => GOOD,
        (4, 1) if dense => FAIR,
        (4, 1) => evidence::CLAIM_MIN,
        // Latents, planes of radar or of a board.
        (4, 2 | 4) => PLAUSIBLE,
        _ => POSSIBLE,
    }
}

/// Whether some weight multiplies step after step: a recurrence over the picture.
fn has_steps(facts: &Facts<'_>, entries: &[NodeId]) -> bool {
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    for node in facts.graph.nodes().filter(|node| facts.kind(*node) == Kind::Product) {
        if let Some(product) = product(facts.graph, node) {
            *uses.entry(product.other.value).or_default() += 1;
        }
    }
    uses.values().any(|uses| *uses >= STEPS_MIN * entries.len())
}

/// Whether a spectrum is computed: the planes are sounds.
fn has_spectrum(facts: &Facts<'_>) -> bool {
    let graph = facts.graph;
    graph.nodes().filter(|node| facts.is_forward(*node) && facts.depth(*node) == 0).any(|node| {
        let name = graph.op_name(node);
        name.contains("_fft") || name.contains("stft")
    })
}

/// Whether waves of a scalar for each picture enter products: the step of a diffusion.
fn has_wave_of_scalar(facts: &Facts<'_>) -> bool {
    let graph = facts.graph;
    graph.nodes().filter(|node| facts.is_forward(*node) && facts.depth(*node) == 0).any(|node| {
        if !matches!(graph.op_name(node), "sin" | "cos") {
            return false;
        }
        let Some(out) = graph.output(node, 0) else { return false };
        let mut open = vec![out.value];
        // Joined and reshaped at most.
        for _ in 0..16 {
            let Some(value) = open.pop() else { break };
            for reader in facts.readers(value) {
                match facts.kind(reader) {
                    Kind::Product => return true,
                    Kind::Join | Kind::Other => {
                        open.extend(graph.output(reader, 0).map(|out| out.value));
                    }
                    _ => {}
                }
            }
        }
        false
    })
}

/// The forward passes: from one use of the first weight to the next.
fn passes(facts: &Facts<'_>, entries: &[NodeId]) -> Vec<Pass> {
    let graph = facts.graph;
    let weight = |entry: NodeId| graph.input(entry, 1).map(|weight| weight.value);
    let Some(first) = entries.first() else { return Vec::new() };
    // Of siblings before anything deeper is computed, one pass.
    let mut begins: Vec<NodeId> = Vec::new();
    for entry in entries.iter().filter(|entry| weight(**entry) == weight(*first)) {
        let deeper = begins.last().is_none_or(|last: &NodeId| {
            (last.0..entry.0).map(NodeId).filter(|node| facts.is_heavy(*node)).count() > 1
        });
        if deeper {
            begins.push(*entry);
        }
    }
    let mut passes: Vec<Pass> = Vec::new();
    let mut start = NodeId(0);
    for (at, entry) in begins.iter().enumerate() {
        let end = match begins.get(at + 1) {
            // What prepares the next picture is the next pass's.
            Some(next) => (entry.0 + 1..=next.0)
                .rev()
                .map(NodeId)
                .find(|node| facts.is_heavy(*node) && node != next || *node == NodeId(entry.0 + 1))
                .and_then(|last| {
                    (last.0 + 1..=next.0)
                        .map(NodeId)
                        .find(|node| facts.depth(*node) == 0 || node == next)
                })
                .unwrap_or(*next),
            None => NodeId(graph.len() as u32),
        };
        passes.push(Pass { start, entry: *entry, end });
        start = end;
    }
    passes
}

fn annotate(facts: &Facts<'_>, pass: Pass, split: Split, confidence: f32, notes: &mut Annotations) {
    let (architecture, head_phase) = match split.task {
        Task::Detect => ("detector", "vision.detect"),
        Task::Dense => ("dense", "vision.head"),
        Task::Classify => ("classifier", "vision.head"),
    };
    let stem = stem::last_of_stem(facts, pass.entry, split.head);
    let backbone = match split.stem_in_backbone {
        true => pass.start,
        false => NodeId(stem.0 + 1),
    };
    let nodes = |from: NodeId, to: NodeId| {
        pass.nodes(facts).filter(move |node| *node >= from && *node < to)
    };
    if !split.stem_in_backbone {
        let stem = nodes(pass.start, NodeId(stem.0 + 1));
        notes.matched("vision.stem", "vision.stem", "image", confidence, stem);
    }
    for stage in stages::stages(facts, pass, backbone, split.head) {
        notes.matched("vision.stage", "vision.backbone", "image", confidence, stage);
    }
    let head = nodes(split.head, pass.end);
    notes.matched("vision.head", head_phase, "image", confidence, head);
    if notes.attributes.is_empty() {
        let mixes = nodes(backbone, split.head).any(|node| facts.kind(node) == Kind::Mixing);
        notes.attribute("architecture", if mixes { "vit" } else { "cnn" });
        notes.attribute("vision.task", architecture);
    }
}

genie_plugin::recognizer!(Vision);

#[cfg(test)]
mod tests;
