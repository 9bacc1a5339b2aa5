//! Graph networks: messages along edges, or products with an adjacency matrix.
//!
//! | way of writing it | evidence |
//! |---|---|
//! | by edges | rows are gathered by one list of integers, what comes of them is summed into rows by another list as long |
//! | by neighbours | rows of computed features are gathered by a table of neighbours and pooled over it |
//! | by lists | for every row of computed features, rows of them are gathered by a list of its own and pooled |
//! | by incidence | a matrix that is no parameter multiplies features from the left, and so does its transpose |
//! | by adjacency | one square matrix that is no parameter multiplies features from the left, layer after layer |
//! | by masked pairs | a sum over all pairs of nodes, masked, through a softmax, weighs the features |
//! | by distances | differences between all pairs of nodes become filters, which multiply features and are summed |
//!
//! Experts of a language model gather and sum by the same list; that is no graph.

use genie_plugin::dataflow::seen_through;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::is_given;
use genie_plugin::shapes::modality::Modality;

use crate::facts::Facts;

/// Nodes that are looked at above or below a node.
const LOOK_MAX: usize = 32;
/// Below this nothing is claimed.
const CLAIM_MIN: f32 = 0.3;
/// An image model that scatters is no graph network.
const WITH_IMAGES: f32 = 0.2;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let graph = facts.graph;
    let window = Window::of(facts);
    let mut edges = window.edges();
    if edges.rounds > 0 && window.routes_words(edges.by) {
        edges = Edges::default();
    }
    let mut confidence = match edges.rounds {
        0 => 0.0,
        1 => 0.85,
        _ => 0.93,
    };
    confidence = window
        .adjacency()
        .max(window.neighbours())
        .max(window.loops())
        .max(window.incidence())
        .max(window.pairs())
        .max(window.filters())
        .max(confidence);
    if window.sees_images() {
        confidence = confidence.min(WITH_IMAGES);
    }
    if confidence < CLAIM_MIN {
        return;
    }
    notes.workload("gnn", confidence);
    if edges.edges > 0 {
        notes.attribute("edges", edges.edges.to_string());
    }
    if !window.training {
        let nodes = graph.nodes().filter(|node| graph.is_op(*node));
        notes.matched("gnn.layers", "gnn.message_passing", "", confidence, nodes);
    }
}

/// The operators of inference, or of the first forward pass of training.
struct Window<'g> {
    graph: &'g Graph,
    facts: &'g Facts<'g>,
    nodes: Vec<NodeId>,
    training: bool,
}

/// A list of integers that says which rows: two views of one tensor are two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct List {
    value: ValueId,
    offset: u64,
    len: i64,
}

/// Rows gathered by a list.
#[derive(Debug, Clone, Copy)]
struct Gathered {
    by: List,
    /// Rows gathered by another list as long took part: both ends of edges.
    ends: bool,
}

impl Gathered {
    /// What the operands of a node with these sizes were gathered by.
    fn together(of: impl Iterator<Item = Gathered>, sizes: &[i64]) -> Option<Gathered> {
        let mut sum: Option<Gathered> = None;
        for next in of {
            sum = Some(match sum {
                Some(held) if held.by.len == next.by.len => {
                    Gathered { ends: held.ends || next.ends || held.by != next.by, ..held }
                }
                // Of several, that of which there is one row each.
                Some(held) if !sizes.contains(&next.by.len) => held,
                _ => next,
            });
        }
        sum
    }
}

/// A value that is a given matrix, scaled, shifted and masked at most.
#[derive(Debug, Clone, Copy)]
struct Outside {
    /// The matrix; `None` for constants and other given numbers.
    root: Option<ValueId>,
    /// It was scaled by its own sums.
    by_degree: bool,
}

/// Operators besides elementwise ones that leave a matrix one from outside.
const SHAPES: [&str; 14] = [
    "sum",
    "rsqrt",
    "reciprocal",
    "sqrt",
    "eye",
    "diag",
    "diag_embed",
    "diagonal",
    "zero",
    "repeat",
    "maximum",
    "index_put",
    "fill_diagonal",
    "ones_like",
];

fn is_square(tensor: &Tensor<'_>) -> bool {
    tensor.dims() >= 2 && tensor.size(-1) == tensor.size(-2)
}

/// A square matrix that stands on the left of products.
#[derive(Debug)]
struct Mixer {
    root: ValueId,
    offset: u64,
    /// How often it multiplies computed features, and given ones.
    computed: usize,
    given: usize,
    /// Whether it was scaled by its own sums.
    by_degree: bool,
}

impl Default for Mixer {
    fn default() -> Self {
        Mixer { root: ValueId(0), offset: 0, computed: 0, given: 0, by_degree: false }
    }
}

impl Mixer {
    fn confidence(&self) -> f32 {
        match (self.computed, self.computed + self.given, self.by_degree) {
            // A square batch of rows times a parameter looks the same.
            (0, _, _) => 0.0,
            (_, 2.., true) => 0.9,
            (_, 2.., false) => 0.8,
            (_, _, true) => 0.75,
            _ => 0.25,
        }
    }
}

#[derive(Debug, Default)]
struct Edges {
    /// Sums that follow a gather by another list.
    rounds: usize,
    edges: i64,
    /// The last list that picked one end.
    by: Option<ValueId>,
}

impl<'g> Window<'g> {
    fn of(facts: &'g Facts<'g>) -> Self {
        let graph = facts.graph;
        let mut nodes = Vec::new();
        for node in graph.nodes() {
            match graph.stage(node) {
                // What comes after is the same again, with weights that are no longer given.
                Stage::Backward => break,
                Stage::Optimizer => {}
                _ if graph.is_op(node) => nodes.push(node),
                _ => {}
            }
        }
        Window { graph, facts, nodes, training: facts.flow.training }
    }

    fn edges(&self) -> Edges {
        let graph = self.graph;
        let mut gathered: Vec<Option<Gathered>> = vec![None; graph.values().len()];
        // Of which running sum of gathered rows a value shows rows.
        let mut running: Vec<Option<(NodeId, Gathered)>> = vec![None; graph.values().len()];
        let mut found = Edges::default();
        for node in &self.nodes {
            let sizes = graph.output(*node, 0).map_or(&[][..], |out| out.sizes);
            let before = graph.inputs(*node).filter_map(|input| gathered[input.value.0 as usize]);
            let from = Gathered::together(before, sizes);
            if let Some((of, rows)) = self.running(*node, from, &running) {
                for output in graph.outputs(*node) {
                    running[output.value.0 as usize] = Some((of, rows));
                }
                // Where one sum ends less where it began: the rows between.
                if self.graph.name(*node) == "sub" {
                    found.rounds += 1;
                    found.by = Some(rows.by.value);
                    found.edges = found.edges.max(rows.by.len);
                }
                continue;
            }
            let out = if let Some(list) = self.gather(*node) {
                Some(Gathered { by: list, ends: false })
            } else if let (Some(list), Some(from)) = (self.sum_by(*node), from) {
                let other_end = list != from.by || from.ends;
                if other_end && list.len == from.by.len {
                    found.rounds += 1;
                    found.by = Some(from.by.value);
                    found.edges = found.edges.max(list.len);
                }
                None
            } else {
                from
            };
            for output in graph.outputs(*node) {
                gathered[output.value.0 as usize] = out.filter(|_| output.dtype.is_floating());
            }
        }
        found
    }

    /// The running sum of gathered rows that a node computes, pads, picks rows of, or takes
    /// differences between rows of.
    fn running(
        &self,
        node: NodeId,
        from: Option<Gathered>,
        running: &[Option<(NodeId, Gathered)>],
    ) -> Option<(NodeId, Gathered)> {
        let of = |index: usize| {
            self.graph.input(node, index).and_then(|input| running[input.value.0 as usize])
        };
        match self.graph.name(node) {
            "cumsum" => {
                let rows = self.graph.args(node).nth(1).and_then(|arg| arg.as_i64());
                let out = self.graph.output(node, 0)?;
                let along = rows == Some(0) || rows == Some(-(out.dims() as i64));
                from.filter(|from| along && from.by.len == out.size(0)).map(|from| (node, from))
            }
            "constant_pad_nd" | "index" | "index_select" | "clone" => of(0),
            "cat" => of(0).or(of(1)),
            "sub" => {
                let ((a, rows), (b, _)) = (of(0)?, of(1)?);
                let fewer = self.graph.output(node, 0)?.size(0) != rows.by.len;
                (a == b && fewer).then_some((a, rows))
            }
            _ => None,
        }
    }

    /// A matrix of nodes by edges that hands features to the edges, whose transpose sums what
    /// comes of them.
    fn incidence(&self) -> f32 {
        let graph = self.graph;
        // The matrix, its rows, and how often it and its transpose multiply.
        let mut matrices: Vec<(ValueId, i64, usize, usize)> = Vec::new();
        for node in &self.nodes {
            let (left, right) = match self.graph.name(*node) {
                "mm" | "bmm" | "matmul" => (graph.input(*node, 0), graph.input(*node, 1)),
                _ => continue,
            };
            let (Some(left), Some(right)) = (left, right) else { continue };
            let (rows, columns) = (left.size(-2), left.size(-1));
            if rows == columns || rows.min(columns) < 3 || !self.says_which(left.value) {
                continue;
            }
            if is_given(graph, seen_through(graph, right.value)) {
                continue;
            }
            let value = seen_through(graph, left.value);
            // Without other parameters it may be one itself.
            let out = graph.output(*node, 0).map(|out| out.value);
            let in_a_layer = self.is_projected(right.value, value)
                || out.is_some_and(|out| self.is_projected_later(out, value));
            if !in_a_layer {
                continue;
            }
            match matrices.iter_mut().rev().take(LOOK_MAX).find(|(of, ..)| *of == value) {
                Some((_, first, ahead, _)) if *first == rows => *ahead += 1,
                Some((_, _, _, back)) => *back += 1,
                None => matrices.push((value, rows, 1, 0)),
            }
        }
        match matrices.iter().map(|(_, _, ahead, back)| (*ahead).min(*back)).max() {
            None | Some(0) => 0.0,
            Some(1) => 0.7,
            Some(_) => 0.85,
        }
    }

    /// Whether a matrix was given, or has ones where given integers say so.
    fn says_which(&self, matrix: ValueId) -> bool {
        let graph = self.graph;
        let mut at = matrix;
        for _ in 0..8 {
            if is_given(graph, at) {
                return true;
            }
            let node = graph.producer(at);
            let next = match self.graph.name(node) {
                "scatter" | "eq" | "one_hot" => {
                    return graph.inputs(node).any(|input| {
                        let integers = self.facts.modalities.integers(input.value);
                        integers.given() && !integers.chosen()
                    });
                }
                "copy" => graph.input(node, 1),
                "clone" | "_to_copy" => graph.input(node, 0),
                _ => None,
            };
            match next {
                Some(next) => at = next.value,
                None => return false,
            }
        }
        false
    }

    /// Whether scores chose these numbers in a model of words: they send words to experts.
    fn routes_words(&self, list: Option<ValueId>) -> bool {
        let modalities = &self.facts.modalities;
        let words = modalities.entries.iter().any(|(_, entered)| entered.has(Modality::TOKENS));
        words && list.is_some_and(|list| modalities.integers(list).chosen())
    }

    /// The list by which a node gathers rows of a tensor of numbers.
    fn gather(&self, node: NodeId) -> Option<List> {
        let graph = self.graph;
        let (table, index) = match self.graph.name(node) {
            "index_select" | "index" | "_unsafe_index" | "gather" | "embedding" => {
                (graph.input(node, 0)?, graph.input(node, 1)?)
            }
            _ => return None,
        };
        // Types of nodes and words are looked up in parameters; edges pick among the nodes.
        let parameter = self.graph.name(node) == "embedding" && is_given(graph, table.value);
        if !table.dtype.is_floating() || parameter || graph.inputs(node).len() != 2 {
            return None;
        }
        self.list(index)
    }

    /// The list by which a node adds rows into others.
    fn sum_by(&self, node: NodeId) -> Option<List> {
        let graph = self.graph;
        let index = match self.graph.name(node) {
            "scatter_add" | "index_add" | "scatter_reduce" | "index_reduce" | "segment_reduce" => {
                graph.input(node, 1)?
            }
            "index_put" | "_index_put_impl" | "_unsafe_index_put" => {
                let adds = graph.args(node).any(|arg| arg == Arg::Bool(true));
                graph.input(node, 1).filter(|_| adds)?
            }
            _ => return None,
        };
        self.list(index)
    }

    fn list(&self, index: Tensor<'_>) -> Option<List> {
        if !index.dtype.is_integer() {
            return None;
        }
        // One index for each row, also where it is repeated along the row.
        let len = index
            .sizes
            .iter()
            .zip(index.strides)
            .filter(|(_, stride)| **stride != 0)
            .fold(1i64, |product, (size, _)| product.saturating_mul(*size));
        let value = seen_through(self.graph, index.value);
        Some(List { value, offset: index.offset, len }).filter(|list| list.len > 1)
    }

    /// Computed features gathered by a table of neighbours, then pooled over these.
    fn neighbours(&self) -> f32 {
        let graph = self.graph;
        let mut rounds = 0;
        // By given tables, of given and of computed features: given ones may be a parameter.
        let (mut given, mut computed) = (0, 0);
        for node in &self.nodes {
            let Some(index) = graph.input(*node, 1) else { continue };
            let name = self.graph.name(*node);
            if !matches!(name, "index" | "index_select" | "_unsafe_index") {
                continue;
            }
            let (Some(table), Some(out)) = (graph.input(*node, 0), graph.output(*node, 0)) else {
                continue;
            };
            let many = out.elements() >= 2 * table.elements() && index.elements() >= 2;
            let of_each = self.lists_for_each_row(table, index);
            if of_each && many && table.dtype.is_floating() && self.is_pooled(out.value) {
                match is_given(graph, table.value) {
                    true => given += 1,
                    false => computed += 1,
                }
                continue;
            }
            let chosen = self.chosen_by_distance(index.value);
            if chosen && many && table.dtype.is_floating() && self.is_pooled(out.value) {
                rounds += 1;
            }
        }
        match (rounds, computed, computed + given) {
            (_, 1.., 2..) => 0.88,
            (2.., ..) => 0.8,
            (_, 1, _) => 0.75,
            (1, ..) => 0.6,
            _ => 0.0,
        }
    }

    /// Whether a given table has a list of rows for each row, or for each but one: what stands for
    /// no neighbour.
    fn lists_for_each_row(&self, table: Tensor<'_>, index: Tensor<'_>) -> bool {
        let rows = table.size(0);
        let count = index.elements() as i64;
        let each = match index.dims() {
            1 => rows > 0 && count % rows == 0 && count >= 2 * rows,
            _ => (rows - 1..=rows).contains(&index.size(0)) && index.size(-1) >= 2,
        };
        let integers = self.facts.modalities.integers(seen_through(self.graph, index.value));
        each && rows > 2
            && table.dims() == 2
            && index.dtype.is_integer()
            && integers.given()
            && !integers.chosen()
    }

    /// As many gathers from computed features as these have rows, each by a given list of its own
    /// and pooled at once: a loop over the nodes.
    fn loops(&self) -> f32 {
        let graph = self.graph;
        // The features, how many gathers from them, and how many rows they have.
        let mut tables: Vec<(ValueId, i64, i64)> = Vec::new();
        for node in &self.nodes {
            if !matches!(self.graph.name(*node), "index" | "index_select") {
                continue;
            }
            let (Some(table), Some(index)) = (graph.input(*node, 0), graph.input(*node, 1)) else {
                continue;
            };
            let integers = self.facts.modalities.integers(seen_through(graph, index.value));
            let list = index.dims() == 1 && index.dtype.is_integer() && integers.given();
            if !list || integers.chosen() || table.dims() != 2 || !table.dtype.is_floating() {
                continue;
            }
            let pooled = graph.output(*node, 0).is_some_and(|out| {
                graph.consumers(out.value).iter().take(LOOK_MAX).any(|reader| {
                    matches!(self.graph.name(*reader), "max" | "amax" | "mean" | "sum")
                        && graph.output(*reader, 0).is_some_and(|sum| {
                            sum.elements() == table.size(-1) as u64 && sum.size(-1) > 1
                        })
                })
            });
            if !pooled {
                continue;
            }
            match tables.iter_mut().rev().take(LOOK_MAX).find(|(of, ..)| *of == table.value) {
                Some((_, count, _)) => *count += 1,
                None => tables.push((table.value, 1, table.size(0))),
            }
        }
        // A node without neighbours needs no gather.
        let whole = tables
            .iter()
            .filter(|(_, count, rows)| *rows > 2 && *count <= *rows && *count * 2 > *rows);
        let (mut computed, mut rounds) = (0, 0);
        for (table, ..) in whole {
            computed += usize::from(!is_given(graph, *table));
            rounds += 1;
        }
        match (computed, rounds) {
            (0, _) => 0.0,
            (_, 1) => 0.75,
            _ => 0.88,
        }
    }

    /// Whether integers are the nearest neighbours: the best of a matrix of distances between all
    /// pairs.
    fn chosen_by_distance(&self, index: ValueId) -> bool {
        let graph = self.graph;
        let mut at = index;
        for _ in 0..16 {
            let node = graph.producer(at);
            match self.graph.name(node) {
                "topk" | "sort" | "argsort" => {
                    let square = graph.input(node, 0).is_some_and(|scores| {
                        scores.size(-1) == scores.size(-2) && scores.size(-1) > 2
                    });
                    return square && !self.above(at, &["_softmax", "softmax"]);
                }
                _ => match graph.input(node, 0) {
                    Some(input) if input.dtype.is_integer() => at = input.value,
                    _ => return false,
                },
            }
        }
        false
    }

    fn is_pooled(&self, value: ValueId) -> bool {
        let mut open = vec![value];
        let mut looked = 0;
        while let Some(at) = open.pop() {
            for node in self.graph.consumers(at) {
                looked += 1;
                match self.graph.name(*node) {
                    "max" | "amax" | "mean" | "sum" => return true,
                    _ if looked > LOOK_MAX => return false,
                    _ => open.extend(self.graph.outputs(*node).map(|out| out.value)),
                }
            }
        }
        false
    }

    /// One square matrix from outside that multiplies features from the left, in a row with
    /// products by parameters.
    fn adjacency(&self) -> f32 {
        let graph = self.graph;
        let outside = self.matrices_from_outside();
        let mut mixers: Vec<Mixer> = Vec::new();
        for node in &self.nodes {
            let (left, right) = match self.graph.name(*node) {
                "mm" | "bmm" | "matmul" | "_sparse_mm" | "spmm" | "_sparse_sparse_matmul" => {
                    (graph.input(*node, 0), graph.input(*node, 1))
                }
                "addmm" | "baddbmm" => (graph.input(*node, 1), graph.input(*node, 2)),
                _ => continue,
            };
            let (Some(left), Some(right)) = (left, right) else { continue };
            let sparse = self.graph.name(*node).contains("sparse");
            let square = left.size(-1) == left.size(-2) && left.size(-1) > 2;
            if !square && !sparse {
                continue;
            }
            let Some(Outside { root: Some(root), by_degree }) = outside[left.value.0 as usize]
            else {
                continue;
            };
            let out = graph.output(*node, 0).map(|out| out.value);
            let in_a_layer = self.is_projected(right.value, root)
                || out.is_some_and(|out| self.is_projected_later(out, root));
            if root == seen_through(graph, right.value) || !in_a_layer {
                continue;
            }
            let known =
                mixers.iter().position(|mixer| mixer.root == root && mixer.offset == left.offset);
            let at = known.unwrap_or(mixers.len());
            if known.is_none() {
                if mixers.len() == LOOK_MAX {
                    continue;
                }
                mixers.push(Mixer { root, offset: left.offset, ..Mixer::default() });
            }
            let mixer = &mut mixers[at];
            match is_given(graph, seen_through(graph, right.value)) {
                true => mixer.given += 1,
                false => mixer.computed += 1,
            }
            mixer.by_degree |= by_degree || sparse;
        }
        mixers.iter().map(Mixer::confidence).fold(0.0, f32::max)
    }

    /// For each value, what it is of a given matrix, if it is that.
    fn matrices_from_outside(&self) -> Vec<Option<Outside>> {
        let graph = self.graph;
        let mut out: Vec<Option<Outside>> = vec![None; graph.values().len()];
        for value in graph.values().filter(|value| is_given(graph, *value)) {
            let whole = graph.output(graph.producer(value), 0);
            let matrix = whole.is_some_and(|whole| is_square(&whole));
            out[value.0 as usize] =
                Some(Outside { root: matrix.then_some(value), by_degree: false });
        }
        for node in &self.nodes {
            let name = self.graph.name(*node);
            let floats = || graph.inputs(*node).filter(|input| !input.dtype.is_integer());
            // Scaled from both sides.
            let squares = matches!(name, "mm" | "bmm") && floats().all(|input| is_square(&input));
            if !(squares
                || SHAPES.contains(&name)
                || self.graph.roles(*node).has(Roles::ELEMENTWISE))
            {
                continue;
            }
            let mut sum = Some(Outside { root: None, by_degree: name == "sum" });
            for input in floats() {
                let producer = graph.op(graph.producer(input.value));
                let made = matches!(producer, "genie::alloc" | "genie::resize");
                let part = match out[input.value.0 as usize] {
                    None if made => continue,
                    part => part,
                };
                sum = sum.zip(part).map(|(sum, part)| Outside {
                    root: sum.root.or(part.root),
                    by_degree: sum.by_degree || part.by_degree,
                });
            }
            for output in graph.outputs(*node) {
                out[output.value.0 as usize] = sum;
            }
        }
        out
    }

    /// Whether features were multiplied by a parameter before, with elementwise work since.
    fn is_projected(&self, value: ValueId, by_other_than: ValueId) -> bool {
        let graph = self.graph;
        let mut at = value;
        for _ in 0..16 {
            let node = graph.producer(at);
            if self.is_projection(node, by_other_than) {
                return true;
            }
            match graph.input(node, 0) {
                Some(input)
                    if self.graph.roles(node).has(Roles::ELEMENTWISE) || is_norm(graph, node) =>
                {
                    at = input.value
                }
                _ => return false,
            }
        }
        false
    }

    fn is_projected_later(&self, value: ValueId, by_other_than: ValueId) -> bool {
        let graph = self.graph;
        let mut at = value;
        for _ in 0..16 {
            let next = graph.consumers(at).iter().copied().find(|node| {
                self.is_projection(*node, by_other_than)
                    || self.graph.roles(*node).has(Roles::ELEMENTWISE)
                    || is_norm(graph, *node)
            });
            let Some(node) = next else { return false };
            if self.is_projection(node, by_other_than) {
                return true;
            }
            let Some(out) = graph.output(node, 0) else { return false };
            at = out.value;
        }
        false
    }

    /// A product whose right operand is a parameter, and not this matrix.
    fn is_projection(&self, node: NodeId, by_other_than: ValueId) -> bool {
        let graph = self.graph;
        let right = match self.graph.name(node) {
            "mm" | "linear" | "matmul" => graph.input(node, 1),
            "addmm" => graph.input(node, 2),
            _ => None,
        };
        right.is_some_and(|right| {
            let weight = seen_through(graph, right.value);
            weight != by_other_than && is_given(graph, weight)
        })
    }

    /// Weights of all pairs of nodes: a sum of one score for each end, masked, through a softmax.
    fn pairs(&self) -> f32 {
        let graph = self.graph;
        let mut rounds = 0;
        for node in &self.nodes {
            if !matches!(self.graph.name(*node), "_softmax" | "softmax") {
                continue;
            }
            let (mut masked, mut bent) = (false, false);
            let Some(mut at) = graph.input(*node, 0) else { continue };
            for _ in 0..12 {
                let above = graph.producer(at.value);
                let name = self.graph.name(above);
                masked |= matches!(name, "where" | "masked_fill");
                bent |= matches!(name, "leaky_relu" | "elu" | "relu");
                if name == "add" && self.pairs_up(above) {
                    rounds += usize::from(masked && bent);
                    break;
                }
                let elements = at.elements();
                let same = |input: &Tensor<'_>| {
                    input.elements() == elements
                        && input.dtype.is_floating()
                        && !is_given(graph, input.value)
                };
                match graph.inputs(above).find(same) {
                    Some(input) if self.graph.roles(above).has(Roles::ELEMENTWISE) => at = input,
                    _ => break,
                }
            }
        }
        if rounds > 0 { 0.85 } else { 0.0 }
    }

    /// `[.., n, 1] + [.., 1, n]`, both computed.
    fn pairs_up(&self, node: NodeId) -> bool {
        let graph = self.graph;
        let (Some(a), Some(b)) = (graph.input(node, 0), graph.input(node, 1)) else { return false };
        let Some(out) = graph.output(node, 0) else { return false };
        let dims = out.dims();
        if !(2..=8).contains(&dims) || a.dims() != dims || b.dims() != dims {
            return false;
        }
        (0..dims).any(|i| {
            (0..dims).any(|j| {
                let n = out.sizes[i];
                let crossed =
                    a.sizes[i] == n && a.sizes[j] == 1 && b.sizes[i] == 1 && b.sizes[j] == n;
                n > 2 && out.sizes[j] == n && crossed
            })
        })
    }

    /// Filters for all pairs of nodes, computed by parameters from differences between the two,
    /// that multiply features of one end and are summed over it.
    fn filters(&self) -> f32 {
        let graph = self.graph;
        // How many nodes the pairs are of, for what depends on differences.
        let mut pairs_of: Vec<i64> = vec![0; graph.values().len()];
        let mut weighted = vec![false; graph.values().len()];
        let mut rounds = 0;
        for node in &self.nodes {
            let name = self.graph.name(*node);
            let Some(out) = graph.output(*node, 0) else { continue };
            let n = self.difference(*node, name).unwrap_or_else(|| {
                graph.inputs(*node).map(|input| pairs_of[input.value.0 as usize]).max().unwrap_or(0)
            });
            if n == 0 || !out.dtype.is_floating() {
                continue;
            }
            let by_weight = graph.inputs(*node).any(|input| weighted[input.value.0 as usize])
                || self.is_projection(*node, out.value);
            let pairs = (n * n) as u64;
            // What was summed over one end is no pair any more.
            let still = out.elements() % pairs == 0 && out.elements() > 0;
            let meets = name == "mul" && by_weight && still && {
                graph.inputs(*node).any(|input| {
                    let at = input.value.0 as usize;
                    pairs_of[at] == 0
                        && input.elements() >= 2 * n as u64
                        && !is_given(graph, input.value)
                })
            };
            rounds += usize::from(meets && self.is_pooled(out.value));
            for output in graph.outputs(*node) {
                pairs_of[output.value.0 as usize] = if still { n } else { 0 };
                weighted[output.value.0 as usize] = by_weight && still;
            }
        }
        match rounds {
            0 => 0.0,
            1 => 0.6,
            _ => 0.78,
        }
    }

    /// Of how many nodes a node computes all differences or distances, of each with each.
    fn difference(&self, node: NodeId, name: &str) -> Option<i64> {
        let graph = self.graph;
        let (a, b, out) = (graph.input(node, 0)?, graph.input(node, 1)?, graph.output(node, 0)?);
        let n = match name {
            "sub" => out.size(-2),
            "_cdist_forward" | "cdist" | "_euclidean_dist" => out.size(-1),
            _ => return None,
        };
        let square = match name {
            "sub" => out.dims() >= 3 && out.size(-3) == n && a.elements() < out.elements(),
            _ => out.size(-2) == n,
        };
        (square && n > 2 && a.value == b.value).then_some(n)
    }

    /// Whether one of these operators lies close above a value.
    fn above(&self, value: ValueId, names: &[&str]) -> bool {
        let graph = self.graph;
        let mut at = value;
        for _ in 0..8 {
            let node = graph.producer(at);
            if names.contains(&self.graph.name(node)) {
                return true;
            }
            let Some(input) = graph.input(node, 0) else { return false };
            at = input.value;
        }
        false
    }

    /// Whether convolutions over planes or volumes run.
    fn sees_images(&self) -> bool {
        self.nodes.iter().any(|node| {
            self.graph.roles(*node).has(Roles::CONVOLUTION)
                && self
                    .graph
                    .input(*node, 1)
                    .is_some_and(|weight| weight.dims() >= 4 && weight.size(-1) > 1)
        })
    }
}

fn is_norm(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.name(node), "native_batch_norm" | "native_layer_norm" | "native_group_norm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::General;
    use genie_plugin::builder::{Given, GraphBuilder, Handle};
    use genie_plugin::harness;

    const NODES: i64 = 10;
    const EDGES: i64 = 30;

    fn claimed(graph: &Graph) -> f32 {
        let mut notes = Annotations::new();
        recognize(&Facts::of(graph), &mut notes);
        notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
    }

    fn linear(g: &mut GraphBuilder, x: Handle, rows: i64) -> Handle {
        let w = g.weight(&[8, 8]);
        g.op("aten::mm", &[x, w], &[rows, 8])
    }

    /// Gathers by the first list, sums by the second.
    fn message(g: &mut GraphBuilder, x: Handle, from: Handle, to: Handle) -> Handle {
        let sent = g.op("aten::index_select", &[x, from], &[EDGES, 8]);
        let sent = linear(g, sent, EDGES);
        let zeros = g.op("aten::zeros_like", &[x], &[NODES, 8]);
        g.op("aten::index_add", &[zeros, to, sent], &[NODES, 8])
    }

    #[test]
    fn messages_go_along_edges() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[NODES, 8]);
        let edges = g.input_of(&[2, EDGES], DType::INT64);
        let from = g.slice(edges, 0, 0, 1);
        let from = g.view(from, &[EDGES]);
        let to = g.slice(edges, 0, 1, 1);
        let to = g.view(to, &[EDGES]);
        message(&mut g, x, from, to);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("gnn");
        for op in ["index_select", "mm", "index_add"] {
            seen.assert_phase_of(op, "gnn.message_passing");
        }
    }

    #[test]
    fn experts_gather_and_sum_by_one_list() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[NODES, 8]);
        let list = g.input_of(&[EDGES], DType::INT64);
        message(&mut g, x, list, list);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn scores_that_send_words_to_experts_make_no_edges() {
        let mut g = GraphBuilder::new();
        let (ids, table) = (g.input_of(&[NODES], DType::INT64), g.weight(&[99, 8]));
        let x = g.op("aten::embedding", &[table, ids], &[NODES, 8]);
        let scores = linear(&mut g, x, NODES);
        let order = g.dtype(DType::INT64).op("aten::sort", &[scores], &[EDGES]);
        let word = g.op("aten::floor_divide", &[order], &[EDGES]);
        message(&mut g, x, order, word);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn an_adjacency_matrix_mixes_rows_in_every_layer() {
        for layers in [1, 2] {
            let mut g = GraphBuilder::new();
            let (mut x, a) = (g.input(&[NODES, 8]), g.input(&[NODES, NODES]));
            for _ in 0..layers {
                let y = linear(&mut g, x, NODES);
                let y = g.op("aten::mm", &[a, y], &[NODES, 8]);
                x = g.op("aten::relu", &[y], &[NODES, 8]);
            }
            let confidence = claimed(&g.build());
            assert_eq!(confidence >= 0.8, layers == 2, "{layers} layers: {confidence}");
        }
    }

    #[test]
    fn masked_sums_over_pairs_weigh_neighbours() {
        let mut g = GraphBuilder::new();
        let (x, mask) = (g.input(&[NODES, 8]), g.input_of(&[NODES, NODES], DType::BOOL));
        let h = linear(&mut g, x, NODES);
        let w = g.weight(&[8, 1]);
        let (a, b) =
            (g.op("aten::mm", &[h, w], &[NODES, 1]), g.op("aten::mm", &[h, w], &[NODES, 1]));
        let b = g.transpose(b, 0, 1);
        let e = g.op("aten::add.Tensor", &[a, b], &[NODES, NODES]);
        let e = g.op("aten::leaky_relu", &[e], &[NODES, NODES]);
        let e = g.op("aten::masked_fill.Scalar", &[e, mask], &[NODES, NODES]);
        let e = g.op("aten::_softmax", &[e], &[NODES, NODES]);
        g.op("aten::mm", &[e, h], &[NODES, 8]);
        assert!(claimed(&g.build()) > 0.8);
    }

    #[test]
    fn filters_from_distances_multiply_neighbours() {
        let mut g = GraphBuilder::new();
        let (at, x) = (g.input(&[NODES, 3]), g.input(&[NODES, 8]));
        let mut h = linear(&mut g, x, NODES);
        let (a, b) = (g.view(at, &[NODES, 1, 3]), g.view(at, &[1, NODES, 3]));
        let away = g.op("aten::sub.Tensor", &[a, b], &[NODES, NODES, 3]);
        for _ in 0..2 {
            let w = g.weight(&[3, 8]);
            let rows = g.view(away, &[NODES * NODES, 3]);
            let filter = g.op("aten::mm", &[rows, w], &[NODES * NODES, 8]);
            let filter = g.view(filter, &[NODES, NODES, 8]);
            let ends = g.view(h, &[1, NODES, 8]);
            let sent = g.op("aten::mul.Tensor", &[filter, ends], &[NODES, NODES, 8]);
            h = g.op("aten::sum.dim_IntList", &[sent], &[NODES, 8]);
        }
        assert!(claimed(&g.build()) > 0.7);
    }

    #[test]
    fn a_square_batch_times_weights_is_no_graph() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[8, 8]);
        let y = linear(&mut g, x, 8);
        linear(&mut g, y, 8);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn a_table_of_neighbours_is_gathered_and_pooled() {
        for of_program in [true, false] {
            let mut g = GraphBuilder::new();
            let x = g.input(&[NODES, 8]);
            let table = match of_program {
                true => g.input_of(&[NODES, 3], DType::INT64),
                false => g.dtype(DType::INT64).op("aten::argmax", &[x], &[NODES, 3]),
            };
            let h = linear(&mut g, x, NODES);
            let near = g.op("aten::index.Tensor", &[h, table], &[NODES, 3, 8]);
            let sum = g.op("aten::mean.dim", &[near], &[NODES, 8]);
            linear(&mut g, sum, NODES);
            assert_eq!(claimed(&g.build()) > 0.7, of_program);
        }
    }

    #[test]
    fn a_loop_pools_a_list_for_each_node() {
        // As many lists as nodes, or just two.
        for (lists, found) in [(NODES, true), (2, false)] {
            let mut g = GraphBuilder::new();
            let x = g.input(&[NODES, 8]);
            let h = linear(&mut g, x, NODES);
            let sums: Vec<Handle> = (0..lists)
                .map(|node| {
                    let len = 2 + node % 3;
                    let list = g.input_of(&[len], DType::INT64);
                    let near = g.op("aten::index.Tensor", &[h, list], &[len, 8]);
                    g.op("aten::mean.dim", &[near], &[8])
                })
                .collect();
            let rows = g.op("aten::stack", &sums, &[lists, 8]);
            linear(&mut g, rows, lists);
            assert_eq!(claimed(&g.build()) > 0.7, found, "{lists} lists");
        }
    }

    #[test]
    fn differences_of_a_running_sum_add_segments() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[NODES, 8]);
        let (from, ends) =
            (g.input_of(&[EDGES], DType::INT64), g.input_of(&[NODES + 1], DType::INT64));
        let sent = g.op("aten::index.Tensor", &[x, from], &[EDGES, 8]);
        let args = [Given::Tensor(0), Given::Int(0)];
        let sums = g.op_with("aten::cumsum", &[sent], Some(&args), &[EDGES, 8]);
        let sums = g.op("aten::constant_pad_nd", &[sums], &[EDGES + 1, 8]);
        let picked = g.op("aten::index.Tensor", &[sums, ends], &[NODES + 1, 8]);
        let (above, below) = (g.slice(picked, 0, 1, NODES), g.slice(picked, 0, 0, NODES));
        let sum = g.op("aten::sub.Tensor", &[above, below], &[NODES, 8]);
        linear(&mut g, sum, NODES);
        assert!(claimed(&g.build()) > 0.8);
    }

    #[test]
    fn a_matrix_and_its_transpose_are_edges_unless_a_network_is_tied() {
        for tied in [false, true] {
            let mut g = GraphBuilder::new();
            let (x, ends) = (g.input(&[NODES, 8]), g.input(&[EDGES, NODES]));
            let mut h = match tied {
                true => g.op("aten::relu", &[x], &[NODES, 8]),
                false => linear(&mut g, x, NODES),
            };
            for _ in 0..2 {
                let mut sent = g.op("aten::mm", &[ends, h], &[EDGES, 8]);
                if !tied {
                    sent = linear(&mut g, sent, EDGES);
                }
                let back = g.transpose(ends, 0, 1);
                h = g.op("aten::mm", &[back, sent], &[NODES, 8]);
            }
            assert_eq!(claimed(&g.build()) > 0.8, !tied);
        }
    }
}
