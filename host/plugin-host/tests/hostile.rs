//! Plugins that do harm: each is stopped in time, costs one log line, and the others go on.

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use common::lines::lines;
use common::{Place, chain, component, write};
use genie_plugin::{Annotations, Cluster, Device};
use genie_plugin_host::{CallError, Capability, Limits, PluginHost, PluginState, Rescan, Settings};

/// How long anything may take by the clock on the wall, which says how busy the test machine is.
const PATIENCE: Duration = Duration::from_secs(60);
const RUN_TIME: Duration = Duration::from_millis(100);

/// What this thread has had of a processor: its own time on a machine that is busy with others.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn state(host: &PluginHost, name: &str) -> PluginState {
    let plugins = host.plugins();
    plugins.into_iter().find(|plugin| plugin.name == name).expect("the plugin is listed").state
}

/// A host with a good plugin and one that does `deed`.
fn with_deed(deed: &str) -> (Place, PluginHost) {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("good", "recognizer", &hostile, "[config]\ndo = \"good\"");
    place.add("wicked", "recognizer", &hostile, &format!("[config]\ndo = \"{deed}\""));
    let host = place.open();
    assert_eq!(state(&host, "wicked"), PluginState::Ready);
    (place, host)
}

/// Calls a plugin that does `deed` until it is disabled: three times, each in time, with one
/// log line at the end, while the good plugin answers as always.
fn stopped(deed: &str, is_expected: impl Fn(&CallError) -> bool) {
    let (_place, host) = with_deed(deed);
    let graph = chain(20);
    let (lines, log) = lines();
    let _log = log;
    let (mut slowest, mut busiest) = (Duration::ZERO, Duration::ZERO);
    for round in 0..3 {
        let before = processor_time();
        let calls = host.recognize(&graph);
        busiest = busiest.max(processor_time() - before);
        assert_eq!(calls.len(), 2, "round {round}");
        assert!(calls[0].plugin == "good" && calls[0].result.is_ok(), "{:?}", calls[0]);
        let error = calls[1].result.as_ref().unwrap_err();
        assert!(is_expected(error), "{deed}: {error}");
        slowest = slowest.max(calls[1].took);
    }
    println!("{deed}: stopped in {slowest:?}, {busiest:?} of them on a processor");
    assert!(slowest < PATIENCE, "{deed} took {slowest:?}");
    assert!(busiest < RUN_TIME * 2, "{deed} took {busiest:?} of a processor");
    let calls = host.recognize(&graph);
    assert!(calls.len() == 1 && calls[0].result.is_ok(), "{calls:?}");
    assert!(matches!(state(&host, "wicked"), PluginState::Disabled(_)));
    let lines = lines.about("wicked is disabled");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("wicked"), "{lines:?}");
}

#[test]
fn an_endless_loop_is_stopped() {
    stopped("loop", |error| matches!(error, CallError::Overrun(_)));
}

#[test]
fn a_memory_bomb_is_stopped() {
    stopped("memory", |error| matches!(error, CallError::Memory(_) | CallError::Overrun(_)));
}

#[test]
fn deep_recursion_is_stopped() {
    stopped("recursion", |error| error.to_string().contains("call stack exhausted"));
    // Frames in linear memory run out of the stack there.
    stopped("deep-frames", |error| error.to_string().contains("out of bounds"));
}

#[test]
fn a_trap_is_a_failure_of_the_plugin_alone() {
    stopped("trap", |error| error.to_string().contains("unreachable"));
}

#[test]
fn huge_output_is_not_taken() {
    // On a slow machine its time is over before it has made so much.
    stopped("huge", |error| {
        matches!(error, CallError::Trap(_) | CallError::Illegal(_) | CallError::Overrun(_))
    });
    stopped("many", |error| error.to_string().contains("matches"));
}

#[test]
fn a_flood_of_log_lines_is_cut() {
    let (_place, host) = with_deed("flood");
    let (lines, log) = lines();
    let _log = log;
    let call = host.recognize_with("wicked", &chain(5)).unwrap();
    assert!(matches!(call.result, Err(CallError::Overrun(_))), "{:?}", call.result);
    println!("flood: stopped in {:?}", call.took);
    let flood = lines.about("flood and a second line");
    assert_eq!(flood.len(), Limits::default().log_lines as usize);
    assert!(flood.iter().all(|line| line.contains("wicked")), "{}", flood[0]);
    assert_eq!(lines.about("more lines were dropped").len(), 1);
}

#[test]
fn floods_are_stopped() {
    stopped("flood", |error| matches!(error, CallError::Overrun(_)));
}

#[test]
fn wide_log_lines_are_cut() {
    let (_place, host) = with_deed("flood-wide");
    let (lines, log) = lines();
    let _log = log;
    let call = host.recognize_with("wicked", &chain(5)).unwrap();
    println!("flood-wide: {:?} in {:?}", call.result.as_ref().err(), call.took);
    assert!(call.took < PATIENCE);
    let longest = lines.about("wide").iter().map(String::len).max().unwrap();
    assert!(longest < 2 * Limits::default().log_line_bytes, "{longest}");
}

#[test]
fn illegal_annotations_are_failures() {
    for (deed, expected) in [
        ("wrong-node", "node 4294967295"),
        ("wrong-storage", "storage 4294967295"),
        ("wrong-confidence", "NaN"),
        ("control", "control characters"),
    ] {
        stopped(deed, |error| {
            matches!(error, CallError::Illegal(_)) && error.to_string().contains(expected)
        });
    }
}

#[test]
fn an_error_that_a_plugin_reports_is_no_strike() {
    let (_place, host) = with_deed("error");
    for _ in 0..5 {
        let call = host.recognize_with("wicked", &chain(5)).unwrap();
        assert_eq!(call.result, Err(CallError::Said("I will not say".into())));
    }
    assert_eq!(state(&host, "wicked"), PluginState::Ready);
}

#[test]
fn an_instance_that_has_grown_is_not_kept() {
    let (place, _) = with_deed("grow");
    // The system takes its time to give that much memory.
    let limits = Limits { call: Duration::from_secs(2), ..Limits::default() };
    let host = PluginHost::open(Settings { limits, ..place.settings() }).unwrap();
    for _ in 0..3 {
        let call = host.recognize_with("wicked", &chain(5)).unwrap();
        assert!(call.result.is_ok(), "{:?}", call.result);
        let plugins = host.plugins();
        let plugin = plugins.iter().find(|plugin| plugin.name == "wicked").unwrap();
        assert_eq!(plugin.memory_bytes, 0);
    }
}

#[test]
fn a_graph_that_is_too_large_is_no_strike() {
    let (_place, host) = with_deed("error");
    let mut graph = chain(1);
    graph.extra = vec![("bulk".into(), vec![0; Limits::default().memory_bytes / 8])];
    let call = host.recognize_with("good", &graph).unwrap();
    assert!(matches!(call.result, Err(CallError::GraphTooLarge { .. })), "{:?}", call.result);
    assert_eq!(state(&host, "good"), PluginState::Ready);
}

/// Adds something wrong beside a good plugin; it is refused in time with one line that names
/// it, and the good one is loaded.
fn refused(what: &str, reason: &str, add: impl FnOnce(&Place)) {
    refused_by(what, reason, Limits::default(), add);
}

fn refused_by(what: &str, reason: &str, limits: Limits, add: impl FnOnce(&Place)) {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("good", "recognizer", &hostile, "[config]\ndo = \"good\"");
    place.open();
    add(&place);
    let (lines, log) = lines();
    let _log = log;
    let begin = Instant::now();
    let host = PluginHost::open(Settings { limits, ..place.settings() }).unwrap();
    let took = begin.elapsed();
    println!("{what}: refused in {took:?}");
    assert!(took < PATIENCE, "{what} took {took:?}");
    let PluginState::Refused(why) = state(&host, "wicked") else {
        panic!("{what} was loaded: {:?}", host.plugins());
    };
    assert!(why.contains(reason), "{what}: {why}");
    assert!(!why.contains(['\n', '\u{1b}']), "{why:?}");
    let about = lines.about("wicked");
    assert_eq!(about.len(), 1, "{what}: {about:?}");
    assert!(about[0].contains("refused"), "{about:?}");
    assert!(host.recognize(&chain(3))[0].result.is_ok());
    // A second look says nothing new.
    assert_eq!(host.rescan(), Rescan::default(), "{what}");
    assert_eq!(lines.about("wicked").len(), 1, "{what}");
}

fn hostile_bytes() -> Vec<u8> {
    std::fs::read(component("genie-guest-hostile")).unwrap()
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "lengths are encoded elsewhere");
    let mut out = bytes.to_vec();
    let mut at = 0;
    let mut count = 0;
    while at + from.len() <= out.len() {
        if out[at..].starts_with(from.as_bytes()) {
            out[at..at + to.len()].copy_from_slice(to.as_bytes());
            count += 1;
            at += from.len();
        } else {
            at += 1;
        }
    }
    assert!(count > 0, "{from} occurs");
    out
}

#[test]
fn what_is_no_component_is_refused() {
    refused("not wasm", "no WASM component", |place| {
        place.add_bytes("wicked", "recognizer", b"#!/bin/sh\necho hello\n", "");
    });
    refused("empty file", "no WASM component", |place| {
        place.add_bytes("wicked", "recognizer", b"", "");
    });
    refused("malformed component", "no WASM component", |place| {
        let mut bytes = hostile_bytes();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0xff);
        place.add_bytes("wicked", "recognizer", &bytes, "");
    });
    refused("half a component", "no WASM component", |place| {
        let bytes = hostile_bytes();
        place.add_bytes("wicked", "recognizer", &bytes[..bytes.len() / 2], "");
    });
    refused("a plain module", "no WASM component", |place| {
        place.add_bytes("wicked", "recognizer", b"\0asm\x01\0\0\0", "");
    });
    refused("a component without exports", "no plugin", |place| {
        place.add_bytes("wicked", "recognizer", b"\0asm\x0d\0\x01\0", "");
    });
}

#[test]
fn another_version_of_the_interface_is_refused() {
    refused("wrong WIT version", "genie:plugin@0.9.0", |place| {
        let bytes = replace(&hostile_bytes(), "@0.3.0", "@0.9.0");
        place.add_bytes("wicked", "recognizer", &bytes, "");
    });
    refused("wrong package", "plugins do not get", |place| {
        let bytes = replace(&hostile_bytes(), "genie:plugin/log", "wasii:plugin/log");
        place.add_bytes("wicked", "recognizer", &bytes, "");
    });
    refused("wrong types", "does not fit", |place| {
        let bytes = replace(&hostile_bytes(), "confidence", "confidense");
        place.add_bytes("wicked", "recognizer", &bytes, "");
    });
}

#[test]
fn files_that_are_not_plain_are_refused() {
    refused("symlink out of the directory", "leads out", |place| {
        let dir = place.manifest("wicked", "recognizer", "");
        let outside = place.root.path().join("outside.wasm");
        write(&outside, &hostile_bytes());
        symlink(outside, dir.join("plugin.wasm")).unwrap();
    });
    refused("FIFO", "not a regular file", |place| {
        let dir = place.manifest("wicked", "recognizer", "");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("plugin.wasm"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
    });
    refused("sparse 10 GiB", "at most", |place| {
        let dir = place.manifest("wicked", "recognizer", "");
        write(&dir.join("plugin.wasm"), b"");
        let file = std::fs::File::options().write(true).open(dir.join("plugin.wasm")).unwrap();
        file.set_len(10 << 30).unwrap();
    });
    refused("directory as component", "not a regular file", |place| {
        let dir = place.manifest("wicked", "recognizer", "");
        std::fs::create_dir(dir.join("plugin.wasm")).unwrap();
    });
    refused("nothing there", "cannot be found", |place| {
        place.manifest("wicked", "recognizer", "");
    });
    refused("directory that others write to", "chmod go-w", |place| {
        use std::os::unix::fs::PermissionsExt;
        let dir = place.add_bytes("wicked", "recognizer", &hostile_bytes(), "");
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    });
    refused("component that others write to", "chmod go-w", |place| {
        use std::os::unix::fs::PermissionsExt;
        let dir = place.add_bytes("wicked", "recognizer", &hostile_bytes(), "");
        let path = dir.join("plugin.wasm");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
    });
    refused("manifest that is no TOML", "manifest", |place| {
        let dir = place.manifest("wicked", "recognizer", "");
        write(&dir.join("plugin.toml"), b"name = [\n\x1b");
    });
}

#[test]
fn a_name_that_is_taken_is_refused_until_it_is_free() {
    let place = Place::new();
    let hostile = component("genie-guest-hostile");
    place.add("a", "recognizer", &hostile, "[config]\ndo = \"good\"");
    let b = place.add("b", "recognizer", &hostile, "[config]\ndo = \"good\"");
    let manifest = std::fs::read_to_string(b.join("plugin.toml")).unwrap();
    write(&b.join("plugin.toml"), manifest.replace("\"b\"", "\"a\"").as_bytes());
    let host = place.open();
    assert!(matches!(&host.plugins()[1].state, PluginState::Refused(why) if why.contains("same")));
    assert_eq!(host.recognize(&chain(1)).len(), 1);
    std::fs::remove_dir_all(place.plugins().join("a")).unwrap();
    host.rescan();
    assert_eq!(host.plugins().len(), 1);
    assert_eq!(state(&host, "a"), PluginState::Ready);
}

#[test]
fn capabilities_are_asked_for_and_granted() {
    let clock = component("genie-guest-clock");
    refused("clock without asking", "capabilities", |place| {
        place.add("wicked", "recognizer", &clock, "");
    });
    refused("clock without grant", "does not grant", |place| {
        place.add("wicked", "recognizer", &clock, "capabilities = [\"clock\"]");
    });
    let place = Place::new();
    place.add("clock", "recognizer", &clock, "capabilities = [\"log\", \"clock\"]");
    let host = place.open_granting(&[Capability::Clock]);
    let notes = host.recognize(&chain(1)).remove(0).result.unwrap();
    assert_eq!(notes.attributes[0].1, "it passes");
}

#[test]
fn a_plugin_that_does_not_start_is_refused() {
    refused("configuration refused", "no such setting", |place| {
        place.add_bytes(
            "wicked",
            "recognizer",
            &hostile_bytes(),
            "[config]\ndo = \"refuse-config\"",
        );
    });
    refused("endless start", "ran longer", |place| {
        place.add_bytes(
            "wicked",
            "recognizer",
            &hostile_bytes(),
            "[config]\ndo = \"loop-at-start\"",
        );
    });
    refused("kind that it does not export", "does not fit", |place| {
        let frozen = std::fs::read(component("genie-frozen-v0-1")).unwrap();
        let bytes = replace(&frozen, "plugin/recognizer", "plugin/recognizes");
        place.add_bytes("wicked", "recognizer", &bytes, "");
    });
}

#[test]
fn a_compile_bomb_is_refused_in_time() {
    let bomb = common::bomb::component(400_000);
    println!("the bomb has {} bytes", bomb.len());
    refused("compile bomb", "simplify it", |place| {
        place.add_bytes("wicked", "recognizer", &bomb, "");
    });
    let limits = Limits { compile_memory_bytes: 160 << 20, ..Limits::default() };
    refused_by("compile bomb by memory", "160 MiB", limits, |place| {
        place.add_bytes("wicked", "recognizer", &bomb, "");
    });
}

fn cluster() -> Cluster {
    let device = Device { name: "cpu".into(), memory_bytes: 1 << 30, ..Device::default() };
    Cluster { devices: vec![device], links: vec![], resident: vec![] }
}

#[test]
fn a_policy_that_names_what_does_not_exist_is_disabled() {
    let place = Place::new();
    let policy = component("genie-guest-policy");
    place.add("good", "policy", &policy, "");
    place.add("wicked", "policy", &policy, "[config]\ndo = \"unknown-device\"");
    let host = place.open();
    assert_eq!(host.policies(), ["good", "wicked"]);
    let (graph, notes) = (chain(4), Annotations::new());
    for _ in 0..3 {
        let call = host.schedule("wicked", &graph, &notes, &cluster()).unwrap();
        assert!(call.result.unwrap_err().to_string().contains("device 1 does not exist"));
    }
    assert!(host.schedule("wicked", &graph, &notes, &cluster()).is_none());
    assert_eq!(host.policies(), ["good"]);
    let call = host.schedule("good", &graph, &notes, &cluster()).unwrap();
    assert_eq!(call.result.unwrap().regions[0].nodes.len(), graph.nodes());
    // What the planner finds illegal counts too.
    for _ in 0..3 {
        host.strike("good", "the plan has a cycle");
    }
    assert!(host.policies().is_empty());
}

#[test]
fn a_path_with_a_fifo_for_a_manifest_is_refused() {
    let place = Place::new();
    let dir = place.plugins().join("wicked");
    std::fs::create_dir(&dir).unwrap();
    let path: &Path = &dir.join("plugin.toml");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(matches!(state(&place.open(), "wicked"), PluginState::Refused(_)));
}

#[test]
fn a_thread_with_the_promised_stack_survives_deep_recursion() {
    let (_place, host) = with_deed("recursion");
    let stack = Limits::default().stack_bytes + genie_plugin_host::limits::STACK_RESERVE_BYTES;
    let called = std::thread::scope(|scope| {
        let call = || host.recognize_with("wicked", &chain(5)).unwrap().result;
        let thread = std::thread::Builder::new().stack_size(stack);
        thread.spawn_scoped(scope, call).unwrap().join().unwrap()
    });
    assert!(called.unwrap_err().to_string().contains("call stack exhausted"));
}
