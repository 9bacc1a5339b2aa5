//! The shipped policies never propose an illegal plan, on whatever graph and cluster.

mod common;

use common::*;
use genie_planner::built_in::by_segment;
use genie_planner::{Mode, check, simulate};
use genie_plugin::{Annotations, Cluster, Graph, NodeId, Plan, Plugin, Policy, StorageId};
use genie_plugin_policies::Placer;
use proptest::prelude::*;

const GOALS: [&str; 3] = ["latency", "traffic", "balanced"];

fn propose(
    goal: &str,
    graph: &Graph,
    notes: &Annotations,
    cluster: &Cluster,
) -> Result<Plan, String> {
    let mut placer = Placer::default();
    placer.configure(&format!(r#"{{"goal":"{goal}"}}"#)).unwrap();
    placer.schedule(graph, notes, cluster)
}

/// Claims that may be quite wrong.
fn claims(graph: &Graph, seeds: &[u16]) -> Annotations {
    let mut notes = Annotations::new();
    let phases = ["llm.prefill", "llm.decode", "", "vision.backbone"];
    let modalities = ["text", "image", "", "audio"];
    for (index, seed) in seeds.iter().enumerate().take(12) {
        let seed = usize::from(*seed);
        let nodes = graph
            .nodes()
            .filter(|node: &NodeId| (node.0 as usize + seed).is_multiple_of(2 + index));
        let confidence = (seed % 100) as f32 / 100.0;
        notes.matched("random", phases[seed % 4], modalities[(seed / 4) % 4], confidence, nodes);
        let residency = ["kv_cache", "embedding_table", "weight", "activation"][(seed / 16) % 4];
        notes.residency(StorageId((seed / 64) as u32), residency, confidence);
    }
    notes
}

fn never_illegal(
    graph: &Graph,
    cluster: &Cluster,
    notes: &Annotations,
) -> Result<(), TestCaseError> {
    let fits = (0..cluster.devices.len() as u32).any(|device| {
        let plan = Plan { regions: by_segment(graph, |_| device), ..Plan::default() };
        check(graph, cluster, &plan).is_ok()
    });
    for goal in GOALS {
        match propose(goal, graph, notes, cluster) {
            Err(why) => prop_assert!(!fits, "a device is large enough, yet: {}", why),
            Ok(plan) => match check(graph, cluster, &plan) {
                Ok(legal) => {
                    simulate(graph, notes, cluster, &legal, Mode::First);
                    simulate(graph, notes, cluster, &legal, Mode::Steady);
                }
                Err(why) => prop_assert!(false, "{}: {} ({})", goal, why, plan.why),
            },
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn plans_of_roomy_clusters_are_legal(
        steps in steps(60), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 64)
    ) {
        let graph = graph(&steps);
        let cluster = with_residents(&graph, roomy(cluster), &seeds);
        never_illegal(&graph, &cluster, &claims(&graph, &seeds))?;
    }

    #[test]
    fn plans_of_tight_clusters_are_legal(
        steps in steps(60), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 64)
    ) {
        let graph = graph(&steps);
        let cluster = with_residents(&graph, cluster, &seeds);
        never_illegal(&graph, &cluster, &claims(&graph, &seeds))?;
    }

    #[test]
    fn plans_of_very_tight_clusters_are_legal(
        steps in steps(60), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 64),
        divisor in 1u64..12
    ) {
        let graph = graph(&steps);
        let mut cluster = with_residents(&graph, cluster, &seeds);
        let all: u64 = graph.storages().map(|storage| graph.storage_bytes(storage)).sum();
        for device in &mut cluster.devices {
            device.memory_free_bytes = all / divisor;
        }
        never_illegal(&graph, &cluster, &claims(&graph, &seeds))?;
    }
}

#[test]
fn an_empty_graph_and_an_empty_cluster() {
    let graph = Graph::new(genie_plugin::Columns::default()).unwrap();
    let notes = Annotations::new();
    assert!(propose("latency", &graph, &notes, &Cluster::default()).is_err());
    let cluster = genie_planner::cluster::one_device(
        genie_planner::cluster::gpu("a"),
        genie_planner::cluster::network(10, 100),
    );
    let plan = propose("latency", &graph, &notes, &cluster).unwrap();
    assert!(check(&graph, &cluster, &plan).is_ok());
}

#[test]
fn policies_and_check_agree_on_random_operators() {
    for name in genie_plugin::operators::with(genie_plugin::Roles::RANDOM) {
        let mut g = genie_plugin::builder::GraphBuilder::new();
        let towers: Vec<_> = (0..2)
            .map(|_| {
                let x = g.input(&[1024, 1024]);
                let w = g.weight(&[1024, 1024]);
                let x = (0..8).fold(x, |x, _| g.op("aten::mm", &[x, w], &[1024, 1024]));
                let x = g.op(&format!("aten::{name}"), &[x], &[1024, 1024]);
                g.op("aten::sum", &[x], &[1])
            })
            .collect();
        let both = g.op("aten::add.Tensor", &towers, &[1]);
        g.read(both);
        let graph = g.build();
        let devices = ["a", "b"].map(genie_planner::cluster::gpu).to_vec();
        let link = genie_planner::cluster::network(400, 1);
        let cluster = genie_planner::cluster::full_mesh(devices, link, link);
        never_illegal(&graph, &cluster, &Annotations::new()).unwrap();
    }
}
