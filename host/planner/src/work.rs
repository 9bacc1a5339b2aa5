//! What the graph says of kinds of data. What operators cost is the SDK's to say: policies price by the same.

pub use genie_plugin::cost::{OPERATOR_NS, bytes_touched, duration_ns, operator_ns, random_nodes};
use genie_plugin::{Annotations, Graph, Origin, Stage, StorageId};

/// Which kind of traffic or memory a storage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Weights,
    Activations,
    Kv,
    Inputs,
    Outputs,
}

/// The class of each storage: what recognizers claim with the highest confidence, else what its
/// origin tells.
pub fn classes(graph: &Graph, notes: &Annotations) -> Vec<Class> {
    let mut classes: Vec<Class> = graph
        .storages()
        .map(|storage| match graph.origin(storage) {
            Origin::Weight | Origin::Computed(Stage::Optimizer) => Class::Weights,
            Origin::Upload => Class::Inputs,
            _ => Class::Activations,
        })
        .collect();
    let mut best = vec![0f32; classes.len()];
    for claim in &notes.residency {
        let class = match claim.residency.as_str() {
            "weight" | "embedding_table" | "optimizer_state" => Class::Weights,
            "kv_cache" => Class::Kv,
            "input" => Class::Inputs,
            "output" => Class::Outputs,
            "activation" | "gradient" => Class::Activations,
            _ => continue,
        };
        let Some(best) = best.get_mut(claim.storage as usize) else { continue };
        if claim.confidence > *best {
            *best = claim.confidence;
            classes[claim.storage as usize] = class;
        }
    }
    classes
}

/// Whether a storage holds a weight and nothing in the graph writes it.
pub fn is_constant_weight(graph: &Graph, storage: StorageId) -> bool {
    graph.origin(storage) == Origin::Weight && graph.values_of(storage).len() == 1
}
