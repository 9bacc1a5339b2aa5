//! `genie-host plugin list | inspect | test | bench`, as a person uses them.

mod common;
#[path = "common/probe.rs"]
mod probe;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{host_binary, run};
use genie_plugin::builder::GraphBuilder;
use genie_plugin::recorded::Recorded;
use probe::probe;
use tempfile::TempDir;

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// A directory with the probe, a broken plugin, and a recorded graph.
fn place() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, component) in
        [("probe", std::fs::read(probe()).unwrap()), ("broken", b"nothing".to_vec())]
    {
        let dir = root.path().join("plugins").join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for dir in [dir.parent().unwrap(), &dir] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let manifest = format!(
            "name = \"{name}\"\nversion = \"1.2.3\"\nkinds = [\"recognizer\"]\n\
             component = \"{name}.wasm\"\n"
        );
        write(&dir.join("plugin.toml"), manifest.as_bytes());
        write(&dir.join(format!("{name}.wasm")), &component);
    }
    let mut g = GraphBuilder::new();
    let (x, w) = (g.input(&[2, 4]), g.weight(&[4, 3]));
    let y = g.op("aten::mm", &[x, w], &[2, 3]);
    g.read(y);
    let recorded = Recorded::new(g.columns(), "a test", false);
    write(&root.path().join("graph.json"), recorded.to_json().as_bytes());
    root
}

fn plugin(root: &TempDir, args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(host_binary());
    command.current_dir(root.path()).arg("plugin").args(args);
    command.env("XDG_CACHE_HOME", root.path().join("cache")).env("GENIE_PLUGINS", "plugins");
    let (status, out, err) = run(&mut command);
    (status.success(), out, err)
}

#[test]
fn list_says_what_is_ready_and_why_not() {
    let root = place();
    let (ok, out, err) = plugin(&root, &["list"]);
    assert!(ok, "{err}");
    let line = |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("probe").contains("ready") && line("probe").contains("1.2.3"), "{out}");
    assert!(line("broken").contains("refused") && line("broken").contains("no WASM"), "{out}");
    assert_eq!(err.lines().filter(|line| line.contains("broken")).count(), 1, "{err}");

    let (ok, out, _) = plugin(&root, &["list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(ok && list[1]["state"] == "ready" && list[1]["cached"] == true, "{out}");
    let (ok, _, err) = plugin(&root, &["list", "--plugins", "nowhere"]);
    assert!(!ok && err.contains("nowhere") && err.contains("create it"), "{err}");
    let (ok, _, err) = plugin(&root, &["list", "--plugins", "none"]);
    assert!(!ok && err.contains("no plugin to look at"), "{err}");
}

/// `genie-host plugin list | head`.
#[test]
fn a_reader_that_leaves_ends_a_command_without_words() {
    let root = place();
    let mut command = Command::new(host_binary());
    command.current_dir(root.path()).args(["plugin", "list", "--plugins", "plugins"]);
    command.env("XDG_CACHE_HOME", root.path().join("cache"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    assert!(!said.contains("panic") && !said.contains("Broken pipe"), "{said}");
}

#[test]
fn inspect_takes_a_name_a_directory_or_a_manifest() {
    let root = place();
    for which in ["probe", "./plugins/probe", "plugins/probe", "plugins/probe/plugin.toml"] {
        let (ok, out, err) = plugin(&root, &["inspect", which]);
        assert!(ok, "{which}: {err}");
        for word in ["genie:plugin@0.3.0", "recognizer", "state        ready", "probe.wasm"] {
            assert!(out.contains(word), "{which}: {word} is not in:\n{out}");
        }
        assert!(!out.contains("broken"), "{out}");
    }
    let (ok, out, _) = plugin(&root, &["inspect", "broken"]);
    assert!(ok && out.contains("no WASM component"), "{out}");
    let (ok, _, err) = plugin(&root, &["inspect", "absent"]);
    assert!(!ok && err.contains("no plugin absent"), "{err}");
}

#[test]
fn test_prints_what_a_plugin_finds_in_a_graph() {
    let root = place();
    for which in ["probe", "plugins/probe"] {
        let (ok, out, err) = plugin(&root, &["test", which, "graph.json"]);
        assert!(ok, "{err}");
        assert!(out.contains("graph.json, 4 nodes: probe 1.2.3 (recognizer"), "{out}");
        assert!(out.contains("probe.all") && out.contains("1 mm"), "{out}");
    }
    let (ok, out, _) = plugin(&root, &["test", "probe", "graph.json", "--json"]);
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(ok && results[0]["result"]["matches"][0]["pattern"] == "probe.all", "{out}");
    let (ok, _, err) = plugin(&root, &["test", "broken", "graph.json"]);
    assert!(!ok && err.contains("no WASM component"), "{err}");
    let (ok, _, err) = plugin(&root, &["test", "probe", "plugins/probe/plugin.toml"]);
    assert!(!ok && err.contains("not a recorded graph"), "{err}");
}

#[test]
fn bench_prints_the_ratio_to_native() {
    let root = place();
    let (ok, out, err) = plugin(&root, &["bench", "probe", "--nodes", "200"]);
    assert!(ok, "{err}");
    assert!(out.contains("RATIO") && out.lines().any(|line| line.contains("probe  ")), "{out}");
    let (ok, _, err) =
        plugin(&root, &["bench", "probe", "--nodes", "200", "--ratio-max", "0.0001"]);
    assert!(!ok && err.contains("above"), "{err}");
}
