//! Nodes by operator.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::graph::base_name;
use crate::{Graph, NodeId};

/// The operator's name without namespace, overload and the `_` of its in-place form:
/// `relu` for `aten::relu_`.
pub fn plain_name(op: &str) -> &str {
    let name = base_name(op);
    match name.strip_suffix('_') {
        Some(plain) if !plain.is_empty() && !plain.ends_with('_') => plain,
        _ => name,
    }
}

/// Nodes by the name of their operator, in program order.
#[derive(Debug, Clone)]
pub struct OpIndex<'g> {
    whole: BTreeMap<&'g str, Vec<NodeId>>,
    plain: BTreeMap<&'g str, Vec<NodeId>>,
}

impl<'g> OpIndex<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        let mut whole: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        let mut plain: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        for (symbol, nodes) in by_symbol(graph, |node| graph.op_symbol(node)) {
            let op = graph.symbol(symbol);
            plain.entry(plain_name(op)).or_default().extend(&nodes);
            whole.entry(op).or_default().extend(nodes);
        }
        // Several operators may have one plain name.
        plain.values_mut().for_each(|nodes| nodes.sort_unstable());
        OpIndex { whole, plain }
    }

    /// Nodes of exactly this operator, with namespace and overload: `aten::add.Tensor`.
    pub fn exact(&self, op: &str) -> &[NodeId] {
        self.whole.get(op).map_or(&[], Vec::as_slice)
    }

    /// Nodes by plain name, any overload, in place or not: `add` finds `aten::add_.Tensor`.
    pub fn named(&self, name: &str) -> &[NodeId] {
        self.plain.get(name).map_or(&[], Vec::as_slice)
    }

    /// Nodes of any of these plain names, in program order.
    pub fn any_of(&self, names: &[&str]) -> Vec<NodeId> {
        sorted(names.iter().flat_map(|name| self.named(name).iter().copied()))
    }

    /// Nodes whose plain name begins so, in program order: `conv` finds `convolution`.
    pub fn prefix(&self, prefix: &str) -> Vec<NodeId> {
        let from = self.plain.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        sorted(
            from.take_while(|(name, _)| name.starts_with(prefix))
                .flat_map(|(_, nodes)| nodes.iter().copied()),
        )
    }

    /// The plain names there are, with how often each occurs, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = (&'g str, usize)> + '_ {
        self.plain.iter().map(|(name, nodes)| (*name, nodes.len()))
    }
}

/// Nodes by the number of a string, so that strings are compared once each.
pub(super) fn by_symbol(
    graph: &Graph,
    symbol: impl Fn(NodeId) -> u32,
) -> impl Iterator<Item = (u32, Vec<NodeId>)> {
    let mut nodes: Vec<Vec<NodeId>> = vec![Vec::new(); graph.symbols()];
    graph.nodes().for_each(|node| nodes[symbol(node) as usize].push(node));
    let some = nodes.into_iter().enumerate().filter(|(_, nodes)| !nodes.is_empty());
    some.map(|(symbol, nodes)| (symbol as u32, nodes))
}

fn sorted(nodes: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = nodes.collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn nodes_are_found_by_whole_plain_and_beginning_of_name() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2]);
        let a = g.op("aten::add.Tensor", &[x, x], &[2]);
        let b = g.in_place("aten::add_.Tensor", a, &[x]);
        let c = g.op("aten::addmm", &[b, b, b], &[2]);
        let [a, b, c] = [a, b, c].map(|handle| g.node_of(handle));
        let graph = g.build();
        let index = OpIndex::new(&graph);
        assert_eq!(index.exact("aten::add.Tensor"), [a]);
        assert_eq!(index.named("add"), [a, b]);
        assert_eq!(index.prefix("add"), [a, b, c]);
        assert_eq!(index.any_of(&["addmm", "add", "add"]), [a, b, c]);
        assert!(index.named("none").is_empty());
        assert_eq!(index.names().collect::<Vec<_>>(), [("add", 2), ("addmm", 1), ("upload", 1)]);
    }

    #[test]
    fn underscores_that_belong_to_the_name_stay() {
        for (op, name) in [("aten::relu_", "relu"), ("aten::__and__.Tensor", "__and__"), ("_", "_")]
        {
            assert_eq!(plain_name(op), name);
        }
    }
}
