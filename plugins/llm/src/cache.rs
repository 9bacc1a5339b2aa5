//! Where keys and values of earlier tokens are kept.

use std::collections::BTreeMap;

use genie_plugin::evidence::{GOOD, LIKELY, PLAUSIBLE, STRONG};
use genie_plugin::prelude::*;
use genie_plugin::shapes::View;
use genie_plugin::shapes::flow::{is_given, passed_on};

/// Storages that hold keys or values of earlier tokens, and how they grow.
#[derive(Debug, Default)]
pub struct Caches {
    /// Storage -> confidence.
    pub storages: BTreeMap<u32, f32>,
    /// By concatenation: each step makes a longer one.
    pub concatenated: usize,
    /// Written in place: one storage of the full length.
    pub in_place: usize,
}

impl Caches {
    pub fn of(view: &View) -> Caches {
        let mut caches = Caches::default();
        for attention in &view.attentions {
            for value in [attention.key, attention.value] {
                caches.look(view, attention.q_len, attention.k_len, value);
            }
        }
        caches
    }

    /// How the caches of this window grow, in words; `None` without caches.
    pub fn kind(&self) -> Option<&'static str> {
        match (self.concatenated, self.in_place) {
            (0, 0) => None,
            (cat, place) if cat >= place => Some("dynamic"),
            _ => Some("static"),
        }
    }

    fn look(&mut self, view: &View, q_len: i64, k_len: i64, value: ValueId) {
        let graph = view.graph;
        let mut at = value;
        for _ in 0..16 {
            let node = graph.producer(at);
            match graph.op_name(node) {
                "cat" if k_len > q_len => {
                    self.concatenated += 1;
                    self.keep(graph, at, STRONG);
                    // What it was put behind is the cache of the step before.
                    if let Some(past) = graph.input(node, 0) {
                        self.keep(graph, past.value, LIKELY);
                    }
                    return;
                }
                "index_copy_" | "index_put_" | "_index_put_impl_" | "scatter_" => {
                    self.in_place += 1;
                    return self.keep(graph, at, STRONG);
                }
                "copy_" if is_part(graph, node) => {
                    self.in_place += 1;
                    return self.keep(graph, at, GOOD);
                }
                _ => match passed_on(graph, node) {
                    Some(next) if !is_given(graph, next.value) => at = next.value,
                    _ => break,
                },
            }
        }
        // Keys of a prefill that the program still holds are tomorrow's cache.
        let storage = graph.storage(at);
        let later = graph.consumers(at).iter().any(|node| {
            graph.op_name(*node) == "cat" && view.passes.at(*node) != view.passes.latest(at)
        });
        if later || (graph.is_alive(storage) && !is_given(graph, at) && !view.flow.training) {
            self.keep(graph, at, if later { STRONG } else { PLAUSIBLE });
        }
    }

    fn keep(&mut self, graph: &Graph, value: ValueId, confidence: f32) {
        let held = self.storages.entry(graph.storage(value).0).or_insert(0.0);
        *held = held.max(confidence);
    }
}

/// Whether a copy writes only a part of its destination's storage.
fn is_part(graph: &Graph, node: NodeId) -> bool {
    let Some(out) = graph.output(node, 0) else { return false };
    let bytes = graph.storage_bytes(graph.storage(out.value));
    bytes > out.elements().saturating_mul(8)
        || (graph.input(node, 0).is_some_and(|dest| dest.elements() > 0)
            && bytes >= out.elements().saturating_mul(4).saturating_mul(2))
}
