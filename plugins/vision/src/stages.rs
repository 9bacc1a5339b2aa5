//! The backbone's stages: where a pipeline may be cut.

use genie_plugin::prelude::*;

use crate::facts::{Facts, Kind};
use crate::head::Pass;

/// Residual connections in one block of a transformer.
const ISOTROPIC: usize = 2;

/// The backbone's nodes, from `from` on and before `to`, in stages.
///
/// A stage is what works at one resolution; where the resolution never changes, a pair of residual
/// branches.
pub fn stages(facts: &Facts<'_>, pass: Pass, from: NodeId, to: NodeId) -> Vec<Vec<NodeId>> {
    let ends = ends(facts, pass, from, to);
    let mut stages: Vec<Vec<NodeId>> = vec![Vec::new()];
    let mut next = ends.iter().peekable();
    for node in pass.nodes(facts).filter(|node| *node >= from && *node < to) {
        if next.peek().is_some_and(|end| node > **end && !is_trailing(facts.kind(node))) {
            next.next();
            stages.push(Vec::new());
        }
        if let Some(stage) = stages.last_mut() {
            stage.push(node);
        }
    }
    stages.retain(|stage| !stage.is_empty());
    stages
}

fn is_trailing(kind: Kind) -> bool {
    matches!(kind, Kind::Activation | Kind::BatchNorm)
}

/// The last node of each stage but the last.
fn ends(facts: &Facts<'_>, pass: Pass, from: NodeId, to: NodeId) -> Vec<NodeId> {
    let within = |node: &NodeId| *node >= from && *node < to;
    let residuals: Vec<NodeId> = facts.residuals.iter().copied().filter(within).collect();
    let size = |node: NodeId| facts.graph.output(node, 0).map(|out| out.sizes);
    if residuals.len() < 2 {
        // Downsampling parts them.
        let mut ends = Vec::new();
        let mut last = None;
        for node in pass.nodes(facts).filter(within) {
            let shrinks = match facts.kind(node) {
                Kind::MaxPool | Kind::Mean => facts.positions(node) > 1,
                Kind::Convolution(convolution) => convolution.strided,
                _ => false,
            };
            ends.extend(last.filter(|_| shrinks));
            last = Some(node);
        }
        return ends;
    }
    let changes: Vec<NodeId> = residuals
        .windows(2)
        .filter(|pair| size(pair[0]) != size(pair[1]))
        .map(|pair| pair[0])
        .collect();
    if !changes.is_empty() {
        return changes;
    }
    let mut ends: Vec<NodeId> = residuals.chunks_exact(ISOTROPIC).map(|pair| pair[1]).collect();
    ends.pop();
    ends
}
