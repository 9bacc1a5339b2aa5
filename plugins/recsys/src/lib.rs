//! Recognizes recommenders: embedding tables, feature interaction, dense towers.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Recsys;

impl Plugin for Recsys {
    fn info() -> Info {
        Info {
            name: "recsys".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Recognizes recommenders: embedding tables, feature interaction, dense towers".into(),
            provides: vec![],
        }
    }
}

impl Recognizer for Recsys {
    fn recognize(&self, _graph: &Graph) -> Result<Annotations, String> {
        Ok(Annotations::new())
    }
}

genie_plugin::recognizer!(Recsys);
