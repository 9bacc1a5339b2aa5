//! A policy that puts everything on the first device, or does what its configuration says.

use genie_plugin::prelude::*;
use genie_plugin::{Directive, Region};

#[derive(Default)]
struct Hostile {
    deed: String,
}

impl Plugin for Hostile {
    fn info() -> Info {
        Info { name: "policy".into(), version: "1".into(), ..Info::default() }
    }

    fn configure(&mut self, json: &str) -> Result<(), String> {
        let config: serde_json::Value =
            serde_json::from_str(json).map_err(|error| error.to_string())?;
        self.deed = config["do"].as_str().unwrap_or_default().to_owned();
        Ok(())
    }
}

impl Policy for Hostile {
    fn schedule(&self, graph: &Graph, _: &Annotations, now: &Cluster) -> Result<Plan, String> {
        let nodes: Vec<u32> = graph.nodes().map(|node| node.0).collect();
        let mut plan = Plan {
            regions: vec![Region { nodes, device: 0, pipeline: 0 }],
            why: "all on the first".into(),
            ..Plan::default()
        };
        match self.deed.as_str() {
            "unknown-device" => plan.regions[0].device = now.devices.len() as u32,
            "missing-node" => {
                plan.regions[0].nodes.pop();
            }
            "cycle" => {
                // Two regions that wait for each other: every second node each.
                let half = |parity: u32| -> Vec<u32> {
                    graph.nodes().map(|node| node.0).filter(|node| node % 2 == parity).collect()
                };
                let region = |nodes| Region { nodes, device: 0, pipeline: 0 };
                plan.regions = vec![region(half(0)), region(half(1))];
            }
            "pin" => plan.directives.push(Directive { kind: "pin".into(), ..Default::default() }),
            "loop" => loop {
                std::hint::black_box(());
            },
            _ => {}
        }
        Ok(plan)
    }
}

genie_plugin::policy!(Hostile);
