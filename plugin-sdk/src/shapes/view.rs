//! The window with everything that the shapes say of it, computed once.

use std::ops::ControlFlow;

use crate::dataflow::{CLIMB_MAX, climb};
use crate::graph::{Graph, Origin, Tensor, ValueId};
use crate::shapes::flow::{is_given, passed_on, product};
use crate::shapes::modality::lookup;
use crate::shapes::{Attention, Flow, Modalities, Modality, Pass, Passes, attentions};

/// Features of a region have at least so many numbers.
const REGION_WIDTH_MIN: i64 = 32;
/// A sound has at least so many frames, and so many bands.
const FRAMES_MIN: i64 = 40;
const BANDS: std::ops::RangeInclusive<i64> = 20..=160;

/// Rows of numbers that come in beside tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regions {
    /// [`Modality::SERIES`] or [`Modality::VECTOR`], or both.
    pub kind: Modality,
    /// Rows for each text, and numbers in a row: the most.
    pub each: i64,
    pub width: i64,
}

impl Regions {
    /// Whether they look like frames of a sound: many, as wide as a spectrogram has bands.
    pub fn are_frames(&self) -> bool {
        self.each >= FRAMES_MIN && BANDS.contains(&self.width)
    }
}

/// What was given and is only copied, scaled or shifted since.
fn given(graph: &Graph, value: ValueId) -> Option<ValueId> {
    climb(graph, value, CLIMB_MAX, |value, node| match is_given(graph, value) {
        true => ControlFlow::Break(Some(value)),
        false => match passed_on(graph, node) {
            Some(from) => ControlFlow::Continue(from.value),
            None => ControlFlow::Break(Some(value)),
        },
    })
}

/// The window, with what the SDK's shapes say of it.
pub struct View<'a> {
    pub graph: &'a Graph,
    pub flow: Flow,
    pub modalities: Modalities,
    pub attentions: Vec<Attention>,
    pub passes: Passes,
}

impl<'a> View<'a> {
    pub fn of(graph: &'a Graph) -> View<'a> {
        let flow = Flow::of(graph);
        let modalities = Modalities::of(graph, &flow);
        let attentions = attentions(graph, &flow);
        let passes = Passes::of(graph, &flow, &modalities, &attentions);
        View { graph, flow, modalities, attentions, passes }
    }

    /// Passes that do something with their tokens.
    pub fn working(&self) -> impl Iterator<Item = (usize, &Pass)> {
        self.passes.list.iter().enumerate().filter(|(_, pass)| pass.weighted >= 2)
    }

    /// Kinds of input besides tokens that meet parameters anywhere in the window.
    pub fn other_inputs(&self) -> Modality {
        self.modalities
            .entries
            .iter()
            .filter(|(_, modality)| *modality != Modality::TOKENS)
            .fold(Modality::NONE, |sum, (_, modality)| sum.with(*modality))
    }

    /// Features of regions (of a picture, of frames) beside tokens: several wide rows for each text,
    /// which one product with a parameter reads, or one product a step. What several read whole is a
    /// memory that another model made.
    pub fn regions(&self) -> Option<Regions> {
        let graph = self.graph;
        let texts = self.passes.list.iter().filter_map(|pass| lookup(graph, pass.start));
        let batch = texts.map(|found| (found.index.size(0), found.index.dims()));
        let (batch, dims) = batch.max()?;
        let batch = batch.max(1);
        let kinds = Modality::SERIES.with(Modality::VECTOR);
        let products: Vec<(Tensor<'_>, Modality)> = self
            .modalities
            .entries
            .iter()
            .filter(|(_, of)| of.only(kinds))
            .filter_map(|(node, of)| Some((product(graph, *node)?.data, *of)))
            .collect();
        let region = |(data, kind): (Tensor<'_>, Modality)| {
            let width = data.size(-1);
            let storage = graph.storage(given(graph, data.value)?);
            let row_bytes = (width as u64).saturating_mul(data.dtype.bytes()).max(1);
            let rows = (graph.storage_bytes(storage) / row_bytes) as i64;
            let whole = data.elements() as i64 / width.max(1);
            let readers = products.iter().filter(|(other, _)| other.value == data.value).count();
            // Learned queries are the same for all texts; what is read in steps is read often.
            let several = batch > 1 && dims > 1;
            let of_each = rows >= whole && (several || graph.origin(storage) != Origin::Weight);
            let many = width >= REGION_WIDTH_MIN && rows >= 2 * batch && rows % batch == 0;
            let read_once = readers == 1 || whole < rows;
            let each = rows / batch;
            (many && of_each && read_once).then_some(Regions { kind, each, width })
        };
        products.iter().copied().filter_map(region).reduce(|sum, next| Regions {
            kind: sum.kind.with(next.kind),
            each: sum.each.max(next.each),
            width: sum.width.max(next.width),
        })
    }

    /// Whether a pass is fed by choices among its own kind of scores: it writes what it reads.
    pub fn is_fed_back(&self) -> bool {
        self.passes.list.iter().any(|pass| pass.chosen)
    }
}
