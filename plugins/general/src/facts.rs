//! What all domains ask about the window, computed once.

use std::cell::OnceCell;

use genie_plugin::prelude::*;
use genie_plugin::query::{is_elementwise, plain_name};
use genie_plugin::shapes::flow::{Product, is_convolution, product};
use genie_plugin::shapes::modality::{Lookup, lookup};
use genie_plugin::shapes::{Attention, Flow, Modalities, attentions};

/// The window, and what the SDK's shapes say of it. Not [`genie_plugin::shapes::View`]: passes over
/// tokens are dear, and nothing here is about them.
pub(crate) struct Facts<'g> {
    pub graph: &'g Graph,
    pub flow: Flow,
    pub modalities: Modalities,
    attentions: OnceCell<Vec<Attention>>,
    /// By symbol: there are few of them, and reading a name takes long.
    operators: Vec<Operator<'g>>,
}

/// Operators that [`product`] and [`lookup`] know: the others need not be asked about.
const PRODUCTS: [&str; 7] = ["mm", "bmm", "matmul", "linear", "mv", "addmm", "baddbmm"];
const LOOKUPS: [&str; 4] = ["embedding", "embedding_renorm", "index_select", "index"];

/// What an operator's name says of it.
#[derive(Debug, Clone, Copy, Default)]
struct Operator<'g> {
    /// Without namespace and overload; empty until a node of it was seen.
    name: &'g str,
    elementwise: bool,
    convolution: bool,
    /// A product of matrices.
    product: bool,
    /// May look up rows.
    lookup: bool,
}

impl<'g> Facts<'g> {
    pub fn of(graph: &'g Graph) -> Self {
        let flow = Flow::of(graph);
        let modalities = Modalities::of(graph, &flow);
        let mut operators = vec![Operator::default(); graph.symbols()];
        for node in graph.nodes() {
            let operator = &mut operators[graph.op_symbol(node) as usize];
            if operator.name.is_empty() {
                let op = graph.op(node);
                let name = plain_name(op);
                let product = PRODUCTS.contains(&name);
                *operator = Operator {
                    name,
                    elementwise: is_elementwise(op),
                    convolution: is_convolution(graph, node),
                    product,
                    lookup: product || LOOKUPS.contains(&name),
                };
            }
        }
        Facts { graph, flow, modalities, attentions: OnceCell::new(), operators }
    }

    fn operator(&self, node: NodeId) -> &Operator<'g> {
        &self.operators[self.graph.op_symbol(node) as usize]
    }

    /// The operator without namespace, overload and the `_` of its in-place form.
    pub fn name(&self, node: NodeId) -> &'g str {
        self.operator(node).name
    }

    pub fn is_elementwise(&self, node: NodeId) -> bool {
        self.operator(node).elementwise
    }

    pub fn is_convolution(&self, node: NodeId) -> bool {
        self.operator(node).convolution
    }

    /// Found when they are first asked for: few windows need them.
    pub fn attentions(&self) -> &[Attention] {
        self.attentions.get_or_init(|| attentions(self.graph, &self.flow))
    }

    /// The matrix product that a node computes, if it does.
    pub fn product(&self, node: NodeId) -> Option<Product<'g>> {
        self.operator(node).product.then(|| product(self.graph, node)).flatten()
    }

    /// The lookup of rows that a node is, if it is one.
    pub fn lookup(&self, node: NodeId) -> Option<Lookup<'g>> {
        self.operator(node).lookup.then(|| lookup(self.graph, node)).flatten()
    }
}
