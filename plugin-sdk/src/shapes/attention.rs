//! Attention, fused or written out, and whether it looks ahead.

use std::collections::HashSet;

use crate::graph::{Arg, Graph, NodeId, Tensor, ValueId};
use crate::operators::Roles;
use crate::shapes::flow::{Flow, is_given, is_weighted, passed_on, product};

/// Operators between a product and its softmax, or between that and the next product.
const CHAIN_MAX: usize = 24;
/// Nodes looked at above a mask.
const MASK_NODES_MAX: usize = 128;

/// Whether a position may see later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causality {
    Causal,
    /// No mask hides what comes later.
    Bidirectional,
    /// One query: nothing comes later.
    Single,
}

/// One attention: softmax(query key^T) value.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The fused operator, or the softmax.
    pub node: NodeId,
    /// Where the weights meet the values; the same node when fused.
    pub output: NodeId,
    pub query: ValueId,
    pub key: ValueId,
    pub value: ValueId,
    /// Positions that ask, and positions that are looked at.
    pub q_len: i64,
    pub k_len: i64,
    pub causality: Causality,
    /// All its nodes, in program order.
    pub nodes: Vec<NodeId>,
}

/// All attentions of inference and forward passes, in program order.
pub fn attentions(graph: &Graph, flow: &Flow) -> Vec<Attention> {
    graph
        .nodes()
        .filter(|node| flow.is_forward(*node))
        .filter_map(|node| {
            let found = fused(graph, node).or_else(|| encoder_layer(graph, node));
            found.or_else(|| written_out(graph, node))
        })
        .collect()
}

fn fused(graph: &Graph, node: NodeId) -> Option<Attention> {
    if !graph.roles(node).has(Roles::ATTENTION) {
        return None;
    }
    let mut inputs = graph.inputs(node);
    let (q, k, v) = (inputs.next()?, inputs.next()?, inputs.next()?);
    let (q_len, k_len) = (q.size(-2), k.size(-2));
    let causal_flag = graph.args(node).any(|arg| arg == Arg::Bool(true));
    let causality = match inputs.next() {
        _ if q_len <= 1 => Causality::Single,
        _ if causal_flag => Causality::Causal,
        Some(mask) if hides_later(graph, mask, q_len, k_len) => Causality::Causal,
        _ => Causality::Bidirectional,
    };
    Some(Attention {
        node,
        output: node,
        query: q.value,
        key: k.value,
        value: v.value,
        q_len,
        k_len,
        causality,
        nodes: vec![node],
    })
}

/// PyTorch's fused encoder layer and fused multi-head attention of inference.
fn encoder_layer(graph: &Graph, node: NodeId) -> Option<Attention> {
    if !graph.roles(node).has(Roles::FUSED_LAYER) {
        return None;
    }
    let data = graph.input(node, 0)?;
    let len = data.size(-2);
    let mask = graph.inputs(node).find(|input| {
        !input.dtype.is_integer()
            && input.size(-1) == len
            && input.size(-2) == len
            && !is_given(graph, input.value)
    });
    let causality = match mask {
        _ if len <= 1 => Causality::Single,
        Some(mask) if hides_later(graph, mask, len, len) => Causality::Causal,
        _ => Causality::Bidirectional,
    };
    let value = data.value;
    Some(Attention {
        node,
        output: node,
        query: value,
        key: value,
        value,
        q_len: len,
        k_len: len,
        causality,
        nodes: vec![node],
    })
}

fn written_out(graph: &Graph, softmax: NodeId) -> Option<Attention> {
    if !matches!(graph.op_name(softmax), "_softmax" | "softmax" | "_safe_softmax") {
        return None;
    }
    let scores = graph.input(softmax, 0)?;
    let (q_len, k_len) = (scores.size(-2), scores.size(-1));
    let mut nodes = vec![softmax];
    let mut masks: Vec<Tensor> = Vec::new();
    let mut at = scores;
    let mut found = None;
    for _ in 0..CHAIN_MAX {
        let node = graph.producer(at.value);
        let mixed = heads_mixed(graph, node);
        if mixed.is_none() && is_product(graph, node) {
            found = Some(node);
            break;
        }
        let next = mixed.or_else(|| passed_on(graph, node))?;
        masks.extend(graph.inputs(node).filter(|tensor| tensor.value != next.value));
        nodes.push(node);
        at = next;
    }
    let product = found?;
    if graph.op_name(product) == "baddbmm" {
        masks.extend(graph.input(product, 0));
    }
    let from = usize::from(graph.op_name(product) == "baddbmm");
    let (a, b) = (graph.input(product, from)?, graph.input(product, from + 1)?);
    if is_given(graph, b.value) && is_given(graph, a.value) {
        return None;
    }
    nodes.push(product);
    // Forward to the product with the values.
    let mut out = graph.output(softmax, 0)?;
    let mut output = None;
    for _ in 0..CHAIN_MAX {
        let consumers = graph.consumers(out.value);
        let second = consumers
            .iter()
            .copied()
            .find(|node| is_product(graph, *node) && heads_mixed(graph, *node).is_none());
        if let Some(second) = second {
            output = Some(second);
            break;
        }
        let hands_on =
            |node: &NodeId| passed_on(graph, *node).or_else(|| heads_mixed(graph, *node)).is_some();
        let next = consumers.iter().copied().find(hands_on)?;
        nodes.push(next);
        out = graph.output(next, 0)?;
    }
    let output = output?;
    let value = graph.inputs(output).find(|tensor| tensor.value != out.value)?;
    nodes.push(output);
    nodes.sort_unstable();
    nodes.dedup();
    let causality = if q_len <= 1 {
        Causality::Single
    } else if masks.iter().any(|mask| hides_later(graph, *mask, q_len, k_len)) {
        Causality::Causal
    } else {
        Causality::Bidirectional
    };
    // A product may be written either way around: the query is what has the rows.
    let (query, key) = match a.size(-2) == q_len && graph.op_name(product) != "mv" {
        true => (a.value, b.value),
        false => (b.value, a.value),
    };
    Some(Attention {
        node: softmax,
        output,
        query,
        key,
        value: value.value,
        q_len,
        k_len,
        causality,
        nodes,
    })
}

fn is_product(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.op_name(node), "bmm" | "baddbmm" | "mm" | "matmul" | "mv")
}

/// What is handed on where a small parameter mixes the heads' scores with each other ("talking
/// heads", Shazeer et al. 2020).
fn heads_mixed(graph: &Graph, node: NodeId) -> Option<Tensor<'_>> {
    let product = product(graph, node).filter(|product| product.weighted)?;
    let square = product.other.size(-1) == product.other.size(-2) && product.other.size(-1) <= 64;
    let kept = graph.output(node, 0)?.elements() == product.data.elements();
    // Many rows of few heads: hidden states are wider.
    (square && kept && product.data.size(-2) > product.data.size(-1)).then_some(product.data)
}

/// Whether a mask comes from a triangle or from comparing positions with each other.
fn hides_later(graph: &Graph, mask: Tensor, q_len: i64, k_len: i64) -> bool {
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut open = vec![mask];
    while let Some(tensor) = open.pop() {
        if seen.len() >= MASK_NODES_MAX || !seen.insert(tensor.value) {
            continue;
        }
        let node = graph.producer(tensor.value);
        match graph.op_name(node) {
            "tril" | "triu" | "tril_" | "triu_" | "tril_indices" | "triu_indices" => return true,
            "le" | "lt" | "ge" | "gt" if graph.inputs(node).len() == 2 => {
                let out = graph.output(node, 0);
                let positions = graph.inputs(node).all(|input| input.dtype.is_integer());
                let square = out.is_some_and(|out| {
                    out.size(-1) > 1 && out.size(-1) == k_len && out.size(-2) == q_len
                });
                if positions && square {
                    return true;
                }
            }
            _ => {}
        }
        if is_given(graph, tensor.value) {
            // A triangle kept in a buffer: one square for all heads.
            let lead: i64 = tensor.sizes.iter().rev().skip(2).product();
            let rows = tensor.size(-2);
            if tensor.dims() >= 2
                && lead == 1
                && rows > 1
                && tensor.size(-1) >= k_len
                && (rows == q_len || rows == tensor.size(-1))
                && !tensor.dtype.is_integer()
            {
                return true;
            }
            continue;
        }
        if !is_weighted(graph, node) && product(graph, node).is_none() {
            open.extend(graph.inputs(node));
        }
    }
    false
}
