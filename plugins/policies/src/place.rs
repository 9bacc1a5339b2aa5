//! Candidate placements: one device, along the content, split along the program, split by branch,
//! by phase, tables apart.

use std::collections::BTreeMap;

use genie_plugin::prelude::*;

use crate::facts::{Facts, Half, bytes_of, ns};

/// Devices that are considered, the strongest first.
const DEVICES_MAX: usize = 8;
/// Places in the program where it may be cut.
const CUTS_MAX: usize = 160;

/// A device for each node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    pub device_of: Vec<u32>,
    pub stages: bool,
    pub why: String,
}

/// All candidates.
pub fn candidates(facts: &Facts<'_>) -> Vec<Placement> {
    let devices = strongest(facts);
    let mut out: Vec<Placement> = Vec::new();
    let mut add = |placement: Placement| {
        if !out.iter().any(|known| known.device_of == placement.device_of) {
            out.push(placement);
        }
    };
    let tables = table_homes(facts, &devices);
    for device in &devices {
        let name = &facts.cluster.devices[*device as usize].name;
        add(place(facts, |_, _| Some(*device), &BTreeMap::new(), format!("all on {name}")));
        if !tables.is_empty() {
            let why = format!("tables where memory is, the rest on {name}");
            add(place(facts, |_, _| Some(*device), &tables, why));
        }
    }
    if devices.len() < 2 {
        return out;
    }
    let content = resident_homes(facts);
    if !content.is_empty() {
        add(follow(facts, &content, devices[0], "where the content is".to_owned()));
    }
    for stages in 2..=devices.len() {
        for goal in [Cut::Sum, Cut::Longest] {
            for apart in [false, true] {
                if apart && tables.is_empty() {
                    continue;
                }
                let set_apart = if apart { tables.clone() } else { BTreeMap::new() };
                let Some(cuts) = cut(facts, &devices[..stages], goal, &set_apart) else { continue };
                let why = format!("{stages} stages, cut where the fewest bytes cross");
                for mut placement in staged(facts, &devices[..stages], &cuts, &set_apart, &why) {
                    placement.stages = goal == Cut::Longest;
                    add(placement);
                }
            }
        }
    }
    if facts.branches >= 2 {
        for used in 2..=devices.len().min(facts.branches as usize) {
            let why = format!("{} branches on {used} devices", facts.branches);
            let homes = branch_homes(facts, &devices[..used]);
            let pick = |node: NodeId, _: &[Option<u32>]| {
                facts.branch[node.0 as usize].map(|branch| homes[branch as usize])
            };
            add(place(facts, pick, &BTreeMap::new(), why.clone()));
            if !tables.is_empty() {
                add(place(facts, pick, &tables, format!("{why}, tables where memory is")));
            }
        }
    }
    let has = |half| facts.half.contains(&Some(half));
    if has(Half::Prefill) && has(Half::Decode) {
        for prefill in &devices {
            for decode in devices.iter().filter(|decode| *decode != prefill) {
                let pick = |node: NodeId, _: &[Option<u32>]| match facts.half[node.0 as usize] {
                    Some(Half::Prefill) => Some(*prefill),
                    _ => Some(*decode),
                };
                let why = "prefill and decode apart; the cache moves once".to_owned();
                add(place(facts, pick, &BTreeMap::new(), why));
            }
        }
    }
    out
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
        Some((bytes_of(&input), made_on))
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
) -> Option<Vec<usize>> {
    let crossing = crossing_bytes(facts);
    let end = first_pass(facts);
    let places = cut_places(facts, &crossing, end, devices[0]);
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
        for to in 1..places.len() {
            for start in 0..to {
                let Some(before) = best[start] else { continue };
                if held[slot][to] - held[slot][start] > room[slot] {
                    continue;
                }
                let link = match slot {
                    0 => 0,
                    _ => {
                        let way = facts.way(devices[slot - 1], devices[slot]);
                        if way.is_empty() {
                            continue;
                        }
                        let bytes = crossing[places[start]];
                        way.iter()
                            .map(|hop| ns(bytes, hop.bytes_per_s) + u64::from(hop.rtt_us) * 500)
                            .sum()
                    }
                };
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

/// Two readings of cuts: by position in the program, and by the homes that weights get.
fn staged(
    facts: &Facts<'_>,
    devices: &[u32],
    cuts: &[usize],
    tables: &BTreeMap<StorageId, u32>,
    why: &str,
) -> Vec<Placement> {
    let stage = |node: NodeId| cuts.iter().position(|end| (node.0 as usize) < *end);
    let mut homes: BTreeMap<StorageId, u32> = BTreeMap::new();
    for node in facts.graph.nodes().filter(|node| facts.is_op[node.0 as usize]) {
        let Some(stage) = stage(node) else { break };
        for input in facts.graph.inputs(node).filter(|input| !facts.made_here(input.value)) {
            homes.entry(facts.graph.storage(input.value)).or_insert(devices[stage]);
        }
    }
    homes.extend(tables);
    let later = |node: NodeId, device: &[Option<u32>]| {
        facts
            .main_source(node, |storage| homes.get(&storage).copied())
            .or_else(|| heaviest_input(facts, node, device))
            .or(Some(devices[0]))
    };
    let by_position = |node: NodeId, device: &[Option<u32>]| match stage(node) {
        Some(stage) => Some(devices[stage]),
        None => later(node, device),
    };
    vec![
        place(facts, by_position, tables, why.to_owned()),
        place(facts, later, tables, why.to_owned()),
    ]
}
