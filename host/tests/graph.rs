//! `genie-host graph`, as a person and as a judge of recognizers use it.

mod common;
#[path = "common/probe.rs"]
mod probe;

use std::path::Path;
use std::process::Command;

use common::{host_binary, run};
use genie_plugin::builder::GraphBuilder;
use genie_plugin::recorded::Recorded;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with two recorded graphs; `marked.json` has a mark.
fn place() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, mark) in [("plain.v1.json", ""), ("marked.json", "llm.prefill")] {
        let mut graph = GraphBuilder::new();
        let (x, w) = (graph.input(&[2, 4]), graph.weight(&[4, 3]));
        graph.mark(mark);
        let y = graph.module("net.proj", "Linear", |graph| graph.op("aten::mm", &[x, w], &[2, 3]));
        graph.read(y);
        let recorded = Recorded::new(graph.columns(), "a test", false);
        std::fs::write(root.path().join(file), recorded.to_json()).unwrap();
    }
    root
}

fn graph(root: &Path, args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(host_binary());
    command.current_dir(root).arg("graph").args(args);
    command.env("XDG_CACHE_HOME", root.join("cache")).env_remove("GENIE_PLUGINS");
    let (status, out, err) = run(&mut command);
    (status.success(), out, err)
}

#[test]
fn pictures_stand_beside_the_graph_or_where_one_says() {
    let root = place();
    let (ok, out, err) = graph(root.path(), &["plain.v1.json", "--no-plugins"]);
    assert!(ok, "{err}");
    assert!(out.contains("plain.v1.json: unknown (0.00); 1 operators: no phases"), "{out}");
    let read = |name: &str| std::fs::read_to_string(root.path().join(name)).unwrap();
    assert!(read("plain.v1.svg").contains(">plain.v1</text>"));
    assert!(read("plain.v1.dot").starts_with("digraph genie {"));
    let value: Value = serde_json::from_str(&read("plain.v1.analyzed.json")).unwrap();
    assert!(value["nodes"].as_array().unwrap().iter().any(|node| node["op"] == "aten::mm"));

    let args = ["marked.json", "--out", "a/b", "--format", "svg", "--no-plugins"];
    let (ok, out, err) = graph(root.path(), &args);
    assert!(ok && out.starts_with("a/b/marked.svg\n"), "{out}{err}");
    let made: Vec<_> = std::fs::read_dir(root.path().join("a/b")).unwrap().collect();
    assert_eq!(made.len(), 1);
}

#[test]
fn print_gives_one_line_for_each_graph_and_keeps_the_marks_aside() {
    let root = place();
    let args = ["plain.v1.json", "marked.json", "--print", "--strip-marks", "--no-plugins"];
    let (ok, out, err) = graph(root.path(), &args);
    assert!(ok, "{err}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[1],
        json!({
            "file": "marked.json",
            "workload": { "label": "unknown", "confidence": 0.0 },
            "models": [{ "label": "unknown", "confidence": 0.0, "ops": 1 }],
            "ops": [{
                "op": "aten::mm",
                "module": "net.proj",
                "phase": "",
                "mark": "llm.prefill",
                "confidence": 0.0,
            }],
        })
    );
    let args = ["marked.json", "--print", "--scramble-names", "1", "--plugins", "none"];
    let (ok, out, err) = graph(root.path(), &args);
    assert!(ok && !out.contains("proj") && out.contains("llm.prefill"), "{out}{err}");
    assert!(!root.path().join("marked.svg").exists());
}

#[test]
fn each_model_of_a_program_is_asked_about_and_drawn_by_itself() {
    let root = place();
    let mut program = GraphBuilder::new();
    for _ in 0..2 {
        let (x, w) = (program.input(&[2, 4]), program.weight(&[4, 3]));
        let y = program.op("aten::mm", &[x, w], &[2, 3]);
        program.read(y);
    }
    let recorded = Recorded::new(program.columns(), "a test", false);
    std::fs::write(root.path().join("two.json"), recorded.to_json()).unwrap();
    let (ok, out, err) = graph(root.path(), &["two.json", "--no-plugins"]);
    assert!(ok && out.contains("2 operators: 2 models\n  unknown: no phases\n"), "{out}{err}");
    let picture = std::fs::read_to_string(root.path().join("two.svg")).unwrap();
    assert!(picture.contains(">0: unknown") && picture.contains(">1: unknown"), "{picture}");
}

#[test]
fn recognizers_are_asked_and_a_broken_one_is_told() {
    let root = place();
    let plugins = root.path().join("plugins");
    probe::install(&plugins, "probe", &std::fs::read(probe::probe()).unwrap());
    probe::install(&plugins, "broken", b"nothing");
    let args = ["marked.json", "--plugins", "plugins", "--format", "svg"];
    let (ok, out, err) = graph(root.path(), &args);
    assert!(ok && out.contains("other.forward 1"), "{out}{err}");
    assert!(err.contains("the plugin broken was not asked"), "{err}");
    let svg = std::fs::read_to_string(root.path().join("marked.svg")).unwrap();
    assert!(svg.contains("other.forward"));
}

#[test]
fn what_cannot_be_used_is_named_and_the_rest_goes_on() {
    let root = place();
    std::fs::write(root.path().join("other.json"), "{}").unwrap();
    let args = ["absent.json", "other.json", "marked.json", "--no-plugins", "--print"];
    let (ok, out, err) = graph(root.path(), &args);
    assert!(!ok && out.lines().count() == 1, "{out}");
    assert!(err.contains("cannot read the recorded graph absent.json"), "{err}");
    assert!(err.contains("other.json is not a recorded graph"), "{err}");
    assert!(err.contains("2 of 3 graphs could not be used"), "{err}");

    let (ok, _, err) = graph(root.path(), &["marked.json", "--plugins", "nowhere"]);
    assert!(!ok && err.contains("nowhere"), "{err}");
    std::fs::create_dir(root.path().join("twin")).unwrap();
    std::fs::copy(root.path().join("marked.json"), root.path().join("twin/marked.json")).unwrap();
    let args = ["marked.json", "twin/marked.json", "--out", "all", "--no-plugins"];
    let (ok, _, err) = graph(root.path(), &args);
    assert!(!ok && err.contains("was written for another graph of that name"), "{err}");
}
