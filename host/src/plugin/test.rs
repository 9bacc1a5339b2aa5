//! `genie-host plugin test`: runs plugins on recorded graphs, through the sandbox.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use genie_plugin::plan::PROGRAM;
use genie_plugin::recorded::Recorded;
use genie_plugin::{
    Annotations, Cluster, Columns, Device, Edit, Graph, Hint, Link, NodeId, Plan, Sample,
};
use genie_plugin_host::{Call, CallError, Kind, PluginHost, PluginState, PluginStatus};
use serde_json::{Value, json};

use super::settings::Place;

/// Operators and edits that are printed of each.
const SHOWN_MAX: usize = 6;

#[derive(Args)]
pub struct TestArgs {
    /// A plugin's directory, its manifest, or its name in --plugins.
    plugin: String,
    /// Recorded graphs, as `genie.export_graph(path)` writes them.
    #[arg(required = true, value_name = "GRAPH")]
    graphs: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: TestArgs) -> anyhow::Result<()> {
    let (host, names) = args.place.open_one(&args.plugin)?;
    let mut failures = 0;
    let mut results = Vec::new();
    let plugins: Vec<PluginStatus> =
        host.plugins().into_iter().filter(|plugin| names.contains(&plugin.name)).collect();
    for plugin in &plugins {
        if let PluginState::Refused(why) | PluginState::Disabled(why) = &plugin.state {
            anyhow::bail!("the plugin {} is refused: {why}", plugin.name);
        }
    }
    for path in &args.graphs {
        let recorded = Recorded::read(path)?;
        let graph = Graph::new(recorded.graph).context("the recorded graph")?;
        for plugin in &plugins {
            for kind in &plugin.kinds {
                let Some(answer) = ask(&host, &plugin.name, *kind, graph.columns()) else {
                    anyhow::bail!("the plugin {} was disabled after failures", plugin.name);
                };
                failures += usize::from(answer.result.is_err());
                if args.json {
                    let result = answer.result.as_ref().map(Answer::json);
                    results.push(json!({
                        "graph": path,
                        "plugin": plugin.name,
                        "kind": kind.as_str(),
                        "us": answer.took.as_micros() as u64,
                        "result": result.as_ref().ok(),
                        "error": result.as_ref().err().map(ToString::to_string),
                    }));
                    continue;
                }
                println!(
                    "{}, {} nodes: {} {} ({}, {:.2} ms)",
                    path.display(),
                    graph.len(),
                    plugin.name,
                    plugin.version,
                    kind.as_str(),
                    answer.took.as_secs_f64() * 1e3
                );
                match &answer.result {
                    Ok(found) => found.print(&graph),
                    Err(error) => println!("  failed: {error}"),
                }
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    }
    anyhow::ensure!(failures == 0, "{failures} calls failed");
    Ok(())
}

enum Answer {
    Notes(Annotations),
    Plan(Plan),
    Edits(Vec<Edit>),
    Hints(Vec<Hint>),
}

struct Asked {
    took: Duration,
    result: Result<Answer, CallError>,
}

fn asked<T>(call: Call<T>, wrap: impl FnOnce(T) -> Answer) -> Asked {
    Asked { took: call.took, result: call.result.map(wrap) }
}

fn ask(host: &PluginHost, name: &str, kind: Kind, graph: &Columns) -> Option<Asked> {
    let of = |plugin: &str| plugin == name;
    match kind {
        Kind::Recognizer => Some(asked(host.recognize_with(name, graph)?, Answer::Notes)),
        Kind::Policy => {
            let call = host.schedule(name, graph, &Annotations::new(), &cluster())?;
            Some(asked(call, Answer::Plan))
        }
        Kind::Rewrite => {
            let calls = host.rewrite(graph, &Annotations::new());
            let call = calls.into_iter().find(|call| of(&call.plugin))?;
            Some(asked(call, Answer::Edits))
        }
        Kind::Hints => {
            let sample = |link| Sample {
                link,
                rtt_us: 2_000,
                bytes_per_s: 250_000_000,
                queued_bytes: 4 << 20,
            };
            let calls = host.adapt(&cluster(), &[sample(0), sample(1)], &[]);
            let call = calls.into_iter().find(|call| of(&call.plugin))?;
            Some(asked(call, Answer::Hints))
        }
    }
}

/// Two GPUs on two nodes, 10 Gb/s apart and 2.5 Gb/s from the program.
fn cluster() -> Cluster {
    let device = |node: &str| Device {
        name: format!("{node}/gpu0"),
        node: node.to_owned(),
        memory_bytes: 24 << 30,
        memory_free_bytes: 24 << 30,
        flops_per_s: 100_000_000_000_000,
        memory_bytes_per_s: 1_000_000_000_000,
    };
    let link = |from, to, bytes_per_s| Link { from, to, bytes_per_s, rtt_us: 200 };
    Cluster {
        devices: vec![device("a"), device("b")],
        links: vec![
            link(PROGRAM, 0, 312_500_000),
            link(PROGRAM, 1, 312_500_000),
            link(0, 1, 1_250_000_000),
        ],
        resident: vec![],
    }
}

impl Answer {
    fn json(&self) -> Value {
        match self {
            Answer::Notes(notes) => json!(notes),
            Answer::Plan(plan) => json!(plan),
            Answer::Edits(edits) => json!(edits),
            Answer::Hints(hints) => hints
                .iter()
                .map(|hint| json!({"link": hint.link, "key": hint.key, "value": hint.value}))
                .collect(),
        }
    }

    fn print(&self, graph: &Graph) {
        match self {
            Answer::Notes(notes) => print_notes(notes, graph),
            Answer::Plan(plan) => print_plan(plan),
            Answer::Edits(edits) => {
                println!("  {} edits", edits.len());
                for edit in edits.iter().take(SHOWN_MAX) {
                    println!("    {edit:?}");
                }
            }
            Answer::Hints(hints) => {
                for hint in hints {
                    println!("  link {}: {} = {}", hint.link, hint.key, hint.value);
                }
            }
        }
    }
}

fn print_notes(notes: &Annotations, graph: &Graph) {
    if *notes == Annotations::default() {
        println!("  recognizes nothing");
    }
    for claim in &notes.workload {
        println!("  workload   {:<28} {:>3.0} %", claim.label, claim.confidence * 100.0);
    }
    for (key, value) in &notes.attributes {
        println!("  fact       {key} = {value}");
    }
    for found in &notes.matches {
        let words: Vec<&str> = [&*found.pattern, &*found.phase, &*found.modality]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        println!(
            "  match      {:<28} {:>3.0} %  {} nodes: {}",
            words.join(", "),
            found.confidence * 100.0,
            found.nodes.len(),
            operators(&found.nodes, graph)
        );
    }
    let mut kinds: Vec<(&str, usize, u64)> = Vec::new();
    for claim in &notes.residency {
        let bytes = graph.storage_bytes(genie_plugin::StorageId(claim.storage));
        match kinds.iter_mut().find(|(kind, ..)| *kind == claim.residency) {
            Some((_, count, total)) => (*count, *total) = (*count + 1, *total + bytes),
            None => kinds.push((&claim.residency, 1, bytes)),
        }
    }
    for (kind, count, bytes) in kinds {
        println!("  residency  {kind:<28} {count} storages, {} KiB", bytes >> 10);
    }
}

/// The operators of a match, each with how often it occurs, most frequent first.
fn operators(nodes: &[u32], graph: &Graph) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for node in nodes {
        let name = graph.op_name(NodeId(*node));
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let rest = counts.len().saturating_sub(SHOWN_MAX);
    let mut words: Vec<String> =
        counts.iter().take(SHOWN_MAX).map(|(name, count)| format!("{count} {name}")).collect();
    if rest > 0 {
        words.push(format!("{rest} others"));
    }
    words.join(", ")
}

fn print_plan(plan: &Plan) {
    println!("  why        {}", plan.why);
    for (index, region) in plan.regions.iter().enumerate() {
        let stage = match region.pipeline {
            0 => String::new(),
            pipeline => format!(", a stage of pipeline {pipeline}"),
        };
        let nodes = region.nodes.len();
        println!("  region {index:<3} {nodes} nodes on device {}{stage}", region.device);
    }
    let mut kinds: Vec<(&str, u32, usize)> = Vec::new();
    for directive in &plan.directives {
        let key = (&*directive.kind, directive.device);
        match kinds.iter_mut().find(|(kind, device, _)| (*kind, *device) == key) {
            Some((.., count)) => *count += 1,
            None => kinds.push((key.0, key.1, 1)),
        }
    }
    for (kind, device, count) in kinds {
        println!("  directive  {kind} {count} storages on device {device}");
    }
}
