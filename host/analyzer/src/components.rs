//! A window parted into the models that it holds.
//!
//! A **component** is what shares weights, or what was computed from them: operators are joined by each
//! storage that holds a weight or depends on one (activations, caches, gradients, an optimizer's
//! state). What a program hands from one model to another joins nothing: what it uploads, numbers
//! that no weight is in (masks, noise), and integers, such as the tokens that one model chose and
//! another reads. Operators that are joined to nothing (masks, positions, lists of tokens) go with
//! the first component that uses what they make. Names of modules play no part.

use std::collections::HashMap;

use genie_plugin::{Columns, DType, Graph, NodeId, Origin, StorageId, Tensor};
use petgraph::unionfind::UnionFind;

use crate::merge::{Claim, Kept, Reading, UNKNOWN};

/// No node of the window: a source that stands for what another component hands over.
pub const HANDED_OVER: u32 = u32::MAX;
/// The label of what computes and is no known kind of model.
const OTHER: &str = "other";
/// What the program uploads, in a graph's columns.
const UPLOADED: u8 = 2;
/// Operators without weights that make a program of their own.
const PROGRAM_OPS: usize = 64;
/// Components of one window; what is beyond, the smallest, is one.
pub const COMPONENTS_MAX: usize = 64;

/// One model of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// Its part of the graph, as if it ran alone.
    pub columns: Columns,
    /// For each node here that of the window, or [`HANDED_OVER`].
    pub nodes: Vec<u32>,
    /// For each storage here that of the window.
    pub storages: Vec<u32>,
}

/// The components of a window, in the order of their first operators: at least one.
pub fn part(columns: &Columns) -> Vec<Component> {
    let graph = Graph::trusted(columns.clone());
    let of = components(&graph);
    let count = of.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    if count < 2 {
        return vec![Component {
            columns: graph.into_columns(),
            nodes: (0..columns.nodes() as u32).collect(),
            storages: (0..columns.storage_bytes.len() as u32).collect(),
        }];
    }
    (0..count as u32).map(|component| extract(&graph, &of, component)).collect()
}

/// For each node its component; what belongs to none alone (sources, uploads) has none.
fn components(graph: &Graph) -> Vec<Option<u32>> {
    let mut of = join(graph, |tensor| {
        let storage = graph.storage(tensor.value);
        graph.origin(storage) == Origin::Weight || !is_counted(graph, tensor)
    });
    dissolve(graph, &mut of);
    attach(graph, &mut of);
    if of.iter().all(Option::is_none) {
        return of;
    }
    // Operators without a weight near them: programs of their own are one component together, and
    // what is left (counters, unused masks) goes with its neighbours.
    let apart = apart(graph, &of);
    let mut last = None;
    let mut first = None;
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        let at = node.0 as usize;
        if of[at].is_none() && apart[at] {
            of[at] = Some(*first.get_or_insert(node.0));
        }
    }
    let mut waiting = Vec::new();
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        let at = node.0 as usize;
        match (of[at], last) {
            (Some(known), _) => {
                waiting.drain(..).for_each(|before: usize| of[before] = Some(known));
                last = Some(known);
            }
            (None, Some(_)) => of[at] = last,
            (None, None) => waiting.push(at),
        }
    }
    for node in graph.nodes().filter(|node| !graph.is_op(*node) && graph.op(*node) == "genie::read")
    {
        let before = graph.predecessors(node).filter_map(|before| of[before.0 as usize]);
        of[node.0 as usize] = before.last().or(last);
    }
    number(of)
}

/// Joins operators by the storages of the tensors that `joins` says yes to, among those that hold
/// weights or depend on them.
fn join(graph: &Graph, joins: impl Fn(&Tensor<'_>) -> bool) -> Vec<Option<u32>> {
    let learned = learned(graph);
    let mut joined = UnionFind::<u32>::new(graph.len());
    let mut first_user: Vec<Option<u32>> = vec![None; graph.storages().len()];
    let mut is_joined = vec![false; graph.len()];
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        for tensor in graph.inputs(node).chain(graph.outputs(node)) {
            let storage = graph.storage(tensor.value).0 as usize;
            if learned[storage] && joins(&tensor) {
                is_joined[node.0 as usize] = true;
                joined.union(*first_user[storage].get_or_insert(node.0), node.0);
            }
        }
    }
    (0..graph.len() as u32)
        .map(|node| is_joined[node as usize].then(|| joined.find_mut(node)))
        .collect()
}

/// What only counts (positions, pages, masks) is no model: a model multiplies, or has weights and makes
/// numbers of them.
fn dissolve(graph: &Graph, of: &mut [Option<u32>]) {
    #[derive(Default)]
    struct Found {
        multiplies: bool,
        has_weights: bool,
        makes_numbers: bool,
    }
    let mut found: HashMap<u32, Found> = HashMap::new();
    for node in graph.nodes() {
        let Some(root) = of[node.0 as usize] else { continue };
        let found = found.entry(root).or_default();
        let is_weight =
            |tensor: Tensor<'_>| graph.origin(graph.storage(tensor.value)) == Origin::Weight;
        found.multiplies |= is_product(graph, node);
        found.has_weights |= graph.inputs(node).any(is_weight);
        found.makes_numbers |= graph.outputs(node).any(|tensor| !is_counted(graph, &tensor));
    }
    let is_model = |found: &Found| found.multiplies || (found.has_weights && found.makes_numbers);
    for root in of.iter_mut() {
        *root = root.filter(|root| is_model(&found[root]));
    }
}

/// What is joined to nothing goes with its first user that has a component, else with what it uses.
fn attach(graph: &Graph, of: &mut [Option<u32>]) {
    for node in graph.nodes().rev().filter(|node| graph.is_op(*node)) {
        if of[node.0 as usize].is_none() {
            let users = graph.successors(node).filter(|user| *user > node);
            let first = users.filter(|user| of[user.0 as usize].is_some()).min();
            of[node.0 as usize] = first.and_then(|user| of[user.0 as usize]);
        }
    }
    for node in graph.nodes() {
        let is_made_before =
            matches!(graph.op(node), "genie::source" | "genie::upload" | "genie::alloc");
        if of[node.0 as usize].is_none() && !is_made_before {
            let before = graph.predecessors(node).filter(|before| *before < node);
            of[node.0 as usize] = before.filter_map(|before| of[before.0 as usize]).last();
        }
    }
}

/// For each node without a component whether it belongs to a program of its own: what it is connected
/// with multiplies, or is long.
fn apart(graph: &Graph, of: &[Option<u32>]) -> Vec<bool> {
    let mut joined = UnionFind::<u32>::new(graph.len());
    let mut first_user: Vec<Option<u32>> = vec![None; graph.storages().len()];
    let is_loose = |node: &NodeId| graph.is_op(*node) && of[node.0 as usize].is_none();
    for node in graph.nodes().filter(is_loose) {
        for tensor in graph.inputs(node).chain(graph.outputs(node)) {
            let storage = graph.storage(tensor.value).0 as usize;
            joined.union(*first_user[storage].get_or_insert(node.0), node.0);
        }
    }
    let mut real: HashMap<u32, usize> = HashMap::new();
    for node in graph.nodes().filter(is_loose) {
        let computes =
            graph.outputs(node).any(|tensor| !is_counted(graph, &tensor) && tensor.dims() > 0);
        let weight = usize::from(computes) + if is_product(graph, node) { PROGRAM_OPS } else { 0 };
        *real.entry(joined.find_mut(node.0)).or_default() += weight;
    }
    let is_apart = |node: NodeId| is_loose(&node) && real[&joined.find(node.0)] >= PROGRAM_OPS;
    graph.nodes().map(is_apart).collect()
}

/// Numbers in the order of first appearance, and the smallest together beyond [`COMPONENTS_MAX`].
fn number(of: Vec<Option<u32>>) -> Vec<Option<u32>> {
    let mut sizes: HashMap<u32, usize> = HashMap::new();
    of.iter().flatten().for_each(|root| *sizes.entry(*root).or_default() += 1);
    let mut largest: Vec<(usize, u32)> =
        sizes.into_iter().map(|(root, size)| (size, root)).collect();
    largest.sort_unstable_by_key(|(size, root)| (std::cmp::Reverse(*size), *root));
    let beyond: HashMap<u32, u32> = match largest.len() > COMPONENTS_MAX {
        true => {
            let beyond = &largest[COMPONENTS_MAX - 1..];
            beyond.iter().map(|(_, root)| (*root, beyond[0].1)).collect()
        }
        false => HashMap::new(),
    };
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    of.into_iter()
        .map(|root| {
            let root = root?;
            let root = *beyond.get(&root).unwrap_or(&root);
            let next = numbers.len() as u32;
            Some(*numbers.entry(root).or_insert(next))
        })
        .collect()
}

/// For each storage whether it holds weights, or something that was computed from them.
fn learned(graph: &Graph) -> Vec<bool> {
    let from_before =
        |storage: StorageId| matches!(graph.origin(storage), Origin::Weight | Origin::Computed(_));
    let mut learned: Vec<bool> = graph.storages().map(from_before).collect();
    for node in graph.nodes() {
        let storage = |tensor: Tensor<'_>| graph.storage(tensor.value).0 as usize;
        if graph.is_op(node) && graph.inputs(node).any(|tensor| learned[storage(tensor)]) {
            graph.outputs(node).for_each(|tensor| learned[storage(tensor)] = true);
        }
    }
    learned
}

/// Chosen tokens, indexes and masks, which are handed over; no sums of quantized products, nor bytes.
fn is_counted(graph: &Graph, tensor: &Tensor<'_>) -> bool {
    let producer = graph.producer(tensor.value);
    let counts = matches!(tensor.dtype, DType::INT32 | DType::INT64 | DType::BOOL);
    counts && !is_product(graph, producer)
}

fn is_product(graph: &Graph, node: NodeId) -> bool {
    let name = graph.op_name(node);
    ["mm", "conv", "matmul", "einsum", "dot", "mv"].iter().any(|part| name.contains(part))
}

/// The part of the graph that is one component's.
fn extract(graph: &Graph, of: &[Option<u32>], component: u32) -> Component {
    let from = graph.columns();
    let mut out = Extract {
        from,
        graph,
        columns: Columns {
            blob: from.blob.clone(),
            symbol_ends: from.symbol_ends.clone(),
            geometry_dtype: from.geometry_dtype.clone(),
            geometry_ends: from.geometry_ends.clone(),
            sizes: from.sizes.clone(),
            strides: from.strides.clone(),
            extra: from.extra.iter().map(|(name, _)| (name.clone(), Vec::new())).collect(),
            ..Columns::default()
        },
        source: from.op.iter().position(|op| graph.symbol(*op) == "genie::source"),
        nodes: Vec::new(),
        storages: Vec::new(),
        values: HashMap::new(),
        known_storages: HashMap::new(),
        segment: 0,
    };
    for node in graph.nodes().filter(|node| of[node.0 as usize] == Some(component)) {
        // What it reads is there before it.
        for index in range(&from.input_ends, node.0 as usize) {
            out.need(index);
        }
        out.copy(node);
    }
    Component { columns: out.columns, nodes: out.nodes, storages: out.storages }
}

struct Extract<'a> {
    from: &'a Columns,
    graph: &'a Graph,
    columns: Columns,
    /// A node that is a source, for its symbols.
    source: Option<usize>,
    nodes: Vec<u32>,
    storages: Vec<u32>,
    /// By the window's.
    values: HashMap<u32, u32>,
    known_storages: HashMap<u32, u32>,
    segment: u32,
}

impl Extract<'_> {
    /// Brings the value of an input here: its own source or upload, or one that stands for who made it.
    fn need(&mut self, input: usize) {
        let value = self.from.input_value[input];
        if self.values.contains_key(&value) {
            return;
        }
        let producer = NodeId(self.from.value_producer[value as usize]);
        if !self.graph.is_op(producer)
            && self.from.output_value[range(&self.from.output_ends, producer.0 as usize)]
                .contains(&value)
        {
            for index in range(&self.from.input_ends, producer.0 as usize) {
                self.need(index);
            }
            return self.copy(producer);
        }
        let new = self.value(value);
        let node = self.nodes.len() as u32;
        self.columns.value_producer[new as usize] = node;
        let storage = self.columns.value_storage[new as usize] as usize;
        if self.columns.storage_origin[storage] != 1 {
            self.columns.storage_origin[storage] = UPLOADED;
        }
        self.nodes.push(HANDED_OVER);
        let columns = &mut self.columns;
        columns.op.push(self.source.map_or(0, |source| self.from.op[source]));
        columns.module.push(0);
        columns.class.push(0);
        columns.mark.push(0);
        columns.stage.push(0);
        columns.segment.push(self.segment);
        columns.flops.push(0);
        columns.bytes.push(0);
        columns.output_value.push(new);
        columns.output_geometry.push(self.from.input_geometry[input]);
        columns.output_offset.push(self.from.input_offset[input]);
        for (_, list) in &mut columns.extra {
            list.push(0);
        }
        self.end();
    }

    fn copy(&mut self, node: NodeId) {
        let at = node.0 as usize;
        let number = self.nodes.len() as u32;
        self.nodes.push(node.0);
        let from = self.from;
        self.columns.op.push(from.op[at]);
        self.columns.module.push(from.module[at]);
        self.columns.class.push(from.class[at]);
        self.columns.mark.push(from.mark[at]);
        self.columns.stage.push(from.stage[at]);
        self.columns.segment.push(self.segment);
        self.columns.flops.push(from.flops[at]);
        self.columns.bytes.push(from.bytes[at]);
        for index in range(&from.input_ends, at) {
            let value = self.value(from.input_value[index]);
            self.columns.input_value.push(value);
            self.columns.input_geometry.push(from.input_geometry[index]);
            self.columns.input_offset.push(from.input_offset[index]);
        }
        for index in range(&from.output_ends, at) {
            let value = self.value(from.output_value[index]);
            self.columns.value_producer[value as usize] = number;
            self.columns.output_value.push(value);
            self.columns.output_geometry.push(from.output_geometry[index]);
            self.columns.output_offset.push(from.output_offset[index]);
        }
        for index in range(&from.arg_ends, at) {
            self.columns.arg_kind.push(from.arg_kind[index]);
            self.columns.arg_bits.push(from.arg_bits[index]);
        }
        for ((_, list), (_, all)) in self.columns.extra.iter_mut().zip(&from.extra) {
            list.push(all.get(at).copied().unwrap_or(0));
        }
        self.end();
        // What lies between two reads of the program is a segment, as in the window.
        self.segment += u32::from(self.graph.op(node) == "genie::read");
    }

    fn end(&mut self) {
        let columns = &mut self.columns;
        columns.input_ends.push(columns.input_value.len() as u32);
        columns.output_ends.push(columns.output_value.len() as u32);
        columns.arg_ends.push(columns.arg_kind.len() as u32);
    }

    fn value(&mut self, value: u32) -> u32 {
        if let Some(known) = self.values.get(&value) {
            return *known;
        }
        let old = self.from.value_storage[value as usize];
        let storage = match self.known_storages.get(&old) {
            Some(known) => *known,
            None => {
                let at = old as usize;
                self.columns.storage_bytes.push(self.from.storage_bytes[at]);
                self.columns.storage_origin.push(self.from.storage_origin[at]);
                self.columns.storage_alive.push(self.from.storage_alive[at]);
                let new = self.storages.len() as u32;
                self.storages.push(old);
                self.known_storages.insert(old, new);
                new
            }
        };
        let new = self.columns.value_storage.len() as u32;
        self.columns.value_storage.push(storage);
        // Whoever makes it says so; a value without a maker is its first user's.
        self.columns.value_producer.push((self.nodes.len() as u32).saturating_sub(1));
        self.values.insert(value, new);
        new
    }
}

fn range(ends: &[u32], at: usize) -> std::ops::Range<usize> {
    let start = if at == 0 { 0 } else { ends[at - 1] as usize };
    start..ends[at] as usize
}

/// The label of a program whose models have several.
pub const MIXED: &str = "mixed";

/// The readings of a window's components as one of the window.
pub fn gather(columns: &Columns, parts: &[(Component, Reading)]) -> Reading {
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

/// One label, where all models have it; what no recognizer knows counts where nothing else is there.
fn workloads(parts: &[(Component, Reading)], whole: &mut Reading) {
    let known: Vec<&Reading> = parts
        .iter()
        .map(|(_, reading)| reading)
        .filter(|reading| !matches!(reading.workload.word.as_str(), UNKNOWN | OTHER))
        .collect();
    let all: Vec<&Reading> = parts.iter().map(|(_, reading)| reading).collect();
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
