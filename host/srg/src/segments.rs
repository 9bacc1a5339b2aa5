//! The segments a session has seen, bounded, the least recently seen forgotten first.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hash::SegmentHashes;
use crate::{Hash128, Srg};

/// Exact hashes remembered by one session.
pub const EXACT_MAX: usize = 4096;
/// Topologies, with their graphs, remembered by one session.
pub const TOPOLOGIES_MAX: usize = 256;
/// Nodes of all remembered graphs together.
pub const NODES_MAX: usize = 1 << 15;

/// What is known of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// The same segment, sizes included, was seen.
    Known,
    /// The same but for sizes: graph, annotations and placement apply.
    NewSizes,
    /// Never seen, or forgotten: its graph must be built and given to [`Segments::insert`].
    NewTopology,
}

/// Known segments with what was derived from each topology.
#[derive(Debug)]
pub struct Segments<T> {
    exact: HashMap<Hash128, u64>,
    topologies: HashMap<Hash128, Entry<T>>,
    nodes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry<T> {
    graph: Arc<Srg>,
    derived: T,
    used: u64,
}

impl<T> Default for Segments<T> {
    fn default() -> Self {
        Segments { exact: HashMap::new(), topologies: HashMap::new(), nodes: 0, clock: 0 }
    }
}

impl<T> Segments<T> {
    pub fn new() -> Self {
        Segments::default()
    }

    /// Looks a finished segment up and remembers its exact hash.
    pub fn look_up(&mut self, hashes: SegmentHashes) -> Lookup {
        self.clock += 1;
        let topology = self.topologies.get_mut(&hashes.topology);
        let topology_known = match topology {
            Some(entry) => {
                entry.used = self.clock;
                true
            }
            None => false,
        };
        let exact_known = self.exact.insert(hashes.exact, self.clock).is_some();
        if self.exact.len() > EXACT_MAX {
            forget_older_half(&mut self.exact, |used| *used);
        }
        match (topology_known, exact_known) {
            (true, true) => Lookup::Known,
            (true, false) => Lookup::NewSizes,
            (false, _) => Lookup::NewTopology,
        }
    }

    /// Remembers the graph of a new topology and what was derived from it.
    pub fn insert(&mut self, graph: Arc<Srg>, derived: T) {
        // Several may be inserted after one look-up; of equal age, none would be the older half.
        self.clock += 1;
        let nodes = graph.graph.node_count();
        let entry = Entry { derived, used: self.clock, graph };
        if let Some(old) = self.topologies.insert(entry.graph.hashes.topology, entry) {
            self.nodes -= old.graph.graph.node_count();
        }
        self.nodes += nodes;
        while self.topologies.len() > TOPOLOGIES_MAX
            || (self.nodes > NODES_MAX && self.topologies.len() > 1)
        {
            forget_older_half(&mut self.topologies, |entry| entry.used);
            self.nodes = self.topologies.values().map(|entry| entry.graph.graph.node_count()).sum();
        }
    }

    /// The graph of a topology and what was derived from it.
    pub fn get(&self, topology: Hash128) -> Option<(&Arc<Srg>, &T)> {
        self.topologies.get(&topology).map(|entry| (&entry.graph, &entry.derived))
    }

    /// Topologies remembered.
    pub fn len(&self) -> usize {
        self.topologies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.topologies.is_empty()
    }
}

/// Forgets the half that was unused longest; `used` tells when an entry was used last.
///
/// Forgetting half at once makes the cost per insertion constant. No two may have been used at the
/// same time, so that of two or more some are forgotten.
pub fn forget_older_half<K: Copy + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    used: impl Fn(&V) -> u64,
) {
    let mut times: Vec<u64> = map.values().map(&used).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    map.retain(|_, value| used(value) >= median);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cost, Trace};

    fn hashes(exact: u128, topology: u128) -> SegmentHashes {
        SegmentHashes { exact: Hash128(exact), topology: Hash128(topology), records: 1 }
    }

    fn graph(hashes: SegmentHashes) -> Arc<Srg> {
        let srg = Srg::build(&Trace::default(), hashes, |_| None, |_| crate::Origin::Unknown);
        assert_eq!(srg.cost, Cost::default());
        Arc::new(srg)
    }

    #[test]
    fn segments_are_known_by_exact_hash_and_by_topology() {
        let mut segments = Segments::new();
        assert_eq!(segments.look_up(hashes(1, 9)), Lookup::NewTopology);
        segments.insert(graph(hashes(1, 9)), "plan");
        assert_eq!(segments.look_up(hashes(1, 9)), Lookup::Known);
        assert_eq!(segments.look_up(hashes(2, 9)), Lookup::NewSizes);
        assert_eq!(segments.look_up(hashes(2, 9)), Lookup::Known);
        assert_eq!(segments.get(Hash128(9)).unwrap().1, &"plan");
    }

    #[test]
    fn what_is_inserted_at_once_is_bounded_too() {
        let mut segments = Segments::new();
        for index in 0..3 * TOPOLOGIES_MAX as u128 {
            segments.insert(graph(hashes(index, index)), ());
            assert!(segments.len() <= TOPOLOGIES_MAX);
            assert!(segments.get(Hash128(index)).is_some());
        }
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let mut segments = Segments::new();
        segments.look_up(hashes(0, 0));
        segments.insert(graph(hashes(0, 0)), ());
        for index in 1..20_000u128 {
            segments.look_up(hashes(index, index));
            segments.insert(graph(hashes(index, index)), ());
            assert_ne!(segments.look_up(hashes(0, 0)), Lookup::NewTopology, "at {index}");
            assert!(segments.len() <= TOPOLOGIES_MAX && segments.exact.len() <= EXACT_MAX);
        }
    }
}
