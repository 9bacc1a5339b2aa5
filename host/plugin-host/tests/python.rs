//! A guest in another language: the recognizer of `plugin-sdk/examples/python-recognizer`.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::Place;
use genie_plugin::recorded::Recorded;
use genie_plugin_host::{Limits, PluginHost, PluginState, Settings};

/// A Python interpreter is 18 MB of code: compiling it takes much longer than other plugins.
const LOAD: Duration = Duration::from_secs(180);

#[test]
#[ignore = "build the example and set GENIE_PYTHON_PLUGIN to its python_recognizer.wasm"]
fn a_recognizer_in_python_is_loaded_and_called() {
    let component = std::env::var_os("GENIE_PYTHON_PLUGIN").map(PathBuf::from);
    let component = component.expect("GENIE_PYTHON_PLUGIN names the component");
    let example = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../plugin-sdk/examples/python-recognizer/attention.json");
    let graph = Recorded::read(&example).unwrap().graph;
    let place = Place::new();
    place.add("python", "recognizer", &component, "[config]\nconfidence = 0.75");
    let limits = Limits { load: LOAD, ..Limits::default() };
    let open = || {
        let begun = Instant::now();
        let host = PluginHost::open(Settings { limits: limits.clone(), ..place.settings() });
        (host.unwrap(), begun.elapsed())
    };
    let (host, compiled) = open();
    let plugins = host.plugins();
    assert_eq!(plugins[0].state, PluginState::Ready, "{plugins:?}");
    drop(host);
    let (host, cached) = open();
    let mut calls = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let notes = host.recognize(&graph).remove(0).result.expect("the plugin answers");
        calls.push(begun.elapsed());
        let patterns: Vec<&str> = notes.matches.iter().map(|one| one.pattern.as_str()).collect();
        assert_eq!(patterns, ["attention", "attention"]);
        assert_eq!(notes.matches[0].confidence, 0.75);
        assert_eq!(notes.matches[0].nodes.len(), 4);
    }
    println!("compiled and started in {compiled:?}, from the cache in {cached:?}; calls {calls:?}");
}
