//! Which kind of input each value depends on.

use crate::graph::{Arg, DType, Graph, NodeId, Tensor, ValueId};
use crate::operators::Roles;
use crate::shapes::convolution::Convolution;
use crate::shapes::flow::{Flow, is_given, is_parameter, product};

/// Operators between a lookup of positions and the sum that it is for.
const GATES_MAX: usize = 4;

/// A kind of input, as one bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modality(pub u8);

impl Modality {
    pub const NONE: Modality = Modality(0);
    /// Looked up in a table by integers.
    pub const TOKENS: Modality = Modality(1);
    /// Pixels: planes of one or three channels.
    pub const IMAGE: Modality = Modality(2);
    /// A waveform, a spectrogram.
    pub const AUDIO: Modality = Modality(4);
    /// Planes of other channel counts: latents of an image model, feature maps.
    pub const LATENT: Modality = Modality(8);
    /// Rows of numbers, one after another in time or space.
    pub const SERIES: Modality = Modality(16);
    /// One row of numbers each.
    pub const VECTOR: Modality = Modality(32);

    pub fn has(self, other: Modality) -> bool {
        self.0 & other.0 != 0
    }

    pub fn with(self, other: Modality) -> Modality {
        Modality(self.0 | other.0)
    }

    /// Only bits of `other`, and at least one.
    pub fn only(self, other: Modality) -> bool {
        self.0 != 0 && self.0 & !other.0 == 0
    }
}

/// A lookup of rows by integers.
#[derive(Debug, Clone, Copy)]
pub struct Lookup<'a> {
    pub table: Tensor<'a>,
    pub index: Tensor<'a>,
    /// Rows of one sequence that are fetched.
    pub tokens: i64,
    /// Where they begin in the tensor of indexes (or of one-hot rows), in elements.
    pub offset: u64,
}

/// The lookup that a node is: `embedding`, indexing a given table by rows, or a one-hot matrix
/// times the table.
pub fn lookup(graph: &Graph, node: NodeId) -> Option<Lookup<'_>> {
    if !graph.roles(node).has(Roles::PRODUCT.and(Roles::GATHER))
        && graph.name(node) != "embedding_renorm"
    {
        return None;
    }
    if let Some(found) = one_hot_product(graph, node) {
        return Some(found);
    }
    let (table, index) = match graph.op_name(node) {
        "embedding" | "embedding_renorm_" => (graph.input(node, 0)?, graph.input(node, 1)?),
        "index_select" | "index" => {
            if graph.inputs(node).len() != 2 {
                return None;
            }
            let table = graph.input(node, 0)?;
            let index = graph.input(node, 1)?;
            // Rows only, wide enough to be vectors, not all of them many times: those are biases
            // by position.
            let rows = !matches!(graph.args(node).nth(2), Some(Arg::None))
                && table.strides.last() == Some(&1);
            if !rows || table.size(-1) < 16 || index.elements() > table.size(0) as u64 {
                return None;
            }
            (table, index)
        }
        _ => return None,
    };
    let rows = table.dims() == 2 && table.dtype.is_floating() && is_parameter(graph, table.value);
    let tokens = if index.dims() == 0 { 1 } else { index.size(-1) };
    let offset = index.offset;
    (rows && index.dtype.is_integer()).then_some(Lookup { table, index, tokens, offset })
}

/// A product of a one-hot matrix with a given table.
fn one_hot_product(graph: &Graph, node: NodeId) -> Option<Lookup<'_>> {
    let product = product(graph, node).filter(|product| product.weighted)?;
    let mut at = product.data;
    for _ in 0..4 {
        let maker = graph.producer(at.value);
        let index = match graph.op_name(maker) {
            "scatter_" | "scatter" => graph.inputs(maker).nth(1),
            "eq" => graph.inputs(maker).find(|input| input.size(-1) == 1),
            _ => None,
        };
        if let Some(index) = index {
            // As long as the table is high, with one entry in each row.
            let width = graph.output(maker, 0)?.size(-1);
            let fits = width == product.other.size(-2) && index.dtype.is_integer();
            // A part of the rows, where it is one; else as many as one sequence has.
            let tokens = product.data.size(-2).min(graph.output(maker, 0)?.size(-2));
            let (table, offset) = (product.other, product.data.offset);
            return fits.then_some(Lookup { table, index, tokens, offset });
        }
        at = crate::shapes::flow::passed_on(graph, maker)?;
    }
    None
}

/// Where integers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integers(u8);

impl Integers {
    const GIVEN: u8 = 1;
    const CHOSEN: u8 = 2;
    const FILLED: u8 = 4;

    /// Depends on integers that the program gave.
    pub fn given(self) -> bool {
        self.0 & Integers::GIVEN != 0
    }

    /// The program gave them, and no scores took part: edges, neighbours, classes.
    pub fn by_program(self) -> bool {
        self.given() && !self.chosen()
    }

    /// Is one constant, such as the token that begins a text.
    pub fn filled(self) -> bool {
        self.0 & Integers::FILLED != 0
    }

    /// Depends on a choice by scores: argmax, sampling.
    pub fn chosen(self) -> bool {
        self.0 & Integers::CHOSEN != 0
    }
}

/// For every value, which kinds of input it depends on.
#[derive(Debug, Clone)]
pub struct Modalities {
    of: Vec<Modality>,
    integers: Vec<Integers>,
    /// Whether a parameter took part.
    touched: Vec<bool>,
    /// Whether anything given took part: constants have no kind.
    rooted: Vec<bool>,
    /// Whether it was computed from integers alone, such as positions.
    counted: Vec<bool>,
    /// Nodes where an input first meets a parameter, with what the input is.
    pub entries: Vec<(NodeId, Modality)>,
}

impl Modalities {
    /// In program order, in time linear in operands.
    pub fn of(graph: &Graph, flow: &Flow) -> Modalities {
        let values = graph.values().len();
        let mut out = Modalities {
            of: vec![Modality::NONE; values],
            integers: vec![Integers(0); values],
            touched: vec![false; values],
            rooted: vec![false; values],
            counted: vec![false; values],
            entries: Vec::new(),
        };
        for node in graph.nodes() {
            out.node(graph, flow, node);
        }
        out
    }

    pub fn value(&self, value: ValueId) -> Modality {
        self.of[value.0 as usize]
    }

    /// What a node's results depend on.
    pub fn node_of(&self, graph: &Graph, node: NodeId) -> Modality {
        graph.outputs(node).fold(Modality::NONE, |sum, out| sum.with(self.value(out.value)))
    }

    pub fn integers(&self, value: ValueId) -> Integers {
        self.integers[value.0 as usize]
    }

    /// Whether a parameter took part in computing the value.
    pub fn is_touched(&self, value: ValueId) -> bool {
        self.touched[value.0 as usize]
    }

    fn node(&mut self, graph: &Graph, flow: &Flow, node: NodeId) {
        if !flow.is_forward(node) {
            for output in graph.outputs(node) {
                let given = is_given(graph, output.value) || graph.is_op(node);
                self.rooted[output.value.0 as usize] = given;
                self.counted[output.value.0 as usize] = counts(output);
                if output.dtype.is_integer() && is_given(graph, output.value) {
                    self.integers[output.value.0 as usize] = Integers(Integers::GIVEN);
                }
            }
            return;
        }
        let mut sum = Modality::NONE;
        let mut integers = 0;
        let mut touched = false;
        let mut rooted = false;
        let mut counted = true;
        // A copy's destination is written over.
        let skip = usize::from(graph.op_name(node) == "copy_");
        for input in graph.inputs(node).skip(skip) {
            counted &= self.counted[input.value.0 as usize] || !self.rooted[input.value.0 as usize];
        }
        for input in graph.inputs(node) {
            let at = input.value.0 as usize;
            sum = sum.with(self.of[at]);
            integers |= self.integers[at].0;
            touched |= self.touched[at];
            rooted |= self.rooted[at];
        }
        if matches!(graph.op_name(node), "argmax" | "multinomial" | "topk" | "sort") {
            integers |= Integers::CHOSEN;
        }
        if matches!(
            graph.op_name(node),
            "fill_" | "full" | "ones" | "full_like" | "zeros" | "zero_"
        ) {
            integers = Integers::FILLED;
        }
        if let Some(lookup) = lookup(graph, node) {
            let index = self.integers[lookup.index.value.0 as usize];
            touched = true;
            if (index.given() || index.chosen()) && !self.is_positional(graph, node, lookup) {
                sum = sum.with(Modality::TOKENS);
                self.entries.push((node, Modality::TOKENS));
            }
        } else if let Some(entered) = self.entered(graph, node) {
            touched = true;
            if sum.0 == 0 {
                sum = entered;
                if entered != Modality::NONE {
                    self.entries.push((node, entered));
                }
            }
        }
        for output in graph.outputs(node) {
            let at = output.value.0 as usize;
            self.of[at] = sum;
            self.integers[at] = Integers(if output.dtype.is_floating() { 0 } else { integers });
            self.touched[at] = touched;
            self.rooted[at] = rooted && !is_constant(graph, node);
            self.counted[at] = counted || counts(output);
        }
    }

    /// Whether a lookup fetches positions, not tokens: each row of the table once, or vectors that
    /// are only added to what comes from another kind of input.
    pub fn is_positional(&self, graph: &Graph, node: NodeId, lookup: Lookup) -> bool {
        if lookup.index.elements() == lookup.table.size(-2) as u64 && lookup.table.size(-2) > 1 {
            return true;
        }
        let Some(out) = graph.output(node, 0) else { return false };
        let mut at = out.value;
        for _ in 0..GATES_MAX {
            let consumers = graph.consumers(at);
            let added = |consumer: &NodeId| {
                matches!(graph.op_name(*consumer), "add" | "add_")
                    && graph.inputs(*consumer).any(|input| {
                        let of = self.of[input.value.0 as usize];
                        input.value != at && of.only(Modality(!Modality::TOKENS.0))
                    })
            };
            match consumers {
                [] => return false,
                all if all.iter().all(added) => return true,
                // Angles by position.
                all if all.iter().all(|one| graph.roles(*one).has(Roles::WAVE)) => return true,
                // Scaled by a gate first.
                [one] if matches!(graph.name(*one), "tanh" | "mul" | "copy" | "cat") => {
                    let Some(out) = graph.output(*one, 0) else { return false };
                    at = out.value;
                }
                _ => return false,
            }
        }
        false
    }

    /// What comes in where a parameter is applied; `None` where none is.
    fn entered(&self, graph: &Graph, node: NodeId) -> Option<Modality> {
        if let Some(convolution) = Convolution::of(graph, node) {
            let data = convolution.data.value.0 as usize;
            let is_input = !self.touched[data] && self.rooted[data];
            return Some(if is_input { planes(convolution) } else { Modality::NONE });
        }
        let product = product(graph, node)?;
        let data = product.data.value.0 as usize;
        let no_input = self.touched[data] || !self.rooted[data] || self.counted[data];
        if !product.weighted || no_input {
            return product.weighted.then_some(Modality::NONE);
        }
        Some(rows(graph, product.data))
    }
}

/// Whether a tensor holds wide integers: ids, positions, lengths. Narrow ones may be pixels.
fn counts(tensor: Tensor) -> bool {
    tensor.dtype == DType::INT64 || tensor.dtype == DType::INT32
}

/// Whether a node's result depends on nothing that was given: zeros, ones, random numbers.
fn is_constant(graph: &Graph, node: NodeId) -> bool {
    matches!(
        graph.op_name(node),
        "fill_"
            | "zero_"
            | "zeros"
            | "ones"
            | "full"
            | "zeros_like"
            | "ones_like"
            | "full_like"
            | "new_zeros"
            | "new_ones"
            | "empty_like"
            | "arange"
            | "eye"
    )
}

/// What a convolution's input is.
fn planes(convolution: Convolution<'_>) -> Modality {
    let channels = convolution.channels();
    let (h, w) = (convolution.data.size(-2), convolution.data.size(-1));
    match (convolution.spatial, channels) {
        (3, 1..=4) => Modality::IMAGE,
        (2, 3) => Modality::IMAGE,
        // One plane: a picture is about as high as wide, a spectrogram is not.
        (2, 1) if h.max(w) <= 2 * h.min(w) => Modality::IMAGE,
        (2, 1) => Modality::AUDIO,
        (2, _) => Modality::LATENT,
        (1, 1) if w >= 400 => Modality::AUDIO,
        (1, 20..=160) if w >= channels => Modality::AUDIO,
        _ => Modality::SERIES,
    }
}

/// What a matrix product's rows are: pixels that were cut into patches, or numbers.
fn rows(graph: &Graph, data: Tensor) -> Modality {
    // Look up to what was given, through copies.
    let mut at = data;
    for _ in 0..16 {
        if is_given(graph, at.value) {
            break;
        }
        let node = graph.producer(at.value);
        let next = match graph.op_name(node) {
            "im2col" | "unfold" | "pixel_unshuffle" => graph.input(node, 0),
            _ => crate::shapes::flow::passed_on(graph, node),
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    let source = graph.output(graph.producer(at.value), 0).map_or(at.sizes, |output| output.sizes);
    match source.len() {
        5.. => Modality::IMAGE,
        4 if source[1] == 3 || source[3] == 3 || source[1] == 1 => Modality::IMAGE,
        4 => Modality::LATENT,
        3 => Modality::SERIES,
        _ if data.dims() >= 3 => Modality::SERIES,
        _ => Modality::VECTOR,
    }
}
