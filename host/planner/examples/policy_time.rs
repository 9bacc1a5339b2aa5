//! How long the policies think: `cargo run --release -p genie-planner --example policy_time`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use genie_planner::cluster::{full_mesh, gpu, network};
use genie_planner::{Mode, check, simulate};
use genie_plugin::{Plugin, Policy};
use genie_plugin_policies::Placer;

fn main() {
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
