//! How long storages live and what becomes of them.

use crate::query::plain_name;
use crate::{Graph, NodeId, StorageId};

/// A storage that holds what another one held, and more behind it: `cat([cache, new])`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    pub from: StorageId,
    /// The concatenation.
    pub node: NodeId,
    /// The dimension that grew, and by how much.
    pub dim: usize,
    pub by: i64,
}

/// The life of one storage within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lifetime {
    /// The first and last node that read or write it (sources and reads of the program count).
    pub first: Option<NodeId>,
    pub last: Option<NodeId>,
    /// How many operators wrote to it, and how many operands were read from it.
    pub writes: u32,
    pub reads: u32,
    /// It existed before the window: its first content came from no operator.
    pub from_before: bool,
    /// The program still held it when the window ended.
    pub alive_at_end: bool,
    pub grown: Option<Growth>,
}

impl Lifetime {
    /// Made and dropped within the window.
    pub fn is_temporary(&self) -> bool {
        !self.from_before && !self.alive_at_end
    }
}

/// The lives of all storages of a graph.
#[derive(Debug, Clone)]
pub struct Lifetimes {
    of: Vec<Lifetime>,
}

impl Lifetimes {
    pub fn new(graph: &Graph) -> Self {
        let mut of = vec![Lifetime::default(); graph.storages().len()];
        for storage in graph.storages() {
            let life = &mut of[storage.0 as usize];
            life.alive_at_end = graph.is_alive(storage);
            let first = graph.values_of(storage).first();
            life.from_before = first.is_some_and(|value| {
                let op = graph.op(graph.producer(*value));
                matches!(op, "genie::source" | "genie::weight")
            });
        }
        for node in graph.nodes() {
            for input in graph.inputs(node) {
                let life = &mut of[graph.storage(input.value).0 as usize];
                life.reads += 1;
                touch(life, node);
            }
            for output in graph.outputs(node) {
                let life = &mut of[graph.storage(output.value).0 as usize];
                life.writes += u32::from(graph.is_op(node));
                touch(life, node);
            }
            if let Some((storage, growth)) = growth(graph, node) {
                of[storage.0 as usize].grown = Some(growth);
            }
        }
        Lifetimes { of }
    }

    /// The life of a storage of the same graph.
    pub fn of(&self, storage: StorageId) -> &Lifetime {
        &self.of[storage.0 as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (StorageId, &Lifetime)> {
        self.of.iter().enumerate().map(|(index, life)| (StorageId(index as u32), life))
    }

    /// The storages that grew into this one, newest (itself) first.
    pub fn grown_through(&self, storage: StorageId) -> Vec<StorageId> {
        let mut chain = vec![storage];
        // A chain cannot be longer than there are storages, whatever the columns say.
        while chain.len() <= self.of.len()
            && let Some(growth) = self.of[chain[chain.len() - 1].0 as usize].grown
            && growth.from != chain[chain.len() - 1]
        {
            chain.push(growth.from);
        }
        chain
    }

    /// Storages by how many were alive at once, in bytes, at the worst moment.
    pub fn peak_bytes(&self, graph: &Graph) -> u64 {
        let mut change = vec![0i128; graph.len() + 1];
        for (storage, life) in self.iter() {
            let bytes = i128::from(graph.storage_bytes(storage));
            let (Some(first), Some(last)) = (life.first, life.last) else { continue };
            let from = if life.from_before { 0 } else { first.0 as usize };
            change[from] += bytes;
            if !life.alive_at_end {
                change[last.0 as usize + 1] -= bytes;
            }
        }
        let mut now = 0i128;
        let alive = change.iter().map(|step| {
            now += step;
            now
        });
        u64::try_from(alive.max().unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

fn touch(life: &mut Lifetime, node: NodeId) {
    life.first.get_or_insert(node);
    life.last = Some(node);
}

/// The storage that a concatenation makes of its first operand, where that is what it does.
fn growth(graph: &Graph, node: NodeId) -> Option<(StorageId, Growth)> {
    if !matches!(plain_name(graph.op(node)), "cat" | "concat" | "concatenate") {
        return None;
    }
    let (old, new) = (graph.input(node, 0)?, graph.output(node, 0)?);
    if graph.inputs(node).len() < 2 || old.dims() != new.dims() {
        return None;
    }
    let mut differs = (0..old.dims()).filter(|dim| old.sizes[*dim] != new.sizes[*dim]);
    let (dim, None) = (differs.next()?, differs.next()) else { return None };
    let by = new.sizes[dim] - old.sizes[dim];
    let from = graph.storage(old.value);
    (by > 0).then(|| (graph.storage(new.value), Growth { from, node, dim, by }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stage;
    use crate::builder::GraphBuilder;

    #[test]
    fn a_cache_grows_and_a_temporary_ends() {
        let mut g = GraphBuilder::new();
        let old = g.earlier(&[1, 4, 7, 8], Stage::None);
        let x = g.input(&[1, 4, 1, 8]);
        let key = g.op("aten::neg", &[x], &[1, 4, 1, 8]);
        let grown = g.op("aten::cat", &[old, key], &[1, 4, 8, 8]);
        let again = g.op("aten::cat", &[grown, key], &[1, 4, 9, 8]);
        let zeroed = g.in_place("aten::zero_", key, &[]);
        g.alive(again);
        let [old_s, key_s, grown_s, again_s] = [old, key, grown, again].map(|h| g.storage_of(h));
        let [key_n, cat_n, zero_n] = [key, grown, zeroed].map(|h| g.node_of(h));
        let graph = g.build();
        let lives = Lifetimes::new(&graph);
        let key = lives.of(key_s);
        assert_eq!((key.first, key.last), (Some(key_n), Some(zero_n)));
        assert_eq!((key.writes, key.reads, key.is_temporary()), (2, 3, true));
        assert!(lives.of(old_s).from_before && lives.of(again_s).alive_at_end);
        let growth = Growth { from: old_s, node: cat_n, dim: 2, by: 1 };
        assert_eq!(lives.of(grown_s).grown, Some(growth));
        assert_eq!(lives.of(old_s).grown, None);
        assert_eq!(lives.grown_through(again_s), [again_s, grown_s, old_s]);
        let element = |count: u64| 4 * 4 * 8 * count;
        assert_eq!(lives.peak_bytes(&graph), element(1 + 8 + 9));
    }
}
