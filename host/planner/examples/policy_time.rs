//! How long the policies think, and how long the check takes of a plan that wants to be slow: `cargo run --release -p genie-planner --example policy_time`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use genie_planner::cluster::{full_mesh, gpu, network};
use genie_planner::{Mode, check, simulate};
use genie_plugin::{Directive, Plugin, Policy};
use genie_plugin_policies::Placer;

fn main() {
    let (graph, notes) =
        common::models::Decoder { layers: 800, width: 64, vocabulary: 100 }.decode(8);
    let cluster = full_mesh(
        (0..8).map(|index| gpu(&format!("gpu{index}"))).collect(),
        network(100, 20),
        network(10, 200),
    );
    let mut slow = genie_planner::built_in::round_robin(&graph, &cluster);
    let directive = |number: u32| Directive {
        kind: "recompute".to_owned(),
        storage: number * 7 % graph.storages().len() as u32,
        device: number % 8,
        why: String::new(),
    };
    let made = |wish: &Directive| {
        let values = graph.values_of(genie_plugin::StorageId(wish.storage));
        values.len() == 1 && graph.is_op(graph.producer(values[0]))
    };
    slow.directives = (0..60_000).map(directive).filter(made).collect();
    let start = Instant::now();
    let outcome = check(&graph, &cluster, &slow);
    println!(
        "{} regions, {} directives: checked in {:?}",
        slow.regions.len(),
        slow.directives.len(),
        start.elapsed()
    );
    match outcome {
        Err(why) => println!("  {why}"),
        Ok(legal) => {
            let start = Instant::now();
            simulate(&graph, &notes, &cluster, &legal, Mode::Blind);
            println!("  simulated in {:?}", start.elapsed());
        }
    }
    for layers in [16usize, 64, 96, 800] {
        let model = common::models::Decoder { layers, width: 1024, vocabulary: 32_000 };
        let (graph, notes) = model.decode(1024);
        for count in [1, 2, 4, 8] {
            let devices = (0..count).map(|index| gpu(&format!("gpu{index}"))).collect();
            let cluster = full_mesh(devices, network(100, 20), network(10, 200));
            let mut placer = Placer::default();
            placer.configure(r#"{"goal":"balanced"}"#).unwrap();
            let start = Instant::now();
            let plan = placer.schedule(&graph, &notes, &cluster).unwrap();
            let thought = start.elapsed();
            let start = Instant::now();
            let legal = check(&graph, &cluster, &plan).unwrap();
            let checked = start.elapsed();
            let start = Instant::now();
            simulate(&graph, &notes, &cluster, &legal, Mode::Steady);
            let simulated = start.elapsed();
            println!(
                "{:6} nodes, {count} devices: policy {thought:?}, check {checked:?}, simulation {simulated:?}",
                graph.len()
            );
        }
    }
}
