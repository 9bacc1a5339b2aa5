use super::*;
use genie_plugin::builder::{Given, GraphBuilder, Handle};

fn said(graph: &Graph) -> Annotations {
    let mut notes = Annotations::new();
    recognize(&Facts::of(graph), &mut notes);
    notes
}

fn convolution(g: &mut GraphBuilder, x: Handle, weight: Handle, sizes: &[i64]) -> Handle {
    let args = [Given::Tensor(0), Given::Tensor(1), Given::None, Given::Ints(&[1, 1])];
    g.op_with("aten::convolution", &[x, weight], Some(&args), sizes)
}

/// A vector for each of two samples, from the step's waves.
fn waves(g: &mut GraphBuilder) -> Handle {
    let t = g.op("aten::full", &[], &[2, 8]);
    let (sin, cos) = (g.op("aten::sin", &[t], &[2, 8]), g.op("aten::cos", &[t], &[2, 8]));
    let wave = g.op("aten::cat", &[sin, cos], &[2, 16]);
    let weight = g.weight(&[16, 8]);
    let e = g.op("aten::mm", &[wave, weight], &[2, 8]);
    g.op("aten::silu", &[e], &[2, 8])
}

/// A denoiser of two blocks whose maps are shifted by `e`.
fn blocks(g: &mut GraphBuilder, x: Handle, e: Handle) -> Handle {
    let maps = [2, 8, 16, 16];
    let first = g.weight(&[8, 3, 3, 3]);
    let mut y = convolution(g, x, first, &maps);
    for _ in 0..2 {
        let (w, v) = (g.weight(&[8, 8, 3, 3]), g.weight(&[8, 8]));
        let shift = g.op("aten::mm", &[e, v], &[2, 8]);
        let shift = g.view(shift, &[2, 8, 1, 1]);
        y = convolution(g, y, w, &maps);
        y = g.op("aten::add.Tensor", &[y, shift], &maps);
    }
    let last = g.weight(&[3, 8, 3, 3]);
    convolution(g, y, last, &[2, 3, 16, 16])
}

#[test]
fn waves_of_the_step_that_shift_maps_are_a_denoiser() {
    let mut g = GraphBuilder::new();
    let x = g.input(&[2, 3, 16, 16]);
    let e = waves(&mut g);
    let y = blocks(&mut g, x, e);
    let last = g.node_of(y);
    let notes = said(&g.build());
    assert_eq!(notes.workload[0].label, "diffusion");
    assert!(notes.workload[0].confidence > 0.9);
    assert_eq!(notes.matches[0].phase, "diffusion.denoise");
    assert!(notes.matches[0].nodes.contains(&last.0));
}

#[test]
fn a_looked_up_step_is_less_sure_and_no_step_says_nothing() {
    let mut g = GraphBuilder::new();
    let x = g.input(&[2, 3, 16, 16]);
    let table = g.weight(&[1000, 8]);
    let t = g.input_of(&[2], DType::INT64);
    let e = g.op("aten::embedding", &[table, t], &[2, 8]);
    blocks(&mut g, x, e);
    let notes = said(&g.build());
    assert_eq!(notes.workload[0].label, "diffusion");
    assert!(notes.workload[0].confidence < 0.9);

    // Squeeze and excite: the vector is of the picture itself.
    let mut g = GraphBuilder::new();
    let x = g.input(&[2, 3, 16, 16]);
    let first = g.weight(&[8, 3, 3, 3]);
    let y = convolution(&mut g, x, first, &[2, 8, 16, 16]);
    let e = g.op("aten::mean.dim", &[y], &[2, 8]);
    let gate = g.view(e, &[2, 8, 1, 1]);
    g.op("aten::mul.Tensor", &[y, gate], &[2, 8, 16, 16]);
    assert!(said(&g.build()).workload.is_empty());
}

#[test]
fn planes_that_grow_to_a_picture_are_a_latent_decoded() {
    for (latent, colours, found) in [(4, 3, true), (3, 3, false), (4, 19, false)] {
        let mut g = GraphBuilder::new();
        let z = g.input(&[1, latent, 8, 8]);
        let first = g.weight(&[32, latent, 3, 3]);
        let y = convolution(&mut g, z, first, &[1, 32, 8, 8]);
        let y = g.op("aten::upsample_nearest2d", &[y], &[1, 32, 16, 16]);
        let last = g.weight(&[colours, 32, 3, 3]);
        convolution(&mut g, y, last, &[1, colours, 16, 16]);
        let notes = said(&g.build());
        let phase = notes.matches.first().map(|found| found.phase.as_str());
        assert_eq!(phase, found.then_some("diffusion.vae"), "{latent} to {colours}");
    }
}

#[test]
fn a_network_that_works_on_its_own_result_samples() {
    let mut g = GraphBuilder::new();
    let maps = [1, 8, 16, 16];
    let (a, b, c) = (g.weight(&[8, 3, 3, 3]), g.weight(&[8, 8, 3, 3]), g.weight(&[3, 8, 3, 3]));
    let mut x = g.input(&[1, 3, 16, 16]);
    for _ in 0..3 {
        let y = convolution(&mut g, x, a, &maps);
        let y = convolution(&mut g, y, b, &maps);
        let e = convolution(&mut g, y, c, &[1, 3, 16, 16]);
        x = g.op("aten::sub.Tensor", &[x, e], &[1, 3, 16, 16]);
    }
    let notes = said(&g.build());
    assert_eq!(notes.workload[0].label, "diffusion");
    assert!(notes.workload[0].confidence < 0.7);
}

/// A perceptron applied three times to its own result.
fn points(with_waves: bool, corrects: bool) -> Annotations {
    let mut g = GraphBuilder::new();
    let (a, b) = (g.weight(&[18, 32]), g.weight(&[32, 2]));
    let still = g.input(&[64, 16]);
    let mut x = g.input(&[64, 2]);
    for _ in 0..3 {
        let told = match with_waves {
            true => {
                let t = g.op("aten::full", &[], &[64, 16]);
                g.op("aten::sin", &[t], &[64, 16])
            }
            false => still,
        };
        let joined = g.op("aten::cat", &[x, told], &[64, 18]);
        let y = g.op("aten::mm", &[joined, a], &[64, 32]);
        let y = g.op("aten::relu", &[y], &[64, 32]);
        let e = g.op("aten::mm", &[y, b], &[64, 2]);
        x = match corrects {
            true => g.op("aten::sub.Tensor", &[x, e], &[64, 2]),
            false => e,
        };
    }
    said(&g.build())
}

#[test]
fn points_corrected_again_and_again_are_sampled() {
    let notes = points(true, true);
    assert_eq!(notes.workload[0].label, "diffusion");
    assert!(notes.workload[0].confidence > 0.85);
    assert!(points(false, true).workload.is_empty());
    assert!(points(true, false).workload.is_empty());
}
