//! Plugins on random graphs: they may refuse one, but not panic, and not speak of what is not
//! there.

use std::collections::BTreeSet;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::{configured, random_graphs, simulated_cluster};
use crate::{Annotations, Cluster, Edit, Graph, Plan, Policy, Recognizer, Rewriter};

/// Runs a recognizer on so many random graphs, the same ones each time.
///
/// # Panics
/// With the smallest graph found for which it panics or its notes are out of range.
pub fn fuzz_recognizer<P: Recognizer>(cases: u32) {
    on_random_graphs(cases, |graph| match configured::<P>("{}").recognize(graph) {
        Ok(notes) => in_range(graph, &notes),
        Err(_refused) => Ok(()),
    });
}

/// Runs a policy on so many random graphs over clusters of 1, 2, 4 and 8 devices.
///
/// # Panics
/// With the smallest graph found for which it panics or its plan cannot be carried out.
pub fn fuzz_policy<P: Policy>(cases: u32) {
    on_random_graphs(cases, |graph| {
        [1, 2, 4, 8].map(simulated_cluster).iter().try_for_each(|cluster| {
            let plugin = configured::<P>("{}");
            match plugin.schedule(graph, &Annotations::new(), cluster) {
                Ok(plan) => plan_in_range(graph, cluster, &plan),
                Err(_refused) => Ok(()),
            }
        })
    });
}

/// Runs a rewriter on so many random graphs.
///
/// # Panics
/// With the smallest graph found for which it panics or its edits are out of range.
pub fn fuzz_rewriter<P: Rewriter>(cases: u32) {
    on_random_graphs(cases, |graph| {
        match configured::<P>("{}").rewrite(graph, &Annotations::new()) {
            Ok(edits) => rewrite_in_range(graph, &edits),
            Err(_refused) => Ok(()),
        }
    });
}

fn on_random_graphs(cases: u32, check: impl Fn(&Graph) -> Result<(), String>) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    // The graph itself is not printed: its columns tell a person little.
    let graphs = random_graphs().prop_map(|columns| Shown(Graph::new(columns)));
    let outcome = runner.run(&graphs, |Shown(graph)| {
        let graph = graph.map_err(|error| TestCaseError::fail(error.to_string()))?;
        check(&graph).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// A graph that shows itself as a list of its operators.
struct Shown(Result<Graph, crate::MalformedColumns>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ok(graph) = &self.0 else { return f.write_str("malformed columns") };
        for node in graph.nodes() {
            let inputs: Vec<u32> = graph.predecessors(node).map(|before| before.0).collect();
            let sizes: Vec<&[i64]> = graph.outputs(node).map(|tensor| tensor.sizes).collect();
            writeln!(f, "#{} {}{inputs:?} -> {sizes:?}", node.0, graph.op(node))?;
        }
        Ok(())
    }
}

/// Whether notes name only nodes and storages that exist, with confidences from 0 to 1.
pub fn in_range(graph: &Graph, notes: &Annotations) -> Result<(), String> {
    let confidences = notes
        .workload
        .iter()
        .map(|claim| (&claim.label, claim.confidence))
        .chain(notes.matches.iter().map(|found| (&found.pattern, found.confidence)))
        .chain(notes.residency.iter().map(|claim| (&claim.residency, claim.confidence)));
    for (what, confidence) in confidences {
        if !(0.0..=1.0).contains(&confidence) {
            return Err(format!("`{what}` has the confidence {confidence}; give 0 to 1"));
        }
    }
    for found in &notes.matches {
        if let Some(node) = found.nodes.iter().find(|node| **node as usize >= graph.len()) {
            let (pattern, nodes) = (&found.pattern, graph.len());
            return Err(format!("`{pattern}` names node {node}, the graph has {nodes}"));
        }
    }
    let storages = graph.storages().len();
    match notes.residency.iter().find(|claim| claim.storage as usize >= storages) {
        None => Ok(()),
        Some(claim) => Err(format!(
            "`{}` is said of storage {}, the graph has {storages}",
            claim.residency, claim.storage
        )),
    }
}

/// Whether a plan names each node once, known devices and storages, and whether its regions can
/// run one after the other. The host checks memory and shared storages besides.
pub fn plan_in_range(graph: &Graph, cluster: &Cluster, plan: &Plan) -> Result<(), String> {
    let devices = cluster.devices.len() as u32;
    let mut region_of = vec![None; graph.len()];
    for (index, region) in plan.regions.iter().enumerate() {
        if region.device >= devices {
            return Err(format!("region {index} is on device {}, of {devices}", region.device));
        }
        for node in &region.nodes {
            match region_of.get_mut(*node as usize) {
                None => {
                    return Err(format!("region {index} names node {node}, which is not there"));
                }
                Some(Some(other)) => {
                    return Err(format!("node {node} is in the regions {other} and {index}"));
                }
                Some(free) => *free = Some(index),
            }
        }
    }
    if let Some(node) = region_of.iter().position(Option::is_none) {
        return Err(format!(
            "node {node} ({}) is in no region",
            graph.op(crate::NodeId(node as u32))
        ));
    }
    let storages = graph.storages().len();
    for directive in &plan.directives {
        if directive.storage as usize >= storages || directive.device >= devices {
            return Err(format!("{directive:?} names a storage or device that is not there"));
        }
    }
    if let Some(value) =
        plan.transfer_order.iter().find(|value| **value as usize >= graph.values().len())
    {
        return Err(format!("the transfer order names value {value}, which is not there"));
    }
    let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); plan.regions.len()];
    for node in graph.nodes() {
        let Some(region) = region_of[node.0 as usize] else { continue };
        let before = graph.predecessors(node).filter_map(|before| region_of[before.0 as usize]);
        needs[region].extend(before.filter(|before| *before != region));
    }
    acyclic(&needs)
}

fn acyclic(needs: &[BTreeSet<usize>]) -> Result<(), String> {
    let mut missing: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    let mut ready: Vec<usize> = (0..needs.len()).filter(|region| missing[*region] == 0).collect();
    let mut gives: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    for (region, before) in needs.iter().enumerate() {
        before.iter().for_each(|before| gives[*before].push(region));
    }
    while let Some(region) = ready.pop() {
        for after in &gives[region] {
            missing[*after] -= 1;
            if missing[*after] == 0 {
                ready.push(*after);
            }
        }
    }
    match missing.iter().position(|missing| *missing > 0) {
        None => Ok(()),
        Some(region) => Err(format!("region {region} waits for one that waits for it")),
    }
}

/// Whether edits name only nodes that exist.
pub fn rewrite_in_range(graph: &Graph, edits: &[Edit]) -> Result<(), String> {
    for edit in edits {
        let named = match *edit {
            Edit::DropDead { node } => [node, node],
            Edit::MergeCommon { kept, dropped } => [kept, dropped],
            Edit::Recompute { node, consumer } => [node, consumer],
            Edit::MoveBefore { node, before } => [node, before],
        };
        if let Some(node) = named.iter().find(|node| **node as usize >= graph.len()) {
            return Err(format!("{edit:?} names node {node}, the graph has {}", graph.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Region;
    use crate::{Info, NodeId, Plugin, StorageId};

    #[derive(Default)]
    struct Wrong;

    impl Plugin for Wrong {
        fn info() -> Info {
            Info::default()
        }
    }

    impl Recognizer for Wrong {
        fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
            let mut notes = Annotations::new();
            let products = graph.nodes().filter(|node| graph.op_name(*node) == "mm");
            notes.matched("next", "", "", 1.0, products.map(|node| NodeId(node.0 + 1)));
            Ok(notes)
        }
    }

    impl Policy for Wrong {
        fn schedule(&self, graph: &Graph, _: &Annotations, _: &Cluster) -> Result<Plan, String> {
            let nodes = graph.nodes().map(|node| node.0).collect();
            let regions = vec![Region { nodes, device: 0, pipeline: 0 }];
            Ok(Plan { regions, ..Plan::default() })
        }
    }

    #[test]
    fn a_mistake_is_found_and_shrunk() {
        let found = std::panic::catch_unwind(|| fuzz_recognizer::<Wrong>(400)).unwrap_err();
        let message = found.downcast_ref::<String>().unwrap();
        assert!(message.contains("`next` names node 1, the graph has 1"), "{message}");
        fuzz_policy::<Wrong>(50);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let mut g = crate::builder::GraphBuilder::new();
        let x = g.input(&[1]);
        let y = g.op("aten::relu", &[x], &[1]);
        g.op("aten::neg", &[y], &[1]);
        let graph = g.build();
        let cluster = simulated_cluster(2);
        let region = |nodes: &[u32], device| Region { nodes: nodes.to_vec(), device, pipeline: 0 };
        for (regions, expect) in [
            (vec![region(&[0, 1, 2], 0)], ""),
            (vec![region(&[0, 1], 0), region(&[2], 1)], ""),
            (vec![region(&[0, 2], 0), region(&[1], 1)], "waits for one"),
            (vec![region(&[0, 1], 0)], "node 2 (aten::neg) is in no region"),
            (vec![region(&[0, 1, 2], 2)], "on device 2, of 2"),
            (vec![region(&[0, 1, 2, 2], 0)], "node 2 is in the regions 0 and 0"),
            (vec![region(&[0, 1, 2, 3], 0)], "names node 3"),
        ] {
            let plan = Plan { regions, ..Plan::default() };
            match plan_in_range(&graph, &cluster, &plan) {
                Ok(()) => assert_eq!(expect, ""),
                Err(error) => assert!(!expect.is_empty() && error.contains(expect), "{error}"),
            }
        }
        let mut notes = Annotations::new();
        notes.residency(StorageId(3), "weight", 1.0);
        assert!(in_range(&graph, &notes).unwrap_err().contains("storage 3"));
        let mut notes = Annotations::new();
        notes.workload("llm", f32::NAN);
        assert!(in_range(&graph, &notes).is_err());
        let edit = Edit::MoveBefore { node: 1, before: 9 };
        assert!(rewrite_in_range(&graph, &[edit]).is_err());
    }
}
