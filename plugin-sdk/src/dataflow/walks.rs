//! Bounded walks from one value, against the flow of data or with it.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::graph::{Graph, NodeId, Tensor, ValueId};
use crate::operators::Roles;

/// How far a walk goes where nothing says otherwise.
pub const CLIMB_MAX: usize = 16;

/// Walks from a value to the operand that `step` names, and from there on, up to `limit` steps.
///
/// `step` sees the value and the node that made it. `Continue` names the next value;
/// `Break(Some(_))` is what was looked for, `Break(None)` says that it is not there.
pub fn climb<T>(
    graph: &Graph,
    from: ValueId,
    limit: usize,
    mut step: impl FnMut(ValueId, NodeId) -> ControlFlow<Option<T>, ValueId>,
) -> Option<T> {
    let mut at = from;
    for _ in 0..limit {
        match step(at, graph.producer(at)) {
            ControlFlow::Continue(next) => at = next,
            ControlFlow::Break(found) => return found,
        }
    }
    None
}

/// Walks from a value to the result of a reader that `step` names, and from there on: the
/// counterpart of [`climb`]. `step` sees the nodes that read the value.
pub fn descend<T>(
    graph: &Graph,
    from: ValueId,
    limit: usize,
    mut step: impl FnMut(&[NodeId]) -> ControlFlow<Option<T>, NodeId>,
) -> Option<T> {
    let mut at = from;
    for _ in 0..limit {
        match step(graph.consumers(at)) {
            ControlFlow::Continue(next) => at = graph.output(next, 0)?.value,
            ControlFlow::Break(found) => return found,
        }
    }
    None
}

/// Whether a way leads up from a value to one for which `is_it` holds, by way of nodes that
/// `through` lets pass; all operands are followed, nearest first, and `limit` values looked at.
pub fn leads_up(
    graph: &Graph,
    from: ValueId,
    limit: usize,
    mut is_it: impl FnMut(ValueId, NodeId) -> bool,
    through: impl Fn(NodeId) -> bool,
) -> bool {
    let mut open = VecDeque::from([from]);
    for _ in 0..limit {
        let Some(at) = open.pop_front() else { return false };
        let node = graph.producer(at);
        if is_it(at, node) {
            return true;
        }
        if through(node) {
            open.extend(graph.inputs(node).map(|input| input.value));
        }
    }
    false
}

/// Whether a way leads down from a value to a node for which `is_it` holds, by way of nodes that
/// `through` lets pass; nearest first, and `limit` readers looked at.
pub fn leads_down(
    graph: &Graph,
    from: ValueId,
    limit: usize,
    mut is_it: impl FnMut(NodeId) -> bool,
    through: impl Fn(NodeId) -> bool,
) -> bool {
    let mut open = VecDeque::from([from]);
    let mut looked = 0;
    while let Some(at) = open.pop_front() {
        for node in graph.consumers(at) {
            if is_it(*node) {
                return true;
            }
            looked += 1;
            if looked > limit {
                return false;
            }
            if through(*node) {
                open.extend(graph.outputs(*node).map(|out| out.value));
            }
        }
    }
    false
}

/// The value behind copies and casts: what was written before the first of them.
pub fn seen_through(graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    for _ in 0..CLIMB_MAX {
        let producer = graph.producer(value);
        match graph.input(producer, 0) {
            Some(Tensor { value: source, .. }) if graph.roles(producer).has(Roles::COPY) => {
                value = source
            }
            _ => break,
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::builder::GraphBuilder;

    #[test]
    fn walks_go_up_and_down_as_far_as_they_may() {
        let mut g = GraphBuilder::new();
        let w = g.weight(&[2, 2]);
        let half = g.dtype(DType(5)).op("aten::_to_copy", &[w], &[2, 2]);
        let x = g.input(&[2, 2]);
        let y = g.op("aten::mm", &[x, half], &[2, 2]);
        let z = g.in_place("aten::relu_", y, &[]);
        let [w, half, x, y, z] = [w, half, x, y, z].map(|handle| g.value_of(handle));
        let graph = g.build();
        assert_eq!(seen_through(&graph, half), w);
        assert_eq!(seen_through(&graph, y), y);
        let first = |limit| {
            climb(&graph, z, limit, |value, node| match graph.input(node, 0) {
                Some(input) => ControlFlow::Continue(input.value),
                None => ControlFlow::Break(Some(value)),
            })
        };
        assert_eq!((first(9), first(2)), (Some(x), None));
        let last = descend(&graph, w, 9, |readers| match readers {
            [next, ..] => ControlFlow::Continue(*next),
            [] => ControlFlow::Break(Some(())),
        });
        assert_eq!(last, Some(()));
        let through = |node| graph.name(node) != "mm";
        assert!(leads_up(&graph, z, 9, |value, _| value == w, |_| true));
        assert!(!leads_up(&graph, z, 9, |value, _| value == w, through));
        assert!(!leads_up(&graph, z, 1, |value, _| value == w, |_| true));
        assert!(leads_down(&graph, w, 9, |node| graph.name(node) == "relu", |_| true));
        assert!(!leads_down(&graph, w, 9, |node| graph.name(node) == "relu", through));
    }
}
