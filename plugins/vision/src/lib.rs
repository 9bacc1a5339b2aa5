//! Recognizes vision models: stem, backbone stages, heads, detection.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Vision;

impl Plugin for Vision {
    fn info() -> Info {
        Info {
            name: "vision".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Recognizes vision models: stem, backbone stages, heads, detection".into(),
            provides: vec![],
        }
    }
}

impl Recognizer for Vision {
    fn recognize(&self, _graph: &Graph) -> Result<Annotations, String> {
        Ok(Annotations::new())
    }
}

genie_plugin::recognizer!(Vision);
