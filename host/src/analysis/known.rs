//! What was found, by topology, bounded.

use std::collections::HashMap;

use genie_srg::Hash128;
use genie_srg::segments::forget_older_half;

/// Topologies remembered by one host.
const TOPOLOGIES_MAX: usize = 4096;

/// What the recognizers and the policy say of one topology.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotated {
    pub workload: String,
    pub confidence: f32,
    /// Phases of the newest segment's operators, with their number.
    pub phases: Vec<(String, u32)>,
    pub policy: String,
}

/// All that this host's sessions met.
#[derive(Debug, Default)]
pub struct Known {
    topologies: HashMap<Hash128, (Annotated, u64)>,
    clock: u64,
    /// Sessions that met a topology which another had met.
    pub hits: u64,
    /// Topologies that wait for their recognizers, or are with them.
    pub waiting: u64,
    /// Topologies that found the queue full.
    pub dropped: u64,
    /// Time spent on recognizing and planning.
    pub us: u64,
}

impl Known {
    pub fn contains(&mut self, topology: Hash128) -> bool {
        self.clock += 1;
        match self.topologies.get_mut(&topology) {
            Some((_, used)) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Remembers a topology; beyond the bound the half that was unused longest is forgotten.
    pub fn insert(&mut self, topology: Hash128, annotated: Annotated) {
        self.clock += 1;
        self.topologies.insert(topology, (annotated, self.clock));
        if self.topologies.len() > TOPOLOGIES_MAX {
            forget_older_half(&mut self.topologies, |(_, used)| *used);
        }
    }

    pub fn len(&self) -> usize {
        self.topologies.len()
    }

    #[cfg(test)]
    pub fn get(&self, topology: Hash128) -> Option<&Annotated> {
        self.topologies.get(&topology).map(|(annotated, _)| annotated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays() {
        let annotated = Annotated {
            workload: "llm".into(),
            confidence: 0.9,
            phases: vec![],
            policy: "".into(),
        };
        let mut known = Known::default();
        for index in 0..2 * TOPOLOGIES_MAX as u128 {
            known.insert(Hash128(index), annotated.clone());
            assert!(known.contains(Hash128(0)) && known.len() <= TOPOLOGIES_MAX);
        }
        assert_eq!(known.get(Hash128(0)).unwrap().workload, "llm");
    }
}
