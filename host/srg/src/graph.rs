//! The graph of a segment in memory SSA form: a node reads and writes (storage, version).
//!
//! Views are no nodes: operands name the storage. An operator that writes in place makes the next
//! version of it, so that order, replay and lifetimes are exact.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use genie_wire::record::StorageId;
use genie_wire::template::OutputSpec;
use genie_wire::{Template, TemplateId, TensorMeta};
use petgraph::graph::{DiGraph, NodeIndex};

use crate::Cost;
use crate::hash::SegmentHashes;
use crate::trace::{LocalStorage, Origin, Stage, Step, StepKind, Trace, Version};

/// What a node stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeKind {
    /// A storage whose content comes from before the segment.
    Source {
        origin: Origin,
    },
    /// An operator.
    Op {
        template: Arc<Template>,
        id: Option<TemplateId>,
    },
    /// A new storage without content.
    Alloc,
    Resize,
    /// Bytes from the program.
    Upload,
    /// The storage's content becomes a stored weight, or is kept as one.
    Weight,
    /// The program reads a storage.
    Read,
    /// The random generator is seeded, set or read.
    Generator,
}

impl NodeKind {
    /// The operator's name, or the kind's.
    pub fn name(&self) -> &str {
        match self {
            NodeKind::Source { .. } => "source",
            NodeKind::Op { template, .. } => &template.op,
            NodeKind::Alloc => "alloc",
            NodeKind::Resize => "resize",
            NodeKind::Upload => "upload",
            NodeKind::Weight => "weight",
            NodeKind::Read => "read",
            NodeKind::Generator => "generator",
        }
    }
}

/// One record, or one storage from before the segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub kind: NodeKind,
    /// `path\0class` of the innermost module.
    pub module: Option<Arc<str>>,
    pub phase: Option<Arc<str>>,
    pub stage: Stage,
    pub cost: Cost,
    /// Storage versions read, by input slot.
    pub reads: Vec<(LocalStorage, Version)>,
    /// Storage versions made.
    pub writes: Vec<(LocalStorage, Version)>,
}

/// Why one node comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EdgeKind {
    /// The second uses what the first made.
    Flow,
    /// The second overwrites what the first reads.
    Order,
}

/// What kind of data a storage holds, which decides where it should live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Residency {
    /// Persistent weights.
    Weight,
    /// Keys and values of earlier tokens. No built-in rule assigns it; recognizers do.
    KvCache,
    /// Made and used within the computation.
    Activation,
    Gradient,
    OptimizerState,
    /// Uploaded by the program.
    Input,
    /// Read by the program.
    Output,
    Unknown,
}

impl Residency {
    pub fn name(self) -> &'static str {
        match self {
            Residency::Weight => "weight",
            Residency::KvCache => "kv_cache",
            Residency::Activation => "activation",
            Residency::Gradient => "gradient",
            Residency::OptimizerState => "optimizer_state",
            Residency::Input => "input",
            Residency::Output => "output",
            Residency::Unknown => "unknown",
        }
    }
}

/// A storage version on its way from one node to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    pub kind: EdgeKind,
    pub storage: LocalStorage,
    pub version: Version,
    /// The tensor as its consumer sees it, where the consumer is an operator.
    pub meta: Option<Arc<TensorMeta>>,
    /// Bytes of the tensor (0 where unknown).
    pub bytes: u64,
    pub residency: Residency,
}

/// The graph of one segment.
#[derive(Debug, Clone)]
pub struct Srg {
    pub graph: DiGraph<Node, Edge>,
    pub hashes: SegmentHashes,
    /// The sum over all nodes.
    pub cost: Cost,
}

impl Srg {
    /// Builds the graph of a finished segment. `template` finds the session's templates and
    /// `origin` says where the content of a storage from before the segment came from.
    pub fn build(
        trace: &Trace,
        hashes: SegmentHashes,
        template: impl Fn(TemplateId) -> Option<Arc<Template>>,
        origin: impl Fn(StorageId) -> Origin,
    ) -> Srg {
        Srg::build_with_steps(trace, hashes, template, origin).0
    }

    /// The same, and for each node the index of its step; sources have none.
    pub(crate) fn build_with_steps(
        trace: &Trace,
        hashes: SegmentHashes,
        template: impl Fn(TemplateId) -> Option<Arc<Template>>,
        origin: impl Fn(StorageId) -> Origin,
    ) -> (Srg, Vec<Option<u32>>) {
        let mut builder = Builder::new(trace);
        let mut steps = Vec::with_capacity(trace.steps.len());
        for (index, step) in trace.steps.iter().enumerate() {
            builder.step(step, &template, &origin);
            // The step's own node is the last one, behind the sources it needed.
            steps.resize(builder.graph.node_count() - 1, None);
            steps.push(Some(index as u32));
        }
        builder.assign_residencies();
        let cost = builder.graph.node_weights().fold(Cost::default(), |sum, n| sum.plus(n.cost));
        (Srg { graph: builder.graph, hashes, cost }, steps)
    }
}

/// The current version of a storage, who made it and who read it.
struct Current {
    version: u32,
    writer: NodeIndex,
    readers: Vec<NodeIndex>,
    meta: Option<Arc<TensorMeta>>,
}

/// The tensors of a template, shared by all nodes that ran it.
#[derive(Default)]
struct Metas {
    /// Over each input slot (the first, where several arguments share one).
    slots: Vec<Option<Arc<TensorMeta>>>,
    /// Of each new storage.
    new: Vec<Option<Arc<TensorMeta>>>,
}

impl Metas {
    fn of(template: &Template) -> Metas {
        let mut slots = vec![None; template.slots as usize];
        for arg in &template.args {
            arg.for_each_tensor(&mut |slot, meta| {
                slots[slot as usize].get_or_insert_with(|| Arc::new(meta.clone()));
            });
        }
        let mut new = vec![None; template.new_storages.len()];
        for output in &template.outputs {
            if let OutputSpec::New { index, meta } = output
                && let Some(first) = new.get_mut(*index as usize)
            {
                first.get_or_insert_with(|| Arc::new(meta.clone()));
            }
        }
        Metas { slots, new }
    }
}

struct Builder<'a> {
    trace: &'a Trace,
    graph: DiGraph<Node, Edge>,
    current: Vec<Option<Current>>,
    last_generator_user: Option<NodeIndex>,
    costs: HashMap<TemplateId, (Cost, Rc<Metas>)>,
}

/// The generator is ordered like a storage of its own; this is its number on order edges.
pub const GENERATOR_STORAGE: LocalStorage = LocalStorage(u32::MAX);

impl<'a> Builder<'a> {
    fn new(trace: &'a Trace) -> Self {
        Builder {
            trace,
            graph: DiGraph::with_capacity(trace.steps.len(), trace.operands.len()),
            current: trace.storages.iter().map(|_| None).collect(),
            last_generator_user: None,
            costs: HashMap::new(),
        }
    }

    fn step(
        &mut self,
        step: &Step,
        template: &impl Fn(TemplateId) -> Option<Arc<Template>>,
        origin: &impl Fn(StorageId) -> Origin,
    ) {
        let (op, id) = match step.kind {
            StepKind::Op(id) => (template(id), Some(id)),
            StepKind::Run(index) => (self.trace.run_templates.get(index as usize).cloned(), None),
            _ => (None, None),
        };
        let of = |op: &Arc<Template>| (Cost::of(op), Rc::new(Metas::of(op)));
        let (cost, metas) = match (&op, id) {
            (Some(op), Some(id)) => self.costs.entry(id).or_insert_with(|| of(op)).clone(),
            (Some(op), None) => of(op),
            (None, _) => Default::default(),
        };
        let start = step.operands as usize;
        let inputs_end = start + step.inputs as usize;
        let inputs = &self.trace.operands[start..inputs_end];
        let outputs = &self.trace.operands[inputs_end..inputs_end + step.outputs as usize];
        for local in inputs {
            self.ensure_source(*local, origin);
        }
        let context = &self.trace.contexts[step.context as usize];
        let node = self.graph.add_node(Node {
            kind: node_kind(step.kind, op.clone(), id),
            module: context.module.clone(),
            phase: context.phase.clone(),
            stage: context.stage,
            cost,
            reads: Vec::with_capacity(inputs.len()),
            writes: Vec::with_capacity(outputs.len()),
        });
        for (slot, local) in inputs.iter().enumerate() {
            self.read(node, *local, metas.slots.get(slot).cloned().flatten());
        }
        let writes_input = |slot: usize| match step.kind {
            StepKind::Op(_) | StepKind::Run(_) => {
                op.as_ref().is_some_and(|op| op.mutated.contains(&(slot as u32)))
            }
            StepKind::Upload | StepKind::BindWeight | StepKind::Resize => true,
            _ => false,
        };
        for (slot, local) in inputs.iter().enumerate() {
            if writes_input(slot) {
                self.write(node, *local, metas.slots.get(slot).cloned().flatten());
            }
        }
        for (index, local) in outputs.iter().enumerate() {
            self.make(node, *local, metas.new.get(index).cloned().flatten());
        }
        let random = op.as_ref().is_some_and(|op| op.random);
        if random || step.kind == StepKind::Generator {
            self.use_generator(node);
        }
    }

    fn ensure_source(&mut self, local: LocalStorage, origin: &impl Fn(StorageId) -> Origin) {
        if self.current[local.0 as usize].is_some() {
            return;
        }
        let (id, _) = self.trace.storages[local.0 as usize];
        let writer = self.graph.add_node(Node {
            kind: NodeKind::Source { origin: origin(id) },
            module: None,
            phase: None,
            stage: Stage::None,
            cost: Cost::default(),
            reads: vec![],
            writes: vec![(local, Version(0))],
        });
        let current = Current { version: 0, writer, readers: vec![], meta: None };
        self.current[local.0 as usize] = Some(current);
    }

    fn read(&mut self, node: NodeIndex, local: LocalStorage, meta: Option<Arc<TensorMeta>>) {
        let current = self.current[local.0 as usize].as_mut().expect("ensure_source made it");
        let version = Version(current.version);
        current.readers.push(node);
        let meta = meta.or_else(|| current.meta.clone());
        let bytes = meta.as_ref().map_or(0, |meta| meta.bytes());
        let writer = current.writer;
        self.graph[node].reads.push((local, version));
        let residency = Residency::Unknown;
        let edge = Edge { kind: EdgeKind::Flow, storage: local, version, meta, bytes, residency };
        self.graph.add_edge(writer, node, edge);
    }

    /// A write to a storage that exists: readers of the old version come first.
    fn write(&mut self, node: NodeIndex, local: LocalStorage, meta: Option<Arc<TensorMeta>>) {
        let current = self.current[local.0 as usize].as_mut().expect("read before written");
        let old = Version(current.version);
        let readers = std::mem::take(&mut current.readers);
        current.version += 1;
        current.writer = node;
        if meta.is_some() {
            current.meta = meta;
        }
        let version = Version(current.version);
        self.graph[node].writes.push((local, version));
        for reader in readers.into_iter().filter(|reader| *reader != node) {
            self.order(reader, node, local, old);
        }
    }

    fn make(&mut self, node: NodeIndex, local: LocalStorage, meta: Option<Arc<TensorMeta>>) {
        self.graph[node].writes.push((local, Version(0)));
        let current = Current { version: 0, writer: node, readers: vec![], meta };
        self.current[local.0 as usize] = Some(current);
    }

    fn use_generator(&mut self, node: NodeIndex) {
        if let Some(before) = self.last_generator_user.replace(node) {
            self.order(before, node, GENERATOR_STORAGE, Version(0));
        }
    }

    fn order(&mut self, from: NodeIndex, to: NodeIndex, storage: LocalStorage, version: Version) {
        let residency = Residency::Unknown;
        let edge =
            Edge { kind: EdgeKind::Order, storage, version, meta: None, bytes: 0, residency };
        self.graph.add_edge(from, to, edge);
    }

    /// What each storage is, from where it comes and what happens to it in the segment.
    fn assign_residencies(&mut self) {
        let mut of = vec![Residency::Unknown; self.trace.storages.len()];
        for node in self.graph.node_weights() {
            for (local, _) in &node.writes {
                let residency = &mut of[local.0 as usize];
                *residency = match (&node.kind, node.stage) {
                    (NodeKind::Source { origin }, _) => match origin {
                        Origin::Weight => Residency::Weight,
                        Origin::Upload => Residency::Input,
                        Origin::Op(Stage::Backward) => Residency::Gradient,
                        Origin::Op(Stage::Optimizer) => Residency::OptimizerState,
                        Origin::Op(_) => Residency::Activation,
                        Origin::Unknown => Residency::Unknown,
                    },
                    (NodeKind::Weight, _) => Residency::Weight,
                    (NodeKind::Upload, _) => Residency::Input,
                    // An optimizer updates weights, and states that no upload made.
                    (_, Stage::Optimizer) => match *residency {
                        Residency::Weight | Residency::Input => Residency::Weight,
                        Residency::Gradient => Residency::Gradient,
                        Residency::Unknown if self.made_here(*local) => Residency::Activation,
                        _ => Residency::OptimizerState,
                    },
                    (NodeKind::Op { .. }, Stage::Backward) => match *residency {
                        Residency::Unknown => Residency::Gradient,
                        known => known,
                    },
                    (NodeKind::Op { .. }, _) => match *residency {
                        Residency::Unknown => Residency::Activation,
                        known => known,
                    },
                    _ => *residency,
                };
            }
        }
        for node in self.graph.node_weights().filter(|node| node.kind == NodeKind::Read) {
            for (local, _) in &node.reads {
                let residency = &mut of[local.0 as usize];
                if matches!(residency, Residency::Activation | Residency::Unknown) {
                    *residency = Residency::Output;
                }
            }
        }
        for edge in self.graph.edge_weights_mut() {
            if let Some(residency) = of.get(edge.storage.0 as usize) {
                edge.residency = *residency;
            }
        }
    }

    fn made_here(&self, local: LocalStorage) -> bool {
        self.trace.storages[local.0 as usize].1
    }
}

fn node_kind(kind: StepKind, op: Option<Arc<Template>>, id: Option<TemplateId>) -> NodeKind {
    match kind {
        StepKind::Op(_) | StepKind::Run(_) => match op {
            Some(template) => NodeKind::Op { template, id },
            None => NodeKind::Generator,
        },
        StepKind::Alloc => NodeKind::Alloc,
        StepKind::Resize => NodeKind::Resize,
        StepKind::Upload => NodeKind::Upload,
        StepKind::BindWeight | StepKind::StoreWeight => NodeKind::Weight,
        StepKind::Read => NodeKind::Read,
        StepKind::Generator => NodeKind::Generator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SegmentHasher;
    use crate::testing::{binary, in_place, unary};
    use genie_wire::record::MarkKind;
    use petgraph::visit::EdgeRef;

    struct Session {
        hasher: SegmentHasher,
        templates: Vec<Arc<Template>>,
        next: u64,
    }

    impl Session {
        fn new() -> Self {
            let mut hasher = SegmentHasher::new();
            hasher.begin();
            Session { hasher, templates: vec![], next: 100 }
        }

        fn op(&mut self, template: Arc<Template>, inputs: &[u64]) -> u64 {
            self.hasher.define(&template);
            self.templates.push(template.clone());
            let id = TemplateId(self.templates.len() as u32 - 1);
            let inputs: Vec<_> = inputs.iter().map(|id| StorageId(*id)).collect();
            let new = template.new_storages.len();
            let first = self.next;
            self.next += new as u64;
            self.hasher.op(id, &inputs, StorageId(first), new);
            first
        }

        fn build(mut self, origin: Origin) -> Srg {
            let hashes = self.hasher.finish();
            let trace = self.hasher.take_trace();
            Srg::build(&trace, hashes, |id| self.templates.get(id.0 as usize).cloned(), |_| origin)
        }
    }

    fn find<'a>(srg: &'a Srg, name: &str) -> &'a Node {
        srg.graph.node_weights().find(|node| node.kind.name() == name).expect("the node is there")
    }

    #[test]
    fn an_operator_in_place_makes_the_next_version_after_its_readers() {
        let mut session = Session::new();
        let y = session.op(unary("aten::relu", &[4]), &[1]);
        session.op(unary("aten::neg", &[4]), &[y]);
        session.op(in_place("aten::add_", &[4]), &[y]);
        session.op(unary("aten::exp", &[4]), &[y]);
        let srg = session.build(Origin::Upload);
        let made = find(&srg, "aten::relu").writes[0];
        let written = find(&srg, "aten::add_").writes[0];
        assert_eq!((made.0, made.1), (written.0, Version(0)));
        assert_eq!(written.1, Version(1));
        assert_eq!(find(&srg, "aten::exp").reads[0], written);
        let order: Vec<_> = srg
            .graph
            .edge_references()
            .filter(|edge| edge.weight().kind == EdgeKind::Order)
            .map(|edge| {
                (srg.graph[edge.source()].kind.name(), srg.graph[edge.target()].kind.name())
            })
            .collect();
        assert_eq!(order, [("aten::neg", "aten::add_")]);
        assert!(!petgraph::algo::is_cyclic_directed(&srg.graph));
    }

    #[test]
    fn residencies_follow_origin_stage_and_use() {
        let mut session = Session::new();
        let y = session.op(binary("aten::mul.Tensor", &[4]), &[1, 2]);
        let z = session.op(unary("aten::relu", &[4]), &[y]);
        session.hasher.read(StorageId(z), 16);
        let srg = session.build(Origin::Weight);
        let residency = |from: &str, to: &str| {
            srg.graph
                .edge_references()
                .find(|edge| {
                    srg.graph[edge.source()].kind.name() == from
                        && srg.graph[edge.target()].kind.name() == to
                })
                .map(|edge| edge.weight().residency)
        };
        assert_eq!(residency("source", "aten::mul.Tensor"), Some(Residency::Weight));
        assert_eq!(residency("aten::mul.Tensor", "aten::relu"), Some(Residency::Activation));
        assert_eq!(residency("aten::relu", "read"), Some(Residency::Output));
    }

    #[test]
    fn backward_makes_gradients() {
        let mut session = Session::new();
        session.hasher.symbol("backward");
        session.hasher.mark(MarkKind::Stage, 0);
        let y = session.op(unary("aten::threshold_backward", &[4]), &[1]);
        session.op(unary("aten::neg", &[4]), &[y]);
        let srg = session.build(Origin::Unknown);
        let gradient = srg.graph.edge_weights().find(|edge| edge.residency == Residency::Gradient);
        assert!(gradient.is_some());
        assert!(srg.cost.flops >= 8);
    }
}
