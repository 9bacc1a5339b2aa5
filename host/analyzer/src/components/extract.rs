//! A model's part of a window as a graph of its own.

use std::collections::HashMap;

use genie_plugin::columns::edge;
use genie_plugin::{Columns, Graph, NodeId};

use super::{Component, HANDED_OVER, UPLOADED, WEIGHT, is_training};

/// The part of the graph that a component takes; `weights`: for each storage whether it holds such.
pub(super) fn extract(
    graph: &Graph,
    weights: &[bool],
    model: u32,
    takes: impl Fn(NodeId) -> bool,
) -> Component {
    let from = graph.columns();
    let mut out = Extract {
        from,
        graph,
        weights,
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
    for node in graph.nodes().filter(|node| takes(*node)) {
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
    Component { model, graph, nodes: out.nodes, storages: out.storages }
}

struct Extract<'a> {
    from: &'a Columns,
    graph: &'a Graph,
    weights: &'a [bool],
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
        // A weight stays one, whoever moved it last.
        let is_weight = self.weights[self.from.value_storage[value as usize] as usize];
        columns.value_edge[new as usize] |= if is_weight { 0 } else { edge::FROM };
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
