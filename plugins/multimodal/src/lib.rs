//! Recognizes models that fuse modalities: towers, cross-attention, captioners.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Multimodal;

impl Plugin for Multimodal {
    fn info() -> Info {
        Info {
            name: "multimodal".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Recognizes models that fuse modalities: towers, cross-attention, captioners".into(),
            provides: vec![],
        }
    }
}

impl Recognizer for Multimodal {
    fn recognize(&self, _graph: &Graph) -> Result<Annotations, String> {
        Ok(Annotations::new())
    }
}

genie_plugin::recognizer!(Multimodal);
