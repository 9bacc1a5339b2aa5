//! A recognizer as it was written for `genie:plugin@0.1.0`. It finds matrix products that are
//! followed by an activation, by columns alone. Do not modernize it.

// What the generator writes cannot follow the workspace's lints.
#![allow(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

wit_bindgen::generate!({
    path: "../../../plugin-sdk/wit/v0.1",
    world: "recognizer-plugin",
});

use exports::genie::plugin::{metadata, recognizer};
use genie::plugin::log;
use genie::plugin::types::{Annotations, Graph, Info};

struct Frozen;

impl metadata::Guest for Frozen {
    fn describe() -> Info {
        Info {
            name: "frozen".into(),
            version: "0.1.0".into(),
            summary: "finds linear layers with an activation".into(),
        }
    }

    fn configure(json: String) -> Result<(), String> {
        log::write(log::Level::Debug, &format!("configured with {json}"));
        Ok(())
    }
}

impl recognizer::Guest for Frozen {
    fn recognize(graph: Graph) -> Result<Annotations, String> {
        let symbol = |index: u32| {
            let end = graph.symbol_ends[index as usize] as usize;
            let start = match index {
                0 => 0,
                _ => graph.symbol_ends[index as usize - 1] as usize,
            };
            &graph.blob[start..end]
        };
        let mut nodes = Vec::new();
        for node in 0..graph.op.len() {
            let name = symbol(graph.op[node]);
            if !["aten::relu", "aten::gelu", "aten::silu"].iter().any(|op| name.starts_with(op)) {
                continue;
            }
            let start = if node == 0 { 0 } else { graph.input_ends[node - 1] };
            if start == graph.input_ends[node] {
                continue;
            }
            let producer = graph.value_producer[graph.input_value[start as usize] as usize];
            let made_by = symbol(graph.op[producer as usize]);
            if made_by.starts_with("aten::addmm") || made_by.starts_with("aten::mm") {
                nodes.extend([producer, node as u32]);
            }
        }
        let words = ["", "mlp.linear_activation", "other.forward"];
        let mut symbol_ends = Vec::new();
        let mut blob = String::new();
        for word in words {
            blob.push_str(word);
            symbol_ends.push(blob.len() as u32);
        }
        let some = !nodes.is_empty();
        let column = |symbol: u32| if some { vec![symbol] } else { vec![] };
        Ok(Annotations {
            blob,
            symbol_ends,
            pattern: column(1),
            phase: column(2),
            modality: column(0),
            confidence: if some { vec![0.75] } else { vec![] },
            node_ends: column(nodes.len() as u32),
            nodes,
        })
    }
}

export!(Frozen);
