//! Spectra of frames, by a Fourier transform or by products.

use genie_plugin::dataflow::{CLIMB_MAX, leads_up};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, product};

use super::source::SAMPLES_MIN;

/// The frames of a sound that a node ends the transform of.
pub(super) fn transformed(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    let frames = match graph.roles(node).has(Roles::FOURIER) {
        true => graph.input(node, 0).filter(|data| data.dtype.is_floating()),
        false => powers_of(graph, node),
    };
    frames.filter(|frames| is_long(graph, *frames))
}

/// What two products read whose squares a node adds: the power of waves and of waves a quarter
/// later. One product may give both.
fn powers_of(graph: &Graph, sum: NodeId) -> Option<Tensor<'_>> {
    let squared = |index| {
        let of = square_of(graph, graph.producer(graph.input(sum, index)?.value))?;
        let product = product(graph, graph.producer(of.value)).filter(|found| found.weighted)?;
        Some((of, product.data))
    };
    let ((a, data), (b, other)) = (squared(0)?, squared(1)?);
    let is_sum = graph.name(sum) == "add" && (a.value, a.offset) != (b.value, b.offset);
    (is_sum && data == other).then_some(data)
}

/// What a node multiplies with itself.
fn square_of(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    let of = graph.input(node, 0)?;
    let is_square = match graph.name(node) {
        "square" => true,
        "pow" => graph.args(node).any(|arg| matches!(arg, Arg::Int(2) | Arg::Float(2.0))),
        "mul" => graph.input(node, 1) == Some(of),
        _ => false,
    };
    is_square.then_some(of)
}

/// Whether frames were cut from something as long as a sound.
fn is_long(graph: &Graph, frames: Tensor<'_>) -> bool {
    let is_sound = |value, node| {
        let whole = graph.output(node, 0).filter(|_| is_given(graph, value));
        whole.is_some_and(|whole| whole.size(-1) >= SAMPLES_MIN || whole.overlaps())
    };
    leads_up(graph, frames.value, CLIMB_MAX, is_sound, |_| true)
}
