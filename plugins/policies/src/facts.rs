//! What a policy needs to know of a graph: costs of operators, what belongs together, tables,
//! caches, branches and phases.

use genie_plugin::cost::{bytes_touched, random_nodes, roofline_ns};
use genie_plugin::prelude::*;
use genie_plugin::{Device, ValueId};

/// Smaller tables are weights like others.
const TABLE_BYTES_MIN: u64 = 1 << 20;

/// The two halves of a generating model, where recognizers or the program tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Prefill,
    Decode,
}

/// A graph with what follows from it for placement.
pub struct Facts<'a> {
    pub graph: &'a Graph,
    pub cluster: &'a Cluster,
    pub is_op: Vec<bool>,
    pub is_source: Vec<bool>,
    pub random: Vec<bool>,
    /// Nodes with the same number run on one device (writers of a storage, random operators).
    pub together: Vec<u32>,
    /// Storages that are only looked up by rows.
    pub tables: Vec<StorageId>,
    /// Storages that hold keys and values of earlier tokens.
    pub kv: Vec<StorageId>,
    /// The parallel branch of each node, heaviest first; None: several meet there.
    pub branch: Vec<Option<u32>>,
    pub branches: u32,
    pub half: Vec<Option<Half>>,
    /// Devices on which each storage is.
    pub resident: Vec<Vec<u32>>,
    touched: Vec<u64>,
    gathers: Vec<bool>,
}

impl<'a> Facts<'a> {
    pub fn new(graph: &'a Graph, notes: &Annotations, cluster: &'a Cluster) -> Self {
        let mut resident = vec![vec![]; graph.storages().len()];
        for (storage, device) in &cluster.resident {
            if let Some(devices) = resident.get_mut(*storage as usize)
                && (*device as usize) < cluster.devices.len()
                && !devices.contains(device)
            {
                devices.push(*device);
            }
        }
        let mut facts = Facts {
            graph,
            cluster,
            is_op: graph.nodes().map(|node| graph.is_op(node)).collect(),
            is_source: graph.nodes().map(|node| graph.op(node) == "genie::source").collect(),
            random: random_nodes(graph),
            together: vec![],
            tables: vec![],
            kv: vec![],
            branch: vec![],
            branches: 0,
            half: vec![],
            resident,
            touched: graph.nodes().map(|node| bytes_touched(graph, node)).collect(),
            gathers: graph.nodes().map(|node| graph.roles(node).has(Roles::GATHER)).collect(),
        };
        facts.together = facts.find_together();
        facts.tables = facts.find_tables(notes);
        facts.kv = claimed(graph, notes, "kv_cache");
        facts.half = facts.find_halves(notes);
        (facts.branch, facts.branches) = facts.find_branches(notes);
        facts
    }

    /// How long a node takes on a device, by the roofline.
    pub fn node_ns(&self, node: NodeId, device: u32) -> u64 {
        if !self.is_op[node.0 as usize] {
            return 0;
        }
        let device: &Device = &self.cluster.devices[device as usize];
        roofline_ns(self.graph.flops(node), self.touched[node.0 as usize], device)
    }

    /// Whether content from before the graph stays what it is.
    pub fn is_constant(&self, storage: StorageId) -> bool {
        self.graph.origin(storage) == Origin::Weight && self.graph.values_of(storage).len() == 1
    }

    /// Whether an execution needs what the one before it made.
    pub fn carries_state(&self) -> bool {
        self.graph.storages().any(|storage| {
            let [first, written @ ..] = self.graph.values_of(storage) else { return false };
            let source = self.is_source[self.graph.producer(*first).0 as usize];
            let given = matches!(self.graph.origin(storage), Origin::Weight | Origin::Upload);
            source && (!written.is_empty() || !given)
        })
    }

    /// The storage from before the graph that a node reads most of, among those that `known`
    /// wants.
    pub fn main_source<T>(
        &self,
        node: NodeId,
        known: impl Fn(StorageId) -> Option<T>,
    ) -> Option<T> {
        let sources = self.graph.inputs(node).filter_map(|input| {
            let storage = self.graph.storage(input.value);
            Some((self.graph.storage_bytes(storage), known(storage)?))
        });
        sources.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, at)| at)
    }

    pub fn made_here(&self, value: ValueId) -> bool {
        !self.is_source[self.graph.producer(value).0 as usize]
    }

    fn find_together(&self) -> Vec<u32> {
        let graph = self.graph;
        let mut group: Vec<u32> = (0..graph.len() as u32).collect();
        for storage in graph.storages() {
            let [first, written @ ..] = graph.values_of(storage) else { continue };
            for value in written {
                join(&mut group, graph.producer(*first).0, graph.producer(*value).0);
            }
        }
        let mut random = (0..graph.len() as u32).filter(|node| self.random[*node as usize]);
        if let Some(first) = random.next() {
            random.for_each(|other| join(&mut group, first, other));
        }
        (0..graph.len() as u32).map(|node| root(&mut group, node)).collect()
    }

    fn find_tables(&self, notes: &Annotations) -> Vec<StorageId> {
        let graph = self.graph;
        let mut tables = claimed(graph, notes, "embedding_table");
        for storage in graph.storages().filter(|storage| self.is_constant(*storage)) {
            let value = graph.values_of(storage)[0];
            let users = graph.consumers(value);
            let gathered = |node: &NodeId| self.gathers[node.0 as usize];
            if !users.is_empty() && users.iter().all(gathered) && !tables.contains(&storage) {
                tables.push(storage);
            }
        }
        tables.retain(|storage| {
            self.is_constant(*storage) && graph.storage_bytes(*storage) >= TABLE_BYTES_MIN
        });
        tables.sort_by_key(|storage| std::cmp::Reverse((graph.storage_bytes(*storage), *storage)));
        tables
    }

    fn find_halves(&self, notes: &Annotations) -> Vec<Option<Half>> {
        let of = |phase: &str| match phase {
            "llm.prefill" | "seq2seq.encode" | "prefill" => Some(Half::Prefill),
            "llm.decode" | "seq2seq.decode" | "decode" => Some(Half::Decode),
            _ => None,
        };
        let mut best = vec![0f32; self.graph.len()];
        let mut half: Vec<Option<Half>> =
            self.graph.nodes().map(|node| of(self.graph.mark(node))).collect();
        for found in &notes.matches {
            let Some(phase) = of(&found.phase) else { continue };
            for node in &found.nodes {
                let Some(best) = best.get_mut(*node as usize) else { continue };
                if found.confidence > *best {
                    *best = found.confidence;
                    half[*node as usize] = Some(phase);
                }
            }
        }
        half
    }

    /// Branches by modality where recognizers tell, else by the upload that a node descends from.
    fn find_branches(&self, notes: &Annotations) -> (Vec<Option<u32>>, u32) {
        let graph = self.graph;
        // Names of branches: uploads by their node, then modalities.
        let mut modalities: Vec<&str> = Vec::new();
        let mut label: Vec<Option<usize>> = vec![None; graph.len()];
        let mut best = vec![0f32; graph.len()];
        for found in notes.matches.iter().filter(|found| !found.modality.is_empty()) {
            let known = modalities.iter().position(|name| *name == found.modality);
            let number = known.unwrap_or(modalities.len());
            if known.is_none() {
                modalities.push(&found.modality);
            }
            for node in &found.nodes {
                let Some(best) = best.get_mut(*node as usize) else { continue };
                if found.confidence > *best {
                    *best = found.confidence;
                    label[*node as usize] = Some(graph.len() + number);
                }
            }
        }
        let mut from: Vec<Descent> = vec![Descent::Nothing; graph.len()];
        for node in graph.nodes() {
            let index = node.0 as usize;
            let upload = !self.is_op[index]
                && graph.output(node, 0).is_some_and(|output| {
                    graph.origin(graph.storage(output.value)) == Origin::Upload
                        || graph.op(node) == "genie::upload"
                });
            let start = if upload { Descent::One(index) } else { Descent::Nothing };
            let here = graph
                .predecessors(node)
                .map(|before| from[before.0 as usize])
                .fold(start, Descent::join);
            // A label holds unless branches meet here.
            from[index] = match (label[index], here) {
                (Some(label), Descent::Nothing | Descent::One(_)) => Descent::One(label),
                _ => here,
            };
        }
        let mut work = vec![0u64; graph.len() + modalities.len()];
        for node in graph.nodes().filter(|node| self.is_op[node.0 as usize]) {
            if let (Descent::One(name), false) =
                (from[node.0 as usize], self.cluster.devices.is_empty())
            {
                work[name] += self.node_ns(node, 0);
            }
        }
        let mut names: Vec<usize> = (0..work.len()).filter(|name| work[*name] > 0).collect();
        names.sort_by_key(|name| (std::cmp::Reverse(work[*name]), *name));
        let mut rank = vec![None; work.len()];
        for (at, name) in names.iter().enumerate() {
            rank[*name] = Some(at as u32);
        }
        let branch = from.iter().map(|from| match from {
            Descent::One(name) => rank[*name],
            _ => None,
        });
        (branch.collect(), names.len() as u32)
    }
}

/// What a node descends from: nothing yet, one branch, or several.
#[derive(Clone, Copy, PartialEq)]
enum Descent {
    Nothing,
    One(usize),
    Several,
}

impl Descent {
    fn join(self, other: Descent) -> Descent {
        match (self, other) {
            (Descent::Nothing, other) => other,
            (here, Descent::Nothing) => here,
            (here, other) if here == other => here,
            _ => Descent::Several,
        }
    }
}

/// Storages that a recognizer is rather sure about.
fn claimed(graph: &Graph, notes: &Annotations, residency: &str) -> Vec<StorageId> {
    let mut storages: Vec<StorageId> = notes
        .residency
        .iter()
        .filter(|claim| claim.residency == residency && claim.confidence >= 0.5)
        .filter(|claim| (claim.storage as usize) < graph.storages().len())
        .map(|claim| StorageId(claim.storage))
        .filter(|storage| !graph.values_of(*storage).is_empty())
        .collect();
    storages.sort_unstable();
    storages.dedup();
    storages
}

fn root(group: &mut [u32], node: u32) -> u32 {
    let mut at = node;
    while group[at as usize] != at {
        group[at as usize] = group[group[at as usize] as usize];
        at = group[at as usize];
    }
    at
}

fn join(group: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root(group, a), root(group, b));
    group[a.max(b) as usize] = a.min(b);
}
