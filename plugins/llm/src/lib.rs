//! Recognizes language models: decoders with prefill and decode, KV caches, text encoders and
//! encoder-decoders.
//!
//! The SDK's shapes find attentions and passes over tokens; [`recognize`] decides which family it
//! is and which pass is which phase; [`cache`] finds where keys and values are kept.

mod cache;
mod recognize;

#[cfg(test)]
mod tests;

use genie_plugin::prelude::*;
use genie_plugin::shapes::View;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Llm;

impl Plugin for Llm {
    fn info() -> Info {
        let summary = "Language models: prefill and decode, KV caches, encoders, encoder-decoders";
        let provides = &[
            "llm.pass",
            "llm.kv_cache",
            "llm.scores",
            "text.encoder",
            "seq2seq.encoder",
            "seq2seq.decoder",
        ];
        Info::new("llm", env!("CARGO_PKG_VERSION"), summary, provides)
    }
}

impl Recognizer for Llm {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        let view = View::of(graph);
        recognize::recognize(&view, &mut notes);
        Ok(notes)
    }
}

genie_plugin::recognizer!(Llm);
