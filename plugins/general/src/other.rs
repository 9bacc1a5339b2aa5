//! What has no domain of its own: perceptrons, forecasts, kernels, policies, fields.

use genie_plugin::prelude::*;
use genie_plugin::query::plain_name;
use genie_plugin::shapes::flow::{Flow, is_convolution, product};
use genie_plugin::shapes::modality::{Modalities, Modality};

/// A table with fewer rows holds categories, not words, users or items.
const CATEGORIES_MAX: i64 = 64;
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
    if seen.planes || seen.pixels || seen.lookups && !seen.few_categories {
        return Some(FALLBACK);
    }
    Some(match () {
        // Numbers of a table with a few categories among them.
        () if seen.lookups && !seen.attention => 0.5,
        () if seen.lookups => FALLBACK,
        () if seen.spectra => 0.3,
        // Kernels and filters: nothing of the other domains inverts matrices.
        () if seen.factorizes => 0.75,
        () if seen.attention => 0.5,
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
    /// The tables have few rows, and each example looks up one of each: weekdays, kinds.
    few_categories: bool,
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
        let mut seen = Seen { few_categories: true, ..Seen::default() };
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
            if name.contains("embedding") {
                seen.lookups = true;
                let table = graph.input(node, 0).map_or(0, |table| table.size(0));
                let one_each = graph.input(node, 1).is_some_and(|index| {
                    index.size(0) as u64 == index.elements() && index.elements() > 1
                });
                seen.few_categories &= table < CATEGORIES_MAX && one_each;
            }
            seen.spectra |= name.starts_with("_fft");
            seen.attention |= name.contains("scaled_dot_product")
                || name == "_native_multi_head_attention"
                || name.contains("transformer_encoder_layer")
                || matches!(name, "_softmax" | "_safe_softmax") && meets_a_product(graph, node);
            seen.factorizes |= FACTORIZATIONS.iter().any(|part| name.contains(part));
        }
        let modalities = Modalities::of(graph, flow);
        for (node, entered) in &modalities.entries {
            if entered.has(Modality::TOKENS) && !graph.op(*node).contains("embedding") {
                seen.lookups = true;
                seen.few_categories = false;
            }
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
