//! The graph of a window as columns.

use std::collections::HashMap;
use std::sync::Arc;

use genie_plugin::Columns;
use genie_plugin::symbols::Symbols;
use genie_srg::{LocalStorage, Node, NodeKind, Origin, Stage, Version, Window};
use genie_wire::record::StorageId;
use genie_wire::template::OutputSpec;
use genie_wire::value::{DType, Value};
use genie_wire::{Template, TensorMeta};

/// What the session knows of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageFacts {
    pub bytes: u64,
    pub origin: Origin,
    /// Whether the program still holds it.
    pub alive: bool,
}

/// The extra column that says how often each node ran: repeats of a loop are kept once.
pub const TIMES: &str = "times";

/// Builds the columns; `times` says how often each kept segment ran (once where it says nothing),
/// `facts` tells of the storages that the session remembers.
pub fn columns(
    window: &Window,
    times: &[u32],
    facts: impl Fn(StorageId) -> Option<StorageFacts>,
) -> Columns {
    let mut builder = Builder::new(window);
    for (index, node) in window.srg.graph.node_weights().enumerate() {
        builder.node(index, node);
    }
    builder.storages(facts);
    let mut columns = builder.finish();
    if times.iter().any(|times| *times > 1) {
        let of = |noted: &u32| times.get(*noted as usize).map_or(1, |times| u64::from(*times));
        columns.extra.push((TIMES.to_owned(), window.noted.iter().map(of).collect()));
    }
    columns
}

struct Builder<'a> {
    window: &'a Window,
    out: Columns,
    symbols: Symbols,
    /// By storage and version.
    values: Vec<Vec<Option<u32>>>,
    /// By element type, number of dimensions, sizes and strides.
    geometries: HashMap<Vec<u64>, u32>,
    geometry_key: Vec<u64>,
    /// Symbols of modules, by the text that all nodes of one share.
    modules: HashMap<*const u8, (u32, u32)>,
    made_bytes: Vec<u64>,
    origins: Vec<u8>,
    /// 1 for each node that draws from the random generator.
    random: Vec<u64>,
    /// How each storage from before the window is first looked at.
    first_looks: HashMap<LocalStorage, Arc<TensorMeta>>,
}

impl<'a> Builder<'a> {
    fn new(window: &'a Window) -> Self {
        let storages = window.storages.len();
        let mut first_looks = HashMap::new();
        for edge in window.srg.graph.edge_references() {
            let weight = edge.weight();
            if let Some(meta) = &weight.meta {
                first_looks.entry(weight.storage).or_insert_with(|| meta.clone());
            }
        }
        Builder {
            window,
            out: Columns::default(),
            symbols: Symbols::new(),
            values: vec![Vec::new(); storages],
            geometries: HashMap::new(),
            geometry_key: Vec::new(),
            modules: HashMap::new(),
            made_bytes: vec![0; storages],
            origins: vec![0; storages],
            random: Vec::new(),
            first_looks,
        }
    }

    fn node(&mut self, index: usize, node: &Node) {
        let op = match &node.kind {
            NodeKind::Op { template, .. } => self.symbols.intern(&template.op),
            other => self.symbols.intern(&format!("genie::{}", other.name())),
        };
        let (module, class) = self.module(node.module.as_deref());
        let mark = self.symbols.intern(node.phase.as_deref().unwrap_or(""));
        self.out.op.push(op);
        self.out.module.push(module);
        self.out.class.push(class);
        self.out.mark.push(mark);
        self.out.stage.push(stage_code(node.stage));
        self.out.model.push(0);
        self.out.segment.push(self.window.segments[index]);
        self.out.flops.push(node.cost.flops);
        self.out.bytes.push(node.cost.bytes);
        self.random.push(match &node.kind {
            NodeKind::Op { template, .. } => u64::from(template.random),
            NodeKind::Generator => 1,
            _ => 0,
        });
        match &node.kind {
            NodeKind::Op { template, .. } => self.operator(index, node, template),
            NodeKind::Source { origin } => {
                let storage = node.writes[0].0;
                self.origins[storage.0 as usize] = origin_code(*origin);
                self.moves(index, node);
            }
            _ => self.moves(index, node),
        }
        self.out.input_ends.push(self.out.input_value.len() as u32);
        self.out.output_ends.push(self.out.output_value.len() as u32);
        self.out.arg_ends.push(self.out.arg_kind.len() as u32);
    }

    /// The symbols of a module's path and class.
    fn module(&mut self, module: Option<&str>) -> (u32, u32) {
        let Some(module) = module else { return (0, 0) };
        // Records share the text, and the window keeps all of them while this looks.
        if let Some(known) = self.modules.get(&module.as_ptr()) {
            return *known;
        }
        let (path, class) = module.split_once('\0').unwrap_or((module, ""));
        let symbols = (self.symbols.intern(path), self.symbols.intern(class));
        self.modules.insert(module.as_ptr(), symbols);
        symbols
    }

    fn operator(&mut self, index: usize, node: &Node, template: &Template) {
        let mut inputs = 0;
        for arg in &template.args {
            self.arg(node, arg, &mut inputs);
        }
        let mut told = vec![false; node.writes.len()];
        for output in &template.outputs {
            let (write, meta) = match output {
                OutputSpec::Undefined => continue,
                OutputSpec::New { index, meta } => (template.mutated.len() + *index as usize, meta),
                OutputSpec::Alias { slot, meta } => {
                    match template.mutated.iter().position(|mutated| mutated == slot) {
                        Some(write) => (write, meta),
                        // A view of an input: no new value.
                        None => continue,
                    }
                }
            };
            let Some((storage, version)) = node.writes.get(write).copied() else { continue };
            told[write] = true;
            if let OutputSpec::New { index, .. } = output {
                let bytes = template.new_storages.get(*index as usize).copied().unwrap_or(0);
                self.made_bytes[storage.0 as usize] = bytes;
            }
            self.output(index, storage, version, meta);
        }
        // What an operator writes in place without returning it.
        for (write, told) in told.into_iter().enumerate() {
            let (storage, version) = node.writes[write];
            if !told && let Some(slot) = template.mutated.get(write) {
                let mut seen = None;
                for arg in &template.args {
                    arg.for_each_tensor(&mut |other, meta| {
                        if other == *slot && seen.is_none() {
                            seen = Some(meta.clone());
                        }
                    });
                }
                if let Some(meta) = seen {
                    self.output(index, storage, version, &meta);
                }
            }
        }
    }

    /// Sources, uploads, reads and the like: whole storages.
    fn moves(&mut self, index: usize, node: &Node) {
        for (storage, version) in &node.reads {
            let meta = self.look(*storage);
            self.input(*storage, *version, &meta);
        }
        for (storage, version) in &node.writes {
            let meta = self.look(*storage);
            self.output(index, *storage, *version, &meta);
        }
    }

    fn look(&self, storage: LocalStorage) -> Arc<TensorMeta> {
        let seen = self.first_looks.get(&storage).cloned();
        seen.unwrap_or_else(|| Arc::new(TensorMeta::contiguous(DType::UINT8, &[0])))
    }

    fn input(&mut self, storage: LocalStorage, version: Version, meta: &TensorMeta) {
        let value = self.value(storage, version);
        let geometry = self.geometry(meta);
        self.out.input_value.push(value);
        self.out.input_geometry.push(geometry);
        self.out.input_offset.push(meta.offset);
    }

    fn output(&mut self, node: usize, storage: LocalStorage, version: Version, meta: &TensorMeta) {
        let value = self.value(storage, version);
        self.out.value_producer[value as usize] = node as u32;
        let geometry = self.geometry(meta);
        self.out.output_value.push(value);
        self.out.output_geometry.push(geometry);
        self.out.output_offset.push(meta.offset);
    }

    fn value(&mut self, storage: LocalStorage, version: Version) -> u32 {
        let next = self.out.value_storage.len() as u32;
        let versions = &mut self.values[storage.0 as usize];
        let at = version.0 as usize;
        if versions.len() <= at {
            versions.resize(at + 1, None);
        }
        let value = *versions[at].get_or_insert(next);
        if value == next {
            self.out.value_storage.push(storage.0);
            // Its maker says so when it is met; nothing reads before it is made.
            self.out.value_producer.push(self.out.op.len() as u32 - 1);
            self.out.value_edge.push(0);
        }
        value
    }

    fn geometry(&mut self, meta: &TensorMeta) -> u32 {
        let key = &mut self.geometry_key;
        key.clear();
        key.extend([u64::from(meta.dtype.0), meta.sizes.len() as u64]);
        key.extend(meta.sizes.iter().chain(&meta.strides));
        let next = self.out.geometry_dtype.len() as u32;
        let known = self.geometries.get(key.as_slice()).copied();
        let geometry = known.unwrap_or(next);
        if known.is_none() {
            self.geometries.insert(key.clone(), next);
            self.out.geometry_dtype.push(meta.dtype.0);
            self.out.sizes.extend(meta.sizes.iter().map(|size| *size as i64));
            self.out.strides.extend(meta.strides.iter().map(|stride| *stride as i64));
            self.out.geometry_ends.push(self.out.sizes.len() as u32);
        }
        geometry
    }

    fn arg(&mut self, node: &Node, value: &Value, inputs: &mut u64) {
        let (kind, bits) = match value {
            Value::None | Value::UndefinedTensor => (0, 0),
            Value::Tensor { slot, meta } => {
                let Some((storage, version)) = node.reads.get(*slot as usize).copied() else {
                    return self.put_arg(8, 0);
                };
                self.input(storage, version, meta);
                *inputs += 1;
                (1, *inputs - 1)
            }
            Value::Bool(value) => (2, u64::from(*value)),
            Value::Int(value) => (3, *value as u64),
            Value::Double(value) => (4, value.to_bits()),
            Value::ScalarTensor { .. }
            | Value::VaryingDouble { .. }
            | Value::VaryingInt { .. }
            | Value::VaryingComplex { .. } => (5, 0),
            Value::String(text) => (6, u64::from(self.symbols.intern(text))),
            Value::List(items) => {
                self.put_arg(7, items.len() as u64);
                return items.iter().for_each(|item| self.arg(node, item, inputs));
            }
            Value::IntList(items) => {
                self.put_arg(7, items.len() as u64);
                return items.iter().for_each(|item| self.put_arg(3, *item as u64));
            }
            Value::Complex(..) | Value::Device { .. } | Value::Generator => (8, 0),
        };
        self.put_arg(kind, bits);
    }

    fn put_arg(&mut self, kind: u8, bits: u64) {
        self.out.arg_kind.push(kind);
        self.out.arg_bits.push(bits);
    }

    fn storages(&mut self, facts: impl Fn(StorageId) -> Option<StorageFacts>) {
        for (index, id) in self.window.storages.iter().enumerate() {
            let known = facts(*id).unwrap_or_default();
            let origin = match self.origins[index] {
                0 if known.origin == Origin::Weight => origin_code(Origin::Weight),
                0 if known.origin == Origin::Upload => origin_code(Origin::Upload),
                code => code,
            };
            self.out.storage_bytes.push(known.bytes.max(self.made_bytes[index]));
            self.out.storage_origin.push(origin);
            self.out.storage_alive.push(u8::from(known.alive));
        }
    }

    fn finish(self) -> Columns {
        let mut out = self.out;
        (out.blob, out.symbol_ends) = self.symbols.into_table();
        if self.random.contains(&1) {
            out.extra.push(("random".to_owned(), self.random));
        }
        debug_assert_eq!(out.check(), Ok(()));
        out
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

fn origin_code(origin: Origin) -> u8 {
    match origin {
        Origin::Unknown => 0,
        Origin::Weight => 1,
        Origin::Upload => 2,
        Origin::Op(stage) => 3 + stage_code(stage),
    }
}
