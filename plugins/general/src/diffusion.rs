//! Diffusion: denoisers that know how noisy their input is, and decoders of latents.
//!
//! | file | evidence |
//! |---|---|
//! | [`step`] | vectors that products make of waves shift all positions of maps or tokens |
//! | [`again`] | a network is applied again and again to what it gave |
//! | [`latent`] | planes that are neither one nor three grow to a picture |

mod again;
mod latent;
mod step;
#[cfg(test)]
mod tests;

use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::is_weighted;
use genie_plugin::shapes::modality::lookup;

use crate::facts::Facts;

/// Adds what the window says of diffusion.
pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let sampler = || Some((again::samples(facts)?, Vec::new()));
    let found = denoises(facts).or_else(sampler);
    let decoded = match &found {
        Some((_, used)) => used.last().and_then(|used| latent::decoded_after(facts, *used)),
        None => latent::decoded(facts),
    };
    let denoiser = found.as_ref().map(|(confidence, _)| *confidence);
    let decoder = decoded.as_ref().map(|(confidence, _)| *confidence);
    let Some(confidence) = denoiser.or(decoder) else { return };
    notes.workload("diffusion", confidence);
    if facts.flow.training {
        return;
    }
    let decoder = decoded.map_or(Vec::new(), |(_, nodes)| nodes);
    if let Some((_, used)) = found {
        let nodes = denoiser_of(facts, used.first(), decoder.first());
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
        (Some(again::Fed::Told), _) => evidence::GOOD,
        (Some(again::Fed::Alone), _) => evidence::PLAUSIBLE,
        (None, 0) => return None,
        (None, _) if !gives_what_it_takes(facts, *entry) => return None,
        (None, 1) => evidence::PLAUSIBLE,
        (None, _) => evidence::GOOD,
    };
    Some((confidence, by_vector))
}

/// Whether some convolution gives planes of the size that the first one takes.
fn gives_what_it_takes(facts: &Facts<'_>, entry: NodeId) -> bool {
    let out = |node| facts.graph.output(node, 0);
    facts.graph.input(entry, 0).is_some_and(|taken| {
        let mut given = facts.with(Roles::CONVOLUTION).filter_map(out);
        given.any(|given| given.sizes == taken.sizes)
    })
}

/// The operators before the decoder, without those of a text that was encoded before the step was
/// first used.
fn denoiser_of(facts: &Facts<'_>, used: Option<&NodeId>, decoder: Option<&NodeId>) -> Vec<NodeId> {
    let Facts { graph, modalities, .. } = facts;
    let before = |node: &NodeId| used.is_some_and(|used| node < used);
    let is_text = |node| lookup(graph, node).is_some_and(|lookup| lookup.index.dims() >= 2);
    let encodes = modalities.entries.iter().any(|(node, _)| before(node) && is_text(*node));
    let own = |node: &NodeId| !modalities.node_of(graph, *node).only(Modality::TOKENS);
    let nodes = facts.nodes.iter().filter(|node| decoder.is_none_or(|decoder| *node < decoder));
    nodes.filter(|node| !encodes || !before(node) || own(node)).copied().collect()
}

/// What the denoiser is made of.
fn architecture(facts: &Facts<'_>, denoiser: &[NodeId]) -> &'static str {
    let weighted = denoiser.iter().copied().filter(|node| is_weighted(facts.graph, *node));
    let convolves = |node: &NodeId| facts.graph.roles(*node).has(Roles::CONVOLUTION);
    let (convolutions, products): (Vec<_>, Vec<_>) = weighted.partition(convolves);
    match 2 * convolutions.len() > products.len() {
        true => "unet",
        false if facts.attentions().is_empty() => "mlp",
        false => "dit",
    }
}
