//! A window parted into the models that it holds.
//!
//! A **component** is what shares weights, or what was computed from them: operators are joined by each
//! storage that holds a weight or depends on one (activations, caches, gradients, an optimizer's
//! state). What a program hands from one model to another joins nothing: what it uploads, numbers
//! that no weight is in (masks, noise), and integers, such as the tokens that one model chose and
//! another reads. Operators that are joined to nothing (masks, positions, lists of tokens) go with
//! the first component that uses what they make. No rule knows a module's name; that two nodes are in
//! the same module, or one inside it, is a hint for what nothing else tells (what the client computed
//! within a call, counters).

use std::collections::HashMap;

use genie_plugin::columns::{NO_MODEL, edge};
use genie_plugin::shapes::flow::{is_given, product};
use genie_plugin::{Columns, DType, Graph, NodeId, Origin, Roles, Stage, StorageId, Tensor};
use petgraph::unionfind::UnionFind;

use crate::merge::{Claim, Kept, Reading, UNKNOWN};

/// No node of the window: a source that stands for what another component hands over.
pub const HANDED_OVER: u32 = u32::MAX;
/// The label of what computes and is no known kind of model.
const OTHER: &str = "other";
/// Where contents come from, in a graph's columns.
const WEIGHT: u8 = 1;
const UPLOADED: u8 = 2;
/// Operators without weights that make a program of their own.
const PROGRAM_OPS: usize = 6;
/// Components of one window; what is beyond, the smallest, is one.
pub const COMPONENTS_MAX: usize = 64;

/// One model of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// Its part of the graph, as if it ran alone: its own number in the window in each node, and the
    /// values marked that cross to or from other models.
    pub graph: Graph,
    /// For each node here that of the window, or [`HANDED_OVER`].
    pub nodes: Vec<u32>,
    /// For each storage here that of the window.
    pub storages: Vec<u32>,
}

/// Says of each node which model it belongs to, and of each value whether it crosses between two.
fn mark(columns: Columns) -> Graph {
    let graph = Graph::trusted(columns);
    let of = components(&graph);
    let several = of.iter().flatten().any(|model| *model > 0);
    let mut edges = vec![0; graph.values().len()];
    for node in graph.nodes().filter(|_| several) {
        let Some(user) = of[node.0 as usize] else { continue };
        for input in graph.inputs(node) {
            let maker = of[graph.producer(input.value).0 as usize];
            if maker.is_some_and(|maker| maker != user) {
                edges[input.value.0 as usize] = edge::TO;
            }
        }
    }
    let mut columns = graph.into_columns();
    columns.model = match several {
        true => of.into_iter().map(|model| model.unwrap_or(NO_MODEL)).collect(),
        false => vec![0; columns.nodes()],
    };
    columns.value_edge = edges;
    Graph::trusted(columns)
}

/// The models of a marked graph, in the order of their first operators: at least one.
fn part(graph: &Graph) -> Vec<Component> {
    let models = graph.nodes().filter_map(|node| graph.model(node));
    let count = models.max().map_or(0, |last| last + 1);
    if count < 2 {
        return vec![Component {
            nodes: graph.nodes().map(|node| node.0).collect(),
            storages: graph.storages().map(|storage| storage.0).collect(),
            graph: graph.clone(),
        }];
    }
    (0..count).map(|model| extract(graph, model)).collect()
}

/// For each node its component; what belongs to none alone (sources, uploads) has none.
fn components(graph: &Graph) -> Vec<Option<u32>> {
    let weights = weights(graph);
    let mut of = join(graph, &weights);
    dissolve(graph, &weights, &mut of);
    if of.iter().all(Option::is_none) {
        // Without any weight there is nothing to part by.
        return of;
    }
    set_apart(graph, &mut of);
    attach(graph, &mut of);
    leave_with_neighbours(graph, &mut of);
    number(of)
}

/// For each storage whether it holds weights: such as were stored as weights, and what was given and
/// stands in a weight's place (converted or made on the device, or a tensor of a program without
/// modules).
pub(crate) fn weights(graph: &Graph) -> Vec<bool> {
    let is_stored = |storage| graph.origin(storage) == Origin::Weight;
    let mut weights: Vec<bool> = graph.storages().map(is_stored).collect();
    // A backward pass multiplies by what was given to the forward one.
    let forward = |node: &NodeId| graph.is_op(*node) && !is_training(graph, *node);
    for node in graph.nodes().filter(forward) {
        let placed = match product(graph, node) {
            Some(product) => product.weighted.then_some(product.other),
            None if graph.roles(node).has(Roles::CONVOLUTION) => graph.input(node, 1),
            None if graph.op_name(node) == "embedding" => graph.input(node, 0),
            None => None,
        };
        let placed = placed.filter(|it| it.dims() >= 2 && it.dtype.is_floating());
        if let Some(weight) = placed.filter(|weight| is_given(graph, weight.value)) {
            weights[graph.storage(weight.value).0 as usize] = true;
        }
    }
    weights
}

/// Joins operators by what holds weights, and by numbers that depend on such.
fn join(graph: &Graph, weights: &[bool]) -> Vec<Option<u32>> {
    let fallbacks = fallbacks(graph);
    let learned = learned(graph, weights, &fallbacks);
    let mut joined = Joined::new(graph);
    for (storage, maker) in fallbacks {
        joined.by(storage, maker);
    }
    let mut is_joined = vec![false; graph.len()];
    for node in graph.nodes().filter(|node| graph.is_op(*node)) {
        for tensor in graph.inputs(node).chain(graph.outputs(node)) {
            let storage = graph.storage(tensor.value);
            let at = storage.0 as usize;
            if learned[at] && (weights[at] || !is_counted(graph, &tensor)) {
                is_joined[node.0 as usize] = true;
                joined.by(storage, node);
            }
        }
    }
    graph.nodes().map(|node| is_joined[node.0 as usize].then(|| joined.root(node))).collect()
}

/// Nodes that use the same storages, together.
struct Joined {
    nodes: UnionFind<u32>,
    /// Of each storage.
    first_users: Vec<Option<NodeId>>,
}

impl Joined {
    fn new(graph: &Graph) -> Self {
        let first_users = vec![None; graph.storages().len()];
        Joined { nodes: UnionFind::new(graph.len()), first_users }
    }

    /// Joins a node with those that use the storage too.
    fn by(&mut self, storage: StorageId, node: NodeId) {
        let first = self.first_users[storage.0 as usize].get_or_insert(node);
        self.nodes.union(first.0, node.0);
    }

    /// The node that stands for all that this one is joined with.
    fn root(&mut self, node: NodeId) -> u32 {
        self.nodes.find_mut(node.0)
    }
}

/// What only counts (positions, pages, masks) is no model: a model multiplies, or has weights and makes
/// numbers of them.
fn dissolve(graph: &Graph, weights: &[bool], of: &mut [Option<u32>]) {
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
        let is_weight = |tensor: Tensor<'_>| weights[graph.storage(tensor.value).0 as usize];
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

/// Operators without a weight near them are a program of their own, one together, if what they are
/// connected with computes something, hands no numbers to a model, and is read by the program.
fn set_apart(graph: &Graph, of: &mut [Option<u32>]) {
    let mut joined = Joined::new(graph);
    let is_loose = |node: &NodeId| graph.is_op(*node) && of[node.0 as usize].is_none();
    for node in graph.nodes().filter(is_loose) {
        for tensor in graph.inputs(node).chain(graph.outputs(node)) {
            joined.by(graph.storage(tensor.value), node);
        }
    }
    #[derive(Default)]
    struct Found {
        computes: usize,
        is_read: bool,
        feeds: bool,
    }
    let mut found: HashMap<u32, Found> = HashMap::new();
    for node in graph.nodes().filter(is_loose) {
        let is_number = |tensor: Tensor<'_>| !is_counted(graph, &tensor) && tensor.dims() > 0;
        let computes = graph.inputs(node).any(is_number) && graph.outputs(node).any(is_number);
        let found = found.entry(joined.root(node)).or_default();
        found.computes += usize::from(computes);
        found.computes += if is_product(graph, node) { PROGRAM_OPS } else { 0 };
        for tensor in graph.outputs(node) {
            for user in graph.consumers(tensor.value) {
                found.is_read |= graph.op(*user) == "genie::read";
                found.feeds |= of[user.0 as usize].is_some() && !is_counted(graph, &tensor);
            }
        }
    }
    let loose: Vec<NodeId> = graph.nodes().filter(is_loose).collect();
    let mut first = None;
    for node in loose {
        let Found { computes, is_read, feeds } = &found[&joined.root(node)];
        if *computes >= PROGRAM_OPS && *is_read && !feeds {
            of[node.0 as usize] = Some(*first.get_or_insert(node.0));
        }
    }
}

/// What is left (counters, unused masks) goes with what ran near it: in the same module or one inside
/// it, else in the same stage, else with the next before it.
fn leave_with_neighbours(graph: &Graph, of: &mut [Option<u32>]) {
    let is_left = |node: NodeId, of: &[Option<u32>]| {
        of[node.0 as usize].is_none() && (graph.is_op(node) || graph.op(node) == "genie::read")
    };
    if !graph.nodes().any(|node| is_left(node, of)) {
        return;
    }
    let mut near = Near::new(graph);
    // What comes before all others goes with the first after it: so backwards first.
    for node in graph.nodes().rev() {
        if let Some(known) = of[node.0 as usize] {
            near.see(node, known);
        }
    }
    // After a read something new begins: what is left there goes with what follows, if nothing else
    // tells.
    let mut is_read = false;
    let mut waiting: Vec<NodeId> = Vec::new();
    for node in graph.nodes() {
        let at = node.0 as usize;
        match of[at] {
            Some(known) => {
                waiting.drain(..).for_each(|before| of[before.0 as usize] = Some(known));
                near.see(node, known);
                is_read = graph.op(node) == "genie::read";
            }
            None if !is_left(node, of) => {}
            None => {
                of[at] = near.named(node);
                if of[at].is_none() && is_read && !is_training(graph, node) {
                    waiting.push(node);
                } else if of[at].is_none() {
                    of[at] = near.staged(node);
                }
            }
        }
    }
    for node in waiting {
        of[node.0 as usize] = near.staged(node);
    }
}

/// What was seen last, in each module and stage.
struct Near<'a> {
    graph: &'a Graph,
    modules: HashMap<&'a str, u32>,
    serving: Option<u32>,
    training: Option<u32>,
    /// The last module and component, which are most often the next too.
    last: Option<(u32, u32)>,
}

impl<'a> Near<'a> {
    fn new(graph: &'a Graph) -> Self {
        Near { graph, modules: HashMap::new(), serving: None, training: None, last: None }
    }

    fn see(&mut self, node: NodeId, component: u32) {
        match is_training(self.graph, node) {
            true => self.training = Some(component),
            false => self.serving = Some(component),
        }
        let module = self.graph.module_symbol(node);
        if self.last.replace((module, component)) == Some((module, component)) {
            return;
        }
        let mut path = self.graph.module(node);
        while !path.is_empty() {
            self.modules.insert(path, component);
            path = path.rsplit_once('.').map_or("", |(above, _)| above);
        }
    }

    fn named(&self, node: NodeId) -> Option<u32> {
        let path = self.graph.module(node);
        // The outermost name is often the same: `model`.
        self.modules.get(path).copied().filter(|_| path.contains('.'))
    }

    fn staged(&self, node: NodeId) -> Option<u32> {
        match is_training(self.graph, node) {
            true => self.training.or(self.serving),
            false => self.serving.or(self.training),
        }
    }
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

fn is_training(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.stage(node), Stage::Backward | Stage::Optimizer)
}

/// What an operator that runs on the client made: the program reads and uploads within one call of a
/// module. With each storage the operator whose results were read.
fn fallbacks(graph: &Graph) -> Vec<(StorageId, NodeId)> {
    let mut found = Vec::new();
    let mut read: Option<(u32, NodeId)> = None;
    for node in graph.nodes() {
        let module = graph.module_symbol(node);
        match graph.op(node) {
            "genie::read" => {
                let maker = graph.predecessors(node).find(|maker| graph.is_op(*maker));
                read = maker.map(|maker| (module, maker)).filter(|_| module != 0);
            }
            "genie::upload" => {
                let within = read.filter(|(within, _)| *within == module);
                if let Some((_, maker)) = within {
                    let made = graph.outputs(node).map(|out| (graph.storage(out.value), maker));
                    found.extend(made);
                }
            }
            // Nothing runs on the device meanwhile.
            _ if graph.is_op(node) => read = None,
            _ => {}
        }
    }
    found
}

/// For each storage whether it holds weights, or something that was computed from them.
fn learned(graph: &Graph, weights: &[bool], fallbacks: &[(StorageId, NodeId)]) -> Vec<bool> {
    let is_computed = |storage| matches!(graph.origin(storage), Origin::Computed(_));
    let known = graph.storages().zip(weights);
    let mut learned: Vec<bool> =
        known.map(|(storage, is_weight)| *is_weight || is_computed(storage)).collect();
    for (storage, _) in fallbacks {
        learned[storage.0 as usize] = true;
    }
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
    ["mm", "conv", "matmul", "einsum", "dot", "mv", "dist"].iter().any(|part| name.contains(part))
}

/// The part of the graph that is one component's.
fn extract(graph: &Graph, model: u32) -> Component {
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
        copied: vec![false; graph.len()],
        model,
        segment: 0,
    };
    for node in graph.nodes().filter(|node| graph.model(*node) == Some(model)) {
        // What it reads is there before it.
        for index in range(&from.input_ends, node.0 as usize) {
            out.need(index);
        }
        out.copy(node);
    }
    // Once anything trained, all that is neither backward nor an optimizer's is marked as forward; and
    // what is no operator has the stage of what ran before it, whoever's that was.
    let trains = |node: &u32| {
        *node != HANDED_OVER && graph.is_op(NodeId(*node)) && is_training(graph, NodeId(*node))
    };
    if !out.nodes.iter().any(trains) {
        out.columns.stage.fill(0);
    }
    let graph = Graph::trusted(out.columns);
    Component { graph, nodes: out.nodes, storages: out.storages }
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
    /// Nodes of the window that are here.
    copied: Vec<bool>,
    model: u32,
    segment: u32,
}

enum Need {
    /// Of this input.
    Value(usize),
    Node(NodeId),
}

impl Extract<'_> {
    /// Brings the value of an input here: by its own source or upload, and what that needs (an upload
    /// writes into what was there), or by one that stands for who made it.
    fn need(&mut self, input: usize) {
        if self.values.contains_key(&self.from.input_value[input]) {
            return;
        }
        let mut waiting = vec![Need::Value(input)];
        while let Some(need) = waiting.pop() {
            match need {
                Need::Node(node) => self.copy(node),
                Need::Value(input) => match self.maker(input) {
                    _ if self.values.contains_key(&self.from.input_value[input]) => {}
                    Some(maker) => {
                        waiting.push(Need::Node(maker));
                        let inputs = range(&self.from.input_ends, maker.0 as usize);
                        waiting.extend(inputs.rev().map(Need::Value));
                    }
                    None => self.hand_over(input),
                },
            }
        }
    }

    /// Who made the value of an input, where that is no operator and makes it for every component.
    fn maker(&self, input: usize) -> Option<NodeId> {
        let value = self.from.input_value[input];
        let producer = NodeId(self.from.value_producer[value as usize]);
        let made = &self.from.output_value[range(&self.from.output_ends, producer.0 as usize)];
        (!self.graph.is_op(producer) && made.contains(&value)).then_some(producer)
    }

    fn hand_over(&mut self, input: usize) {
        let value = self.from.input_value[input];
        let new = self.value(value);
        let node = self.nodes.len() as u32;
        self.columns.value_producer[new as usize] = node;
        let storage = self.columns.value_storage[new as usize] as usize;
        if self.columns.storage_origin[storage] != WEIGHT {
            self.columns.storage_origin[storage] = UPLOADED;
        }
        self.nodes.push(HANDED_OVER);
        let columns = &mut self.columns;
        columns.op.push(self.source.map_or(0, |source| self.from.op[source]));
        columns.module.push(0);
        columns.class.push(0);
        columns.mark.push(0);
        columns.stage.push(0);
        columns.model.push(self.model);
        columns.value_edge[new as usize] |= edge::FROM;
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
        if std::mem::replace(&mut self.copied[at], true) {
            return;
        }
        let number = self.nodes.len() as u32;
        self.nodes.push(node.0);
        let from = self.from;
        self.columns.op.push(from.op[at]);
        self.columns.module.push(from.module[at]);
        self.columns.class.push(from.class[at]);
        self.columns.mark.push(from.mark[at]);
        self.columns.stage.push(from.stage[at]);
        self.columns.model.push(self.model);
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
            self.columns.value_edge[value as usize] |=
                from.value_edge[from.output_value[index] as usize];
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
        self.columns.value_edge.push(0);
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

/// One label, where all models have it. What nobody knows, and what is no kind of model and has no weights
/// (a search over what a model said), counts where nothing else is there.
fn workloads(parts: &[(Component, Reading)], whole: &mut Reading) {
    let known: Vec<&Reading> = parts
        .iter()
        .filter(|(part, reading)| match reading.workload.word.as_str() {
            UNKNOWN => false,
            OTHER => weights(&part.graph).contains(&true),
            _ => true,
        })
        .map(|(_, reading)| reading)
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

#[cfg(test)]
mod tests {
    use genie_plugin::builder::{GraphBuilder, Handle};
    use proptest::prelude::*;

    use super::*;

    /// Operators of a component, each with the operators that made its inputs.
    fn told(columns: &Columns) -> Vec<(String, Vec<String>)> {
        let graph = Graph::new(columns.clone()).unwrap();
        let made_by = |node| graph.predecessors(node).map(|from| graph.op(from).to_owned());
        let ops = graph.nodes().filter(|node| graph.is_op(*node));
        ops.map(|node| (graph.op(node).to_owned(), made_by(node).collect())).collect()
    }

    fn ops(parts: &[Component]) -> Vec<Vec<String>> {
        let names =
            |part: &Component| told(part.graph.columns()).into_iter().map(|(op, _)| op).collect();
        parts.iter().map(names).collect()
    }

    fn linear(g: &mut GraphBuilder, x: Handle) -> Handle {
        let w = g.weight(&[8, 8]);
        g.op("aten::mm", &[x, w], &[2, 8])
    }

    fn tokens(g: &mut GraphBuilder, logits: Handle) -> Handle {
        g.dtype(DType::INT64).op("aten::argmax", &[logits], &[2])
    }

    fn embedding(g: &mut GraphBuilder, tokens: Handle) -> Handle {
        let table = g.weight(&[100, 8]);
        g.dtype(DType::FLOAT32).op("aten::embedding", &[table, tokens], &[2, 8])
    }

    #[test]
    fn one_model_is_what_it_was() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let hidden = linear(&mut g, x);
        let y = linear(&mut g, hidden);
        g.read(y);
        let columns = g.columns();
        let parts = part(&mark(columns.clone()));
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].graph.columns(), &columns);
        assert_eq!(part(&mark(Columns::default())).len(), 1);
    }

    #[test]
    fn what_crosses_between_models_is_marked_at_both_ends() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let scores = linear(&mut g, x);
        let chosen = tokens(&mut g, scores);
        let rows = embedding(&mut g, chosen);
        linear(&mut g, rows);
        let graph = mark(g.columns());
        let of = |name: &str| graph.nodes().find(|node| graph.name(*node) == name).unwrap();
        assert_eq!(
            [of("argmax"), of("embedding")].map(|node| graph.model(node)),
            [Some(0), Some(1)]
        );
        let crossing = |graph: &Graph, is: fn(&Graph, genie_plugin::ValueId) -> bool| {
            graph.values().filter(|value| is(graph, *value)).count()
        };
        let parts = part(&graph);
        assert_eq!(
            parts.iter().map(|part| part.graph.model(NodeId(0))).collect::<Vec<_>>(),
            [Some(0), Some(1)]
        );
        for (graph, handed_on, handed_over) in
            [(&graph, 1, 0), (&parts[0].graph, 1, 0), (&parts[1].graph, 0, 1)]
        {
            assert_eq!(crossing(graph, Graph::is_handed_on), handed_on);
            assert_eq!(crossing(graph, Graph::is_handed_over), handed_over);
        }
    }

    #[test]
    fn an_input_of_training_steps_is_no_weight() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        g.stage(Stage::Forward);
        let w = g.weight(&[8, 8]);
        let loss = g.op("aten::mm", &[x, w], &[2, 8]);
        g.stage(Stage::Backward);
        let turned = g.transpose(x, 0, 1);
        let grad = g.op("aten::mm", &[turned, loss], &[8, 8]);
        g.read(grad);
        g.stage(Stage::Optimizer);
        let moved = g.in_place("aten::sub_.Tensor", w, &[grad]);
        g.stage(Stage::Forward);
        let next = g.op("aten::mm", &[x, moved], &[2, 8]);
        g.read(next);
        let other = linear(&mut g, x);
        g.read(other);
        assert_eq!(part(&mark(g.columns())).len(), 2);
    }

    #[test]
    fn an_input_in_common_joins_nothing() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let noise = g.op("aten::mul.Scalar", &[x], &[2, 8]);
        let (a, b) = (linear(&mut g, noise), linear(&mut g, noise));
        let a = g.op("aten::relu", &[a], &[2, 8]);
        g.read(a);
        g.read(b);
        let parts = part(&mark(g.columns()));
        // What made the noise is the first one's; the other has it from there.
        assert_eq!(
            ops(&parts),
            [["aten::mul.Scalar", "aten::mm", "aten::relu"].as_slice(), &["aten::mm"]]
        );
        assert_eq!(parts[1].nodes.iter().filter(|node| **node == HANDED_OVER).count(), 1);
        assert_eq!(told(parts[1].graph.columns())[0].1, ["genie::source", "genie::source"]);
        let reads = |part: &Component| {
            let graph = Graph::new(part.graph.columns().clone()).unwrap();
            graph.nodes().filter(|node| graph.op(*node) == "genie::read").count()
        };
        assert_eq!((reads(&parts[0]), reads(&parts[1])), (1, 1));
    }

    #[test]
    fn chosen_tokens_are_handed_over_and_activations_are_not() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let logits = linear(&mut g, x);
        let chosen = tokens(&mut g, logits);
        let y = embedding(&mut g, chosen);
        g.read(y);
        assert_eq!(
            ops(&part(&mark(g.columns()))),
            [["aten::mm", "aten::argmax"].as_slice(), &["aten::embedding"]]
        );
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let hidden = linear(&mut g, x);
        let y = linear(&mut g, hidden);
        g.read(y);
        assert_eq!(part(&mark(g.columns())).len(), 1);
    }

    #[test]
    fn what_the_client_computes_for_a_module_joins_and_what_the_program_does_hands_over() {
        let with = |path: &str| {
            let mut g = GraphBuilder::new();
            let x = g.input(&[2, 8]);
            let hidden = linear(&mut g, x);
            let made = g.module(path, "Head", |g| {
                g.read(hidden);
                g.input(&[2, 8])
            });
            let y = linear(&mut g, made);
            g.read(y);
            part(&mark(g.columns())).len()
        };
        assert_eq!((with("model.head"), with("")), (1, 2));
    }

    #[test]
    fn weights_that_were_made_on_the_device_part_models_too() {
        let mut g = GraphBuilder::new();
        for kind in [0, 1, 2] {
            let x = g.input(&[2, 8]);
            // Computed before the window, uploaded, and stored as a weight.
            let w = match kind {
                0 => g.earlier(&[8, 8], Stage::None),
                1 => g.input(&[8, 8]),
                _ => g.weight(&[8, 8]),
            };
            for _ in 0..2 {
                let y = g.op("aten::mm", &[x, w], &[2, 8]);
                g.read(y);
            }
        }
        assert_eq!(ops(&part(&mark(g.columns()))), [["aten::mm"; 2].as_slice(); 3]);
    }

    #[test]
    fn what_is_left_after_a_read_goes_with_what_follows() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        let y = linear(&mut g, x);
        let unused = g.dtype(DType::INT64).op("aten::arange", &[], &[2]);
        g.in_place("aten::add_", unused, &[]);
        g.read(y);
        let unused = g.op("aten::ones", &[], &[2]);
        g.in_place("aten::eq_", unused, &[]);
        g.dtype(DType::FLOAT32);
        let z = linear(&mut g, x);
        g.read(z);
        let parts = ops(&part(&mark(g.columns())));
        assert_eq!(parts[0], ["aten::mm", "aten::arange", "aten::add_"]);
        assert_eq!(parts[1], ["aten::ones", "aten::eq_", "aten::mm"]);
    }

    #[test]
    fn decoding_steps_are_joined_by_their_weights() {
        let mut g = GraphBuilder::new();
        let table = g.weight(&[100, 8]);
        let mut token = g.input_of(&[2], DType::INT64);
        for _ in 0..3 {
            let x = g.dtype(DType::FLOAT32).op("aten::embedding", &[table, token], &[2, 8]);
            token = tokens(&mut g, x);
            g.read(token);
        }
        assert_eq!(part(&mark(g.columns())).len(), 1);
    }

    #[test]
    fn counters_go_with_their_module_and_programs_without_weights_stand_alone() {
        let mut g = GraphBuilder::new();
        let (x, z) = (g.input(&[2, 8]), g.input(&[8, 8]));
        let a = g.module("a.norm", "Norm", |g| linear(g, x));
        let b = g.module("b.norm", "Norm", |g| linear(g, x));
        let seen = g.input_of(&[], DType::INT64);
        g.module("a.norm", "Norm", |g| g.in_place("aten::add_", seen, &[]));
        let distances = g.op("aten::mm", &[z, z], &[8, 8]);
        for each in [a, b, distances] {
            g.read(each);
        }
        let parts = part(&mark(g.columns()));
        assert_eq!(
            ops(&parts),
            [["aten::mm", "aten::add_"].as_slice(), &["aten::mm"], &["aten::mm"]]
        );
    }

    #[test]
    fn components_are_bounded_and_so_is_the_way_back() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 8]);
        for _ in 0..2 * COMPONENTS_MAX {
            let y = linear(&mut g, x);
            g.read(y);
        }
        let parts = part(&mark(g.columns()));
        assert_eq!(parts.len(), COMPONENTS_MAX);
        assert_eq!(ops(&parts).iter().map(Vec::len).sum::<usize>(), 2 * COMPONENTS_MAX);
        // A storage that the program writes a million times, and two models read at the end.
        let mut g = GraphBuilder::new();
        let mut x = g.input(&[2, 8]);
        for _ in 0..100_000 {
            x = g.in_place("genie::upload", x, &[]);
        }
        let (a, b) = (linear(&mut g, x), linear(&mut g, x));
        g.read(a);
        g.read(b);
        assert_eq!(part(&mark(g.columns())).len(), 2);
    }

    /// A step of a model: which of its operators comes next.
    fn step(g: &mut GraphBuilder, kind: u8, x: Handle) -> Handle {
        match kind {
            0 => linear(g, x),
            1 => g.op("aten::relu", &[x], &[2, 8]),
            2 => g.in_place("aten::mul_", x, &[x]),
            3 => {
                let mask = g.dtype(DType::BOOL).op("aten::gt.Scalar", &[x], &[2, 8]);
                g.dtype(DType::FLOAT32).op("aten::where.self", &[mask, x], &[2, 8])
            }
            _ => {
                g.read(x);
                x
            }
        }
    }

    proptest! {
        /// However two models alternate, each is found as if it ran alone.
        #[test]
        fn models_are_found_whatever_their_turns(
            a in prop::collection::vec(0u8..5, 1..20),
            b in prop::collection::vec(0u8..5, 1..20),
            turns in prop::collection::vec(any::<bool>(), 40),
        ) {
            let alone = |steps: &[u8]| {
                let mut g = GraphBuilder::new();
                let mut x = g.input(&[2, 8]);
                x = linear(&mut g, x);
                for kind in steps {
                    x = step(&mut g, *kind, x);
                }
                told(&g.columns())
            };
            let mut g = GraphBuilder::new();
            let given = [g.input(&[2, 8]), g.input(&[2, 8])];
            let mut x = given.map(|x| linear(&mut g, x));
            let mut left = [a.iter(), b.iter()];
            for turn in turns.iter().copied().chain([false; 20]).chain([true; 20]) {
                if let Some(kind) = left[usize::from(turn)].next() {
                    x[usize::from(turn)] = step(&mut g, *kind, x[usize::from(turn)]);
                }
            }
            let columns = g.columns();
            let parts = part(&mark(columns.clone()));
            prop_assert_eq!(parts.len(), 2);
            prop_assert_eq!(told(parts[0].graph.columns()), alone(&a));
            prop_assert_eq!(told(parts[1].graph.columns()), alone(&b));
            let mut nodes: Vec<u32> = parts.iter().flat_map(|part| part.nodes.clone()).collect();
            nodes.sort_unstable();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), columns.nodes(), "every node is somebody's");
        }
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
