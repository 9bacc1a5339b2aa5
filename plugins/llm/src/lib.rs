//! Recognizes language models: families, prefill and decode, KV caches, text encoders, encoder-decoders.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Llm;

impl Plugin for Llm {
    fn info() -> Info {
        Info {
            name: "llm".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Recognizes language models: families, prefill and decode, KV caches, text encoders, encoder-decoders".into(),
            provides: vec![],
        }
    }
}

impl Recognizer for Llm {
    fn recognize(&self, _graph: &Graph) -> Result<Annotations, String> {
        Ok(Annotations::new())
    }
}

genie_plugin::recognizer!(Llm);
