//! Judges the shipped recognizers, run natively, on recorded graphs with known answers.
//!
//! `cargo run --release -p genie-analyzer --example zoo -- DIR [--scramble SEED] [--permute SEED]
//! [--case TEXT] [--ops]`: DIR holds what `tests/zoo/record.py` wrote. The same judgement over the
//! real host and its sandbox is `tests/zoo/evaluate.py`; this one is for the author of a rule.

use std::collections::BTreeMap;
use std::path::PathBuf;

use genie_analyzer::merge::{Reading, Said, merge};
use genie_analyzer::scramble::{permute_names, scramble_names, strip_marks};
use genie_plugin::recorded::Recorded;
use genie_plugin::{Annotations, Graph, Plugin, Recognizer};
use genie_plugin_general::General;
use genie_plugin_llm::Llm;
use genie_plugin_multimodal::Multimodal;
use genie_plugin_recsys::Recsys;
use genie_plugin_vision::Vision;

/// The confidence below which a label is not forced.
const UNSURE: f32 = 0.0;

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut dir, mut scramble, mut permute, mut only, mut show_ops) =
        (None, None, None, String::new(), false);
    while let Some(arg) = args.next() {
        let mut next = || args.next().expect("the flag has a value");
        match arg.as_str() {
            "--scramble" => scramble = Some(next().parse::<u64>().expect("a number")),
            "--permute" => permute = Some(next().parse::<u64>().expect("a number")),
            "--case" => only = next(),
            "--ops" => show_ops = true,
            _ => dir = Some(PathBuf::from(arg)),
        }
    }
    let dir = dir.expect("give the directory of recorded graphs");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .expect("the directory can be read")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.ends_with(".json") && !name.ends_with(".labels.json") && name.contains(&only)
        })
        .collect();
    files.sort();
    let mut right: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let mut phases_right: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    let (mut workloads_right, mut phase_sum, mut phase_cases) = (0, 0.0, 0);
    for path in &files {
        let truth: serde_json::Value = serde_json::from_slice(
            &std::fs::read(path.with_extension("labels.json")).expect("labels stand beside"),
        )
        .expect("labels are JSON");
        let mut columns = Recorded::read(path).expect("a recorded graph").graph;
        let marks: Vec<String> = {
            let graph = Graph::new(columns.clone()).expect("checked");
            graph.nodes().map(|node| graph.mark(node).to_owned()).collect()
        };
        strip_marks(&mut columns);
        if let Some(seed) = scramble {
            scramble_names(&mut columns, seed);
        }
        if let Some(seed) = permute {
            permute_names(&mut columns, seed);
        }
        let graph = Graph::new(columns).expect("checked");
        let reading = read(&graph);
        let label =
            if reading.workload.confidence > UNSURE { &reading.workload.word } else { "unknown" };
        let wanted = truth["workload"].as_str().unwrap();
        let entry = right.entry(wanted.to_owned()).or_default();
        entry.1 += 1;
        let ok = label == wanted;
        entry.0 += u32::from(ok);
        workloads_right += u32::from(ok);
        let (mut good, mut all) = (0, 0);
        let mut wrong: BTreeMap<(String, String), (u32, u32)> = BTreeMap::new();
        for node in graph.nodes().filter(|node| graph.is_op(*node)) {
            let mark = &marks[node.0 as usize];
            let got = &reading.phases[node.0 as usize].word;
            if show_ops {
                println!(
                    "{:5} {:40} {:24} {:24} {}",
                    node.0,
                    graph.op(node),
                    mark,
                    got,
                    graph.module(node)
                );
            }
            if mark.is_empty() {
                continue;
            }
            all += 1;
            let entry = phases_right.entry(mark.clone()).or_default();
            entry.1 += 1;
            if mark == got {
                good += 1;
                entry.0 += 1;
            } else {
                let entry = wrong.entry((mark.clone(), got.clone())).or_insert((0, node.0));
                entry.0 += 1;
            }
        }
        let accuracy = if all == 0 { 1.0 } else { f64::from(good) / f64::from(all) };
        phase_sum += accuracy;
        phase_cases += 1;
        if !ok || accuracy < 0.9 || !only.is_empty() {
            let name = path.file_stem().unwrap().to_string_lossy();
            let runners: Vec<String> = reading
                .workloads
                .iter()
                .take(3)
                .map(|claim| format!("{} {:.2}", claim.word, claim.confidence))
                .collect();
            println!(
                "{} {name:32} {wanted:12} -> {:36} phases {:5.1} %  {}",
                if ok { "  " } else { "X " },
                runners.join(", "),
                accuracy * 100.0,
                wrong
                    .iter()
                    .map(|((mark, got), (count, first))| format!(
                        "{mark}>{got} x{count} (first {first})"
                    ))
                    .collect::<Vec<_>>()
                    .join("; ")
            );
        }
    }
    println!(
        "--- workload: {workloads_right} of {} = {:.1} %",
        files.len(),
        100.0 * f64::from(workloads_right) / files.len() as f64
    );
    for (label, (good, all)) in &right {
        println!("  {label:14} {good:3} of {all:3}");
    }
    println!("--- phase, mean over cases: {:.1} %", 100.0 * phase_sum / f64::from(phase_cases));
    for (phase, (good, all)) in &phases_right {
        println!(
            "  {phase:24} {good:6} of {all:6} = {:5.1} %",
            100.0 * f64::from(*good) / f64::from(*all)
        );
    }
}

fn read(graph: &Graph) -> Reading {
    let said = [
        ask::<General>(graph),
        ask::<Llm>(graph),
        ask::<Multimodal>(graph),
        ask::<Recsys>(graph),
        ask::<Vision>(graph),
    ];
    merge(graph.columns(), &said)
}

fn ask<R: Recognizer>(graph: &Graph) -> Said {
    let notes = R::default().recognize(graph).unwrap_or_else(|why| {
        eprintln!("{} failed: {why}", R::info().name);
        Annotations::new()
    });
    Said { plugin: <R as Plugin>::info().name, notes }
}
