//! Networks that are applied again and again to what they gave: samplers.

use genie_plugin::dataflow::{ByValue, carry, leads_up};
use genie_plugin::evidence;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_weighted, product};

use super::step::is_wave;
use crate::facts::Facts;

/// The least products between one use of the first parameter and the next.
const WEIGHTED_MIN: usize = 2;
/// Inputs of a network that samples.
const ENTRIES_MAX: usize = 8;
/// Operators of one correction.
const CORRECTION_MAX: usize = 64;
/// Depends on waves alone.
const WAVED: u8 = 1;
/// Depends on what the network gave.
const MADE: u8 = 2;

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
    let (graph, mut rounds) = (facts.graph, Vec::new());
    let Some((first, weight)) = layer(graph, entry) else { return rounds };
    // What it read last; since then: whether waves joined in, and products.
    let (mut read, mut told, mut weighted) = (Vec::new(), false, 0);
    carry(graph, &facts.nodes, ByValue::<u8>::new(graph), |known, node| {
        let before = known.bits(graph, node);
        told |= before == WAVED | MADE;
        let again = layer(graph, node).filter(|(data, other)| {
            node >= entry && other.value == weight.value && data.sizes == first.sizes
        });
        if let Some((data, _)) = again {
            let mut parts = joined(graph, data);
            parts.retain(|part| known[*part] != WAVED);
            if node > entry {
                let is_made = |part: &Tensor<'_>| known[*part] == MADE;
                let fed = fed(graph, &parts, is_made).filter(|_| weighted >= WEIGHTED_MIN);
                let corrected = told && is_corrected(graph, data.value, &read);
                rounds.push(Round { fed, corrected });
            }
            (read, told, weighted) = (parts.iter().map(|part| part.value).collect(), false, 0);
        } else {
            weighted += usize::from(before & MADE != 0 && is_weighted(graph, node));
        }
        let made = before & MADE != 0 || node == entry;
        move |out: Tensor<'_>| match made {
            true => MADE,
            false if is_wave(facts, node, out) => WAVED,
            false => before,
        }
    });
    rounds
}

/// The parts that a value was joined of, or the value.
fn joined<'g>(graph: &'g Graph, data: Tensor<'g>) -> Vec<Tensor<'g>> {
    match graph.producer(data.value) {
        node if graph.name(node) == "cat" => graph.inputs(node).collect(),
        _ => vec![data],
    }
}

/// What a convolution is fed, if these are planes that were made and constant ones.
fn fed(graph: &Graph, planes: &[Tensor<'_>], is_made: impl Fn(&Tensor<'_>) -> bool) -> Option<Fed> {
    let (made, rest): (Vec<_>, Vec<_>) = planes.iter().partition(|part| is_made(part));
    let is_constant = |part: &Tensor<'_>| {
        let fills = ["fill", "full", "full_like", "new_full"];
        let spread = part.dims() > 2 && part.strides.iter().skip(2).all(|stride| *stride == 0);
        spread || fills.contains(&graph.name(graph.producer(part.value)))
    };
    let fed = if rest.is_empty() { Fed::Alone } else { Fed::Told };
    (!made.is_empty() && rest.into_iter().all(is_constant)).then_some(fed)
}

/// Whether a value is one of `states` plus something, by way of elementwise operators alone.
fn is_corrected(graph: &Graph, value: ValueId, states: &[ValueId]) -> bool {
    let passes = |node| graph.name(node) == "cat" || graph.roles(node).has(Roles::ELEMENTWISE);
    let from_state =
        |value| leads_up(graph, value, CORRECTION_MAX, |at, _| states.contains(&at), passes);
    let adds = |_, node| {
        matches!(graph.name(node), "add" | "sub" | "rsub" | "addcmul" | "addcdiv" | "lerp")
            && graph.inputs(node).any(|input| from_state(input.value))
    };
    leads_up(graph, value, CORRECTION_MAX, adds, passes)
}
