//! What has no domain of its own: perceptrons, forecasts, kernels, policies, fields.

use genie_plugin::prelude::*;
use genie_plugin::query::plain_name;
use genie_plugin::shapes::flow::{Flow, is_convolution, product};
use genie_plugin::shapes::modality::{Modalities, Modality};

/// Every window is at least this.
const FALLBACK: f32 = 0.12;

pub(crate) fn recognize(graph: &Graph, notes: &mut Annotations) {
    let flow = Flow::of(graph);
    let Some(confidence) = plain(graph, &flow) else { return };
    notes.workload("other", confidence);
    if !flow.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("other.forward", "other.forward", "", confidence, nodes);
    }
}

/// How sure it is that nothing but numbers in rows and series is computed; `None` where nothing is.
fn plain(graph: &Graph, flow: &Flow) -> Option<f32> {
    let seen = Seen::of(graph, flow);
    if seen.ops == 0 {
        return None;
    }
    if seen.lookups || seen.planes || seen.pixels || seen.spectra {
        return Some(FALLBACK);
    }
    Some(match () {
        // Kernels and filters: nothing of the other domains inverts matrices.
        () if seen.factorizes => 0.75,
        () if seen.attention => 0.4,
        () if seen.convolutions > 0 => 0.6,
        () if seen.products > 0 => 0.72,
        () => 0.2,
    })
}

#[derive(Debug, Default)]
struct Seen {
    ops: usize,
    /// Rows of a table by integers that the program gave.
    lookups: bool,
    /// Convolutions over planes or volumes.
    planes: bool,
    /// Pictures that were cut into rows, or sound.
    pixels: bool,
    spectra: bool,
    attention: bool,
    factorizes: bool,
    /// Convolutions over series.
    convolutions: usize,
    products: usize,
}

impl Seen {
    fn of(graph: &Graph, flow: &Flow) -> Seen {
        let mut seen = Seen::default();
        for node in graph.nodes().filter(|node| flow.is_forward(*node)) {
            seen.ops += 1;
            if is_convolution(graph, node) {
                match graph.input(node, 1).map_or(0, |weight| weight.dims()) {
                    0..=3 => seen.convolutions += 1,
                    _ => seen.planes = true,
                }
                continue;
            }
            seen.products += usize::from(product(graph, node).is_some());
            let name = plain_name(graph.op(node));
            seen.lookups |= name.contains("embedding");
            seen.spectra |= name.starts_with("_fft");
            seen.attention |= name.contains("scaled_dot_product")
                || name == "_native_multi_head_attention"
                || matches!(name, "_softmax" | "_safe_softmax") && meets_a_product(graph, node);
            seen.factorizes |= FACTORIZATIONS.iter().any(|part| name.contains(part));
        }
        let modalities = Modalities::of(graph, flow);
        for (_, entered) in &modalities.entries {
            seen.lookups |= entered.has(Modality::TOKENS);
            seen.pixels |= entered.has(Modality::IMAGE) || entered.has(Modality::AUDIO);
        }
        seen
    }
}

const FACTORIZATIONS: [&str; 9] = [
    "cholesky",
    "linalg_solve",
    "linalg_lu",
    "linalg_eig",
    "linalg_svd",
    "linalg_qr",
    "linalg_inv",
    "_det",
    "triangular",
];

/// Whether a softmax weighs rows: its result goes into a batched product.
fn meets_a_product(graph: &Graph, softmax: NodeId) -> bool {
    let mut at = softmax;
    for _ in 0..4 {
        let Some(next) = graph.successors(at).next() else { return false };
        match plain_name(graph.op(next)) {
            "bmm" | "matmul" => return true,
            "clone" | "native_dropout" | "_to_copy" | "mul" | "copy" => at = next,
            _ => return false,
        }
    }
    false
}
