//! What the graph says of operators' work: bytes touched, random operators, kinds of data.

use genie_plugin::operators::{GATHERS, PART_WRITES, RANDOM};
use genie_plugin::{Annotations, Device, Graph, NodeId, Origin, Stage, StorageId};

/// Time that starting an operator takes, whatever it computes: what eager PyTorch takes for a
/// small operator on a CPU, and the order of a kernel launch.
pub const OPERATOR_NS: u64 = 5_000;

/// Which kind of traffic or memory a storage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Weights,
    Activations,
    Kv,
    Inputs,
    Outputs,
}

/// Bytes an operator touches: the graph's estimate, less what a gather or a partial write leaves
/// alone.
pub fn bytes_touched(graph: &Graph, node: NodeId) -> u64 {
    let all = graph.bytes(node);
    let name = graph.op_name(node);
    let size = |tensor: &genie_plugin::Tensor<'_>| {
        tensor.elements().saturating_mul(element_bytes(tensor.dtype.0))
    };
    let without_first = |sum: u64, tensor| sum.saturating_add(size(&tensor));
    if GATHERS.contains(&name) {
        let moved = graph.outputs(node).fold(0, without_first).saturating_mul(2);
        return all.min(graph.inputs(node).skip(1).fold(moved, without_first));
    }
    if PART_WRITES.contains(&name) {
        return all.min(graph.inputs(node).skip(1).fold(0, without_first).saturating_mul(2));
    }
    all
}

/// The roofline (Williams, Waterman, Patterson 2009): an operator takes as long as its arithmetic
/// or its memory traffic, whichever is slower.
pub fn operator_ns(graph: &Graph, node: NodeId, device: &Device) -> u64 {
    if !graph.is_op(node) {
        return 0;
    }
    let arithmetic = duration_ns(graph.flops(node), device.flops_per_s);
    let memory = duration_ns(bytes_touched(graph, node), device.memory_bytes_per_s);
    arithmetic.max(memory).saturating_add(OPERATOR_NS)
}

/// How long an amount takes at a rate; a rate of 0 means that nobody measured it, and costs
/// nothing.
pub fn duration_ns(amount: u64, per_second: u64) -> u64 {
    if per_second == 0 {
        return 0;
    }
    let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_second);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Whether each node draws from the random generator or sets it.
pub fn random_nodes(graph: &Graph) -> Vec<bool> {
    let column = graph.columns().extra.iter().find(|(name, _)| name == "random");
    graph
        .nodes()
        .map(|node| {
            graph.op(node) == "genie::generator"
                || match column.and_then(|(_, bits)| bits.get(node.0 as usize)) {
                    Some(bit) => *bit != 0,
                    None => RANDOM.contains(&graph.op_name(node)),
                }
        })
        .collect()
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

/// Bytes of an element, by the numbers of `c10::ScalarType`.
pub fn element_bytes(dtype: u8) -> u64 {
    match dtype {
        0 | 1 | 11..=13 | 16 | 17 | 23..=26 | 44..=45 => 1,
        2 | 5 | 15 | 27 => 2,
        3 | 6 | 8 | 14 | 28 => 4,
        10 => 16,
        _ => 8,
    }
}
