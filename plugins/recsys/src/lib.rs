//! Recognizes recommenders: embedding tables, feature interaction, dense towers.
//!
//! It follows rows that are looked up in tables to where they meet. Words of a text are looked up
//! too, but they are added to positions and go through layers one by one; the fields of a
//! recommender are put side by side, multiplied with each other, or end in two towers. Names of
//! modules and classes are never looked at. Start reading at [`Recsys`].

mod lookups;
mod phases;

use genie_plugin::evidence::{
    AGREES, BESIDE_A_SIGN, BESIDE_A_SIGNATURE, CLAIM_MIN, FAIR, GOOD, LIKELY, PLAUSIBLE, STRONG,
    UNMISTAKABLE, WEAK,
};
use genie_plugin::prelude::*;
use genie_plugin::shapes::attention::{Causality, attentions};
use genie_plugin::shapes::flow::Flow;
use genie_plugin::shapes::modality::{Modalities, Modality};

use lookups::{Lookup, lookups};
use phases::{Evidence, Phase, follow};

/// Tables with fewer rows are categories (weekdays, kinds), not users and items.
const ROWS_FEW: i64 = 64;

/// So many examples at once are users rather than texts.
const BATCH_MANY: i64 = 8;

/// The recognizer.
#[derive(Debug, Default)]
pub struct Recsys;

impl Plugin for Recsys {
    fn info() -> Info {
        let summary =
            "Recognizes recommenders: embedding tables, feature interaction, dense towers";
        Info::new("recsys", env!("CARGO_PKG_VERSION"), summary, &[])
    }
}

impl Recognizer for Recsys {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        let flow = Flow::of(graph);
        let nodes: Vec<NodeId> = graph.nodes().filter(|node| flow.is_forward(*node)).collect();
        let found = lookups(graph, &nodes);
        if found.list.is_empty() {
            return Ok(notes);
        }
        let mut reading = follow(graph, &nodes, &found.list);
        // A program that goes on from its own answers writes a text.
        reading.evidence.whole_table &= !found.own_choice;
        if reading.evidence.whole_table {
            let attentions = attentions(graph, &flow);
            reading.evidence.attention |= !attentions.is_empty();
            reading.evidence.causal =
                attentions.iter().any(|found| found.causality == Causality::Causal)
                    || nodes.iter().any(|node| matches!(graph.name(*node), "triu" | "tril"));
        }
        let mut confidence = confidence(&found.list, reading.evidence);
        if confidence >= CLAIM_MIN && sees_or_hears(graph, &flow) {
            confidence *= BESIDE_A_SIGNATURE;
        }
        if sums_by_edges(graph, &nodes) {
            confidence *= BESIDE_A_SIGN;
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
                let of = nodes
                    .iter()
                    .copied()
                    .filter(|node| reading.phases[node.0 as usize] == Some(phase));
                notes.matched(pattern, word, "", confidence, of);
            }
        }
        Ok(notes)
    }
}

fn confidence(found: &[Lookup], evidence: Evidence) -> f32 {
    let bags = found.iter().filter(|lookup| lookup.bag).count();
    let one_each = found.iter().filter(|lookup| lookup.bag || lookup.each == 1).count();
    let narrow = found.iter().any(|lookup| lookup.width == 1 && lookup.rows > 1);
    let mut signs: Vec<f32> = Vec::new();
    match evidence.joined {
        3.. => signs.push(STRONG),
        2 => signs.push(LIKELY),
        _ => {}
    }
    match bags {
        2.. => signs.push(STRONG),
        1 => signs.push(CLAIM_MIN),
        _ => {}
    }
    if evidence.multiplied {
        signs.push(LIKELY);
    }
    if evidence.squared {
        signs.push(STRONG);
    }
    if evidence.flattened {
        signs.push(LIKELY);
    }
    if evidence.towers {
        signs.push(GOOD);
    }
    if evidence.candidates {
        signs.push(STRONG);
    }
    if evidence.whole_table {
        // Transformers over words may score the next one just so, though seldom for many at once.
        let many = found.iter().any(|lookup| lookup.batch >= BATCH_MANY);
        signs.push(match (evidence.attention, evidence.causal, many) {
            (false, _, true) => GOOD,
            (true, false, true) => GOOD,
            (false, _, false) => FAIR,
            (true, true, true) => STRONG,
            (true, _, false) => WEAK,
        });
    }
    if narrow {
        signs.push(if one_each > 1 { FAIR } else { PLAUSIBLE });
    }
    let best = signs.iter().copied().fold(0.0, f32::max);
    let more = signs.len().saturating_sub(1) as f32 * AGREES;
    let small = found.iter().all(|lookup| lookup.rows < ROWS_FEW);
    let sure = (best + more).min(UNMISTAKABLE);
    if small { sure * BESIDE_A_SIGN } else { sure }
}

/// Whether rows are summed into rows by lists of integers: then what is gathered are nodes of a
/// graph.
fn sums_by_edges(graph: &Graph, nodes: &[NodeId]) -> bool {
    nodes.iter().any(|node| {
        matches!(graph.name(*node), "scatter_add" | "scatter_reduce" | "index_add" | "index_reduce")
            && graph.output(*node, 0).is_some_and(|out| out.dtype.is_floating() && out.dims() > 1)
    })
}

/// Whether pictures or sound come in: then tables are words or classes of these.
fn sees_or_hears(graph: &Graph, flow: &Flow) -> bool {
    let modalities = Modalities::of(graph, flow);
    let other = Modality::IMAGE.with(Modality::AUDIO).with(Modality::LATENT);
    modalities.entries.iter().any(|(_, entered)| entered.has(other))
}

fn describe_tables(graph: &Graph, found: &[Lookup], confidence: f32, notes: &mut Annotations) {
    let mut tables: Vec<StorageId> = found.iter().map(|lookup| lookup.table).collect();
    tables.sort_unstable_by_key(|table| table.0);
    tables.dedup();
    let bytes =
        tables.iter().map(|table| graph.storage_bytes(*table)).fold(0u64, u64::saturating_add);
    notes.attribute("tables", tables.len().to_string());
    notes.attribute("table_bytes", bytes.to_string());
    for table in tables {
        notes.residency(table, "embedding_table", confidence);
    }
}

genie_plugin::recognizer!(Recsys);

#[cfg(test)]
mod tests {
    use super::*;
    use genie_plugin::builder::{Given, GraphBuilder, Handle};
    use genie_plugin::harness;

    const BATCH: i64 = 16;

    /// A lookup of `each` rows for each example.
    fn lookup(g: &mut GraphBuilder, table: Handle, width: i64, each: i64) -> Handle {
        let sizes: &[i64] = if each == 1 { &[BATCH] } else { &[BATCH, each] };
        let ids = g.input_of(sizes, DType::INT64);
        let out = [sizes, &[width]].concat();
        g.op("aten::embedding", &[table, ids], &out)
    }

    fn linear(g: &mut GraphBuilder, x: Handle, rows: i64, from: i64, to: i64) -> Handle {
        let (w, b) = (g.weight(&[from, to]), g.weight(&[to]));
        g.op("aten::addmm", &[b, x, w], &[rows, to])
    }

    fn claimed(graph: &Graph) -> f32 {
        let notes = Recsys.recognize(graph).unwrap();
        notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
    }

    #[test]
    fn fields_side_by_side_are_tables_and_a_tower() {
        let mut g = GraphBuilder::new();
        let rows: Vec<Handle> = (0..3)
            .map(|_| {
                let table = g.weight(&[500, 8]);
                lookup(&mut g, table, 8, 1)
            })
            .collect();
        let flat = g.op("aten::cat", &rows, &[BATCH, 24]);
        let hidden = linear(&mut g, flat, BATCH, 24, 32);
        let hidden = g.op("aten::relu", &[hidden], &[BATCH, 32]);
        let score = linear(&mut g, hidden, BATCH, 32, 1);
        g.op("aten::sigmoid", &[score], &[BATCH, 1]);
        let graph = g.build();
        let seen = harness::recognize::<Recsys>(&graph);
        seen.assert_workload("recsys");
        seen.assert_phase_of("embedding", "recsys.embedding_lookup");
        for op in ["cat", "addmm", "relu", "sigmoid"] {
            seen.assert_phase_of(op, "recsys.dense_mlp");
        }
        let notes = Recsys.recognize(&graph).unwrap();
        assert!(notes.attributes.contains(&("tables".to_owned(), "3".to_owned())));
        assert_eq!(notes.residency.len(), 3);
    }

    #[test]
    fn rows_of_all_fields_in_one_list_belong_to_fewer_examples() {
        let mut g = GraphBuilder::new();
        let (table, dense) = (g.weight(&[6000, 8]), g.input(&[BATCH, 4]));
        let ids = g.input_of(&[BATCH * 5], DType::INT64);
        let rows = g.op("aten::embedding_bag", &[table, ids], &[BATCH * 5, 8]);
        let long = g.view(rows, &[BATCH, 40]);
        let flat = g.op("aten::cat", &[dense, long], &[BATCH, 44]);
        let score = linear(&mut g, flat, BATCH, 44, 1);
        g.op("aten::sigmoid", &[score], &[BATCH, 1]);
        let graph = g.build();
        assert!(claimed(&graph) > 0.7);
        let seen = harness::recognize::<Recsys>(&graph);
        for op in ["cat", "addmm", "sigmoid"] {
            seen.assert_phase_of(op, "recsys.dense_mlp");
        }
    }

    #[test]
    fn users_times_items_meet() {
        let mut g = GraphBuilder::new();
        let (users, items) = (g.weight(&[900, 8]), g.weight(&[700, 8]));
        let (u, i) = (lookup(&mut g, users, 8, 1), lookup(&mut g, items, 8, 1));
        let product = g.op("aten::mul.Tensor", &[u, i], &[BATCH, 8]);
        g.op("aten::sum.dim_IntList", &[product], &[BATCH]);
        let graph = g.build();
        let seen = harness::recognize::<Recsys>(&graph);
        seen.assert_workload("recsys");
        seen.assert_phase_of("mul", "recsys.interaction");
    }

    #[test]
    fn two_towers_end_in_one_product() {
        let mut g = GraphBuilder::new();
        let tower = |g: &mut GraphBuilder| {
            let table = g.weight(&[900, 8]);
            let rows = lookup(g, table, 8, 1);
            linear(g, rows, BATCH, 8, 4)
        };
        let (left, right) = (tower(&mut g), tower(&mut g));
        let turned = g.transpose(right, 0, 1);
        g.op("aten::mm", &[left, turned], &[BATCH, BATCH]);
        let graph = g.build();
        let seen = harness::recognize::<Recsys>(&graph);
        seen.assert_workload("recsys");
        seen.assert_phase_of("mm", "recsys.interaction");
        seen.assert_phase_of("addmm", "recsys.dense_mlp");
    }

    #[test]
    fn a_sum_squared_is_a_factorization_machine() {
        let mut g = GraphBuilder::new();
        let table = g.weight(&[900, 8]);
        let rows = lookup(&mut g, table, 8, 6);
        let sum = g.op("aten::sum.dim_IntList", &[rows], &[BATCH, 8]);
        let one = g.op("aten::pow.Tensor_Scalar", &[sum], &[BATCH, 8]);
        let squares = g.op("aten::pow.Tensor_Scalar", &[rows], &[BATCH, 6, 8]);
        let two = g.op("aten::sum.dim_IntList", &[squares], &[BATCH, 8]);
        g.op("aten::sub.Tensor", &[one, two], &[BATCH, 8]);
        let graph = g.build();
        let seen = harness::recognize::<Recsys>(&graph);
        seen.assert_workload("recsys");
        seen.assert_phase_of("sub", "recsys.interaction");
    }

    #[test]
    fn candidates_from_the_table_of_the_history_tell_a_sequence_of_items() {
        let mut g = GraphBuilder::new();
        let table = g.weight(&[900, 8]);
        let history = lookup(&mut g, table, 8, 12);
        let candidates = lookup(&mut g, table, 8, 5);
        let norm = g.op("aten::native_layer_norm", &[history], &[BATCH, 12, 8]);
        let last = g.slice(norm, 1, 11, 1);
        let turned = g.transpose(candidates, 1, 2);
        g.op("aten::bmm", &[last, turned], &[BATCH, 1, 5]);
        let graph = g.build();
        assert!(claimed(&graph) > 0.8);
        harness::recognize::<Recsys>(&graph).assert_phase_of("bmm", "recsys.interaction");
    }

    #[test]
    fn words_added_to_positions_are_no_recommender() {
        let mut g = GraphBuilder::new();
        let (words, places) = (g.weight(&[900, 8]), g.weight(&[64, 8]));
        let word = lookup(&mut g, words, 8, 12);
        let at = g.input_of(&[1, 12], DType::INT64);
        let place = g.op("aten::embedding", &[places, at], &[1, 12, 8]);
        let x = g.op("aten::add.Tensor", &[word, place], &[BATCH, 12, 8]);
        let x = g.op("aten::native_layer_norm", &[x], &[BATCH, 12, 8]);
        let flat = g.view(x, &[BATCH * 12, 8]);
        linear(&mut g, flat, BATCH * 12, 8, 8);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn a_program_that_reads_its_own_choice_writes_a_text() {
        let mut g = GraphBuilder::new();
        let table = g.weight(&[900, 8]);
        let rows = lookup(&mut g, table, 8, 12);
        let last = g.slice(rows, 1, 11, 1);
        let last = g.view(last, &[BATCH, 8]);
        let state = linear(&mut g, last, BATCH, 8, 8);
        let turned = g.transpose(table, 0, 1);
        let scores = g.op("aten::mm", &[state, turned], &[BATCH, 900]);
        let next = g.dtype(DType::INT64).op_with(
            "aten::argmax",
            &[scores],
            Some(&[Given::Tensor(0), Given::Int(-1)]),
            &[BATCH],
        );
        g.op("aten::embedding", &[table, next], &[BATCH, 8]);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn random_graphs_do_no_harm() {
        harness::fuzz_recognizer::<Recsys>(64);
    }
}
