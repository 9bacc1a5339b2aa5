//! Abstract interpretation of a graph: what is known of values is carried along the flow of data,
//! or looked for by a walk against it.
//!
//! | question | answer |
//! |---|---|
//! | what is each value, given what its operands are? | [`carry`] |
//! | what depends on these nodes by way of such operators? | [`reach`] |
//! | what is there for these nodes alone? | [`add_servants`] |
//! | where does this value come from? | [`climb`], [`seen_through`], [`leads_up`] |
//! | what becomes of this value? | [`descend`], [`leads_down`] |
//!
//! The first three look at each node once, in program order or against it; the walks have a limit
//! that the caller gives. The theory is Kildall's (1973) and Cousot and Cousot's (1977); a graph in
//! program order has no loops, so one round is the fixed point.

mod node_set;
mod walks;

use std::ops::Index;

use crate::graph::{Graph, NodeId, Tensor, ValueId};

pub use node_set::NodeSet;
pub use walks::{CLIMB_MAX, climb, descend, leads_down, leads_up, seen_through};

/// A fact about each value of a graph; `T::default()` where nothing is known.
#[derive(Debug, Clone)]
pub struct ByValue<T> {
    of: Vec<T>,
}

impl<T: Copy + Default> ByValue<T> {
    /// Nothing is known yet.
    pub fn new(graph: &Graph) -> Self {
        ByValue { of: vec![T::default(); graph.values().len()] }
    }

    /// What is known of given values before any operator runs.
    pub fn given(graph: &Graph, fact: impl Fn(ValueId) -> T) -> Self {
        let mut facts = ByValue::new(graph);
        for value in graph.values().filter(|value| crate::shapes::flow::is_given(graph, *value)) {
            facts.set(value, fact(value));
        }
        facts
    }

    pub fn set(&mut self, value: ValueId, fact: T) {
        self.of[value.0 as usize] = fact;
    }

    pub fn set_outputs(&mut self, graph: &Graph, node: NodeId, fact: T) {
        graph.outputs(node).for_each(|out| self.set(out.value, fact));
    }

    /// The facts of a node's operands.
    pub fn of_inputs<'a>(
        &'a self,
        graph: &'a Graph,
        node: NodeId,
    ) -> impl Iterator<Item = T> + use<'a, T> {
        graph.inputs(node).map(|input| self.of[input.value.0 as usize])
    }
}

impl ByValue<bool> {
    /// Whether it holds for an operand of the node.
    pub fn any(&self, graph: &Graph, node: NodeId) -> bool {
        self.of_inputs(graph, node).any(|holds| holds)
    }
}

impl ByValue<u8> {
    /// The bits of all operands together.
    pub fn bits(&self, graph: &Graph, node: NodeId) -> u8 {
        self.of_inputs(graph, node).fold(0, |sum, bits| sum | bits)
    }
}

impl<T> Index<ValueId> for ByValue<T> {
    type Output = T;

    fn index(&self, value: ValueId) -> &T {
        &self.of[value.0 as usize]
    }
}

impl<T> Index<Tensor<'_>> for ByValue<T> {
    type Output = T;

    fn index(&self, tensor: Tensor<'_>) -> &T {
        &self.of[tensor.value.0 as usize]
    }
}

/// Carries facts through nodes in program order. `step` sees what is known so far and says what
/// holds for the results of a node: for which of them, by their tensor, where they differ.
pub fn carry<T: Copy + Default, S: Fn(Tensor<'_>) -> T>(
    graph: &Graph,
    nodes: &[NodeId],
    facts: ByValue<T>,
    mut step: impl FnMut(&ByValue<T>, NodeId) -> S,
) -> ByValue<T> {
    let mut facts = facts;
    for node in nodes {
        let of = step(&facts, *node);
        for out in graph.outputs(*node) {
            facts.set(out.value, of(out));
        }
    }
    facts
}

/// The nodes that depend on `from`, and `from` itself, by way of nodes that `through` lets pass.
/// In one round over `nodes`, which are in program order.
pub fn reach(
    graph: &Graph,
    nodes: &[NodeId],
    from: impl IntoIterator<Item = NodeId>,
    through: impl Fn(NodeId) -> bool,
) -> NodeSet {
    let mut reached = NodeSet::of(graph, from);
    for node in nodes {
        if graph.predecessors(*node).any(|before| reached.contains(before)) && through(*node) {
            reached.insert(*node);
        }
    }
    reached
}

/// Adds the nodes whose every reader is in the set: what is there for it alone. In one round
/// against program order over `nodes`, those that `may` says no to left out.
pub fn add_servants(
    graph: &Graph,
    nodes: &[NodeId],
    set: &mut NodeSet,
    may: impl Fn(NodeId) -> bool,
) {
    for node in nodes.iter().rev().filter(|node| may(**node)) {
        let mut readers = graph.successors(*node).peekable();
        if readers.peek().is_some() && readers.all(|reader| set.contains(reader)) {
            set.insert(*node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn facts_are_carried_reached_and_served() {
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[2, 2]), g.weight(&[2, 2]));
        let mask = g.op("aten::triu", &[w], &[2, 2]);
        let a = g.op("aten::mm", &[x, w], &[2, 2]);
        let b = g.op("aten::mul.Tensor", &[a, mask], &[2, 2]);
        let c = g.op("aten::neg", &[w], &[2, 2]);
        let ids = [x, mask, a, b, c].map(|handle| (g.node_of(handle), g.value_of(handle)));
        let graph = g.build();
        let [x, mask, a, b, c] = ids;
        let nodes: Vec<NodeId> = graph.nodes().filter(|node| graph.is_op(*node)).collect();
        let seed = ByValue::given(&graph, |value| value == x.1);
        let facts = carry(&graph, &nodes, seed, |facts, node| {
            let any = facts.any(&graph, node);
            move |_| any
        });
        assert_eq!(
            [x, mask, a, b, c].map(|(_, value)| facts[value]),
            [true, false, true, true, false]
        );
        let mut set = reach(&graph, &nodes, [x.0], |node| graph.name(node) != "mul");
        assert_eq!(set.iter().collect::<Vec<_>>(), [x.0, a.0]);
        set.insert(b.0);
        add_servants(&graph, &nodes, &mut set, |_| true);
        assert_eq!(set.iter().collect::<Vec<_>>(), [x.0, mask.0, a.0, b.0]);
    }
}
