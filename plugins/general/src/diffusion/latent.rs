//! Decoders of latents: planes that are neither one nor three grow to a picture.

use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::Modality;
use genie_plugin::shapes::flow::is_given;

use crate::facts::Facts;

/// The most channels of a latent.
const CHANNELS_MAX: i64 = 64;
/// Channels of a latent of an image model.
const CHANNELS_USUAL: i64 = 16;

/// The window as a decoder of nothing but latents: how sure, and its operators.
pub(super) fn decoded(facts: &Facts<'_>) -> Option<(f32, Vec<NodeId>)> {
    let mut entries = facts.modalities.entries.iter();
    let latents = entries.clone().all(|(_, of)| of.has(Modality::LATENT));
    let first = latent(facts.graph, entries.next()?.0).filter(|_| latents)?;
    grown(facts.graph, first, facts.nodes.clone())
}

/// The decoder behind a denoiser, which last uses the step at `used`.
pub(super) fn decoded_after(facts: &Facts<'_>, used: NodeId) -> Option<(f32, Vec<NodeId>)> {
    let graph = facts.graph;
    let inputs = facts.modalities.entries.iter().map(|(node, _)| *node);
    let planes = inputs.filter(|node| graph.roles(*node).has(Roles::CONVOLUTION));
    let channels = planes.filter_map(|node| graph.input(node, 0)).map(|data| data.size(1)).min();
    let read = |node| latent(graph, node).map(|data| (node, data));
    let (start, first) = facts
        .with(Roles::CONVOLUTION)
        .filter(|node| *node > used)
        .filter_map(read)
        .find(|(_, data)| data.size(1) <= channels.unwrap_or(CHANNELS_USUAL))?;
    grown(graph, first, facts.nodes.iter().copied().filter(|node| *node >= start).collect())
}

/// The few planes that a convolution takes, if it does.
fn latent(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    let (data, weight, out) =
        (graph.input(node, 0)?, graph.input(node, 1)?, graph.output(node, 0)?);
    let channels = data.size(1);
    // One position is a vector, not a plane.
    let planes = data.dims() == 4 && data.size(-1) > 1;
    let few = (2..=CHANNELS_MAX.min(out.size(1))).contains(&channels);
    let convolves = graph.roles(node).has(Roles::CONVOLUTION) && is_given(graph, weight.value);
    (convolves && planes && few).then_some(data)
}

/// Whether `nodes` make a larger picture of planes, and never shrink them.
fn grown(graph: &Graph, first: Tensor<'_>, nodes: Vec<NodeId>) -> Option<(f32, Vec<NodeId>)> {
    let ends = |node: &NodeId| Some((graph.input(*node, 0)?, graph.output(*node, 0)?));
    let grows = nodes.iter().filter_map(ends).any(|(data, out)| {
        let larger = |dim| out.size(dim) > data.size(dim);
        data.dims() == 4 && out.dims() == 4 && larger(-1) && larger(-2)
    });
    let convolved = nodes.iter().filter(|node| graph.roles(**node).has(Roles::CONVOLUTION));
    let mut convolved = convolved.filter_map(ends);
    let shrinks = convolved.clone().any(|(data, out)| out.size(-1) < data.size(-1));
    let (_, picture) = convolved.next_back()?;
    let colours = matches!(picture.size(1), 1 | 3) && picture.dims() == 4;
    let larger = picture.size(-1) >= 2 * first.size(-1);
    let usual = first.size(1) <= CHANNELS_USUAL;
    let confidence = if usual { evidence::GOOD } else { evidence::FAIR };
    (grows && !shrinks && colours && larger).then_some((confidence, nodes))
}
