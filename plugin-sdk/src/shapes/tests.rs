//! The shapes on small graphs made by hand.

use crate::builder::{Given, GraphBuilder, Handle};
use crate::shapes::attention::Causality;
use crate::shapes::flow::factors;
use crate::shapes::{Modality, View};
use crate::{DType, Graph};

const HEADS: i64 = 2;
const WIDTH: i64 = 16;

/// Token ids, as the program uploads them.
fn tokens(g: &mut GraphBuilder, count: i64) -> Handle {
    g.input_of(&[1, count], DType::INT64)
}

fn embed(g: &mut GraphBuilder, table: Handle, ids: Handle, count: i64) -> Handle {
    g.dtype(DType::FLOAT32);
    g.op("aten::embedding", &[table, ids], &[1, count, WIDTH])
}

fn project(g: &mut GraphBuilder, x: Handle, count: i64) -> Handle {
    let weight = g.weight(&[WIDTH, WIDTH]);
    let rows = g.view(x, &[count, WIDTH]);
    g.op("aten::mm", &[rows, weight], &[count, WIDTH])
}

fn heads(g: &mut GraphBuilder, x: Handle, count: i64) -> Handle {
    g.view(x, &[HEADS, count, WIDTH / HEADS])
}

/// Attention written out over `keys`, with what `mask` makes of the scores.
fn attend(
    g: &mut GraphBuilder,
    query: Handle,
    keys: Handle,
    values: Handle,
    (q_len, k_len): (i64, i64),
    mask: impl FnOnce(&mut GraphBuilder, Handle) -> Handle,
) -> Handle {
    let turned = g.transpose(keys, 1, 2);
    let scores = g.op("aten::bmm", &[query, turned], &[HEADS, q_len, k_len]);
    let scaled = g.op("aten::div.Tensor", &[scores], &[HEADS, q_len, k_len]);
    let masked = mask(g, scaled);
    let weights = g.op("aten::_softmax", &[masked], &[HEADS, q_len, k_len]);
    g.op("aten::bmm", &[weights, values], &[HEADS, q_len, WIDTH / HEADS])
}

/// One layer over `x`; keys and values come back.
fn layer(
    g: &mut GraphBuilder,
    x: Handle,
    count: i64,
    mask: impl FnOnce(&mut GraphBuilder, Handle) -> Handle,
) -> (Handle, Handle, Handle) {
    let (q, k, v) = (project(g, x, count), project(g, x, count), project(g, x, count));
    let (q, k, v) = (heads(g, q, count), heads(g, k, count), heads(g, v, count));
    let out = attend(g, q, k, v, (count, count), mask);
    (out, k, v)
}

fn triangle(g: &mut GraphBuilder, scores: Handle, count: i64) -> Handle {
    g.dtype(DType::BOOL);
    let ones = g.op("aten::ones", &[], &[count, count]);
    g.dtype(DType::BOOL);
    let lower = g.op("aten::tril", &[ones], &[count, count]);
    g.dtype(DType::FLOAT32);
    g.op("aten::masked_fill.Scalar", &[scores, lower], &[HEADS, count, count])
}

fn causality(graph: &Graph) -> Vec<Causality> {
    View::of(graph).attentions.iter().map(|attention| attention.causality).collect()
}

#[test]
fn a_triangle_makes_attention_causal() {
    for (causal, expected) in [(true, Causality::Causal), (false, Causality::Bidirectional)] {
        let mut g = GraphBuilder::new();
        let (table, ids) = (g.weight(&[50, WIDTH]), tokens(&mut g, 5));
        let x = embed(&mut g, table, ids, 5);
        layer(&mut g, x, 5, |g, scores| if causal { triangle(g, scores, 5) } else { scores });
        let graph = g.build();
        assert_eq!(causality(&graph), [expected]);
        let view = View::of(&graph);
        assert_eq!((view.attentions[0].q_len, view.attentions[0].k_len), (5, 5));
        assert_eq!(view.passes.list.len(), 1);
        assert_eq!(view.passes.list[0].causal, causal);
    }
}

#[test]
fn fused_attention_tells_by_its_flag() {
    for causal in [true, false] {
        let mut g = GraphBuilder::new();
        let x = g.input(&[1, 4, WIDTH]);
        let q = project(&mut g, x, 4);
        let q = g.view(q, &[1, HEADS, 4, WIDTH / HEADS]);
        let tensors = [Given::Tensor(0), Given::Tensor(1), Given::Tensor(2)];
        let args: Vec<Given> =
            tensors.into_iter().chain([Given::None, Given::Bool(causal), Given::None]).collect();
        let sizes = [1, HEADS, 4, WIDTH / HEADS];
        g.op_with("aten::scaled_dot_product_attention", &[q, q, q], Some(&args), &sizes);
        let expected = if causal { Causality::Causal } else { Causality::Bidirectional };
        assert_eq!(causality(&g.build()), [expected]);
    }
}

#[test]
fn a_product_has_a_left_and_a_right_factor() {
    let mut g = GraphBuilder::new();
    let (x, w, bias) = (g.input(&[4, 8]), g.weight(&[8, 8]), g.weight(&[8]));
    let plain = g.op("aten::mm", &[x, w], &[4, 8]);
    let biased = g.op("aten::addmm", &[bias, x, w], &[4, 8]);
    let bent = g.op("aten::relu", &[biased], &[4, 8]);
    let nodes = [plain, biased, bent].map(|handle| g.node_of(handle));
    let (x, w) = (g.value_of(x), g.value_of(w));
    let graph = g.build();
    let found = nodes.map(|node| factors(&graph, node).map(|(a, b)| (a.value, b.value)));
    assert_eq!(found, [Some((x, w)), Some((x, w)), None]);
}

#[test]
fn integers_are_the_programs_unless_scores_took_part() {
    let mut g = GraphBuilder::new();
    let given = tokens(&mut g, 4);
    let x = g.input(&[4, 8]);
    let best = g.dtype(DType::INT64).op("aten::argmax", &[x], &[1, 4]);
    let both = g.op("aten::add.Tensor", &[given, best], &[1, 4]);
    let values = [given, best, both].map(|handle| g.value_of(handle));
    let graph = g.build();
    let view = View::of(&graph);
    assert_eq!(
        values.map(|value| view.modalities.integers(value).by_program()),
        [true, false, false]
    );
}

#[test]
fn a_cache_that_grows_is_a_past_and_a_choice_is_known() {
    let mut g = GraphBuilder::new();
    let (table, ids) = (g.weight(&[50, WIDTH]), tokens(&mut g, 5));
    let x = embed(&mut g, table, ids, 5);
    let (out, k, v) = layer(&mut g, x, 5, |g, scores| triangle(g, scores, 5));
    let head = g.transpose(table, 0, 1);
    let last = g.view(out, &[5, WIDTH]);
    let logits = g.op("aten::mm", &[last, head], &[5, 50]);
    g.dtype(DType::INT64);
    let chosen = g.op("aten::argmax", &[logits], &[1, 1]);
    // The next step.
    let x = embed(&mut g, table, chosen, 1);
    let (q, new_k, new_v) = (project(&mut g, x, 1), project(&mut g, x, 1), project(&mut g, x, 1));
    let (q, new_k, new_v) = (heads(&mut g, q, 1), heads(&mut g, new_k, 1), heads(&mut g, new_v, 1));
    let k = g.op("aten::cat", &[k, new_k], &[HEADS, 6, WIDTH / HEADS]);
    let v = g.op("aten::cat", &[v, new_v], &[HEADS, 6, WIDTH / HEADS]);
    attend(&mut g, q, k, v, (1, 6), |_, scores| scores);
    let graph = g.build();
    let view = View::of(&graph);
    let [prompt, step] = &view.passes.list[..] else { panic!("{:?}", view.passes.list) };
    assert_eq!((prompt.tokens, prompt.past, prompt.chosen, prompt.scores.len()), (5, 0, false, 1));
    assert_eq!((step.tokens, step.past, step.chosen), (1, 5, true));
    assert!(prompt.crossing.is_empty() && step.crossing.is_empty());
}

#[test]
fn keys_of_another_text_are_crossing() {
    let mut g = GraphBuilder::new();
    let (table, source) = (g.weight(&[50, WIDTH]), tokens(&mut g, 7));
    let x = embed(&mut g, table, source, 7);
    let (memory, _, _) = layer(&mut g, x, 7, |_, scores| scores);
    let other = g.weight(&[60, WIDTH]);
    let target = tokens(&mut g, 3);
    let y = embed(&mut g, other, target, 3);
    let (q, k, v) = (project(&mut g, y, 3), project(&mut g, memory, 7), project(&mut g, memory, 7));
    let (q, k, v) = (heads(&mut g, q, 3), heads(&mut g, k, 7), heads(&mut g, v, 7));
    attend(&mut g, q, k, v, (3, 7), |_, scores| scores);
    let graph = g.build();
    let view = View::of(&graph);
    assert_eq!(view.passes.list.len(), 2);
    assert_eq!(view.passes.list[1].crossing, [1]);
}

#[test]
fn each_input_has_its_modality_and_they_meet() {
    let mut g = GraphBuilder::new();
    let picture = g.input(&[1, 3, 8, 8]);
    let kernel = g.weight(&[WIDTH, 3, 4, 4]);
    let map = g.op("aten::convolution", &[picture, kernel], &[1, WIDTH, 2, 2]);
    let (table, ids) = (g.weight(&[50, WIDTH]), tokens(&mut g, 4));
    let words = embed(&mut g, table, ids, 4);
    let seen = g.view(map, &[1, 4, WIDTH]);
    let both = g.op("aten::mul.Tensor", &[seen, words], &[1, 4, WIDTH]);
    let values = [map, words, both].map(|handle| g.value_of(handle));
    let graph = g.build();
    let view = View::of(&graph);
    let met = Modality::IMAGE.with(Modality::TOKENS);
    assert_eq!(
        values.map(|value| view.modalities.value(value)),
        [Modality::IMAGE, Modality::TOKENS, met]
    );
}

#[test]
fn positions_are_no_tokens() {
    let mut g = GraphBuilder::new();
    let picture = g.input(&[1, 3, 8, 8]);
    let kernel = g.weight(&[WIDTH, 3, 4, 4]);
    let map = g.op("aten::convolution", &[picture, kernel], &[1, WIDTH, 2, 2]);
    let places = g.weight(&[4, WIDTH]);
    let ids = g.input_of(&[1, 4], DType::INT64);
    let place = embed(&mut g, places, ids, 4);
    let seen = g.view(map, &[1, 4, WIDTH]);
    let sum = g.op("aten::add.Tensor", &[seen, place], &[1, 4, WIDTH]);
    let sum = g.value_of(sum);
    let graph = g.build();
    let view = View::of(&graph);
    assert_eq!(view.modalities.value(sum), Modality::IMAGE);
    assert!(view.passes.list.is_empty());
}

#[test]
fn a_one_hot_matrix_times_a_table_is_a_lookup() {
    let mut g = GraphBuilder::new();
    let ids = g.input_of(&[5, 1], DType::INT64);
    g.dtype(DType::INT64);
    let zeros = g.op("aten::zeros", &[], &[5, 50]);
    let hot = g.in_place("aten::scatter_.value", zeros, &[ids]);
    g.dtype(DType::FLOAT32);
    let rows = g.op("aten::_to_copy", &[hot], &[5, 50]);
    let table = g.weight(&[50, WIDTH]);
    let x = g.op("aten::mm", &[rows, table], &[5, WIDTH]);
    project(&mut g, x, 5);
    let graph = g.build();
    let view = View::of(&graph);
    assert_eq!(view.passes.list.len(), 1);
    assert_eq!((view.passes.list[0].tokens, view.passes.list[0].vocabulary), (5, 50));
}

#[test]
fn the_backward_pass_and_the_optimizer_do_not_count() {
    let mut g = GraphBuilder::new();
    let (table, ids) = (g.weight(&[50, WIDTH]), tokens(&mut g, 5));
    let x = embed(&mut g, table, ids, 5);
    g.stage(crate::Stage::Backward);
    layer(&mut g, x, 5, |_, scores| scores);
    let graph = g.build();
    let view = View::of(&graph);
    assert!(view.flow.training && view.attentions.is_empty());
}
