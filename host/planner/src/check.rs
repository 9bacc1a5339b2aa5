//! The rules that every plan keeps, whoever proposed it.
//!
//! A region runs as a unit: all its inputs are there before its first operator starts. So the
//! graph between regions must have no circle, over
//! - flow: what one node makes and another one uses;
//! - order: a reader of a storage comes before the next writer of it, writers follow each other;
//! - the random generator: its users follow each other;
//! - reads: what the program issues after a read waits for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use genie_plugin::{Cluster, Directive, Graph, NodeId, Plan, StorageId};

use crate::illegal::IllegalPlan;
use crate::memory;
use crate::movement::{self, Movement};
use crate::work::{is_constant_weight, random_nodes};

/// Directives that are read of one plan.
pub const DIRECTIVES_MAX: usize = 65_536;
/// Bytes of text (reasons, kinds) that are kept of one plan.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Devices that a cluster may have.
pub const DEVICES_MAX: usize = 1_024;
/// Regions of a circle that a message names.
const CYCLE_NAMED_MAX: usize = 8;

/// A plan that keeps the rules, with what the check found on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Legal<'a> {
    pub plan: &'a Plan,
    /// The region of each node.
    pub region_of: Vec<u32>,
    /// The device of each node.
    pub device_of: Vec<u32>,
    /// Regions in the order in which they can run one after another.
    pub order: Vec<u32>,
    /// Bytes each device needs beyond what is there, at most, in that order. An executor that
    /// runs ahead of the order waits where memory is full.
    pub peak_bytes: Vec<u64>,
    pub(crate) wishes: Wishes,
    pub(crate) movement: Movement,
    pub(crate) waits: Vec<Wait>,
}

/// Directives by what they change, as (storage, device).
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Wishes {
    /// A copy beside the one that is computed with.
    pub copies: BTreeSet<(u32, u32)>,
    pub spilled: BTreeSet<(u32, u32)>,
    pub evicted: BTreeSet<(u32, u32)>,
    pub recomputed: BTreeSet<(u32, u32)>,
}

/// Why one node comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Flow,
    /// The second overwrites what the first uses.
    Order,
    Generator,
    /// The program issues the second after it read the first.
    Read,
}

/// One node before another, in different regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    pub before: NodeId,
    pub after: NodeId,
    pub reason: Reason,
}

/// Checks a plan. The first broken rule is told.
pub fn check<'a>(
    graph: &Graph,
    cluster: &Cluster,
    plan: &'a Plan,
) -> Result<Legal<'a>, IllegalPlan> {
    check_sizes(graph, cluster, plan)?;
    let (region_of, device_of) = check_regions(graph, cluster, plan)?;
    check_storages(graph, &device_of)?;
    check_generator(graph, &device_of)?;
    check_transfers(graph, plan)?;
    let wishes = check_directives(graph, cluster, plan, &device_of)?;
    let waits = waits(graph, &region_of);
    let order = check_order(graph, plan, &region_of, &waits)?;
    check_pipelines(graph, plan, &region_of, &waits)?;
    let mut legal = Legal {
        plan,
        region_of,
        device_of,
        order,
        peak_bytes: vec![],
        wishes,
        movement: Movement::default(),
        waits,
    };
    legal.movement = movement::of(graph, cluster, &legal);
    movement::check_reachable(cluster, &legal.movement)?;
    legal.peak_bytes = memory::check(graph, cluster, &legal)?;
    Ok(legal)
}

fn check_sizes(graph: &Graph, cluster: &Cluster, plan: &Plan) -> Result<(), IllegalPlan> {
    let text = plan.why.len()
        + plan.directives.iter().map(|wish| wish.kind.len() + wish.why.len()).sum::<usize>();
    let sizes = [
        ("regions", plan.regions.len(), graph.len().max(1)),
        ("directives", plan.directives.len(), DIRECTIVES_MAX),
        ("transfers in its order", plan.transfer_order.len(), graph.values().len()),
        ("bytes of text", text, TEXT_BYTES_MAX),
        ("devices to choose from", cluster.devices.len(), DEVICES_MAX),
    ];
    match sizes.into_iter().find(|(_, count, max)| count > max) {
        Some((what, count, max)) => Err(IllegalPlan::TooLarge { what, count, max }),
        None => Ok(()),
    }
}

/// Every node in exactly one region, every region on a device.
fn check_regions(
    graph: &Graph,
    cluster: &Cluster,
    plan: &Plan,
) -> Result<(Vec<u32>, Vec<u32>), IllegalPlan> {
    const NOWHERE: u32 = u32::MAX;
    let mut region_of = vec![NOWHERE; graph.len()];
    let devices = cluster.devices.len() as u32;
    for (index, region) in plan.regions.iter().enumerate() {
        let index = index as u32;
        if region.device >= devices {
            let device = region.device;
            return Err(IllegalPlan::UnknownDevice { region: index, device, devices });
        }
        for node in &region.nodes {
            let Some(slot) = region_of.get_mut(*node as usize) else {
                let nodes = graph.len() as u32;
                return Err(IllegalPlan::UnknownNode { region: index, node: *node, nodes });
            };
            if *slot != NOWHERE {
                let (op, first) = (op(graph, *node), *slot);
                return Err(IllegalPlan::DuplicateNode { node: *node, op, first, second: index });
            }
            *slot = index;
        }
    }
    if let Some(node) = region_of.iter().position(|region| *region == NOWHERE) {
        let node = node as u32;
        return Err(IllegalPlan::MissingNode { node, op: op(graph, node) });
    }
    let device_of = region_of.iter().map(|region| plan.regions[*region as usize].device).collect();
    Ok((region_of, device_of))
}

/// Writes of a storage (all but what made it) are on one device.
fn check_storages(graph: &Graph, device_of: &[u32]) -> Result<(), IllegalPlan> {
    for storage in graph.storages() {
        let writers = graph.values_of(storage).iter().skip(1).map(|value| graph.producer(*value).0);
        let mut first: Option<u32> = None;
        for writer in writers {
            let known = *first.get_or_insert(writer);
            let (first_device, second_device) =
                (device_of[known as usize], device_of[writer as usize]);
            if first_device != second_device {
                return Err(IllegalPlan::WrittenOnTwoDevices {
                    storage: storage.0,
                    first: known,
                    first_device,
                    second: writer,
                    second_device,
                });
            }
        }
    }
    Ok(())
}

fn check_generator(graph: &Graph, device_of: &[u32]) -> Result<(), IllegalPlan> {
    let random = random_nodes(graph);
    let mut users = (0..graph.len() as u32).filter(|node| random[*node as usize]);
    let Some(first) = users.next() else { return Ok(()) };
    let first_device = device_of[first as usize];
    match users.find(|node| device_of[*node as usize] != first_device) {
        None => Ok(()),
        Some(second) => Err(IllegalPlan::RandomOnTwoDevices {
            first,
            first_op: op(graph, first),
            first_device,
            second,
            second_op: op(graph, second),
            second_device: device_of[second as usize],
        }),
    }
}

fn check_transfers(graph: &Graph, plan: &Plan) -> Result<(), IllegalPlan> {
    let values = graph.values().len() as u32;
    let mut seen = vec![false; values as usize];
    for value in &plan.transfer_order {
        let Some(seen) = seen.get_mut(*value as usize) else {
            return Err(IllegalPlan::UnknownValue { value: *value, values });
        };
        if std::mem::replace(seen, true) {
            return Err(IllegalPlan::DuplicateValue { value: *value });
        }
    }
    Ok(())
}

fn check_directives(
    graph: &Graph,
    cluster: &Cluster,
    plan: &Plan,
    device_of: &[u32],
) -> Result<Wishes, IllegalPlan> {
    let mut wishes = Wishes::default();
    let random = random_nodes(graph);
    // Per (storage, device): who wants the content there, who wants it gone.
    let mut wanted: BTreeMap<(u32, u32), [Option<u32>; 2]> = BTreeMap::new();
    for (index, wish) in plan.directives.iter().enumerate() {
        let index = index as u32;
        let Directive { storage, device, .. } = *wish;
        let kind = wish.kind.clone();
        let storages = graph.storages().len() as u32;
        if storage >= storages {
            return Err(IllegalPlan::UnknownStorage { index, kind, storage, storages });
        }
        let devices = cluster.devices.len() as u32;
        if device >= devices {
            return Err(IllegalPlan::UnknownDirectiveDevice { index, kind, device, devices });
        }
        let gone = match wish.kind.as_str() {
            "pin" | "keep" | "prefetch" | "replicate" => false,
            "spill" | "evict" => true,
            "recompute" => {
                if let Some(why) = why_not_recomputed(graph, &random, StorageId(storage)) {
                    return Err(IllegalPlan::CannotRecompute { index, storage, device, why });
                }
                wishes.recomputed.insert((storage, device));
                continue;
            }
            _ => return Err(IllegalPlan::UnknownDirective { index, kind }),
        };
        let sides = wanted.entry((storage, device)).or_default();
        sides[usize::from(gone)] = Some(index);
        if let [Some(one), Some(other)] = *sides {
            let (first, second) = (one.min(other), one.max(other));
            return Err(IllegalPlan::Contradiction {
                first,
                first_kind: plan.directives[first as usize].kind.clone(),
                second,
                second_kind: kind,
                storage,
                device,
            });
        }
        let values = graph.values_of(StorageId(storage));
        let made_on = |value: &genie_plugin::ValueId| device_of[graph.producer(*value).0 as usize];
        match wish.kind.as_str() {
            "spill" => _ = wishes.spilled.insert((storage, device)),
            "evict" => {
                if !is_constant_weight(graph, StorageId(storage))
                    && graph.is_alive(StorageId(storage))
                {
                    return Err(IllegalPlan::LosesContent { index, storage, device });
                }
                wishes.evicted.insert((storage, device));
            }
            _ if values.last().is_some_and(|last| made_on(last) == device) => {}
            _ => {
                if let [_, .., last] = values {
                    return Err(IllegalPlan::CopyOfWritten {
                        index,
                        kind,
                        storage,
                        device,
                        writer: graph.producer(*last).0,
                        written_on: made_on(last),
                    });
                }
                wishes.copies.insert((storage, device));
            }
        }
    }
    Ok(wishes)
}

/// What stands against computing a storage's content a second time, if anything does.
fn why_not_recomputed(graph: &Graph, random: &[bool], storage: StorageId) -> Option<&'static str> {
    let [value] = graph.values_of(storage) else {
        return Some("it is written more than once");
    };
    let producer = graph.producer(*value);
    if !graph.is_op(producer) {
        return Some("no operator made it");
    }
    if random[producer.0 as usize] {
        return Some("its operator draws random numbers");
    }
    let first_of = |value| graph.values_of(graph.storage(value)).first() == Some(&value);
    if !graph.outputs(producer).all(|output| first_of(output.value)) {
        return Some("its operator writes in place");
    }
    let last_of = |value| graph.values_of(graph.storage(value)).last() == Some(&value);
    if !graph.inputs(producer).all(|input| last_of(input.value)) {
        return Some("an operand is overwritten later");
    }
    if !graph.predecessors(producer).all(|before| before < producer) {
        return Some("an operand comes from a later node");
    }
    None
}

/// Everything that must be in order, between different regions only.
fn waits(graph: &Graph, region_of: &[u32]) -> Vec<Wait> {
    let mut waits = Vec::new();
    let mut add = |before: NodeId, after: NodeId, reason| {
        if region_of[before.0 as usize] != region_of[after.0 as usize] {
            waits.push(Wait { before, after, reason });
        }
    };
    for node in graph.nodes() {
        for before in graph.predecessors(node) {
            add(before, node, Reason::Flow);
        }
    }
    for storage in graph.storages() {
        for pair in graph.values_of(storage).windows(2) {
            let writer = graph.producer(pair[1]);
            add(graph.producer(pair[0]), writer, Reason::Order);
            for reader in graph.consumers(pair[0]) {
                add(*reader, writer, Reason::Order);
            }
        }
    }
    let random = random_nodes(graph);
    let users: Vec<NodeId> = graph.nodes().filter(|node| random[node.0 as usize]).collect();
    for pair in users.windows(2) {
        add(pair[0], pair[1], Reason::Generator);
    }
    read_waits(graph, region_of, &mut waits);
    waits
}

/// A region whose nodes are all from segments after a read waits for the region of that read,
/// unless this has nodes from after the read too: then the two are one piece of the program.
fn read_waits(graph: &Graph, region_of: &[u32], waits: &mut Vec<Wait>) {
    let regions = region_of.iter().max().map_or(0, |last| *last as usize + 1);
    let mut spans: Vec<Option<(u32, u32, NodeId)>> = vec![None; regions];
    for node in graph.nodes() {
        let segment = graph.segment(node);
        let span = &mut spans[region_of[node.0 as usize] as usize];
        let (first, last, at) = span.unwrap_or((segment, segment, node));
        let at = if segment < first { node } else { at };
        *span = Some((first.min(segment), last.max(segment), at));
    }
    // The last read of each segment, where its region ends in that segment.
    let mut reads: BTreeMap<u32, NodeId> = BTreeMap::new();
    for node in graph.nodes().filter(|node| graph.op(*node) == "genie::read") {
        let span = spans[region_of[node.0 as usize] as usize];
        if span.is_some_and(|(_, last, _)| last == graph.segment(node)) {
            reads.insert(graph.segment(node), node);
        }
    }
    for (region, span) in spans.iter().enumerate() {
        let Some((first, _, at)) = *span else { continue };
        let Some((_, read)) = reads.range(..first).next_back() else { continue };
        if region_of[read.0 as usize] as usize != region {
            waits.push(Wait { before: *read, after: at, reason: Reason::Read });
        }
    }
}

/// An order in which regions can run: of those that can, the one with the earliest node.
fn check_order(
    graph: &Graph,
    plan: &Plan,
    region_of: &[u32],
    waits: &[Wait],
) -> Result<Vec<u32>, IllegalPlan> {
    let regions = plan.regions.len();
    let region = |node: NodeId| region_of[node.0 as usize] as usize;
    let mut missing = vec![0usize; regions];
    let mut after: Vec<Vec<u32>> = vec![vec![]; regions];
    for wait in waits {
        missing[region(wait.after)] += 1;
        after[region(wait.before)].push(region(wait.after) as u32);
    }
    let first = |index: usize| plan.regions[index].nodes.iter().min().copied().unwrap_or(0);
    let mut ready: BinaryHeap<Reverse<(u32, u32)>> = (0..regions)
        .filter(|index| missing[*index] == 0)
        .map(|index| Reverse((first(index), index as u32)))
        .collect();
    let mut order = Vec::with_capacity(regions);
    while let Some(Reverse((_, index))) = ready.pop() {
        order.push(index);
        for next in &after[index as usize] {
            let left = &mut missing[*next as usize];
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse((first(*next as usize), *next)));
            }
        }
    }
    if order.len() == regions {
        return Ok(order);
    }
    Err(cycle(graph, region_of, waits, &missing))
}

/// Names a circle: from any region that never became ready, go back to one it waits for.
fn cycle(graph: &Graph, region_of: &[u32], waits: &[Wait], missing: &[usize]) -> IllegalPlan {
    let region = |node: NodeId| region_of[node.0 as usize];
    let mut back: BTreeMap<u32, &Wait> = BTreeMap::new();
    for wait in waits {
        if missing[region(wait.before) as usize] > 0 {
            back.entry(region(wait.after)).or_insert(wait);
        }
    }
    let start = missing.iter().position(|left| *left > 0).expect("a region is left") as u32;
    let mut at = start;
    let mut seen = Vec::new();
    let mut visited = vec![false; missing.len()];
    while !std::mem::replace(&mut visited[at as usize], true) {
        seen.push(at);
        at = region(back[&at].before);
    }
    let from = seen.iter().position(|known| *known == at).expect("the loop ended there");
    let mut regions = seen.split_off(from);
    regions.truncate(CYCLE_NAMED_MAX);
    let wait = back[&at];
    IllegalPlan::Cycle {
        regions,
        from: wait.before.0,
        from_op: op(graph, wait.before.0),
        to: wait.after.0,
        to_op: op(graph, wait.after.0),
        why: match wait.reason {
            Reason::Flow => "its result is used there",
            Reason::Order => "the second overwrites what the first uses",
            Reason::Generator => "both use the random generator",
            Reason::Read => "the program reads the first before it issues the second",
        },
    }
}

/// Stages of a pipeline stand in the order in which data flows.
fn check_pipelines(
    graph: &Graph,
    plan: &Plan,
    region_of: &[u32],
    waits: &[Wait],
) -> Result<(), IllegalPlan> {
    let region = |node: NodeId| region_of[node.0 as usize];
    let pipeline = |index: u32| plan.regions[index as usize].pipeline;
    for wait in waits.iter().filter(|wait| wait.reason == Reason::Flow) {
        let (from, to) = (region(wait.before), region(wait.after));
        if pipeline(from) > 0 && pipeline(from) == pipeline(to) && from > to {
            return Err(IllegalPlan::PipelineBackwards {
                pipeline: pipeline(from),
                earlier: to,
                later: from,
                from: wait.before.0,
                op: op(graph, wait.before.0),
            });
        }
    }
    Ok(())
}

fn op(graph: &Graph, node: u32) -> String {
    graph.op(NodeId(node)).to_owned()
}
