//! Random graphs: valid columns of programs that nobody wrote.

use proptest::prelude::*;

use crate::builder::{Given, GraphBuilder, Handle};
use crate::{Columns, DType, Stage};

/// The most operators of a random graph.
pub const NODES_MAX: usize = 80;

/// Operators that recognizers look for, so that random graphs get past their first question.
const OPS: [&str; 40] = [
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::add.Tensor",
    "aten::add_.Tensor",
    "aten::mul.Tensor",
    "aten::div.Tensor",
    "aten::relu",
    "aten::relu_",
    "aten::gelu",
    "aten::silu",
    "aten::_softmax",
    "aten::_log_softmax",
    "aten::native_layer_norm",
    "aten::native_batch_norm",
    "aten::native_group_norm",
    "aten::rsqrt",
    "aten::mean.dim",
    "aten::pow.Tensor_Scalar",
    "aten::embedding",
    "aten::_embedding_bag",
    "aten::index_select",
    "aten::index.Tensor",
    "aten::index_copy_",
    "aten::index_put_",
    "aten::copy_",
    "aten::cat",
    "aten::convolution",
    "aten::max_pool2d_with_indices",
    "aten::_to_copy",
    "aten::clone",
    "aten::argmax",
    "aten::multinomial",
    "aten::topk",
    "aten::scatter_add_",
    "aten::_fft_r2c",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::arange",
    "genie::read",
    "home::made",
];
const SIZES: [i64; 10] = [0, 1, 2, 3, 8, 64, 77, 4096, 50_257, 1 << 40];
const DTYPES: [u8; 6] = [4, 5, 6, 11, 15, 3];
const PATHS: [&str; 5] = ["", "a", "model.layers.0.attn", "model.layers.1.attn", "Ünï.cöde"];

/// One random operator; the numbers choose by remainder.
type Choice = (u16, Vec<u16>, Vec<u8>, [u8; 6]);

/// Columns that [`Columns::check`] accepts, of up to [`NODES_MAX`] operators. Sizes, arguments,
/// dtypes, origins and stages are whatever they are; only the wiring is that of a program.
pub fn random_graphs() -> impl Strategy<Value = Columns> {
    let choice = (
        any::<u16>(),
        prop::collection::vec(any::<u16>(), 0..5),
        prop::collection::vec(any::<u8>(), 0..5),
        any::<[u8; 6]>(),
    );
    let codes = any::<(u8, u64)>();
    (prop::collection::vec(choice, 0..NODES_MAX), prop::collection::vec(codes, 1..8))
        .prop_map(|(choices, codes)| graph(&choices, &codes))
}

fn graph(choices: &[Choice], codes: &[(u8, u64)]) -> Columns {
    let mut g = GraphBuilder::new();
    let mut known: Vec<Handle> = Vec::new();
    for (what, from, sizes, [path, form, arg, dtype, stage, view]) in choices {
        let sizes: Vec<i64> =
            sizes.iter().map(|size| SIZES[*size as usize % SIZES.len()]).collect();
        let dtype = DType(DTYPES[*dtype as usize % DTYPES.len()]);
        let inputs: Vec<Handle> = match known.len() {
            0 => Vec::new(),
            // Recent tensors are used more often, as in a program.
            len => from.iter().map(|pick| known[len - 1 - (*pick as usize % len.min(9))]).collect(),
        };
        g.stage(
            [Stage::None, Stage::Forward, Stage::Backward, Stage::Optimizer][*stage as usize % 4],
        );
        let op = OPS[*what as usize % OPS.len()];
        let path = PATHS[*path as usize % PATHS.len()];
        let made = g.module(path, "Module", |g| match form % 8 {
            0 => vec![g.input_of(&sizes, dtype)],
            1 => vec![g.weight(&sizes)],
            2 => vec![g.earlier(&sizes, Stage::None)],
            3 if !inputs.is_empty() => vec![g.in_place(op, inputs[0], &inputs[1..])],
            4 => g.dtype(dtype).ops(op, &inputs, None, &[&sizes, &[], &sizes]),
            5 => g.ops(op, &inputs, Some(&[Given::Float(f64::NAN), Given::Varying]), &[]),
            6 => {
                let int = [i64::MIN, -1, 0, 1, i64::MAX][*arg as usize % 5];
                let args =
                    [Given::Ints(&[int, 2]), Given::Str("Ünï"), Given::None, Given::Int(int)];
                vec![g.op_with(op, &inputs, Some(&args), &sizes)]
            }
            _ => vec![g.dtype(dtype).op(op, &inputs, &sizes)],
        });
        known.extend(made);
        if let Some(last) = known.last()
            && view % 4 == 0
        {
            let other = g.view(*last, &[3, 5, 7][..*view as usize % 3]);
            known.push(other);
        }
    }
    let mut columns = g.columns();
    let mut codes = codes.iter().cycle();
    let mut next = || *codes.next().expect("there is at least one code");
    columns.storage_origin.iter_mut().for_each(|origin| *origin = next().0 % 9);
    columns.storage_alive.iter_mut().for_each(|alive| *alive = next().0 % 2);
    columns.flops.iter_mut().for_each(|flops| *flops = next().1);
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Graph;

    proptest! {
        #[test]
        fn random_graphs_are_valid_and_queries_answer(columns in random_graphs()) {
            use std::ops::ControlFlow;

            use crate::dataflow::{ByValue, CLIMB_MAX, add_servants, carry, climb, reach};

            let graph = Graph::new(columns).expect("the columns are valid");
            let all: Vec<_> = graph.nodes().collect();
            for node in graph.nodes() {
                assert!(graph.predecessors(node).all(|before| before < node));
                graph.args(node).for_each(drop);
                crate::cost::bytes_touched(&graph, node);
                if let Some(out) = graph.output(node, 0) {
                    climb(&graph, out.value, CLIMB_MAX, |_, node| match graph.input(node, 0) {
                        Some(input) => ControlFlow::Continue(input.value),
                        None => ControlFlow::Break(Some(node)),
                    });
                }
            }
            carry(&graph, &all, ByValue::given(&graph, |_| true), |facts, node| {
                let any = facts.any(&graph, node);
                move |_| any
            });
            let mut reached = reach(&graph, &all, all.first().copied(), |_| true);
            add_servants(&graph, &all, &mut reached, |_| true);
            crate::shapes::View::of(&graph);
        }
    }
}
