//! Where the stem ends: the first convolution or patch embedding, with its norm and activation.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use crate::facts::{Facts, Kind};

/// Nodes that a norm by hand may span.
const NORM_NODES_MAX: usize = 24;

/// The last node of the stem that begins with `entry`, within the pass.
///
/// It goes on as long as one operator alone reads what the last one made. Further convolutions
/// belong to it only where they lead, downsampling, to the first branch.
pub fn last_of_stem(facts: &Facts<'_>, entry: NodeId, end: NodeId) -> NodeId {
    let graph = facts.graph;
    let strided = matches!(facts.kind(entry), Kind::Convolution(first) if first.strided);
    let (mut last, mut firm) = (entry, entry);
    let (mut deep, mut normed) = (false, false);
    while let Some(out) = graph.output(last, 0) {
        let readers = facts.readers(out.value);
        let [next] = readers[..] else {
            if let Some(end) = norm_by_hand(facts, last, end) {
                (last, normed) = (end, true);
                if !deep {
                    firm = last;
                }
                continue;
            }
            // A branch: the blocks begin here.
            if readers.len() > 1 && (!deep || leads_to_block(facts, last, end)) {
                firm = last;
            }
            break;
        };
        if next >= end {
            break;
        }
        match facts.kind(next) {
            Kind::Convolution(other)
                if strided && other.wide && !other.grouped && !other.transposed =>
            {
                deep = true;
            }
            Kind::BatchNorm | Kind::SampleNorm => normed = true,
            // After a bare convolution it parts two blocks, unless a block of branches follows.
            Kind::MaxPool if !normed && !is_branched(facts, next, end) => break,
            Kind::MaxPool | Kind::Mean | Kind::Activation => {}
            // Windows of a convolution by hand.
            Kind::Other if graph.op_name(next) == "im2col" => break,
            Kind::Join | Kind::Sum | Kind::Other if is_local(facts, entry, next, out.value) => {
                normed |= matches!(graph.op_name(next), "mul" | "mul_" | "addcmul");
            }
            // Positions that were computed too: the blocks begin here.
            Kind::Sum | Kind::Join => {
                firm = last;
                break;
            }
            _ => break,
        }
        last = next;
        if !deep {
            firm = last;
        }
    }
    firm
}

/// The operator that brings together again what several operators without weights make of what
/// `last` made: a norm by hand.
fn norm_by_hand(facts: &Facts<'_>, last: NodeId, end: NodeId) -> Option<NodeId> {
    let graph = facts.graph;
    let begin = graph.output(last, 0)?;
    let mut inside = vec![begin.value];
    let mut farthest = *facts.readers(begin.value).iter().max()?;
    let mut scaled = false;
    for node in (last.0 + 1..end.0).map(NodeId).take(NORM_NODES_MAX) {
        if !graph.inputs(node).any(|input| inside.contains(&input.value)) {
            continue;
        }
        let out = graph.output(node, 0)?;
        if !facts.is_forward(node) || facts.is_heavy(node) || !out.dtype.is_floating() {
            return None;
        }
        scaled |= matches!(graph.op_name(node), "rsqrt" | "sqrt" | "std" | "var" | "reciprocal");
        if node == farthest && out.elements() == begin.elements() && scaled {
            return Some(node);
        }
        inside.push(out.value);
        farthest = facts.readers(out.value).into_iter().chain([farthest]).max()?;
    }
    None
}

/// Whether several operators read what the node makes, in a block.
fn is_branched(facts: &Facts<'_>, node: NodeId, end: NodeId) -> bool {
    let out = facts.graph.output(node, 0);
    out.is_some_and(|out| facts.readers(out.value).len() > 1) && leads_to_block(facts, node, end)
}

/// Whether a branch comes together again before anything is upsampled, and products follow: a
/// block, and not a feature that is kept for later.
fn leads_to_block(facts: &Facts<'_>, last: NodeId, end: NodeId) -> bool {
    let mut after = (last.0 + 1..end.0).map(NodeId).filter(|node| facts.is_forward(*node));
    let mut heavy = false;
    let meets = after.find(|node| {
        heavy |= facts.is_heavy(*node);
        let transposed =
            matches!(facts.kind(*node), Kind::Convolution(convolution) if convolution.transposed);
        transposed
            || matches!(facts.kind(*node), Kind::Join | Kind::Upsample | Kind::Mixing)
            || facts.residuals.binary_search(node).is_ok()
    });
    meets.is_some_and(|node| {
        matches!(facts.kind(node), Kind::Join | Kind::Sum | Kind::Mixing) && heavy
    })
}

/// Whether all but one operand come from nothing that was computed with weights: positions,
/// a class token, the scale of a frozen norm; or from a sibling of the first convolution.
fn is_local(facts: &Facts<'_>, entry: NodeId, node: NodeId, value: ValueId) -> bool {
    let graph = facts.graph;
    let picture = graph.input(entry, 0).map(|data| data.value);
    let is_sibling = |value: ValueId| {
        let origin = facts.origin(value);
        matches!(facts.kind(origin), Kind::Convolution(_))
            && graph.input(origin, 0).map(|data| data.value) == picture
    };
    let plain = |input: Tensor<'_>| {
        input.value == value
            || is_given(graph, input.value)
            || facts.depth(graph.producer(input.value)) == 0
            || is_sibling(input.value)
    };
    graph.inputs(node).all(plain)
}
