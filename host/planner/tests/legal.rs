//! The check accepts the plans that can run, and no other.

mod common;

use common::*;
use genie_planner::built_in::{by_segment, round_robin};
use genie_planner::{BUILT_IN, IllegalPlan, Mode, built_in, check, choose, simulate};
use genie_plugin::{Directive, Graph, Plan, Region, StorageId};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn accepted_plans_are_those_that_run(
        steps in steps(40), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 48)
    ) {
        let graph = graph(&steps);
        let cluster = roomy(cluster);
        let plan = plan(&graph, &cluster, &seeds);
        let unreachable = |why: &IllegalPlan| matches!(why, IllegalPlan::Unreachable { .. });
        match check(&graph, &cluster, &plan) {
            Ok(legal) => {
                prop_assert!(runs(&graph, &plan));
                for mode in [Mode::First, Mode::Steady, Mode::Blind] {
                    let one = simulate(&graph, &notes(), &cluster, &legal, mode);
                    let again = simulate(&graph, &notes(), &cluster, &legal, mode);
                    prop_assert_eq!(&one, &again);
                    for busy in &one.busy_us {
                        prop_assert!(one.latency_us >= *busy);
                    }
                }
            }
            Err(why) => prop_assert!(unreachable(&why) || !runs(&graph, &plan), "{}", why),
        }
    }

    #[test]
    fn memory_is_enough_exactly_at_the_peak(
        steps in steps(40), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 48)
    ) {
        let graph = graph(&steps);
        let mut cluster = with_residents(&graph, roomy(cluster), &seeds);
        let plan = round_robin(&graph, &cluster);
        let peaks = check(&graph, &cluster, &plan).unwrap().peak_bytes;
        for (device, peak) in cluster.devices.iter_mut().zip(&peaks) {
            device.memory_free_bytes = *peak;
        }
        prop_assert_eq!(check(&graph, &cluster, &plan).map(|legal| legal.peak_bytes), Ok(peaks.clone()));
        if let Some(device) = peaks.iter().position(|peak| *peak > 0) {
            cluster.devices[device].memory_free_bytes -= 1;
            let refused = check(&graph, &cluster, &plan).unwrap_err();
            prop_assert!(matches!(refused, IllegalPlan::OverMemory { .. }), "{}", refused);
        }
        // No device can do with less than what one of its operators touches at once.
        for region in &plan.regions {
            for node in &region.nodes {
                let node = genie_plugin::NodeId(*node);
                let mut touched: Vec<StorageId> =
                    graph.outputs(node).map(|output| graph.storage(output.value)).collect();
                touched.sort();
                touched.dedup();
                let there = |storage: &StorageId| cluster.resident.contains(&(storage.0, region.device));
                let bytes: u64 = touched
                    .iter()
                    .filter(|storage| graph.is_op(node) && !there(storage))
                    .map(|storage| graph.storage_bytes(*storage))
                    .sum();
                prop_assert!(peaks[region.device as usize] >= bytes);
            }
        }
    }

    #[test]
    fn the_built_in_plan_is_legal_where_anything_fits(
        steps in steps(60), cluster in cluster(), seeds in prop::collection::vec(any::<u16>(), 64)
    ) {
        let graph = graph(&steps);
        let cluster = with_residents(&graph, cluster, &seeds);
        let own = built_in(&graph, &cluster);
        let all_on = |device: u32| Plan { regions: by_segment(&graph, |_| device), ..Plan::default() };
        let fits = (0..cluster.devices.len() as u32)
            .any(|device| check(&graph, &cluster, &all_on(device)).is_ok());
        prop_assert_eq!(check(&graph, &cluster, &own).is_ok(), fits);
        let cluster = roomy(cluster);
        prop_assert_eq!(check(&graph, &cluster, &built_in(&graph, &cluster)).err(), None);
        prop_assert_eq!(check(&graph, &cluster, &round_robin(&graph, &cluster)).err(), None);
    }

    #[test]
    fn directives_never_break_the_simulation(
        steps in steps(40), cluster in cluster(),
        seeds in prop::collection::vec(any::<u16>(), 48),
        wishes in prop::collection::vec((0usize..7, any::<u16>(), 0u32..8), 0..8)
    ) {
        let graph = graph(&steps);
        let cluster = with_residents(&graph, roomy(cluster), &seeds);
        let kinds = ["pin", "keep", "spill", "prefetch", "evict", "replicate", "recompute"];
        let storages = graph.storages().len() as u32;
        let mut plan = round_robin(&graph, &cluster);
        for (kind, storage, device) in wishes {
            plan.directives.push(Directive {
                kind: kinds[kind].into(),
                storage: u32::from(storage) % storages,
                device: device % cluster.devices.len() as u32,
                why: String::new(),
            });
            match check(&graph, &cluster, &plan) {
                Ok(legal) => for mode in [Mode::First, Mode::Steady, Mode::Blind] {
                    simulate(&graph, &notes(), &cluster, &legal, mode);
                },
                Err(_) => _ = plan.directives.pop(),
            }
        }
    }

    #[test]
    fn spoiled_plans_are_refused(
        steps in steps(40), cluster in cluster(), seed in any::<u16>()
    ) {
        let graph = graph(&steps);
        let cluster = roomy(cluster);
        let good = round_robin(&graph, &cluster);
        prop_assert_eq!(check(&graph, &cluster, &good).err(), None);
        let region = usize::from(seed) % good.regions.len();
        let spoil = |change: &dyn Fn(&mut Plan)| {
            let mut plan = good.clone();
            change(&mut plan);
            check(&graph, &cluster, &plan).unwrap_err()
        };
        let missing = spoil(&|plan| _ = plan.regions[region].nodes.pop());
        prop_assert!(matches!(missing, IllegalPlan::MissingNode { .. }), "{}", missing);
        let unknown = spoil(&|plan| plan.regions[region].device = 99);
        prop_assert!(matches!(unknown, IllegalPlan::UnknownDevice { .. }), "{}", unknown);
        let node = spoil(&|plan| plan.regions[region].nodes.push(u32::MAX));
        prop_assert!(matches!(node, IllegalPlan::UnknownNode { .. }), "{}", node);
        let twice = spoil(&|plan| {
            let node = plan.regions[region].nodes[0];
            plan.regions[0].nodes.push(node);
        });
        prop_assert!(matches!(twice, IllegalPlan::DuplicateNode { .. }), "{}", twice);
        let huge = spoil(&|plan| plan.transfer_order = vec![0; 1_000_000]);
        prop_assert!(matches!(huge, IllegalPlan::TooLarge { .. }), "{}", huge);
        let order = spoil(&|plan| plan.transfer_order = vec![u32::MAX]);
        prop_assert!(matches!(order, IllegalPlan::UnknownValue { .. }), "{}", order);
        if graph.values().len() > 1 {
            let order = spoil(&|plan| plan.transfer_order = vec![0, 0]);
            prop_assert!(matches!(order, IllegalPlan::DuplicateValue { .. }), "{}", order);
        }
    }
}

/// `relu(x)` and what follows, so that nodes are: 0 x, 1 relu, 2 add_ in place, 3 sum, 4 read.
fn chain() -> Graph {
    let mut g = genie_plugin::builder::GraphBuilder::new();
    let x = g.input(&[64, 64]);
    let y = g.op("aten::relu", &[x], &[64, 64]);
    let y = g.in_place("aten::add_.Tensor", y, &[x]);
    let z = g.op("aten::sum", &[y], &[1]);
    g.read(z);
    g.build()
}

fn two_devices() -> genie_plugin::Cluster {
    use genie_planner::cluster::{full_mesh, gpu, network};
    full_mesh(vec![gpu("a"), gpu("b")], network(100, 10), network(10, 100))
}

fn placed(regions: &[(&[u32], u32)]) -> Plan {
    let region = |(nodes, device): &(&[u32], u32)| Region {
        nodes: nodes.to_vec(),
        device: *device,
        pipeline: 0,
    };
    Plan { regions: regions.iter().map(region).collect(), ..Plan::default() }
}

fn refusal(graph: &Graph, plan: &Plan) -> String {
    check(graph, &two_devices(), plan).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_circle_between_regions_is_told() {
    let message = refusal(&chain(), &placed(&[(&[0, 2, 4], 0), (&[1, 3], 1)]));
    assert!(message.contains("regions [0, 1] wait for each other"), "{message}");
    assert!(message.contains("aten::"), "{message}");
}

#[test]
fn a_reader_of_the_old_content_makes_a_circle_too() {
    // Node 2 reads y before node 3 overwrites it; node 3 shares a region with what node 2 needs.
    let mut g = genie_plugin::builder::GraphBuilder::new();
    let x = g.input(&[8]);
    let y = g.op("aten::relu", &[x], &[8]);
    let old = g.op("aten::neg", &[y], &[8]);
    g.in_place("aten::add_.Tensor", y, &[x]);
    g.read(old);
    let graph = g.build();
    let message = refusal(&graph, &placed(&[(&[0, 1, 3], 0), (&[2, 4], 1)]));
    assert!(message.contains("wait for each other"), "{message}");
    let cluster = two_devices();
    assert!(
        check(&graph, &cluster, &placed(&[(&[0, 1], 0), (&[2], 1), (&[3], 0), (&[4], 1)])).is_ok()
    );
}

#[test]
fn a_storage_written_on_two_devices_is_refused() {
    let mut g = genie_plugin::builder::GraphBuilder::new();
    let x = g.input(&[8]);
    let y = g.op("aten::relu", &[x], &[8]);
    let y = g.in_place("aten::add_.Tensor", y, &[x]);
    let y = g.in_place("aten::mul_.Tensor", y, &[x]);
    g.read(y);
    let graph = g.build();
    let split = placed(&[(&[0, 1, 2], 0), (&[3, 4], 1)]);
    assert!(
        refusal(&graph, &split).contains("written on device 0 (node 2) and on device 1 (node 3)")
    );
    // The content moves once, before the first write in place: nothing is stale.
    let cluster = two_devices();
    assert!(check(&graph, &cluster, &placed(&[(&[0, 1], 0), (&[2, 3, 4], 1)])).is_ok());
}

#[test]
fn the_generator_stays_on_one_device() {
    let mut g = genie_plugin::builder::GraphBuilder::new();
    let x = g.input(&[8]);
    let a = g.op("aten::bernoulli", &[x], &[8]);
    let b = g.op("aten::bernoulli", &[a], &[8]);
    g.read(b);
    let graph = g.build();
    let message = refusal(&graph, &placed(&[(&[0, 1], 0), (&[2, 3], 1)]));
    assert!(message.contains("random generator"), "{message}");
}

#[test]
fn stages_of_a_pipeline_stand_in_order() {
    let mut plan = placed(&[(&[3, 4], 1), (&[0, 1, 2], 0)]);
    assert!(check(&chain(), &two_devices(), &plan).is_ok());
    plan.regions.iter_mut().for_each(|region| region.pipeline = 1);
    assert!(refusal(&chain(), &plan).contains("stage 1 of pipeline 1"));
}

#[test]
fn directives_are_checked() {
    let all = placed(&[(&[0, 1, 2, 3, 4], 0)]);
    let wish = |kind: &str, storage, device| {
        let why = String::new();
        let directive = Directive { kind: kind.into(), storage, device, why };
        Plan { directives: vec![directive], ..all.clone() }
    };
    let cases = [
        (wish("hug", 0, 0), "`hug` is none of"),
        (wish("pin", 99, 0), "names storage 99"),
        (wish("pin", 0, 9), "names device 9"),
        (wish("replicate", 1, 1), "wants a second copy of storage 1"),
        (wish("recompute", 1, 1), "written more than once"),
        (wish("recompute", 0, 1), "no operator made it"),
    ];
    for (plan, words) in cases {
        let message = refusal(&chain(), &plan);
        assert!(message.contains(words), "{message}");
    }
    let mut both = wish("pin", 0, 0);
    both.directives.extend(wish("evict", 0, 0).directives);
    assert!(refusal(&chain(), &both).contains("opposite"));
    assert!(check(&chain(), &two_devices(), &wish("keep", 1, 0)).is_ok());
}

#[test]
fn the_first_legal_proposal_is_taken_and_refusals_are_told() {
    let (graph, cluster) = (chain(), two_devices());
    let bad = placed(&[(&[0, 1], 0)]);
    let good = placed(&[(&[0, 1, 2, 3, 4], 1)]);
    let proposals = vec![("bad".to_owned(), bad.clone()), ("good".to_owned(), good.clone())];
    let choice = choose(&graph, &notes(), &cluster, proposals);
    assert_eq!((choice.policy.as_str(), &choice.plan), ("good", &good));
    assert!(
        matches!(choice.refused[..], [(ref name, IllegalPlan::MissingNode { node: 2, .. })] if name == "bad")
    );
    let names: Vec<&str> = choice.compared.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["good", BUILT_IN]);

    let choice = choose(&graph, &notes(), &cluster, vec![("bad".to_owned(), bad)]);
    assert_eq!(choice.policy, BUILT_IN);
    assert!(choice.predicted.is_some());

    let choice = choose(&graph, &notes(), &genie_plugin::Cluster::default(), vec![]);
    assert_eq!((choice.policy.as_str(), choice.predicted), (BUILT_IN, None));
    assert!(matches!(choice.refused[0].1, IllegalPlan::UnknownDevice { .. }));
}

#[test]
fn a_value_is_recomputed_instead_of_sent() {
    let mut g = genie_plugin::builder::GraphBuilder::new();
    let x = g.weight(&[1]);
    let mask = g.op("aten::expand_copy", &[x], &[4096, 4096]);
    let a = g.op("aten::relu", &[mask], &[4096, 4096]);
    let b = g.op("aten::neg", &[mask], &[4096, 4096]);
    let (a, b) = (g.op("aten::sum", &[a], &[1]), g.op("aten::sum", &[b], &[1]));
    let mask_storage = g.storage_of(mask).0;
    g.read(a);
    g.read(b);
    let graph = g.build();
    let cluster = two_devices();
    let mut plan = placed(&[(&[0, 1, 2, 4, 6], 0), (&[3, 5, 7], 1)]);
    let cost = |plan: &Plan| {
        let legal = check(&graph, &cluster, plan).unwrap();
        simulate(&graph, &notes(), &cluster, &legal, Mode::Steady)
    };
    let sent = cost(&plan);
    let why = String::new();
    plan.directives.push(Directive {
        kind: "recompute".into(),
        storage: mask_storage,
        device: 1,
        why,
    });
    let again = cost(&plan);
    assert!(again.traffic.total() < sent.traffic.total() / 1000);
    assert!(again.latency_us < sent.latency_us);
    assert!(again.busy_us[1] > sent.busy_us[1]);
}
