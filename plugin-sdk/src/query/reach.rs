//! What leads to a node and what it leads to, along the flow of data.

use crate::query::NodeSet;
use crate::{Graph, NodeId};

/// The nodes found, and whether the limit cut the search short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub nodes: NodeSet,
    pub truncated: bool,
}

/// Everything that `from` depends on, without `from` itself; at most `limit` nodes, nearest first.
pub fn ancestors(graph: &Graph, from: &[NodeId], limit: usize) -> Reached {
    search(graph, from, limit, |node, push| graph.predecessors(node).for_each(push))
}

/// Everything that depends on `from`, without `from` itself; at most `limit` nodes, nearest first.
pub fn descendants(graph: &Graph, from: &[NodeId], limit: usize) -> Reached {
    search(graph, from, limit, |node, push| graph.successors(node).for_each(push))
}

/// Whether data flows from one node to the other, by way of at most `limit` nodes.
pub fn reaches(graph: &Graph, from: NodeId, to: NodeId, limit: usize) -> bool {
    // Program order is a topological order: what comes before `from` cannot lie between.
    let between = |node: NodeId, push: &mut dyn FnMut(NodeId)| {
        graph.predecessors(node).filter(|before| *before >= from).for_each(push);
    };
    from != to && search(graph, &[to], limit, between).nodes.contains(from)
}

fn search(
    graph: &Graph,
    from: &[NodeId],
    limit: usize,
    next: impl Fn(NodeId, &mut dyn FnMut(NodeId)),
) -> Reached {
    let start = NodeSet::of(graph, from.iter().copied());
    let mut found = NodeSet::new(graph);
    let mut truncated = false;
    let mut queue: std::collections::VecDeque<NodeId> = start.iter().collect();
    while let Some(node) = queue.pop_front() {
        next(node, &mut |neighbour| {
            if start.contains(neighbour) || found.contains(neighbour) {
                return;
            }
            if found.len() == limit {
                truncated = true;
                return;
            }
            found.insert(neighbour);
            queue.push_back(neighbour);
        });
    }
    Reached { nodes: found, truncated }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn the_search_follows_data_and_stops_at_its_limit() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2]);
        let other = g.input(&[2]);
        let a = g.op("aten::relu", &[x], &[2]);
        let b = g.in_place("aten::mul_.Scalar", a, &[]);
        let c = g.op("aten::add.Tensor", &[b, other], &[2]);
        let d = g.op("aten::neg", &[other], &[2]);
        let [x, other, a, b, c, d] = [x, other, a, b, c, d].map(|handle| g.node_of(handle));
        let graph = g.build();
        let list = |reached: Reached| reached.nodes.iter().collect::<Vec<_>>();
        assert_eq!(list(ancestors(&graph, &[c], usize::MAX)), [x, other, a, b]);
        assert_eq!(list(descendants(&graph, &[x], usize::MAX)), [a, b, c]);
        assert_eq!(list(descendants(&graph, &[other], usize::MAX)), [c, d]);
        let cut = descendants(&graph, &[x], 1);
        assert!(cut.truncated);
        assert_eq!(list(cut), [a]);
        for (from, to, expect) in [(x, c, true), (c, x, false), (d, c, false), (c, c, false)] {
            assert_eq!(reaches(&graph, from, to, usize::MAX), expect, "{from:?} {to:?}");
        }
    }
}
