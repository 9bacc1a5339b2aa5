//! One test for each sign of diffusion, and what only looks like it.

use super::*;
use genie_plugin::builder::{Given, GraphBuilder, Handle};

const MAPS: &[i64] = &[2, 8, 16, 16];
const PICTURE: &[i64] = &[2, 3, 16, 16];

/// What the rules say of a program that works on a picture.
fn said(program: impl FnOnce(&mut GraphBuilder, Handle)) -> Annotations {
    let (mut g, mut notes) = (GraphBuilder::new(), Annotations::new());
    let x = g.input(PICTURE);
    program(&mut g, x);
    recognize(&Facts::of(&g.build()), &mut notes);
    notes
}

fn claimed(notes: &Annotations) -> f32 {
    assert!(notes.workload.iter().all(|claim| claim.label == "diffusion"));
    notes.workload.first().map_or(0.0, |claim| claim.confidence)
}

fn convolution(g: &mut GraphBuilder, x: Handle, weight: Handle, sizes: &[i64]) -> Handle {
    let args = [Given::Tensor(0), Given::Tensor(1), Given::None, Given::Ints(&[1, 1])];
    g.op_with("aten::convolution", &[x, weight], Some(&args), sizes)
}

/// A denoiser of two blocks whose maps are shifted by `e`.
fn blocks(g: &mut GraphBuilder, x: Handle, e: Handle) {
    let [first, last] = [[8, 3, 3, 3], [3, 8, 3, 3]].map(|sizes| g.weight(&sizes));
    let mut y = convolution(g, x, first, MAPS);
    for _ in 0..2 {
        let (w, v) = (g.weight(&[8, 8, 3, 3]), g.weight(&[8, 8]));
        let shift = g.op("aten::mm", &[e, v], &[2, 8]);
        let shift = g.view(shift, &[2, 8, 1, 1]);
        y = convolution(g, y, w, MAPS);
        y = g.op("aten::add.Tensor", &[y, shift], MAPS);
    }
    convolution(g, y, last, PICTURE);
}

#[test]
fn vectors_of_the_step_that_shift_maps_are_a_denoiser() {
    let by_waves = said(|g, x| {
        let t = g.op("aten::full", &[], &[2, 8]);
        let waves = ["aten::sin", "aten::cos"].map(|wave| g.op(wave, &[t], &[2, 8]));
        let wave = g.op("aten::cat", &waves, &[2, 16]);
        let weight = g.weight(&[16, 8]);
        let e = g.op("aten::mm", &[wave, weight], &[2, 8]);
        blocks(g, x, e);
    });
    assert!(claimed(&by_waves) > 0.9);
    assert_eq!(by_waves.matches[0].phase, "diffusion.denoise");
    let by_table = said(|g, x| {
        let (table, t) = (g.weight(&[1000, 8]), g.input_of(&[2], DType::INT64));
        let e = g.op("aten::embedding", &[table, t], &[2, 8]);
        blocks(g, x, e);
    });
    assert!((0.5..0.9).contains(&claimed(&by_table)));
    // Squeeze and excite: the vector is of the picture itself.
    let by_itself = said(|g, x| {
        let first = g.weight(&[8, 3, 3, 3]);
        let y = convolution(g, x, first, MAPS);
        let e = g.op("aten::mean.dim", &[y], &[2, 8]);
        let gate = g.view(e, &[2, 8, 1, 1]);
        g.op("aten::mul.Tensor", &[y, gate], MAPS);
    });
    assert_eq!(claimed(&by_itself), 0.0);
}

#[test]
fn a_text_encoded_before_is_no_part_of_the_denoiser() {
    let notes = said(|g, x| {
        let (ids, table) = (g.input_of(&[2, 5], DType::INT64), g.weight(&[99, 8]));
        let words = g.op("aten::embedding", &[table, ids], &[2, 5, 8]);
        let words = g.op("aten::mean.dim", &[words], &[2, 8]);
        let t = g.op("aten::full", &[], &[2, 8]);
        let wave = g.op("aten::sin", &[t], &[2, 8]);
        let w = g.weight(&[8, 8]);
        let step = g.op("aten::mm", &[wave, w], &[2, 8]);
        blocks(g, x, step);
        g.op("aten::relu", &[words], &[2, 8]);
    });
    let [first, ..] = notes.matches[0].nodes[..] else { panic!("nothing denoises") };
    assert!(first > 3, "{first} is of the text");
}

#[test]
fn planes_that_grow_to_a_picture_are_a_latent_decoded() {
    for (latent, colours, found) in [(4, 3, true), (3, 3, false), (4, 19, false)] {
        let notes = said(|g, _| {
            let (z, first) = (g.input(&[1, latent, 8, 8]), g.weight(&[32, latent, 3, 3]));
            let y = convolution(g, z, first, &[1, 32, 8, 8]);
            let y = g.op("aten::upsample_nearest2d", &[y], &[1, 32, 16, 16]);
            let last = g.weight(&[colours, 32, 3, 3]);
            convolution(g, y, last, &[1, colours, 16, 16]);
        });
        let phase = notes.matches.first().map(|found| found.phase.as_str());
        assert_eq!(phase, found.then_some("diffusion.vae"), "{latent} to {colours}");
    }
}

#[test]
fn a_network_that_works_on_its_own_result_samples() {
    let sampled = |told: bool| {
        let notes = said(|g, mut x| {
            let planes = if told { 4 } else { 3 };
            let a = g.weight(&[8, planes, 3, 3]);
            let [b, c] = [[8, 8, 3, 3], [3, 8, 3, 3]].map(|sizes| g.weight(&sizes));
            for _ in 0..3 {
                let mut read = x;
                if told {
                    let t = g.op("aten::full", &[], &[2, 1, 16, 16]);
                    read = g.op("aten::cat", &[x, t], &[2, 4, 16, 16]);
                }
                let y = convolution(g, read, a, MAPS);
                let y = convolution(g, y, b, MAPS);
                let e = convolution(g, y, c, PICTURE);
                x = g.op("aten::sub.Tensor", &[x, e], PICTURE);
            }
        });
        claimed(&notes)
    };
    assert!(sampled(true) > 0.8 && (0.5..0.7).contains(&sampled(false)));
}

#[test]
fn points_corrected_again_and_again_are_sampled() {
    let sampled = |waves: bool, corrects: bool| {
        let notes = said(|g, _| {
            let (a, b, mut x) = (g.weight(&[18, 32]), g.weight(&[32, 2]), g.input(&[64, 2]));
            let still = g.input(&[64, 16]);
            for _ in 0..3 {
                let t = g.op("aten::full", &[], &[64, 16]);
                let wave = g.op("aten::sin", &[t], &[64, 16]);
                let told = if waves { wave } else { still };
                let joined = g.op("aten::cat", &[x, told], &[64, 18]);
                let y = g.op("aten::mm", &[joined, a], &[64, 32]);
                let e = g.op("aten::mm", &[y, b], &[64, 2]);
                x = if corrects { g.op("aten::sub.Tensor", &[x, e], &[64, 2]) } else { e };
            }
        });
        claimed(&notes)
    };
    assert!(sampled(true, true) > 0.85);
    assert_eq!((sampled(false, true), sampled(true, false)), (0.0, 0.0));
}
