//! How many bytes each device holds at most, when regions run one after another.

use std::collections::BTreeSet;

use genie_plugin::{Cluster, Graph, NodeId, ValueId};

use crate::check::Legal;
use crate::illegal::IllegalPlan;

/// Where each node stands in the order of execution.
struct Clock {
    node: Vec<u32>,
    region_start: Vec<u32>,
    /// Per storage: when it is last used to compute something again.
    again: Vec<u32>,
    end: u32,
}

/// Bytes that come at one time and leave at another, per device.
struct Ledger {
    changes: Vec<Vec<(u32, i128)>>,
    end: u32,
}

impl Ledger {
    fn hold(&mut self, device: u32, from: u32, to: u32, bytes: u64) {
        let changes = &mut self.changes[device as usize];
        changes.push((from, i128::from(bytes)));
        changes.push((to + 1, -i128::from(bytes)));
    }

    fn hold_always(&mut self, device: u32, bytes: u64) {
        self.hold(device, 0, self.end, bytes);
    }

    fn free_always(&mut self, device: u32, bytes: u64) {
        self.changes[device as usize].push((0, -i128::from(bytes)));
    }

    /// The most that is held, and when.
    fn peak(&mut self, device: u32) -> (i128, u32) {
        let changes = &mut self.changes[device as usize];
        // What leaves makes room for what comes at the same time.
        changes.sort_unstable();
        let (mut sum, mut peak) = (0i128, (0i128, 0u32));
        for (index, (time, change)) in changes.iter().enumerate() {
            sum += change;
            let last = changes.get(index + 1).is_none_or(|(next, _)| next != time);
            if last && sum > peak.0 {
                peak = (sum, *time);
            }
        }
        peak
    }
}

/// The peak of each device, or the first device that has less.
pub(crate) fn check(
    graph: &Graph,
    cluster: &Cluster,
    legal: &Legal<'_>,
) -> Result<Vec<u64>, IllegalPlan> {
    let clock = Clock::new(graph, legal);
    let mut ledger = Ledger { changes: vec![vec![]; cluster.devices.len()], end: clock.end };
    hold_sources(graph, cluster, legal, &clock, &mut ledger);
    hold_made(graph, legal, &clock, &mut ledger);
    for copy in &legal.movement.copies {
        let from = copy.regions.iter().map(|region| clock.region_start[*region as usize]).min();
        // What is written there lives on as the storage itself, which is counted as made.
        let bytes = if copy.written_on { 0 } else { copy.bytes };
        let from = from.unwrap_or_else(|| clock.of(graph.producer(copy.value)));
        let to = copy.last.map_or(clock.end, |last| clock.of(last).max(from));
        ledger.hold(copy.to, from, to, bytes);
    }
    for again in &legal.movement.again {
        let from = clock.region_start[again.regions[0] as usize];
        let bytes = graph.storage_bytes(graph.storage(again.value));
        ledger.hold(again.on, from, clock.of(again.last).max(from), bytes);
    }
    let mut peaks = Vec::with_capacity(cluster.devices.len());
    for (index, device) in cluster.devices.iter().enumerate() {
        let (peak, time) = ledger.peak(index as u32);
        let needed_bytes = u64::try_from(peak).unwrap_or(u64::MAX);
        if needed_bytes > device.memory_free_bytes {
            let node = clock.node.iter().position(|at| *at == time).unwrap_or(0) as u32;
            return Err(IllegalPlan::OverMemory {
                device: index as u32,
                name: device.name.clone(),
                needed_bytes,
                free_bytes: device.memory_free_bytes,
                node,
                op: graph.op(NodeId(node)).to_owned(),
            });
        }
        peaks.push(needed_bytes);
    }
    Ok(peaks)
}

/// Content from before the graph: at home, where it is written, and copies of its own.
fn hold_sources(
    graph: &Graph,
    cluster: &Cluster,
    legal: &Legal<'_>,
    clock: &Clock,
    ledger: &mut Ledger,
) {
    let mut is_source = vec![false; graph.storages().len()];
    for source in &legal.movement.sources {
        let (storage, home) = (source.storage, source.home);
        is_source[storage.0 as usize] = true;
        let bytes = graph.storage_bytes(storage);
        for (device, there) in &source.copies {
            if !there {
                ledger.hold_always(*device, bytes);
            }
        }
        for device in &source.gone {
            ledger.free_always(*device, bytes);
        }
        let resident = source.comes_from.is_none();
        let leaves = legal.leaves(storage.0, home);
        if resident && leaves {
            ledger.free_always(home, bytes);
        }
        if !source.used || (resident && !leaves) {
            continue;
        }
        let uses = || graph.values_of(storage).iter().flat_map(|value| graph.consumers(*value));
        let last = uses().map(|node| clock.of(*node)).max().unwrap_or(0);
        let last = last.max(clock.again[storage.0 as usize]);
        let first = match leaves {
            true => uses().map(|node| clock.start(legal, *node)).min().unwrap_or(0),
            false => 0,
        };
        let last = if graph.is_alive(storage) && !leaves { clock.end } else { last };
        ledger.hold(home, first.min(last), last, bytes);
    }
    // Storages of the cluster that the graph does not use, but the plan sends away.
    for (storage, device) in &BTreeSet::from_iter(cluster.resident.iter().copied()) {
        let known = is_source.get(*storage as usize).copied();
        if known == Some(false) && legal.leaves(*storage, *device) {
            ledger.free_always(*device, graph.storage_bytes(genie_plugin::StorageId(*storage)));
        }
    }
}

/// Storages made in the graph, and those from before it that are written elsewhere than at home.
fn hold_made(graph: &Graph, legal: &Legal<'_>, clock: &Clock, ledger: &mut Ledger) {
    for storage in graph.storages() {
        let [first, written @ ..] = graph.values_of(storage) else { continue };
        let producer = graph.producer(*first);
        let made_on = legal.device(producer);
        let source = graph.op(producer) == "genie::source";
        let bytes = graph.storage_bytes(storage);
        let last_use = |values: &[ValueId]| {
            let uses = values.iter().flat_map(|value| {
                graph.consumers(*value).iter().copied().chain([graph.producer(*value)])
            });
            let last = uses.map(|node| clock.of(node)).max().unwrap_or(0);
            last.max(clock.again[storage.0 as usize])
        };
        let end = |device: u32, values: &[ValueId]| match graph.is_alive(storage)
            && !legal.leaves(storage.0, device)
        {
            true => clock.end,
            false => last_use(values),
        };
        let written_on = written.first().map(|value| legal.device(graph.producer(*value)));
        match written_on {
            Some(device) if device != made_on => {
                if !source {
                    ledger.hold(made_on, clock.of(producer), last_use(&[*first]), bytes);
                }
                let writers = written.iter().map(|value| graph.producer(*value));
                let from = writers.map(|node| clock.start(legal, node)).min().unwrap_or(0);
                ledger.hold(device, from, end(device, written).max(from), bytes);
            }
            _ if source => {}
            _ => {
                let all = graph.values_of(storage);
                let from = clock.of(producer);
                ledger.hold(made_on, from, end(made_on, all).max(from), bytes);
            }
        }
    }
}

impl Clock {
    fn new(graph: &Graph, legal: &Legal<'_>) -> Clock {
        let mut node = vec![0; graph.len()];
        let mut region_start = vec![0; legal.plan.regions.len()];
        let mut nodes = Vec::new();
        let mut now = 0u32;
        for region in &legal.order {
            region_start[*region as usize] = now;
            nodes.clear();
            nodes.extend_from_slice(&legal.plan.regions[*region as usize].nodes);
            nodes.sort_unstable();
            for id in &nodes {
                node[*id as usize] = now;
                now += 1;
            }
        }
        let mut again = vec![0; graph.storages().len()];
        for once_more in &legal.movement.again {
            let time = region_start[once_more.regions[0] as usize];
            for input in graph.inputs(graph.producer(once_more.value)) {
                let last = &mut again[graph.storage(input.value).0 as usize];
                *last = time.max(*last);
            }
        }
        Clock { node, region_start, again, end: now }
    }

    fn of(&self, node: NodeId) -> u32 {
        self.node[node.0 as usize]
    }

    /// When the region of a node starts.
    fn start(&self, legal: &Legal<'_>, node: NodeId) -> u32 {
        self.region_start[legal.region_of[node.0 as usize] as usize]
    }
}

impl Legal<'_> {
    pub(crate) fn device(&self, node: NodeId) -> u32 {
        self.device_of[node.0 as usize]
    }

    /// Whether a storage is sent away from a device when it is not in use there.
    pub(crate) fn leaves(&self, storage: u32, device: u32) -> bool {
        self.wishes.spilled.contains(&(storage, device))
            || self.wishes.evicted.contains(&(storage, device))
    }
}
