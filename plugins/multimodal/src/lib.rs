//! Recognizes models that fuse modalities: a tower for each, and where they meet.
//!
//! [`fusion`] decides by what each value depends on: pixels alone, tokens alone, or both.

mod fusion;

#[cfg(test)]
mod tests;

use genie_plugin::prelude::*;
use genie_plugin::shapes::View;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Multimodal;

impl Plugin for Multimodal {
    fn info() -> Info {
        let summary = "Models that fuse modalities: towers, cross-attention, captioners";
        let provides = &["multimodal.tower", "multimodal.fusion", "multimodal.cross_attention"];
        Info::new("multimodal", env!("CARGO_PKG_VERSION"), summary, provides)
    }
}

impl Recognizer for Multimodal {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        fusion::recognize(&View::of(graph), &mut notes);
        Ok(notes)
    }
}

genie_plugin::recognizer!(Multimodal);
