//! What a placement would cost, and whether its memory suffices: the policy's own estimate.
//!
//! Latency by a walk over regions in program order (devices and links do one thing at a time),
//! memory by lifetimes in that order, on the safe side throughout.

use std::collections::{BTreeMap, BTreeSet};

use genie_plugin::cost::duration_ns;
use genie_plugin::plan::PROGRAM;
use genie_plugin::prelude::*;
use genie_plugin::{Region, ValueId};

use crate::facts::Facts;

/// Executions over which the bytes of bringing content into the cluster are spread: any plan must
/// bring it, and weights stay for as long as programs use them. The time is not counted.
const RUNS_OF_CONTENT: u64 = 100_000;
/// Executions over which moving content that is in the cluster already is spread: about as many
/// as a loop has.
const RUNS_OF_PLACE: u64 = 256;

/// A placement with what is decided on top of it.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    pub device_of: Vec<u32>,
    pub regions: Vec<Region>,
    pub region_of: Vec<u32>,
    /// Constant content that a second device keeps for itself.
    pub copies: BTreeSet<(StorageId, u32)>,
    /// Content that is computed again on a device instead of sent there.
    pub again: BTreeSet<(StorageId, u32)>,
    /// Content that is on a device only while it is used.
    pub spilled: BTreeSet<(StorageId, u32)>,
    pub stages: bool,
    pub why: String,
}

/// The cost of one of many executions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub latency_ns: u64,
    pub interval_ns: u64,
    /// How long links are occupied, all together.
    pub links_ns: u64,
    pub bytes: u64,
}

/// Values that go from one device to another, with the bytes that are looked at there.
pub type Crossings = BTreeMap<(ValueId, u32), Crossing>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossing {
    pub bytes: u64,
    pub first_region: u32,
    pub last: NodeId,
}

impl Draft {
    /// Regions are runs of the program on one device within one segment: they cannot wait for
    /// each other in a circle. `bytes_max`: a new region also where more content would be needed
    /// at once.
    pub fn new(facts: &Facts<'_>, device_of: Vec<u32>, bytes_max: Option<u64>) -> Draft {
        let graph = facts.graph;
        let mut draft = Draft { device_of, ..Draft::default() };
        let mut needed: BTreeSet<StorageId> = BTreeSet::new();
        let mut bytes = 0u64;
        for node in graph.nodes() {
            let device = draft.device_of[node.0 as usize];
            let more: Vec<StorageId> = graph
                .inputs(node)
                .filter(|input| !facts.made_here(input.value))
                .map(|input| graph.storage(input.value))
                .collect();
            let new = more.iter().filter(|storage| !needed.contains(*storage));
            let new =
                new.fold(0u64, |sum, storage| sum.saturating_add(graph.storage_bytes(*storage)));
            let full = bytes_max.is_some_and(|max| bytes.saturating_add(new) > max);
            let before = node.0.checked_sub(1).map(|before| graph.segment(NodeId(before)));
            let same = before == Some(graph.segment(node))
                && draft.regions.last().is_some_and(|last| last.device == device);
            match draft.regions.last_mut() {
                Some(last) if same && !full => last.nodes.push(node.0),
                _ => {
                    draft.regions.push(Region { nodes: vec![node.0], device, pipeline: 0 });
                    needed.clear();
                    bytes = 0;
                }
            }
            for storage in more {
                if needed.insert(storage) {
                    bytes = bytes.saturating_add(graph.storage_bytes(storage));
                }
            }
            draft.region_of.push(draft.regions.len() as u32 - 1);
        }
        draft
    }

    pub fn device(&self, node: NodeId) -> u32 {
        self.device_of[node.0 as usize]
    }

    /// What crosses between devices, without what is there already or is computed again.
    pub fn crossings(&self, facts: &Facts<'_>) -> Crossings {
        let graph = facts.graph;
        let mut crossings = Crossings::new();
        for node in graph.nodes() {
            let device = self.device(node);
            for input in graph.inputs(node) {
                let storage = graph.storage(input.value);
                let source = !facts.made_here(input.value);
                let here = self.device(graph.producer(input.value)) == device
                    || (source && facts.resident[storage.0 as usize].contains(&device))
                    || self.copies.contains(&(storage, device));
                if here {
                    continue;
                }
                let whole = graph.storage_bytes(storage);
                let writes =
                    graph.outputs(node).any(|output| graph.storage(output.value) == storage);
                let seen = match writes || !facts.is_op[node.0 as usize] {
                    true => whole,
                    false => input.bytes(),
                };
                let region = self.region_of[node.0 as usize];
                crossings
                    .entry((input.value, device))
                    .and_modify(|known: &mut Crossing| {
                        known.bytes = whole.min(known.bytes.saturating_add(seen));
                        known.last = node;
                    })
                    .or_insert(Crossing {
                        bytes: whole.min(seen),
                        first_region: region,
                        last: node,
                    });
            }
        }
        crossings
    }

    /// Whether the plan would be legal on this cluster, as far as memory and links go.
    pub fn fits(&self, facts: &Facts<'_>) -> bool {
        let crossings = self.crossings(facts);
        let reach = |from, to| from == to || facts.cluster.route(from, to).is_some();
        let reachable = crossings.keys().all(|(value, to)| {
            let producer = facts.graph.producer(*value);
            let inputs = facts.graph.predecessors(producer);
            reach(self.device(producer), *to)
                && (!self.again.contains(&(facts.graph.storage(*value), *to))
                    || inputs.into_iter().all(|input| reach(self.device(input), *to)))
        });
        let fetchable =
            facts.graph.nodes().filter(|node| facts.is_source[node.0 as usize]).all(|node| {
                let Some(output) = facts.graph.output(node, 0) else { return true };
                let there = &facts.resident[facts.graph.storage(output.value).0 as usize];
                let home = self.device(node);
                there.contains(&home) || there.iter().all(|device| reach(*device, home))
            });
        reachable && fetchable && self.over_memory(facts, &crossings).is_none()
    }

    /// The first device that would hold more than it has, with the bytes it lacks.
    pub fn lacking(&self, facts: &Facts<'_>) -> Option<(u32, u64)> {
        self.over_memory(facts, &self.crossings(facts))
    }

    fn over_memory(&self, facts: &Facts<'_>, crossings: &Crossings) -> Option<(u32, u64)> {
        let graph = facts.graph;
        let end = graph.len() as u32;
        let mut ledger: Vec<Vec<(u32, i128)>> = vec![vec![]; facts.cluster.devices.len()];
        let mut hold = |device: u32, from: u32, to: u32, bytes: u64| {
            ledger[device as usize].push((from, i128::from(bytes)));
            ledger[device as usize].push((to + 1, -i128::from(bytes)));
        };
        // Operands of what is computed again are kept until then.
        let mut kept = vec![0u32; graph.storages().len()];
        for ((value, device), crossing) in crossings {
            if self.again.contains(&(graph.storage(*value), *device)) {
                for input in graph.inputs(graph.producer(*value)) {
                    let last = &mut kept[graph.storage(input.value).0 as usize];
                    *last = crossing.last.0.max(*last);
                }
            }
        }
        let last_use = |storage: StorageId| {
            let uses = graph.values_of(storage).iter().flat_map(|value| {
                graph.consumers(*value).iter().copied().chain([graph.producer(*value)])
            });
            uses.map(|node| node.0).max().unwrap_or(0).max(kept[storage.0 as usize])
        };
        let start = |node: NodeId| {
            let region = self.region_of[node.0 as usize];
            self.regions[region as usize].nodes.first().copied().unwrap_or(0)
        };
        for storage in graph.storages() {
            let [first, ..] = graph.values_of(storage) else { continue };
            let producer = graph.producer(*first);
            let bytes = graph.storage_bytes(storage);
            let home = self.device(producer);
            let resident = &facts.resident[storage.0 as usize];
            if !facts.is_source[producer.0 as usize] {
                let to = if graph.is_alive(storage) { end } else { last_use(storage) };
                hold(home, producer.0, to, bytes);
                continue;
            }
            let leaves = self.spilled.contains(&(storage, home));
            if leaves {
                let uses = graph.values_of(storage).iter().flat_map(|v| graph.consumers(*v));
                let from = uses.map(|user| start(*user)).min().unwrap_or(0);
                hold(home, from, last_use(storage).max(from), bytes);
            } else if !resident.contains(&home) && !graph.consumers(*first).is_empty() {
                let to = if graph.is_alive(storage) { end } else { last_use(storage) };
                hold(home, 0, to, bytes);
            }
        }
        for (storage, device) in &self.copies {
            hold(*device, 0, end, graph.storage_bytes(*storage));
        }
        for ((value, device), crossing) in crossings {
            let again = self.again.contains(&(graph.storage(*value), *device));
            let bytes = match again {
                true => graph.storage_bytes(graph.storage(*value)),
                false => crossing.bytes,
            };
            let from = self.regions[crossing.first_region as usize].nodes[0];
            hold(*device, from.min(crossing.last.0), crossing.last.0, bytes);
        }
        for (storage, device) in &self.spilled {
            if facts.resident[storage.0 as usize].contains(device) {
                let bytes = i128::from(graph.storage_bytes(*storage));
                ledger[*device as usize].push((0, -bytes));
            }
        }
        for (index, changes) in ledger.iter_mut().enumerate() {
            changes.sort_unstable();
            let free = i128::from(facts.cluster.devices[index].memory_free_bytes);
            let (mut sum, mut peak) = (0i128, 0i128);
            for (at, (time, change)) in changes.iter().enumerate() {
                sum += change;
                if changes.get(at + 1).is_none_or(|(next, _)| next != time) {
                    peak = peak.max(sum);
                }
            }
            if peak > free {
                return Some((index as u32, u64::try_from(peak - free).unwrap_or(u64::MAX)));
            }
        }
        None
    }

    /// The cost of one of many executions.
    pub fn estimate(&self, facts: &Facts<'_>) -> Estimate {
        let graph = facts.graph;
        let crossings = self.crossings(facts);
        let mut walk = Walk::default();
        let mut made_ns = vec![0u64; graph.len()];
        let mut region_done = vec![0u64; self.regions.len()];
        let mut arrived: BTreeMap<(ValueId, u32), u64> = BTreeMap::new();
        let mut device_free = vec![0u64; facts.cluster.devices.len()];
        let mut busy = vec![0u64; facts.cluster.devices.len()];
        let (mut done, mut reads_done, mut segment) = (0u64, 0u64, 0);
        let mut barrier = 0u64;
        for (index, region) in self.regions.iter().enumerate() {
            let first = NodeId(region.nodes[0]);
            if graph.segment(first) != segment {
                segment = graph.segment(first);
                barrier = reads_done;
            }
            let mut start = barrier.max(device_free[region.device as usize]);
            let mut extra = 0;
            for node in region.nodes.iter().map(|node| NodeId(*node)) {
                for input in graph.inputs(node) {
                    let producer = graph.producer(input.value);
                    let storage = graph.storage(input.value);
                    let key = (input.value, region.device);
                    let made = (self.region_of[producer.0 as usize] as usize) < index;
                    if let Some(at) = arrived.get(&key) {
                        start = start.max(*at);
                    } else if let Some(crossing) = crossings.get(&key) {
                        let at = if self.again.contains(&(storage, region.device)) {
                            extra += facts.node_ns(producer, region.device);
                            barrier
                        } else {
                            let from = self.device(producer);
                            let ready = made_ns[producer.0 as usize];
                            walk.send(facts, from, region.device, crossing.bytes, ready)
                        };
                        arrived.insert(key, at);
                        start = start.max(at);
                    } else if made {
                        let region = self.region_of[producer.0 as usize];
                        start = start.max(region_done[region as usize]);
                    }
                    // What is here only while it is used comes each time.
                    if !facts.made_here(input.value)
                        && self.spilled.contains(&(storage, region.device))
                    {
                        let bytes = graph.storage_bytes(storage);
                        let at = arrived
                            .entry(key)
                            .or_insert_with(|| walk.send(facts, PROGRAM, region.device, bytes, 0));
                        start = start.max(*at);
                    }
                }
                if matches!(graph.op(node), "genie::upload" | "genie::weight") {
                    let bytes = graph
                        .output(node, 0)
                        .map_or(0, |output| graph.storage_bytes(graph.storage(output.value)));
                    let at = walk.send(facts, PROGRAM, region.device, bytes, barrier);
                    start = start.max(at);
                }
            }
            let mut now = start + extra;
            for node in region.nodes.iter().map(|node| NodeId(*node)) {
                now += facts.node_ns(node, region.device);
                made_ns[node.0 as usize] = now;
                if let ("genie::read", Some(input)) = (graph.op(node), graph.input(node, 0)) {
                    let bytes = input.bytes().min(graph.storage_bytes(graph.storage(input.value)));
                    let at = walk.send(facts, region.device, PROGRAM, bytes, now);
                    reads_done = reads_done.max(at);
                }
            }
            device_free[region.device as usize] = now;
            busy[region.device as usize] += now - start;
            region_done[index] = now;
            done = done.max(now);
        }
        let (once_ns, once_bytes) = self.once(facts);
        let latency_ns = done.max(reads_done) + once_ns;
        let busiest = busy.iter().chain(walk.busy.values()).copied().max().unwrap_or(0);
        let interval_ns = match self.stages && !facts.carries_state() {
            true => busiest.min(latency_ns),
            false => latency_ns,
        };
        let links_ns = walk.busy.values().fold(0, |sum: u64, busy| sum.saturating_add(*busy));
        Estimate { latency_ns, interval_ns, links_ns, bytes: walk.bytes.saturating_add(once_bytes) }
    }

    /// The share of an execution in what moves once: content to its home and copies.
    fn once(&self, facts: &Facts<'_>) -> (u64, u64) {
        let graph = facts.graph;
        let (mut brought, mut moved) = (Walk::default(), Walk::default());
        let mut moved_ns = 0;
        for node in graph.nodes().filter(|node| facts.is_source[node.0 as usize]) {
            let Some(output) = graph.output(node, 0) else { continue };
            let storage = graph.storage(output.value);
            let (home, bytes) = (self.device(node), graph.storage_bytes(storage));
            let resident = &facts.resident[storage.0 as usize];
            let used = !graph.consumers(output.value).is_empty();
            if !used || resident.contains(&home) || self.spilled.contains(&(storage, home)) {
                continue;
            }
            match resident.first() {
                Some(from) => moved_ns = moved_ns.max(moved.send(facts, *from, home, bytes, 0)),
                None => _ = brought.send(facts, PROGRAM, home, bytes, 0),
            }
        }
        for (storage, device) in &self.copies {
            let bytes = graph.storage_bytes(*storage);
            brought.send(facts, PROGRAM, *device, bytes, 0);
        }
        let bytes = brought.bytes / RUNS_OF_CONTENT + moved.bytes / RUNS_OF_PLACE;
        (moved_ns / RUNS_OF_PLACE, bytes)
    }
}

/// Links in use.
#[derive(Default)]
struct Walk {
    free: BTreeMap<(u32, u32), u64>,
    busy: BTreeMap<(u32, u32), u64>,
    bytes: u64,
}

impl Walk {
    /// When bytes that are ready at a time are there.
    fn send(&mut self, facts: &Facts<'_>, from: u32, to: u32, bytes: u64, ready: u64) -> u64 {
        let mut at = ready;
        if from == to {
            return at;
        }
        for hop in facts.cluster.route(from, to).unwrap_or_default() {
            let time = duration_ns(bytes, hop.bytes_per_s);
            let free = self.free.entry((hop.from, hop.to)).or_insert(0);
            let start = at.max(*free);
            *free = start + time;
            *self.busy.entry((hop.from, hop.to)).or_insert(0) += time;
            self.bytes = self.bytes.saturating_add(bytes);
            at = start + time + u64::from(hop.rtt_us) * 500;
        }
        at
    }
}
