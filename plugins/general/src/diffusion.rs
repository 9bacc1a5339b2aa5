//! Diffusion: denoisers that know how noisy their input is, and decoders of latents.
//!
//! | evidence | file |
//! |---|---|
//! | vectors of the step, which products make of waves, shift and scale all positions of maps or tokens | [`step`] |
//! | a network is applied again and again to what it gave | [`again`] |
//! | planes that are neither one nor three grow to a picture | [`latent`] |

mod again;
mod latent;
mod step;
#[cfg(test)]
mod tests;

use genie_plugin::dataflow::leads_down;
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::is_weighted;
use genie_plugin::shapes::modality::lookup;

use crate::facts::Facts;

/// Operators between the first of a denoiser and the first that uses the step.
const WAY_MAX: usize = 256;

/// Adds what the window says of diffusion.
pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let sampler = || Some((again::samples(facts)?, Vec::new()));
    let denoiser = denoises(facts).or_else(sampler);
    let decoded = match denoiser.as_ref().map(|(_, used)| used.last()) {
        None => latent::decoded(facts),
        Some(used) => used.and_then(|used| latent::decoded_after(facts, *used)),
    };
    let sure = denoiser.as_ref().map(|(confidence, _)| *confidence);
    let Some(confidence) = sure.or(decoded.as_ref().map(|(confidence, _)| *confidence)) else {
        return;
    };
    notes.workload("diffusion", confidence);
    if facts.flow.training {
        return;
    }
    let decoder = decoded.map_or(Vec::new(), |(_, nodes)| nodes);
    if let Some((_, used)) = denoiser {
        let start = used.first().map_or(NodeId(0), |used| first_of_denoiser(facts, *used));
        let end = decoder.first().copied().unwrap_or(NodeId(u32::MAX));
        let nodes: Vec<NodeId> =
            facts.nodes.iter().copied().filter(|node| (start..end).contains(node)).collect();
        notes.attribute("architecture", architecture(facts, &nodes));
        notes.matched("diffusion.denoiser", "diffusion.denoise", "image", confidence, nodes);
    }
    notes.matched("diffusion.decoder", "diffusion.vae", "image", confidence, decoder);
}

/// How sure it is that the window denoises, and where the step is used.
fn denoises(facts: &Facts<'_>) -> Option<(f32, Vec<NodeId>)> {
    let step::Uses { by_step, by_vector } = step::uses(facts);
    match by_step.len() {
        0 => {}
        1 => return Some((evidence::LIKELY, by_step)),
        _ => return Some((evidence::UNMISTAKABLE, by_step)),
    }
    let planes = Modality::IMAGE.with(Modality::LATENT);
    let (entry, _) = facts.modalities.entries.iter().find(|(_, of)| of.has(planes))?;
    let confidence = match (again::feeds_itself(facts, *entry), by_vector.len()) {
        (Some(_), 1..) => evidence::UNMISTAKABLE,
        (Some(told), 0) => {
            if told {
                evidence::GOOD
            } else {
                evidence::PLAUSIBLE
            }
        }
        (None, 2..) if again::gives_what_it_takes(facts, *entry) => evidence::GOOD,
        (None, 1) if again::gives_what_it_takes(facts, *entry) => evidence::PLAUSIBLE,
        _ => return None,
    };
    Some((confidence, by_vector))
}

/// The first operator of the denoiser: the window's first, unless a text was encoded before it.
fn first_of_denoiser(facts: &Facts<'_>, used: NodeId) -> NodeId {
    let Facts { graph, modalities, .. } = facts;
    let words = modalities
        .entries
        .iter()
        .map(|(node, _)| *node)
        .filter(|node| *node < used && modalities.node_of(graph, *node).has(Modality::TOKENS));
    let is_text = |node| lookup(graph, node).is_some_and(|lookup| lookup.index.dims() >= 2);
    let Some(last) = words.clone().last().filter(|_| words.clone().any(is_text)) else {
        return NodeId(0);
    };
    // What leads to the step's use by way of operators that no text took part in.
    let own = |node: NodeId| !modalities.node_of(graph, node).has(Modality::TOKENS);
    let leads = |node: NodeId| {
        let mut outputs = graph.outputs(node);
        outputs.any(|out| leads_down(graph, out.value, WAY_MAX, |at| at == used, own))
    };
    let mut between = facts.nodes.iter().filter(|node| (last..used).contains(*node));
    between.find(|node| **node > last && own(**node) && leads(**node)).copied().unwrap_or(used)
}

fn architecture(facts: &Facts<'_>, denoiser: &[NodeId]) -> &'static str {
    let graph = facts.graph;
    let count =
        |is_it: &dyn Fn(NodeId) -> bool| denoiser.iter().filter(|node| is_it(**node)).count();
    let convolves = count(&|node| graph.roles(node).has(Roles::CONVOLUTION));
    match 3 * convolves > count(&|node| is_weighted(graph, node)) {
        true => "unet",
        false if facts.attentions().is_empty() => "mlp",
        false => "dit",
    }
}
