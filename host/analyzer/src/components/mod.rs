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

mod evaluated;
mod extract;
mod told;

use std::collections::HashMap;

use genie_plugin::columns::{NO_MODEL, edge};
use genie_plugin::shapes::flow::{is_given, product};
use genie_plugin::{Columns, DType, Graph, NodeId, Origin, Roles, Stage, StorageId, Tensor};
use petgraph::unionfind::UnionFind;

use evaluated::evaluated;
use extract::extract;
pub(crate) use told::of_models;
pub use told::{MIXED, Parted, read};

/// No node of the window: a source that stands for what another component hands over.
pub const HANDED_OVER: u32 = u32::MAX;
/// Where contents come from, in a graph's columns.
const WEIGHT: u8 = 1;
const UPLOADED: u8 = 2;
/// Operators without weights that make a program of their own.
const PROGRAM_OPS: usize = 6;
/// Components of one window; what is beyond, the smallest, is one.
pub const COMPONENTS_MAX: usize = 64;

/// One model of a window; where it trains, also what it does besides stands alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// Its number in the window.
    pub model: u32,
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
    let evaluated = evaluated(graph);
    if count < 2 && !evaluated.contains(&true) {
        return vec![Component {
            model: 0,
            nodes: graph.nodes().map(|node| node.0).collect(),
            storages: graph.storages().map(|storage| storage.0).collect(),
            graph: graph.clone(),
        }];
    }
    let weights = weights(graph);
    let mut parts = Vec::new();
    for model in 0..count.max(1) {
        let alone = count < 2;
        let of =
            |node: NodeId| graph.model(node) == Some(model) && (!alone || takes_part(graph, node));
        let apart = |node: NodeId| evaluated[node.0 as usize];
        for besides in [false, true] {
            if graph.nodes().any(|node| of(node) && apart(node) == besides) {
                let takes = |node| of(node) && apart(node) == besides;
                parts.push(extract(graph, &weights, model, takes));
            }
        }
    }
    parts
}

/// Whether a node belongs to a model by itself; what was there before comes with who uses it.
fn takes_part(graph: &Graph, node: NodeId) -> bool {
    !matches!(graph.op(node), "genie::source" | "genie::upload" | "genie::alloc" | "genie::weight")
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
        let models = part(&mark(g.columns())).iter().map(|part| part.model).max();
        assert_eq!(models, Some(1));
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
}
