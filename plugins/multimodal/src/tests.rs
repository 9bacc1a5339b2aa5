//! The recognizer on golden graphs, and on graphs at random.

use std::collections::BTreeSet;

use genie_plugin::Graph;
use genie_plugin::harness::{fuzz_recognizer, recognize, recorded};

use crate::Multimodal;

fn golden(name: &str) -> Graph {
    recorded(format!("{}/../../plugin-sdk/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR")))
}

fn phases(graph: &Graph) -> BTreeSet<String> {
    let outcome = recognize::<Multimodal>(graph);
    let ops = graph.nodes().filter(|node| graph.is_op(*node));
    ops.map(|node| outcome.phase_of(node).to_owned()).collect()
}

#[test]
fn two_towers_meet_in_a_fusion() {
    let graph = golden("mm.clip_short");
    recognize::<Multimodal>(&graph).assert_workload("multimodal");
    let expected = ["mm.fusion", "mm.text_encoder", "mm.vision_encoder"];
    assert_eq!(phases(&graph), expected.map(str::to_owned).into());
}

#[test]
fn a_captioner_writes_within_the_fusion() {
    let graph = golden("mm.vit_gpt2_caption");
    recognize::<Multimodal>(&graph).assert_workload("multimodal");
    assert_eq!(phases(&graph), ["mm.fusion", "mm.vision_encoder"].map(str::to_owned).into());
}

#[test]
fn one_modality_alone_is_left_to_others() {
    for name in [
        "vision.resnet18",
        "vision.vit_tiny",
        "text.bert.encode",
        "llm.mamba.generate",
        "recsys.dlrm",
    ] {
        recognize::<Multimodal>(&golden(name)).assert_no_workload();
    }
}

#[test]
fn any_graph_is_answered() {
    fuzz_recognizer::<Multimodal>(64);
}
