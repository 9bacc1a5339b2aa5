//! From candidates to a plan: what to copy, compute again, send away, and in which order to send.

use genie_plugin::cost::duration_ns;
use genie_plugin::prelude::*;
use genie_plugin::{Directive, ValueId};

use crate::Goal;
use crate::estimate::{Crossings, Draft, Estimate};
use crate::facts::Facts;
use crate::place::{Placement, candidates};

/// Weights up to this size are copied wherever they are used, even where others do not fit.
const SMALL_BYTES: u64 = 1 << 20;
/// How much slower a spread plan is taken to be than estimated: transfers are less certain than
/// computing.
const SPREAD_DOUBT: f64 = 1.1;
/// Directives of one plan.
const DIRECTIVES_MAX: usize = 8_192;

/// The best legal plan for a goal.
pub fn decide(facts: &Facts<'_>, goal: Goal) -> Result<Plan, String> {
    let candidates = candidates(facts);
    let mut drafts: Vec<Draft> =
        candidates.iter().filter_map(|placement| drafted(facts, placement)).collect();
    if drafts.is_empty() {
        drafts = candidates.iter().filter_map(|placement| without_idle(facts, placement)).collect();
    }
    if drafts.is_empty() {
        drafts = streamed(facts, &candidates);
    }
    let drafts: Vec<(Draft, Estimate)> = drafts
        .into_iter()
        .map(|draft| compute_again(facts, draft))
        .map(|draft| {
            let estimate = draft.estimate(facts);
            (draft, estimate)
        })
        .collect();
    let (draft, estimate) = best(drafts, goal)
        .ok_or("no placement fits into the memory of these devices; free some or add a device")?;
    Ok(finish(facts, &draft, &estimate, goal))
}

/// A placement with the copies that it needs, if its memory suffices.
fn drafted(facts: &Facts<'_>, placement: &Placement) -> Option<Draft> {
    let mut draft = Draft::new(facts, placement.device_of.clone(), None);
    draft.stages = placement.stages;
    draft.why = placement.why.clone();
    let crossings = draft.crossings(facts);
    let shared: Vec<(StorageId, u32)> = crossings
        .keys()
        .map(|(value, device)| (facts.graph.storage(*value), *device))
        .filter(|(storage, _)| {
            let source = facts.graph.values_of(*storage).iter().all(|v| !facts.made_here(*v));
            source && facts.is_constant(*storage)
        })
        .collect();
    let small = |storage: &StorageId| facts.graph.storage_bytes(*storage) <= SMALL_BYTES;
    for only_small in [false, true] {
        let wanted = shared.iter().filter(|(storage, _)| !only_small || small(storage));
        draft.copies = wanted.copied().collect();
        if draft.fits(facts) {
            return Some(draft);
        }
    }
    draft.copies.clear();
    draft.fits(facts).then_some(draft)
}

/// Sends away what the graph does not use on a device, largest first, until the rest fits.
fn without_idle(facts: &Facts<'_>, placement: &Placement) -> Option<Draft> {
    let graph = facts.graph;
    let mut draft = Draft::new(facts, placement.device_of.clone(), None);
    draft.why = format!("{}, idle content sent away", placement.why);
    let mut idle: Vec<(u64, StorageId, u32)> = Vec::new();
    for storage in graph.storages() {
        for device in &facts.resident[storage.0 as usize] {
            let touches = |value: &ValueId| {
                draft.device(graph.producer(*value)) == *device
                    || graph.consumers(*value).iter().any(|user| draft.device(*user) == *device)
            };
            let values = graph.values_of(storage);
            let unused = values.iter().all(|value| graph.consumers(value.to_owned()).is_empty())
                && values.len() <= 1;
            if unused || !values.iter().any(touches) {
                idle.push((graph.storage_bytes(storage), storage, *device));
            }
        }
    }
    idle.sort_unstable_by_key(|(bytes, storage, device)| {
        (std::cmp::Reverse(*bytes), *storage, *device)
    });
    while let Some((device, _)) = draft.lacking(facts) {
        let next = idle.iter().position(|(bytes, _, on)| *on == device && *bytes > 0)?;
        let (_, storage, device) = idle.remove(next);
        draft.spilled.insert((storage, device));
    }
    draft.fits(facts).then_some(draft)
}

/// The last resort: weights pass through the device, a part of the program at a time.
fn streamed(facts: &Facts<'_>, candidates: &[Placement]) -> Vec<Draft> {
    let graph = facts.graph;
    let mut drafts = Vec::new();
    for placement in candidates {
        for share in [2, 4, 8, 16] {
            let free = placement
                .device_of
                .iter()
                .map(|device| facts.cluster.devices[*device as usize].memory_free_bytes)
                .min();
            let bytes_max = free.unwrap_or(0) / share;
            let mut draft = Draft::new(facts, placement.device_of.clone(), Some(bytes_max));
            draft.why = format!("{}, weights pass through", placement.why);
            for storage in graph.storages().filter(|storage| facts.is_constant(*storage)) {
                let home = draft.device(graph.producer(graph.values_of(storage)[0]));
                if !facts.resident[storage.0 as usize].contains(&home) {
                    draft.spilled.insert((storage, home));
                }
            }
            if draft.fits(facts) {
                drafts.push(draft);
                break;
            }
        }
    }
    drafts
}

/// Recompute or fetch: what is quicker computed on the spot than sent is computed there.
fn compute_again(facts: &Facts<'_>, draft: Draft) -> Draft {
    let graph = facts.graph;
    let mut with = draft.clone();
    for ((value, device), crossing) in &draft.crossings(facts) {
        let storage = graph.storage(*value);
        let producer = graph.producer(*value);
        let only = graph.values_of(storage).len() == 1;
        let plain = facts.is_op[producer.0 as usize] && !facts.random[producer.0 as usize];
        let fresh = graph.outputs(producer).all(|output| {
            graph.values_of(graph.storage(output.value)).first() == Some(&output.value)
        });
        let operands = graph.inputs(producer).all(|input| {
            let storage = graph.storage(input.value);
            let last = graph.values_of(storage).last() == Some(&input.value);
            let source = !facts.made_here(input.value);
            last && graph.producer(input.value) < producer
                && !draft.spilled.contains(&(storage, *device))
                && (draft.device(graph.producer(input.value)) == *device
                    || (source && facts.resident[storage.0 as usize].contains(device))
                    || draft.copies.contains(&(storage, *device)))
        });
        let way = facts.cluster.route(draft.device(producer), *device).unwrap_or_default();
        let sent: u64 = way
            .iter()
            .map(|hop| duration_ns(crossing.bytes, hop.bytes_per_s) + u64::from(hop.rtt_us) * 500)
            .sum();
        if only && plain && fresh && operands && facts.node_ns(producer, *device) < sent {
            with.again.insert((storage, *device));
        }
    }
    if !with.again.is_empty() && with.fits(facts) { with } else { draft }
}

fn best(drafts: Vec<(Draft, Estimate)>, goal: Goal) -> Option<(Draft, Estimate)> {
    let score = |draft: &Draft, e: &Estimate| match goal {
        Goal::Latency => {
            let spread = draft.device_of.iter().any(|device| *device != draft.device_of[0]);
            let doubt = if spread { SPREAD_DOUBT } else { 1.0 };
            (e.latency_ns as f64 * doubt, e.bytes as f64)
        }
        Goal::Traffic => (e.bytes as f64, e.latency_ns as f64),
        // The time that an execution takes of the program and of the links, and how soon the next
        // one can follow.
        Goal::Balanced => {
            let taken = e.latency_ns as f64 + e.links_ns as f64;
            (taken * e.interval_ns as f64, e.bytes as f64)
        }
    };
    drafts.into_iter().min_by(|(a_draft, a), (b_draft, b)| {
        let (a, b) = (score(a_draft, a), score(b_draft, b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    })
}

fn finish(facts: &Facts<'_>, draft: &Draft, estimate: &Estimate, goal: Goal) -> Plan {
    let mut regions = draft.regions.clone();
    if draft.stages && !facts.carries_state() {
        regions.iter_mut().for_each(|region| region.pipeline = 1);
    }
    let crossings = draft.crossings(facts);
    let order = transfer_order(facts, draft, &crossings);
    let why = format!(
        "{}: {}; about {} us and {} bytes an execution",
        goal.name(),
        draft.why,
        estimate.latency_ns / 1_000,
        estimate.bytes
    );
    Plan { regions, directives: directives(facts, draft), transfer_order: order, why }
}

fn directives(facts: &Facts<'_>, draft: &Draft) -> Vec<Directive> {
    let graph = facts.graph;
    let directive = |kind: &str, storage: StorageId, device: u32, why: &str| Directive {
        kind: kind.to_owned(),
        storage: storage.0,
        device,
        why: why.to_owned(),
    };
    let mut out = Vec::new();
    for (storage, device) in &draft.spilled {
        out.push(directive("spill", *storage, *device, "memory is short"));
    }
    for (storage, device) in &draft.again {
        out.push(directive("recompute", *storage, *device, "quicker than sending it"));
    }
    for (storage, device) in &draft.copies {
        out.push(directive("replicate", *storage, *device, "used on several devices"));
    }
    for storage in &facts.kv {
        let last = graph.values_of(*storage).last().copied();
        let Some(device) = last.map(|value| draft.device(graph.producer(value))) else { continue };
        if !draft.spilled.contains(&(*storage, device)) {
            out.push(directive("keep", *storage, device, "the cache stays with decode"));
        }
    }
    let mut weights: Vec<(u64, StorageId, u32)> = graph
        .storages()
        .filter(|storage| graph.origin(*storage) == Origin::Weight)
        .filter_map(|storage| {
            let value = graph.values_of(storage).last()?;
            let first = graph.values_of(storage).first()?;
            let used = !graph.consumers(*first).is_empty();
            let device = draft.device(graph.producer(*value));
            let stays = used && !draft.spilled.contains(&(storage, device));
            stays.then_some((graph.storage_bytes(storage), storage, device))
        })
        .collect();
    weights.sort_unstable_by_key(|(bytes, storage, _)| (std::cmp::Reverse(*bytes), *storage));
    let room = DIRECTIVES_MAX.saturating_sub(out.len());
    for (_, storage, device) in weights.into_iter().take(room) {
        out.push(directive("pin", storage, device, "weights are used again"));
    }
    out
}

/// The longest way from each transfer to the end decides: the longest first.
fn transfer_order(facts: &Facts<'_>, draft: &Draft, crossings: &Crossings) -> Vec<u32> {
    let graph = facts.graph;
    let send = |from: u32, to: u32, bytes: u64| -> u64 {
        let hops = facts.cluster.route(from, to).unwrap_or_default();
        hops.iter()
            .map(|hop| duration_ns(bytes, hop.bytes_per_s) + u64::from(hop.rtt_us) * 500)
            .sum()
    };
    let mut tail = vec![0u64; graph.len()];
    for node in graph.nodes().rev() {
        let mut longest = 0;
        for output in graph.outputs(node) {
            for user in graph.consumers(output.value).iter().filter(|user| **user > node) {
                let way = match crossings.get(&(output.value, draft.device(*user))) {
                    Some(crossing) => send(draft.device(node), draft.device(*user), crossing.bytes),
                    None => 0,
                };
                longest = longest.max(way.saturating_add(tail[user.0 as usize]));
            }
        }
        tail[node.0 as usize] = longest.saturating_add(facts.node_ns(node, draft.device(node)));
    }
    let mut values: Vec<(u64, ValueId)> = Vec::new();
    for (value, device) in crossings.keys() {
        let users = graph.consumers(*value).iter().filter(|user| draft.device(**user) == *device);
        let rest = users.map(|user| tail[user.0 as usize]).max().unwrap_or(0);
        match values.iter_mut().rev().take(1).find(|(_, known)| known == value) {
            Some((longest, _)) => *longest = rest.max(*longest),
            None => values.push((rest, *value)),
        }
    }
    values.sort_by_key(|(rest, value)| (std::cmp::Reverse(*rest), *value));
    values.into_iter().map(|(_, value)| value.0).collect()
}
