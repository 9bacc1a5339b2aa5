//! Graphs by hand, for tests: what a capture of the same program would give.
//!
//! ```
//! use genie_plugin::builder::GraphBuilder;
//!
//! let mut g = GraphBuilder::new();
//! let x = g.input(&[2, 4]);
//! let w = g.weight(&[4, 3]);
//! let y = g.module("net.0", "Linear", |g| g.op("aten::mm", &[x, w], &[2, 3]));
//! let y = g.in_place("aten::relu_", y, &[]);
//! g.read(y);
//! assert_eq!(g.build().len(), 5);
//! ```

use std::collections::HashMap;

use crate::symbols::Symbols;
use crate::{Columns, DType, Graph, NodeId, Stage, StorageId, ValueId};

/// A tensor that the builder knows: a value with a geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(usize);

/// An argument of an operator; tensors are the operator's inputs by number.
#[derive(Debug, Clone, PartialEq)]
pub enum Given<'a> {
    None,
    Tensor(u32),
    Bool(bool),
    Int(i64),
    Float(f64),
    Varying,
    Str(&'a str),
    Ints(&'a [i64]),
    /// A list of tensors: which inputs.
    Tensors(&'a [u32]),
}

#[derive(Debug, Clone)]
struct Known {
    value: u32,
    dtype: DType,
    sizes: Vec<i64>,
    strides: Vec<i64>,
    offset: u64,
}

/// Writes the columns of a graph, one operator at a time, in program order.
#[derive(Debug, Default)]
pub struct GraphBuilder {
    symbols: Symbols,
    columns: Columns,
    known: Vec<Known>,
    geometries: HashMap<(DType, Vec<i64>, Vec<i64>), u32>,
    module: (u32, u32),
    mark: u32,
    stage: u8,
    segment: u32,
    dtype: Option<DType>,
}

impl GraphBuilder {
    pub fn new() -> Self {
        GraphBuilder::default()
    }

    /// The program uploads a tensor of this window: data, not a weight. `float32`.
    pub fn input(&mut self, sizes: &[i64]) -> Handle {
        self.input_of(sizes, DType::FLOAT32)
    }

    pub fn input_of(&mut self, sizes: &[i64], dtype: DType) -> Handle {
        self.source("genie::upload", sizes, dtype, 0)
    }

    /// A weight from before the window. `float32`.
    pub fn weight(&mut self, sizes: &[i64]) -> Handle {
        self.source("genie::source", sizes, DType::FLOAT32, 1)
    }

    /// A tensor that an earlier window computed in this stage: a KV cache, an optimizer's moment.
    pub fn earlier(&mut self, sizes: &[i64], stage: Stage) -> Handle {
        self.source("genie::source", sizes, DType::FLOAT32, 3 + stage_code(stage))
    }

    fn source(&mut self, op: &str, sizes: &[i64], dtype: DType, origin: u8) -> Handle {
        let output = self.fresh(sizes, dtype, origin);
        self.node(op, &[], &[output], &[]);
        output
    }

    /// An operator with one new result of the first input's dtype (see [`GraphBuilder::dtype`]).
    pub fn op(&mut self, op: &str, inputs: &[Handle], sizes: &[i64]) -> Handle {
        self.op_with(op, inputs, None, sizes)
    }

    /// An operator with arguments. `None`: the inputs in order and nothing else.
    pub fn op_with(
        &mut self,
        op: &str,
        inputs: &[Handle],
        args: Option<&[Given<'_>]>,
        sizes: &[i64],
    ) -> Handle {
        self.ops(op, inputs, args, &[sizes])[0]
    }

    /// A convolution; one step for each dimension that it moves along.
    pub fn convolve(
        &mut self,
        data: Handle,
        weight: Handle,
        stride: &[i64],
        transposed: bool,
        sizes: &[i64],
    ) -> Handle {
        let (zeros, ones) = (vec![0; stride.len()], vec![1; stride.len()]);
        let args = [
            Given::Tensor(0),
            Given::Tensor(1),
            Given::None,
            Given::Ints(stride),
            Given::Ints(&zeros),
            Given::Ints(&ones),
            Given::Bool(transposed),
            Given::Ints(&zeros),
            Given::Int(1),
        ];
        self.op_with("aten::convolution", &[data, weight], Some(&args), sizes)
    }

    /// An operator with several new results.
    pub fn ops(
        &mut self,
        op: &str,
        inputs: &[Handle],
        args: Option<&[Given<'_>]>,
        results: &[&[i64]],
    ) -> Vec<Handle> {
        let first = inputs.first().map(|input| self.known[input.0].dtype);
        let dtype = self.dtype.take().or(first).unwrap_or(DType::FLOAT32);
        let outputs: Vec<Handle> =
            results.iter().map(|sizes| self.fresh(sizes, dtype, 0)).collect();
        let plain: Vec<Given<'_>> = (0..inputs.len() as u32).map(Given::Tensor).collect();
        self.node(op, inputs, &outputs, args.unwrap_or(&plain));
        outputs
    }

    /// An operator that writes into `target` (its first input). The handle that comes back is the
    /// target after the write; older handles are the content before it.
    pub fn in_place(&mut self, op: &str, target: Handle, others: &[Handle]) -> Handle {
        let inputs: Vec<Handle> = std::iter::once(target).chain(others.iter().copied()).collect();
        let mut written = self.known[target.0].clone();
        let storage = self.columns.value_storage[written.value as usize];
        written.value = self.value(storage);
        let output = self.know(written);
        let args: Vec<Given<'_>> = (0..inputs.len() as u32).map(Given::Tensor).collect();
        self.node(op, &inputs, &[output], &args);
        output
    }

    /// The next operator's results have this dtype.
    pub fn dtype(&mut self, dtype: DType) -> &mut Self {
        self.dtype = Some(dtype);
        self
    }

    /// The same elements in other sizes. Views are no nodes.
    pub fn view(&mut self, of: Handle, sizes: &[i64]) -> Handle {
        let known = &self.known[of.0];
        let view = Known { sizes: sizes.to_vec(), strides: dense(sizes), ..known.clone() };
        self.know(view)
    }

    /// Two dimensions swapped.
    pub fn transpose(&mut self, of: Handle, a: usize, b: usize) -> Handle {
        let mut view = self.known[of.0].clone();
        view.sizes.swap(a, b);
        view.strides.swap(a, b);
        self.know(view)
    }

    /// `len` entries of dimension `dim` from `start` on.
    pub fn slice(&mut self, of: Handle, dim: usize, start: i64, len: i64) -> Handle {
        let mut view = self.known[of.0].clone();
        view.sizes[dim] = len;
        view.offset += (start * view.strides[dim]) as u64;
        self.know(view)
    }

    /// `view` as it looks after a write to the storage: the geometry of one, the content of the
    /// other.
    pub fn view_of(&mut self, view: Handle, content: Handle) -> Handle {
        let value = self.known[content.0].value;
        let known = Known { value, ..self.known[view.0].clone() };
        self.know(known)
    }

    /// The program reads a tensor; a new segment begins.
    pub fn read(&mut self, what: Handle) {
        self.node("genie::read", &[what], &[], &[Given::Tensor(0)]);
        self.segment += 1;
    }

    /// The program still holds the tensor when the window ends.
    pub fn alive(&mut self, what: Handle) {
        let storage = self.storage_of(what);
        self.columns.storage_alive[storage.0 as usize] = 1;
    }

    /// What `body` makes belongs to this module. Nested calls give whole paths, as in a capture.
    pub fn module<R>(&mut self, path: &str, class: &str, body: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.module;
        self.module = (self.symbols.intern(path), self.symbols.intern(class));
        let result = body(self);
        self.module = outer;
        result
    }

    /// From here on the program is in this stage of training.
    pub fn stage(&mut self, stage: Stage) {
        self.stage = stage_code(stage);
    }

    /// From here on the program marked this phase itself (`genie.phase`); empty: none.
    pub fn mark(&mut self, phase: &str) {
        self.mark = self.symbols.intern(phase);
    }

    /// The node that made a tensor.
    pub fn node_of(&self, what: Handle) -> NodeId {
        NodeId(self.columns.value_producer[self.known[what.0].value as usize])
    }

    pub fn value_of(&self, what: Handle) -> ValueId {
        ValueId(self.known[what.0].value)
    }

    pub fn storage_of(&self, what: Handle) -> StorageId {
        StorageId(self.columns.value_storage[self.known[what.0].value as usize])
    }

    pub fn build(self) -> Graph {
        Graph::new(self.columns()).expect("the builder keeps the columns consistent")
    }

    pub fn columns(self) -> Columns {
        let mut columns = self.columns;
        (columns.blob, columns.symbol_ends) = self.symbols.into_table();
        columns
    }

    fn fresh(&mut self, sizes: &[i64], dtype: DType, origin: u8) -> Handle {
        let c = &mut self.columns;
        let storage = c.storage_bytes.len() as u32;
        c.storage_bytes.push(count(sizes).saturating_mul(dtype.bytes()));
        c.storage_origin.push(origin);
        c.storage_alive.push(0);
        let value = self.value(storage);
        let sizes = sizes.to_vec();
        let strides = dense(&sizes);
        self.know(Known { value, dtype, sizes, strides, offset: 0 })
    }

    /// A new value of a storage; [`GraphBuilder::node`] names its producer.
    fn value(&mut self, storage: u32) -> u32 {
        self.columns.value_storage.push(storage);
        self.columns.value_producer.push(self.columns.op.len() as u32);
        self.columns.value_edge.push(0);
        self.columns.value_storage.len() as u32 - 1
    }

    fn know(&mut self, known: Known) -> Handle {
        self.known.push(known);
        Handle(self.known.len() - 1)
    }

    fn geometry(&mut self, of: Handle) -> u32 {
        let known = &self.known[of.0];
        let key = (known.dtype, known.sizes.clone(), known.strides.clone());
        let next = self.columns.geometry_dtype.len() as u32;
        let number = *self.geometries.entry(key).or_insert(next);
        if number == next {
            let c = &mut self.columns;
            c.geometry_dtype.push(known.dtype.0);
            c.sizes.extend(&known.sizes);
            c.strides.extend(&known.strides);
            c.geometry_ends.push(c.sizes.len() as u32);
        }
        number
    }

    fn node(&mut self, op: &str, inputs: &[Handle], outputs: &[Handle], args: &[Given<'_>]) {
        for input in inputs {
            let geometry = self.geometry(*input);
            let known = &self.known[input.0];
            self.columns.input_value.push(known.value);
            self.columns.input_geometry.push(geometry);
            self.columns.input_offset.push(known.offset);
        }
        for output in outputs {
            let geometry = self.geometry(*output);
            let known = &self.known[output.0];
            self.columns.output_value.push(known.value);
            self.columns.output_geometry.push(geometry);
            self.columns.output_offset.push(known.offset);
        }
        for arg in args {
            self.arg(arg);
        }
        let bytes_of = |handles: &[Handle]| -> u64 {
            let bytes = handles.iter().map(|handle| bytes(&self.known[handle.0]));
            bytes.fold(0, u64::saturating_add)
        };
        let moved = bytes_of(inputs).saturating_add(bytes_of(outputs));
        let flops = self.flops(op, inputs, outputs);
        let op = self.symbols.intern(op);
        let c = &mut self.columns;
        c.op.push(op);
        c.module.push(self.module.0);
        c.class.push(self.module.1);
        c.mark.push(self.mark);
        c.stage.push(self.stage);
        c.model.push(0);
        c.segment.push(self.segment);
        c.flops.push(flops);
        c.bytes.push(moved);
        c.input_ends.push(c.input_value.len() as u32);
        c.output_ends.push(c.output_value.len() as u32);
        c.arg_ends.push(c.arg_kind.len() as u32);
    }

    fn arg(&mut self, arg: &Given<'_>) {
        let (kind, bits) = match arg {
            Given::None => (0, 0),
            Given::Tensor(input) => (1, u64::from(*input)),
            Given::Bool(value) => (2, u64::from(*value)),
            Given::Int(value) => (3, *value as u64),
            Given::Float(value) => (4, value.to_bits()),
            Given::Varying => (5, 0),
            Given::Str(text) => (6, u64::from(self.symbols.intern(text))),
            Given::Ints(items) => (7, items.len() as u64),
            Given::Tensors(items) => (7, items.len() as u64),
        };
        self.columns.arg_kind.push(kind);
        self.columns.arg_bits.push(bits);
        match arg {
            Given::Ints(items) => items.iter().for_each(|item| self.arg(&Given::Int(*item))),
            Given::Tensors(items) => {
                items.iter().for_each(|item| self.arg(&Given::Tensor(*item)));
            }
            _ => {}
        }
    }

    /// Two a multiply-add for products of matrices, else one an element.
    fn flops(&self, op: &str, inputs: &[Handle], outputs: &[Handle]) -> u64 {
        if op.starts_with("genie::") {
            return 0;
        }
        let elements = outputs.iter().map(|out| count(&self.known[out.0].sizes));
        let elements = elements.fold(0, u64::saturating_add);
        let inner = match crate::graph::base_name(op) {
            "mm" | "bmm" | "matmul" | "linear" => inputs.first(),
            "addmm" | "baddbmm" => inputs.get(1),
            _ => None,
        };
        let inner = inner.and_then(|input| self.known[input.0].sizes.last());
        elements.saturating_mul(inner.map_or(1, |size| 2 * *size as u64))
    }
}

fn stage_code(stage: Stage) -> u8 {
    match stage {
        Stage::None => 0,
        Stage::Forward => 1,
        Stage::Backward => 2,
        Stage::Optimizer => 3,
    }
}

fn count(sizes: &[i64]) -> u64 {
    sizes.iter().fold(1, |product: u64, size| product.saturating_mul(*size as u64))
}

fn bytes(known: &Known) -> u64 {
    count(&known.sizes).saturating_mul(known.dtype.bytes())
}

/// Strides of a contiguous tensor.
fn dense(sizes: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; sizes.len()];
    for dim in (1..sizes.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(sizes[dim].max(1));
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arg, Origin};

    #[test]
    fn what_was_said_is_in_the_graph() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2, 4]);
        let w = g.weight(&[3, 4]);
        let turned = g.transpose(w, 0, 1);
        let y = g.module("net.0", "Linear", |g| g.op("aten::mm", &[x, turned], &[2, 3]));
        let z = g.in_place("aten::relu_", y, &[]);
        let args = [Given::Tensor(0), Given::Int(-1), Given::Ints(&[1, 2]), Given::Str("x")];
        let s = g.op_with("aten::softmax.int", &[z], Some(&args), &[2, 3]);
        g.alive(s);
        g.read(s);
        let (mm, relu, softmax) = (g.node_of(y), g.node_of(z), g.node_of(s));
        let (before, after, weight) = (g.value_of(y), g.value_of(z), g.storage_of(w));
        let graph = g.build();

        assert_eq!(
            (graph.module(mm), graph.class(mm), graph.module(relu)),
            ("net.0", "Linear", "")
        );
        assert_eq!(graph.input(mm, 1).unwrap().strides, [1, 4]);
        assert_eq!(graph.flops(mm), 2 * 2 * 3 * 4);
        assert_eq!(graph.origin(weight), Origin::Weight);
        assert_eq!(graph.storage(before), graph.storage(after));
        assert_eq!((graph.producer(before), graph.producer(after)), (mm, relu));
        assert_eq!(graph.values_of(graph.storage(after)), [before, after]);
        let args: Vec<Arg<'_>> = graph.args(softmax).collect();
        let list = [Arg::List(2), Arg::Int(1), Arg::Int(2)];
        assert_eq!(args[..2], [Arg::Tensor(0), Arg::Int(-1)]);
        assert_eq!(args[2..5], list);
        assert_eq!(args[5], Arg::Str("x"));
        assert!(graph.is_alive(graph.storage(graph.output(softmax, 0).unwrap().value)));
        let read = graph.nodes().next_back().unwrap();
        assert_eq!((graph.op(read), graph.segment(read)), ("genie::read", 0));
    }
}
