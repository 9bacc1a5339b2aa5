//! Where a tensor's content comes from: weights, and tensors that are others in disguise.

use crate::query::plain_name;
use crate::{Graph, NodeId, Origin, StorageId, ValueId};

/// The longest way that is followed through copies and casts.
pub const TRANSPARENT_MAX: usize = 16;

/// Operators that give the same numbers back: copies, casts, layouts.
const TRANSPARENT: [&str; 16] = [
    "_to_copy",
    "_to_copy_like",
    "to",
    "type_as",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "lift_fresh",
    "lift_fresh_copy",
    "_reshape_alias_copy",
    "view_copy",
    "permute_copy",
    "expand_copy",
    "_conj_physical",
    "_copy_from",
];

/// Operators that compute each element of the result from the same element of the operands.
const ELEMENTWISE: [&str; 76] = [
    "abs",
    "add",
    "addcdiv",
    "addcmul",
    "atan2",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "copy",
    "cos",
    "cosh",
    "div",
    "dropout",
    "elu",
    "eq",
    "erf",
    "exp",
    "exp2",
    "expm1",
    "fill",
    "floor",
    "floor_divide",
    "fmod",
    "ge",
    "gelu",
    "gt",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "isnan",
    "le",
    "leaky_relu",
    "lerp",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid_forward",
    "logical_and",
    "logical_not",
    "logical_or",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "native_dropout",
    "ne",
    "neg",
    "pow",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "round",
    "rsqrt",
    "rsub",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "threshold",
    "where",
];

/// Whether the operator gives its first operand's numbers back: copies, casts, layouts.
pub fn is_transparent(op: &str) -> bool {
    let name = plain_name(op);
    TRANSPARENT.contains(&name)
}

/// Whether each element of the result depends on the same element of the operands only.
pub fn is_elementwise(op: &str) -> bool {
    let name = plain_name(op);
    ELEMENTWISE.binary_search(&name).is_ok() || TRANSPARENT.contains(&name)
}

/// The value behind copies and casts: what was written before the first of them.
pub fn seen_through(graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    for _ in 0..TRANSPARENT_MAX {
        let producer = graph.producer(value);
        match graph.input(producer, 0) {
            Some(source) if is_transparent(graph.op(producer)) => value = source.value,
            _ => break,
        }
    }
    value
}

/// The weights that a node uses, also by way of copies and casts, in operand order.
pub fn weights_of(graph: &Graph, node: NodeId) -> Vec<StorageId> {
    let mut weights = Vec::new();
    for input in graph.inputs(node) {
        let storage = graph.storage(seen_through(graph, input.value));
        if graph.origin(storage) == Origin::Weight && !weights.contains(&storage) {
            weights.push(storage);
        }
    }
    weights
}

/// Whether `value` is `from` after elementwise operators, copies and views only; at most `limit`
/// nodes are looked at.
pub fn derived_from(graph: &Graph, value: ValueId, from: ValueId, limit: usize) -> bool {
    let mut seen = crate::query::NodeSet::new(graph);
    let mut open = vec![value];
    while let Some(next) = open.pop() {
        if next == from {
            return true;
        }
        let producer = graph.producer(next);
        if seen.len() < limit && is_elementwise(graph.op(producer)) && seen.insert(producer) {
            open.extend(graph.inputs(producer).map(|input| input.value));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::builder::GraphBuilder;

    #[test]
    fn the_table_of_elementwise_operators_is_sorted() {
        assert!(ELEMENTWISE.is_sorted());
    }

    #[test]
    fn weights_are_seen_through_casts_and_views() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 4]);
        let w = g.weight(&[3, 4]);
        let half = g.dtype(DType(5)).op("aten::_to_copy", &[w], &[3, 4]);
        let turned = g.transpose(half, 0, 1);
        let bias = g.weight(&[3]);
        let y = g.op("aten::addmm", &[bias, x, turned], &[2, 3]);
        let (node, weights) = (g.node_of(y), [g.storage_of(bias), g.storage_of(w)]);
        let graph = g.build();
        assert_eq!(weights_of(&graph, node), weights);
    }

    #[test]
    fn elementwise_work_keeps_the_lineage_and_a_product_breaks_it() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[4, 4]);
        let a = g.op("aten::relu", &[x], &[4, 4]);
        let b = g.in_place("aten::mul_.Tensor", a, &[x]);
        let c = g.view(b, &[16]);
        let d = g.op("aten::exp", &[c], &[16]);
        let mm = g.op("aten::mm", &[b, b], &[4, 4]);
        let [x, a, d, mm] = [x, a, d, mm].map(|handle| g.value_of(handle));
        let graph = g.build();
        for (value, from, limit, expect) in [
            (d, x, 99, true),
            (d, a, 99, true),
            (a, d, 99, false),
            (mm, x, 99, false),
            (x, x, 0, true),
            (d, x, 1, false),
        ] {
            assert_eq!(derived_from(&graph, value, from, limit), expect, "{value:?} {from:?}");
        }
    }
}
