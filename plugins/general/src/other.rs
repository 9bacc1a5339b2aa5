//! What has no domain of its own: perceptrons, forecasts, kernels, policies, fields.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, product};
use genie_plugin::shapes::modality::Modality;

use crate::facts::Facts;

/// A table with fewer rows holds categories, not words, users or items.
const CATEGORIES_MAX: i64 = 64;
/// Every window is at least this.
const FALLBACK: f32 = 0.12;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    let Some(confidence) = plain(facts) else { return };
    notes.workload("other", confidence);
    if !facts.flow.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("other.forward", "other.forward", "", confidence, nodes);
    }
}

/// How sure it is that nothing but numbers in rows and series is computed; `None` where nothing is.
fn plain(facts: &Facts<'_>) -> Option<f32> {
    let seen = Seen::of(facts);
    if seen.ops == 0 {
        return None;
    }
    if seen.planes || seen.pixels && !seen.windows || seen.lookups && !seen.few_categories {
        return Some(FALLBACK);
    }
    Some(match () {
        // Numbers of a table with a few categories among them.
        () if seen.lookups && !seen.attention => 0.5,
        () if seen.lookups => FALLBACK,
        () if seen.spectra => 0.3,
        () if seen.windows => 0.82,
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
    /// A given series is read in windows that overlap.
    windows: bool,
    factorizes: bool,
    /// Convolutions over series.
    convolutions: usize,
    products: usize,
}

impl Seen {
    fn of(facts: &Facts<'_>) -> Seen {
        let (graph, flow) = (facts.graph, &facts.flow);
        let mut seen = Seen { few_categories: true, ..Seen::default() };
        for node in graph.nodes().filter(|node| flow.is_forward(*node)) {
            seen.ops += 1;
            if facts.graph.roles(node).has(Roles::CONVOLUTION) {
                match graph.input(node, 1).map_or(0, |weight| weight.dims()) {
                    0..=3 => seen.convolutions += 1,
                    _ => seen.planes = true,
                }
                continue;
            }
            seen.windows |=
                graph.inputs(node).any(|input| is_given(graph, input.value) && input.overlaps());
            seen.products += usize::from(product(facts.graph, node).is_some());
            let name = facts.graph.name(node);
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
        if seen.planes || seen.lookups && !seen.few_categories {
            // That is enough to know that it is something else.
            return seen;
        }
        for (node, entered) in &facts.modalities.entries {
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
        match graph.name(next) {
            "bmm" | "matmul" => return true,
            "clone" | "native_dropout" | "_to_copy" | "mul" | "copy" => at = next,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::General;
    use genie_plugin::builder::GraphBuilder;
    use genie_plugin::harness;

    fn claimed(graph: &Graph) -> f32 {
        let mut notes = Annotations::new();
        recognize(&Facts::of(graph), &mut notes);
        notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
    }

    #[test]
    fn a_perceptron_is_other() {
        let mut g = GraphBuilder::new();
        let (x, up, down) = (g.input(&[4, 8]), g.weight(&[8, 16]), g.weight(&[16, 1]));
        let y = g.op("aten::mm", &[x, up], &[4, 16]);
        let y = g.op("aten::relu", &[y], &[4, 16]);
        g.op("aten::mm", &[y, down], &[4, 1]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("other");
        seen.assert_phase_of("relu", "other.forward");
        assert!(claimed(&graph) > 0.6);
    }

    #[test]
    fn pictures_and_words_are_not() {
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[1, 3, 32, 32]), g.weight(&[8, 3, 3, 3]));
        g.op("aten::convolution", &[x, w], &[1, 8, 30, 30]);
        assert_eq!(claimed(&g.build()), FALLBACK);
        let mut g = GraphBuilder::new();
        let (ids, table) = (g.input_of(&[2, 9], DType::INT64), g.weight(&[900, 8]));
        g.op("aten::embedding", &[table, ids], &[2, 9, 8]);
        assert_eq!(claimed(&g.build()), FALLBACK);
    }

    #[test]
    fn categories_among_numbers_do_not_hide_them() {
        let mut g = GraphBuilder::new();
        let (day, days, x) = (g.input_of(&[4], DType::INT64), g.weight(&[7, 3]), g.input(&[4, 5]));
        let day = g.op("aten::embedding", &[days, day], &[4, 3]);
        let all = g.op("aten::cat", &[day, x], &[4, 8]);
        let w = g.weight(&[8, 1]);
        g.op("aten::mm", &[all, w], &[4, 1]);
        assert_eq!(claimed(&g.build()), 0.5);
    }

    #[test]
    fn an_empty_window_is_nothing() {
        assert_eq!(claimed(&GraphBuilder::new().build()), 0.0);
    }
}
