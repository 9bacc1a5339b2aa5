//! Small networks by hand: what they are taken for, and the phase of each part.

use genie_plugin::builder::{Given, GraphBuilder, Handle};
use genie_plugin::harness;
use genie_plugin::prelude::*;

use crate::General;

type Build = fn(&mut GraphBuilder) -> Handle;

/// A waveform, two convolutions, norm and a product over frames.
fn speech(g: &mut GraphBuilder) -> Handle {
    let (x, a, b) = (g.input(&[1, 1, 8000]), g.weight(&[32, 1, 10]), g.weight(&[32, 32, 4]));
    let x = g.convolve(x, a, &[5], false, &[1, 32, 1600]);
    let x = g.op("aten::gelu", &[x], &[1, 32, 1600]);
    let x = g.convolve(x, b, &[8], false, &[1, 32, 200]);
    let x = g.op("aten::relu", &[x], &[1, 32, 200]);
    let x = g.transpose(x, 1, 2);
    let x = g.op("aten::native_layer_norm", &[x], &[1, 200, 32]);
    let (x, w, b) = (g.view(x, &[200, 32]), g.weight(&[32, 16]), g.weight(&[16]));
    g.op("aten::addmm", &[b, x, w], &[200, 16])
}

/// Speech, and words that attend to it.
fn transcriber(g: &mut GraphBuilder) -> Handle {
    let frames = speech(g);
    let (ids, table) = (g.input_of(&[1, 3], DType::INT64), g.weight(&[90, 16]));
    let words = g.op("aten::embedding", &[table, ids], &[1, 3, 16]);
    let (words, keys) = (g.view(words, &[3, 16]), g.transpose(frames, 0, 1));
    let scores = g.op("aten::mm", &[words, keys], &[3, 200]);
    let weights = g.op("aten::_softmax", &[scores], &[3, 200]);
    g.op("aten::mm", &[weights, frames], &[3, 16])
}

/// A Fourier transform of frames.
fn spectrum(g: &mut GraphBuilder) -> Handle {
    let (x, window) = (g.input(&[1, 4096]), g.weight(&[256]));
    let (frames, w, b) = (g.view(x, &[16, 256]), g.weight(&[129, 8]), g.weight(&[8]));
    let frames = g.op("aten::mul.Tensor", &[frames, window], &[16, 256]);
    let spectrum = g.op("aten::_fft_r2c", &[frames], &[16, 129]);
    let power = g.op("aten::abs", &[spectrum], &[16, 129]);
    let log = g.op("aten::log", &[power], &[16, 129]);
    g.op("aten::addmm", &[b, log, w], &[16, 8])
}

/// Two products of frames are added, that many of them squared first.
fn powers<const SQUARES: usize>(g: &mut GraphBuilder) -> Handle {
    let (x, square) = (g.input(&[1, 4096]), [Given::Tensor(0), Given::Int(2)]);
    let frames = g.view(x, &[16, 256]);
    let mut waves = [g.weight(&[256, 129]), g.weight(&[256, 129])]
        .map(|wave| g.op("aten::mm", &[frames, wave], &[16, 129]));
    for wave in &mut waves[..SQUARES] {
        *wave = g.op_with("aten::pow.Tensor_Scalar", &[*wave], Some(&square), &[16, 129]);
    }
    let power = g.op("aten::add.Tensor", &waves, &[16, 129]);
    let log = g.op("aten::log", &[power], &[16, 129]);
    let (bands, w) = (g.view(log, &[1, 16, 129]), g.weight(&[8, 16, 3]));
    g.convolve(bands, w, &[1], false, &[1, 8, 127])
}

fn vocoder(g: &mut GraphBuilder) -> Handle {
    let (x, a, b) = (g.input(&[1, 80, 40]), g.weight(&[80, 32, 16]), g.weight(&[32, 1, 16]));
    let x = g.convolve(x, a, &[8], true, &[1, 32, 320]);
    let x = g.convolve(x, b, &[8], true, &[1, 1, 2560]);
    g.op("aten::tanh", &[x], &[1, 1, 2560])
}

#[test]
fn each_part_has_its_phase() {
    for (build, ops, phase) in [
        (speech as Build, "convolution gelu relu", "audio.frontend"),
        (speech, "native_layer_norm addmm", "audio.encode"),
        (transcriber, "addmm", "audio.encode"),
        (transcriber, "embedding mm _softmax", "audio.decode"),
        (spectrum, "mul _fft_r2c log", "audio.frontend"),
        (spectrum, "addmm", "audio.encode"),
        (powers::<2>, "mm pow log", "audio.frontend"),
        (powers::<2>, "convolution", "audio.encode"),
        (vocoder, "tanh", "audio.decode"),
    ] {
        let mut g = GraphBuilder::new();
        build(&mut g);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("audio");
        for op in ops.split(' ') {
            seen.assert_phase_of(op, phase);
        }
    }
}

/// A convolution over given numbers.
fn convolved(g: &mut GraphBuilder, data: &[i64], kernel: &[i64]) -> Handle {
    let (x, w, steps) = (g.input(data), g.weight(kernel), vec![1; kernel.len() - 2]);
    g.convolve(x, w, &steps, false, &[&[data[0], kernel[0]], &data[2..]].concat())
}

#[test]
fn what_looks_like_sound_in_part_is_not_surely_sound() {
    for (name, build, claims) in [
        ("long", (|g| convolved(g, &[1, 1, 64, 200], &[8, 1, 3, 3])) as Build, 0.7..=1.0),
        ("square", |g| convolved(g, &[1, 1, 28, 28], &[8, 1, 3, 3]), 0.0..=0.69),
        ("colours", |g| convolved(g, &[1, 3, 64, 200], &[8, 3, 3, 3]), 0.0..=0.69),
        ("sensors", |g| convolved(g, &[8, 4, 64], &[32, 4, 3]), 0.0..=0.0),
        ("no power", powers::<1>, 0.0..=0.49),
    ] {
        let mut g = GraphBuilder::new();
        build(&mut g);
        let notes = harness::recognize::<General>(&g.build()).notes;
        let claim = notes.workload.iter().find(|claim| claim.label == "audio");
        assert!(claims.contains(&claim.map_or(0.0, |claim| claim.confidence)), "{name}: {claim:?}");
    }
}
