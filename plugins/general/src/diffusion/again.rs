//! Networks that are applied again and again to what they gave: samplers.

use genie_plugin::dataflow::{NodeSet, leads_up, reach};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_weighted, product};

use super::step::makes_waves;
use crate::facts::Facts;

/// The least products between one use of the first parameter and the next.
const WEIGHTED_MIN: usize = 2;
/// Inputs of a network that samples.
const ENTRIES_MAX: usize = 8;
/// Operators of one correction.
const CORRECTION_MAX: usize = 64;

/// One more use of a network, on what it gave before.
#[derive(Debug)]
struct Round {
    /// What it reads, if nothing else has positions.
    fed: Option<Fed>,
    /// It reads what it read before plus something, and waves joined in since.
    corrected: bool,
}

/// How sure it is that a network of products samples: it corrects its own input again and again,
/// told the step by waves every time.
pub(super) fn samples(facts: &Facts<'_>) -> Option<f32> {
    let entries = facts.modalities.entries.iter().map(|(node, _)| *node);
    let products = entries.filter(|node| product(facts.graph, *node).is_some_and(|it| it.weighted));
    let corrections = products
        .take(ENTRIES_MAX)
        .map(|entry| rounds(facts, entry).iter().filter(|round| round.corrected).count());
    match corrections.max()? {
        0 => None,
        1 => Some(evidence::LIKELY),
        _ => Some(evidence::STRONG),
    }
}

/// What a convolution reads besides its own former results.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fed {
    Alone,
    /// Planes that are one constant: the step.
    Told,
}

/// Whether a convolution works again on what was computed from its own result, and on nothing else
/// that has positions.
pub(super) fn feeds_itself(facts: &Facts<'_>, entry: NodeId) -> Option<Fed> {
    let convolves = facts.graph.roles(entry).has(Roles::CONVOLUTION);
    rounds(facts, entry).first().filter(|_| convolves).and_then(|round| round.fed)
}

/// What a layer reads, and its parameter.
fn layer(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Tensor<'_>)> {
    match graph.roles(node).has(Roles::CONVOLUTION) {
        true => Some((graph.input(node, 0)?, graph.input(node, 1)?)),
        false => product(graph, node).map(|found| (found.data, found.other)),
    }
}

/// The further uses of the network that begins at `entry`.
fn rounds(facts: &Facts<'_>, entry: NodeId) -> Vec<Round> {
    let (graph, nodes) = (facts.graph, &facts.nodes);
    let Some((first, weight)) = layer(graph, entry) else { return Vec::new() };
    let made = reach(graph, nodes, [entry], |_| true);
    let waves = facts.with(Roles::WAVE).filter(|node| makes_waves(facts, *node));
    let waved = reach(graph, nodes, waves, |node| !made.contains(node));
    let is_told = |node: &NodeId| {
        made.contains(*node) && graph.predecessors(*node).any(|before| waved.contains(before))
    };
    let works = |node: &&NodeId| made.contains(**node) && is_weighted(graph, **node);
    let reads = |(at, node): (usize, &NodeId)| {
        let (data, other) = layer(graph, *node).filter(|_| *node >= entry)?;
        (other.value == weight.value && data.sizes == first.sizes).then_some((at, data))
    };
    let uses: Vec<(usize, Tensor<'_>)> = nodes.iter().enumerate().filter_map(reads).collect();
    let round = |pair: &[(usize, Tensor<'_>)]| {
        let (since, [old, new]) = (&nodes[pair[0].0 + 1..pair[1].0], [pair[0].1, pair[1].1]);
        let fed = fed(graph, &parts(graph, new, &waved), &made);
        let states = parts(graph, old, &waved);
        Round {
            fed: fed.filter(|_| since.iter().filter(works).count() >= WEIGHTED_MIN),
            corrected: since.iter().any(is_told) && is_corrected(graph, new.value, &states),
        }
    };
    uses.windows(2).map(round).collect()
}

/// What a layer's input was joined of, without waves.
fn parts<'g>(graph: &'g Graph, data: Tensor<'g>, waved: &NodeSet) -> Vec<Tensor<'g>> {
    let mut parts: Vec<Tensor<'_>> = match graph.producer(data.value) {
        node if graph.name(node) == "cat" => graph.inputs(node).collect(),
        _ => vec![data],
    };
    parts.retain(|part| !waved.contains(graph.producer(part.value)));
    parts
}

/// What a convolution is fed, if these are planes that were made and constant ones.
fn fed(graph: &Graph, planes: &[Tensor<'_>], made: &NodeSet) -> Option<Fed> {
    let is_made = |part: &&Tensor<'_>| made.contains(graph.producer(part.value));
    let (made, rest): (Vec<_>, Vec<_>) = planes.iter().partition(is_made);
    let is_constant = |part: &Tensor<'_>| {
        let fills = ["fill", "full", "full_like", "new_full"];
        let spread = part.dims() > 2 && part.strides.iter().skip(2).all(|stride| *stride == 0);
        spread || fills.contains(&graph.name(graph.producer(part.value)))
    };
    let fed = if rest.is_empty() { Fed::Alone } else { Fed::Told };
    (!made.is_empty() && rest.into_iter().all(is_constant)).then_some(fed)
}

/// Whether a value is one of `states` plus something, by way of elementwise operators alone.
fn is_corrected(graph: &Graph, value: ValueId, states: &[Tensor<'_>]) -> bool {
    let passes = |node| graph.name(node) == "cat" || graph.roles(node).has(Roles::ELEMENTWISE);
    let is_state = |at, _| states.iter().any(|state| state.value == at);
    let from_state = |value| leads_up(graph, value, CORRECTION_MAX, is_state, passes);
    let adds = |_, node| {
        matches!(graph.name(node), "add" | "sub" | "rsub" | "addcmul" | "addcdiv" | "lerp")
            && graph.inputs(node).any(|input| from_state(input.value))
    };
    leads_up(graph, value, CORRECTION_MAX, adds, passes)
}
