//! What is told of a stretch of nodes: sums, operators in short, symbols, a tooltip.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use genie_plugin::graph::base_name;
use genie_plugin::{DType, Graph, NodeId, Origin};

use crate::merge::Reading;

/// Parts of a module's path that are told apart; what is deeper stays together.
const DEPTH_MAX: usize = 24;
/// Kinds of operators in a tooltip.
const TOLD_OPS_MAX: usize = 16;
/// Bytes of one name in a tooltip.
const TOLD_NAME_MAX: usize = 200;

/// A graph with its reading, ready for sums over stretches of nodes.
pub struct Facts<'a> {
    pub graph: &'a Graph,
    pub reading: &'a Reading,
    /// Phases by first appearance; the first is the empty one.
    pub phases: Vec<String>,
    /// For each node.
    pub phase: Vec<usize>,
    /// Sums before each node.
    ops: Vec<u64>,
    flops: Vec<u64>,
    bytes: Vec<u64>,
    classes: HashMap<u32, u32>,
}

/// Small signs beside a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signs {
    pub weight_bytes: u64,
    pub reads_weights: bool,
    pub kv_cache: bool,
}

impl<'a> Facts<'a> {
    pub fn new(graph: &'a Graph, reading: &'a Reading) -> Self {
        let mut phases = vec![String::new()];
        let mut index = HashMap::from([(String::new(), 0)]);
        let mut phase = Vec::with_capacity(graph.len());
        let (mut ops, mut flops, mut bytes) = (vec![0], vec![0], vec![0]);
        let mut classes = HashMap::new();
        let none = Default::default();
        for node in graph.nodes() {
            let is_op = graph.is_op(node);
            let word = &reading.phases.get(node.0 as usize).unwrap_or(&none).word;
            phase.push(match is_op {
                false => 0,
                true => *index.entry(word.clone()).or_insert_with(|| {
                    phases.push(word.clone());
                    phases.len() - 1
                }),
            });
            let last = |sums: &Vec<u64>| *sums.last().expect("sums begin with 0");
            ops.push(last(&ops) + u64::from(is_op));
            flops.push(last(&flops).saturating_add(graph.flops(node)));
            bytes.push(last(&bytes).saturating_add(graph.bytes(node)));
            let class = graph.columns().class[node.0 as usize];
            classes.entry(graph.module_symbol(node)).or_insert(class);
        }
        Facts { graph, reading, phases, phase, ops, flops, bytes, classes }
    }

    pub fn ops(&self, nodes: &Range<usize>) -> u64 {
        self.ops[nodes.end] - self.ops[nodes.start]
    }

    pub fn flops(&self, nodes: &Range<usize>) -> u64 {
        self.flops[nodes.end] - self.flops[nodes.start]
    }

    pub fn bytes(&self, nodes: &Range<usize>) -> u64 {
        self.bytes[nodes.end] - self.bytes[nodes.start]
    }

    /// Operators and reads: what a picture shows of the nodes.
    pub fn shown(&self) -> Vec<usize> {
        let graph = &self.graph;
        let is_shown = |node: &NodeId| graph.is_op(*node) || self.is_read(node.0 as usize);
        graph.nodes().filter(is_shown).map(|node| node.0 as usize).collect()
    }

    /// Whether the program waits for a value here.
    pub fn is_read(&self, node: usize) -> bool {
        self.graph.op(NodeId(node as u32)) == "genie::read"
    }

    /// The path of a node's module, in parts.
    pub fn path(&self, node: usize) -> Vec<&str> {
        match self.graph.module(NodeId(node as u32)) {
            "" => Vec::new(),
            path => path.splitn(DEPTH_MAX, '.').collect(),
        }
    }

    /// The classes of modules by their paths.
    pub fn classes(&self) -> HashMap<&str, &str> {
        self.classes
            .iter()
            .map(|(path, class)| (self.graph.symbol(*path), self.graph.symbol(*class)))
            .collect()
    }

    /// The phase most of its operators have; of equal ones the first.
    pub fn main_phase(&self, nodes: &Range<usize>) -> usize {
        let counts = self.phase_counts(nodes);
        let most = counts.iter().map(|(_, ops)| *ops).max().unwrap_or(0);
        counts.iter().find(|(_, ops)| *ops == most).map_or(0, |(phase, _)| *phase)
    }

    /// Phases of its operators with how many, by first appearance.
    pub fn phase_counts(&self, nodes: &Range<usize>) -> Vec<(usize, u64)> {
        let mut counts: Vec<(usize, u64)> = Vec::new();
        for node in self.operators(nodes) {
            let phase = self.phase[node];
            match counts.iter_mut().find(|(each, _)| *each == phase) {
                Some((_, ops)) => *ops += 1,
                None => counts.push((phase, 1)),
            }
        }
        counts
    }

    pub fn operators(&self, nodes: &Range<usize>) -> impl Iterator<Item = usize> + '_ {
        nodes.clone().filter(|node| self.graph.is_op(NodeId(*node as u32)))
    }

    /// Operators in program order, neighbours of one name counted.
    pub fn op_runs(&self, nodes: &Range<usize>) -> Vec<(&str, u32)> {
        let mut runs: Vec<(&str, u32)> = Vec::new();
        for node in self.operators(nodes) {
            let name = base_name(self.graph.op(NodeId(node as u32)));
            match runs.last_mut() {
                Some((last, times)) if *last == name => *times += 1,
                _ => runs.push((name, 1)),
            }
        }
        runs
    }

    pub fn signs(&self, nodes: &Range<usize>) -> Signs {
        let mut signs = Signs::default();
        let mut weights = BTreeSet::new();
        for node in self.operators(nodes) {
            let node = NodeId(node as u32);
            for tensor in self.graph.inputs(node).chain(self.graph.outputs(node)) {
                let storage = self.graph.storage(tensor.value);
                let residency = self.reading.residencies.get(storage.0 as usize);
                match residency.map_or("", |claim| claim.word.as_str()) {
                    "kv_cache" => signs.kv_cache = true,
                    "weight" | "embedding_table" => _ = weights.insert(storage),
                    "" if self.graph.origin(storage) == Origin::Weight => {
                        // What the program moved to the accelerator as indexes is no weight.
                        let is_index = [DType::INT64, DType::INT32, DType::BOOL];
                        if !is_index.contains(&tensor.dtype) {
                            weights.insert(storage);
                        }
                    }
                    _ => {}
                }
            }
        }
        signs.reads_weights = !weights.is_empty();
        signs.weight_bytes = weights.iter().map(|storage| self.graph.storage_bytes(*storage)).sum();
        signs
    }

    /// The lines of a tooltip.
    pub fn told(&self, one: &Range<usize>, all: &Range<usize>, times: u32) -> Vec<String> {
        let mut lines = Vec::new();
        let operators = self.ops(one);
        let many = |times: u32| if times > 1 { format!(" (x {times})") } else { String::new() };
        lines.push(format!("{}{}", plural(operators, "operator"), many(times)));
        let mut counts: Vec<(&str, u32)> = Vec::new();
        for (name, times) in self.op_runs(one) {
            let is_room = counts.len() <= TOLD_OPS_MAX;
            match counts.iter_mut().find(|(each, _)| *each == name) {
                Some((_, sum)) => *sum += times,
                None if is_room => counts.push((name, times)),
                None => {}
            }
        }
        let mut names: Vec<String> = counts
            .iter()
            .take(TOLD_OPS_MAX)
            .map(|(name, times)| format!("{}{}", shortened(name, TOLD_NAME_MAX), many(*times)))
            .collect();
        if counts.len() > TOLD_OPS_MAX {
            names.push("...".into());
        }
        lines.push(names.join(", "));
        for (phase, ops) in self.phase_counts(one) {
            if phase == 0 {
                continue;
            }
            let of = |node: &usize| self.phase[*node] == phase;
            let claim = self.operators(one).find(of).and_then(|node| self.reading.phases.get(node));
            let (sure, by) = claim.map_or((0.0, ""), |claim| (claim.confidence, &claim.by));
            let name = shortened(&self.phases[phase], TOLD_NAME_MAX);
            lines.push(format!("{name}: {} ({sure:.2} by {by})", plural(ops, "operator")));
        }
        let mut modalities: Vec<&str> = Vec::new();
        for node in self.operators(one) {
            let word = self.reading.modalities.get(node).map_or("", |claim| claim.word.as_str());
            if !word.is_empty() && !modalities.contains(&word) && modalities.len() < 4 {
                modalities.push(word);
            }
        }
        if !modalities.is_empty() {
            lines.push(format!("modality: {}", modalities.join(", ")));
        }
        let moved = amount(self.bytes(all), "B");
        lines.push(format!("{}, {moved} moved", amount(self.flops(all), "FLOP")));
        let signs = self.signs(one);
        if signs.reads_weights {
            lines.push(format!("weights: {}", amount(signs.weight_bytes, "B")));
        }
        if signs.kv_cache {
            lines.push("uses a KV cache".into());
        }
        let last = self.operators(one).last().map(|node| NodeId(node as u32));
        if let Some(output) = last.and_then(|node| self.graph.output(node, 0)) {
            lines.push(format!("last output: {:?}", output.sizes));
        }
        lines
    }
}

/// `1 operator`, `2 operators`.
pub fn plural(count: u64, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

/// `2.4 GFLOP`, `512 B`: at most three digits and a prefix of thousands.
pub fn amount(value: u64, unit: &str) -> String {
    let mut scaled = value as f64;
    for prefix in ["", "k", "M", "G", "T", "P"] {
        if scaled < 999.5 || prefix == "P" {
            let digits = usize::from(scaled < 9.95 && !prefix.is_empty());
            return format!("{scaled:.digits$} {prefix}{unit}");
        }
        scaled /= 1000.0;
    }
    unreachable!("the last prefix returns")
}

/// At most `chars` characters; what is left out shows as an ellipsis.
pub fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some(_) => {
            let kept: String = text.chars().take(chars.saturating_sub(1)).collect();
            format!("{kept}\u{2026}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        let check = |value, expect: &str| assert_eq!(amount(value, "B"), expect);
        check(0, "0 B");
        check(999, "999 B");
        check(1234, "1.2 kB");
        check(99_960, "100 kB");
        check(2_381_430_784, "2.4 GB");
        check(u64::MAX, "18447 PB");
    }

    #[test]
    fn texts_are_cut_at_characters() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("\u{e9}\u{e9}\u{e9}\u{e9}", 3), "\u{e9}\u{e9}\u{2026}");
    }
}
