//! One test for each way of writing a graph network, and what only looks like it.

use super::*;
use crate::General;
use genie_plugin::builder::{Given, GraphBuilder, Handle};
use genie_plugin::harness;

const NODES: i64 = 10;
const EDGES: i64 = 30;
const X: &[i64] = &[NODES, 8];
const SENT: &[i64] = &[EDGES, 8];
const PAIRS: &[i64] = &[NODES, NODES];

/// What `program` records; it is handed features of all nodes.
fn record(program: impl FnOnce(&mut GraphBuilder, Handle)) -> Graph {
    let mut g = GraphBuilder::new();
    let x = g.input(X);
    program(&mut g, x);
    g.build()
}

fn claimed(program: impl FnOnce(&mut GraphBuilder, Handle)) -> f32 {
    let (graph, mut notes) = (record(program), Annotations::new());
    recognize(&Facts::of(&graph), &mut notes);
    notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
}

fn linear(g: &mut GraphBuilder, x: Handle, sizes: &[i64]) -> Handle {
    let w = g.weight(&[8, 8]);
    g.op("aten::mm", &[x, w], sizes)
}

fn integers(g: &mut GraphBuilder, sizes: &[i64]) -> Handle {
    g.input_of(sizes, DType::INT64)
}

/// Picks by the first list, sums by the second.
fn message(g: &mut GraphBuilder, x: Handle, from: Handle, to: Handle) {
    let sent = g.op("aten::index_select", &[x, from], SENT);
    let sent = linear(g, sent, SENT);
    let zeros = g.op("aten::zeros_like", &[x], X);
    g.op("aten::index_add", &[zeros, to, sent], X);
}

#[test]
fn messages_go_along_edges() {
    let graph = record(|g, x| {
        let edges = integers(g, &[2, EDGES]);
        let [from, to] = [0, 1].map(|end| g.slice(edges, 0, end, 1));
        message(g, x, from, to);
    });
    let seen = harness::recognize::<General>(&graph);
    seen.assert_workload("gnn");
    for op in ["index_select", "mm", "index_add"] {
        seen.assert_phase_of(op, "gnn.message_passing");
    }
}

#[test]
fn experts_are_no_edges() {
    let one_list = claimed(|g, x| {
        let list = integers(g, &[EDGES]);
        message(g, x, list, list);
    });
    let chosen_by_scores = claimed(|g, _| {
        let (ids, table) = (integers(g, &[NODES]), g.weight(&[99, 8]));
        let x = g.op("aten::embedding", &[table, ids], X);
        let scores = linear(g, x, X);
        let order = g.dtype(DType::INT64).op("aten::sort", &[scores], &[EDGES]);
        let word = g.op("aten::floor_divide", &[order], &[EDGES]);
        message(g, x, order, word);
    });
    assert_eq!((one_list, chosen_by_scores), (0.0, 0.0));
}

#[test]
fn differences_of_a_running_sum_add_segments() {
    let confidence = claimed(|g, x| {
        let (from, ends) = (integers(g, &[EDGES]), integers(g, &[NODES + 1]));
        let sent = g.op("aten::index.Tensor", &[x, from], SENT);
        let args = [Given::Tensor(0), Given::Int(0)];
        let sums = g.op_with("aten::cumsum", &[sent], Some(&args), SENT);
        let sums = g.op("aten::constant_pad_nd", &[sums], &[EDGES + 1, 8]);
        let picked = g.op("aten::index.Tensor", &[sums, ends], &[NODES + 1, 8]);
        let ends = [1, 0].map(|start| g.slice(picked, 0, start, NODES));
        g.op("aten::sub.Tensor", &ends, X);
    });
    assert!(confidence > 0.8);
}

#[test]
fn lists_of_neighbours_are_picked_and_pooled() {
    let by_table = |of: &str| {
        claimed(|g, mut x| {
            for _ in 0..2 {
                let h = linear(g, x, X);
                let scores = g.op(of, &[h], PAIRS);
                let table = match of {
                    "given" => integers(g, &[NODES, 3]),
                    _ => g.dtype(DType::INT64).op("aten::topk", &[scores], &[NODES, 3]),
                };
                let near = g.op("aten::index.Tensor", &[h, table], &[NODES, 3, 8]);
                x = g.op("aten::mean.dim", &[near], X);
            }
        })
    };
    assert!(by_table("given") > 0.8 && by_table("aten::cdist") > 0.7);
    // The most attended are no neighbours.
    assert_eq!(by_table("aten::_softmax"), 0.0);
    let looped = |lists: i64| {
        claimed(|g, x| {
            let h = linear(g, x, X);
            for len in (0..lists).map(|node| 2 + node % 3) {
                let list = integers(g, &[len]);
                let near = g.op("aten::index.Tensor", &[h, list], &[len, 8]);
                g.op("aten::mean.dim", &[near], &[8]);
            }
        })
    };
    assert!(looped(NODES) > 0.7);
    assert_eq!(looped(2), 0.0);
}

#[test]
fn an_adjacency_matrix_mixes_rows_in_every_layer() {
    let mixed = |layers, by_degree| {
        claimed(|g, mut x| {
            let mut a = g.input(PAIRS);
            if by_degree {
                let degrees = g.op("aten::sum.dim_IntList", &[a], &[NODES, 1]);
                a = g.op("aten::div.Tensor", &[a, degrees], PAIRS);
            }
            for _ in 0..layers {
                let y = linear(g, x, X);
                let y = g.op("aten::mm", &[a, y], X);
                x = g.op("aten::relu", &[y], X);
            }
        })
    };
    assert!(mixed(2, false) >= 0.8 && mixed(1, true) >= 0.8 && mixed(2, true) > 0.8);
    // A square batch of rows looks the same.
    assert_eq!(mixed(1, false), 0.0);
    let perceptron = claimed(|g, _| {
        let x = g.input(&[8, 8]);
        let y = linear(g, x, &[8, 8]);
        linear(g, y, &[8, 8]);
    });
    assert_eq!(perceptron, 0.0);
}

#[test]
fn a_matrix_and_its_transpose_are_edges_unless_a_network_is_tied() {
    let both_ways = |tied: bool, one_hot: bool| {
        claimed(|g, x| {
            let (list, mut ends) = (integers(g, &[EDGES, 1]), g.input(&[EDGES, NODES]));
            if one_hot {
                let zeros = g.op("aten::zeros", &[], &[EDGES, NODES]);
                ends = g.op("aten::scatter.value", &[zeros, list], &[EDGES, NODES]);
            }
            let mut h = g.op("aten::relu", &[x], X);
            for _ in 0..2 {
                let sent = g.op("aten::mm", &[ends, h], SENT);
                let sent = if tied { sent } else { linear(g, sent, SENT) };
                let back = g.transpose(ends, 0, 1);
                h = g.op("aten::mm", &[back, sent], X);
            }
        })
    };
    assert!(both_ways(false, false) > 0.8 && both_ways(false, true) > 0.8);
    assert_eq!(both_ways(true, false), 0.0);
}

#[test]
fn masked_sums_over_pairs_weigh_neighbours() {
    let attended = |bend, mask| {
        claimed(|g, x| {
            let w = g.weight(&[8, 1]);
            let [a, b] = [(); 2].map(|()| g.op("aten::mm", &[x, w], &[NODES, 1]));
            let b = g.transpose(b, 0, 1);
            let e = g.op("aten::add.Tensor", &[a, b], PAIRS);
            let e = g.op(bend, &[e], PAIRS);
            let e = g.op(mask, &[e], PAIRS);
            g.op("aten::_softmax", &[e], PAIRS);
        })
    };
    assert!(attended("aten::leaky_relu", "aten::masked_fill.Scalar") > 0.7);
    assert_eq!(attended("aten::leaky_relu", "aten::mul.Scalar"), 0.0);
    assert_eq!(attended("aten::tanh", "aten::masked_fill.Scalar"), 0.0);
}

#[test]
fn filters_from_distances_multiply_neighbours() {
    let filtered = |pool| {
        claimed(|g, x| {
            let (at, mut h) = (g.input(&[NODES, 3]), linear(g, x, X));
            let (a, b) = (g.view(at, &[NODES, 1, 3]), g.view(at, &[1, NODES, 3]));
            let away = g.op("aten::sub.Tensor", &[a, b], &[NODES, NODES, 3]);
            for _ in 0..2 {
                let (w, ends) = (g.weight(&[3, 8]), g.view(h, &[1, NODES, 8]));
                let filter = g.op("aten::matmul", &[away, w], &[NODES, NODES, 8]);
                let sent = g.op("aten::mul.Tensor", &[filter, ends], &[NODES, NODES, 8]);
                h = g.op(pool, &[sent], X);
            }
        })
    };
    assert!(filtered("aten::sum.dim_IntList") > 0.7);
    assert_eq!(filtered("aten::select"), 0.0);
}
