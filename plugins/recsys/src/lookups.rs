//! Which lookups in tables there are, and where their indices come from.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, is_parameter};

/// Readers of the rows of a lookup that are looked at.
const READERS_MAX: usize = 16;

/// One lookup of rows by numbers that the program gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub node: NodeId,
    pub table: StorageId,
    /// Rows of the table, and numbers in a row.
    pub rows: i64,
    pub width: i64,
    /// Examples, and how many rows each one has in the result.
    pub batch: i64,
    pub each: i64,
    /// Rows are summed or averaged by the lookup itself.
    pub bag: bool,
    /// Where the indices stand.
    pub index: (ValueId, u64),
}

/// Where numbers come from, as bits.
mod source {
    /// Given by the program.
    pub(super) const GIVEN: u8 = 1;
    /// Counted up: positions.
    pub(super) const COUNTED: u8 = 2;
    /// Chosen by scores.
    pub(super) const CHOSEN: u8 = 4;
}

/// The lookups among some nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookups {
    /// By numbers that the program gave, in program order.
    pub list: Vec<Lookup>,
    /// Whether rows are looked up by what was chosen by scores before: a program that goes on from
    /// its own answers.
    pub own_choice: bool,
}

pub(crate) fn lookups(graph: &Graph, nodes: &[NodeId]) -> Lookups {
    let mut sources = vec![0u8; graph.values().len()];
    for value in graph.values().filter(|value| is_given(graph, *value)) {
        sources[value.0 as usize] = source::GIVEN;
    }
    let mut found = Lookups::default();
    for node in nodes {
        if let Some(lookup) = lookup(graph, *node) {
            let index = sources[lookup.index.0.0 as usize];
            if index & source::GIVEN != 0 && index & (source::COUNTED | source::CHOSEN) == 0 {
                found.list.push(lookup);
            }
            found.own_choice |= index & source::CHOSEN != 0;
            continue;
        }
        let sum = graph.inputs(*node).fold(0, |sum, input| sum | sources[input.value.0 as usize]);
        let name = graph.name(*node);
        let own = match name {
            "cumsum" => source::COUNTED,
            "argmax" | "argmin" | "topk" | "sort" | "multinomial" | "max" => source::CHOSEN,
            _ => 0,
        };
        let carries = graph.roles(*node).has(Roles::ELEMENTWISE)
            || matches!(
                name,
                "cat" | "stack" | "copy" | "index" | "select" | "index_select" | "repeat"
            );
        for output in graph.outputs(*node) {
            sources[output.value.0 as usize] = match output.dtype.is_floating() && !carries {
                true => 0,
                false => sum | own,
            };
        }
    }
    found
}

fn lookup(graph: &Graph, node: NodeId) -> Option<Lookup> {
    let name = graph.name(node);
    let bag = name.contains("embedding_bag") || name.contains("split_embedding");
    let known = bag
        || matches!(name, "embedding" | "index_select" | "index" | "gather" | "_unsafe_index")
            && graph.inputs(node).len() == 2;
    let (table, index, out) =
        (graph.input(node, 0)?, graph.input(node, 1)?, graph.output(node, 0)?);
    let rows = table.dims() == 2 && table.dtype.is_floating() && is_parameter(graph, table.value);
    if !known || !rows || !index.dtype.is_integer() || out.dims() == 0 || out.elements() == 0 {
        return None;
    }
    // Tables are gathered by whole rows.
    if matches!(name, "index" | "index_select" | "gather" | "_unsafe_index")
        && out.size(-1) != table.size(1)
    {
        return None;
    }
    let width = table.size(1).max(1);
    let batch = examples(graph, &out, width).max(1);
    let each = (out.elements() as i64 / batch / width).max(1);
    Some(Lookup {
        node,
        table: graph.storage(table.value),
        rows: table.size(0),
        width,
        batch,
        each,
        bag,
        index: (index.value, index.offset),
    })
}

/// How many examples the rows of a lookup are for: where they lie in one list, as those see them
/// that read them.
fn examples(graph: &Graph, rows: &Tensor<'_>, width: i64) -> i64 {
    let all = rows.size(0);
    if rows.dims() != 2 || all < 2 {
        return all;
    }
    let mut seen: Option<i64> = None;
    for node in graph.consumers(rows.value).iter().take(READERS_MAX) {
        for input in graph.inputs(*node).filter(|input| input.value == rows.value) {
            let first = input.size(0);
            let whole = input.elements() == rows.elements();
            let fields = input.size(-1) % width == 0 || input.size(1) == all / first.max(1);
            if !whole || input.dims() < 2 || first < 2 || all % first != 0 || !fields {
                return all;
            }
            if *seen.get_or_insert(first) != first {
                return all;
            }
        }
    }
    seen.unwrap_or(all)
}
