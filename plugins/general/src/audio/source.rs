//! What comes in or goes out, and how sure it is that it is sound.

use std::ops::RangeInclusive;

use genie_plugin::evidence::{FAIR, LIKELY, PLAUSIBLE, STRONG, WEAK};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;
use genie_plugin::shapes::{Convolution, Modality};

use super::spectrum;
use crate::facts::Facts;

/// Fewer samples are no sound: 25 ms at 16 kHz.
pub(super) const SAMPLES_MIN: i64 = 400;
/// Samples that are made, of which fewer are no sound.
const SAMPLES_MADE_MIN: i64 = 256;
/// Samples of a sound that is surely one: an eighth of a second.
const SAMPLES_MANY: i64 = 2000;
/// Samples for each frame that a front end leaves at the least.
const FRAME_MIN: i64 = 8;
/// Bands of a spectrogram.
const BANDS: RangeInclusive<i64> = 16..=256;
/// A usual count of bands begins here; fewer may be sensors.
const BANDS_USUAL: i64 = 40;
/// Bands of frames that no convolution reads: fewer are sensors, more are features of regions.
const BANDS_ROWS: RangeInclusive<i64> = 20..=160;
/// Words that look at fewer rows look at regions of a picture as likely.
const FRAMES_MANY: i64 = 40;
/// An encoder leaves one of so many frames at the least.
const LEFT_OUT_MAX: i64 = 16;
/// Fewer frames are no sound.
const FRAMES_MIN: i64 = 16;

/// What sound looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// Convolutions read one or two channels of many samples.
    Wave { samples: i64 },
    /// Frames of a waveform are transformed.
    Spectrum,
    /// Convolutions read a series with as many channels as a spectrogram has bands.
    Bands { usual: bool },
    /// Convolutions read one plane that is not about square, much longer than wide or with such a
    /// kernel if `uneven`; or its bands are normed one by one.
    Plane { uneven: bool },
    /// Products read frames of bands one by one, and attention or recurrence runs over them.
    Rows,
    /// Transposed convolutions make many samples of few frames.
    WaveOut,
}

impl Source {
    /// How sure it is, where convolutions make one frame of `frame` samples, and attention or
    /// recurrence runs over frames if there is a `sequence`.
    pub fn level(self, frame: i64, sequence: bool) -> f32 {
        let many = |samples| usize::from(samples >= SAMPLES_MANY);
        let signs = |other| usize::from(sequence) + usize::from(other);
        match self {
            Source::Wave { samples } if frame < FRAME_MIN => [0.0, FAIR][many(samples)],
            Source::Wave { samples } => [LIKELY, STRONG][many(samples)],
            Source::Bands { usual } => [WEAK, FAIR, STRONG][signs(usual)],
            Source::Plane { uneven } => [PLAUSIBLE, LIKELY, STRONG][signs(uneven)],
            Source::Spectrum => STRONG,
            Source::Rows => [0.0, LIKELY][signs(false)],
            Source::WaveOut => LIKELY,
        }
    }
}

/// Whether pictures with colours come in.
pub(super) fn has_pictures(facts: &Facts<'_>) -> bool {
    let convolutions = facts.nodes.iter().filter_map(|node| Convolution::of(facts.graph, *node));
    let mut colours = convolutions.filter(|found| found.spatial >= 2 && found.channels() == 3);
    colours.any(|found| facts.is_raw(found.data))
}

/// Where sound first comes in.
pub(super) fn incoming(facts: &Facts<'_>) -> Option<(NodeId, Source)> {
    facts.nodes.iter().find_map(|node| {
        let (data, source) = heard(facts.graph, *node)?;
        facts.is_raw(data).then_some((*node, source))
    })
}

/// Everywhere that sound comes in.
pub(super) fn all_incoming<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = NodeId> + 'a {
    let raw = |node: &NodeId| heard(facts.graph, *node).is_some_and(|(data, _)| facts.is_raw(data));
    facts.nodes.iter().copied().filter(raw)
}

/// What a node hears, if nothing was computed before, and what it reads.
fn heard(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Source)> {
    if let Some(convolution) = Convolution::of(graph, node) {
        return Some((convolution.data, convolved(convolution)?));
    }
    if let Some(frames) = spectrum::transformed(graph, node) {
        return Some((frames, Source::Spectrum));
    }
    let data = graph.input(node, 0).filter(|_| graph.name(node).contains("batch_norm"))?;
    let (a, b) = (data.size(-2), data.size(-1));
    let banded = data.dims() == 4 && data.size(1) > 4 && a.min(b) == 1 && a.max(b) > 1;
    banded.then_some((data, Source::Plane { uneven: true }))
}

/// What a convolution over given numbers hears.
fn convolved(convolution: Convolution<'_>) -> Option<Source> {
    let (a, b) = (convolution.data.size(-2), convolution.data.size(-1));
    let (longer, shorter) = (a.max(b), a.min(b));
    match (convolution.channels(), convolution.kernel()) {
        _ if convolution.transposed => None,
        (1..=2, [_]) if b >= SAMPLES_MIN => Some(Source::Wave { samples: b }),
        // A kernel of one looks at each position alone: points, not frames.
        (bands, [2..=i64::MAX]) if BANDS.contains(&bands) => {
            let is_series = b >= FRAMES_MIN.max(bands / 2);
            is_series.then_some(Source::Bands { usual: bands >= BANDS_USUAL })
        }
        // A kernel along one dimension only reads sensors one by one.
        (1, [high @ 2..=i64::MAX, wide @ 2..=i64::MAX]) => {
            let uneven = longer >= 2 * shorter || high != wide;
            (shorter >= 8 && longer * 4 >= shorter * 5).then_some(Source::Plane { uneven })
        }
        _ => None,
    }
}

/// Where transposed convolutions begin to make a waveform.
pub(super) fn made(facts: &Facts<'_>) -> Option<NodeId> {
    let (graph, nodes) = (facts.graph, &facts.nodes);
    let over_series = |node| Convolution::of(graph, node).filter(|found| found.spatial == 1);
    let (first, frames) = nodes.iter().find_map(|node| {
        let found = over_series(*node).filter(|found| found.transposed && found.stride > 1)?;
        Some((*node, found.data.size(-1)))
    })?;
    let least = SAMPLES_MADE_MIN.max(frames.saturating_mul(FRAME_MIN));
    let is_wave = |out: Tensor<'_>| out.size(-2) <= 2 && out.size(-1) >= least;
    let later = nodes.iter().filter(|node| **node >= first && over_series(**node).is_some());
    later.filter_map(|node| graph.output(*node, 0)).any(is_wave).then_some(first)
}

/// Where frames of bands come in that no convolution reads first, if something tells them from
/// other series.
pub(super) fn rows(facts: &Facts<'_>) -> Option<NodeId> {
    let graph = facts.graph;
    let (entry, frames) = facts.nodes.iter().find_map(|node| {
        let data = product(graph, *node).filter(|found| found.weighted)?.data;
        let frames = frames_of(graph, data)?;
        let fits = BANDS_ROWS.contains(&data.size(-1)) && frames >= FRAMES_MIN;
        (fits && facts.is_raw(data)).then_some((*node, frames))
    })?;
    facts.nodes.iter().any(|node| speaks(facts, *node, frames)).then_some(entry)
}

/// Rows of a given series, one after another: all of them at once, or one at a time.
fn frames_of(graph: &Graph, data: Tensor<'_>) -> Option<i64> {
    let whole = graph.output(graph.producer(data.value), 0)?;
    let bytes = graph.storage_bytes(graph.storage(data.value));
    let steps = bytes / data.bytes().max(1);
    match whole.dims() {
        3 => Some(whole.size(1).max(whole.size(0))),
        _ => (steps > 1).then_some(steps as i64),
    }
}

/// Whether symbols are scored for each frame, words look at frames (there are about as many
/// scores as frames), or each channel is mixed with its neighbours in time.
fn speaks(facts: &Facts<'_>, node: NodeId, frames: i64) -> bool {
    let graph = facts.graph;
    let Some(data) = graph.input(node, 0) else { return false };
    let depends_on = facts.modalities.value(data.value);
    depends_on.has(Modality::SERIES.with(Modality::VECTOR))
        && match graph.name(node) {
            "_log_softmax" => data.dims() == 3 && data.size(-1) > 2,
            // An encoder may leave out frames.
            "_softmax" => {
                let looked_at = data.size(-1);
                let few = frames / LEFT_OUT_MAX..=frames;
                let many = frames >= FRAMES_MANY && looked_at > 1;
                depends_on.has(Modality::TOKENS) && many && few.contains(&looked_at)
            }
            _ => Convolution::of(graph, node).is_some_and(|found| {
                found.spatial == 1 && found.weight.size(1) == 1 && found.is_grouped()
            }),
        }
}
