//! Plugins are found, loaded and called.

mod common;

use common::{Place, chain, component};
use genie_plugin_host::PluginState;

#[test]
fn a_recognizer_is_loaded_and_called() {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("good", "recognizer", &hostile, "[config]\ndo = \"good\"");
    let host = place.open();
    let plugins = host.plugins();
    assert_eq!(plugins[0].state, PluginState::Ready, "{plugins:?}");
    let graph = chain(10);
    for _ in 0..3 {
        let calls = host.recognize(&graph);
        let notes = calls[0].result.as_ref().unwrap();
        assert_eq!(notes.matches[0].nodes.len(), graph.nodes());
    }
    println!("{:#?}", host.plugins());
}
