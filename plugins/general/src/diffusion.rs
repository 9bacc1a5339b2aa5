//! Diffusion: denoisers that know how noisy their input is, and decoders of latents.
//!
//! A denoiser is told the step by a vector of waves (sines and cosines of one number for each
//! sample), which products turn into shifts and scales that spread over all positions of its
//! feature maps or tokens. A latent decoder makes a picture of planes that are neither one nor
//! three, by upsampling.
//!
//! A sampler of points is a network that corrects its own input over and over, told the step by
//! such waves every time.

use std::collections::VecDeque;

use genie_plugin::dataflow::NodeSet;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::{is_given, is_weighted, product};
use genie_plugin::shapes::modality::lookup;

use crate::facts::Facts;

/// Readers of one value that are looked at.
const READERS_MAX: usize = 64;
/// Operators between a wave and the product that reads it.
const WAVE_NODES: usize = 24;
/// The most channels of a latent.
const LATENT_CHANNELS_MAX: i64 = 64;
/// Channels of a latent of an image model.
const LATENT_CHANNELS_USUAL: i64 = 16;
/// The least products between one use of the first convolution and the next in a loop.
const LOOP_WEIGHTED_MIN: usize = 2;
/// Inputs of a network that samples.
const SAMPLER_ENTRIES_MAX: usize = 8;
/// Operators of one correction.
const CORRECTION_NODES: usize = 64;
/// Depends on the step.
const STEP: u8 = 1;
/// Has many positions for each sample.
const WIDE: u8 = 2;
/// Depends on something else that is one number or index for each sample: a step in disguise.
const MAYBE: u8 = 4;

/// Adds what the window says of diffusion.
pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let flow = &facts.flow;
    let steps = step_products(facts);
    let found = modulations(facts, &steps);
    if let Some((confidence, by)) = denoiser(facts, &found) {
        notes.workload("diffusion", confidence);
        if !flow.training {
            denoised(facts, &by, confidence, notes);
        }
    } else if let Some(confidence) = sampler(facts) {
        notes.workload("diffusion", confidence);
        if !flow.training {
            denoised(facts, &[], confidence, notes);
        }
    } else if let Some((confidence, nodes)) = decoder(facts, NodeId(0), false) {
        notes.workload("diffusion", confidence);
        if !flow.training {
            notes.matched("diffusion.decoder", "diffusion.vae", "image", confidence, nodes);
        }
    }
}

/// Products that read waves of numbers the program set: where a step enters.
fn step_products(facts: &Facts<'_>) -> NodeSet {
    let Facts { graph, flow, modalities, .. } = facts;
    let mut steps = NodeSet::new(graph);
    let mut seen = NodeSet::new(graph);
    for node in graph.nodes().filter(|node| flow.is_forward(*node)) {
        if !matches!(facts.graph.name(node), "sin" | "cos" | "polar") {
            continue;
        }
        let Some(out) = graph.output(node, 0) else { continue };
        if modalities.is_touched(out.value) || out.dims() > 3 {
            continue;
        }
        let mut open = VecDeque::from([out.value]);
        for _ in 0..WAVE_NODES {
            let Some(value) = open.pop_front() else { break };
            for reader in graph.consumers(value).iter().take(READERS_MAX) {
                if !flow.is_forward(*reader) {
                    continue;
                }
                let reads = product(graph, *reader)
                    .is_some_and(|found| found.weighted && found.data.value == value);
                if reads {
                    steps.insert(*reader);
                } else if seen.insert(*reader) {
                    let outputs =
                        graph.outputs(*reader).filter(|out| !modalities.is_touched(out.value));
                    open.extend(outputs.map(|out| out.value));
                }
            }
        }
    }
    steps
}

/// Where vectors of the step meet maps or tokens.
#[derive(Debug, Default)]
struct Modulations {
    by_step: Vec<NodeId>,
    by_vector: Vec<NodeId>,
}

fn modulations(facts: &Facts<'_>, steps: &NodeSet) -> Modulations {
    let Facts { graph, flow, modalities, .. } = facts;
    let mut found = Modulations::default();
    let mut bits = vec![0u8; graph.values().len()];
    let mut entries = modalities.entries.iter().peekable();
    let samples = steps.iter().filter_map(|step| rows(facts, step)).max();
    for node in graph.nodes() {
        let mut entered = None;
        while let Some((_, modality)) = entries.next_if(|(entry, _)| *entry <= node) {
            entered = Some(*modality);
        }
        if !flow.is_forward(node) {
            continue;
        }
        let mut sum = graph.inputs(node).fold(0, |sum, input| sum | bits[input.value.0 as usize]);
        if steps.contains(node) {
            sum = STEP;
        } else if lookup(facts.graph, node).is_some_and(|lookup| lookup.index.dims() <= 1) {
            sum = MAYBE;
        } else if let Some(entered) = entered {
            sum |= own_bits(facts, node, entered, samples);
        }
        if let Some(out) = graph.output(node, 0) {
            match meets(facts, node, out, &bits) {
                Some(STEP) => found.by_step.push(node),
                Some(_) => found.by_vector.push(node),
                None => {}
            }
        }
        for out in graph.outputs(node) {
            bits[out.value.0 as usize] = sum;
        }
    }
    found
}

/// What an input is where it first meets a parameter.
///
/// `samples`: how many vectors of the step there are, if any.
fn own_bits(facts: &Facts<'_>, node: NodeId, entered: Modality, samples: Option<u64>) -> u8 {
    if lookup(facts.graph, node).is_some() {
        return WIDE;
    }
    if entered.has(Modality::VECTOR) {
        if samples.is_some_and(|samples| rows(facts, node).is_some_and(|rows| rows > samples)) {
            return WIDE;
        }
        let one = product(facts.graph, node).is_some_and(|found| found.data.size(-1) == 1);
        return if one { MAYBE } else { 0 };
    }
    WIDE
}

/// Rows of data that a product reads.
fn rows(facts: &Facts<'_>, node: NodeId) -> Option<u64> {
    let data = product(facts.graph, node)?.data;
    Some(data.elements() / data.size(-1).max(1) as u64)
}

/// Whether the node spreads a vector of the step (or of what may be one) over positions.
fn meets(facts: &Facts<'_>, node: NodeId, out: Tensor<'_>, bits: &[u8]) -> Option<u8> {
    let graph = facts.graph;
    let spreads = match facts.graph.name(node) {
        "add" | "sub" | "mul" | "div" | "addcmul" | "lerp" => true,
        "cat" => false,
        _ => return None,
    };
    let of = |input: &Tensor<'_>| bits[input.value.0 as usize];
    if !graph.inputs(node).any(|input| of(&input) & WIDE != 0) {
        return None;
    }
    let vectors = graph.inputs(node).filter(|input| {
        let smaller = input.elements() < out.elements();
        of(input) & WIDE == 0 && (smaller || !spreads) && input.dtype.is_floating()
    });
    vectors
        .map(|input| of(&input))
        .filter(|bits| bits & (STEP | MAYBE) != 0)
        .map(|bits| bits & STEP)
        .max()
}

/// How sure it is that the window denoises, and where the step is used.
fn denoiser(facts: &Facts<'_>, found: &Modulations) -> Option<(f32, Vec<NodeId>)> {
    let Facts { modalities, .. } = facts;
    match found.by_step.len() {
        0 => {}
        1 => return Some((0.8, found.by_step.clone())),
        _ => return Some((0.95, found.by_step.clone())),
    }
    let planes = Modality::IMAGE.with(Modality::LATENT);
    let (entry, _) = modalities.entries.iter().find(|(_, modality)| modality.has(planes))?;
    let found_by = found.by_vector.clone();
    if let Some(fed) = feeds_itself(facts, *entry) {
        let confidence = match (found_by.is_empty(), fed) {
            (false, _) => 0.93,
            (true, Fed::Told) => 0.85,
            (true, Fed::Alone) => 0.62,
        };
        return Some((confidence, found_by));
    }
    match (gives_what_it_takes(facts, *entry), found_by.len()) {
        (true, 2..) => Some((0.88, found_by)),
        (true, 1) => Some((0.6, found_by)),
        _ => None,
    }
}

/// Whether some convolution gives as many elements, in as many channels, as the first one takes.
fn gives_what_it_takes(facts: &Facts<'_>, entry: NodeId) -> bool {
    let Facts { graph, flow, .. } = facts;
    if !facts.graph.roles(entry).has(Roles::CONVOLUTION) {
        return false;
    }
    let Some(data) = graph.input(entry, 0) else { return false };
    graph.nodes().filter(|node| *node > entry && flow.is_forward(*node)).any(|node| {
        facts.graph.roles(node).has(Roles::CONVOLUTION)
            && graph.output(node, 0).is_some_and(|out| out.sizes == data.sizes)
    })
}

/// What a convolution reads besides its own former results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fed {
    Alone,
    /// Planes that are one constant: the step.
    Told,
}

/// Whether the first convolution works again on what was computed from its own result, and on
/// nothing else that has positions.
fn feeds_itself(facts: &Facts<'_>, entry: NodeId) -> Option<Fed> {
    let Facts { graph, flow, .. } = facts;
    let (weight, data) = (graph.input(entry, 1)?, graph.input(entry, 0)?);
    if !facts.graph.roles(entry).has(Roles::CONVOLUTION) {
        return None;
    }
    let mut made = NodeSet::of(graph, [entry]);
    let mut weighted = 0;
    for node in graph.nodes().filter(|node| *node > entry && flow.is_forward(*node)) {
        if !graph.predecessors(node).any(|before| made.contains(before)) {
            continue;
        }
        made.insert(node);
        let again = facts.graph.roles(node).has(Roles::CONVOLUTION)
            && graph.input(node, 1).is_some_and(|other| other.value == weight.value)
            && graph.input(node, 0).is_some_and(|input| input.sizes == data.sizes);
        if again {
            return fed(facts, node, &made).filter(|_| weighted >= LOOP_WEIGHTED_MIN);
        }
        weighted += usize::from(is_weighted(graph, node));
    }
    None
}

/// What a convolution reads, if it has no planes beside those that were made and constant ones.
fn fed(facts: &Facts<'_>, node: NodeId, made: &NodeSet) -> Option<Fed> {
    let graph = facts.graph;
    let data = graph.input(node, 0)?;
    let producer = graph.producer(data.value);
    if facts.graph.name(producer) != "cat" {
        return Some(Fed::Alone);
    }
    let mut fed = Fed::Alone;
    for input in graph.inputs(producer) {
        let maker = graph.producer(input.value);
        let filled = matches!(facts.graph.name(maker), "fill" | "full" | "full_like" | "new_full");
        let spread = input.dims() > 2 && input.strides.iter().skip(2).all(|stride| *stride == 0);
        match (made.contains(maker), filled || spread) {
            (true, _) => {}
            (false, true) => fed = Fed::Told,
            (false, false) => return None,
        }
    }
    Some(fed)
}

/// How sure it is that a network of products samples: it is applied again and again to what it
/// read before, shifted by its own result, and waves of the step join in every time.
fn sampler(facts: &Facts<'_>) -> Option<f32> {
    let Facts { graph, flow, modalities, .. } = facts;
    let waves = |node: NodeId| {
        flow.is_forward(node)
            && matches!(facts.graph.name(node), "sin" | "cos" | "polar")
            && graph.output(node, 0).is_some_and(|out| !modalities.is_touched(out.value))
    };
    if !graph.nodes().any(waves) {
        return None;
    }
    let products = |node: NodeId| product(facts.graph, node).filter(|found| found.weighted);
    let entries = modalities.entries.iter().filter(|(node, _)| products(*node).is_some());
    let mut rounds = 0;
    for (entry, _) in entries.take(SAMPLER_ENTRIES_MAX) {
        rounds = rounds.max(rounds_of(facts, *entry, &waves));
    }
    match rounds {
        0 | 1 => None,
        2 => Some(0.8),
        _ => Some(0.9),
    }
}

/// How often the product at `entry` reads its former input, corrected by what was made of it and
/// told the step anew.
fn rounds_of(facts: &Facts<'_>, entry: NodeId, waves: &impl Fn(NodeId) -> bool) -> usize {
    let Facts { graph, flow, .. } = facts;
    let Some(first) = product(facts.graph, entry) else { return 0 };
    // Depends on waves alone, or on what the product gave.
    let mut waved = vec![false; graph.values().len()];
    let mut made = vec![false; graph.values().len()];
    let mut state = states(facts, first.data.value, &waved);
    let (mut rounds, mut told) = (1, false);
    for node in graph.nodes().filter(|node| flow.is_forward(*node)) {
        let any = |bits: &[bool]| graph.inputs(node).any(|input| bits[input.value.0 as usize]);
        let (of_wave, of_made) = (any(&waved), any(&made));
        told |= of_wave && of_made;
        let again = product(facts.graph, node).filter(|product| {
            node > entry
                && product.other.value == first.other.value
                && product.data.sizes == first.data.sizes
        });
        if let Some(again) = again {
            if told && is_corrected(facts, again.data.value, &state) {
                rounds += 1;
            }
            told = false;
            state = states(facts, again.data.value, &waved);
        }
        for out in graph.outputs(node) {
            waved[out.value.0 as usize] = (of_wave || waves(node)) && !of_made;
            made[out.value.0 as usize] = of_made || node == entry;
        }
    }
    rounds
}

/// What a product reads, without the waves that were joined to it.
fn states(facts: &Facts<'_>, data: ValueId, waved: &[bool]) -> Vec<ValueId> {
    let graph = facts.graph;
    let producer = graph.producer(data);
    match facts.graph.name(producer) {
        "cat" => graph
            .inputs(producer)
            .map(|input| input.value)
            .filter(|part| !waved[part.0 as usize])
            .take(READERS_MAX)
            .collect(),
        _ => vec![data],
    }
}

/// Whether a value is one of `states` plus something, by way of elementwise operators alone.
fn is_corrected(facts: &Facts<'_>, value: ValueId, states: &[ValueId]) -> bool {
    let graph = facts.graph;
    let mut open = VecDeque::from([value]);
    let mut added = false;
    let mut found = false;
    for _ in 0..CORRECTION_NODES {
        let Some(at) = open.pop_front() else { break };
        if states.contains(&at) {
            found = true;
            continue;
        }
        let node = graph.producer(at);
        let name = facts.graph.name(node);
        if name == "cat" || facts.graph.roles(node).has(Roles::ELEMENTWISE) {
            added |= matches!(name, "add" | "sub" | "rsub" | "addcmul" | "addcdiv" | "lerp");
            open.extend(graph.inputs(node).map(|input| input.value));
        }
    }
    found && added
}

/// Names the denoiser's operators, and the decoder's behind it.
fn denoised(facts: &Facts<'_>, by: &[NodeId], confidence: f32, notes: &mut Annotations) {
    let Facts { graph, flow, .. } = facts;
    let start = first_of_denoiser(facts, by.first().copied());
    let last = by.last().copied().unwrap_or(NodeId(0));
    let decoded = match by.is_empty() {
        true => None,
        false => decoder(facts, last, true),
    };
    let end = decoded
        .as_ref()
        .and_then(|(_, nodes)| nodes.first().copied())
        .unwrap_or(NodeId(graph.len() as u32));
    let nodes = graph.nodes().filter(|node| flow.is_forward(*node));
    let denoiser: Vec<NodeId> = nodes.filter(|node| *node >= start && *node < end).collect();
    let convolves =
        denoiser.iter().filter(|node| facts.graph.roles(**node).has(Roles::CONVOLUTION)).count();
    let weighted = denoiser.iter().filter(|node| is_weighted(graph, **node)).count();
    let architecture = match 3 * convolves > weighted {
        true => "unet",
        false if facts.attentions().is_empty() => "mlp",
        false => "dit",
    };
    notes.attribute("architecture", architecture);
    notes.matched("diffusion.denoiser", "diffusion.denoise", "image", confidence, denoiser);
    if let Some((_, nodes)) = decoded {
        notes.matched("diffusion.decoder", "diffusion.vae", "image", confidence, nodes);
    }
}

/// The first operator of the denoiser: the window's first, unless a text was encoded before it.
fn first_of_denoiser(facts: &Facts<'_>, used: Option<NodeId>) -> NodeId {
    let Facts { graph, flow, modalities, .. } = facts;
    let Some(used) = used else { return NodeId(0) };
    let text = modalities.entries.iter().any(|(node, modality)| {
        *node < used
            && modality.has(Modality::TOKENS)
            && lookup(facts.graph, *node).is_some_and(|lookup| lookup.index.dims() >= 2)
    });
    if !text {
        return NodeId(0);
    }
    // The stretch before the first use of the step in which nothing was looked up or attended to
    // but the picture came in: from the last untouched operator that leads to it.
    let mut first = used;
    let mut open = vec![used];
    let mut seen = NodeSet::new(graph);
    let mut text = NodeId(0);
    for (node, modality) in &modalities.entries {
        if *node < used && modality.has(Modality::TOKENS) {
            text = *node;
        }
    }
    while let Some(node) = open.pop() {
        for input in graph.inputs(node) {
            let producer = graph.producer(input.value);
            let own = !modalities.value(input.value).has(Modality::TOKENS);
            if producer > text && own && flow.is_forward(producer) && seen.insert(producer) {
                first = first.min(producer);
                open.push(producer);
            }
        }
    }
    first
}

/// A latent's decoder among the nodes behind `after`: how sure, and its operators.
fn decoder(facts: &Facts<'_>, after: NodeId, denoised: bool) -> Option<(f32, Vec<NodeId>)> {
    let Facts { graph, flow, modalities, .. } = facts;
    let start = match denoised {
        true => {
            let latents = modalities
                .entries
                .iter()
                .filter(|(entry, _)| facts.graph.roles(*entry).has(Roles::CONVOLUTION));
            let channels =
                latents.filter_map(|(entry, _)| graph.input(*entry, 0)).map(|data| data.size(1));
            let most = channels.min().unwrap_or(LATENT_CHANNELS_USUAL);
            graph.nodes().find(|node| {
                *node > after
                    && flow.is_forward(*node)
                    && facts.graph.roles(*node).has(Roles::CONVOLUTION)
                    && few_channels(graph, *node)
                    && graph.input(*node, 0).is_some_and(|data| data.size(1) <= most)
            })?
        }
        false => {
            let (entry, modality) = modalities.entries.first()?;
            let alone = modalities.entries.iter().all(|(_, other)| other.has(Modality::LATENT));
            if !modality.has(Modality::LATENT) || !alone || !few_channels(graph, *entry) {
                return None;
            }
            *entry
        }
    };
    let first = graph.input(start, 0)?;
    let begin = if denoised { start } else { NodeId(0) };
    let nodes: Vec<NodeId> =
        graph.nodes().filter(|node| *node >= begin && flow.is_forward(*node)).collect();
    let grows = |node: NodeId| -> bool {
        let (Some(input), Some(out)) = (graph.input(node, 0), graph.output(node, 0)) else {
            return false;
        };
        input.dims() == 4
            && out.dims() == 4
            && out.size(-1) > input.size(-1)
            && out.size(-2) > input.size(-2)
    };
    let grown = nodes.iter().filter(|node| grows(**node)).count();
    let shrunk =
        nodes.iter().filter(|node| facts.graph.roles(**node).has(Roles::CONVOLUTION)).any(|node| {
            let (Some(input), Some(out)) = (graph.input(*node, 0), graph.output(*node, 0)) else {
                return false;
            };
            out.size(-1) < input.size(-1)
        });
    let last = nodes.iter().rev().find(|node| facts.graph.roles(**node).has(Roles::CONVOLUTION))?;
    let picture = graph.output(*last, 0)?;
    let colours = matches!(picture.size(1), 1 | 3) && picture.dims() == 4;
    let larger = picture.size(-1) >= 2 * first.size(-1);
    if grown == 0 || shrunk || !colours || !larger {
        return None;
    }
    let confidence = if first.size(1) <= LATENT_CHANNELS_USUAL { 0.85 } else { 0.7 };
    Some((confidence, nodes))
}

/// Whether a convolution takes few planes: a latent.
fn few_channels(graph: &Graph, node: NodeId) -> bool {
    let Some(data) = graph.input(node, 0) else { return false };
    // One position is a vector, not a plane.
    data.dims() == 4
        && (2..=LATENT_CHANNELS_MAX).contains(&data.size(1))
        && data.size(-1) > 1
        && graph.input(node, 1).is_some_and(|weight| is_given(graph, weight.value))
        && data.size(1) <= graph.output(node, 0).map_or(0, |out| out.size(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_plugin::builder::{Given, GraphBuilder, Handle};

    fn said(graph: &Graph) -> Annotations {
        let mut notes = Annotations::new();
        recognize(&Facts::of(graph), &mut notes);
        notes
    }

    fn convolution(g: &mut GraphBuilder, x: Handle, weight: Handle, sizes: &[i64]) -> Handle {
        let args = [Given::Tensor(0), Given::Tensor(1), Given::None, Given::Ints(&[1, 1])];
        g.op_with("aten::convolution", &[x, weight], Some(&args), sizes)
    }

    /// A vector for each of two samples, from the step's waves.
    fn waves(g: &mut GraphBuilder) -> Handle {
        let t = g.op("aten::full", &[], &[2, 8]);
        let (sin, cos) = (g.op("aten::sin", &[t], &[2, 8]), g.op("aten::cos", &[t], &[2, 8]));
        let wave = g.op("aten::cat", &[sin, cos], &[2, 16]);
        let weight = g.weight(&[16, 8]);
        let e = g.op("aten::mm", &[wave, weight], &[2, 8]);
        g.op("aten::silu", &[e], &[2, 8])
    }

    /// A denoiser of two blocks whose maps are shifted by `e`.
    fn blocks(g: &mut GraphBuilder, x: Handle, e: Handle) -> Handle {
        let maps = [2, 8, 16, 16];
        let first = g.weight(&[8, 3, 3, 3]);
        let mut y = convolution(g, x, first, &maps);
        for _ in 0..2 {
            let (w, v) = (g.weight(&[8, 8, 3, 3]), g.weight(&[8, 8]));
            let shift = g.op("aten::mm", &[e, v], &[2, 8]);
            let shift = g.view(shift, &[2, 8, 1, 1]);
            y = convolution(g, y, w, &maps);
            y = g.op("aten::add.Tensor", &[y, shift], &maps);
        }
        let last = g.weight(&[3, 8, 3, 3]);
        convolution(g, y, last, &[2, 3, 16, 16])
    }

    #[test]
    fn waves_of_the_step_that_shift_maps_are_a_denoiser() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 3, 16, 16]);
        let e = waves(&mut g);
        let y = blocks(&mut g, x, e);
        let last = g.node_of(y);
        let notes = said(&g.build());
        assert_eq!(notes.workload[0].label, "diffusion");
        assert!(notes.workload[0].confidence > 0.9);
        assert_eq!(notes.matches[0].phase, "diffusion.denoise");
        assert!(notes.matches[0].nodes.contains(&last.0));
    }

    #[test]
    fn a_looked_up_step_is_less_sure_and_no_step_says_nothing() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 3, 16, 16]);
        let table = g.weight(&[1000, 8]);
        let t = g.input_of(&[2], DType::INT64);
        let e = g.op("aten::embedding", &[table, t], &[2, 8]);
        blocks(&mut g, x, e);
        let notes = said(&g.build());
        assert_eq!(notes.workload[0].label, "diffusion");
        assert!(notes.workload[0].confidence < 0.9);

        // Squeeze and excite: the vector is of the picture itself.
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 3, 16, 16]);
        let first = g.weight(&[8, 3, 3, 3]);
        let y = convolution(&mut g, x, first, &[2, 8, 16, 16]);
        let e = g.op("aten::mean.dim", &[y], &[2, 8]);
        let gate = g.view(e, &[2, 8, 1, 1]);
        g.op("aten::mul.Tensor", &[y, gate], &[2, 8, 16, 16]);
        assert!(said(&g.build()).workload.is_empty());
    }

    #[test]
    fn planes_that_grow_to_a_picture_are_a_latent_decoded() {
        for (latent, colours, found) in [(4, 3, true), (3, 3, false), (4, 19, false)] {
            let mut g = GraphBuilder::new();
            let z = g.input(&[1, latent, 8, 8]);
            let first = g.weight(&[32, latent, 3, 3]);
            let y = convolution(&mut g, z, first, &[1, 32, 8, 8]);
            let y = g.op("aten::upsample_nearest2d", &[y], &[1, 32, 16, 16]);
            let last = g.weight(&[colours, 32, 3, 3]);
            convolution(&mut g, y, last, &[1, colours, 16, 16]);
            let notes = said(&g.build());
            let phase = notes.matches.first().map(|found| found.phase.as_str());
            assert_eq!(phase, found.then_some("diffusion.vae"), "{latent} to {colours}");
        }
    }

    #[test]
    fn a_network_that_works_on_its_own_result_samples() {
        let mut g = GraphBuilder::new();
        let maps = [1, 8, 16, 16];
        let (a, b, c) = (g.weight(&[8, 3, 3, 3]), g.weight(&[8, 8, 3, 3]), g.weight(&[3, 8, 3, 3]));
        let mut x = g.input(&[1, 3, 16, 16]);
        for _ in 0..3 {
            let y = convolution(&mut g, x, a, &maps);
            let y = convolution(&mut g, y, b, &maps);
            let e = convolution(&mut g, y, c, &[1, 3, 16, 16]);
            x = g.op("aten::sub.Tensor", &[x, e], &[1, 3, 16, 16]);
        }
        let notes = said(&g.build());
        assert_eq!(notes.workload[0].label, "diffusion");
        assert!(notes.workload[0].confidence < 0.7);
    }

    /// A perceptron applied three times to its own result.
    fn points(with_waves: bool, corrects: bool) -> Annotations {
        let mut g = GraphBuilder::new();
        let (a, b) = (g.weight(&[18, 32]), g.weight(&[32, 2]));
        let still = g.input(&[64, 16]);
        let mut x = g.input(&[64, 2]);
        for _ in 0..3 {
            let told = match with_waves {
                true => {
                    let t = g.op("aten::full", &[], &[64, 16]);
                    g.op("aten::sin", &[t], &[64, 16])
                }
                false => still,
            };
            let joined = g.op("aten::cat", &[x, told], &[64, 18]);
            let y = g.op("aten::mm", &[joined, a], &[64, 32]);
            let y = g.op("aten::relu", &[y], &[64, 32]);
            let e = g.op("aten::mm", &[y, b], &[64, 2]);
            x = match corrects {
                true => g.op("aten::sub.Tensor", &[x, e], &[64, 2]),
                false => e,
            };
        }
        said(&g.build())
    }

    #[test]
    fn points_corrected_again_and_again_are_sampled() {
        let notes = points(true, true);
        assert_eq!(notes.workload[0].label, "diffusion");
        assert!(notes.workload[0].confidence > 0.85);
        assert!(points(false, true).workload.is_empty());
        assert!(points(true, false).workload.is_empty());
    }
}
