//! Which bytes a plan moves: from a node's device to where the result is used, and from before
//! the graph to where it is first needed.

use std::collections::{BTreeMap, BTreeSet};

use genie_plugin::plan::PROGRAM;
use genie_plugin::{Cluster, Graph, NodeId, StorageId, ValueId};

use crate::check::Legal;
use crate::illegal::IllegalPlan;

/// Everything that a plan moves in one execution, less what the program reads and uploads.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Movement {
    pub copies: Vec<Copy>,
    pub again: Vec<Again>,
    pub sources: Vec<Source>,
}

/// A value (or the parts of it that are looked at) goes to a second device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Copy {
    pub value: ValueId,
    pub from: u32,
    pub to: u32,
    pub bytes: u64,
    /// Regions on the second device that use it, in the order of execution.
    pub regions: Vec<u32>,
    /// The last node that uses it; None: it stays there.
    pub last: Option<NodeId>,
    /// Whether a node there writes the storage on.
    pub written_on: bool,
}

/// A value is computed again where it is used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Again {
    pub value: ValueId,
    pub on: u32,
    /// Regions that use it, in the order of execution; the first one computes it.
    pub regions: Vec<u32>,
    pub last: NodeId,
}

/// Content from before the graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub storage: StorageId,
    pub value: ValueId,
    /// The device of its node, from which others get it.
    pub home: u32,
    /// Whether anything needs it there.
    pub used: bool,
    /// Where it is when the execution begins, if not at home.
    pub comes_from: Option<u32>,
    /// Devices with a copy of their own: whether it is there already, or only wished for.
    pub copies: Vec<(u32, bool)>,
    /// Devices whose copy is sent away.
    pub gone: Vec<u32>,
}

#[derive(Default)]
struct Uses {
    views: BTreeSet<(u32, u64)>,
    view_bytes: u64,
    whole: bool,
    regions: BTreeSet<u32>,
    last: Option<NodeId>,
    stays: bool,
    written_on: bool,
}

/// Finds them. The plan's structure has been checked.
pub(crate) fn of(graph: &Graph, cluster: &Cluster, legal: &Legal<'_>) -> Movement {
    let mut movement = Movement { sources: sources(graph, cluster, legal), ..Movement::default() };
    // By producer, so that what is made first comes first.
    let mut uses: BTreeMap<(NodeId, ValueId, u32), Uses> = BTreeMap::new();
    let key = |value: ValueId, device: u32| (graph.producer(value), value, device);
    let columns = graph.columns();
    let made_on = |value: ValueId| legal.device_of[graph.producer(value).0 as usize];
    for node in graph.nodes() {
        let device = legal.device_of[node.0 as usize];
        let first = node.0.checked_sub(1).map_or(0, |before| columns.input_ends[before as usize]);
        for (index, input) in graph.inputs(node).enumerate() {
            if made_on(input.value) == device {
                continue;
            }
            let entry = uses.entry(key(input.value, device)).or_default();
            let storage = graph.storage(input.value);
            let writes = graph.outputs(node).any(|output| graph.storage(output.value) == storage);
            let at = first as usize + index;
            let bytes = input.bytes();
            entry.add_view(columns.input_geometry[at], input.offset, bytes);
            entry.whole |= writes || !graph.is_op(node);
            entry.written_on |= writes;
            entry.add_region(legal.region_of[node.0 as usize], node);
        }
    }
    for (storage, device) in &legal.wishes.copies {
        if let [value] = graph.values_of(StorageId(*storage))
            && graph.op(graph.producer(*value)) != "genie::source"
            && made_on(*value) != *device
        {
            let entry = uses.entry(key(*value, *device)).or_default();
            entry.whole = true;
            entry.stays = true;
        }
    }
    let mut rank = vec![0u32; legal.order.len()];
    for (at, region) in legal.order.iter().enumerate() {
        rank[*region as usize] = at as u32;
    }
    // Latest first: what is computed again may need operands that are computed again.
    while let Some(((producer, value, device), used)) = uses.pop_last() {
        let mut regions: Vec<u32> = used.regions.iter().copied().collect();
        regions.sort_by_key(|region| rank[*region as usize]);
        let storage = graph.storage(value);
        let wished = legal.wishes.recomputed.contains(&(storage.0, device));
        let again = match (wished, used.last) {
            (true, Some(last)) if !used.stays => Some(last),
            _ => None,
        };
        let Some(last) = again else {
            let copy = (value, made_on(value), device);
            movement.copy(graph, copy, used, regions);
            continue;
        };
        for input in graph.inputs(producer) {
            if made_on(input.value) != device {
                let entry = uses.entry(key(input.value, device)).or_default();
                entry.whole = true;
                entry.add_region(regions[0], last);
            }
        }
        movement.again.push(Again { value, on: device, regions, last });
    }
    movement.copies.reverse();
    movement.again.reverse();
    let taken: BTreeSet<ValueId> = movement.copies.iter().map(|copy| copy.value).collect();
    for source in &mut movement.sources {
        source.used |= taken.contains(&source.value);
    }
    movement
}

impl Uses {
    fn add_view(&mut self, geometry: u32, offset: u64, bytes: u64) {
        if self.views.insert((geometry, offset)) {
            self.view_bytes = self.view_bytes.saturating_add(bytes);
        }
    }

    fn add_region(&mut self, region: u32, node: NodeId) {
        self.regions.insert(region);
        self.last = self.last.max(Some(node));
    }
}

impl Movement {
    fn copy(
        &mut self,
        graph: &Graph,
        (value, from, to): (ValueId, u32, u32),
        used: Uses,
        regions: Vec<u32>,
    ) {
        let source = self.sources.binary_search_by_key(&value, |source| source.value).ok();
        if let Some(index) = source
            && self.sources[index].copies.iter().any(|(device, _)| *device == to)
        {
            return;
        }
        let whole = graph.storage_bytes(graph.storage(value));
        let bytes = if used.whole { whole } else { whole.min(used.view_bytes) };
        let last = if used.stays { None } else { used.last };
        let written_on = used.written_on;
        self.copies.push(Copy { value, from, to, bytes, regions, last, written_on });
    }
}

fn sources(graph: &Graph, cluster: &Cluster, legal: &Legal<'_>) -> Vec<Source> {
    let mut resident: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (storage, device) in &cluster.resident {
        resident.entry(*storage).or_default().push(*device);
    }
    let mut sources: Vec<Source> = graph
        .nodes()
        .filter(|node| graph.op(*node) == "genie::source")
        .filter_map(|node| Some((node, graph.output(node, 0)?.value)))
        .map(|(node, value)| {
            let storage = graph.storage(value);
            let home = legal.device_of[node.0 as usize];
            let devices = resident.get(&storage.0).map_or(&[][..], Vec::as_slice);
            let mut away: Vec<u32> = devices
                .iter()
                .copied()
                .filter(|device| *device != home && (*device as usize) < cluster.devices.len())
                .collect();
            away.sort_unstable();
            away.dedup();
            let first_away = away.first().copied();
            let (gone, there): (Vec<u32>, Vec<u32>) =
                away.into_iter().partition(|device| legal.leaves(storage.0, *device));
            let mut copies: Vec<(u32, bool)> =
                there.into_iter().map(|device| (device, true)).collect();
            for (_, device) in legal.wishes.copies.range((storage.0, 0)..=(storage.0, u32::MAX)) {
                if *device != home && !copies.iter().any(|(known, _)| known == device) {
                    copies.push((*device, false));
                }
            }
            let comes_from = match devices.contains(&home) {
                true => None,
                false => Some(first_away.unwrap_or(PROGRAM)),
            };
            let at_home = |user: &NodeId| legal.device_of[user.0 as usize] == home;
            let used = graph.consumers(value).iter().any(at_home);
            Source { storage, value, home, used, comes_from, copies, gone }
        })
        .collect();
    sources.sort_by_key(|source| source.value);
    sources
}

/// Refuses a plan that moves bytes where no link leads.
pub(crate) fn check_reachable(cluster: &Cluster, movement: &Movement) -> Result<(), IllegalPlan> {
    let copies = movement.copies.iter().map(|copy| (copy.value, copy.from, copy.to));
    let fetched = |source: &Source| Some((source.value, source.comes_from?, source.home));
    let fetches = movement.sources.iter().filter(|source| source.used).filter_map(fetched);
    match copies.chain(fetches).find(|(_, from, to)| cluster.route(*from, *to).is_none()) {
        Some((value, from, to)) => Err(IllegalPlan::Unreachable { value: value.0, from, to }),
        None => Ok(()),
    }
}
