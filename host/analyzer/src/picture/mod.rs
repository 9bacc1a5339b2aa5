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

use genie_plugin::Columns;
use serde_json::Value;

use crate::merge::Reading;

pub use parts::BOXES_MAX;

/// A graph of Graphviz: phases and modules as clusters, folded as in [`svg()`].
pub fn dot(columns: &Columns, reading: &Reading) -> String {
    let facts = facts::Facts::new(columns, reading);
    dot::write(&facts, &parts::parts(&facts))
}

/// A picture for people, of at most [`BOXES_MAX`] boxes; without scripts or anything from elsewhere.
pub fn svg(columns: &Columns, reading: &Reading, title: &str) -> String {
    let facts = facts::Facts::new(columns, reading);
    svg::write(&facts, &parts::parts(&facts), title)
}

/// Every node and storage with what was said of it.
pub fn json(columns: &Columns, reading: &Reading) -> Value {
    json::value(&facts::Facts::new(columns, reading))
}
