//! What is read of a window's models, told as one.

use genie_plugin::{Columns, Graph};

use super::{Component, HANDED_OVER, mark, part, weights};
use crate::merge::{Claim, Kept, OTHER, Reading, UNKNOWN};

/// The label of a program whose models have several.
pub const MIXED: &str = "mixed";

/// A window with its models, and what was read of each and of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Parted {
    /// The window, each node marked with its model.
    pub graph: Graph,
    pub parts: Vec<(Component, Reading)>,
    pub reading: Reading,
}

/// Has each model of a window read, and all of it told as one.
pub fn read(columns: Columns, mut read_one: impl FnMut(&Columns) -> Reading) -> Parted {
    let graph = mark(columns);
    let mut with_reading = |component: Component| {
        let reading = read_one(component.graph.columns());
        (component, reading)
    };
    let parts: Vec<_> = part(&graph).into_iter().map(&mut with_reading).collect();
    let reading = gather(graph.columns(), &parts);
    Parted { graph, parts, reading }
}

/// The readings of a window's components as one of the window.
fn gather(columns: &Columns, parts: &[(Component, Reading)]) -> Reading {
    let mut whole = Reading {
        phases: vec![Claim::default(); columns.nodes()],
        modalities: vec![Claim::default(); columns.nodes()],
        residencies: vec![Claim::default(); columns.storage_bytes.len()],
        ..Reading::default()
    };
    for (part, reading) in parts {
        for (node, of) in part.nodes.iter().enumerate().filter(|(_, of)| **of != HANDED_OVER) {
            let of = *of as usize;
            if !reading.phases[node].word.is_empty() {
                whole.phases[of] = reading.phases[node].clone();
            }
            if !reading.modalities[node].word.is_empty() {
                whole.modalities[of] = reading.modalities[node].clone();
            }
        }
        for (storage, claim) in part.storages.iter().zip(&reading.residencies) {
            let held = &mut whole.residencies[*storage as usize];
            if claim.confidence > held.confidence {
                *held = claim.clone();
            }
        }
        whole.matches.extend(reading.matches.iter().map(|kept| {
            Kept {
                nodes: kept
                    .nodes
                    .iter()
                    .map(|node| part.nodes[*node as usize])
                    .filter(|node| *node != HANDED_OVER)
                    .collect(),
                ..kept.clone()
            }
        }));
        for attribute in &reading.attributes {
            if !whole.attributes.contains(attribute) {
                whole.attributes.push(attribute.clone());
            }
        }
    }
    workloads(parts, &mut whole);
    whole
}

/// What is read of each model: of what it does in training and besides, what is surer.
pub(crate) fn of_models(parts: &[(Component, Reading)]) -> Vec<&(Component, Reading)> {
    let mut models: Vec<&(Component, Reading)> = Vec::new();
    for part in parts {
        match models.iter_mut().find(|(held, _)| held.model == part.0.model) {
            Some(held) if held.1.workload.confidence >= part.1.workload.confidence => {}
            Some(held) => *held = part,
            None => models.push(part),
        }
    }
    models
}

/// One label, where all models have it. What nobody knows, and what is no kind of model and has no weights
/// (a search over what a model said), counts where nothing else is there.
fn workloads(parts: &[(Component, Reading)], whole: &mut Reading) {
    let models = of_models(parts);
    let is_known = |(part, reading): &&&(Component, Reading)| match reading.workload.word.as_str() {
        UNKNOWN => false,
        OTHER => weights(&part.graph).contains(&true),
        _ => true,
    };
    let known: Vec<&Reading> = models.iter().filter(is_known).map(|(_, reading)| reading).collect();
    let all: Vec<&Reading> = models.iter().map(|(_, reading)| reading).collect();
    let counted = if known.is_empty() { all } else { known };
    let mut best: Vec<Claim> = Vec::new();
    for reading in &counted {
        let claim = &reading.workload;
        match best.iter_mut().find(|held| held.word == claim.word) {
            Some(held) if held.confidence >= claim.confidence => {}
            Some(held) => *held = claim.clone(),
            None => best.push(claim.clone()),
        }
    }
    match &best[..] {
        [one] => {
            // The doubts of the one that is surest.
            let surest = counted.iter().find(|reading| reading.workload == *one);
            whole.workloads = surest.map(|reading| reading.workloads.clone()).unwrap_or_default();
            whole.workload = one.clone();
        }
        _ => {
            let least = best.iter().map(|claim| claim.confidence).fold(1.0, f32::min);
            let by = "host".to_owned();
            whole.workload = Claim { word: MIXED.to_owned(), confidence: least, by };
            best.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.word.cmp(&b.word)));
            whole.workloads = best;
        }
    }
}

#[cfg(test)]
mod tests {
    use genie_plugin::builder::{GraphBuilder, Handle};

    use super::*;

    fn linear(g: &mut GraphBuilder, x: Handle) -> Handle {
        let w = g.weight(&[8, 8]);
        g.op("aten::mm", &[x, w], &[2, 8])
    }

    #[test]
    fn readings_come_together() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        for _ in 0..3 {
            let y = linear(&mut g, x);
            g.read(y);
        }
        let columns = g.columns();
        let mut labels = [("llm", 0.9), ("other", 0.99), ("llm", 0.8)].into_iter();
        let Parted { graph, parts, reading: whole } = read(columns, |part| {
            let (word, confidence) = labels.next().unwrap();
            let claim = Claim { word: word.into(), confidence, by: "p".into() };
            Reading {
                workload: claim.clone(),
                workloads: vec![claim.clone()],
                phases: vec![claim.clone(); part.nodes()],
                modalities: vec![Claim::default(); part.nodes()],
                residencies: vec![claim; part.storage_bytes.len()],
                ..Reading::default()
            }
        });
        assert_eq!(parts.len(), 3);
        assert_eq!((whole.workload.word.as_str(), whole.workload.confidence), (MIXED, 0.9));
        let parts: Vec<&str> = whole.workloads.iter().map(|claim| claim.word.as_str()).collect();
        assert_eq!(parts, ["other", "llm"]);
        let phases: Vec<&str> = graph
            .nodes()
            .filter(|node| graph.is_op(*node))
            .map(|node| whole.phases[node.0 as usize].word.as_str())
            .collect();
        assert_eq!(phases, ["llm", "other", "llm"]);
    }
}
