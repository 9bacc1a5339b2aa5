//! One reading out of what several recognizers said.
//!
//! The rules, in order. *Workload*: of all claims the most confident wins; of equal ones `other` is last, the rest by label.
//! *Phase and modality of a node*: of all matches that say one, the most confident wins; equal ones
//! go to the smaller match, then by plugin, then by pattern. *Residency of a
//! storage*: the most confident claim, equal ones by plugin. *Attributes*: all, but those of the plugin that
//! won the workload stand alone for their key. So the same claims give the same
//! reading, in whatever order they came.

use std::collections::BTreeMap;

use genie_plugin::{Annotations, Columns, NodeId, StorageId};

/// What one recognizer said of the window.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub plugin: String,
    pub notes: Annotations,
}

/// A word with how sure who is of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Claim {
    /// Empty: nobody said anything.
    pub word: String,
    pub confidence: f32,
    pub by: String,
}

/// A match that was kept, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub by: String,
    pub pattern: String,
    pub phase: String,
    pub modality: String,
    pub confidence: f32,
    pub nodes: Vec<u32>,
}

/// What the window is, in the words of the most confident recognizers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    pub workload: Claim,
    /// The most confident claim for each label, most confident first.
    pub workloads: Vec<Claim>,
    /// For each node.
    pub phases: Vec<Claim>,
    pub modalities: Vec<Claim>,
    /// For each storage.
    pub residencies: Vec<Claim>,
    pub matches: Vec<Kept>,
    /// (key, value, plugin), without repeats.
    pub attributes: Vec<(String, String, String)>,
}

impl Reading {
    /// The reading as one recognizer would have said it, for policies.
    pub fn notes(&self) -> Annotations {
        let mut notes = Annotations::new();
        for claim in &self.workloads {
            notes.workload(&claim.word, claim.confidence);
        }
        let mut phases: BTreeMap<(&str, &str), (f32, Vec<u32>)> = BTreeMap::new();
        for (node, (phase, modality)) in self.phases.iter().zip(&self.modalities).enumerate() {
            if !phase.word.is_empty() {
                let entry = phases.entry((&phase.word, &modality.word)).or_default();
                entry.0 = entry.0.max(phase.confidence);
                entry.1.push(node as u32);
            }
        }
        // One match for each phase, without overlap; then the patterns, without phase.
        for ((phase, modality), (confidence, nodes)) in phases {
            let nodes = nodes.into_iter().map(NodeId);
            notes.matched("phase", phase, modality, confidence, nodes);
        }
        for kept in &self.matches {
            let nodes = kept.nodes.iter().copied().map(NodeId);
            notes.matched(&kept.pattern, "", &kept.modality, kept.confidence, nodes);
        }
        for (storage, claim) in self.residencies.iter().enumerate() {
            if !claim.word.is_empty() {
                notes.residency(StorageId(storage as u32), &claim.word, claim.confidence);
            }
        }
        for (key, value, _) in &self.attributes {
            notes.attribute(key, value.clone());
        }
        notes
    }
}

/// The label of what computes and is no known kind of model: anything else that is as sure is it.
pub const OTHER: &str = "other";
/// The label of a window that nobody recognized.
pub const UNKNOWN: &str = "unknown";

/// Merges what recognizers said of a graph with these columns.
pub fn merge(columns: &Columns, said: &[Said]) -> Reading {
    let mut reading = Reading {
        phases: vec![Claim::default(); columns.nodes()],
        modalities: vec![Claim::default(); columns.nodes()],
        residencies: vec![Claim::default(); columns.storage_bytes.len()],
        ..Reading::default()
    };
    let mut order: Vec<&Said> = said.iter().collect();
    order.sort_by(|a, b| a.plugin.cmp(&b.plugin));
    merge_workloads(&order, &mut reading);
    let mut ranked = rank_matches(&order);
    ranked.sort_by(|a, b| {
        b.found
            .confidence
            .total_cmp(&a.found.confidence)
            .then(a.found.nodes.len().cmp(&b.found.nodes.len()))
            .then(a.plugin.cmp(b.plugin))
            .then(a.found.pattern.cmp(&b.found.pattern))
            .then(a.found.nodes.cmp(&b.found.nodes))
    });
    for ranked in &ranked {
        let found = ranked.found;
        let claim = |word: &str| Claim {
            word: word.to_owned(),
            confidence: found.confidence,
            by: ranked.plugin.to_owned(),
        };
        for node in &found.nodes {
            let node = *node as usize;
            // A node out of range was refused with its plugin; be exact here all the same.
            let Some(phase) = reading.phases.get_mut(node) else { continue };
            if !found.phase.is_empty() && phase.word.is_empty() {
                *phase = claim(&found.phase);
            }
            let modality = &mut reading.modalities[node];
            if !found.modality.is_empty() && modality.word.is_empty() {
                *modality = claim(&found.modality);
            }
        }
    }
    reading.matches = ranked
        .iter()
        .map(|ranked| Kept {
            by: ranked.plugin.to_owned(),
            pattern: ranked.found.pattern.clone(),
            phase: ranked.found.phase.clone(),
            modality: ranked.found.modality.clone(),
            confidence: ranked.found.confidence,
            nodes: ranked.found.nodes.clone(),
        })
        .collect();
    for said in &order {
        for claim in &said.notes.residency {
            let Some(held) = reading.residencies.get_mut(claim.storage as usize) else { continue };
            if claim.confidence > held.confidence {
                *held = Claim {
                    word: claim.residency.clone(),
                    confidence: claim.confidence,
                    by: said.plugin.clone(),
                };
            }
        }
        for (key, value) in &said.notes.attributes {
            let attribute = (key.clone(), value.clone(), said.plugin.clone());
            if !reading.attributes.contains(&attribute) {
                reading.attributes.push(attribute);
            }
        }
    }
    // What the surest recognizer says of a thing is what is told of it.
    let by = reading.workload.by.clone();
    let of_surest = |key: &str, attributes: &[(String, String, String)]| {
        attributes.iter().any(|(other, _, who)| other == key && *who == by)
    };
    let all = std::mem::take(&mut reading.attributes);
    let kept = |(key, _, who): &&(String, String, String)| *who == by || !of_surest(key, &all);
    reading.attributes = all.iter().filter(kept).cloned().collect();
    reading
}

fn merge_workloads(order: &[&Said], reading: &mut Reading) {
    let mut best: BTreeMap<&str, Claim> = BTreeMap::new();
    for said in order {
        for claim in &said.notes.workload {
            let held = best.entry(&claim.label).or_default();
            if held.word.is_empty() || claim.confidence > held.confidence {
                *held = Claim {
                    word: claim.label.clone(),
                    confidence: claim.confidence,
                    by: said.plugin.clone(),
                };
            }
        }
    }
    let mut claims: Vec<Claim> = best.into_values().collect();
    let rank = |claim: &Claim| (claim.word == OTHER, claim.word.clone());
    claims.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(rank(a).cmp(&rank(b))));
    reading.workload = claims.first().cloned().unwrap_or(Claim {
        word: UNKNOWN.to_owned(),
        confidence: 0.0,
        by: String::new(),
    });
    reading.workloads = claims;
}

struct Ranked<'a> {
    plugin: &'a str,
    found: &'a genie_plugin::Match,
}

fn rank_matches<'a>(order: &[&'a Said]) -> Vec<Ranked<'a>> {
    let mut ranked = Vec::new();
    for said in order {
        for found in &said.notes.matches {
            ranked.push(Ranked { plugin: &said.plugin, found });
        }
    }
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn graph(nodes: usize) -> Columns {
        Columns { op: vec![0; nodes], storage_bytes: vec![0; 2], ..Columns::default() }
    }

    fn said(plugin: &str, label: &str, claim: f32, matches: &[(&str, f32, &[u32])]) -> Said {
        let mut notes = Annotations::new();
        if !label.is_empty() {
            notes.workload(label, claim);
        }
        for (phase, confidence, nodes) in matches {
            let nodes = nodes.iter().map(|node| NodeId(*node));
            notes.matched("pattern", phase, "", *confidence, nodes);
        }
        Said { plugin: plugin.to_owned(), notes }
    }

    #[test]
    fn the_surer_plugin_wins_and_others_fill_gaps() {
        let a = said("a", "vision", 0.9, &[("vision.head", 0.8, &[0, 1])]);
        let b = said("b", "llm", 0.3, &[("llm.decode", 0.3, &[1, 2])]);
        let reading = merge(&graph(3), &[b, a]);
        assert_eq!(reading.workload.word, "vision");
        let words: Vec<_> = reading.phases.iter().map(|claim| claim.word.as_str()).collect();
        assert_eq!(words, ["vision.head", "vision.head", "llm.decode"]);
        assert_eq!(reading.phases[2].by, "b");
    }

    #[test]
    fn of_equal_weights_the_smaller_match_wins() {
        let a = said("a", "", 0.0, &[("whole", 0.5, &[0, 1, 2])]);
        let b = said("b", "", 0.0, &[("part", 0.5, &[1])]);
        let reading = merge(&graph(3), &[a, b]);
        let words: Vec<_> = reading.phases.iter().map(|claim| claim.word.as_str()).collect();
        assert_eq!(words, ["whole", "part", "whole"]);
        assert_eq!(reading.workload.word, UNKNOWN);
    }

    proptest! {
        #[test]
        fn the_order_of_plugins_does_not_matter(
            claims in prop::collection::vec((0u8..4, 0u8..4, 0u8..3, prop::collection::vec(0u32..8, 1..5)), 1..6),
            seed in 0usize..24,
        ) {
            let mut list: Vec<Said> = claims.iter().enumerate().map(|(index, (claim, own, phase, nodes))| {
                let phase = format!("phase{phase}");
                let matches: [(&str, f32, &[u32]); 1] = [(&phase, f32::from(*own) / 4.0, nodes)];
                said(&format!("p{index}"), "x", f32::from(*claim) / 4.0, &matches)
            }).collect();
            let before = merge(&graph(8), &list);
            let len = list.len();
            list.rotate_left(seed % len);
            list.swap(0, seed % len);
            prop_assert_eq!(before, merge(&graph(8), &list));
        }
    }

    #[test]
    fn the_surest_says_what_an_attribute_is() {
        let said = |plugin: &str, confidence, value: &str| {
            let mut notes = Annotations::new();
            notes.workload(plugin, confidence);
            notes.attribute("architecture", value);
            notes.attribute(plugin, value);
            Said { plugin: plugin.into(), notes }
        };
        let reading = merge(&Columns::default(), &[said("a", 0.3, "x"), said("b", 0.9, "y")]);
        let told: Vec<(&str, &str)> =
            reading.attributes.iter().map(|(key, value, _)| (&**key, &**value)).collect();
        assert_eq!(told, [("a", "x"), ("architecture", "y"), ("b", "y")]);
    }
}
