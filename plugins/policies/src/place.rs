//! Candidate placements: one device, along the content, split along the program, split by branch,
//! by phase, tables apart.

use std::collections::BTreeMap;

use genie_plugin::cost::duration_ns;
use genie_plugin::plan::PROGRAM;
use genie_plugin::prelude::*;
use genie_plugin::{Device, Link};

use crate::facts::{Facts, Half};

/// Devices that are considered, the strongest first.
const DEVICES_MAX: usize = 8;
/// Devices that are tried for one phase or the other.
const PHASE_DEVICES_MAX: usize = 4;
/// Nodes times candidates: what bounds the time that a policy thinks.
const NODES_TRIED_MAX: usize = 40_000;
/// Candidates that are tried however large the graph is.
const CANDIDATES_MIN: usize = 4;
/// Places in the program where it may be cut.
const CUTS_MAX: usize = 96;

/// A device for each node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    pub device_of: Vec<u32>,
    /// Whether one execution can follow another before that is done.
    pub stages: bool,
    pub why: String,
}

/// Candidates, the likely ones first, as many as the size of the graph leaves time for.
pub fn candidates(facts: &Facts<'_>) -> Vec<Placement> {
    let devices = strongest(facts);
    let tables = table_homes(facts, &devices);
    let mut found = Found {
        most: (NODES_TRIED_MAX / facts.graph.len().max(1)).max(CANDIDATES_MIN),
        candidates: vec![],
    };
    let different = different(facts, &devices);
    for device in &different {
        let name = &facts.cluster.devices[*device as usize].name;
        found
            .add(|| place(facts, |_, _| Some(*device), &BTreeMap::new(), format!("all on {name}")));
        if !tables.is_empty() {
            let why = format!("tables where memory is, the rest on {name}");
            found.add(|| place(facts, |_, _| Some(*device), &tables, why));
        }
    }
    if devices.len() < 2 {
        return found.candidates;
    }
    let content = resident_homes(facts);
    if !content.is_empty() {
        found.add(|| follow(facts, &content, devices[0], "where the content is".to_owned()));
    }
    by_phase(facts, &different, &devices, &mut found);
    by_branch(facts, &devices, &tables, &mut found);
    by_stage(facts, &devices, &tables, &mut found);
    found.candidates
}

/// Candidates so far, each once.
struct Found {
    most: usize,
    candidates: Vec<Placement>,
}

impl Found {
    fn add(&mut self, make: impl FnOnce() -> Placement) {
        if self.is_full() {
            return;
        }
        let made = make();
        match self.candidates.iter_mut().find(|known| known.device_of == made.device_of) {
            Some(known) => known.stages |= made.stages,
            None => self.candidates.push(made),
        }
    }

    fn is_full(&self) -> bool {
        self.candidates.len() >= self.most
    }
}

/// Devices that are not like an earlier one: where nothing is yet, equals need one try.
fn different(facts: &Facts<'_>, devices: &[u32]) -> Vec<u32> {
    let like = |a: u32, b: u32| {
        let [a_device, b_device] = [a, b].map(|index| &facts.cluster.devices[index as usize]);
        let empty = |index: u32| !facts.resident.iter().any(|there| there.contains(&index));
        let link = |index: u32| {
            let links = facts.cluster.route(PROGRAM, index).unwrap_or_default();
            links.first().map(|link| (link.bytes_per_s, link.rtt_us))
        };
        let rates = |device: &Device| {
            (device.flops_per_s, device.memory_bytes_per_s, device.memory_free_bytes)
        };
        empty(a) && empty(b) && rates(a_device) == rates(b_device) && link(a) == link(b)
    };
    let mut out: Vec<u32> = Vec::new();
    for device in devices {
        if !out.iter().any(|known| like(*known, *device)) {
            out.push(*device);
        }
    }
    out
}

/// Prefill on one device, decode on another: worth trying where they differ.
fn by_phase(facts: &Facts<'_>, different: &[u32], devices: &[u32], found: &mut Found) {
    let has = |half| facts.half.contains(&Some(half));
    if !has(Half::Prefill) || !has(Half::Decode) {
        return;
    }
    let tried = if different.len() < 2 { &devices[..2] } else { different };
    let tried = &tried[..tried.len().min(PHASE_DEVICES_MAX)];
    for prefill in tried {
        for decode in tried.iter().filter(|decode| *decode != prefill) {
            let pick = |node: NodeId, _: &[Option<u32>]| match facts.half[node.0 as usize] {
                Some(Half::Prefill) => Some(*prefill),
                _ => Some(*decode),
            };
            let why = "prefill and decode apart; the cache moves once".to_owned();
            found.add(|| place(facts, pick, &BTreeMap::new(), why));
        }
    }
}

fn by_branch(
    facts: &Facts<'_>,
    devices: &[u32],
    tables: &BTreeMap<StorageId, u32>,
    found: &mut Found,
) {
    for used in 2..=devices.len().min(facts.branches as usize) {
        if found.is_full() {
            return;
        }
        let why = format!("{} branches on {used} devices", facts.branches);
        let homes = branch_homes(facts, &devices[..used]);
        let pick = |node: NodeId, _: &[Option<u32>]| {
            facts.branch[node.0 as usize].map(|branch| homes[branch as usize])
        };
        let branched = |tables: &BTreeMap<StorageId, u32>, why| Placement {
            stages: true,
            ..place(facts, pick, tables, why)
        };
        found.add(|| branched(&BTreeMap::new(), why.clone()));
        if !tables.is_empty() {
            found.add(|| branched(tables, format!("{why}, tables where memory is")));
        }
    }
}

fn by_stage(
    facts: &Facts<'_>,
    devices: &[u32],
    tables: &BTreeMap<StorageId, u32>,
    found: &mut Found,
) {
    let none = BTreeMap::new();
    let crossing = crossing_bytes(facts);
    for stages in 2..=devices.len() {
        let used = &devices[..stages];
        for goal in [Cut::Sum, Cut::Longest] {
            for apart in [&none, tables] {
                if found.is_full() {
                    return;
                }
                let Some(cuts) = cut(facts, used, goal, apart, &crossing) else { continue };
                let why = format!("{stages} stages, cut where the fewest bytes cross");
                for reading in [Reading::Positions, Reading::Weights] {
                    found.add(|| Placement {
                        stages: goal == Cut::Longest,
                        ..staged(facts, used, &cuts, apart, reading, &why)
                    });
                }
                if tables.is_empty() {
                    break;
                }
            }
        }
    }
}

fn strongest(facts: &Facts<'_>) -> Vec<u32> {
    let mut here = vec![0u64; facts.cluster.devices.len()];
    for storage in facts.graph.storages() {
        for device in &facts.resident[storage.0 as usize] {
            let sum = &mut here[*device as usize];
            *sum = sum.saturating_add(facts.graph.storage_bytes(storage));
        }
    }
    let mut devices: Vec<u32> = (0..facts.cluster.devices.len() as u32).collect();
    devices.sort_by_key(|index| {
        let device = &facts.cluster.devices[*index as usize];
        let speed = (device.memory_bytes_per_s, device.flops_per_s, device.memory_free_bytes);
        std::cmp::Reverse((here[*index as usize], speed))
    });
    // The one with the most memory must not be lost: it may be the only one that fits.
    let roomy = devices
        .iter()
        .copied()
        .max_by_key(|index| facts.cluster.devices[*index as usize].memory_free_bytes);
    if let (Some(roomy), true) = (roomy, devices.len() > DEVICES_MAX)
        && !devices[..DEVICES_MAX].contains(&roomy)
    {
        devices[DEVICES_MAX - 1] = roomy;
    }
    devices.truncate(DEVICES_MAX);
    devices
}

/// Completes a choice for operators to a placement: what belongs together stays together, tables
/// are looked up where they are, the rest stands next to what it feeds or needs.
fn place(
    facts: &Facts<'_>,
    pick: impl Fn(NodeId, &[Option<u32>]) -> Option<u32>,
    tables: &BTreeMap<StorageId, u32>,
    why: String,
) -> Placement {
    let graph = facts.graph;
    let mut device: Vec<Option<u32>> = vec![None; graph.len()];
    let mut group: Vec<Option<u32>> = vec![None; graph.len()];
    let mut later = Vec::new();
    for node in graph.nodes().filter(|node| facts.is_op[node.0 as usize]) {
        let index = node.0 as usize;
        let home = &mut group[facts.together[index] as usize];
        let table = || facts.main_source(node, |storage| tables.get(&storage).copied());
        let near = || heaviest_input(facts, node, &device);
        let chosen = home.or_else(table).or_else(|| pick(node, &device)).or_else(near);
        if let Some(chosen) = chosen {
            *home = Some(chosen);
            device[index] = Some(chosen);
        } else {
            later.push(node);
        }
    }
    // Operators that nothing pulls anywhere stand with what uses them.
    for node in later.into_iter().rev() {
        let home = &mut group[facts.together[node.0 as usize] as usize];
        let after = || graph.successors(node).find_map(|user| device[user.0 as usize]);
        let chosen = home.or_else(after).unwrap_or(0);
        *home = Some(chosen);
        device[node.0 as usize] = Some(chosen);
    }
    for node in graph.nodes().rev().filter(|node| !facts.is_op[node.0 as usize]) {
        let index = node.0 as usize;
        let home = &mut group[facts.together[index] as usize];
        let user = || nearest_user(facts, node, &device);
        let before = || graph.predecessors(node).find_map(|made| device[made.0 as usize]);
        let chosen = home.or_else(user).or_else(before);
        if chosen.is_some() {
            *home = chosen;
            device[index] = chosen;
        }
    }
    let mut device_of: Vec<u32> = Vec::with_capacity(graph.len());
    for node in graph.nodes() {
        let index = node.0 as usize;
        let known = device[index].or(group[facts.together[index] as usize]);
        let before = || graph.predecessors(node).find(|made| *made < node);
        let near = || before().map(|made| device_of[made.0 as usize]);
        let chosen = known.or_else(near).or_else(|| pick(node, &device)).unwrap_or(0);
        group[facts.together[index] as usize] = Some(chosen);
        device_of.push(chosen);
    }
    Placement { device_of, stages: false, why }
}

/// Where a source belongs: a device that uses it and has it, else its first user's.
fn nearest_user(facts: &Facts<'_>, node: NodeId, device: &[Option<u32>]) -> Option<u32> {
    let users = || facts.graph.successors(node).filter_map(|user| device[user.0 as usize]);
    let storage = facts.graph.output(node, 0).map(|output| facts.graph.storage(output.value));
    let there = storage.map_or(&[][..], |storage| &facts.resident[storage.0 as usize][..]);
    users().find(|device| there.contains(device)).or_else(|| users().next())
}

fn heaviest_input(facts: &Facts<'_>, node: NodeId, device: &[Option<u32>]) -> Option<u32> {
    let inputs = facts.graph.inputs(node).filter_map(|input| {
        let made_on = device[facts.graph.producer(input.value).0 as usize]?;
        Some((input.bytes(), made_on))
    });
    inputs.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, at)| at)
}

/// Operators go where their weights are; those without stand with what they need.
fn follow(
    facts: &Facts<'_>,
    homes: &BTreeMap<StorageId, u32>,
    otherwise: u32,
    why: String,
) -> Placement {
    let pick = |node: NodeId, device: &[Option<u32>]| {
        facts
            .main_source(node, |storage| homes.get(&storage).copied())
            .or_else(|| heaviest_input(facts, node, device))
            .or(Some(otherwise))
    };
    place(facts, pick, &BTreeMap::new(), why)
}

fn resident_homes(facts: &Facts<'_>) -> BTreeMap<StorageId, u32> {
    let homes = facts
        .graph
        .storages()
        .filter_map(|storage| Some((storage, *facts.resident[storage.0 as usize].first()?)));
    homes.collect()
}

/// Tables go to the device that has them, or the one with the most room left.
fn table_homes(facts: &Facts<'_>, devices: &[u32]) -> BTreeMap<StorageId, u32> {
    let mut room: Vec<u64> =
        facts.cluster.devices.iter().map(|device| device.memory_free_bytes).collect();
    let mut homes = BTreeMap::new();
    for table in &facts.tables {
        let bytes = facts.graph.storage_bytes(*table);
        let home = facts.resident[table.0 as usize].first().copied().or_else(|| {
            let roomiest = devices.iter().copied().max_by_key(|device| room[*device as usize])?;
            let left = &mut room[roomiest as usize];
            *left = left.saturating_sub(bytes);
            Some(roomiest)
        });
        homes.extend(home.map(|home| (*table, home)));
    }
    homes
}

/// Longest processing time first: each branch on the device that would be done with it first.
fn branch_homes(facts: &Facts<'_>, devices: &[u32]) -> Vec<u32> {
    let mut work = vec![vec![0u64; devices.len()]; facts.branches as usize];
    for node in facts.graph.nodes() {
        if let Some(branch) = facts.branch[node.0 as usize] {
            for (slot, device) in devices.iter().enumerate() {
                work[branch as usize][slot] += facts.node_ns(node, *device);
            }
        }
    }
    let mut load = vec![0u64; devices.len()];
    let mut homes = Vec::with_capacity(work.len());
    for costs in work {
        let slot = (0..devices.len()).min_by_key(|slot| (load[*slot] + costs[*slot], *slot));
        let slot = slot.unwrap_or(0);
        load[slot] += costs[slot];
        homes.push(devices[slot]);
    }
    homes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The least time in all: for one execution after another.
    Sum,
    /// The least time of the slowest stage: for a pipeline.
    Longest,
}

/// Cuts the first pass of the program into one run of nodes for each device, by dynamic
/// programming over the places where few bytes cross. None where the weights fit nowhere so.
fn cut(
    facts: &Facts<'_>,
    devices: &[u32],
    goal: Cut,
    apart: &BTreeMap<StorageId, u32>,
    crossing: &[u64],
) -> Option<Vec<usize>> {
    let end = first_pass(facts);
    let places = cut_places(facts, crossing, end, devices[0]);
    let mut time: Vec<Vec<u64>> = vec![vec![0; places.len()]; devices.len()];
    let mut held: Vec<Vec<u64>> = vec![vec![0; places.len()]; devices.len()];
    let mut seen = vec![false; facts.graph.storages().len()];
    let (mut at, mut sums) = (0, vec![0u64; devices.len()]);
    let mut bytes = vec![0u64; devices.len()];
    for (place, position) in places.iter().enumerate() {
        while at < *position {
            let node = NodeId(at as u32);
            for (slot, device) in devices.iter().enumerate() {
                sums[slot] += facts.node_ns(node, *device);
            }
            for input in facts.graph.inputs(node) {
                let storage = facts.graph.storage(input.value);
                let new = !std::mem::replace(&mut seen[storage.0 as usize], true);
                if !new || facts.made_here(input.value) || apart.contains_key(&storage) {
                    continue;
                }
                for (slot, device) in devices.iter().enumerate() {
                    if !facts.resident[storage.0 as usize].contains(device) {
                        bytes[slot] =
                            bytes[slot].saturating_add(facts.graph.storage_bytes(storage));
                    }
                }
            }
            at += 1;
        }
        for slot in 0..devices.len() {
            time[slot][place] = sums[slot];
            held[slot][place] = bytes[slot];
        }
    }
    let activations = crossing[..=end].iter().copied().max().unwrap_or(0);
    let tables_on = |device: u32| {
        let here = apart.iter().filter(|(table, home)| {
            **home == device && !facts.resident[table.0 as usize].contains(&device)
        });
        here.fold(0u64, |sum, (table, _)| sum.saturating_add(facts.graph.storage_bytes(*table)))
    };
    let room: Vec<u64> = devices
        .iter()
        .map(|device| {
            let free = facts.cluster.devices[*device as usize].memory_free_bytes;
            free.saturating_sub(tables_on(*device)).saturating_sub(activations)
        })
        .collect();
    // best[place]: the cost of the stages so far, ending there, and where the last one began.
    let mut best: Vec<Option<u64>> = (0..places.len()).map(|p| (p == 0).then_some(0)).collect();
    let mut from: Vec<Vec<usize>> = Vec::new();
    for slot in 0..devices.len() {
        let mut next: Vec<Option<u64>> = vec![None; places.len()];
        let mut began = vec![0; places.len()];
        let links: Vec<Option<u64>> = places
            .iter()
            .map(|place| match slot {
                0 => Some(0),
                _ => send_ns(facts, devices[slot - 1], devices[slot], crossing[*place]),
            })
            .collect();
        for to in 1..places.len() {
            for start in 0..to {
                let Some(before) = best[start] else { continue };
                if held[slot][to] - held[slot][start] > room[slot] {
                    continue;
                }
                let Some(link) = links[start] else { continue };
                let stage = time[slot][to] - time[slot][start];
                let cost = match goal {
                    Cut::Sum => before + link + stage,
                    Cut::Longest => before.max(link).max(stage),
                };
                if next[to].is_none_or(|known| cost < known) {
                    next[to] = Some(cost);
                    began[to] = start;
                }
            }
        }
        best = next;
        from.push(began);
    }
    let mut place = places.len() - 1;
    best[place]?;
    let mut cuts = Vec::new();
    for began in from.iter().rev() {
        cuts.push(places[place]);
        place = began[place];
    }
    cuts.reverse();
    Some(cuts)
}

/// How long bytes are on their way; None where no link leads there.
fn send_ns(facts: &Facts<'_>, from: u32, to: u32, bytes: u64) -> Option<u64> {
    let way = facts.cluster.route(from, to).unwrap_or_default();
    let hop = |link: &Link| duration_ns(bytes, link.bytes_per_s) + u64::from(link.rtt_us) * 500;
    (!way.is_empty()).then(|| way.iter().map(hop).sum())
}

/// Bytes that nodes before each place make for nodes from there on.
fn crossing_bytes(facts: &Facts<'_>) -> Vec<u64> {
    let graph = facts.graph;
    let mut change = vec![0i128; graph.len() + 2];
    for value in graph.values().filter(|value| facts.made_here(*value)) {
        let made = graph.producer(value).0 as usize;
        let bytes = i128::from(graph.storage_bytes(graph.storage(value)));
        if let Some(last) = graph.consumers(value).last().filter(|last| last.0 as usize > made) {
            change[made + 1] += bytes;
            change[last.0 as usize + 1] -= bytes;
        }
    }
    let mut sum = 0i128;
    change
        .iter()
        .take(graph.len() + 1)
        .map(|change| {
            sum += change;
            u64::try_from(sum).unwrap_or(u64::MAX)
        })
        .collect()
}

/// Where the first pass over the weights ends: after the first segment, where later ones use the
/// same weights again.
fn first_pass(facts: &Facts<'_>) -> usize {
    let graph = facts.graph;
    let end = graph.nodes().position(|node| graph.segment(node) > 0).unwrap_or(graph.len());
    let (mut again, mut new) = (0u64, 0u64);
    for storage in graph.storages().filter(|storage| facts.is_constant(*storage)) {
        let users = graph.consumers(graph.values_of(storage)[0]);
        let first = users.first().is_some_and(|user| (user.0 as usize) < end);
        let later = users.last().is_some_and(|user| user.0 as usize >= end);
        let bytes = graph.storage_bytes(storage);
        again = again.saturating_add(if first && later { bytes } else { 0 });
        new = new.saturating_add(if !first && later { bytes } else { 0 });
    }
    if again > new { end } else { graph.len() }
}

/// Of each slice of the work, the place where the fewest bytes cross.
fn cut_places(facts: &Facts<'_>, crossing: &[u64], end: usize, device: u32) -> Vec<usize> {
    let total: u64 = (0..end).map(|node| facts.node_ns(NodeId(node as u32), device)).sum();
    let slice = (total / CUTS_MAX as u64).max(1);
    let mut places = vec![0];
    let (mut sum, mut best) = (0u64, None::<usize>);
    for at in 1..end {
        sum += facts.node_ns(NodeId(at as u32 - 1), device);
        if best.is_none_or(|known| crossing[at] < crossing[known]) {
            best = Some(at);
        }
        if sum >= slice && places.len() < CUTS_MAX {
            places.extend(best.take());
            sum = 0;
        }
    }
    if end > 0 {
        places.push(end);
    }
    places
}

/// How cuts of the first pass become a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// By position in the program.
    Positions,
    /// By the homes that weights get: later passes and tied weights follow them.
    Weights,
}

fn staged(
    facts: &Facts<'_>,
    devices: &[u32],
    cuts: &[usize],
    tables: &BTreeMap<StorageId, u32>,
    reading: Reading,
    why: &str,
) -> Placement {
    let stage = |node: NodeId| cuts.iter().position(|end| (node.0 as usize) < *end);
    let mut homes: BTreeMap<StorageId, u32> = BTreeMap::new();
    for node in facts.graph.nodes().filter(|node| facts.is_op[node.0 as usize]) {
        let Some(stage) = stage(node) else { break };
        for input in facts.graph.inputs(node).filter(|input| !facts.made_here(input.value)) {
            homes.entry(facts.graph.storage(input.value)).or_insert(devices[stage]);
        }
    }
    homes.extend(tables);
    let pick = |node: NodeId, device: &[Option<u32>]| match (reading, stage(node)) {
        (Reading::Positions, Some(stage)) => Some(devices[stage]),
        _ => facts
            .main_source(node, |storage| homes.get(&storage).copied())
            .or_else(|| heaviest_input(facts, node, device))
            .or(Some(devices[0])),
    };
    place(facts, pick, tables, why.to_owned())
}
