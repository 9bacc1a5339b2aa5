//! A recognizer that says anything of anything: whatever it says, no result may change.

use genie_plugin::prelude::*;

/// The recognizer. Its numbers depend on the graph alone.
#[derive(Debug, Default)]
pub struct Random;

const PHASES: [&str; 5] =
    ["llm.prefill", "vision.head", "train.optimizer", "a phase of my own", ""];
const RESIDENCIES: [&str; 5] = ["weight", "kv_cache", "activation", "output", "nonsense"];

impl Plugin for Random {
    fn info() -> Info {
        Info { name: "random".into(), version: "0.1.0".into(), ..Info::default() }
    }
}

impl Recognizer for Random {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut numbers = Numbers(graph.len() as u64 ^ 0x9e37_79b9_7f4a_7c15);
        let mut notes = Annotations::new();
        for label in ["llm", "vision", "gnn"] {
            notes.workload(label, numbers.share());
        }
        for node in graph.nodes() {
            let phase = PHASES[numbers.next() as usize % PHASES.len()];
            notes.matched("random", phase, "noise", numbers.share(), [node]);
        }
        for storage in graph.storages() {
            let residency = RESIDENCIES[numbers.next() as usize % RESIDENCIES.len()];
            notes.residency(storage, residency, numbers.share());
        }
        Ok(notes)
    }
}

/// xorshift64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn share(&mut self) -> f32 {
        (self.next() % 1000) as f32 / 1000.0
    }
}

genie_plugin::recognizer!(Random);
