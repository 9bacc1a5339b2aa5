//! What flows: data against weights, and chains of operators that only reshape or scale.

use crate::graph::{Graph, NodeId, Stage, Tensor, ValueId};
use crate::operators::Roles;

/// What each node does with its operands, and which nodes count.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Operators of the forward pass: in a training window, of the first one. The next steps are the
    /// same again.
    forward: Vec<bool>,
    /// Whether some node is of the backward pass or the optimizer.
    pub training: bool,
}

impl Flow {
    pub fn of(graph: &Graph) -> Flow {
        let (mut training, mut is_over) = (false, false);
        let forward = graph
            .nodes()
            .map(|node| {
                // What is no operator has the stage of what ran before it.
                let is_op = graph.is_op(node);
                let later = matches!(graph.stage(node), Stage::Backward | Stage::Optimizer);
                training |= is_op && later;
                is_over |= is_op && graph.stage(node) == Stage::Backward;
                is_op && !later && !is_over
            })
            .collect();
        Flow { forward, training }
    }

    /// Whether the node is an operator of inference or of the first forward pass.
    pub fn is_forward(&self, node: NodeId) -> bool {
        self.forward[node.0 as usize]
    }
}

/// Whether a value is from before the window, or was put there by the program.
pub fn is_given(graph: &Graph, value: ValueId) -> bool {
    let op = graph.op(graph.producer(value));
    op.starts_with("genie::") && op != "genie::alloc" && op != "genie::resize"
}

/// Whether a value may be a parameter: given, also once an optimizer moved it. What another model
/// hands over is none of this one.
pub fn is_parameter(graph: &Graph, value: ValueId) -> bool {
    is_given(graph, value) && !graph.is_handed_over(value)
        || graph.stage(graph.producer(value)) == Stage::Optimizer
}

/// Matrix products, with the operand that is data and the one that is a parameter, if one is.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    pub data: Tensor<'a>,
    /// The other operand.
    pub other: Tensor<'a>,
    /// Whether the other operand is given: a parameter.
    pub weighted: bool,
}

/// The two matrices that a node multiplies, left and right, if it does.
pub fn factors(graph: &Graph, node: NodeId) -> Option<(Tensor<'_>, Tensor<'_>)> {
    if !graph.roles(node).has(Roles::PRODUCT) {
        return None;
    }
    // What is added to the product comes first.
    let first = usize::from(matches!(graph.name(node), "addmm" | "baddbmm"));
    Some((graph.input(node, first)?, graph.input(node, first + 1)?))
}

/// The matrix product that a node computes, if it does.
pub fn product(graph: &Graph, node: NodeId) -> Option<Product<'_>> {
    let (a, b) = factors(graph, node)?;
    let (given_a, given_b) = (is_parameter(graph, a.value), is_parameter(graph, b.value));
    Some(match (given_a, given_b) {
        (true, false) => Product { data: b, other: a, weighted: true },
        _ => Product { data: a, other: b, weighted: given_b },
    })
}

/// The operand that carries what a node works on: the data of a product, the source of a copy, else
/// the first operand that was computed, else the first.
pub fn data_of(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    if let Some(product) = product(graph, node) {
        return Some(product.data);
    }
    // Destination first, source second.
    let skip = usize::from(
        matches!(graph.name(node), "copy" | "_copy_from") && graph.inputs(node).len() > 1,
    );
    let computed = graph.inputs(node).skip(skip).find(|input| !is_given(graph, input.value));
    computed.or(graph.input(node, skip))
}

/// Whether the node computes with parameters on a large scale: a product with a parameter, or a
/// convolution.
pub fn is_weighted(graph: &Graph, node: NodeId) -> bool {
    graph.roles(node).has(Roles::CONVOLUTION.and(Roles::RECURRENCE).and(Roles::FUSED_LAYER))
        || product(graph, node).is_some_and(|product| product.weighted)
}

/// The operand that a node hands on, if it only copies, scales, shifts, masks or casts: that with
/// as many elements as the result.
pub fn passed_on<'a>(graph: &'a Graph, node: NodeId) -> Option<Tensor<'a>> {
    match graph.op_name(node) {
        // Destination first, source second.
        "copy_" | "_copy_from" => graph.input(node, 1),
        "clone" | "contiguous" | "_to_copy" | "detach" | "neg" | "native_dropout" | "dropout"
        | "clamp" | "clamp_min" | "clamp_max" | "tanh" | "repeat" | "expand" | "abs" | "slice"
        | "constant_pad_nd" | "repeat_interleave" | "nan_to_num" | "nan_to_num_" => {
            graph.input(node, 0)
        }
        "div" | "mul" | "add" | "sub" | "masked_fill" | "where" | "rsub" | "add_" | "mul_"
        | "div_" | "sub_" | "masked_fill_" | "maximum" | "minimum" | "addcmul" => {
            let elements = graph.output(node, 0)?.elements();
            graph
                .inputs(node)
                .find(|tensor| tensor.elements() == elements && tensor.dtype.is_floating())
        }
        _ => None,
    }
}

/// Whether the node adds two tensors of one size that are both computed: a residual connection.
pub fn is_residual(graph: &Graph, node: NodeId) -> bool {
    if !matches!(graph.op_name(node), "add" | "add_") {
        return false;
    }
    let mut inputs = graph.inputs(node);
    let (Some(a), Some(b)) = (inputs.next(), inputs.next()) else { return false };
    a.sizes == b.sizes
        && a.dims() >= 2
        && a.dtype.is_floating()
        && !is_given(graph, a.value)
        && !is_given(graph, b.value)
}
