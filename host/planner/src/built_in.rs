//! Plans that need no policy: the one that always runs, and a blind one to compare with.

use genie_plugin::{Cluster, Graph, NodeId, Plan, Region};

use crate::check::check;
use crate::work::random_nodes;

/// Who proposed the built-in plan.
pub const BUILT_IN: &str = "built-in";

/// Everything on one device: of those with enough memory, the one where most of the content is.
/// Where nothing fits, the one that comes nearest.
pub fn built_in(graph: &Graph, cluster: &Cluster) -> Plan {
    let mut resident = vec![0u64; cluster.devices.len()];
    for (storage, device) in &cluster.resident {
        let storage = genie_plugin::StorageId(*storage);
        if let Some(sum) = resident.get_mut(*device as usize)
            && (storage.0 as usize) < graph.storages().len()
        {
            *sum = sum.saturating_add(graph.storage_bytes(storage));
        }
    }
    let mut devices: Vec<usize> = (0..cluster.devices.len()).collect();
    devices.sort_by_key(|index| {
        let free = cluster.devices[*index].memory_free_bytes;
        let room = resident[*index].saturating_add(free);
        std::cmp::Reverse((resident[*index], cluster.devices[*index].flops_per_s, room))
    });
    let plan = |device: usize| Plan {
        regions: by_segment(graph, |_| device as u32),
        why: "everything on the device with most of the content".to_owned(),
        ..Plan::default()
    };
    let mut fitting = devices.iter().map(|device| plan(*device));
    match fitting.find(|plan| check(graph, cluster, plan).is_ok()) {
        Some(plan) => plan,
        None => plan(devices.first().copied().unwrap_or(0)),
    }
}

/// What a scheduler without semantics does: operators go round, in program order, whatever they
/// use. Only exactness is kept: the writes of a storage and the generator stay together, and a
/// source is where it is first used.
pub fn round_robin(graph: &Graph, cluster: &Cluster) -> Plan {
    let devices = cluster.devices.len().max(1) as u32;
    let mut device_of: Vec<u32> = vec![0; graph.len()];
    for (turn, node) in graph.nodes().filter(|node| graph.is_op(*node)).enumerate() {
        device_of[node.0 as usize] = turn as u32 % devices;
    }
    for node in graph.nodes().filter(|node| !graph.is_op(*node)) {
        let near = graph.successors(node).find(|user| graph.is_op(*user));
        let near = near.or_else(|| graph.predecessors(node).last());
        device_of[node.0 as usize] = near.map_or(0, |near| device_of[near.0 as usize]);
    }
    let random = random_nodes(graph);
    let first = (0..graph.len()).find(|node| random[*node]);
    for node in (0..graph.len()).filter(|node| random[*node]) {
        device_of[node] = device_of[first.unwrap_or(node)];
    }
    for _ in 0..graph.len().max(1) {
        let mut changed = false;
        for storage in graph.storages() {
            let writers = || graph.values_of(storage).iter().skip(1).map(|v| graph.producer(*v));
            let Some(lowest) = writers().map(|node| device_of[node.0 as usize]).min() else {
                continue;
            };
            for writer in writers() {
                changed |= device_of[writer.0 as usize] != lowest;
                device_of[writer.0 as usize] = lowest;
            }
        }
        for node in (0..graph.len()).filter(|node| random[*node]) {
            let lowest = (0..graph.len()).filter(|node| random[*node]).map(|n| device_of[n]).min();
            changed |= lowest != Some(device_of[node]);
            device_of[node] = lowest.unwrap_or(0);
        }
        if !changed {
            break;
        }
    }
    Plan {
        regions: by_segment(graph, |node| device_of[node.0 as usize]),
        why: "operators go round".to_owned(),
        ..Plan::default()
    }
}

/// Regions that are runs of nodes in program order, so that they can never wait for each other:
/// a new one where the device or the segment changes.
pub fn by_segment(graph: &Graph, device_of: impl Fn(NodeId) -> u32) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    let mut segment = 0;
    for node in graph.nodes() {
        let device = device_of(node);
        let same = regions.last().is_some_and(|last| last.device == device);
        match regions.last_mut() {
            Some(last) if same && segment == graph.segment(node) => last.nodes.push(node.0),
            _ => regions.push(Region { nodes: vec![node.0], device, pipeline: 0 }),
        }
        segment = graph.segment(node);
    }
    regions
}
