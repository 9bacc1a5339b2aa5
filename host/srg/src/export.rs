//! A graph as JSON and as DOT, for people and for tools.

use std::fmt::Write;

use petgraph::visit::EdgeRef;
use serde_json::{Value, json};

use crate::graph::{EdgeKind, NodeKind, Srg};

/// The graph as one JSON object; nodes are named by their position.
pub fn json(srg: &Srg) -> Value {
    let nodes: Vec<Value> = srg
        .graph
        .node_weights()
        .map(|node| {
            let template = match node.kind {
                NodeKind::Op { id, .. } => id.map(|id| id.0),
                _ => None,
            };
            let versions = |list: &[(crate::LocalStorage, crate::Version)]| -> Vec<Value> {
                list.iter().map(|(storage, version)| json!([storage.0, version.0])).collect()
            };
            json!({
                "op": node.kind.name(),
                "template": template,
                "module": node.module.as_deref(),
                "phase": node.phase.as_deref(),
                "stage": node.stage.name(),
                "flops": node.cost.flops,
                "bytes": node.cost.bytes,
                "intensity": node.cost.intensity(),
                "reads": versions(&node.reads),
                "writes": versions(&node.writes),
            })
        })
        .collect();
    let edges: Vec<Value> = srg
        .graph
        .edge_references()
        .map(|edge| {
            let weight = edge.weight();
            json!({
                "from": edge.source().index(),
                "to": edge.target().index(),
                "kind": kind_name(weight.kind),
                "storage": weight.storage.0,
                "version": weight.version.0,
                "dtype": weight.meta.as_ref().map(|meta| meta.dtype.name()),
                "sizes": weight.meta.as_ref().map(|meta| meta.sizes.clone()),
                "bytes": weight.bytes,
                "residency": weight.residency.name(),
            })
        })
        .collect();
    json!({
        "exact": srg.hashes.exact.to_string(),
        "topology": srg.hashes.topology.to_string(),
        "flops": srg.cost.flops,
        "bytes": srg.cost.bytes,
        "nodes": nodes,
        "edges": edges,
    })
}

/// The graph in Graphviz's language.
pub fn dot(srg: &Srg) -> String {
    let mut out = String::from("digraph srg {\n  rankdir=TB; node [shape=box];\n");
    for index in srg.graph.node_indices() {
        let node = &srg.graph[index];
        let module = node.module.as_deref().and_then(|module| module.split('\0').next());
        let label = match module {
            Some(module) => format!("{}\n{module}", node.kind.name()),
            None => node.kind.name().to_owned(),
        };
        // Debug formatting escapes quotes and line breaks the way DOT reads them.
        let _ = writeln!(out, "  n{} [label={label:?}];", index.index());
    }
    for edge in srg.graph.edge_references() {
        let weight = edge.weight();
        let (from, to) = (edge.source().index(), edge.target().index());
        let _ = match weight.kind {
            EdgeKind::Flow => writeln!(
                out,
                "  n{from} -> n{to} [label=\"s{}.{} {} B {}\"];",
                weight.storage.0,
                weight.version.0,
                weight.bytes,
                weight.residency.name()
            ),
            EdgeKind::Order => writeln!(out, "  n{from} -> n{to} [style=dashed];"),
        };
    }
    out.push_str("}\n");
    out
}

fn kind_name(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Flow => "flow",
        EdgeKind::Order => "order",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::unary;
    use crate::{Origin, SegmentHasher};
    use genie_wire::TemplateId;
    use genie_wire::record::{MarkKind, StorageId};

    #[test]
    fn a_graph_is_exported_with_its_nodes_and_edges() {
        let template = unary("aten::relu", &[4]);
        let mut hasher = SegmentHasher::new();
        hasher.define(&template);
        hasher.symbol("layer \"0\"\0Relu");
        hasher.begin();
        hasher.mark(MarkKind::ModuleEnter, 0);
        hasher.op(TemplateId(0), &[StorageId(7)], StorageId(8), 1);
        hasher.read(StorageId(8), 16);
        let hashes = hasher.finish();
        let trace = hasher.take_trace();
        let srg = Srg::build(&trace, hashes, |_| Some(template.clone()), |_| Origin::Upload);
        let json = json(&srg);
        assert_eq!(json["nodes"].as_array().unwrap().len(), 3);
        assert_eq!(json["edges"].as_array().unwrap().len(), 2);
        assert_eq!(json["edges"][1]["residency"], "output");
        let dot = dot(&srg);
        assert!(dot.contains("aten::relu\\nlayer \\\"0\\\""), "{dot}");
        assert!(dot.contains("n0 -> n1"), "{dot}");
    }
}
