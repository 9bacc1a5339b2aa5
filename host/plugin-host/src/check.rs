//! Checks what a plugin gave before anybody uses it. Whether a plan is legal is for the planner.

use genie_plugin::annotations::AnnotationColumns;
use genie_plugin::{Annotations, Cluster, Columns, Directive, Edit, Hint, Plan, Region};

/// Matches, and nodes in matches for each node of the graph.
const MATCHES_MAX: usize = 16 << 10;
const NODES_IN_MATCHES_PER_NODE: usize = 32;
const WORKLOADS_MAX: usize = 64;
/// Claims for each storage.
const RESIDENCIES_PER_STORAGE: usize = 8;
const ATTRIBUTES_MAX: usize = 256;
/// Bytes of a name, and of a fact's or a reason's text.
const WORD_BYTES_MAX: usize = 256;
const TEXT_BYTES_MAX: usize = 4 << 10;
const REGIONS_PER_NODE: usize = 1;
const DIRECTIVES_PER_STORAGE: usize = 8;
const EDITS_PER_NODE: usize = 8;
const HINTS_MAX: usize = 1024;

/// A plan as it crosses.
#[derive(Debug, Default)]
pub(crate) struct PlanColumns {
    pub region_ends: Vec<u32>,
    pub region_nodes: Vec<u32>,
    pub region_device: Vec<u32>,
    pub region_pipeline: Vec<u32>,
    pub directives: Vec<Directive>,
    pub transfer_order: Vec<u32>,
    pub why: String,
}

/// Annotations whose nodes and storages exist, whose confidences are between 0 and 1 and whose
/// size is bounded by the graph's; or what is wrong.
pub(crate) fn annotations(
    columns: AnnotationColumns,
    graph: &Columns,
) -> Result<Annotations, String> {
    let c = &columns;
    let (nodes, storages) = (graph.nodes(), graph.storage_bytes.len());
    at_most("claims of a workload", c.workload.len(), WORKLOADS_MAX)?;
    at_most("matches", c.pattern.len(), MATCHES_MAX)?;
    at_most("nodes in matches", c.nodes.len(), NODES_IN_MATCHES_PER_NODE * nodes)?;
    at_most("claims of residency", c.storage.len(), RESIDENCIES_PER_STORAGE * storages)?;
    at_most("attributes", c.attribute_key.len(), ATTRIBUTES_MAX)?;
    symbols(c)?;
    exist("node", &c.nodes, nodes)?;
    exist("storage", &c.storage, storages)?;
    for confidence in
        c.workload_confidence.iter().chain(&c.confidence).chain(&c.residency_confidence)
    {
        // Also false for what is no number.
        if !(0.0..=1.0).contains(confidence) {
            return Err(format!("the confidence {confidence} is not between 0 and 1"));
        }
    }
    if c.node_ends.last().map_or(0, |end| *end as usize) != c.nodes.len() {
        return Err("column `node_ends` of the annotations is malformed".into());
    }
    Annotations::try_from(columns).map_err(|error| error.to_string())
}

/// Every string is short, so that many references to one cannot fill the host's memory. Values
/// of attributes may be longer, and those are few.
fn symbols(c: &AnnotationColumns) -> Result<(), String> {
    if c.blob.chars().any(char::is_control) {
        return Err("the annotations' strings hold control characters".into());
    }
    let bytes = |symbol: u32| {
        let end = c.symbol_ends.get(symbol as usize).copied().unwrap_or(0);
        let start = symbol.checked_sub(1).map_or(0, |before| c.symbol_ends[before as usize]);
        end.saturating_sub(start) as usize
    };
    let known = c.symbol_ends.len();
    let words = [&c.workload, &c.pattern, &c.phase, &c.modality, &c.residency, &c.attribute_key];
    for symbol in words.into_iter().flatten() {
        if *symbol as usize >= known.max(1) {
            return Err(format!("symbol {symbol} of {known} in the annotations"));
        }
        at_most("bytes in a name", bytes(*symbol), WORD_BYTES_MAX)?;
    }
    for symbol in &c.attribute_value {
        if *symbol as usize >= known.max(1) {
            return Err(format!("symbol {symbol} of {known} in the annotations"));
        }
        at_most("bytes in an attribute", bytes(*symbol), TEXT_BYTES_MAX)?;
    }
    Ok(())
}

/// A plan whose columns agree and whose nodes, storages and devices exist.
pub(crate) fn plan(c: PlanColumns, graph: &Columns, now: &Cluster) -> Result<Plan, String> {
    let (nodes, storages) = (graph.nodes(), graph.storage_bytes.len());
    let regions = c.region_ends.len();
    at_most("regions", regions, REGIONS_PER_NODE * nodes + 1)?;
    at_most("nodes in regions", c.region_nodes.len(), nodes)?;
    at_most("directives", c.directives.len(), DIRECTIVES_PER_STORAGE * storages)?;
    at_most("transfers", c.transfer_order.len(), graph.value_storage.len())?;
    if c.region_device.len() != regions || c.region_pipeline.len() != regions {
        return Err("the columns of the plan's regions differ in length".into());
    }
    exist("node", &c.region_nodes, nodes)?;
    exist("value", &c.transfer_order, graph.value_storage.len())?;
    exist("device", &c.region_device, now.devices.len())?;
    text("the plan's reason", &c.why, TEXT_BYTES_MAX)?;
    for directive in &c.directives {
        text("a directive's kind", &directive.kind, WORD_BYTES_MAX)?;
        text("a directive's reason", &directive.why, TEXT_BYTES_MAX)?;
        exist("storage", &[directive.storage], storages)?;
        exist("device", &[directive.device], now.devices.len())?;
    }
    let mut plan = Plan {
        regions: Vec::with_capacity(regions),
        directives: c.directives,
        transfer_order: c.transfer_order,
        why: c.why,
    };
    let mut start = 0;
    for index in 0..regions {
        let end = c.region_ends[index] as usize;
        let nodes = c.region_nodes.get(start..end).ok_or("the plan's region ends are malformed")?;
        plan.regions.push(Region {
            nodes: nodes.to_vec(),
            device: c.region_device[index],
            pipeline: c.region_pipeline[index],
        });
        start = end;
    }
    match start == c.region_nodes.len() {
        true => Ok(plan),
        false => Err("the plan's region ends are malformed".into()),
    }
}

/// Edits of nodes that exist.
pub(crate) fn edits(edits: Vec<Edit>, graph: &Columns) -> Result<Vec<Edit>, String> {
    let nodes = graph.nodes();
    at_most("edits", edits.len(), EDITS_PER_NODE * nodes)?;
    for edit in &edits {
        let (a, b) = match *edit {
            Edit::DropDead { node } => (node, node),
            Edit::MergeCommon { kept, dropped } => (kept, dropped),
            Edit::Recompute { node, consumer } => (node, consumer),
            Edit::MoveBefore { node, before } => (node, before),
        };
        exist("node", &[a, b], nodes)?;
    }
    Ok(edits)
}

/// Hints with numbers, for links that exist.
pub(crate) fn hints(hints: Vec<Hint>, now: &Cluster) -> Result<Vec<Hint>, String> {
    at_most("hints", hints.len(), HINTS_MAX)?;
    for hint in &hints {
        exist("link", &[hint.link], now.links.len())?;
        text("a hint's key", &hint.key, WORD_BYTES_MAX)?;
        if !hint.value.is_finite() {
            return Err(format!("the hint {} is {}", hint.key, hint.value));
        }
    }
    Ok(hints)
}

fn at_most(what: &str, count: usize, max: usize) -> Result<(), String> {
    match count <= max {
        true => Ok(()),
        false => Err(format!("{count} {what}; at most {max} are taken here")),
    }
}

fn exist(what: &str, indexes: &[u32], len: usize) -> Result<(), String> {
    match indexes.iter().find(|index| **index as usize >= len) {
        None => Ok(()),
        Some(index) => Err(format!("{what} {index} does not exist (there are {len})")),
    }
}

fn text(what: &str, text: &str, bytes_max: usize) -> Result<(), String> {
    at_most(&format!("bytes in {what}"), text.len(), bytes_max)?;
    match text.chars().any(char::is_control) {
        true => Err(format!("{what} holds control characters")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a refusal says, and how to earn it.
    type Case<T> = (&'static str, fn(&mut T));

    fn graph() -> Columns {
        Columns {
            op: vec![0; 4],
            storage_bytes: vec![8; 2],
            value_storage: vec![0; 3],
            ..Columns::default()
        }
    }

    fn cluster() -> Cluster {
        let links = vec![genie_plugin::Link::default()];
        Cluster { devices: vec![genie_plugin::Device::default()], links, resident: vec![] }
    }

    #[test]
    fn illegal_annotations_are_refused() {
        let good = || {
            let mut notes = Annotations::new();
            notes.workload("llm", 1.0);
            notes.matched("p", "q", "", 0.5, [genie_plugin::NodeId(3)]);
            notes.residency(genie_plugin::StorageId(1), "weight", 0.0);
            notes.attribute("k", "v");
            AnnotationColumns::from(&notes)
        };
        assert!(annotations(good(), &graph()).is_ok());
        let cases: [Case<AnnotationColumns>; 9] = [
            ("node 4 does not exist", |c| c.nodes[0] = 4),
            ("storage 2 does not exist", |c| c.storage[0] = 2),
            ("confidence NaN", |c| c.confidence[0] = f32::NAN),
            ("confidence 1.5", |c| c.workload_confidence[0] = 1.5),
            ("symbol 99", |c| c.phase[0] = 99),
            ("nodes in matches", |c| c.nodes = vec![0; 4 * 32 + 1]),
            ("node_ends", |c| c.nodes.push(0)),
            ("control characters", |c| c.blob = "\u{1b}[2J".into()),
            ("bytes in a name", |c| {
                c.blob = "x".repeat(300);
                c.symbol_ends = vec![0, 300];
                c.workload[0] = 1;
            }),
        ];
        for (expected, spoil) in cases {
            let mut columns = good();
            spoil(&mut columns);
            let error = annotations(columns, &graph()).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn plans_edits_and_hints_name_what_exists() {
        let good = || PlanColumns {
            region_ends: vec![1, 4],
            region_nodes: vec![0, 1, 2, 3],
            region_device: vec![0, 0],
            region_pipeline: vec![0, 0],
            ..PlanColumns::default()
        };
        assert_eq!(plan(good(), &graph(), &cluster()).unwrap().regions[1].nodes, [1, 2, 3]);
        let cases: [Case<PlanColumns>; 5] = [
            ("device 7", |c| c.region_device[0] = 7),
            ("node 9", |c| c.region_nodes[0] = 9),
            ("ends", |c| c.region_ends[1] = 3),
            ("ends", |c| c.region_ends[0] = 9),
            ("length", |c| c.region_pipeline.clear()),
        ];
        for (expected, spoil) in cases {
            let mut columns = good();
            spoil(&mut columns);
            let error = plan(columns, &graph(), &cluster()).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(edits(vec![Edit::DropDead { node: 4 }], &graph()).is_err());
        let hint = |link, value| Hint { link, key: "streams".into(), value };
        assert!(hints(vec![hint(0, 1.0)], &cluster()).is_ok());
        assert!(hints(vec![hint(1, 1.0)], &cluster()).is_err());
        assert!(hints(vec![hint(0, f64::INFINITY)], &cluster()).is_err());
    }
}
