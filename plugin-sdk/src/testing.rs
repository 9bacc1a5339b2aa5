//! A small graph for this crate's own tests: `relu(x @ w)` in a module `net.0`.

use crate::columns::Columns;
use crate::symbols::Symbols;

pub(crate) fn small_graph() -> Columns {
    let mut symbols = Symbols::new();
    let ops = ["genie::source", "genie::source", "aten::mm", "aten::relu"];
    let op: Vec<u32> = ops.iter().map(|op| symbols.intern(op)).collect();
    let path = symbols.intern("net.0");
    let class = symbols.intern("Linear");
    let (blob, symbol_ends) = symbols.into_table();
    Columns {
        blob,
        symbol_ends,
        op,
        module: vec![0, 0, path, path],
        class: vec![0, 0, class, class],
        mark: vec![0; 4],
        stage: vec![0; 4],
        model: vec![0; 4],
        segment: vec![0; 4],
        flops: vec![0, 0, 48, 6],
        bytes: vec![0, 0, 96, 48],
        input_ends: vec![0, 0, 2, 3],
        input_value: vec![1, 0, 2],
        input_geometry: vec![0, 1, 2],
        input_offset: vec![0; 3],
        output_ends: vec![1, 2, 3, 4],
        output_value: vec![0, 1, 2, 3],
        output_geometry: vec![1, 0, 2, 2],
        output_offset: vec![0; 4],
        arg_ends: vec![0, 0, 2, 3],
        arg_kind: vec![1, 1, 1],
        arg_bits: vec![0, 1, 0],
        value_storage: vec![0, 1, 2, 3],
        value_producer: vec![0, 1, 2, 3],
        value_edge: vec![0; 4],
        storage_bytes: vec![48, 32, 24, 24],
        storage_origin: vec![1, 2, 0, 0],
        storage_alive: vec![1, 0, 0, 1],
        geometry_dtype: vec![6; 3],
        geometry_ends: vec![2, 4, 6],
        sizes: vec![2, 4, 4, 3, 2, 3],
        strides: vec![4, 1, 3, 1, 3, 1],
        extra: vec![],
    }
}
