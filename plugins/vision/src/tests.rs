//! Small networks by hand.

use genie_plugin::DType;
use genie_plugin::builder::{Given, GraphBuilder, Handle};
use genie_plugin::harness::{fuzz_recognizer, recognize};
use genie_plugin::prelude::*;

use crate::Vision;

struct Net(GraphBuilder);

impl Net {
    fn new() -> Net {
        Net(GraphBuilder::new())
    }

    fn convolution(&mut self, x: Handle, weight: &[i64], sizes: &[i64], stride: i64) -> Handle {
        let weight = self.0.weight(weight);
        self.convolution_by(x, weight, sizes, stride)
    }

    fn convolution_by(&mut self, x: Handle, weight: Handle, sizes: &[i64], stride: i64) -> Handle {
        self.0.convolve(x, weight, &[stride, stride], false, sizes)
    }

    fn norm(&mut self, x: Handle, sizes: &[i64]) -> Handle {
        let weight = self.0.weight(&sizes[1..2]);
        self.0.op("aten::native_batch_norm", &[x, weight], sizes)
    }

    fn relu(&mut self, x: Handle) -> Handle {
        self.0.in_place("aten::relu_", x, &[])
    }

    fn linear(&mut self, x: Handle, rows: i64, from: i64, to: i64) -> Handle {
        let (weight, bias) = (self.0.weight(&[from, to]), self.0.weight(&[to]));
        let x = self.0.view(x, &[rows, from]);
        self.0.op("aten::addmm", &[bias, x, weight], &[rows, to])
    }

    /// Two convolutions with a way around them.
    fn block(&mut self, x: Handle, channels: i64, size: i64) -> Handle {
        let (weight, sizes) = ([channels, channels, 3, 3], [2, channels, size, size]);
        let y = self.convolution(x, &weight, &sizes, 1);
        let y = self.norm(y, &sizes);
        let y = self.relu(y);
        let y = self.convolution(y, &weight, &sizes, 1);
        let y = self.norm(y, &sizes);
        let y = self.0.in_place("aten::add_.Tensor", y, &[x]);
        self.relu(y)
    }

    /// The phases that the recognizer gives these, in order.
    fn phases(self, what: &[Handle]) -> Vec<String> {
        let nodes: Vec<NodeId> = what.iter().map(|handle| self.0.node_of(*handle)).collect();
        let graph = self.0.build();
        let outcome = recognize::<Vision>(&graph);
        nodes.into_iter().map(|node| outcome.phase_of(node).to_owned()).collect()
    }
}

const STEM: &str = "vision.stem";
const BACKBONE: &str = "vision.backbone";
const HEAD: &str = "vision.head";
const DETECT: &str = "vision.detect";

#[test]
fn a_residual_network_has_stem_stages_and_head() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 64, 64]);
    let conv = n.convolution(x, &[8, 3, 7, 7], &[2, 8, 32, 32], 2);
    let norm = n.norm(conv, &[2, 8, 32, 32]);
    let pool = n.0.op("aten::max_pool2d_with_indices", &[norm], &[2, 8, 16, 16]);
    let one = n.block(pool, 8, 16);
    let down = n.convolution(one, &[16, 8, 3, 3], &[2, 16, 8, 8], 2);
    let two = n.block(down, 16, 8);
    let mean = n.0.op("aten::mean.dim", &[two], &[2, 16, 1, 1]);
    let scores = n.linear(mean, 2, 16, 10);
    n.0.read(scores);
    let what = [conv, norm, pool, one, down, two, mean, scores];
    let expect = [STEM, STEM, STEM, BACKBONE, BACKBONE, BACKBONE, HEAD, HEAD];
    let nodes: Vec<NodeId> = what.iter().map(|handle| n.0.node_of(*handle)).collect();
    let graph = n.0.build();
    let outcome = recognize::<Vision>(&graph);
    outcome.assert_workload("vision").assert_count("vision.stage", 2);
    let phases: Vec<&str> = nodes.into_iter().map(|node| outcome.phase_of(node)).collect();
    assert_eq!(phases, expect);
}

#[test]
fn a_plain_network_ends_with_its_last_map() {
    let mut n = Net::new();
    let x = n.0.input(&[4, 1, 8, 8]);
    let a = n.convolution(x, &[16, 1, 3, 3], &[4, 16, 8, 8], 1);
    let a = n.relu(a);
    let b = n.convolution(a, &[16, 16, 3, 3], &[4, 16, 8, 8], 1);
    let b = n.relu(b);
    let pool = n.0.op("aten::max_pool2d_with_indices", &[b], &[4, 16, 4, 4]);
    let scores = n.linear(pool, 4, 256, 10);
    n.0.read(scores);
    assert_eq!(n.phases(&[a, b, pool, scores]), [STEM, BACKBONE, BACKBONE, HEAD]);
}

#[test]
fn a_convolution_that_gives_the_classes_is_the_head() {
    let mut n = Net::new();
    let x = n.0.input(&[1, 3, 32, 32]);
    let a = n.convolution(x, &[8, 3, 3, 3], &[1, 8, 16, 16], 2);
    let b = n.convolution(a, &[16, 8, 3, 3], &[1, 16, 8, 8], 2);
    let c = n.convolution(b, &[10, 16, 1, 1], &[1, 10, 8, 8], 1);
    let mean = n.0.op("aten::mean.dim", &[c], &[1, 10, 1, 1]);
    n.0.read(mean);
    assert_eq!(n.phases(&[a, b, c, mean]), [STEM, BACKBONE, HEAD, HEAD]);
}

/// A transformer of two branches over patches; `after`: each branch ends with a norm.
fn transformer(after: bool) -> Vec<String> {
    let mut n = Net::new();
    let tokens = [2, 16, 32];
    let x = n.0.input(&[2, 3, 32, 32]);
    let patches = n.convolution(x, &[32, 3, 8, 8], &[2, 32, 4, 4], 8);
    let positions = n.0.weight(&[1, 16, 32]);
    let patches_in_rows = n.0.view(patches, &tokens);
    let mut y = n.0.op("aten::add.Tensor", &[patches_in_rows, positions], &tokens);
    let mut norm = y;
    for _ in 0..3 {
        let weight = n.0.weight(&[32]);
        let inner = match after {
            true => y,
            false => n.0.op("aten::native_layer_norm", &[y, weight], &tokens),
        };
        let z = n.linear(inner, 32, 32, 32);
        let z = n.0.op("aten::gelu", &[z], &[32, 32]);
        let z = n.linear(z, 32, 32, 32);
        let z = n.0.view(z, &tokens);
        y = n.0.op("aten::add.Tensor", &[y, z], &tokens);
        if after {
            y = n.0.op("aten::native_layer_norm", &[y, weight], &tokens);
            norm = y;
        }
    }
    if !after {
        let weight = n.0.weight(&[32]);
        norm = n.0.op("aten::native_layer_norm", &[y, weight], &tokens);
    }
    let mean = n.0.op("aten::mean.dim", &[norm], &[2, 32]);
    let scores = n.linear(mean, 2, 32, 10);
    n.0.read(scores);
    n.phases(&[patches, norm, mean, scores])
}

#[test]
fn the_last_norm_is_the_heads_unless_each_block_ends_with_one() {
    assert_eq!(transformer(false), [STEM, HEAD, HEAD, HEAD]);
    assert_eq!(transformer(true), [STEM, BACKBONE, HEAD, HEAD]);
}

#[test]
fn behind_residual_blocks_a_map_is_made_by_the_head() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 64, 64]);
    let a = n.convolution(x, &[8, 3, 7, 7], &[2, 8, 16, 16], 4);
    let b = n.block(a, 8, 16);
    let c = n.convolution(b, &[8, 8, 3, 3], &[2, 8, 16, 16], 1);
    let d = n.convolution(c, &[5, 8, 1, 1], &[2, 5, 16, 16], 1);
    let up = n.0.op("aten::upsample_bilinear2d", &[d], &[2, 5, 64, 64]);
    n.0.read(up);
    assert_eq!(n.phases(&[a, b, c, d, up]), [BACKBONE, BACKBONE, HEAD, HEAD, HEAD]);
}

#[test]
fn what_joins_skips_is_the_backbone_of_a_unet() {
    let mut n = Net::new();
    let x = n.0.input(&[1, 3, 32, 32]);
    let mut fine = n.convolution(x, &[8, 3, 3, 3], &[1, 8, 32, 32], 1);
    let stem = fine;
    fine = n.convolution(fine, &[8, 8, 3, 3], &[1, 8, 32, 32], 1);
    let pool = n.0.op("aten::max_pool2d_with_indices", &[fine], &[1, 8, 16, 16]);
    let deep = n.convolution(pool, &[16, 8, 3, 3], &[1, 16, 16, 16], 1);
    let deep = n.convolution(deep, &[16, 16, 3, 3], &[1, 16, 16, 16], 1);
    let up = n.0.op("aten::upsample_nearest2d", &[deep], &[1, 16, 32, 32]);
    let join = n.0.op("aten::cat", &[fine, up], &[1, 24, 32, 32]);
    let mixed = n.convolution(join, &[8, 24, 3, 3], &[1, 8, 32, 32], 1);
    let classes = n.convolution(mixed, &[4, 8, 1, 1], &[1, 4, 32, 32], 1);
    n.0.read(classes);
    let phases = n.phases(&[stem, deep, join, mixed, classes]);
    assert_eq!(phases, [STEM, BACKBONE, BACKBONE, BACKBONE, HEAD]);
}

#[test]
fn weights_shared_by_scales_begin_the_detector() {
    let mut n = Net::new();
    let x = n.0.input(&[1, 3, 64, 64]);
    let a = n.convolution(x, &[8, 3, 3, 3], &[1, 8, 16, 16], 4);
    let b = n.convolution(a, &[8, 8, 3, 3], &[1, 8, 8, 8], 2);
    let shared = n.0.weight(&[5, 8, 3, 3]);
    let fine = n.convolution_by(a, shared, &[1, 5, 16, 16], 1);
    let coarse = n.convolution_by(b, shared, &[1, 5, 8, 8], 1);
    let (rows, few) = (n.0.view(fine, &[1, 256, 5]), n.0.view(coarse, &[1, 64, 5]));
    let all = n.0.op("aten::cat", &[rows, few], &[1, 320, 5]);
    n.0.read(all);
    assert_eq!(n.phases(&[a, b, fine, coarse, all]), [BACKBONE, BACKBONE, DETECT, DETECT, DETECT]);
}

#[test]
fn boxes_of_queries_begin_behind_the_feature_maps() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 64, 64]);
    let a = n.convolution(x, &[8, 3, 7, 7], &[2, 8, 16, 16], 4);
    let b = n.block(a, 8, 16);
    let flat = n.convolution(b, &[16, 8, 1, 1], &[2, 16, 16, 16], 1);
    let boxes = n.linear(flat, 512, 16, 4);
    let boxes = n.0.op("aten::sigmoid", &[boxes], &[2, 256, 4]);
    n.0.read(boxes);
    assert_eq!(n.phases(&[a, b, flat, boxes]), [BACKBONE, BACKBONE, DETECT, DETECT]);
}

#[test]
fn a_norm_by_hand_is_the_stems() {
    let mut n = Net::new();
    let x = n.0.input(&[1, 3, 32, 32]);
    let (map, one) = ([1, 8, 8, 8], [1, 1, 8, 8]);
    let conv = n.convolution(x, &[8, 3, 4, 4], &map, 4);
    let mean = n.0.op("aten::mean.dim", &[conv], &one);
    let centered = n.0.op("aten::sub.Tensor", &[conv, mean], &map);
    let squares = n.0.op("aten::pow.Tensor_Scalar", &[centered], &map);
    let variance = n.0.op("aten::mean.dim", &[squares], &one);
    let scale = n.0.op("aten::rsqrt", &[variance], &one);
    let norm = n.0.op("aten::mul.Tensor", &[centered, scale], &map);
    let block = n.block(norm, 8, 8);
    let mean = n.0.op("aten::mean.dim", &[block], &[1, 8]);
    let scores = n.linear(mean, 1, 8, 10);
    n.0.read(scores);
    let phases = n.phases(&[conv, variance, norm, block, scores]);
    assert_eq!(phases, [STEM, STEM, STEM, BACKBONE, HEAD]);
}

/// A convolution as a product of windows.
fn by_windows(n: &mut Net, x: Handle, from: i64, to: i64, size: i64) -> Handle {
    let two = [2, 2];
    let ones = [1, 1];
    let args = [
        Given::Tensor(0),
        Given::Ints(&[3, 3]),
        Given::Ints(&ones),
        Given::Ints(&ones),
        Given::Ints(&two),
    ];
    let windows = [2, 9 * from, size * size];
    let columns = n.0.op_with("aten::im2col", &[x], Some(&args), &windows);
    let columns = n.0.transpose(columns, 1, 2);
    let weight = n.0.weight(&[2, 9 * from, to]);
    let out = n.0.op("aten::bmm", &[columns, weight], &[2, size * size, to]);
    let out = n.0.view(out, &[2, to, size, size]);
    n.0.op("aten::relu", &[out], &[2, to, size, size])
}

#[test]
fn products_of_windows_are_convolutions() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 32, 32]);
    let a = by_windows(&mut n, x, 3, 8, 16);
    let b = by_windows(&mut n, a, 8, 16, 8);
    let mean = n.0.op("aten::mean.dim", &[b], &[2, 16]);
    let scores = n.linear(mean, 2, 16, 10);
    n.0.read(scores);
    assert_eq!(n.phases(&[a, b, mean, scores]), [STEM, BACKBONE, HEAD, HEAD]);
}

#[test]
fn peaks_of_a_map_and_what_lies_there_are_objects() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 32, 32]);
    let a = n.convolution(x, &[8, 3, 3, 3], &[2, 8, 16, 16], 2);
    let b = n.convolution(a, &[16, 8, 3, 3], &[2, 16, 8, 8], 2);
    let heat = n.convolution(b, &[3, 16, 1, 1], &[2, 3, 8, 8], 1);
    let sizes = n.convolution(b, &[2, 16, 1, 1], &[2, 2, 8, 8], 1);
    let heat_by_row = n.0.view(heat, &[2, 192]);
    let at = n.0.dtype(DType::INT64).op("aten::topk", &[heat_by_row], &[2, 4]);
    let sizes_by_row = n.0.view(sizes, &[2, 2, 64]);
    let found = n.0.dtype(DType::FLOAT32).op("aten::gather", &[sizes_by_row, at], &[2, 2, 4]);
    n.0.read(found);
    let phases = n.phases(&[a, b, heat, sizes, found]);
    assert_eq!(phases, [BACKBONE, BACKBONE, DETECT, DETECT, DETECT]);
}

#[test]
fn maps_that_are_compared_begin_the_head() {
    let mut n = Net::new();
    let x = n.0.input(&[2, 3, 32, 32]);
    let a = n.convolution(x, &[8, 3, 3, 3], &[2, 8, 16, 16], 2);
    let b = n.convolution(a, &[16, 8, 3, 3], &[2, 16, 16, 16], 1);
    let (one, two) = (n.0.slice(b, 0, 0, 1), n.0.slice(b, 0, 1, 1));
    let product = n.0.op("aten::mul.Tensor", &[one, two], &[1, 16, 16, 16]);
    let cost = n.0.op("aten::mean.dim", &[product], &[1, 16, 16]);
    let cost = n.0.op("aten::stack", &[cost, cost], &[1, 2, 16, 16]);
    let c = n.convolution(cost, &[8, 2, 3, 3], &[1, 8, 16, 16], 1);
    let d = n.convolution(c, &[2, 8, 3, 3], &[1, 2, 16, 16], 1);
    n.0.read(d);
    assert_eq!(n.phases(&[a, b, product, c, d]), [STEM, BACKBONE, BACKBONE, HEAD, HEAD]);
}

#[test]
fn pictures_with_words_and_long_planes_are_left_to_others() {
    let mut n = Net::new();
    let x = n.0.input(&[1, 3, 32, 32]);
    let y = n.convolution(x, &[8, 3, 8, 8], &[1, 8, 4, 4], 8);
    let (table, ids) = (n.0.weight(&[500, 8]), n.0.input_of(&[1, 6], DType::INT64));
    let words = n.0.op("aten::embedding", &[table, ids], &[1, 6, 8]);
    let y = n.0.view(y, &[1, 16, 8]);
    let joined = n.0.op("aten::cat", &[y, words], &[1, 22, 8]);
    let z = n.linear(joined, 22, 8, 8);
    n.0.read(z);
    assert!(recognize::<Vision>(&n.0.build()).workload().is_some_and(|(_, sure)| sure < 0.3));

    let mut n = Net::new();
    let x = n.0.input(&[1, 1, 64, 400]);
    n.convolution(x, &[8, 1, 3, 3], &[1, 8, 64, 400], 1);
    recognize::<Vision>(&n.0.build()).assert_no_workload();
}

#[test]
fn of_a_training_step_only_the_workload_is_said() {
    let mut n = Net::new();
    n.0.stage(Stage::Forward);
    let x = n.0.input(&[2, 3, 16, 16]);
    let y = n.convolution(x, &[8, 3, 3, 3], &[2, 8, 16, 16], 1);
    n.0.stage(Stage::Backward);
    n.0.op("aten::mul.Tensor", &[y, y], &[2, 8, 16, 16]);
    let graph = n.0.build();
    let outcome = recognize::<Vision>(&graph);
    outcome.assert_workload("vision");
    assert!(outcome.notes.matches.is_empty());
}

#[test]
fn random_graphs_do_no_harm() {
    fuzz_recognizer::<Vision>(64);
}
