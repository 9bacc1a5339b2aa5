//! What fits none of the four domains: audio, diffusion, graph networks, plain networks; and the
//! stages of training.
//!
//! One file a domain, each with one function that adds to the annotations what it is sure of. It
//! never looks at names of modules or classes. Start reading at [`General`].

mod audio;
mod diffusion;
mod facts;
mod gnn;
mod other;
mod training;

use genie_plugin::prelude::*;

use crate::facts::Facts;

/// The recognizer.
#[derive(Debug, Default)]
pub struct General;

impl Plugin for General {
    fn info() -> Info {
        let summary = "Recognizes audio, diffusion, graph networks, plain networks and training";
        Info::new("general", env!("CARGO_PKG_VERSION"), summary, &[])
    }
}

impl Recognizer for General {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let facts = Facts::of(graph);
        let mut notes = Annotations::new();
        for domain in [
            training::recognize,
            gnn::recognize,
            audio::recognize,
            diffusion::recognize,
            other::recognize,
        ] {
            domain(&facts, &mut notes);
        }
        Ok(notes)
    }
}

genie_plugin::recognizer!(General);

#[cfg(test)]
mod tests {
    use super::*;
    use genie_plugin::harness;

    #[test]
    fn random_graphs_do_no_harm() {
        harness::fuzz_recognizer::<General>(64);
    }
}
