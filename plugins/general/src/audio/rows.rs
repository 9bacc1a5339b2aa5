//! Frames of bands that no convolution reads first: attention or recurrence runs over them, and
//! something tells them from other series.

use std::ops::RangeInclusive;

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;
use genie_plugin::shapes::{Convolution, Modality};

use super::source::FRAMES_MIN;
use crate::facts::Facts;

/// Fewer bands are sensors, more are features of regions.
const BANDS: RangeInclusive<i64> = 20..=160;

/// Where they come in.
pub(super) fn entry(facts: &Facts<'_>) -> Option<NodeId> {
    let graph = facts.graph;
    let (entry, frames) = facts.nodes.iter().find_map(|node| {
        let data = product(graph, *node).filter(|found| found.weighted)?.data;
        let whole =
            graph.output(graph.producer(data.value), 0).filter(|whole| whole.dims() == 3)?;
        let frames = whole.size(1).max(whole.size(0));
        let fits = BANDS.contains(&data.size(-1)) && frames >= FRAMES_MIN;
        (fits && facts.is_raw(data)).then_some((*node, frames))
    })?;
    facts.nodes.iter().any(|node| speaks(facts, *node, frames)).then_some(entry)
}

/// Whether symbols are scored for each frame, words look at frames (there are as many scores as
/// frames), or each channel is mixed with its neighbours in time.
fn speaks(facts: &Facts<'_>, node: NodeId, frames: i64) -> bool {
    let graph = facts.graph;
    let Some(data) = graph.input(node, 0) else { return false };
    let depends_on = facts.modalities.value(data.value);
    depends_on.has(Modality::SERIES.with(Modality::VECTOR))
        && match graph.name(node) {
            "_log_softmax" => data.dims() == 3 && data.size(-1) > 2,
            "_softmax" => depends_on.has(Modality::TOKENS) && data.size(-1) == frames,
            _ => Convolution::of(graph, node).is_some_and(|found| {
                found.spatial == 1 && found.weight.size(1) == 1 && found.is_grouped()
            }),
        }
}
