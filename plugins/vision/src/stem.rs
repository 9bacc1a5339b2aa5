//! Where the stem ends: the first convolution or patch embedding, with its norm and activation.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use crate::facts::{Facts, Kind};

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
            // A branch: the blocks begin here.
            if readers.len() > 1 {
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
            // After a bare convolution it parts two blocks.
            Kind::MaxPool if !normed => break,
            Kind::MaxPool | Kind::Mean | Kind::Activation => {}
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
