//! A recognizer and a policy as they were written for `genie:plugin@0.2.0`: the one claims what the
//! graph begins with, the other puts all of it on one device. Do not modernize it.

// What the generator writes cannot follow the workspace's lints.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

wit_bindgen::generate!({
    path: "../../../plugin-sdk/wit/v0.2",
    world: "plugin",
});

use exports::genie::plugin::{hints, metadata, policy, recognizer, rewrite};
use genie::plugin::log;
use genie::plugin::types::{Annotations, Cluster, Edit, Graph, Hint, Info, Plan, Sample};

struct Frozen;

impl metadata::Guest for Frozen {
    fn describe() -> Info {
        Info {
            name: "frozen".into(),
            version: "0.2.0".into(),
            summary: "claims a word and one device".into(),
            provides: vec!["whole".into()],
        }
    }

    fn configure(json: String) -> Result<(), String> {
        log::write(log::Level::Debug, &format!("configured with {json}"));
        Ok(())
    }
}

impl recognizer::Guest for Frozen {
    fn recognize(graph: Graph) -> Result<Annotations, String> {
        let nodes: Vec<u32> = (0..graph.op.len() as u32).collect();
        // Every column that the release had says something of each node or value.
        if graph.stage.len() != nodes.len()
            || graph.mark.len() != nodes.len()
            || graph.value_storage.len() != graph.value_producer.len()
        {
            return Err("columns are missing".into());
        }
        let words = ["", "other", "whole", "other.forward"];
        let mut symbol_ends = Vec::new();
        let mut blob = String::new();
        for word in words {
            blob.push_str(word);
            symbol_ends.push(blob.len() as u32);
        }
        Ok(Annotations {
            blob,
            symbol_ends,
            workload: vec![1],
            workload_confidence: vec![0.75],
            pattern: vec![2],
            phase: vec![3],
            modality: vec![0],
            confidence: vec![0.75],
            node_ends: vec![nodes.len() as u32],
            nodes,
            storage: vec![],
            residency: vec![],
            residency_confidence: vec![],
            attribute_key: vec![],
            attribute_value: vec![],
        })
    }
}

impl policy::Guest for Frozen {
    fn schedule(graph: Graph, _: Annotations, now: Cluster) -> Result<Plan, String> {
        if now.devices.is_empty() {
            return Err("no device".into());
        }
        Ok(Plan {
            region_ends: vec![graph.op.len() as u32],
            region_nodes: (0..graph.op.len() as u32).collect(),
            region_device: vec![0],
            region_pipeline: vec![0],
            directives: vec![],
            transfer_order: vec![],
            why: "all on the first device".into(),
        })
    }
}

impl rewrite::Guest for Frozen {
    fn rewrite(_: Graph, _: Annotations) -> Result<Vec<Edit>, String> {
        Err("this plugin is no rewriter".into())
    }
}

impl hints::Guest for Frozen {
    fn adapt(_: Cluster, _: Vec<Sample>, _: Vec<Hint>) -> Result<Vec<Hint>, String> {
        Err("this plugin gives no hints".into())
    }
}

export!(Frozen);
