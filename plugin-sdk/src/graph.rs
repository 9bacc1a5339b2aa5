//! A graph to look at: nodes in program order, tensors with geometry, values, storages.

use std::sync::OnceLock;

use crate::columns::{Columns, MalformedColumns, NO_MODEL, edge};
use crate::operators::{Roles, plain_name, roles};

/// A node by its position in program order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// A value: the content of a storage between two writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A storage: memory that tensors look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageId(pub u32);

/// The stage of training that the program is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// No stage was marked: inference.
    None,
    Forward,
    Backward,
    Optimizer,
}

/// Where the content of a storage came from, if it is from before the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Unknown, or made within the window.
    Unknown,
    Weight,
    Upload,
    /// Computed before the window, in this stage.
    Computed(Stage),
}

/// Element types, by the numbers of `c10::ScalarType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType(pub u8);

impl DType {
    pub const INT32: DType = DType(3);
    pub const INT64: DType = DType(4);
    pub const FLOAT32: DType = DType(6);
    pub const BOOL: DType = DType(11);

    pub fn is_integer(self) -> bool {
        matches!(self.0, 0..=4 | 27..=29)
    }

    pub fn is_floating(self) -> bool {
        matches!(self.0, 5..=7 | 15 | 23..=26)
    }

    /// Bytes of one element; 8 for what this release does not know.
    pub fn bytes(self) -> u64 {
        match self.0 {
            0 | 1 | 11..=13 | 16 | 17 | 23..=26 | 44..=45 => 1,
            2 | 5 | 15 | 27 => 2,
            3 | 6 | 8 | 14 | 28 => 4,
            10 => 16,
            _ => 8,
        }
    }
}

/// A tensor as an operator sees it. Sizes and strides count elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tensor<'a> {
    pub value: ValueId,
    pub dtype: DType,
    pub sizes: &'a [i64],
    pub strides: &'a [i64],
    /// Where it begins in its storage, in elements.
    pub offset: u64,
}

impl Tensor<'_> {
    #[inline]
    pub fn dims(&self) -> usize {
        self.sizes.len()
    }

    /// A size counted from the end: `size(-1)` is the last dimension; 1 where there is none.
    #[inline]
    pub fn size(&self, dim: isize) -> i64 {
        let index = if dim < 0 { self.sizes.len() as isize + dim } else { dim };
        usize::try_from(index).ok().and_then(|index| self.sizes.get(index)).copied().unwrap_or(1)
    }

    #[inline]
    pub fn elements(&self) -> u64 {
        self.sizes.iter().fold(1u64, |product, size| product.saturating_mul(*size as u64))
    }

    /// Whether it shows some elements at several places: windows that slide.
    pub fn overlaps(&self) -> bool {
        let strides = self.strides.iter().copied().zip(self.sizes.iter().copied());
        let mut dims: Vec<(i64, i64)> =
            strides.filter(|(stride, size)| *stride > 0 && *size > 1).collect();
        dims.sort_unstable();
        dims.windows(2).any(|pair| pair[1].0 < pair[0].0.saturating_mul(pair[0].1))
    }

    /// Bytes of its elements, each counted once.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.bytes())
    }
}

/// One argument of an operator; lists are flattened behind their [`Arg::List`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg<'a> {
    None,
    /// Which input of the node.
    Tensor(u32),
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A number that may differ from run to run.
    Varying,
    Str(&'a str),
    List(u32),
    Other,
}

impl Arg<'_> {
    /// The number, where it is one.
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Arg::Int(value) => Some(value),
            Arg::Bool(value) => Some(value.into()),
            _ => None,
        }
    }
}

/// A checked graph with the indexes that queries need.
///
/// Invariant: every id that an accessor returns can be given to every other accessor.
#[derive(Debug, Clone)]
pub struct Graph {
    columns: Columns,
    /// Built when a query first needs them.
    consumers: OnceLock<Lists<NodeId>>,
    storage_values: OnceLock<Lists<ValueId>>,
    /// By symbol: rules ask about operators all the time, and there are few of them.
    operators: OnceLock<Vec<Operator>>,
}

/// What the name of an operator says; empty for symbols that name none.
#[derive(Debug, Clone, Copy, Default)]
struct Operator {
    /// Where the name without namespace and overload lies in the blob, and where it ends without
    /// the `_` of its in-place form.
    start: u32,
    end: u32,
    plain_end: u32,
    is_op: bool,
    roles: Roles,
}

impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.columns == other.columns
    }
}

/// Lists end to end; list `i` stops at `ends[i]`.
#[derive(Debug, Clone)]
struct Lists<T> {
    ends: Vec<u32>,
    items: Vec<T>,
}

impl<T: Copy> Lists<T> {
    /// Puts each item into the list that `lists` names for it, in order.
    fn collect(
        count: usize,
        lists: &[u32],
        none: T,
        items: impl Iterator<Item = (usize, T)>,
    ) -> Lists<T> {
        let mut ends = vec![0u32; count];
        for list in lists {
            ends[*list as usize] += 1;
        }
        accumulate(&mut ends);
        let mut next = starts(&ends);
        let mut sorted = vec![none; lists.len()];
        for (index, item) in items {
            let slot = &mut next[lists[index] as usize];
            sorted[*slot as usize] = item;
            *slot += 1;
        }
        Lists { ends, items: sorted }
    }

    fn get(&self, list: usize) -> &[T] {
        &self.items[range(&self.ends, list)]
    }
}

impl Graph {
    /// Checks the columns, in time linear in their length.
    pub fn new(columns: Columns) -> Result<Graph, MalformedColumns> {
        columns.check()?;
        Ok(Graph::trusted(columns))
    }

    /// A graph of columns that were checked elsewhere; with others, accessors panic.
    pub fn trusted(columns: Columns) -> Graph {
        Graph {
            columns,
            consumers: OnceLock::new(),
            storage_values: OnceLock::new(),
            operators: OnceLock::new(),
        }
    }

    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    pub fn into_columns(self) -> Columns {
        self.columns
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.columns.op.len()
    }

    pub fn is_empty(&self) -> bool {
        self.columns.op.is_empty()
    }

    /// All nodes in program order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + use<> {
        (0..self.len() as u32).map(NodeId)
    }

    pub fn values(&self) -> impl ExactSizeIterator<Item = ValueId> + use<> {
        (0..self.columns.value_storage.len() as u32).map(ValueId)
    }

    pub fn storages(&self) -> impl ExactSizeIterator<Item = StorageId> + use<> {
        (0..self.columns.storage_bytes.len() as u32).map(StorageId)
    }

    /// A string of the table; empty where there is no such symbol.
    #[inline]
    pub fn symbol(&self, symbol: u32) -> &str {
        let Some(end) = self.columns.symbol_ends.get(symbol as usize) else { return "" };
        let start = match symbol {
            0 => 0,
            _ => self.columns.symbol_ends[symbol as usize - 1] as usize,
        };
        &self.columns.blob[start..*end as usize]
    }

    /// How many symbols the table has; [`Graph::op_symbol`] is below it.
    pub fn symbols(&self) -> usize {
        self.columns.symbol_ends.len()
    }

    /// The operator with its overload, as PyTorch prints it: `aten::add.Tensor`.
    #[inline]
    pub fn op(&self, node: NodeId) -> &str {
        self.symbol(self.columns.op[node.0 as usize])
    }

    /// The number of the operator's name: equal names have equal numbers.
    #[inline]
    pub fn op_symbol(&self, node: NodeId) -> u32 {
        self.columns.op[node.0 as usize]
    }

    /// The operator without namespace and overload: `add_` for `aten::add_.Tensor`.
    #[inline]
    pub fn op_name(&self, node: NodeId) -> &str {
        let Operator { start, end, .. } = self.operator(node);
        &self.columns.blob[start as usize..end as usize]
    }

    /// The operator without namespace, overload and the `_` of its in-place form: `add` for
    /// `aten::add_.Tensor`.
    #[inline]
    pub fn name(&self, node: NodeId) -> &str {
        let Operator { start, plain_end, .. } = self.operator(node);
        &self.columns.blob[start as usize..plain_end as usize]
    }

    /// What the operator does with data, as its name tells.
    #[inline]
    pub fn roles(&self, node: NodeId) -> Roles {
        self.operator(node).roles
    }

    /// Whether the node is an operator (not a source, upload, read and the like).
    #[inline]
    pub fn is_op(&self, node: NodeId) -> bool {
        self.operator(node).is_op
    }

    #[inline]
    fn operator(&self, node: NodeId) -> Operator {
        let operators = self.operators.get_or_init(|| self.find_operators());
        operators[self.columns.op[node.0 as usize] as usize]
    }

    fn find_operators(&self) -> Vec<Operator> {
        let mut operators: Vec<Option<Operator>> = vec![None; self.columns.symbol_ends.len()];
        for symbol in &self.columns.op {
            operators[*symbol as usize].get_or_insert_with(|| {
                let op = self.symbol(*symbol);
                let skipped = op.rfind("::").map_or(0, |at| at + 2);
                let end = self.columns.symbol_ends[*symbol as usize] as usize;
                let start = end - op.len() + skipped;
                Operator {
                    start: start as u32,
                    end: (start + base_name(op).len()) as u32,
                    plain_end: (start + plain_name(op).len()) as u32,
                    is_op: !op.starts_with("genie::"),
                    roles: roles(op),
                }
            });
        }
        operators.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Path of the innermost module; empty outside modules.
    pub fn module(&self, node: NodeId) -> &str {
        self.symbol(self.columns.module[node.0 as usize])
    }

    #[inline]
    pub fn module_symbol(&self, node: NodeId) -> u32 {
        self.columns.module[node.0 as usize]
    }

    /// Class of the innermost module; empty outside modules.
    pub fn class(&self, node: NodeId) -> &str {
        self.symbol(self.columns.class[node.0 as usize])
    }

    /// The phase that the program marked; empty where it did not.
    pub fn mark(&self, node: NodeId) -> &str {
        self.symbol(self.columns.mark[node.0 as usize])
    }

    /// The number of the model of the window that the node belongs to; `None`: to none alone.
    pub fn model(&self, node: NodeId) -> Option<u32> {
        Some(self.columns.model[node.0 as usize]).filter(|model| *model != NO_MODEL)
    }

    pub fn stage(&self, node: NodeId) -> Stage {
        stage(self.columns.stage[node.0 as usize])
    }

    /// The number of the segment: what lies between two reads of the program.
    #[inline]
    pub fn segment(&self, node: NodeId) -> u32 {
        self.columns.segment[node.0 as usize]
    }

    /// Estimated floating-point operations.
    #[inline]
    pub fn flops(&self, node: NodeId) -> u64 {
        self.columns.flops[node.0 as usize]
    }

    /// Bytes read and written, estimated.
    #[inline]
    pub fn bytes(&self, node: NodeId) -> u64 {
        self.columns.bytes[node.0 as usize]
    }

    /// Tensor operands in argument order.
    #[inline]
    pub fn inputs(
        &self,
        node: NodeId,
    ) -> impl DoubleEndedIterator<Item = Tensor<'_>> + ExactSizeIterator {
        range(&self.columns.input_ends, node.0 as usize).map(|index| self.input_at(index))
    }

    /// Tensor operand number `index`.
    #[inline]
    pub fn input(&self, node: NodeId, index: usize) -> Option<Tensor<'_>> {
        range(&self.columns.input_ends, node.0 as usize).nth(index).map(|at| self.input_at(at))
    }

    #[inline]
    fn input_at(&self, index: usize) -> Tensor<'_> {
        let c = &self.columns;
        self.tensor(c.input_value[index], c.input_geometry[index], c.input_offset[index])
    }

    /// What the node returns or writes in place.
    #[inline]
    pub fn outputs(
        &self,
        node: NodeId,
    ) -> impl DoubleEndedIterator<Item = Tensor<'_>> + ExactSizeIterator {
        range(&self.columns.output_ends, node.0 as usize).map(|index| self.output_at(index))
    }

    #[inline]
    pub fn output(&self, node: NodeId, index: usize) -> Option<Tensor<'_>> {
        range(&self.columns.output_ends, node.0 as usize).nth(index).map(|at| self.output_at(at))
    }

    #[inline]
    fn output_at(&self, index: usize) -> Tensor<'_> {
        let c = &self.columns;
        self.tensor(c.output_value[index], c.output_geometry[index], c.output_offset[index])
    }

    #[inline]
    fn tensor(&self, value: u32, geometry: u32, offset: u64) -> Tensor<'_> {
        let c = &self.columns;
        let dims = range(&c.geometry_ends, geometry as usize);
        Tensor {
            value: ValueId(value),
            dtype: DType(c.geometry_dtype[geometry as usize]),
            sizes: &c.sizes[dims.clone()],
            strides: &c.strides[dims],
            offset,
        }
    }

    /// Arguments, flattened; tensors name the node's inputs.
    #[inline]
    pub fn args(
        &self,
        node: NodeId,
    ) -> impl DoubleEndedIterator<Item = Arg<'_>> + ExactSizeIterator {
        range(&self.columns.arg_ends, node.0 as usize).map(|index| {
            let bits = self.columns.arg_bits[index];
            match self.columns.arg_kind[index] {
                0 => Arg::None,
                1 => Arg::Tensor(bits as u32),
                2 => Arg::Bool(bits != 0),
                3 => Arg::Int(bits as i64),
                4 => Arg::Float(f64::from_bits(bits)),
                5 => Arg::Varying,
                6 => Arg::Str(self.symbol(bits as u32)),
                7 => Arg::List(bits as u32),
                _ => Arg::Other,
            }
        })
    }

    /// The node that made a value (a source node, where it is from before the window).
    #[inline]
    pub fn producer(&self, value: ValueId) -> NodeId {
        NodeId(self.columns.value_producer[value.0 as usize])
    }

    /// Whether another model of the window hands the value over: its producer is a source that
    /// stands for whoever made it.
    #[inline]
    pub fn is_handed_over(&self, value: ValueId) -> bool {
        self.columns.value_edge[value.0 as usize] & edge::FROM != 0
    }

    /// Whether another model of the window uses the value.
    #[inline]
    pub fn is_handed_on(&self, value: ValueId) -> bool {
        self.columns.value_edge[value.0 as usize] & edge::TO != 0
    }

    /// The nodes that use a value, in program order, once for each use.
    #[inline]
    pub fn consumers(&self, value: ValueId) -> &[NodeId] {
        let consumers = self.consumers.get_or_init(|| {
            let c = &self.columns;
            let nodes = (0..c.nodes())
                .flat_map(|node| range(&c.input_ends, node).map(move |input| (input, node)));
            let nodes = nodes.map(|(input, node)| (input, NodeId(node as u32)));
            Lists::collect(c.value_storage.len(), &c.input_value, NodeId(0), nodes)
        });
        consumers.get(value.0 as usize)
    }

    #[inline]
    pub fn storage(&self, value: ValueId) -> StorageId {
        StorageId(self.columns.value_storage[value.0 as usize])
    }

    /// The values a storage has held, oldest first.
    #[inline]
    pub fn values_of(&self, storage: StorageId) -> &[ValueId] {
        let values = self.storage_values.get_or_init(|| {
            let c = &self.columns;
            let values = (0..c.value_storage.len()).map(|value| (value, ValueId(value as u32)));
            Lists::collect(c.storage_bytes.len(), &c.value_storage, ValueId(0), values)
        });
        values.get(storage.0 as usize)
    }

    #[inline]
    pub fn storage_bytes(&self, storage: StorageId) -> u64 {
        self.columns.storage_bytes[storage.0 as usize]
    }

    pub fn origin(&self, storage: StorageId) -> Origin {
        match self.columns.storage_origin[storage.0 as usize] {
            1 => Origin::Weight,
            2 => Origin::Upload,
            code @ 3..=6 => Origin::Computed(stage(code - 3)),
            _ => Origin::Unknown,
        }
    }

    /// Whether the program still held the storage when the window ended.
    pub fn is_alive(&self, storage: StorageId) -> bool {
        self.columns.storage_alive[storage.0 as usize] != 0
    }

    /// The nodes whose outputs this node reads, in argument order.
    pub fn predecessors(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.inputs(node).map(|tensor| self.producer(tensor.value))
    }

    /// The nodes that read this node's outputs.
    pub fn successors(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.outputs(node).flat_map(|tensor| self.consumers(tensor.value).iter().copied())
    }
}

/// `softmax` of `aten::softmax.int`.
pub fn base_name(op: &str) -> &str {
    let name = op.rsplit_once("::").map_or(op, |(_, name)| name);
    name.split_once('.').map_or(name, |(name, _)| name)
}

fn stage(code: u8) -> Stage {
    match code {
        1 => Stage::Forward,
        2 => Stage::Backward,
        3 => Stage::Optimizer,
        _ => Stage::None,
    }
}

#[inline]
fn range(ends: &[u32], index: usize) -> std::ops::Range<usize> {
    let start = if index == 0 { 0 } else { ends[index - 1] as usize };
    start..ends[index] as usize
}

fn accumulate(counts: &mut [u32]) {
    let mut sum = 0;
    for count in counts {
        sum += *count;
        *count = sum;
    }
}

fn starts(ends: &[u32]) -> Vec<u32> {
    std::iter::once(0).chain(ends.iter().copied()).take(ends.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small_graph;

    #[test]
    fn windows_overlap_that_slide_by_less_than_they_show() {
        for (strides, overlap) in [([40, 4, 1], true), ([40, 8, 1], false), ([0, 0, 1], false)] {
            let (value, dtype, offset) = (ValueId(0), DType::FLOAT32, 0);
            let view = Tensor { value, dtype, sizes: &[2, 5, 8], strides: &strides, offset };
            assert_eq!(view.overlaps(), overlap, "{strides:?}");
        }
    }

    #[test]
    fn nodes_values_and_storages_lead_to_each_other() {
        let graph = Graph::new(small_graph()).unwrap();
        let relu = graph.nodes().find(|node| graph.op_name(*node) == "relu").unwrap();
        let input = graph.input(relu, 0).unwrap();
        assert_eq!(graph.op(graph.producer(input.value)), "aten::mm");
        assert_eq!(graph.consumers(input.value), [relu]);
        assert_eq!(input.sizes, [2, 3]);
        assert_eq!(graph.module(relu), "net.0");
        let storage = graph.storage(input.value);
        assert_eq!(graph.values_of(storage), [input.value]);
        assert!(!graph.is_alive(storage));
        assert_eq!(graph.origin(StorageId(0)), Origin::Weight);
    }
}
