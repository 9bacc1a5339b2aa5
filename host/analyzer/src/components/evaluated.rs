//! What a model in training does besides: it is evaluated, or writes what it is trained on next.
//!
//! Such work uses the same weights, but no backward pass reads what it made, and nothing that a training
//! step made goes into it. Recognizers see it as a graph of its own: the phases of training say nothing
//! of it.

use std::collections::{HashMap, HashSet};

use genie_plugin::shapes::flow::is_given;
use genie_plugin::{Graph, NodeId, Stage, StorageId};

use super::{Joined, is_counted, is_product, is_training, weights};

/// For each node whether it is such work. `graph` knows the model of each node.
pub(super) fn evaluated(graph: &Graph) -> Vec<bool> {
    let mut evaluated = vec![false; graph.len()];
    let training = graph.nodes().filter(|node| graph.is_op(*node) && is_training(graph, *node));
    let trained: HashSet<Option<u32>> = training.map(|node| graph.model(node)).collect();
    if trained.is_empty() {
        return evaluated;
    }
    let is_forward = |node: &NodeId| {
        graph.is_op(*node) && !is_training(graph, *node) && trained.contains(&graph.model(*node))
    };
    let forward: Vec<NodeId> = graph.nodes().filter(is_forward).collect();
    let groups = groups(graph, &forward);
    let mut trains = vec![false; graph.len()];
    for (node, group) in forward.iter().zip(&groups) {
        evaluated[node.0 as usize] = *group == Group::Apart;
        trains[node.0 as usize] = *group == Group::Trains;
    }
    // Masks and positions are there for what reads them; tokens and measures come of what made them.
    for node in forward.iter().rev() {
        let mut readers = graph.successors(*node).filter(|reader| graph.is_op(*reader)).peekable();
        let serves = readers.peek().is_some()
            && readers.all(|reader| evaluated[reader.0 as usize] && reader > *node);
        evaluated[node.0 as usize] |= serves;
    }
    for node in graph.nodes() {
        let made = graph.predecessors(node).filter(|from| graph.is_op(*from));
        let mut made = made.filter(|from| !is_weight_made(graph, *from)).peekable();
        let is_read = graph.op(node) == "genie::read";
        let follows = (is_read || is_forward(&node) && !trains[node.0 as usize])
            && made.peek().is_some()
            && made.all(|from| evaluated[from.0 as usize]);
        evaluated[node.0 as usize] |= follows;
    }
    evaluated
}

/// Operators that are connected by what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Something of it goes into a backward pass, or moves weights.
    Trains,
    /// It multiplies by weights, and nothing else.
    Apart,
    /// Counters, masks, measures.
    Other,
}

/// For each of the forward operators what it is connected with.
fn groups(graph: &Graph, forward: &[NodeId]) -> Vec<Group> {
    #[derive(Default)]
    struct Found {
        multiplies: bool,
        trains: bool,
    }
    let weights = weights(graph);
    let is_weight = |storage: StorageId| weights[storage.0 as usize];
    let lasts = |storage| graph.values_of(storage).iter().any(|value| is_given(graph, *value));
    let mut joined = Joined::new(graph);
    for node in forward {
        for tensor in graph.inputs(*node).chain(graph.outputs(*node)) {
            let storage = graph.storage(tensor.value);
            if !is_weight(storage) && !lasts(storage) && !is_counted(graph, &tensor) {
                joined.by(storage, *node);
            }
        }
    }
    let mut found: HashMap<u32, Found> = HashMap::new();
    for node in forward {
        let found = found.entry(joined.root(*node)).or_default();
        found.multiplies |= is_product(graph, *node)
            && graph.inputs(*node).any(|input| is_weight(graph.storage(input.value)));
        // Statistics of a norm are kept as weights are, and moved by the forward pass.
        let moves = graph.outputs(*node).any(|out| is_weight(graph.storage(out.value)));
        found.trains |= moves && !graph.name(*node).contains("norm");
        found.trains |= graph.successors(*node).any(|reader| is_training(graph, reader));
    }
    let group = |node: &NodeId| match &found[&joined.root(*node)] {
        Found { trains: true, .. } => Group::Trains,
        Found { multiplies: true, .. } => Group::Apart,
        Found { .. } => Group::Other,
    };
    forward.iter().map(group).collect()
}

/// Whether the node only writes weights: an optimizer's step.
fn is_weight_made(graph: &Graph, node: NodeId) -> bool {
    graph.stage(node) == Stage::Optimizer
}

#[cfg(test)]
mod tests {
    use genie_plugin::DType;
    use genie_plugin::builder::{GraphBuilder, Handle};

    use super::*;
    use crate::components::{mark, part};

    /// A training step of one weight, and what a metric makes of its result.
    fn step(g: &mut GraphBuilder, w: Handle) -> Handle {
        let x = g.input(&[2, 8]);
        g.stage(Stage::Forward);
        let y = g.op("aten::mm", &[x, w], &[2, 8]);
        let metric = g.op("aten::mean", &[y], &[]);
        g.read(metric);
        g.stage(Stage::Backward);
        let grad = g.op("aten::neg", &[y], &[8, 8]);
        g.stage(Stage::Optimizer);
        g.in_place("aten::sub_.Tensor", w, &[grad])
    }

    fn evaluation(g: &mut GraphBuilder, w: Handle) {
        let x = g.input(&[2, 8]);
        g.stage(Stage::Forward);
        let y = g.op("aten::matmul", &[x, w], &[2, 8]);
        let best = g.dtype(DType::INT64).op("aten::argmax", &[y], &[2]);
        let right = g.dtype(DType::FLOAT32).op("aten::_to_copy", &[best], &[2]);
        g.read(right);
    }

    #[test]
    fn a_model_that_trains_and_is_evaluated_is_one_in_two_parts() {
        let mut g = GraphBuilder::new();
        let mut w = g.weight(&[8, 8]);
        evaluation(&mut g, w);
        for _ in 0..2 {
            w = step(&mut g, w);
            evaluation(&mut g, w);
        }
        let parts = part(&mark(g.columns()));
        let ops = |at: usize| {
            let graph = &parts[at].graph;
            let ops = graph.nodes().filter(|node| graph.is_op(*node));
            ops.map(|node| graph.name(node).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(parts.iter().map(|part| part.model).collect::<Vec<_>>(), [0, 0]);
        assert_eq!(ops(0), ["mm", "mean", "neg", "sub", "mm", "mean", "neg", "sub"]);
        assert_eq!(ops(1), ["matmul", "argmax", "_to_copy"].repeat(3));
        let graph = &parts[1].graph;
        assert!(graph.nodes().all(|node| graph.stage(node) == Stage::None));
        // The weight that an optimizer moved meanwhile is one still.
        let product = |node: &NodeId| graph.name(*node) == "matmul";
        let weighted = graph.nodes().filter(product).filter(|node| {
            genie_plugin::shapes::flow::product(graph, *node).is_some_and(|found| found.weighted)
        });
        assert_eq!(weighted.count(), 3);
    }

    #[test]
    fn training_alone_is_whole() {
        let mut g = GraphBuilder::new();
        let w = g.weight(&[8, 8]);
        let w = step(&mut g, w);
        step(&mut g, w);
        assert_eq!(part(&mark(g.columns())).len(), 1);
    }
}
