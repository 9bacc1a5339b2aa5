//! A graph with its reading as JSON.

use genie_plugin::{Origin, Stage, Tensor};
use serde_json::{Value, json};

use super::facts::Facts;
use crate::components::{Component, HANDED_OVER};
use crate::merge::{Claim, Reading};

/// The format's number.
const ANALYZED_VERSION: u32 = 1;

/// Nodes in program order and storages, by their numbers in the graph.
pub fn value(facts: &Facts, models: &[(Component, Reading)]) -> Value {
    let (graph, reading) = (&facts.graph, facts.reading);
    let none = Claim::default();
    let nodes: Vec<Value> = graph
        .nodes()
        .map(|node| {
            let index = node.0 as usize;
            let phase = reading.phases.get(index).unwrap_or(&none);
            let modality = reading.modalities.get(index).unwrap_or(&none);
            json!({
                "op": graph.op(node),
                "module": graph.module(node),
                "class": graph.class(node),
                "phase": phase.word,
                "modality": modality.word,
                "confidence": phase.confidence,
                "by": phase.by,
                "stage": stage(graph.stage(node)),
                "segment": graph.segment(node),
                "flops": graph.flops(node),
                "bytes": graph.bytes(node),
                "inputs": graph.inputs(node).map(|tensor| seen(facts, &tensor)).collect::<Vec<_>>(),
                "outputs": graph.outputs(node).map(|tensor| seen(facts, &tensor)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let storages: Vec<Value> = graph
        .storages()
        .map(|storage| {
            let residency = reading.residencies.get(storage.0 as usize).unwrap_or(&none);
            json!({
                "bytes": graph.storage_bytes(storage),
                "origin": origin(graph.origin(storage)),
                "alive": graph.is_alive(storage),
                "residency": residency.word,
                "confidence": residency.confidence,
                "by": residency.by,
            })
        })
        .collect();
    let models: Vec<Value> = models
        .iter()
        .map(|(component, reading)| {
            let nodes = component.nodes.iter().filter(|node| **node != HANDED_OVER);
            json!({
                "model": component.model,
                "workload": claim(&reading.workload),
                "nodes": nodes.collect::<Vec<_>>(),
            })
        })
        .collect();
    let attributes: Vec<Value> = reading
        .attributes
        .iter()
        .map(|(key, value, by)| json!({ "key": key, "value": value, "by": by }))
        .collect();
    json!({
        "version": ANALYZED_VERSION,
        "workload": claim(&reading.workload),
        "workloads": reading.workloads.iter().map(claim).collect::<Vec<_>>(),
        "attributes": attributes,
        "models": models,
        "nodes": nodes,
        "storages": storages,
    })
}

fn claim(claim: &Claim) -> Value {
    json!({ "label": claim.word, "confidence": claim.confidence, "by": claim.by })
}

fn seen(facts: &Facts, tensor: &Tensor) -> Value {
    json!({
        "storage": facts.graph.storage(tensor.value).0,
        "from": facts.graph.producer(tensor.value).0,
        "shape": tensor.sizes,
        "dtype": tensor.dtype.0,
    })
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::None => "",
        Stage::Forward => "forward",
        Stage::Backward => "backward",
        Stage::Optimizer => "optimizer",
    }
}

fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Unknown => "",
        Origin::Weight => "weight",
        Origin::Upload => "upload",
        Origin::Computed(_) => "computed",
    }
}
