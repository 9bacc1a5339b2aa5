//! What has no domain of its own: perceptrons, forecasts, kernels, policies, fields.

use genie_plugin::evidence::{CLAIM_MIN, FAIR, FALLBACK, LIKELY, PLAUSIBLE, POSSIBLE};
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, product};
use genie_plugin::shapes::{Convolution, Modality};

use crate::facts::Facts;

/// A table with fewer rows holds categories, not words, users or items.
const CATEGORIES_MAX: i64 = 64;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    if facts.nodes.is_empty() {
        return;
    }
    let confidence = plain(facts);
    notes.workload("other", confidence);
    if !facts.flow.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("other.forward", "other.forward", "", confidence, nodes);
    }
}

/// How sure it is that nothing but numbers in rows and series is computed.
fn plain(facts: &Facts<'_>) -> f32 {
    let graph = facts.graph;
    let any = |holds: &dyn Fn(NodeId) -> bool| facts.nodes.iter().any(|node| holds(*node));
    let has = |roles| any(&|node| graph.roles(node).has(roles));
    let attends = || !facts.attentions().is_empty();
    // A given series is read in windows that overlap.
    let slides = any(&|node| {
        graph.inputs(node).any(|input| is_given(graph, input.value) && input.overlaps())
    });
    // Pictures that were cut into rows, or sound.
    let senses = facts
        .modalities
        .entries
        .iter()
        .any(|(_, entered)| entered.has(Modality::IMAGE) || entered.has(Modality::AUDIO));
    let over_planes = |node| Convolution::of(graph, node).is_some_and(|found| found.spatial >= 2);
    match lookups(facts) {
        Lookups::Entities => FALLBACK,
        _ if any(&over_planes) || senses && !slides => FALLBACK,
        // Numbers of a table with a few categories among them.
        Lookups::Categories if !attends() => POSSIBLE,
        Lookups::Categories => FALLBACK,
        Lookups::None if has(Roles::FOURIER) => CLAIM_MIN,
        Lookups::None if slides => LIKELY,
        // Kernels and filters: nothing of the other domains inverts matrices.
        Lookups::None if has(Roles::FACTORIZATION) => LIKELY,
        Lookups::None if attends() => POSSIBLE,
        Lookups::None if has(Roles::CONVOLUTION) => PLAUSIBLE,
        Lookups::None if any(&|node| product(graph, node).is_some()) => FAIR,
        Lookups::None => FALLBACK,
    }
}

/// Rows of tables that are looked up by integers.
enum Lookups {
    None,
    /// The tables have few rows, and each example looks up one of each: weekdays, kinds.
    Categories,
    /// Words, users, items.
    Entities,
}

fn lookups(facts: &Facts<'_>) -> Lookups {
    let graph = facts.graph;
    let is_lookup = |node: NodeId| graph.name(node).contains("embedding");
    let is_category = |node: NodeId| {
        let rows = graph.input(node, 0).map_or(0, |table| table.size(0));
        let one_each = graph
            .input(node, 1)
            .is_some_and(|index| index.size(0) as u64 == index.elements() && index.elements() > 1);
        rows < CATEGORIES_MAX && one_each
    };
    let mut entries = facts.modalities.entries.iter();
    let by_hand = entries.any(|(node, of)| of.has(Modality::TOKENS) && !is_lookup(*node));
    let mut tables = facts.nodes.iter().filter(|node| is_lookup(**node)).peekable();
    match tables.peek().is_some() {
        _ if by_hand => Lookups::Entities,
        false => Lookups::None,
        true if tables.all(|node| is_category(*node)) => Lookups::Categories,
        true => Lookups::Entities,
    }
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
