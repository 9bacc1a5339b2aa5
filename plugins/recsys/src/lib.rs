//! Recognizes recommenders: embedding tables, feature interaction, dense towers.
//!
//! It follows rows that are looked up in tables to where they meet. Words of a text are looked up
//! too, but they are added to positions and go through layers one by one; the fields of a
//! recommender are put side by side, multiplied with each other, or end in two towers. Names of
//! modules and classes are never looked at. Start reading at [`Recsys`].

mod lookups;
mod phases;

use genie_plugin::prelude::*;
use genie_plugin::shapes::attention::attentions;
use genie_plugin::shapes::flow::Flow;
use genie_plugin::shapes::modality::{Modalities, Modality};

use lookups::{Lookup, lookups};
use phases::{Evidence, Phase, follow};

/// Below this nothing is claimed.
const CLAIM_MIN: f32 = 0.3;
/// Tables with fewer rows are categories (weekdays, kinds), not users and items.
const ROWS_FEW: i64 = 64;

/// So many examples at once are users rather than texts.
const BATCH_MANY: i64 = 8;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Recsys;

impl Plugin for Recsys {
    fn info() -> Info {
        Info {
            name: "recsys".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Recognizes recommenders: embedding tables, feature interaction, dense towers".into(),
            provides: vec![],
        }
    }
}

impl Recognizer for Recsys {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        let flow = Flow::of(graph);
        let nodes = first_forward(graph, &flow);
        let found = lookups(graph, &nodes);
        if found.list.is_empty() {
            return Ok(notes);
        }
        let mut reading = follow(graph, &nodes, &found.list);
        // A program that goes on from its own answers writes a text.
        reading.evidence.whole_table &= !found.own_choice;
        reading.evidence.attention |= reading.evidence.whole_table && !attentions(graph, &flow).is_empty();
        let mut confidence = confidence(&found.list, reading.evidence);
        if confidence >= CLAIM_MIN && sees_or_hears(graph, &flow) {
            confidence *= 0.4;
        }
        if confidence < CLAIM_MIN {
            return Ok(notes);
        }
        notes.workload("recsys", confidence);
        describe_tables(graph, &found.list, confidence, &mut notes);
        if !flow.training {
            for (pattern, word, phase) in [
                ("recsys.lookup", "recsys.embedding_lookup", Phase::Lookup),
                ("recsys.tower", "recsys.dense_mlp", Phase::Dense),
                ("recsys.interaction", "recsys.interaction", Phase::Interaction),
            ] {
                let of = nodes.iter().copied().filter(|node| reading.phases[node.0 as usize] == Some(phase));
                notes.matched(pattern, word, "", confidence, of);
            }
        }
        Ok(notes)
    }
}

/// The operators of inference, or of the first forward pass of training: the next ones are the
/// same again.
fn first_forward(graph: &Graph, flow: &Flow) -> Vec<NodeId> {
    graph
        .nodes()
        .take_while(|node| graph.stage(*node) != Stage::Backward)
        .filter(|node| flow.is_forward(*node))
        .collect()
}

fn confidence(found: &[Lookup], evidence: Evidence) -> f32 {
    let bags = found.iter().filter(|lookup| lookup.bag).count();
    let one_each = found.iter().filter(|lookup| lookup.bag || lookup.each == 1).count();
    let narrow = found.iter().any(|lookup| lookup.width == 1 && lookup.rows > 1);
    let mut signs: Vec<f32> = Vec::new();
    match evidence.joined {
        3.. => signs.push(0.92),
        2 => signs.push(0.8),
        _ => {}
    }
    match bags {
        2.. => signs.push(0.88),
        1 => signs.push(0.35),
        _ => {}
    }
    if evidence.multiplied {
        signs.push(0.82);
    }
    if evidence.squared {
        signs.push(0.88);
    }
    if evidence.flattened {
        signs.push(0.8);
    }
    if evidence.towers {
        signs.push(0.85);
    }
    if evidence.candidates {
        signs.push(0.88);
    }
    if evidence.whole_table {
        // Transformers over words may score the next one just so, though seldom for many at once.
        let many = found.iter().any(|lookup| lookup.batch >= BATCH_MANY);
        signs.push(match (evidence.attention, many) {
            (false, true) => 0.82,
            (false, false) => 0.7,
            (true, true) => 0.66,
            (true, false) => 0.45,
        });
    }
    if narrow {
        signs.push(if one_each > 1 { 0.7 } else { 0.6 });
    }
    let best = signs.iter().copied().fold(0.0, f32::max);
    let more = signs.len().saturating_sub(1) as f32 * 0.02;
    let small = found.iter().all(|lookup| lookup.rows < ROWS_FEW);
    let sure = (best + more).min(0.96);
    if small { (sure - 0.35).max(0.0) } else { sure }
}

/// Whether pictures or sound come in: then tables are words or classes of these.
fn sees_or_hears(graph: &Graph, flow: &Flow) -> bool {
    let modalities = Modalities::of(graph, flow);
    let other = Modality::IMAGE.with(Modality::AUDIO);
    modalities.entries.iter().any(|(_, entered)| entered.has(other))
}

fn describe_tables(graph: &Graph, found: &[Lookup], confidence: f32, notes: &mut Annotations) {
    let mut tables: Vec<StorageId> = found.iter().map(|lookup| lookup.table).collect();
    tables.sort_unstable_by_key(|table| table.0);
    tables.dedup();
    let bytes = tables.iter().map(|table| graph.storage_bytes(*table)).fold(0u64, u64::saturating_add);
    notes.attribute("tables", tables.len().to_string());
    notes.attribute("table_bytes", bytes.to_string());
    for table in tables {
        notes.residency(table, "embedding_table", confidence);
    }
}

genie_plugin::recognizer!(Recsys);
