//! Plugins of the first release of the interface load for ever.

mod common;

use common::{Place, chain, component};
use genie_plugin_host::PluginState;

#[test]
fn a_plugin_of_the_first_release_recognizes_something() {
    let place = Place::new();
    let frozen = component("genie-frozen-v0-1");
    place.add("frozen", "recognizer", &frozen, "[config]\ndepth = 3");
    let host = place.open();
    let plugins = host.plugins();
    assert_eq!(plugins[0].state, PluginState::Ready);
    assert_eq!(plugins[0].wit, "0.1.0");
    let graph = chain(5);
    let notes = host.recognize(&graph).remove(0).result.unwrap();
    assert_eq!(notes.matches.len(), 1);
    assert_eq!(notes.matches[0].pattern, "mlp.linear_activation");
    assert_eq!(notes.matches[0].nodes.len(), 10);
    assert!(notes.workload.is_empty() && notes.residency.is_empty());
}

#[test]
fn a_plugin_of_the_first_release_is_a_recognizer_only() {
    let place = Place::new();
    place.add("frozen", "policy", &component("genie-frozen-v0-1"), "");
    let host = place.open();
    let PluginState::Refused(why) = &host.plugins()[0].state else { panic!("it was loaded") };
    assert!(why.contains("recognizers only"), "{why}");
}

#[test]
fn a_plugin_of_the_second_release_recognizes_and_plans() {
    let place = Place::new();
    let frozen = component("genie-frozen-v0-2");
    place.add("frozen", "recognizer\", \"policy", &frozen, "");
    let host = place.open();
    assert_eq!(host.plugins()[0].state, PluginState::Ready);
    assert_eq!(host.plugins()[0].wit, "0.2.0");
    let graph = chain(5);
    let notes = host.recognize(&graph).remove(0).result.unwrap();
    assert_eq!(notes.workload[0].label, "other");
    assert_eq!(notes.matches[0].nodes.len(), graph.nodes());
    let device = genie_plugin::Device { name: "a".into(), ..Default::default() };
    let cluster = genie_plugin::Cluster { devices: vec![device], ..Default::default() };
    let plan = host.schedule("frozen", &graph, &notes, &cluster).unwrap().result.unwrap();
    assert_eq!(plan.regions[0].nodes.len(), graph.nodes());
}

/// The text of a released interface is never edited: plugins out there were built from it. A
/// change belongs into a new folder.
#[test]
fn released_interfaces_stay_as_they_were() {
    for (text, hash) in [
        (
            include_bytes!("../../../plugin-sdk/wit/v0.1/plugin.wit").as_slice(),
            "87197408ee4632c51ceecbdc399dede0ad78b591c7cbda12657584db9bfdd97d",
        ),
        (
            include_bytes!("../../../plugin-sdk/wit/v0.2/plugin.wit").as_slice(),
            "9107bcef262f2d9c872e45b6494d5c3c556145f1c3dcd21a2b41df49d500488a",
        ),
    ] {
        assert_eq!(blake3::hash(text).to_hex().as_str(), hash);
    }
}
