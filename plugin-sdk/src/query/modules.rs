//! Nodes by the path of their module.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::query::ops::by_symbol;
use crate::{Graph, NodeId};

/// Nodes by module path, in program order. Paths are evidence of second rank: a program may
/// have none or misleading ones.
#[derive(Debug, Clone)]
pub struct ModuleIndex<'g> {
    paths: BTreeMap<&'g str, Vec<NodeId>>,
}

impl<'g> ModuleIndex<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        let mut paths: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        for (symbol, nodes) in by_symbol(graph, |node| graph.module_symbol(node)) {
            paths.entry(graph.symbol(symbol)).or_default().extend(nodes);
        }
        ModuleIndex { paths }
    }

    /// Nodes whose innermost module is exactly this one.
    pub fn at(&self, path: &str) -> &[NodeId] {
        self.paths.get(path).map_or(&[], Vec::as_slice)
    }

    /// Nodes in this module and the modules inside it: `layers.1` does not hold `layers.10`.
    /// The empty path holds all.
    pub fn under(&self, path: &str) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.inside(path).flat_map(|(_, nodes)| nodes.iter().copied()).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Names of the modules directly inside this one, in alphabetical order.
    pub fn children(&self, path: &str) -> Vec<&'g str> {
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        let names = self.inside(path).filter_map(|(inner, _)| inner.get(skip..));
        let first = names.map(|rest| rest.split_once('.').map_or(rest, |(name, _)| name));
        let distinct: BTreeSet<&str> = first.filter(|name| !name.is_empty()).collect();
        distinct.into_iter().collect()
    }

    /// All paths, in alphabetical order; the empty one is what runs outside modules.
    pub fn paths(&self) -> impl Iterator<Item = &'g str> + '_ {
        self.paths.keys().copied()
    }

    fn inside<'s>(&'s self, path: &'s str) -> impl Iterator<Item = (&'g str, &'s Vec<NodeId>)> {
        self.paths
            .range::<str, _>((Bound::Included(path), Bound::Unbounded))
            .take_while(move |(other, _)| other.starts_with(path))
            .filter(move |(other, _)| {
                let rest = &other[path.len()..];
                path.is_empty() || rest.is_empty() || rest.starts_with('.')
            })
            .map(|(other, nodes)| (*other, nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn a_prefix_ends_at_a_component() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2]);
        let run = |g: &mut GraphBuilder, path: &str| {
            let out = g.module(path, "M", |g| g.op("aten::relu", &[x], &[2]));
            g.node_of(out)
        };
        let one = run(&mut g, "layers.1.mlp");
        let ten = run(&mut g, "layers.10");
        let last = run(&mut g, "layers.1");
        let graph = g.build();
        let index = ModuleIndex::new(&graph);
        assert_eq!(index.under("layers.1"), [one, last]);
        assert_eq!(index.under("layers"), [one, ten, last]);
        assert_eq!(index.under("").len(), 4);
        assert_eq!(index.at("layers.1"), [last]);
        assert_eq!(index.children("layers"), ["1", "10"]);
        assert_eq!(index.children(""), ["layers"]);
        assert!(index.under("none").is_empty());
    }
}
