//! What a session ran, told to people and programs.

use genie_plugin::cost::operator_ns;
use genie_plugin::symbols::Symbols;
use genie_plugin::{Device, Graph, NodeId, Origin, Stage};
use serde::Serialize;

use crate::columns::TIMES;
use crate::components::{Component, Parted, of_models, weights};
use crate::merge::{Claim, Reading};

/// Operators listed one by one; more are counted only.
pub const OPS_MAX: usize = 1 << 15;
/// Nodes of one match that are listed.
const MATCH_NODES_MAX: usize = 4096;
/// Matches that are listed.
const MATCHES_MAX: usize = 1024;
/// What recognizers call the family of a model.
const FAMILY: &str = "architecture";
/// Storages that are listed, the largest first.
const RESIDENCY_MAX: usize = 4096;

/// An answer to `genie.explain()`. Lists of operators are columns over one table of words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub workload: Label,
    pub workloads: Vec<Label>,
    /// In the order of their first operators.
    pub models: Vec<Model>,
    pub phases: Vec<Phase>,
    pub words: Vec<String>,
    pub ops: Ops,
    /// Operators that ran, each as often as it did.
    pub ops_total: u64,
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

/// One model of the program, or what computes beside them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    pub label: String,
    pub confidence: f32,
    pub by: String,
    /// What its recognizer calls its family; may be empty.
    pub family: String,
    pub phases: Vec<Phase>,
    pub ops: u64,
    /// Storages of weights.
    pub weights: usize,
    pub weight_bytes: u64,
    pub flops: u64,
    pub bytes: u64,
    /// What its operators take on the device, estimated by the roofline; 0 where no device is known.
    pub estimated_us: f64,
}

/// A phase, in the order of first appearance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    pub phase: String,
    pub ops: u64,
    /// Mean over its operators.
    pub confidence: f32,
    pub flops: u64,
    pub bytes: u64,
}

/// Operators in program order, as indexes into the words.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Ops {
    pub op: Vec<u32>,
    /// The number of its model.
    pub model: Vec<u32>,
    pub module: Vec<u32>,
    pub class: Vec<u32>,
    pub phase: Vec<u32>,
    pub modality: Vec<u32>,
    pub mark: Vec<u32>,
    pub by: Vec<u32>,
    pub confidence: Vec<f32>,
    /// The node's number in the graph.
    pub node: Vec<u32>,
    /// How often it ran: repeats of a loop are listed once.
    pub times: Vec<u64>,
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
    /// Tells what was read of a window that runs on `device`. Plan, plugins and reasons are
    /// for the caller to add.
    pub fn of(parted: &Parted, truncated: bool, device: Option<&Device>) -> Explanation {
        let Parted { graph, parts, reading } = parted;
        let mut words = Symbols::new();
        let mut ops = Ops::default();
        let mut phases = Phases::default();
        let mut models: Vec<(Model, Phases)> = of_models(parts).into_iter().map(model).collect();
        let columns = graph.columns();
        // Most words are the graph's own, and looked up once.
        let mut of_symbols: Vec<Option<u32>> = vec![None; graph.symbols()];
        let times = columns.extra.iter().find(|(name, _)| name == TIMES);
        let times = |node: NodeId| times.map_or(1, |(_, times)| times[node.0 as usize]);
        let (mut ops_total, mut listed) = (0, 0);
        for node in graph.nodes().filter(|node| graph.is_op(*node)) {
            let times = times(node);
            ops_total += times;
            listed += 1;
            let phase = &reading.phases[node.0 as usize];
            let number = graph.model(node).unwrap_or(0) as usize;
            phases.add(graph, node, phase, times);
            if let Some((model, phases)) = models.get_mut(number) {
                model.ops += times;
                model.flops = model.flops.saturating_add(graph.flops(node).saturating_mul(times));
                model.bytes = model.bytes.saturating_add(graph.bytes(node).saturating_mul(times));
                let ns = device.map_or(0, |device| operator_ns(graph, node, device));
                model.estimated_us += ns as f64 * times as f64 / 1e3;
                phases.add(graph, node, phase, times);
            }
            if listed > OPS_MAX {
                continue;
            }
            let at = node.0 as usize;
            let mut symbol = |symbol: u32| {
                let known = &mut of_symbols[symbol as usize];
                *known.get_or_insert_with(|| words.intern(graph.symbol(symbol)))
            };
            ops.op.push(symbol(columns.op[at]));
            ops.model.push(number as u32);
            ops.module.push(symbol(columns.module[at]));
            ops.class.push(symbol(columns.class[at]));
            ops.mark.push(symbol(columns.mark[at]));
            ops.phase.push(words.intern(&phase.word));
            ops.modality.push(words.intern(&reading.modalities[at].word));
            ops.by.push(words.intern(&phase.by));
            ops.confidence.push(phase.confidence);
            ops.node.push(node.0);
            ops.times.push(times);
        }
        let finished =
            |(model, phases): (Model, Phases)| Model { phases: phases.finish(), ..model };
        Explanation {
            workload: Label::from(&reading.workload),
            workloads: reading.workloads.iter().map(Label::from).collect(),
            models: models.into_iter().map(finished).collect(),
            phases: phases.finish(),
            words: words.into_list(),
            ops,
            ops_total,
            truncated: truncated || listed > OPS_MAX,
            residency: residencies(graph, reading),
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

/// A model before its operators are counted.
fn model((component, reading): &(Component, Reading)) -> (Model, Phases) {
    let weights = weights(&component.graph).into_iter();
    let weights = weights.zip(&component.graph.columns().storage_bytes);
    let weights = weights.filter(|(is_weight, _)| *is_weight).map(|(_, bytes)| *bytes);
    let Claim { word, confidence, by } = reading.workload.clone();
    let family = reading.attributes.iter().find(|(key, _, who)| key == FAMILY && *who == by);
    let model = Model {
        label: word,
        confidence,
        family: family.map(|(_, value, _)| value.clone()).unwrap_or_default(),
        by,
        phases: Vec::new(),
        ops: 0,
        weights: weights.clone().count(),
        weight_bytes: weights.fold(0, u64::saturating_add),
        flops: 0,
        bytes: 0,
        estimated_us: 0.0,
    };
    (model, Phases::default())
}

/// Phases while operators are counted, each with the sum of confidences.
#[derive(Default)]
struct Phases(Vec<(Phase, f64)>);

impl Phases {
    fn add(&mut self, graph: &Graph, node: NodeId, claim: &Claim, times: u64) {
        if claim.word.is_empty() {
            return;
        }
        let index = match self.0.iter().position(|(each, _)| each.phase == claim.word) {
            Some(index) => index,
            None => {
                let phase = claim.word.clone();
                self.0.push((Phase { phase, ops: 0, confidence: 0.0, flops: 0, bytes: 0 }, 0.0));
                self.0.len() - 1
            }
        };
        let (told, sum) = &mut self.0[index];
        told.ops += times;
        told.flops = told.flops.saturating_add(graph.flops(node).saturating_mul(times));
        told.bytes = told.bytes.saturating_add(graph.bytes(node).saturating_mul(times));
        *sum += f64::from(claim.confidence) * times as f64;
    }

    fn finish(self) -> Vec<Phase> {
        let mean = |(phase, sum): (Phase, f64)| Phase {
            confidence: (sum / phase.ops.max(1) as f64) as f32,
            ..phase
        };
        self.0.into_iter().map(mean).collect()
    }
}

fn residencies(graph: &Graph, reading: &Reading) -> Vec<Residency> {
    let mut used_by = vec![String::new(); graph.storages().len()];
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        for input in graph.inputs(node) {
            let used_by = &mut used_by[graph.storage(input.value).0 as usize];
            if used_by.is_empty() {
                let module = graph.module(node);
                *used_by = if module.is_empty() { graph.op(node) } else { module }.to_owned();
            }
        }
    }
    let mut list: Vec<Residency> = graph
        .storages()
        .zip(used_by)
        .map(|(storage, used_by)| {
            let claim = &reading.residencies[storage.0 as usize];
            let own = match graph.origin(storage) {
                Origin::Weight => "weight",
                Origin::Upload => "input",
                Origin::Computed(Stage::Backward) => "gradient",
                Origin::Computed(Stage::Optimizer) => "optimizer_state",
                _ => "activation",
            };
            let (residency, confidence, by) = match claim.word.is_empty() {
                true => (own, 1.0, "host"),
                false => (claim.word.as_str(), claim.confidence, claim.by.as_str()),
            };
            Residency {
                storage: storage.0,
                bytes: graph.storage_bytes(storage),
                residency: residency.to_owned(),
                confidence,
                by: by.to_owned(),
                used_by,
                alive: graph.is_alive(storage),
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
