//! What a plugin implements: one trait per kind.

use crate::annotations::Annotations;
use crate::graph::Graph;
use crate::plan::{Cluster, Edit, Hint, Info, Plan, Sample};

/// Common to all kinds. A plugin is made with `Default`, configured once, and called many times.
pub trait Plugin: Default {
    fn info() -> Info;

    /// Takes the manifest's `[config]` table as JSON. An error refuses the plugin.
    fn configure(&mut self, json: &str) -> Result<(), String> {
        let _ = json;
        Ok(())
    }
}

/// Says what a graph is doing.
pub trait Recognizer: Plugin {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String>;
}

/// Says where a graph should run.
pub trait Policy: Plugin {
    fn schedule(&self, graph: &Graph, notes: &Annotations, now: &Cluster) -> Result<Plan, String>;
}

/// Proposes edits that are exact by construction.
pub trait Rewriter: Plugin {
    fn rewrite(&self, graph: &Graph, notes: &Annotations) -> Result<Vec<Edit>, String>;
}

/// Adapts hints to what was measured.
pub trait HintGiver: Plugin {
    fn adapt(
        &self,
        now: &Cluster,
        samples: &[Sample],
        current: &[Hint],
    ) -> Result<Vec<Hint>, String>;
}
