//! A recognizer that passes over every column once and matches each node: what a call into a
//! plugin costs, natively and through the sandbox.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Probe;

impl Plugin for Probe {
    fn info() -> Info {
        Info { name: "probe".into(), version: "0.1.0".into(), ..Info::default() }
    }
}

impl Recognizer for Probe {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut sum = 0u64;
        let mut reused = Vec::new();
        for node in graph.nodes() {
            sum = sum
                .wrapping_add(graph.flops(node))
                .wrapping_add(graph.bytes(node))
                .wrapping_add(u64::from(graph.segment(node)))
                .wrapping_add(u64::from(graph.module_symbol(node)));
            for tensor in graph.inputs(node).chain(graph.outputs(node)) {
                sum = sum.wrapping_add(tensor.sizes.iter().sum::<i64>() as u64);
                sum = sum.wrapping_add(graph.storage_bytes(graph.storage(tensor.value)));
                sum = sum.wrapping_add(u64::from(graph.producer(tensor.value).0));
            }
            for arg in graph.args(node) {
                sum = sum.wrapping_add(arg.as_i64().unwrap_or(1) as u64);
            }
            if graph.outputs(node).any(|tensor| graph.consumers(tensor.value).len() > 1) {
                reused.push(node);
            }
        }
        let mut notes = Annotations::new();
        notes.matched("probe.reused", "", "", 1.0, reused);
        notes.matched("probe.all", "other.forward", "", 0.5, graph.nodes());
        notes.attribute("sum", sum.to_string());
        Ok(notes)
    }
}

genie_plugin::recognizer!(Probe);
