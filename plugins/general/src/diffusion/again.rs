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
    /// It reads nothing else that has positions.
    alone: bool,
    /// One of the planes it reads is a constant: the step.
    constant: bool,
    /// Waves joined in since the last use.
    waved: bool,
    /// It reads what it read before, plus something.
    corrected: bool,
}

/// How sure it is that a network of products samples: it corrects its own input again and again,
/// told the step by waves every time.
pub(super) fn samples(facts: &Facts<'_>) -> Option<f32> {
    let entries = facts.modalities.entries.iter().map(|(node, _)| *node);
    let products = entries.filter(|node| product(facts.graph, *node).is_some_and(|it| it.weighted));
    let corrections = products.take(ENTRIES_MAX).map(|entry| {
        rounds(facts, entry).iter().filter(|round| round.waved && round.corrected).count()
    });
    match corrections.max()? {
        0 => None,
        1 => Some(evidence::LIKELY),
        _ => Some(evidence::STRONG),
    }
}

/// Whether a convolution works again on what was computed from its own result, and on nothing else
/// that has positions; and whether it is told the step.
pub(super) fn feeds_itself(facts: &Facts<'_>, entry: NodeId) -> Option<bool> {
    let convolves = facts.graph.roles(entry).has(Roles::CONVOLUTION);
    let rounds = if convolves { rounds(facts, entry) } else { Vec::new() };
    rounds.first().filter(|round| round.alone).map(|round| round.constant)
}

/// Whether some convolution gives as many elements, in as many channels, as the first one takes.
pub(super) fn gives_what_it_takes(facts: &Facts<'_>, entry: NodeId) -> bool {
    let graph = facts.graph;
    let convolves = |node: NodeId| graph.roles(node).has(Roles::CONVOLUTION);
    let gives = |data: Tensor<'_>| {
        let mut later = facts.nodes.iter().filter(|node| **node > entry && convolves(**node));
        later.any(|node| graph.output(*node, 0).is_some_and(|out| out.sizes == data.sizes))
    };
    convolves(entry) && graph.input(entry, 0).is_some_and(gives)
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
    let (mut state, mut waved, mut weighted) = (vec![first.value], false, 0);
    carry(graph, &facts.nodes, ByValue::<u8>::new(graph), |known, node| {
        let before = known.bits(graph, node);
        waved |= before == WAVED | MADE;
        let same = |(data, other): &(Tensor<'_>, Tensor<'_>)| {
            other.value == weight.value && data.sizes == first.sizes
        };
        if let Some((data, _)) = layer(graph, node).filter(same) {
            // What it reads, without the waves that were joined to it.
            let parts: Vec<Tensor<'_>> =
                joined(graph, data).into_iter().filter(|part| known[*part] != WAVED).collect();
            if node > entry {
                let own = |part: &Tensor<'_>| known[*part] & MADE != 0;
                let alone = weighted >= WEIGHTED_MIN
                    && parts.iter().any(own)
                    && parts.iter().all(|part| own(part) || is_constant(graph, *part));
                let constant = parts.iter().any(|part| !own(part));
                let corrected = is_corrected(graph, data.value, &state);
                rounds.push(Round { alone, constant, waved, corrected });
            }
            (state, waved, weighted) = (parts.iter().map(|part| part.value).collect(), false, 0);
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

/// Whether planes are one number each.
fn is_constant(graph: &Graph, planes: Tensor<'_>) -> bool {
    let filled = matches!(
        graph.name(graph.producer(planes.value)),
        "fill" | "full" | "full_like" | "new_full"
    );
    filled || planes.dims() > 2 && planes.strides.iter().skip(2).all(|stride| *stride == 0)
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
