//! Which parts read what others made.

use genie_plugin::NodeId;

use super::facts::Facts;
use super::parts::Part;

/// A part reads values of an earlier one, by their places in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub from: usize,
    pub to: usize,
}

/// The flows between parts that stand side by side, sorted, without repeats.
pub fn flows(facts: &Facts, parts: &[Part]) -> Vec<Flow> {
    let mut out = Vec::new();
    for (to, part) in parts.iter().enumerate() {
        for node in facts.operators(&part.one) {
            for tensor in facts.graph.inputs(NodeId(node as u32)) {
                let maker = facts.graph.producer(tensor.value);
                if !facts.graph.is_op(maker) {
                    continue;
                }
                let maker = maker.0 as usize;
                let from = parts[..to].partition_point(|part| part.all.end <= maker);
                if from < to && parts[from].all.contains(&maker) {
                    out.push(Flow { from, to });
                }
            }
        }
        out.sort();
        out.dedup();
    }
    out
}
