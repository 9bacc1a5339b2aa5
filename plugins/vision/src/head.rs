//! Where the backbone ends, and what comes after it.

use std::collections::HashMap;

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;

use crate::facts::{Facts, Kind};

/// Residual connections between a feature and who reads it late.
const LATE_RESIDUALS: u32 = 2;
/// Weighted operators between a feature of a finer scale and who reads it late.
const LATE_WEIGHTED: u32 = 6;
/// Nodes looked at behind joined scales.
const NEAR_NODES: usize = 8;
/// Operators followed from a result back to the product it is from.
const WALK_MAX: usize = 16;

/// What the model gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A vector for each picture.
    Classify,
    /// A map over each picture.
    Dense,
    /// Boxes.
    Detect,
}

/// A pass split in two.
#[derive(Debug, Clone, Copy)]
pub struct Split {
    pub task: Task,
    /// The first node of the head; the end of the pass where there is none.
    pub head: NodeId,
    /// Whether the first convolution is counted as part of the backbone.
    pub stem_in_backbone: bool,
}

/// One forward pass of a model: its nodes from `start` on, before `end`.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub start: NodeId,
    /// Where the picture meets the first weight.
    pub entry: NodeId,
    pub end: NodeId,
}

impl Pass {
    pub fn nodes<'a>(&self, facts: &'a Facts<'_>) -> impl DoubleEndedIterator<Item = NodeId> + 'a {
        range(self.start, self.end).filter(|node| facts.is_forward(*node))
    }
}

fn range(start: NodeId, end: NodeId) -> impl DoubleEndedIterator<Item = NodeId> {
    (start.0..end.0).map(NodeId)
}

pub fn split(facts: &Facts<'_>, pass: Pass) -> Split {
    let residuals: Vec<NodeId> = {
        let from = facts.residuals.partition_point(|node| *node < pass.start);
        let to = facts.residuals.partition_point(|node| *node < pass.end);
        facts.residuals[from..to].to_vec()
    };
    let boxes = box_product(facts, pass);
    let maps = box_maps(facts, pass);
    let scales = scales_joined(facts, pass);
    if boxes.is_some() || scales.is_some() || maps.is_some() {
        return detector(facts, pass, &residuals, Boxes { rows: boxes, scales, maps });
    }
    match dense_result(facts, pass) {
        Some(result) => dense(facts, pass, &residuals, result),
        None => classifier(facts, pass, &residuals),
    }
}

/// The head of a classifier: what follows the last block.
fn classifier(facts: &Facts<'_>, pass: Pass, residuals: &[NodeId]) -> Split {
    let done = |head| Split { task: Task::Classify, head, stem_in_backbone: false };
    let residual = residuals.last().copied();
    let convolution = pass.nodes(facts).rev().find(|node| {
        matches!(facts.kind(*node), Kind::Convolution(convolution)
            if facts.positions(*node) > 1 || convolution.wide)
    });
    if let Some(last) = convolution.filter(|node| residual.is_none_or(|other| other < *node)) {
        let classes = pass.nodes(facts).all(|node| node <= last || !facts.is_heavy(node));
        if classes && last > pass.entry {
            // Pooling alone follows: the convolution gives the classes.
            return done(last);
        }
        return done(after_map(facts, pass, last));
    }
    let Some(last) = residual else {
        // No blocks to tell by: the last product.
        let last = pass.nodes(facts).rev().find(|node| facts.is_heavy(*node));
        return done(last.filter(|last| *last > pass.entry).unwrap_or(pass.end));
    };
    let norm_closes_blocks = residuals.len() > 1 && is_norm_after(facts, residuals);
    let head = pass.nodes(facts).filter(|node| *node > last).find(|node| match facts.kind(*node) {
        Kind::Activation | Kind::BatchNorm => facts.positions(*node) <= 1 && is_flat(facts, *node),
        Kind::SampleNorm => !norm_closes_blocks,
        _ => true,
    });
    done(head.unwrap_or(pass.end))
}

/// Whether the node's result is one row for each picture.
fn is_flat(facts: &Facts<'_>, node: NodeId) -> bool {
    facts.graph.output(node, 0).is_none_or(|out| out.dims() <= 2)
}

/// Whether each block ends with a norm: the one before the last residual connection's is read by a
/// norm alone.
fn is_norm_after(facts: &Facts<'_>, residuals: &[NodeId]) -> bool {
    let earlier = residuals[residuals.len() - 2];
    let Some(out) = facts.graph.output(earlier, 0) else { return false };
    matches!(facts.readers(out.value)[..], [only] if facts.kind(only) == Kind::SampleNorm)
}

/// The first node behind the feature maps that `last` and what directly follows make.
fn after_map(facts: &Facts<'_>, pass: Pass, last: NodeId) -> NodeId {
    let mut end = last;
    for node in pass.nodes(facts).filter(|node| *node > last) {
        let adaptive = facts.graph.name(node).contains("adaptive");
        let map = facts.positions(node) > 1 && !adaptive;
        let trailing =
            matches!(facts.kind(node), Kind::Activation | Kind::BatchNorm | Kind::MaxPool)
                && facts.graph.output(node, 0).is_some_and(|out| facts.is_map(&out))
                && node.0 <= end.0 + TRAILING_GAP;
        if map || trailing {
            end = node;
        }
    }
    range(end, pass.end).find(|node| *node > end && facts.is_forward(*node)).unwrap_or(pass.end)
}

/// Other nodes (allocations) between an operator and the one that follows it.
const TRAILING_GAP: u32 = 8;

/// The head of a model that gives a map.
fn dense(facts: &Facts<'_>, pass: Pass, residuals: &[NodeId], result: NodeId) -> Split {
    let merge = pass.nodes(facts).find(|node| is_skip_merge(facts, *node));
    let tap = first_tap(facts, pass);
    let last_product = || {
        pass.nodes(facts)
            .rev()
            .find(|node| facts.is_heavy(*node) && *node <= result && *node > pass.entry)
            .unwrap_or(pass.end)
    };
    let done = |head, stem_in_backbone| Split { task: Task::Dense, head, stem_in_backbone };
    if merge.is_some_and(|merge| tap.is_none_or(|tap| merge < tap)) {
        return done(last_product(), false);
    }
    let before = |node: &&NodeId| tap.is_none_or(|tap| **node < tap);
    match residuals.iter().rev().find(before) {
        Some(last) => {
            let head = first_product_after(facts, pass, *last);
            let head = match tap {
                Some(tap) if head > tap => tap,
                _ => head,
            };
            let isotropic = residuals.iter().all(|node| facts.positions(*node) == 1);
            done(head, !isotropic || tap.is_some())
        }
        None => {
            let compared = tap.is_none().then(|| first_after_comparison(facts, pass)).flatten();
            done(compared.or(tap).unwrap_or_else(last_product), tap.is_some())
        }
    }
}

/// The first product behind where the features of two maps are compared place by place: products
/// of two maps summed over their channels.
fn first_after_comparison(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let is_comparison = |node: NodeId| {
        let (Some(a), Some(b), Some(out)) =
            (graph.input(node, 0), graph.input(node, 1), graph.output(node, 0))
        else {
            return false;
        };
        let feature = |tensor: &Tensor<'_>| {
            matches!(facts.kind(facts.origin(tensor.value)), Kind::Convolution(_))
        };
        graph.name(node) == "mul"
            && facts.positions(node) > 1
            && a.sizes == b.sizes
            && feature(&a)
            && feature(&b)
            && matches!(facts.readers(out.value)[..], [only]
            if matches!(graph.op_name(only), "sum" | "mean")
                && graph.output(only, 0).is_some_and(|sum| {
                    sum.elements() * out.size(1).max(1) as u64 == out.elements()
                }))
    };
    let compared = pass.nodes(facts).find(|node| is_comparison(*node))?;
    pass.nodes(facts).find(|node| *node > compared && facts.is_heavy(*node))
}

/// The first product behind a residual connection. A convolution that only widens the last
/// feature, for several to read, is part of the backbone.
fn first_product_after(facts: &Facts<'_>, pass: Pass, last: NodeId) -> NodeId {
    let graph = facts.graph;
    let mut products = pass.nodes(facts).filter(|node| *node > last && facts.is_heavy(*node));
    let Some(first) = products.next() else { return pass.end };
    let Kind::Convolution(convolution) = facts.kind(first) else { return first };
    let widens = !convolution.wide
        && graph.input(first, 1).is_some_and(|weight| weight.size(0) > weight.size(1));
    if !widens {
        return first;
    }
    let mut at = first;
    for _ in 0..4 {
        let Some(out) = graph.output(at, 0) else { break };
        match facts.readers(out.value)[..] {
            [next] if matches!(facts.kind(next), Kind::BatchNorm | Kind::Activation) => at = next,
            [_] | [] => return first,
            _ => return products.next().unwrap_or(pass.end),
        }
    }
    first
}

/// What tells of boxes.
struct Boxes {
    /// The product that gives boxes of queries.
    rows: Option<NodeId>,
    /// The first convolution of those whose maps of several scales are laid behind one another.
    scales: Option<NodeId>,
    /// The first convolution that gives a map of boxes.
    maps: Option<NodeId>,
}

/// The head of a detector.
fn detector(facts: &Facts<'_>, pass: Pass, residuals: &[NodeId], boxes: Boxes) -> Split {
    let done = |head, stem_in_backbone| Split { task: Task::Detect, head, stem_in_backbone };
    if boxes.rows.is_none() || boxes.scales.is_some() {
        if let Some(shared) = shared_convolution(facts, pass) {
            return done(shared, true);
        }
        if let Some(tap) = first_tap(facts, pass) {
            return done(tap, true);
        }
    }
    let on_maps = residuals.iter().rev().find(|node| facts.positions(**node) > 1);
    if let Some(last) = on_maps {
        return done(first_product_after(facts, pass, *last), true);
    }
    if let Some(first) = boxes.maps.into_iter().chain(boxes.scales).min() {
        return done(branch_of(facts, first), true);
    }
    // No maps with residual connections: a plain network with a transformer behind it, or a
    // transformer over patches.
    let mut maps = pass
        .nodes(facts)
        .filter(|node| *node > pass.entry && matches!(facts.kind(*node), Kind::Convolution(_)));
    if let Some(last) = maps.next_back() {
        // A convolution of single positions only fits the last map to what follows.
        let fits = !matches!(facts.kind(last), Kind::Convolution(last) if last.wide);
        return done(if fits { last } else { after_map(facts, pass, last) }, true);
    }
    match residuals.last() {
        Some(last) => done(first_product_after(facts, pass, *last), false),
        None => done(boxes.rows.unwrap_or(pass.end), true),
    }
}

/// A product that gives four numbers a row, squashed to the unit square: boxes of queries.
fn box_product(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let batch = graph.input(pass.entry, 0).map_or(1, |data| data.size(0));
    pass.nodes(facts).find(|node| {
        let Some(product) = product(graph, *node).filter(|product| product.weighted) else {
            return false;
        };
        let Some(out) = graph.output(*node, 0) else { return false };
        let rows = out.elements() as i64 / 4;
        if out.size(-1) != 4 || rows <= batch || product.data.size(-1) < 8 {
            return false;
        }
        let mut value = out.value;
        for _ in 0..4 {
            let readers = facts.readers(value);
            if readers.iter().any(|reader| graph.name(*reader) == "sigmoid") {
                return true;
            }
            let Some(next) = readers.first().and_then(|reader| graph.output(*reader, 0)) else {
                break;
            };
            value = next.value;
        }
        false
    })
}

/// The first convolution of those whose predictions of several scales are laid behind one another.
fn scales_joined(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    pass.nodes(facts).find_map(|node| {
        if facts.kind(node) != Kind::Join || graph.inputs(node).len() < 2 {
            return None;
        }
        let out = graph.output(node, 0)?;
        if out.dims() > 3 || facts.positions(node) > 1 || !out.dtype.is_floating() {
            return None;
        }
        let mut scales: Vec<i64> = Vec::new();
        let mut first: Option<NodeId> = None;
        for input in graph.inputs(node) {
            let origin = facts.origin(input.value);
            if !matches!(facts.kind(origin), Kind::Convolution(_)) {
                return None;
            }
            // All of the map, not a pooled vector of it.
            let map = graph.output(origin, 0)?;
            if map.elements() != input.elements() && map.size(1) > input.elements() as i64 {
                return None;
            }
            scales.push(facts.positions(origin));
            first = first.into_iter().chain([origin]).min();
        }
        scales.sort_unstable();
        scales.dedup();
        first.filter(|_| scales.len() >= 2 && !is_computed_with(facts, out.value))
    })
}

/// Whether a product reads what few other operators make of the value: it is a feature, not a
/// prediction.
fn is_computed_with(facts: &Facts<'_>, value: ValueId) -> bool {
    let mut open = std::collections::VecDeque::from([value]);
    for _ in 0..NEAR_NODES {
        let Some(value) = open.pop_front() else { return false };
        for reader in facts.readers(value) {
            if facts.is_heavy(reader) {
                return true;
            }
            open.extend(facts.graph.output(reader, 0).map(|out| out.value));
        }
    }
    false
}

/// The first node of the branch that ends in `last`: back to what others read too, if anything.
fn branch_of(facts: &Facts<'_>, last: NodeId) -> NodeId {
    let mut first = last;
    for _ in 0..WALK_MAX {
        let Some(carried) = facts.carried(first) else { return last };
        if facts.readers(carried.value).len() > 1 {
            return first;
        }
        first = facts.graph.producer(carried.value);
    }
    last
}

/// The first convolution whose map gives boxes: sizes by an exponential beside scores by a
/// sigmoid, or two or four channels beside at least two other maps of one size.
fn box_maps(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let pooled = pass.nodes(facts).find(|node| {
        let name = graph.op_name(*node);
        name.contains("nms") || name.contains("roi_align") || name.contains("roi_pool")
    });
    let decoded = pass.nodes(facts).find(|node| {
        if !matches!(facts.kind(*node), Kind::Convolution(_)) {
            return false;
        }
        let Some(out) = graph.output(*node, 0) else { return false };
        let mut names: Vec<&str> = Vec::new();
        for reader in facts.readers(out.value) {
            match graph.name(reader) {
                "clone" | "contiguous" | "clamp" | "clamp_max" | "clamp_min" => {
                    if let Some(copy) = graph.output(reader, 0) {
                        let readers = facts.readers(copy.value);
                        names.extend(readers.iter().map(|node| graph.name(*node)));
                    }
                }
                name => names.push(name),
            }
        }
        names.contains(&"sigmoid") && names.contains(&"exp")
    });
    decoded.or_else(|| side_by_side(facts, pass)).or_else(|| picked(facts, pass)).or(pooled)
}

/// The first convolution of those whose maps are read where the scores of another are highest.
fn picked(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    // For each list of places, the map that it was chosen from.
    let mut places: HashMap<ValueId, NodeId> = HashMap::new();
    let map_of = |value: ValueId| {
        let origin = facts.origin(value);
        let is_map =
            matches!(facts.kind(origin), Kind::Convolution(_)) && facts.positions(origin) > 1;
        is_map.then_some(origin)
    };
    let mut first: Option<NodeId> = None;
    for node in pass.nodes(facts) {
        let name = graph.name(node);
        if matches!(name, "topk" | "sort" | "argmax" | "nonzero" | "max") {
            let Some(scores) = graph.input(node, 0).and_then(|input| map_of(input.value)) else {
                continue;
            };
            let chosen = graph.outputs(node).filter(|output| !output.dtype.is_floating());
            places.extend(chosen.map(|output| (output.value, scores)));
            continue;
        }
        let Some(scores) = graph.inputs(node).find_map(|input| places.get(&input.value).copied())
        else {
            continue;
        };
        let data = graph.input(node, 0).filter(|data| data.dtype.is_floating());
        if matches!(name, "gather" | "index" | "index_select" | "take_along_dim" | "take") {
            let read = data.and_then(|data| map_of(data.value)).filter(|map| *map != scores);
            if let Some(map) = read {
                first = first.into_iter().chain([map, scores]).min();
            }
        }
        let whole = graph.outputs(node).filter(|output| output.dtype.is_integer());
        places.extend(whole.map(|output| (output.value, scores)));
    }
    first
}

/// The first of three or more maps that the program reads, of one size, with boxes among them.
fn side_by_side(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let mut maps: Vec<NodeId> = Vec::new();
    for node in pass.nodes(facts) {
        let Some(out) = graph.output(node, 0) else { continue };
        let read = |node: &NodeId| graph.op(*node) == "genie::read";
        if facts.positions(node) <= 1 || !graph.consumers(out.value).iter().any(read) {
            continue;
        }
        let origin = facts.origin(out.value);
        if matches!(facts.kind(origin), Kind::Convolution(_)) {
            maps.push(origin);
        }
    }
    maps.sort_unstable();
    maps.dedup();
    let channels = |node: NodeId| graph.output(node, 0).map_or(0, |out| out.size(1));
    let same = maps.windows(2).all(|pair| facts.positions(pair[0]) == facts.positions(pair[1]));
    let boxes = maps.iter().any(|node| matches!(channels(*node), 2 | 4));
    (maps.len() >= 3 && same && boxes).then(|| maps.first().copied()).flatten()
}

/// The first convolution whose weight works on maps of several scales.
fn shared_convolution(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let mut first: HashMap<ValueId, NodeId> = HashMap::new();
    let mut found: Option<NodeId> = None;
    for node in pass.nodes(facts) {
        if !matches!(facts.kind(node), Kind::Convolution(_)) {
            continue;
        }
        let Some(weight) = graph.input(node, 1) else { continue };
        let earlier = *first.entry(weight.value).or_insert(node);
        if facts.positions(earlier) != facts.positions(node) {
            found = Some(found.map_or(earlier, |found| found.min(earlier)));
        }
    }
    found
}

/// The map that the model gives, by the last node that makes it.
fn dense_result(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    pass.nodes(facts).rev().find(|node| {
        if facts.depth(*node) < 2 {
            return false;
        }
        let Some(out) = graph.output(*node, 0) else { return false };
        let taken =
            graph.consumers(out.value).iter().filter(|node| graph.op(**node) == "genie::read");
        // As the program looks at it.
        let taken = taken.filter_map(|read| graph.input(*read, 0)).next();
        if taken.is_none() && !facts.readers(out.value).is_empty() {
            return false;
        }
        let out = taken.unwrap_or(out);
        if out.dims() < 3 || out.size(-1) <= 1 || out.size(-2) <= 1 {
            return false;
        }
        // Up to the product or convolution that it is from.
        let mut at = *node;
        for _ in 0..WALK_MAX {
            if facts.is_heavy(at) {
                break;
            }
            match facts.carried(at) {
                Some(carried) => at = graph.producer(carried.value),
                None => return false,
            }
        }
        match facts.kind(at) {
            Kind::Convolution(_) => facts.positions(at) > 1,
            // Masks of queries.
            Kind::Mixing => out.dims() >= 4 && matches!(graph.name(at), "bmm" | "matmul"),
            Kind::Product => out.dims() >= 4,
            _ => false,
        }
    })
}

/// Whether the node joins a finer feature of long ago with what was upsampled: a U-Net's skip.
fn is_skip_merge(facts: &Facts<'_>, node: NodeId) -> bool {
    let graph = facts.graph;
    if !matches!(facts.kind(node), Kind::Join | Kind::Sum) || facts.positions(node) <= 1 {
        return false;
    }
    let inputs: Vec<Tensor<'_>> = graph.inputs(node).collect();
    let upsampled = inputs
        .iter()
        .enumerate()
        .find_map(|(at, input)| Some((at, upsampled_depth(facts, input.value)?)));
    let Some((upsampled, deep)) = upsampled else { return false };
    inputs.iter().enumerate().any(|(at, input)| {
        let origin = facts.origin(input.value);
        let passed =
            facts.weighted_before[node.0 as usize] - facts.weighted_before[origin.0 as usize];
        at != upsampled && passed >= 3 && facts.depth(origin) < deep
    })
}

/// How deep the feature lies that a value was upsampled from, at most two convolutions ago.
fn upsampled_depth(facts: &Facts<'_>, value: ValueId) -> Option<u32> {
    let mut node = facts.graph.producer(value);
    let mut convolutions = 0;
    for _ in 0..WALK_MAX {
        let carried = facts.graph.producer(facts.carried(node)?.value);
        match facts.kind(node) {
            Kind::Upsample => return Some(facts.depth(carried)),
            Kind::Convolution(convolution) if convolution.transposed => {
                return Some(facts.depth(carried));
            }
            Kind::Convolution(_) => convolutions += 1,
            Kind::Join | Kind::Product | Kind::Mixing => return None,
            _ => {}
        }
        if convolutions > 2 || facts.residuals.binary_search(&node).is_ok() {
            return None;
        }
        node = carried;
    }
    None
}

/// The first product or convolution that reads a feature of long ago.
fn first_tap(facts: &Facts<'_>, pass: Pass) -> Option<NodeId> {
    let graph = facts.graph;
    let mut finest = i64::MAX;
    for node in pass.nodes(facts) {
        if !matches!(facts.kind(node), Kind::Convolution(_) | Kind::Product) {
            continue;
        }
        let data = match product(graph, node) {
            Some(product) => Some(product.data),
            None => graph.input(node, 0),
        };
        if let Some(data) = data {
            let origin = facts.origin(data.value);
            if origin > pass.entry && facts.depth(origin) > 0 {
                let (now, then) = (node.0 as usize, origin.0 as usize);
                let residuals = facts.residuals_before[now] - facts.residuals_before[then];
                let weighted = facts.weighted_before[now] - facts.weighted_before[then];
                let own = u32::from(facts.residuals.binary_search(&origin).is_ok());
                let finer = facts.positions(origin) > finest;
                if residuals >= LATE_RESIDUALS + own || weighted > LATE_WEIGHTED && finer {
                    return Some(node);
                }
            }
        }
        // Pooled maps of one position are no scale.
        if matches!(facts.kind(node), Kind::Convolution(_)) && facts.positions(node) > 1 {
            finest = finest.min(facts.positions(node));
        }
    }
    None
}
