//! What all domains ask about the window, computed once.

use std::cell::OnceCell;

use genie_plugin::prelude::*;
use genie_plugin::shapes::{Attention, Flow, Modalities, attentions};

/// The window, and what the SDK's shapes say of it. Not [`genie_plugin::shapes::View`]: passes over
/// tokens are dear, and nothing here is about them.
pub(crate) struct Facts<'g> {
    pub graph: &'g Graph,
    pub flow: Flow,
    pub modalities: Modalities,
    /// The operators of inference, or of the first forward pass of training: what comes after is
    /// the same again, with weights that are no longer given.
    pub nodes: Vec<NodeId>,
    attentions: OnceCell<Vec<Attention>>,
}

impl<'g> Facts<'g> {
    pub fn of(graph: &'g Graph) -> Self {
        let flow = Flow::of(graph);
        let modalities = Modalities::of(graph, &flow);
        let nodes = graph.nodes().filter(|node| flow.is_forward(*node)).collect();
        Facts { graph, flow, modalities, nodes, attentions: OnceCell::new() }
    }

    /// Whether no parameter took part in it yet.
    pub fn is_raw(&self, data: Tensor<'_>) -> bool {
        !self.modalities.is_touched(data.value)
    }

    /// Those of the operators that have one of these roles.
    pub fn with(&self, roles: Roles) -> impl DoubleEndedIterator<Item = NodeId> + Clone {
        self.nodes.iter().copied().filter(move |node| self.graph.roles(*node).has(roles))
    }

    /// Found when they are first asked for: few windows need them.
    pub fn attentions(&self) -> &[Attention] {
        self.attentions.get_or_init(|| attentions(self.graph, &self.flow))
    }
}
