//! Training steps: which stage each operator belongs to.

use genie_plugin::evidence::RECORDED;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;

use crate::facts::Facts;

/// Gives every operator of a window with a backward pass or an optimizer the phase of its stage.
pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    if !facts.flow.training {
        return;
    }
    let by_hand = updates_by_hand(graph);
    let in_loss = gradients_in_losses(graph, &by_hand);
    let (mut forward, mut backward, mut optimizer) = (Vec::new(), Vec::new(), Vec::new());
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        match graph.stage(node) {
            Stage::Optimizer => optimizer.push(node),
            _ if by_hand[node.0 as usize] => optimizer.push(node),
            _ if in_loss[node.0 as usize] => forward.push(node),
            Stage::Backward => backward.push(node),
            _ if seeds_gradient(graph, node) => backward.push(node),
            _ => forward.push(node),
        }
    }
    notes.matched("training.step", "train.forward", "", RECORDED, forward);
    notes.matched("training.step", "train.backward", "", RECORDED, backward);
    notes.matched("training.step", "train.optimizer", "", RECORDED, optimizer);
}

/// For each node whether it computes a gradient that a loss is made of (penalties on gradients,
/// differential equations): forward work that a later backward pass goes back through reads it.
fn gradients_in_losses(graph: &Graph, by_hand: &[bool]) -> Vec<bool> {
    let stage = |node: NodeId| match by_hand[node.0 as usize] {
        true => Stage::Optimizer,
        false => graph.stage(node),
    };
    // For each node whether a backward pass reads its results, by way of forward work.
    let mut goes_back = vec![false; graph.len()];
    let mut in_loss = vec![false; graph.len()];
    for node in graph.nodes().rev() {
        let at = node.0 as usize;
        for reader in graph.successors(node).filter(|reader| *reader > node) {
            let next = reader.0 as usize;
            match (stage(node), stage(reader)) {
                (Stage::Optimizer, _) | (_, Stage::Optimizer) => {}
                (Stage::Backward, Stage::Backward) => in_loss[at] |= in_loss[next],
                (Stage::Backward, _) => in_loss[at] |= goes_back[next],
                (_, Stage::Backward) => {
                    goes_back[at] |= !in_loss[next];
                    in_loss[at] |= in_loss[next];
                }
                _ => {
                    goes_back[at] |= goes_back[next];
                    in_loss[at] |= in_loss[next];
                }
            }
        }
    }
    in_loss
}

/// For each node whether it is an optimizer's work outside its step: one written by hand, gradients
/// that are clipped, weights that follow others at a distance. It depends on gradients or on what
/// was updated, runs outside the backward pass, and leads to a write into a parameter, a moment or a
/// gradient, or to the optimizer.
fn updates_by_hand(graph: &Graph) -> Vec<bool> {
    let mut depends = vec![false; graph.len()];
    let mut follows = vec![false; graph.len()];
    let mut writes = vec![false; graph.len()];
    let outside = |node: NodeId| {
        graph.is_op(node) && !matches!(graph.stage(node), Stage::Backward | Stage::Optimizer)
    };
    for node in graph.nodes().filter(|node| outside(*node)) {
        let at = node.0 as usize;
        depends[at] = graph.predecessors(node).any(|from| {
            graph.stage(from) == Stage::Backward
                || (depends[from.0 as usize] && !writes[from.0 as usize])
        });
        let is_updated = |value: ValueId| {
            let from = graph.producer(value);
            let at = from.0 as usize;
            graph.stage(from) == Stage::Optimizer || writes[at] || follows[at]
        };
        let of = |is: &dyn Fn(ValueId) -> bool, all| {
            let mut inputs = graph.inputs(node).map(|input| is(input.value));
            if all { inputs.all(|it| it) } else { inputs.any(|it| it) }
        };
        follows[at] = each_alone(graph, node)
            && of(&is_updated, false)
            && of(&|value| is_updated(value) || is_given(graph, value), true);
        let kept = (depends[at] || follows[at]) && writes_given(graph, node);
        writes[at] = kept || depends[at] && writes_gradient(graph, node);
    }
    let mut updates = vec![false; graph.len()];
    for node in graph.nodes().rev().filter(|node| outside(*node)) {
        let at = node.0 as usize;
        let leads = |reader: NodeId| {
            let given = depends[at] && graph.stage(reader) == Stage::Optimizer;
            reader > node && (given || updates[reader.0 as usize])
        };
        updates[at] =
            (depends[at] || follows[at]) && (writes[at] || graph.successors(node).any(leads));
    }
    updates
}

/// Whether each element of the results depends on the same element of the operands only, also in
/// lists of tensors.
fn each_alone(graph: &Graph, node: NodeId) -> bool {
    graph.roles(node).has(Roles::ELEMENTWISE) || graph.name(node).starts_with("_foreach_")
}

/// Whether the node writes in place into a storage whose first content was given.
fn writes_given(graph: &Graph, node: NodeId) -> bool {
    graph.outputs(node).any(|out| {
        let values = graph.values_of(graph.storage(out.value));
        values.first().is_some_and(|first| *first != out.value && is_given(graph, *first))
    })
}

/// Whether the node writes in place into what a backward pass made.
fn writes_gradient(graph: &Graph, node: NodeId) -> bool {
    graph.outputs(node).any(|out| {
        let mut before = graph.values_of(graph.storage(out.value)).iter();
        before.any(|value| {
            *value < out.value && graph.stage(graph.producer(*value)) == Stage::Backward
        })
    })
}

/// Whether the node fills the gradient that a backward pass begins with: a constant that only
/// backward operators read. Autograd makes it before the first of them runs.
fn seeds_gradient(graph: &Graph, node: NodeId) -> bool {
    let constant = matches!(
        graph.op_name(node),
        "fill_" | "ones_like" | "full" | "full_like" | "ones" | "fill"
    );
    let mut readers = graph.successors(node).peekable();
    constant
        && readers.peek().is_some()
        && readers.all(|reader| graph.stage(reader) == Stage::Backward)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::General;
    use genie_plugin::builder::GraphBuilder;
    use genie_plugin::harness;

    #[test]
    fn an_update_by_hand_is_an_optimizer() {
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[4, 3]), g.weight(&[3, 2]));
        g.stage(Stage::Forward);
        let y = g.op("aten::mm", &[x, w], &[4, 2]);
        g.stage(Stage::Backward);
        let grad = g.op("aten::neg", &[y], &[3, 2]);
        g.stage(Stage::Forward);
        let step = g.op("aten::div.Tensor", &[grad], &[3, 2]);
        let w = g.in_place("aten::sub_.Tensor", w, &[step]);
        g.op("aten::matmul", &[x, w], &[4, 2]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        for (op, phase) in [
            ("mm", "train.forward"),
            ("neg", "train.backward"),
            ("div", "train.optimizer"),
            ("sub_", "train.optimizer"),
            ("matmul", "train.forward"),
        ] {
            seen.assert_phase_of(op, phase);
        }
    }

    #[test]
    fn clipping_before_a_step_and_a_slow_copy_after_it_are_the_optimizers() {
        let mut g = GraphBuilder::new();
        let (x, w, slow) = (g.input(&[4, 3]), g.weight(&[3, 2]), g.weight(&[3, 2]));
        g.stage(Stage::Forward);
        let y = g.op("aten::mm", &[x, w], &[4, 2]);
        g.stage(Stage::Backward);
        let grad = g.op("aten::neg", &[y], &[3, 2]);
        g.stage(Stage::Forward);
        let norm = g.op("aten::linalg_vector_norm", &[grad], &[]);
        let grad = g.in_place("aten::mul_.Tensor", grad, &[norm]);
        g.stage(Stage::Optimizer);
        let w = g.in_place("aten::add_.Tensor", w, &[grad]);
        g.stage(Stage::Forward);
        g.in_place("aten::lerp_.Scalar", slow, &[w]);
        g.op("aten::matmul", &[x, w], &[4, 2]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        for op in ["linalg_vector_norm", "mul_", "lerp_"] {
            seen.assert_phase_of(op, "train.optimizer");
        }
        seen.assert_phase_of("matmul", "train.forward");
    }

    #[test]
    fn operators_of_a_step_get_the_phase_of_their_stage() {
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[4, 3]), g.weight(&[3, 2]));
        g.stage(Stage::Forward);
        let y = g.op("aten::mm", &[x, w], &[4, 2]);
        let loss = g.op("aten::sum", &[y], &[]);
        let seed = g.op("aten::ones_like", &[loss], &[]);
        g.stage(Stage::Backward);
        let grad = g.op("aten::mul.Tensor", &[y, seed], &[4, 2]);
        g.stage(Stage::Optimizer);
        g.in_place("aten::sub_.Tensor", w, &[grad]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_matched("training.step");
        for (op, phase) in [
            ("mm", "train.forward"),
            ("sum", "train.forward"),
            ("ones_like", "train.backward"),
            ("mul", "train.backward"),
            ("sub_", "train.optimizer"),
        ] {
            seen.assert_phase_of(op, phase);
        }
    }
}
