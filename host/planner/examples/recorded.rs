//! Policies on recorded graphs: `cargo run --release -p genie-planner --example recorded -- DIR`.
//!
//! Each graph is planned for simulated clusters of 1, 2, 4 and 8 devices, with room and with too
//! little; every plan must be legal. Plans that miss their own goal by more than the built-in plan
//! are listed.

use std::path::Path;

use genie_planner::cluster::{full_mesh, gpu, network};
use genie_planner::{Mode, Predicted, built_in, check, simulate};
use genie_plugin::recorded::Recorded;
use genie_plugin::{Annotations, Cluster, Device, Plugin, Policy};
use genie_plugin_policies::Placer;

const GOALS: [&str; 3] = ["latency", "traffic", "balanced"];

#[derive(Default)]
struct Sums {
    plans: usize,
    spread: usize,
    refused_by_itself: usize,
    illegal: usize,
    worse: usize,
    /// Per goal: plans compared with blind execution, logarithms of the ratios of time and bytes.
    blind: [(usize, f64, f64); 3],
}

fn main() {
    let dir = std::env::args().nth(1).expect("name a directory of recorded graphs");
    let mut files: Vec<_> = std::fs::read_dir(Path::new(&dir))
        .expect("the directory can be read")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    files.sort();
    let mut sums = Sums::default();
    for file in &files {
        let Ok(graph) = Recorded::read(file) else { continue };
        let graph = graph.into_graph().expect("it was checked");
        let notes = Annotations::new();
        let all: u64 = graph.storages().map(|storage| graph.storage_bytes(storage)).sum();
        for count in [1usize, 2, 4, 8] {
            for free in [1 << 40, all / 2, all / count as u64] {
                let devices: Vec<Device> = (0..count)
                    .map(|index| Device { memory_free_bytes: free, ..gpu(&format!("gpu{index}")) })
                    .collect();
                let cluster = full_mesh(devices, network(100, 5), network(10, 100));
                try_all(&file.display().to_string(), &graph, &notes, &cluster, &mut sums);
            }
        }
    }
    let Sums { plans, spread, refused_by_itself, illegal, worse, blind } = sums;
    println!(
        "{} graphs: {plans} plans, {spread} over several devices, {refused_by_itself} without room; \
         {illegal} illegal, {worse} worse than the built-in plan at their own goal",
        files.len()
    );
    for (goal, (count, time, moved)) in GOALS.into_iter().zip(blind) {
        let mean = |sum: f64| (sum / count.max(1) as f64).exp();
        println!(
            "{goal}: {:.1} times faster than blind and {:.0} times fewer bytes, geometric mean of {count}",
            mean(time),
            mean(moved)
        );
    }
    assert_eq!(illegal, 0, "a policy proposed an illegal plan");
}

fn try_all(
    file: &str,
    graph: &genie_plugin::Graph,
    notes: &Annotations,
    cluster: &Cluster,
    sums: &mut Sums,
) {
    let own = built_in(graph, cluster);
    let cost = |mode| {
        check(graph, cluster, &own).map(|legal| simulate(graph, notes, cluster, &legal, mode))
    };
    let (own, blind) = (cost(Mode::Steady), cost(Mode::Blind));
    for (number, goal) in GOALS.into_iter().enumerate() {
        let mut placer = Placer::default();
        placer.configure(&format!(r#"{{"goal":"{goal}"}}"#)).expect("a known goal");
        let plan = match placer.schedule(graph, notes, cluster) {
            Ok(plan) => plan,
            Err(_) => {
                sums.refused_by_itself += 1;
                if own.is_ok() {
                    println!("{file}: {goal} finds no room where the built-in plan does");
                }
                continue;
            }
        };
        sums.plans += 1;
        let legal = match check(graph, cluster, &plan) {
            Ok(legal) => legal,
            Err(why) => {
                println!("{file}: {goal}: {why} ({})", plan.why);
                sums.illegal += 1;
                continue;
            }
        };
        sums.spread +=
            usize::from(legal.device_of.iter().any(|device| *device != legal.device_of[0]));
        let predicted = simulate(graph, notes, cluster, &legal, Mode::Steady);
        let (Ok(own), Ok(blind)) = (&own, &blind) else { continue };
        let bytes = |predicted: &Predicted| predicted.traffic.total().max(1) as f64;
        let (count, time, moved) = &mut sums.blind[number];
        *count += 1;
        *time += (blind.latency_us.max(1.0) / predicted.latency_us.max(1.0)).ln();
        *moved += (bytes(blind) / bytes(&predicted)).ln();
        let worse = match goal {
            "latency" => predicted.latency_us > own.latency_us * 1.001,
            "traffic" => predicted.traffic.total() > own.traffic.total(),
            _ => false,
        };
        if worse {
            sums.worse += 1;
            println!(
                "{file}: {goal} on {} devices: {predicted}, built-in {own} ({})",
                cluster.devices.len(),
                plan.why
            );
        }
    }
}
