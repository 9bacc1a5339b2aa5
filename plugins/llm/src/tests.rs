//! The recognizer on golden graphs, and on graphs at random.

use genie_plugin::harness::{fuzz_recognizer, recognize, recorded};
use genie_plugin::{Graph, NodeId};

use crate::Llm;

fn golden(name: &str) -> Graph {
    recorded(format!("{}/../../plugin-sdk/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR")))
}

/// The phases of the operators in order, repeats left out.
fn phases(graph: &Graph) -> Vec<String> {
    let outcome = recognize::<Llm>(graph);
    let ops = graph.nodes().filter(|node| graph.is_op(*node));
    let mut phases: Vec<String> = ops.map(|node| outcome.phase_of(node).to_owned()).collect();
    phases.dedup();
    phases
}

#[test]
fn language_models_prefill_and_then_decode_whatever_their_cache() {
    for name in ["llm.plain_gpt.generate_short", "llm.gpt2.generate_static", "llm.mamba.generate"] {
        let graph = golden(name);
        recognize::<Llm>(&graph).assert_workload("llm");
        assert_eq!(phases(&graph), ["llm.prefill", "llm.decode"], "{name}");
    }
}

#[test]
fn caches_are_named_and_their_storages_kept() {
    for (name, kind) in
        [("llm.plain_gpt.generate_short", "dynamic"), ("llm.gpt2.generate_static", "static")]
    {
        let graph = golden(name);
        let outcome = recognize::<Llm>(&graph);
        let told = outcome.notes.attributes.iter().find(|(key, _)| key == "kv_cache");
        assert_eq!(told.map(|(_, value)| value.as_str()), Some(kind), "{name}");
        assert!(outcome.notes.residency.iter().any(|claim| claim.residency == "kv_cache"));
    }
}

#[test]
fn an_encoder_of_text_is_no_decoder() {
    let graph = golden("text.bert.encode");
    recognize::<Llm>(&graph).assert_workload("text_encoder");
    assert_eq!(phases(&graph), ["text.encode"]);
}

#[test]
fn what_is_no_text_is_left_to_others() {
    for name in
        ["vision.resnet18", "recsys.dlrm", "gnn.gcn", "other.mlp_tabular", "audio.plain_keywords"]
    {
        let graph = golden(name);
        let outcome = recognize::<Llm>(&graph);
        assert!(outcome.workload().is_none_or(|(_, confidence)| confidence < 0.4), "{name}");
    }
    let graph = golden("mm.clip_short");
    let outcome = recognize::<Llm>(&graph);
    assert!(outcome.workload().is_none_or(|(_, confidence)| confidence < 0.4));
    assert!(graph.nodes().next() == Some(NodeId(0)));
}

#[test]
fn any_graph_is_answered() {
    fuzz_recognizer::<Llm>(64);
}
