//! Each policy against a scheduler that knows nothing, in predicted time and bytes, on models of
//! real size over simulated clusters. `cargo test -p genie-planner --test policies_pay --
//! --nocapture` prints the table.

mod common;

use common::models::{Decoder, convolutions, recommender, two_towers};
use genie_planner::built_in::round_robin;
use genie_planner::cluster::{full_mesh, gpu, memory_server, network};
use genie_planner::{Mode, Predicted, built_in, check, simulate};
use genie_plugin::{Annotations, Cluster, Device, Graph, Plan, Plugin, Policy};
use genie_plugin_policies::Placer;

struct Row {
    name: &'static str,
    plan: Plan,
    predicted: Predicted,
}

/// What each plan costs in the long run; baselines that are not legal (memory) are left out.
struct Table(Vec<Row>);

impl Table {
    fn of(case: &str, graph: &Graph, notes: &Annotations, cluster: &Cluster) -> Table {
        let mut rows = Vec::new();
        let mut add = |name, plan: Plan, mode| {
            let predicted = match check(graph, cluster, &plan) {
                Ok(legal) => simulate(graph, notes, cluster, &legal, mode),
                Err(why) => {
                    println!("{case:28} {name:19} {why}");
                    return false;
                }
            };
            let traffic = predicted.traffic;
            println!(
                "{case:28} {name:19} {:>12.0} us {:>12.0} us {:>14} bytes (weights {}, kv {})",
                predicted.latency_us,
                predicted.interval_us,
                traffic.total(),
                traffic.weights,
                traffic.kv
            );
            rows.push(Row { name, plan, predicted });
            true
        };
        add("blind", built_in(graph, cluster), Mode::Blind);
        add("blind round robin", round_robin(graph, cluster), Mode::Blind);
        add("round robin", round_robin(graph, cluster), Mode::Steady);
        add("built-in", built_in(graph, cluster), Mode::Steady);
        for (name, goal) in [
            ("minimize-latency", "latency"),
            ("minimize-traffic", "traffic"),
            ("balanced", "balanced"),
        ] {
            let mut placer = Placer::default();
            placer.configure(&format!(r#"{{"goal":"{goal}"}}"#)).unwrap();
            let plan = placer.schedule(graph, notes, cluster).unwrap();
            println!("{case:28} {}", plan.why);
            assert!(add(name, plan.clone(), Mode::Steady), "{case}: {name} is illegal");
            if goal == "balanced" {
                add("blind, same regions", plan, Mode::Blind);
            }
        }
        Table(rows)
    }

    fn get(&self, name: &str) -> Option<&Predicted> {
        self.0.iter().find(|row| row.name == name).map(|row| &row.predicted)
    }

    fn plan(&self, name: &str) -> &Plan {
        &self.0.iter().find(|row| row.name == name).unwrap().plan
    }

    /// What must hold in each case: against the blind ones, and among the policies.
    fn check(&self) {
        let [latency, traffic, balanced] = ["minimize-latency", "minimize-traffic", "balanced"]
            .map(|name| self.get(name).unwrap());
        for blind in ["blind", "blind round robin", "round robin", "blind, same regions"] {
            let Some(blind) = self.get(blind) else { continue };
            for policy in [latency, traffic, balanced] {
                assert!(policy.latency_us < blind.latency_us);
                assert!(policy.traffic.total() <= blind.traffic.total());
            }
        }
        assert!(latency.latency_us <= traffic.latency_us);
        assert!(traffic.traffic.total() <= latency.traffic.total());
        assert!(balanced.traffic.total() >= traffic.traffic.total());
        if let Some(own) = self.get("built-in") {
            assert!(latency.latency_us <= own.latency_us);
            assert!(traffic.traffic.total() <= own.traffic.total());
        }
    }
}

fn gpus(count: usize) -> Cluster {
    let devices: Vec<Device> = (0..count).map(|index| gpu(&format!("gpu{index}"))).collect();
    full_mesh(devices, network(100, 20), network(10, 200))
}

fn devices_used(plan: &Plan) -> usize {
    let mut devices: Vec<u32> = plan.regions.iter().map(|region| region.device).collect();
    devices.sort_unstable();
    devices.dedup();
    devices.len()
}

#[test]
fn decode_on_two_nodes_where_one_suffices() {
    let model = Decoder { layers: 16, width: 4096, vocabulary: 32_000 };
    let (graph, notes) = model.decode(1024);
    let table = Table::of("decode, fits one of 2", &graph, &notes, &gpus(2));
    table.check();
    let blind = table.get("blind").unwrap();
    for name in ["minimize-latency", "minimize-traffic", "balanced"] {
        let predicted = table.get(name).unwrap();
        // Neither weights nor cache move in a steady step; the blind one sends both each time.
        assert_eq!((predicted.traffic.weights, predicted.traffic.kv), (0, 0));
        assert!(blind.traffic.weights >= model.weight_bytes());
        assert!(table.plan(name).directives.iter().any(|wish| wish.kind == "keep"));
        assert!(table.plan(name).directives.iter().any(|wish| wish.kind == "pin"));
    }
}

#[test]
fn decode_of_a_model_too_large_for_one_node() {
    let model = Decoder { layers: 64, width: 4096, vocabulary: 32_000 };
    assert!(model.weight_bytes() > gpu("").memory_free_bytes);
    let (graph, notes) = model.decode(1024);
    let table = Table::of("decode, needs 2 of 2", &graph, &notes, &gpus(2));
    table.check();
    assert!(table.get("built-in").is_none());
    for name in ["minimize-latency", "minimize-traffic", "balanced"] {
        assert_eq!(devices_used(table.plan(name)), 2);
        // One hidden state crosses, not weights and not the cache.
        assert_eq!(table.get(name).unwrap().traffic.kv, 0);
        assert!(table.get(name).unwrap().traffic.activations < 1 << 20);
    }
}

#[test]
fn prefill_and_decode_on_devices_that_suit_them() {
    let model = Decoder { layers: 8, width: 4096, vocabulary: 32_000 };
    let (graph, notes) = model.generate(4096, 24);
    let mut cluster = gpus(2);
    cluster.devices[0].flops_per_s = 400_000_000_000_000;
    cluster.devices[0].memory_bytes_per_s = 500_000_000_000;
    cluster.devices[1].flops_per_s = 25_000_000_000_000;
    cluster.devices[1].memory_bytes_per_s = 3_000_000_000_000;
    let table = Table::of("prefill, then decode", &graph, &notes, &cluster);
    table.check();
    let plan = table.plan("minimize-latency");
    assert_eq!(devices_used(plan), 2);
    assert!(plan.directives.iter().any(|wish| wish.kind == "replicate"));
    let (split, own) = (table.get("minimize-latency").unwrap(), table.get("built-in").unwrap());
    assert!(split.latency_us < own.latency_us);
}

#[test]
fn two_modalities_side_by_side() {
    let (graph, notes) = two_towers();
    let table = Table::of("two towers, 2 GPUs", &graph, &notes, &gpus(2));
    table.check();
    let (split, own) = (table.get("minimize-latency").unwrap(), table.get("built-in").unwrap());
    assert_eq!(devices_used(table.plan("minimize-latency")), 2);
    assert!(split.latency_us < own.latency_us);

    // Without a word from recognizers the wiring shows the branches too.
    let unnamed = Table::of("the same, no annotations", &graph, &Annotations::new(), &gpus(2));
    assert!(unnamed.get("minimize-latency").unwrap().latency_us < own.latency_us);
}

#[test]
fn a_vision_pipeline_over_four() {
    let (graph, notes) = convolutions();
    let mut cluster = gpus(4);
    cluster.links.iter_mut().for_each(|link| {
        *link = genie_plugin::Link { from: link.from, to: link.to, ..network(100, 50) }
    });
    let table = Table::of("CNN, 4 GPUs", &graph, &notes, &cluster);
    table.check();
    let (pipeline, own) = (table.get("balanced").unwrap(), table.get("built-in").unwrap());
    assert!(pipeline.interval_us < own.interval_us);
    assert!(devices_used(table.plan("balanced")) > 2);
    assert!(table.plan("balanced").regions.iter().all(|region| region.pipeline > 0));
}

#[test]
fn a_table_larger_than_a_gpu() {
    let (graph, notes) = recommender();
    let devices = vec![gpu("gpu"), memory_server("ram")];
    let cluster = full_mesh(devices, network(100, 20), network(10, 200));
    let table = Table::of("recommender, GPU and RAM", &graph, &notes, &cluster);
    table.check();
    let (apart, own) = (table.get("minimize-latency").unwrap(), table.get("built-in").unwrap());
    assert_eq!(devices_used(table.plan("minimize-latency")), 2);
    assert!(apart.latency_us < own.latency_us);
    assert_eq!(apart.traffic.weights, 0);
}
