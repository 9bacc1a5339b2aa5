//! The window with everything that the shapes say of it, computed once.

use std::ops::ControlFlow;

use crate::dataflow::{CLIMB_MAX, climb};
use crate::graph::{Graph, Origin, Tensor};
use crate::shapes::flow::{is_given, passed_on, product};
use crate::shapes::modality::lookup;
use crate::shapes::{Attention, Flow, Modalities, Modality, Pass, Passes, attentions};

/// Features of a region have at least so many numbers.
const REGION_WIDTH_MIN: i64 = 32;

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

    /// What kind features of regions (of a picture, of frames) come in as, beside tokens: several
    /// wide rows for each text, which one product with a parameter reads. What several read is a
    /// memory that another model made. [`Modality::NONE`] where there are none.
    pub fn regions(&self) -> Modality {
        let graph = self.graph;
        let texts = self.passes.list.iter().filter_map(|pass| lookup(graph, pass.start));
        let batch = texts.map(|found| if found.index.dims() < 2 { 1 } else { found.index.size(0) });
        let Some(batch) = batch.max() else { return Modality::NONE };
        let rows = Modality::SERIES.with(Modality::VECTOR);
        let products = || {
            self.modalities.entries.iter().filter_map(|(node, of)| {
                product(graph, *node).filter(|_| of.only(rows)).map(|found| (found, *of))
            })
        };
        let is_region = |data: Tensor<'_>| {
            let rows = data.elements() as i64 / data.size(-1).max(1);
            let readers = products().filter(|(other, _)| other.data.value == data.value).count();
            data.size(-1) >= REGION_WIDTH_MIN
                && rows >= 2 * batch
                && rows % batch.max(1) == 0
                && readers == 1
                && self.is_of_each(data, batch)
        };
        let regions = products().filter(|(found, _)| is_region(found.data));
        regions.fold(Modality::NONE, |sum, (_, of)| sum.with(of))
    }

    /// Whether there are rows for each text; learned queries are the same for all.
    fn is_of_each(&self, data: Tensor<'_>, batch: i64) -> bool {
        let graph = self.graph;
        let root =
            climb(graph, data.value, CLIMB_MAX, |value, node| match is_given(graph, value) {
                true => ControlFlow::Break(Some(value)),
                false => match passed_on(graph, node) {
                    Some(from) => ControlFlow::Continue(from.value),
                    None => ControlFlow::Break(None),
                },
            });
        root.is_none_or(|root| {
            let storage = graph.storage(root);
            let whole = graph.storage_bytes(storage) >= data.bytes();
            whole && (batch > 1 || graph.origin(storage) != Origin::Weight)
        })
    }

    /// Whether a pass is fed by choices among its own kind of scores: it writes what it reads.
    pub fn is_fed_back(&self) -> bool {
        self.passes.list.iter().any(|pass| pass.chosen)
    }
}
