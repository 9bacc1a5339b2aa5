//! Chains of dependent nodes: how deep a graph is and where its longest path runs.

use crate::{Graph, NodeId};

/// For each node, how many operators lie on the longest path that ends with it; a source has 0.
pub fn depths(graph: &Graph) -> Vec<u32> {
    let mut depths = vec![0u32; graph.len()];
    for node in graph.nodes() {
        let before = graph.predecessors(node).filter(|before| *before < node);
        let deepest = before.map(|before| depths[before.0 as usize]).max().unwrap_or(0);
        depths[node.0 as usize] = deepest + u32::from(graph.is_op(node));
    }
    depths
}

/// The path of dependent nodes whose costs add up to the most, first to last. Of equal paths the
/// one that ends first in program order.
///
/// ```
/// # use genie_plugin::{Graph, query::longest_chain};
/// # fn of(graph: &Graph) {
/// let critical_path = longest_chain(graph, |node| graph.flops(node));
/// # }
/// ```
pub fn longest_chain(graph: &Graph, cost: impl Fn(NodeId) -> u64) -> Vec<NodeId> {
    let mut best: Vec<(u64, Option<NodeId>)> = Vec::with_capacity(graph.len());
    let mut end: Option<NodeId> = None;
    for node in graph.nodes() {
        let before = graph.predecessors(node).filter(|before| *before < node);
        let from =
            before.reduce(|a, b| if best[b.0 as usize].0 > best[a.0 as usize].0 { b } else { a });
        let so_far = from.map_or(0, |from| best[from.0 as usize].0);
        let total = so_far.saturating_add(cost(node));
        best.push((total, from));
        if end.is_none_or(|end| total > best[end.0 as usize].0) {
            end = Some(node);
        }
    }
    let mut chain: Vec<NodeId> =
        std::iter::successors(end, |node| best[node.0 as usize].1).collect();
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn the_longest_chain_is_by_cost_and_the_depth_by_operators() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 2]);
        let w = g.weight(&[2, 2]);
        let mm = g.op("aten::mm", &[x, w], &[2, 2]);
        let a = g.op("aten::relu", &[x], &[2, 2]);
        let b = g.op("aten::neg", &[a], &[2, 2]);
        let sum = g.op("aten::add.Tensor", &[b, mm], &[2, 2]);
        let [x, mm, a, b, sum] = [x, mm, a, b, sum].map(|handle| g.node_of(handle));
        let graph = g.build();
        assert_eq!(depths(&graph), [0, 0, 1, 1, 2, 3]);
        assert_eq!(longest_chain(&graph, |node| graph.flops(node)), [x, mm, sum]);
        assert_eq!(longest_chain(&graph, |_| 1), [x, a, b, sum]);
        assert!(longest_chain(&GraphBuilder::new().build(), |_| 1).is_empty());
    }
}
