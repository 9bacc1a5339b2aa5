//! Drawings of a graph: SVG and DOT for people, JSON for programs.
//!
//! [`parts`] folds the program to what fits a picture, [`layout`] places it, [`svg`](mod@svg)
//! and [`dot`](mod@dot) write it. Nothing here depends on time, chance or the order of a hash
//! table: the same graph gives the same bytes.

mod dot;
mod facts;
mod flow;
mod fold;
mod json;
mod layout;
mod palette;
mod parts;
mod svg;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::components::{Component, Parted};
use crate::merge::Reading;

pub use parts::BOXES_MAX;

/// Models that are drawn, those that do most; the others are counted.
const MODELS_MAX: usize = 12;

/// A graph of Graphviz: models, phases and modules as clusters, folded as in [`svg()`].
pub fn dot(parted: &Parted) -> String {
    let facts = facts::Facts::new(&parted.graph, &parted.reading);
    match &parted.parts[..] {
        [] | [_] => dot::write(&facts, &parts::parts(&facts, BOXES_MAX)),
        several => dot::write_models(&facts, &framed(several)),
    }
}

/// A picture for people, of at most [`BOXES_MAX`] boxes; without scripts or anything from elsewhere.
/// Of several models each has a frame.
pub fn svg(parted: &Parted, title: &str) -> String {
    let facts = facts::Facts::new(&parted.graph, &parted.reading);
    match &parted.parts[..] {
        [] | [_] => svg::write(&facts, &parts::parts(&facts, BOXES_MAX), title),
        several => svg::write_models(&facts, &framed(several), several.len(), title),
    }
}

/// A model of several, ready to be drawn.
struct Framed<'a> {
    facts: facts::Facts<'a>,
    panels: Vec<parts::Part>,
    /// Number, label, how sure, and sums.
    title: String,
}

fn framed(models: &[(Component, Reading)]) -> Vec<Framed<'_>> {
    let mut most: Vec<usize> = (0..models.len()).collect();
    most.sort_by_key(|number| (std::cmp::Reverse(models[*number].0.graph.len()), *number));
    most.truncate(MODELS_MAX);
    most.sort_unstable();
    let boxes = BOXES_MAX / most.len().max(1);
    let frame = |number: usize| {
        let (component, reading) = &models[number];
        let facts = facts::Facts::new(&component.graph, reading);
        let all = 0..facts.graph.len();
        let title = format!(
            "{}: {} ({:.0} % sure) \u{b7} {} \u{b7} {}",
            component.model,
            facts::shortened(&reading.workload.word, 40),
            reading.workload.confidence * 100.0,
            facts::plural(facts.ops(&all), "op"),
            facts::amount(facts.flops(&all), "FLOP")
        );
        Framed { panels: parts::parts(&facts, boxes), facts, title }
    };
    most.into_iter().map(frame).collect()
}

/// Every node and storage with what was said of it, and of each model.
pub fn json(parted: &Parted) -> Value {
    json::value(&facts::Facts::new(&parted.graph, &parted.reading), &parted.parts)
}
