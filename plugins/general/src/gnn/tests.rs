//! One test for each way of writing a graph network, and what only looks like it.

use super::*;
use crate::General;
use genie_plugin::builder::{Given, GraphBuilder, Handle};
use genie_plugin::harness;

const NODES: i64 = 10;
const EDGES: i64 = 30;

/// How sure the rules are of what `program` writes; it is handed features of all nodes.
fn claimed(program: impl FnOnce(&mut GraphBuilder, Handle)) -> f32 {
    let mut g = GraphBuilder::new();
    let x = g.input(&[NODES, 8]);
    program(&mut g, x);
    let (graph, mut notes) = (g.build(), Annotations::new());
    recognize(&Facts::of(&graph), &mut notes);
    notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
}

fn linear(g: &mut GraphBuilder, x: Handle, rows: i64) -> Handle {
    let w = g.weight(&[8, 8]);
    g.op("aten::mm", &[x, w], &[rows, 8])
}

fn integers(g: &mut GraphBuilder, sizes: &[i64]) -> Handle {
    g.input_of(sizes, DType::INT64)
}

/// Picks by the first list, sums by the second.
fn message(g: &mut GraphBuilder, x: Handle, from: Handle, to: Handle) -> Handle {
    let sent = g.op("aten::index_select", &[x, from], &[EDGES, 8]);
    let sent = linear(g, sent, EDGES);
    let zeros = g.op("aten::zeros_like", &[x], &[NODES, 8]);
    g.op("aten::index_add", &[zeros, to, sent], &[NODES, 8])
}

#[test]
fn messages_go_along_edges() {
    let mut g = GraphBuilder::new();
    let (x, edges) = (g.input(&[NODES, 8]), integers(&mut g, &[2, EDGES]));
    let [from, to] = [0, 1].map(|end| {
        let row = g.slice(edges, 0, end, 1);
        g.view(row, &[EDGES])
    });
    message(&mut g, x, from, to);
    let graph = g.build();
    let seen = harness::recognize::<General>(&graph);
    seen.assert_workload("gnn");
    for op in ["index_select", "mm", "index_add"] {
        seen.assert_phase_of(op, "gnn.message_passing");
    }
}

#[test]
fn experts_are_no_edges() {
    // Experts pick and sum by one list.
    let one_list = claimed(|g, x| {
        let list = integers(g, &[EDGES]);
        message(g, x, list, list);
    });
    // Or scores of words chose both.
    let by_scores = claimed(|g, _| {
        let (ids, table) = (integers(g, &[NODES]), g.weight(&[99, 8]));
        let x = g.op("aten::embedding", &[table, ids], &[NODES, 8]);
        let scores = linear(g, x, NODES);
        let order = g.dtype(DType::INT64).op("aten::sort", &[scores], &[EDGES]);
        let word = g.op("aten::floor_divide", &[order], &[EDGES]);
        message(g, x, order, word);
    });
    assert_eq!((one_list, by_scores), (0.0, 0.0));
}

#[test]
fn differences_of_a_running_sum_add_segments() {
    let along = |dim| {
        claimed(|g, x| {
            let (from, ends) = (integers(g, &[EDGES]), integers(g, &[NODES + 1]));
            let sent = g.op("aten::index.Tensor", &[x, from], &[EDGES, 8]);
            let args = [Given::Tensor(0), Given::Int(dim)];
            let sums = g.op_with("aten::cumsum", &[sent], Some(&args), &[EDGES, 8]);
            let sums = g.op("aten::constant_pad_nd", &[sums], &[EDGES + 1, 8]);
            let picked = g.op("aten::index.Tensor", &[sums, ends], &[NODES + 1, 8]);
            let [above, below] = [1, 0].map(|start| g.slice(picked, 0, start, NODES));
            let sum = g.op("aten::sub.Tensor", &[above, below], &[NODES, 8]);
            linear(g, sum, NODES);
        })
    };
    assert!(along(0) > 0.8 && along(-2) > 0.8);
    assert_eq!(along(1), 0.0);
}

#[test]
fn a_table_of_neighbours_is_picked_and_pooled() {
    let by_table = |of_program| {
        claimed(|g, x| {
            let table = match of_program {
                true => integers(g, &[NODES, 3]),
                false => g.dtype(DType::INT64).op("aten::argmax", &[x], &[NODES, 3]),
            };
            let h = linear(g, x, NODES);
            let near = g.op("aten::index.Tensor", &[h, table], &[NODES, 3, 8]);
            let sum = g.op("aten::mean.dim", &[near], &[NODES, 8]);
            linear(g, sum, NODES);
        })
    };
    assert!(by_table(true) > 0.7);
    assert_eq!(by_table(false), 0.0);
}

#[test]
fn the_nearest_by_distance_are_neighbours_and_the_most_attended_are_not() {
    let nearest = |scores_op| {
        claimed(|g, x| {
            let mut h = x;
            for _ in 0..2 {
                let other = g.transpose(h, 0, 1);
                let scores = g.op("aten::mm", &[h, other], &[NODES, NODES]);
                let scores = g.op(scores_op, &[scores], &[NODES, NODES]);
                let near = g.dtype(DType::INT64).op("aten::topk", &[scores], &[NODES, 3]);
                let sent = g.op("aten::index.Tensor", &[h, near], &[NODES, 3, 8]);
                let sent = linear(g, sent, NODES * 3);
                h = g.op("aten::amax", &[sent], &[NODES, 8]);
            }
        })
    };
    assert!(nearest("aten::neg") > 0.7);
    assert_eq!(nearest("aten::_softmax"), 0.0);
}

#[test]
fn a_loop_pools_a_list_for_each_node() {
    let looped = |lists: i64| {
        claimed(|g, x| {
            let h = linear(g, x, NODES);
            let sums = (0..lists).map(|node| {
                let list = integers(g, &[2 + node % 3]);
                let near = g.op("aten::index.Tensor", &[h, list], &[2 + node % 3, 8]);
                g.op("aten::mean.dim", &[near], &[8])
            });
            let sums: Vec<Handle> = sums.collect();
            let rows = g.op("aten::stack", &sums, &[lists, 8]);
            linear(g, rows, lists);
        })
    };
    assert!(looped(NODES) > 0.7);
    assert_eq!(looped(2), 0.0);
}

#[test]
fn an_adjacency_matrix_mixes_rows_in_every_layer() {
    let mixed = |layers, normalized| {
        claimed(|g, mut x| {
            let mut a = g.input(&[NODES, NODES]);
            if normalized {
                let degrees = g.op("aten::sum.dim_IntList", &[a], &[NODES, 1]);
                a = g.op("aten::div.Tensor", &[a, degrees], &[NODES, NODES]);
            }
            for _ in 0..layers {
                let y = linear(g, x, NODES);
                let y = g.op("aten::mm", &[a, y], &[NODES, 8]);
                x = g.op("aten::relu", &[y], &[NODES, 8]);
            }
        })
    };
    assert!(mixed(2, false) >= 0.8 && mixed(1, true) >= 0.8 && mixed(2, true) > 0.8);
    // A square batch of rows looks the same.
    assert_eq!(mixed(1, false), 0.0);
    let perceptron = claimed(|g, _| {
        let x = g.input(&[8, 8]);
        let y = linear(g, x, 8);
        linear(g, y, 8);
    });
    assert_eq!(perceptron, 0.0);
}

#[test]
fn a_matrix_and_its_transpose_are_edges_unless_a_network_is_tied() {
    let both_ways = |tied, one_hot| {
        claimed(|g, x| {
            let ends = match one_hot {
                true => {
                    let list = integers(g, &[EDGES, 1]);
                    let zeros = g.op("aten::zeros", &[], &[EDGES, NODES]);
                    g.op("aten::scatter.value", &[zeros, list], &[EDGES, NODES])
                }
                false => g.input(&[EDGES, NODES]),
            };
            let mut h = match tied {
                true => g.op("aten::relu", &[x], &[NODES, 8]),
                false => linear(g, x, NODES),
            };
            for _ in 0..2 {
                let mut sent = g.op("aten::mm", &[ends, h], &[EDGES, 8]);
                if !tied {
                    sent = linear(g, sent, EDGES);
                }
                let back = g.transpose(ends, 0, 1);
                h = g.op("aten::mm", &[back, sent], &[NODES, 8]);
            }
        })
    };
    assert!(both_ways(false, false) > 0.8 && both_ways(false, true) > 0.8);
    assert_eq!(both_ways(true, false), 0.0);
}

#[test]
fn masked_sums_over_pairs_weigh_neighbours() {
    let attended = |bend, masked| {
        claimed(|g, x| {
            let (mask, w) = (g.input_of(&[NODES, NODES], DType::BOOL), g.weight(&[8, 1]));
            let h = linear(g, x, NODES);
            let [a, b] = [(); 2].map(|()| g.op("aten::mm", &[h, w], &[NODES, 1]));
            let b = g.transpose(b, 0, 1);
            let e = g.op("aten::add.Tensor", &[a, b], &[NODES, NODES]);
            let mut e = g.op(bend, &[e], &[NODES, NODES]);
            if masked {
                e = g.op("aten::masked_fill.Scalar", &[e, mask], &[NODES, NODES]);
            }
            let e = g.op("aten::_softmax", &[e], &[NODES, NODES]);
            g.op("aten::mm", &[e, h], &[NODES, 8]);
        })
    };
    assert!(attended("aten::leaky_relu", true) > 0.8);
    assert_eq!((attended("aten::leaky_relu", false), attended("aten::tanh", true)), (0.0, 0.0));
}

#[test]
fn filters_from_distances_multiply_neighbours() {
    let filtered = |pooled| {
        claimed(|g, x| {
            let at = g.input(&[NODES, 3]);
            let mut h = linear(g, x, NODES);
            let (a, b) = (g.view(at, &[NODES, 1, 3]), g.view(at, &[1, NODES, 3]));
            let away = g.op("aten::sub.Tensor", &[a, b], &[NODES, NODES, 3]);
            for _ in 0..2 {
                let (w, rows) = (g.weight(&[3, 8]), g.view(away, &[NODES * NODES, 3]));
                let filter = g.op("aten::mm", &[rows, w], &[NODES * NODES, 8]);
                let filter = g.view(filter, &[NODES, NODES, 8]);
                let ends = g.view(h, &[1, NODES, 8]);
                let sent = g.op("aten::mul.Tensor", &[filter, ends], &[NODES, NODES, 8]);
                h = match pooled {
                    true => g.op("aten::sum.dim_IntList", &[sent], &[NODES, 8]),
                    false => g.op("aten::select", &[sent], &[NODES, 8]),
                };
            }
        })
    };
    assert!(filtered(true) > 0.7);
    assert_eq!(filtered(false), 0.0);
}
