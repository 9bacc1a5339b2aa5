//! The window with everything that the shapes say of it, computed once.

use crate::graph::Graph;
use crate::shapes::{Attention, Flow, Modalities, Modality, Pass, Passes, attentions};

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

    /// Whether a pass is fed by choices among its own kind of scores: it writes what it reads.
    pub fn is_fed_back(&self) -> bool {
        self.passes.list.iter().any(|pass| pass.chosen)
    }
}
