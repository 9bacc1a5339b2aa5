//! A set of nodes, one bit each.

use crate::{Graph, NodeId};

/// Nodes of one graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSet {
    words: Vec<u64>,
    len: usize,
}

impl NodeSet {
    /// An empty set for this graph's nodes.
    pub fn new(graph: &Graph) -> Self {
        NodeSet { words: vec![0; graph.len().div_ceil(64)], len: 0 }
    }

    pub fn of(graph: &Graph, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut set = NodeSet::new(graph);
        nodes.into_iter().for_each(|node| {
            set.insert(node);
        });
        set
    }

    /// Whether the node was new. Nodes that the graph does not have are left out.
    pub fn insert(&mut self, node: NodeId) -> bool {
        let bit = 1u64 << (node.0 % 64);
        match self.words.get_mut(node.0 as usize / 64) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.len += 1;
                true
            }
            _ => false,
        }
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.words.get(node.0 as usize / 64).is_some_and(|word| word & (1u64 << (node.0 % 64)) != 0)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The nodes in program order.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(NodeId(index as u32 * 64 + bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn a_set_holds_each_node_once_in_order() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[1]);
        (0..99).for_each(|_| {
            g.op("aten::relu", &[x], &[1]);
        });
        let graph = g.build();
        let set = NodeSet::of(&graph, [70, 3, 70, 64, 999].map(NodeId));
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 64, 70].map(NodeId));
        assert_eq!(set.len(), 3);
        assert!(!set.contains(NodeId(999)) && set.contains(NodeId(64)));
    }
}
