//! What every operator of the forward pass does, as far as a picture is concerned.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, is_weighted, product};
use genie_plugin::shapes::{self, Flow};

/// The longest way that is followed back from an operand.
const WALK_MAX: usize = 16;
/// Readers of one value that are looked at.
const READERS_MAX: usize = 16;
/// Nodes looked at to tell a residual connection from another sum.
const BRANCH_NODES_MAX: usize = 128;

/// What an operator does to feature maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A convolution over at least two spatial dimensions.
    Convolution(Convolution),
    /// Another product with a parameter, or a fused layer.
    Product,
    /// Attention, or a product of two computed matrices.
    Mixing,
    BatchNorm,
    /// Norms of one sample.
    SampleNorm,
    Activation,
    MaxPool,
    /// Any other pool or mean.
    Mean,
    Join,
    Sum,
    /// Upsampling, pixel shuffle.
    Upsample,
    Other,
}

/// How a convolution walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    pub transposed: bool,
    pub strided: bool,
    pub grouped: bool,
    /// Whether its kernel covers more than one position.
    pub wide: bool,
}

/// Facts about the nodes of a window, each by node number.
pub struct Facts<'g> {
    pub graph: &'g Graph,
    pub flow: Flow,
    pub kinds: Vec<Kind>,
    /// Weighted operators on the longest path up to and with the node.
    pub depths: Vec<u32>,
    /// Weighted operators before the node in program order.
    pub weighted_before: Vec<u32>,
    /// Residual connections before the node in program order.
    pub residuals_before: Vec<u32>,
    /// Sums of what went around a branch with what went through it.
    pub residuals: Vec<NodeId>,
    /// Feature maps have no batch dimension.
    unbatched: bool,
}

impl<'g> Facts<'g> {
    pub fn of(graph: &'g Graph, flow: Flow) -> Facts<'g> {
        let kinds: Vec<Kind> = graph.nodes().map(|node| kind(graph, &flow, node)).collect();
        let mut depths = vec![0u32; graph.len()];
        let mut weighted_before = Vec::with_capacity(graph.len());
        let mut weighted = 0;
        for node in graph.nodes() {
            let at = node.0 as usize;
            weighted_before.push(weighted);
            let before = graph.predecessors(node).filter(|before| *before < node);
            let deepest = before.map(|before| depths[before.0 as usize]).max().unwrap_or(0);
            let counts = is_heavy(kinds[at]);
            weighted += u32::from(counts);
            depths[at] = deepest + u32::from(counts);
        }
        let mut facts = Facts {
            graph,
            flow,
            kinds,
            depths,
            weighted_before,
            residuals_before: Vec::new(),
            residuals: Vec::new(),
            unbatched: false,
        };
        facts.unbatched = facts.is_unbatched();
        let mut seen = Seen { stamp: vec![0; graph.len()], now: 0 };
        let (mut before, mut residuals) = (Vec::with_capacity(graph.len()), Vec::new());
        for node in graph.nodes() {
            before.push(residuals.len() as u32);
            if facts.is_residual(node, &mut seen) {
                residuals.push(node);
            }
        }
        (facts.residuals_before, facts.residuals) = (before, residuals);
        facts
    }

    pub fn kind(&self, node: NodeId) -> Kind {
        self.kinds[node.0 as usize]
    }

    pub fn depth(&self, node: NodeId) -> u32 {
        self.depths[node.0 as usize]
    }

    pub fn is_forward(&self, node: NodeId) -> bool {
        self.flow.is_forward(node)
    }

    /// Whether the node computes with parameters on a large scale, or mixes positions.
    pub fn is_heavy(&self, node: NodeId) -> bool {
        is_heavy(self.kind(node))
    }

    /// Positions of a feature map that the node makes; 1 where it makes none.
    pub fn positions(&self, node: NodeId) -> i64 {
        let Some(out) = self.graph.output(node, 0) else { return 1 };
        if !self.is_map(&out) || !out.dtype.is_floating() {
            return 1;
        }
        let spatial = if out.dims() < 4 { 1 } else { 2 };
        out.sizes[spatial..].iter().fold(1i64, |product, size| product.saturating_mul(*size))
    }

    /// Whether the tensor has the dimensions of a feature map.
    pub fn is_map(&self, tensor: &Tensor<'_>) -> bool {
        tensor.dims() >= 4 || self.unbatched && tensor.dims() == 3
    }

    /// Whether what reads the first convolution of planes sees them without a batch dimension.
    fn is_unbatched(&self) -> bool {
        let first = self.graph.nodes().find(|node| {
            matches!(self.kind(*node), Kind::Convolution(_))
                && self.graph.roles(*node).has(Roles::CONVOLUTION)
        });
        let Some(out) = first.and_then(|node| self.graph.output(node, 0)) else { return false };
        out.dims() == 4
            && out.size(0) == 1
            && self.readers(out.value).iter().any(|reader| {
                self.graph
                    .inputs(*reader)
                    .any(|input| input.value == out.value && input.sizes == &out.sizes[1..])
            })
    }

    /// The first operators of the forward pass that read a value, each once.
    pub fn readers(&self, value: ValueId) -> Vec<NodeId> {
        let mut readers: Vec<NodeId> = self
            .graph
            .consumers(value)
            .iter()
            .copied()
            .filter(|node| self.is_forward(*node))
            .take(READERS_MAX)
            .collect();
        readers.dedup();
        readers
    }

    /// The operand that carries what was computed: the deepest that is not given.
    pub fn carried(&self, node: NodeId) -> Option<Tensor<'g>> {
        let inputs = self.graph.inputs(node).filter(|input| !is_given(self.graph, input.value));
        match self.graph.name(node) {
            // The destination is no operand.
            "copy" if self.graph.inputs(node).len() > 1 => self.graph.input(node, 1),
            _ => inputs.max_by_key(|input| {
                let depth = self.depth(self.graph.producer(input.value));
                (depth, std::cmp::Reverse(input.value.0))
            }),
        }
    }

    /// The nearest node behind a value that does more than to scale, norm or reshape: a product,
    /// a residual connection, a join.
    pub fn origin(&self, value: ValueId) -> NodeId {
        let mut node = self.graph.producer(value);
        for _ in 0..WALK_MAX {
            let plain = !self.is_heavy(node)
                && self.kind(node) != Kind::Join
                && self.residuals.binary_search(&node).is_err();
            match self.carried(node).filter(|_| plain) {
                Some(carried) => node = self.graph.producer(carried.value),
                None => break,
            }
        }
        node
    }

    /// Whether the node adds what went around a branch to what went through it.
    fn is_residual(&self, node: NodeId, seen: &mut Seen) -> bool {
        let graph = self.graph;
        if !self.is_forward(node) || !genie_plugin::shapes::flow::is_residual(graph, node) {
            return false;
        }
        let (Some(a), Some(b)) = (graph.input(node, 0), graph.input(node, 1)) else { return false };
        if a.dims() < 3 {
            return false;
        }
        let depth = |tensor: &Tensor<'_>| self.depth(graph.producer(tensor.value));
        let (around, through) = if depth(&a) <= depth(&b) { (a, b) } else { (b, a) };
        if a.value == b.value {
            return false;
        }
        // Where the branch left: the first value that several operators read.
        let mut fork = around.value;
        for step in 0.. {
            let readers = self.readers(fork);
            if readers.len() >= 2 && readers[0] < node {
                break;
            }
            match self.carried(graph.producer(fork)) {
                Some(carried) if step < WALK_MAX => fork = carried.value,
                _ => return false,
            }
        }
        if is_given(graph, fork) {
            return false;
        }
        self.leads_through_weights(fork, through.value, seen)
    }

    /// Whether `to` depends on `from` by way of a weighted operator.
    fn leads_through_weights(&self, from: ValueId, to: ValueId, seen: &mut Seen) -> bool {
        let graph = self.graph;
        let first = graph.producer(from);
        seen.now += 2;
        let mut open = vec![(to, false)];
        for _ in 0..BRANCH_NODES_MAX {
            let Some((value, weighted)) = open.pop() else { return false };
            if value == from {
                if weighted {
                    return true;
                }
                continue;
            }
            let node = graph.producer(value);
            if node < first || !seen.visit(node, weighted) {
                continue;
            }
            let weighted = weighted || self.is_heavy(node);
            open.extend(
                graph
                    .inputs(node)
                    .filter(|input| !is_given(graph, input.value))
                    .map(|input| (input.value, weighted)),
            );
        }
        false
    }
}

/// Nodes seen in the search that is on, without clearing between searches.
struct Seen {
    stamp: Vec<u64>,
    now: u64,
}

impl Seen {
    /// Whether the node was not yet seen so: by way of a weight counts for more.
    fn visit(&mut self, node: NodeId, weighted: bool) -> bool {
        let stamp = &mut self.stamp[node.0 as usize];
        let now = self.now + u64::from(weighted);
        let new = *stamp < now;
        *stamp = now.max(*stamp);
        new
    }
}

fn is_heavy(kind: Kind) -> bool {
    matches!(kind, Kind::Convolution(_) | Kind::Product | Kind::Mixing)
}

fn kind(graph: &Graph, flow: &Flow, node: NodeId) -> Kind {
    if !flow.is_forward(node) {
        return Kind::Other;
    }
    if graph.roles(node).has(Roles::CONVOLUTION) {
        return match convolution(graph, node) {
            Some(convolution) => Kind::Convolution(convolution),
            None => Kind::Product,
        };
    }
    if let Some(unfolded) = unfolded(graph, node) {
        return Kind::Convolution(unfolded);
    }
    if is_weighted(graph, node) {
        return Kind::Product;
    }
    if product(graph, node).is_some() {
        return Kind::Mixing;
    }
    match graph.name(node) {
        _ if graph.roles(node).has(Roles::ATTENTION) => Kind::Mixing,
        name if name.contains("batch_norm") => Kind::BatchNorm,
        "native_layer_norm" | "layer_norm" | "native_group_norm" | "group_norm"
        | "instance_norm" | "rms_norm" | "_fused_rms_norm" => Kind::SampleNorm,
        "relu" | "relu6" | "gelu" | "silu" | "hardtanh" | "hardswish" | "leaky_relu" | "elu"
        | "mish" | "tanh" | "sigmoid" | "hardsigmoid" | "prelu" | "_prelu_kernel" | "celu"
        | "selu" | "softplus" | "threshold" | "clamp" | "clamp_min" => Kind::Activation,
        name if name.starts_with("max_pool") => Kind::MaxPool,
        _ if graph.roles(node).has(Roles::POOL) => Kind::Mean,
        "mean" | "amax" | "logsumexp" => Kind::Mean,
        "cat" | "stack" => Kind::Join,
        "add" => Kind::Sum,
        name if name.contains("upsample") || name == "pixel_shuffle" => Kind::Upsample,
        "max_unpool2d" | "max_unpool3d" => Kind::Upsample,
        _ => Kind::Other,
    }
}

/// How the convolution walks; `None` for one over a single dimension.
fn convolution(graph: &Graph, node: NodeId) -> Option<Convolution> {
    let found = shapes::Convolution::of(graph, node).filter(|found| found.spatial >= 2)?;
    Some(Convolution {
        transposed: found.transposed,
        strided: found.stride > 1,
        grouped: found.is_grouped(),
        wide: found.is_wide(),
    })
}

/// How a convolution walks that is a product of unfolded windows with a parameter.
fn unfolded(graph: &Graph, node: NodeId) -> Option<Convolution> {
    let product = product(graph, node).filter(|product| product.weighted)?;
    let mut columns = graph.producer(product.data.value);
    if matches!(graph.op_name(columns), "clone" | "contiguous") {
        columns = graph.producer(graph.input(columns, 0)?.value);
    }
    if graph.op_name(columns) != "im2col" {
        return None;
    }
    // Kernel, dilation, padding and step, each with its count before it.
    let args: Vec<i64> = graph.args(columns).filter_map(|arg| arg.as_i64()).collect();
    let (kernel, step) = (args.get(..2)?, args.get(args.len().checked_sub(2)?..)?);
    Some(Convolution {
        transposed: false,
        strided: step.iter().any(|step| *step > 1),
        grouped: false,
        wide: kernel.iter().any(|size| *size > 1),
    })
}
