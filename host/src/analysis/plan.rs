//! The plan for a window: what a policy proposes, checked, or the planner's own.

use std::collections::BTreeMap;

use genie_analyzer::explanation::{DirectiveTold, PlanTold, RegionTold};
use genie_analyzer::merge::Reading;
use genie_planner::cluster::one_device;
use genie_plugin::{Cluster, Graph, Link, Plan, StorageId};
use genie_plugin_host::PluginHost;
use genie_wire::control::Device;

/// What a CPU and a GPU are taken for until a node tells its own rates.
const CPU_FLOPS_PER_S: u64 = 50_000_000_000;
const CPU_MEMORY_BYTES_PER_S: u64 = 10_000_000_000;
const GPU_FLOPS_PER_S: u64 = 20_000_000_000_000;
const GPU_MEMORY_BYTES_PER_S: u64 = 1_000_000_000_000;
/// Shared memory between the program and a node on the same machine.
const LOCAL_BYTES_PER_S: u64 = 5_000_000_000;
const LOCAL_RTT_US: u32 = 50;
/// A device that has not told its memory.
const MEMORY_BYTES_DEFAULT: u64 = 8 << 30;

/// The plan, and notes for people about how it came to be.
pub fn choose(
    policy: &str,
    plugins: Option<&PluginHost>,
    graph: &Graph,
    reading: &Reading,
    cluster: &Cluster,
) -> (PlanTold, Vec<String>) {
    let notes = reading.notes();
    let mut proposals: Vec<(String, Plan)> = Vec::new();
    let mut remarks = Vec::new();
    if let Some(plugins) = plugins {
        match plugins.schedule(policy, graph.columns(), &notes, cluster) {
            None => remarks.push(format!("there is no policy `{policy}`: the built-in plan runs")),
            Some(call) => match call.result {
                Ok(plan) => proposals.push((call.plugin, plan)),
                Err(error) => remarks.push(format!("policy {} failed: {error}", call.plugin)),
            },
        }
    }
    let choice = genie_planner::choose(graph, &notes, cluster, proposals);
    if let Some(plugins) = plugins {
        for (policy, why) in
            choice.refused.iter().filter(|(name, _)| name != genie_planner::BUILT_IN)
        {
            plugins.strike(policy, &format!("its plan is illegal: {why}"));
        }
    }
    let name = |device: u32| {
        let device = cluster.devices.get(device as usize);
        device.map_or_else(|| "no device".to_owned(), |device| device.name.clone())
    };
    let regions = choice.plan.regions.iter().map(|region| RegionTold {
        device: name(region.device),
        ops: region.nodes.iter().filter(|node| graph.is_op(genie_plugin::NodeId(**node))).count(),
        pipeline: region.pipeline,
    });
    let steady = choice.predicted.as_ref().map(|forecast| &forecast.steady);
    let told = PlanTold {
        policy: choice.policy.clone(),
        why: choice.plan.why.clone(),
        regions: regions.collect(),
        directives: directives(graph, &choice.plan, name),
        predicted_us: steady.map_or(0.0, |predicted| predicted.latency_us),
        predicted_bytes: steady.map_or(0, |predicted| predicted.traffic.total()),
        refused: choice.refused.iter().map(|(who, why)| (who.clone(), why.to_string())).collect(),
    };
    (told, remarks)
}

/// Directives of one kind, device and reason together.
fn directives(graph: &Graph, plan: &Plan, name: impl Fn(u32) -> String) -> Vec<DirectiveTold> {
    let mut sums: BTreeMap<(&str, u32, &str), (usize, u64)> = BTreeMap::new();
    for directive in &plan.directives {
        let key = (directive.kind.as_str(), directive.device, directive.why.as_str());
        let (count, bytes) = sums.entry(key).or_default();
        *count += 1;
        *bytes += graph.storage_bytes(StorageId(directive.storage));
    }
    sums.into_iter()
        .map(|((kind, device, why), (storages, bytes))| DirectiveTold {
            kind: kind.to_owned(),
            storages,
            bytes,
            device: name(device),
            why: why.to_owned(),
        })
        .collect()
}

/// The one node that executes: what the program still holds is there already.
pub fn cluster(graph: &Graph, devices: &[Device]) -> Cluster {
    let told = devices.first();
    let is_gpu = told.is_some_and(|device| device.kind == "cuda");
    let memory_bytes = told.map_or(MEMORY_BYTES_DEFAULT, |device| device.memory_bytes);
    // What the program holds takes memory already.
    let alive = graph.storages().filter(|storage| graph.is_alive(*storage));
    let resident: Vec<(u32, u32)> = alive.map(|storage| (storage.0, 0)).collect();
    let held: u64 = resident.iter().map(|(at, _)| graph.storage_bytes(StorageId(*at))).sum();
    let device = genie_plugin::Device {
        name: told.map_or_else(|| "node 0".to_owned(), |device| device.name.clone()),
        node: "node 0".to_owned(),
        memory_bytes,
        memory_free_bytes: memory_bytes.saturating_sub(held),
        flops_per_s: if is_gpu { GPU_FLOPS_PER_S } else { CPU_FLOPS_PER_S },
        memory_bytes_per_s: if is_gpu { GPU_MEMORY_BYTES_PER_S } else { CPU_MEMORY_BYTES_PER_S },
    };
    let link = Link { bytes_per_s: LOCAL_BYTES_PER_S, rtt_us: LOCAL_RTT_US, ..Link::default() };
    let mut cluster = one_device(device, link);
    cluster.resident = resident;
    cluster
}
