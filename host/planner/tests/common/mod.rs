//! Random graphs, clusters and plans, and a slow executor that knows nothing of the check.
#![allow(dead_code)]

pub mod models;

use genie_planner::cluster::full_mesh;
use genie_plugin::builder::{GraphBuilder, Handle};
use genie_plugin::{Annotations, Cluster, Device, Graph, Link, NodeId, Plan, Region, Stage};
use proptest::prelude::*;

/// What one step of a random program does, with two numbers to choose operands by.
pub type Step = (u8, u16, u16);

pub fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0u8..16, any::<u16>(), any::<u16>()), 1..max)
}

/// A random program: sources, operators, writes in place, views, reads, random numbers. Handles
/// always name the newest content of a storage.
pub fn graph(steps: &[Step]) -> Graph {
    let mut g = GraphBuilder::new();
    let mut live: Vec<Handle> = vec![];
    for (kind, a, b) in steps {
        let size = [1 + i64::from(a % 64), 16];
        let any = |n: &u16| live.get(usize::from(*n) % live.len().max(1)).copied();
        match (kind, any(a), any(b)) {
            (0, ..) => live.push(g.weight(&size)),
            (1, ..) => live.push(g.input(&size)),
            (2, ..) => live.push(g.earlier(&size, Stage::None)),
            (3..=6, Some(x), _) => live.push(g.op("aten::relu", &[x], &size)),
            (7..=10, Some(x), Some(y)) => live.push(g.op("aten::add.Tensor", &[x, y], &size)),
            (11..=12, Some(x), Some(y)) => {
                let at = usize::from(*a) % live.len();
                let others = if g.storage_of(x) == g.storage_of(y) { vec![] } else { vec![y] };
                live[at] = g.in_place("aten::add_.Tensor", x, &others);
            }
            (13, Some(x), _) => g.read(x),
            (14, Some(x), _) => g.alive(x),
            (15, Some(x), _) => live.push(g.op("aten::bernoulli", &[x], &size)),
            _ => live.push(g.weight(&size)),
        }
    }
    g.build()
}

/// A cluster of small devices, fully linked or only with the program.
pub fn cluster() -> impl Strategy<Value = Cluster> {
    let device = (1u64..100, 1u64..100, 0u32..3, 0u64..60_000);
    (prop::collection::vec(device, 1..9), any::<bool>(), 1u64..50, 0u32..500).prop_map(
        |(devices, linked, rate, rtt_us)| {
            let devices: Vec<Device> = devices
                .into_iter()
                .enumerate()
                .map(|(index, (flops, rate, node, free))| Device {
                    name: format!("d{index}"),
                    node: format!("n{node}"),
                    memory_bytes: free,
                    memory_free_bytes: free,
                    flops_per_s: flops * 1_000_000,
                    memory_bytes_per_s: rate * 1_000_000,
                })
                .collect();
            let link = Link { from: 0, to: 0, bytes_per_s: rate * 100_000, rtt_us };
            let mut cluster = full_mesh(devices, link, link);
            if !linked {
                cluster.links.truncate(cluster.devices.len());
            }
            cluster
        },
    )
}

/// The cluster with all the memory one could want.
pub fn roomy(mut cluster: Cluster) -> Cluster {
    for device in &mut cluster.devices {
        device.memory_free_bytes = 1 << 40;
        device.memory_bytes = 1 << 40;
    }
    cluster
}

/// Some storages from before the graph are somewhere already.
pub fn with_residents(graph: &Graph, mut cluster: Cluster, seeds: &[u16]) -> Cluster {
    let devices = cluster.devices.len() as u32;
    for (storage, seed) in graph.storages().zip(seeds) {
        if seed % 3 == 0 {
            cluster.resident.push((storage.0, u32::from(seed / 3) % devices));
        }
    }
    cluster
}

/// A plan from numbers: runs of the program, some nodes then put anywhere.
pub fn plan(graph: &Graph, cluster: &Cluster, seeds: &[u16]) -> Plan {
    let devices = cluster.devices.len() as u32;
    let seed = |index: usize| u32::from(seeds[index % seeds.len()]);
    let regions = 1 + seed(0) % 5;
    let nodes = graph.len() as u32;
    let mut plan = Plan::default();
    for region in 0..regions {
        let device = seed(1 + region as usize) % devices;
        plan.regions.push(Region { nodes: vec![], device, pipeline: 0 });
    }
    for node in 0..nodes {
        let odd = seed(node as usize + 7) % 11 == 0;
        let region = if odd { seed(node as usize + 3) % regions } else { node * regions / nodes };
        plan.regions[region as usize].nodes.push(node);
    }
    plan.regions.retain(|region| !region.nodes.is_empty());
    plan
}

pub fn notes() -> Annotations {
    Annotations::new()
}

/// Whether the plan's regions can run as units: tried, by running them.
pub fn runs(graph: &Graph, plan: &Plan) -> bool {
    let region_of = |node: NodeId| {
        plan.regions.iter().position(|region| region.nodes.contains(&node.0)).unwrap()
    };
    let device_of = |node: NodeId| plan.regions[region_of(node)].device;
    let random: Vec<NodeId> =
        graph.nodes().filter(|node| graph.op(*node) == "aten::bernoulli").collect();
    if random.iter().any(|node| device_of(*node) != device_of(random[0])) {
        return false;
    }
    for storage in graph.storages() {
        let writers: Vec<u32> = graph.values_of(storage)[1..]
            .iter()
            .map(|value| device_of(graph.producer(*value)))
            .collect();
        if writers.iter().any(|device| *device != writers[0]) {
            return false;
        }
    }
    let mut done = vec![false; plan.regions.len()];
    loop {
        let ready = |index: usize| {
            let inside = |node: NodeId| region_of(node) == index;
            let past = |node: NodeId| inside(node) || done[region_of(node)];
            let first_segment =
                plan.regions[index].nodes.iter().map(|node| graph.segment(NodeId(*node))).min();
            // The program has read what it reads before it issues any of this.
            let reads_done = graph.nodes().all(|read| {
                let last = |region: usize| {
                    let nodes = plan.regions[region].nodes.iter();
                    nodes.map(|node| graph.segment(NodeId(*node))).max()
                };
                graph.op(read) != "genie::read"
                    || Some(graph.segment(read)) >= first_segment
                    || last(region_of(read)) != Some(graph.segment(read))
                    || past(read)
            });
            reads_done
                && plan.regions[index].nodes.iter().all(|node| {
                    let node = NodeId(*node);
                    let has_inputs = graph.predecessors(node).all(past);
                    let old_is_free = graph.outputs(node).all(|output| {
                        let values = graph.values_of(graph.storage(output.value));
                        let at = values.iter().position(|value| *value == output.value).unwrap();
                        at == 0
                            || (past(graph.producer(values[at - 1]))
                                && graph
                                    .consumers(values[at - 1])
                                    .iter()
                                    .all(|reader| past(*reader)))
                    });
                    let drawn = random
                        .iter()
                        .all(|other| *other >= node || !random.contains(&node) || past(*other));
                    has_inputs && old_is_free && drawn
                })
        };
        let Some(next) = (0..done.len()).find(|index| !done[*index] && ready(*index)) else {
            return done.iter().all(|done| *done);
        };
        done[next] = true;
    }
}
