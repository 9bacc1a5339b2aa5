//! What operators cost: one roofline for plugins, policies and the host's planner.

use crate::graph::{Graph, NodeId, Tensor};
use crate::operators::{Roles, writes_part};
use crate::plan::Device;

/// Time that starting an operator takes, whatever it computes: what eager PyTorch takes for a
/// small operator on a CPU, and the order of a kernel launch.
pub const OPERATOR_NS: u64 = 5_000;

/// How long an amount takes at a rate; a rate of 0 means that nobody measured it, and costs
/// nothing.
pub fn duration_ns(amount: u64, per_second: u64) -> u64 {
    if per_second == 0 {
        return 0;
    }
    let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_second);
    // Thirteen days: sums of such times do not overflow.
    ns.min(1 << 50) as u64
}

/// The roofline (Williams, Waterman, Patterson 2009): an operator takes as long as its arithmetic
/// or its memory traffic, whichever is slower. In nanoseconds.
pub fn roofline_ns(flops: u64, bytes: u64, device: &Device) -> u64 {
    let arithmetic = duration_ns(flops, device.flops_per_s);
    arithmetic.max(duration_ns(bytes, device.memory_bytes_per_s)) + OPERATOR_NS
}

/// The roofline of a node; 0 for what is no operator.
pub fn operator_ns(graph: &Graph, node: NodeId, device: &Device) -> u64 {
    match graph.is_op(node) {
        true => roofline_ns(graph.flops(node), bytes_touched(graph, node), device),
        false => 0,
    }
}

/// Bytes an operator touches: the graph's estimate, less what a gather or a partial write leaves
/// alone.
pub fn bytes_touched(graph: &Graph, node: NodeId) -> u64 {
    let sum = |sum: u64, tensor: Tensor<'_>| sum.saturating_add(tensor.bytes());
    let others = || graph.inputs(node).skip(1).fold(0, sum);
    let moved = match () {
        () if graph.roles(node).has(Roles::GATHER) => {
            graph.outputs(node).fold(0, sum).saturating_mul(2).saturating_add(others())
        }
        () if graph.roles(node).has(Roles::PART_WRITE) && writes_part(graph.op(node)) => {
            others().saturating_mul(2)
        }
        () => u64::MAX,
    };
    graph.bytes(node).min(moved)
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
                    None => graph.roles(node).has(Roles::RANDOM),
                }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::builder::GraphBuilder;

    #[test]
    fn a_gather_touches_the_rows_that_it_reads() {
        let mut g = GraphBuilder::new();
        let (table, ids) = (g.weight(&[1000, 8]), g.input_of(&[4], DType::INT64));
        let rows = g.dtype(DType::FLOAT32).op("aten::embedding", &[table, ids], &[4, 8]);
        let sum = g.op("aten::add.Tensor", &[rows, rows], &[4, 8]);
        let [rows, sum] = [rows, sum].map(|handle| g.node_of(handle));
        let graph = g.build();
        assert_eq!(bytes_touched(&graph, rows), 2 * 4 * 8 * 4 + 4 * 8);
        assert_eq!(bytes_touched(&graph, sum), graph.bytes(sum));
    }

    #[test]
    fn the_slower_of_arithmetic_and_memory_counts_and_what_nobody_measured_is_free() {
        let mut device = Device { flops_per_s: 1_000, memory_bytes_per_s: 10, ..Device::default() };
        assert_eq!(roofline_ns(1, 1, &device), 100_000_000 + OPERATOR_NS);
        device.memory_bytes_per_s = 0;
        assert_eq!(roofline_ns(1, 1, &device), 1_000_000 + OPERATOR_NS);
        assert_eq!(duration_ns(u64::MAX, 1), 1 << 50);
    }
}
