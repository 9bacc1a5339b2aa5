//! What a session ran, told to people and programs.

use std::collections::HashMap;

use genie_plugin::Columns;
use serde::Serialize;

use crate::merge::{Claim, Reading};

/// Operators listed one by one; more are counted only.
pub const OPS_MAX: usize = 1 << 15;
/// Nodes of one match that are listed.
const MATCH_NODES_MAX: usize = 4096;
/// Matches that are listed.
const MATCHES_MAX: usize = 1024;
/// Storages that are listed, the largest first.
const RESIDENCY_MAX: usize = 4096;

/// An answer to `genie.explain()`. Lists of operators are columns over one table of words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub workload: Label,
    pub workloads: Vec<Label>,
    pub phases: Vec<Phase>,
    pub words: Vec<String>,
    pub ops: Ops,
    pub ops_total: usize,
    pub truncated: bool,
    pub residency: Vec<Residency>,
    pub matches: Vec<Matched>,
    pub attributes: Vec<(String, String, String)>,
    pub plan: Option<PlanTold>,
    pub plugins: Vec<PluginTold>,
    pub why: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Label {
    pub label: String,
    pub confidence: f32,
    pub by: String,
}

/// A phase, in the order of first appearance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    pub phase: String,
    pub ops: usize,
    /// Mean over its operators.
    pub confidence: f32,
    pub flops: u64,
    pub bytes: u64,
}

/// Operators in program order, as indexes into the words.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Ops {
    pub op: Vec<u32>,
    pub module: Vec<u32>,
    pub class: Vec<u32>,
    pub phase: Vec<u32>,
    pub modality: Vec<u32>,
    pub mark: Vec<u32>,
    pub by: Vec<u32>,
    pub confidence: Vec<f32>,
    /// The node's number in the graph.
    pub node: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Residency {
    pub storage: u32,
    pub bytes: u64,
    pub residency: String,
    pub confidence: f32,
    pub by: String,
    /// Where it is used first: a module's path, or an operator.
    pub used_by: String,
    pub alive: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Matched {
    pub pattern: String,
    pub phase: String,
    pub modality: String,
    pub confidence: f32,
    pub by: String,
    pub nodes: Vec<u32>,
    pub nodes_total: usize,
}

/// The plan that applies, and why it does.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct PlanTold {
    pub policy: String,
    pub why: String,
    pub regions: Vec<RegionTold>,
    pub directives: Vec<DirectiveTold>,
    pub predicted_us: f64,
    pub predicted_bytes: u64,
    /// (policy, why it was refused).
    pub refused: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegionTold {
    pub device: String,
    pub ops: usize,
    pub pipeline: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DirectiveTold {
    pub kind: String,
    pub storages: usize,
    pub bytes: u64,
    pub device: String,
    pub why: String,
}

/// What a plugin did for this answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PluginTold {
    pub name: String,
    pub version: String,
    /// `ok`, or what went wrong.
    pub outcome: String,
    pub us: u64,
}

impl From<&Claim> for Label {
    fn from(claim: &Claim) -> Self {
        let Claim { word, confidence, by } = claim.clone();
        Label { label: word, confidence, by }
    }
}

impl Explanation {
    /// Tells a reading of a graph. Plan, plugins and reasons are for the caller to add.
    pub fn of(columns: &Columns, reading: &Reading, truncated: bool) -> Explanation {
        let texts = Texts { columns };
        let mut words = Words::default();
        let mut ops = Ops::default();
        let mut phases: Vec<(Phase, f64)> = Vec::new();
        let mut ops_total = 0;
        for node in 0..columns.nodes() {
            let op = texts.symbol(columns.op[node]);
            if op.starts_with("genie::") {
                continue;
            }
            ops_total += 1;
            let phase = &reading.phases[node];
            if !phase.word.is_empty() {
                let index = match phases.iter().position(|(each, _)| each.phase == phase.word) {
                    Some(index) => index,
                    None => {
                        let phase = phase.word.clone();
                        let new = Phase { phase, ops: 0, confidence: 0.0, flops: 0, bytes: 0 };
                        phases.push((new, 0.0));
                        phases.len() - 1
                    }
                };
                let (told, sum) = &mut phases[index];
                told.ops += 1;
                told.flops = told.flops.saturating_add(columns.flops[node]);
                told.bytes = told.bytes.saturating_add(columns.bytes[node]);
                *sum += f64::from(phase.confidence);
            }
            if ops_total > OPS_MAX {
                continue;
            }
            ops.op.push(words.intern(op));
            ops.module.push(words.intern(texts.symbol(columns.module[node])));
            ops.class.push(words.intern(texts.symbol(columns.class[node])));
            ops.phase.push(words.intern(&phase.word));
            ops.modality.push(words.intern(&reading.modalities[node].word));
            ops.mark.push(words.intern(texts.symbol(columns.mark[node])));
            ops.by.push(words.intern(&phase.by));
            ops.confidence.push(phase.confidence);
            ops.node.push(node as u32);
        }
        let phases = phases
            .into_iter()
            .map(|(phase, sum)| Phase {
                confidence: (sum / phase.ops.max(1) as f64) as f32,
                ..phase
            })
            .collect();
        Explanation {
            workload: Label::from(&reading.workload),
            workloads: reading.workloads.iter().map(Label::from).collect(),
            phases,
            words: words.list,
            ops,
            ops_total,
            truncated: truncated || ops_total > OPS_MAX,
            residency: residencies(columns, &texts, reading),
            matches: matches(reading),
            attributes: reading.attributes.clone(),
            plan: None,
            plugins: Vec::new(),
            why: Vec::new(),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("keys are strings and numbers are finite")
    }
}

fn residencies(columns: &Columns, texts: &Texts, reading: &Reading) -> Vec<Residency> {
    let storages = columns.storage_bytes.len();
    let mut used_by = vec![String::new(); storages];
    for node in 0..columns.nodes() {
        let op = texts.symbol(columns.op[node]);
        if op.starts_with("genie::") {
            continue;
        }
        let start = if node == 0 { 0 } else { columns.input_ends[node - 1] as usize };
        for value in &columns.input_value[start..columns.input_ends[node] as usize] {
            let storage = columns.value_storage[*value as usize] as usize;
            if used_by[storage].is_empty() {
                let module = texts.symbol(columns.module[node]);
                used_by[storage] = if module.is_empty() { op } else { module }.to_owned();
            }
        }
    }
    let mut list: Vec<Residency> = (0..storages)
        .map(|storage| {
            let claim = &reading.residencies[storage];
            let own = match columns.storage_origin[storage] {
                1 => "weight",
                2 => "input",
                5 => "gradient",
                6 => "optimizer_state",
                _ => "activation",
            };
            let (residency, confidence, by) = match claim.word.is_empty() {
                true => (own, 1.0, "host"),
                false => (claim.word.as_str(), claim.confidence, claim.by.as_str()),
            };
            Residency {
                storage: storage as u32,
                bytes: columns.storage_bytes[storage],
                residency: residency.to_owned(),
                confidence,
                by: by.to_owned(),
                used_by: std::mem::take(&mut used_by[storage]),
                alive: columns.storage_alive[storage] != 0,
            }
        })
        .filter(|told| told.alive || told.residency != "activation")
        .collect();
    list.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.storage.cmp(&b.storage)));
    list.truncate(RESIDENCY_MAX);
    list
}

fn matches(reading: &Reading) -> Vec<Matched> {
    let mut list: Vec<Matched> = reading
        .matches
        .iter()
        .map(|kept| Matched {
            pattern: kept.pattern.clone(),
            phase: kept.phase.clone(),
            modality: kept.modality.clone(),
            confidence: kept.confidence,
            by: kept.by.clone(),
            nodes_total: kept.nodes.len(),
            nodes: kept.nodes.iter().copied().take(MATCH_NODES_MAX).collect(),
        })
        .collect();
    list.truncate(MATCHES_MAX);
    list
}

struct Texts<'a> {
    columns: &'a Columns,
}

impl<'a> Texts<'a> {
    fn symbol(&self, symbol: u32) -> &'a str {
        let ends = &self.columns.symbol_ends;
        let start = if symbol == 0 { 0 } else { ends[symbol as usize - 1] };
        &self.columns.blob[start as usize..ends[symbol as usize] as usize]
    }
}

#[derive(Default)]
struct Words {
    list: Vec<String>,
    known: HashMap<String, u32>,
}

impl Words {
    fn intern(&mut self, text: &str) -> u32 {
        if let Some(word) = self.known.get(text) {
            return *word;
        }
        let word = self.list.len() as u32;
        self.list.push(text.to_owned());
        self.known.insert(text.to_owned(), word);
        word
    }
}
