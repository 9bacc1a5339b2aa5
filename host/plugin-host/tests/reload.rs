//! Plugins come, change and go while the host runs; nothing is left of those that went.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use common::lines::lines;
use common::{Place, chain, component, write};
use genie_plugin_host::{PluginHost, PluginState, Rescan, Watch};

const GOOD: &str = "[config]\ndo = \"good\"";

#[test]
fn the_second_start_takes_compiled_code_from_the_cache() {
    let place = Place::new();
    place.add("good", "recognizer", &component("genie-guest-hostile"), GOOD);
    assert!(!place.open().plugins()[0].cached);
    let plugin = place.open().plugins().remove(0);
    assert!(plugin.cached);
    println!("from the cache in {} us, started in {} us", plugin.compile_us, plugin.start_us);
    // A spoiled file is compiled again, not run.
    for entry in std::fs::read_dir(place.cache()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
    }
    let host = place.open();
    assert!(!host.plugins()[0].cached);
    assert!(host.recognize(&chain(1))[0].result.is_ok());
}

#[test]
fn manifests_that_share_a_component_compile_it_once() {
    let place = Place::new();
    let dir = place.add("good", "recognizer", &component("genie-guest-hostile"), GOOD);
    let text = std::fs::read_to_string(dir.join("plugin.toml")).unwrap();
    let other = text.replace("\"good\"", "\"other\"").replace("do = \"other\"", "do = \"error\"");
    write(&dir.join("other.plugin.toml"), other.as_bytes());
    let host = place.open();
    let plugins = host.plugins();
    assert_eq!([&*plugins[0].name, &*plugins[1].name], ["good", "other"]);
    assert_eq!(plugins.iter().filter(|plugin| !plugin.cached).count(), 1);
    let calls = host.recognize(&chain(1));
    assert!(calls[0].result.is_ok() && calls[1].result.is_err());
}

#[test]
fn a_rescan_loads_what_changed_and_leaves_the_rest() {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("stays", "recognizer", &hostile, GOOD);
    place.add("goes", "recognizer", &hostile, GOOD);
    let host = place.open();
    let graph = chain(2);
    host.recognize(&graph);
    assert_eq!(host.rescan(), Rescan::default());

    std::fs::remove_dir_all(place.plugins().join("goes")).unwrap();
    place.add("comes", "recognizer", &hostile, GOOD);
    let rescan = host.rescan();
    assert_eq!((rescan.added, rescan.removed), (vec!["comes".into()], vec!["goes".into()]));

    place.manifest("comes", "recognizer", "[config]\ndo = \"error\"");
    let rescan = host.rescan();
    assert_eq!((rescan.changed, rescan.refused), (vec!["comes".into()], vec![]));
    let calls = host.recognize(&graph);
    assert!(calls[0].result.is_err() && calls[1].result.is_ok());
    assert_eq!(host.plugins()[1].calls, 2, "the one that stays keeps its figures");

    write(&place.plugins().join("comes/plugin.wasm"), b"garbage");
    let rescan = host.rescan();
    assert_eq!(rescan.refused.len(), 1);
    place.add("comes", "recognizer", &hostile, GOOD);
    host.rescan();
    assert!(host.recognize(&graph).iter().all(|call| call.result.is_ok()));
}

#[test]
fn a_disabled_plugin_returns_when_its_files_change() {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("p", "recognizer", &hostile, "[config]\ndo = \"trap\"");
    let host = place.open();
    for _ in 0..4 {
        host.recognize(&chain(1));
    }
    host.rescan();
    assert!(matches!(host.plugins()[0].state, PluginState::Disabled(_)));
    place.manifest("p", "recognizer", GOOD);
    host.rescan();
    assert!(host.recognize(&chain(1))[0].result.is_ok());
}

#[test]
fn a_watch_sees_changes() {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    let host = Arc::new(place.open());
    let (seen, rescans) = mpsc::channel();
    let watch = Watch::start(host.clone(), Duration::from_millis(20), move |rescan| {
        let _ = seen.send(rescan);
    })
    .unwrap();
    place.add("new", "recognizer", &hostile, GOOD);
    // The watch may have seen the directory half made, and then looks again.
    while host.recognize(&chain(1)).is_empty() {
        rescans.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    std::fs::remove_dir_all(place.plugins().join("new")).unwrap();
    loop {
        let rescan = rescans.recv_timeout(Duration::from_secs(30)).unwrap();
        if rescan.removed == ["new"] {
            break;
        }
    }
    drop(watch);
    assert_eq!(Arc::strong_count(&host), 1, "the thread has ended");
}

#[test]
fn several_threads_may_call() {
    let place = Place::new();
    place.add("good", "recognizer", &component("genie-guest-hostile"), GOOD);
    let host = place.open();
    let graph = chain(50);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert!(host.recognize(&graph)[0].result.is_ok());
                }
            });
        }
        for _ in 0..20 {
            host.rescan();
        }
    });
    assert_eq!(host.plugins()[0].calls, 200);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn count(dir: &str) -> usize {
    std::fs::read_dir(Path::new(dir)).unwrap().count()
}

/// Run alone (its own process), because it counts what the process holds.
#[test]
fn a_thousand_loads_and_unloads_leak_nothing() {
    if std::env::var_os("GENIE_LEAK_TEST").is_none() {
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_thousand_loads_and_unloads_leak_nothing", "--nocapture"])
            .env("GENIE_LEAK_TEST", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        print!("{said}");
        assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    const CYCLES: usize = 1_000;
    const WARM_UP: usize = 100;
    let (_lines, _log) = lines();
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    let graph = chain(20);
    let cycle = |host: &PluginHost, deed: &str| {
        place.add("p", "recognizer", &hostile, &format!("[config]\ndo = \"{deed}\""));
        assert_eq!(host.rescan().added, ["p"]);
        let calls = host.recognize(&graph);
        assert_eq!(calls[0].result.is_ok(), deed == "good");
        std::fs::remove_dir_all(place.plugins().join("p")).unwrap();
        assert_eq!(host.rescan().removed, ["p"]);
    };
    let host = place.open();
    let deed = |index: usize| if index % 10 == 9 { "trap" } else { "good" };
    for index in 0..WARM_UP {
        cycle(&host, deed(index));
    }
    let before = (resident_kib(), count("/proc/self/fd"), count("/proc/self/task"));
    for index in 0..CYCLES {
        cycle(&host, deed(index));
        // Whole hosts come and go, too.
        if index % 20 == 0 {
            drop(place.open());
        }
    }
    let after = (resident_kib(), count("/proc/self/fd"), count("/proc/self/task"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    println!("resident KiB, descriptors, threads: {before:?} -> {after:?}; {maps} mappings");
    assert_eq!((before.1, before.2), (after.1, after.2));
    assert!(after.0 < before.0 + 4 * 1024, "{before:?} -> {after:?}");
}
