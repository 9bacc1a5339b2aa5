//! What fits none of the four domains: audio, diffusion, graph networks, plain networks.

use genie_plugin::prelude::*;

/// The recognizer.
#[derive(Debug, Default)]
pub struct General;

impl Plugin for General {
    fn info() -> Info {
        Info {
            name: "general".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Info::default()
        }
    }
}

impl Recognizer for General {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        notes.matched(
            "other",
            "other.forward",
            "",
            0.1,
            graph.nodes().filter(|node| graph.is_op(*node)),
        );
        notes.workload("other", 0.1);
        Ok(notes)
    }
}

genie_plugin::recognizer!(General);
