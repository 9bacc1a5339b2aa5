//! Plugins as files: the example in C works, the header equals the Rust side, and hostile plugins
//! are refused with a reason that names the file and what to do.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use genie_transport::abi::{self, RawCompletion, RawMemory, Slice, Text, Vtable};
use genie_transport::load::{Settings, Transports};
use genie_transport::probe::{ProbeCommand, probe_child_main};
use genie_transport::transport::*;

/// The argument by which this program is the child that probes.
const CHILD: &str = "probe-child";
/// For plugins that hang; a good one must be probed within it, on a machine that has other work.
const DEADLINE: Duration = Duration::from_secs(8);

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// This program is its own child, so it cannot have the usual harness.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, first, path] = &args[..]
        && first == CHILD
    {
        return probe_child_main(Path::new(path));
    }
    let wanted = |name: &str| {
        args[1..].iter().filter(|a| !a.starts_with('-')).all(|a| name.contains(a.as_str()))
    };
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let result = std::panic::catch_unwind(test);
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
    }
    println!("test result: {}. {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    ExitCode::from(u8::from(failed > 0))
}

const TESTS: &[(&str, fn())] = &[
    ("the_header_equals_the_rust_side", the_header_equals_the_rust_side),
    ("the_example_in_c_works", the_example_in_c_works),
    ("hostile_plugins_are_refused", hostile_plugins_are_refused),
    ("a_plugin_that_lacks_something_is_loaded_all_the_same", a_plugin_that_lacks_something),
    ("a_newer_minor_version_is_taken", a_newer_minor_version_is_taken),
    ("of_two_with_one_name_the_first_is_kept", of_two_with_one_name_the_first_is_kept),
    ("open_directories_and_files_are_refused", open_directories_and_files_are_refused),
    ("a_missing_directory_is_told", a_missing_directory_is_told),
    ("built_in_transports_come_first", built_in_transports_come_first),
];

fn cc(args: &[&str], source: &str, to: &Path) {
    let out = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1"])
        .args(args)
        .arg(format!("-I{HERE}/include"))
        .arg("-o")
        .arg(to)
        .arg(format!("{HERE}/{source}"))
        .output()
        .expect("a C compiler named cc");
    assert!(out.status.success(), "{source}: {}", String::from_utf8_lossy(&out.stderr));
}

fn plugin(dir: &Path, name: &str, defines: &[&str]) -> PathBuf {
    let path = dir.join(format!("{name}.so"));
    let flags: Vec<String> = defines.iter().map(|define| format!("-D{define}")).collect();
    let mut args = vec!["-shared", "-fPIC", "-Wno-array-bounds", "-Wno-unused-function"];
    args.extend(flags.iter().map(String::as_str));
    cc(&args, "tests/hostile/plugin.c", &path);
    path
}

/// A directory as an installation makes it.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn settings() -> Settings {
    let probe = ProbeCommand::this_program(&[CHILD]).unwrap();
    Settings { deadline: DEADLINE, ..Settings::new(probe) }
}

/// The only entry's refusal, as text.
fn refusal(dir: &Path) -> String {
    let transports = Transports::load(dir, &settings());
    let [entry] = transports.list() else { panic!("{:?}", transports.list()) };
    assert_eq!(transports.usable().count(), 0);
    entry.outcome.as_ref().expect_err("it should be refused").to_string()
}

fn the_header_equals_the_rust_side() {
    let dir = place();
    let program = dir.path().join("offsets");
    cc(&[], "tests/hostile/offsets.c", &program);
    let out = Command::new(&program).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let c: BTreeMap<&str, i64> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();
    let mut rust: BTreeMap<&str, i64> = BTreeMap::new();
    macro_rules! record {
        ($c:ident, $rust:ty, $($field:ident),*) => {
            rust.insert(stringify!($c), size_of::<$rust>() as i64);
            $(rust.insert(
                concat!(stringify!($c), ".", stringify!($field)),
                offset_of!($rust, $field) as i64,
            );)*
        };
    }
    record!(genie_slice, Slice, bytes);
    record!(genie_text, Text, capacity, bytes);
    record!(genie_memory, RawMemory, bytes, kind, device, descriptor, owner, release);
    record!(genie_part, Part, offset, bytes);
    record!(
        genie_completion,
        RawCompletion,
        window,
        message,
        offset,
        bytes,
        body,
        frame_kind,
        descriptor
    );
    record!(
        genie_transport,
        Vtable,
        major,
        minor,
        facts,
        probe,
        listen,
        connect,
        listener_address,
        listener_event_fd,
        listener_accept,
        listener_drop,
        connection_event_fd,
        connection_arm,
        connection_poll,
        connection_send_frame,
        connection_queued_bytes,
        connection_register,
        connection_unregister,
        connection_offer,
        connection_withdraw,
        connection_write,
        connection_export_secret,
        connection_peer_identity,
        connection_peer_address,
        connection_statistics,
        connection_close,
        connection_drop
    );
    let cause = |cause: Cause| cause as i64;
    let bit = |capability: Capabilities| capability.0 as i64;
    rust.extend([
        ("GENIE_TRANSPORT_MAJOR", abi::MAJOR.into()),
        ("GENIE_TRANSPORT_MINOR", abi::MINOR.into()),
        ("GENIE_OUT_OF_CREDIT", cause(Cause::OutOfCredit)),
        ("GENIE_CLOSED", cause(Cause::Closed)),
        ("GENIE_TIMED_OUT", cause(Cause::TimedOut)),
        ("GENIE_REFUSED", cause(Cause::Refused)),
        ("GENIE_VERSION", cause(Cause::Version)),
        ("GENIE_PROTOCOL", cause(Cause::Protocol)),
        ("GENIE_UNSUPPORTED", cause(Cause::Unsupported)),
        ("GENIE_INVALID", cause(Cause::Invalid)),
        ("GENIE_IO", cause(Cause::Io)),
        ("GENIE_INTERNAL", cause(Cause::Internal)),
        ("GENIE_CAN_CONTROL", bit(Capabilities::CONTROL)),
        ("GENIE_CAN_DATA", bit(Capabilities::DATA)),
        ("GENIE_CAN_SHARE_MEMORY", bit(Capabilities::SHARES_MEMORY)),
        ("GENIE_CAN_GPU_MEMORY", bit(Capabilities::GPU_MEMORY)),
        ("GENIE_CAN_ZERO_COPY", bit(Capabilities::ZERO_COPY)),
        ("GENIE_CAN_RDMA", bit(Capabilities::RDMA)),
        ("GENIE_CAN_NETWORK", bit(Capabilities::NETWORK)),
        ("GENIE_MEMORY_HOST", MemoryKind::Host as i64),
        ("GENIE_MEMORY_PINNED", MemoryKind::Pinned as i64),
        ("GENIE_MEMORY_GPU", MemoryKind::Gpu as i64),
        ("GENIE_MEMORY_DMA_BUF", MemoryKind::DmaBuf as i64),
        ("GENIE_CONNECTED", abi::CONNECTED.into()),
        ("GENIE_FRAME", abi::FRAME.into()),
        ("GENIE_WRITTEN", abi::WRITTEN.into()),
        ("GENIE_PLACED", abi::PLACED.into()),
        ("GENIE_WRITABLE", abi::WRITABLE.into()),
        ("GENIE_FRAME_BYTES_MAX", FRAME_BYTES_MAX as i64),
        ("GENIE_FRAME_QUEUE_BYTES_MAX", FRAME_QUEUE_BYTES_MAX as i64),
        ("GENIE_WINDOWS_MAX", WINDOWS_MAX as i64),
        ("GENIE_MESSAGES_MAX", MESSAGES_MAX as i64),
        ("GENIE_PARTS_MAX", PARTS_MAX as i64),
        ("GENIE_MEMORIES_MAX", MEMORIES_MAX as i64),
        ("GENIE_COMPLETIONS_MAX", COMPLETIONS_MAX as i64),
    ]);
    assert_eq!(c, rust);
}

fn the_example_in_c_works() {
    let dir = place();
    cc(&["-shared", "-fPIC"], "examples/mirror.c", &dir.path().join("mirror.so"));
    let transports = Transports::load(dir.path(), &settings());
    let [entry] = transports.list() else { panic!("{:?}", transports.list()) };
    let usable = entry.outcome.as_ref().expect("it is fit");
    assert_eq!(usable.probe.as_deref(), Ok("this process, and nobody else"));
    let mirror = transports.find("mirror").expect("it is loaded");
    assert!(transports.find("nothing").is_none());
    let mut connection = mirror.connect(&Options::default()).unwrap();
    let refused = mirror.listen(&Options::default()).err().expect("a mirror cannot listen");
    assert_eq!(refused.cause, Cause::Unsupported);
    let mut done = Vec::new();
    connection.poll(&mut done).unwrap();
    assert!(matches!(done[..], [Completion::Connected]), "{done:?}");

    connection.send_frame(7, &[b"he", b"", b"llo"], None).unwrap();
    let (memory, bytes) = Memory::allocate(4_096).unwrap();
    let key = connection.register(memory).unwrap();
    bytes.write(0, b"payload").unwrap();
    connection.offer(3, Part { key, offset: 1_000, bytes: 100 }).unwrap();
    connection.write(1, &[Part { key, offset: 0, bytes: 7 }], 3, 50).unwrap();
    let outside = connection.write(2, &[Part { key, offset: 0, bytes: 7 }], 3, 94);
    assert_eq!(outside.unwrap_err().cause, Cause::Invalid);
    assert!(connection.arm().unwrap());
    done.clear();
    connection.poll(&mut done).unwrap();
    let [Completion::Frame { kind: 7, body, memory: None }, placed, written] = &done[..] else {
        panic!("{done:?}");
    };
    assert_eq!(body, b"hello");
    let expect = Completion::Placed { message: 1, window: 3, offset: 50, bytes: 7 };
    assert_eq!(format!("{placed:?}"), format!("{expect:?}"));
    assert!(matches!(written, Completion::Written { message: 1 }));
    let mut have = [0; 7];
    bytes.read(1_050, &mut have).unwrap();
    assert_eq!(&have, b"payload");
    assert_eq!(connection.statistics(), [("waiting".to_owned(), 0)]);
    assert_eq!(connection.unregister(key).unwrap_err().cause, Cause::Invalid, "a window uses it");
    drop(connection);
    assert_eq!(std::sync::Arc::strong_count(&bytes), 1, "its memory is given up");
}

/// The fault, and words that the refusal has beside the file's name.
const HOSTILE: &[(&str, &[&str])] = &[
    ("WRONG_MAJOR", &["version 7.0", "speaks 1.0", "get a build"]),
    ("SMALL_TABLE", &["64 bytes", "damaged"]),
    ("NULL_TABLE", &["no table"]),
    ("NULL_FUNCTION", &["function 11", "null"]),
    ("NO_ENTRY", &["genie_transport_v1", "remove it"]),
    ("GARBAGE_FACTS", &["does not say who it is"]),
    ("HUGE_TEXT", &["does not say who it is"]),
    ("STRANGE_NAME", &["../evil", "is no name"]),
    ("CRASH_IN_CONSTRUCTOR", &["SIGSEGV", "(loading it)", "tell its author"]),
    ("HANG_IN_CONSTRUCTOR", &["did not end within", "(loading it)"]),
    ("CRASH_IN_ENTRY", &["SIGSEGV", "(its entry)", "not loaded"]),
    ("ABORT_IN_PROBE", &["SIGABRT", "(its probe)", "something is wrong"]),
    ("HANG_IN_PROBE", &["did not end within 8s", "(its probe)"]),
    ("FLOOD_IN_PROBE", &["(its probe)"]),
    ("EXIT_IN_PROBE", &["ended the process with status 0", "(its probe)"]),
];

fn hostile_plugins_are_refused() {
    let dir = place();
    for (fault, _) in HOSTILE {
        plugin(dir.path(), &fault.to_lowercase(), &[&format!("FAULT_{fault}")]);
    }
    std::fs::write(dir.path().join("text.so"), "this is no shared object").unwrap();
    plugin(dir.path(), "good", &[]);
    let begin = Instant::now();
    let transports = Transports::load(dir.path(), &settings());
    let took = begin.elapsed();
    assert!(took < DEADLINE * 2, "the children run at the same time: {took:?}");
    let entry = |name: &str| {
        let file = format!("{name}.so");
        let mut all = transports.list().iter();
        all.find(|entry| entry.path.as_ref().unwrap().ends_with(&file)).expect("it is listed")
    };
    for (fault, words) in HOSTILE {
        let name = fault.to_lowercase();
        let text = entry(&name).outcome.as_ref().expect_err(fault).to_string();
        assert!(text.contains(&format!("{name}.so")), "{text}");
        for word in *words {
            assert!(text.contains(word), "{fault}: {word:?} is not in: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
    }
    let text = entry("text").outcome.as_ref().unwrap_err().to_string();
    assert!(text.contains("could not be loaded") && text.contains("rebuild"), "{text}");
    let good = entry("good").outcome.as_ref().expect("a good one among them is loaded");
    assert_eq!(good.facts.name, "hostile");
    assert_eq!(transports.usable().count(), 1);
}

fn a_plugin_that_lacks_something() {
    let dir = place();
    plugin(dir.path(), "x", &["FAULT_NOTHING_HERE"]);
    let transports = Transports::load(dir.path(), &settings());
    let usable = transports.list()[0].outcome.as_ref().expect("it is loaded");
    let missing = usable.probe.as_ref().unwrap_err();
    assert_eq!(missing, "no device  [31m was found", "one line without control characters");
    assert!(transports.find("hostile").is_some());
}

fn a_newer_minor_version_is_taken() {
    let dir = place();
    plugin(dir.path(), "x", &["FAULT_NEWER_MINOR"]);
    assert!(Transports::load(dir.path(), &settings()).find("hostile").is_some());
}

fn of_two_with_one_name_the_first_is_kept() {
    let dir = place();
    plugin(dir.path(), "a", &[]);
    plugin(dir.path(), "b", &[]);
    plugin(dir.path(), "c", &["NAME=\"other\""]);
    let transports = Transports::load(dir.path(), &settings());
    let refusals: Vec<String> = transports
        .list()
        .iter()
        .filter_map(|entry| Some(entry.outcome.as_ref().err()?.to_string()))
        .collect();
    let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
    assert!(refusal.contains("b.so") && refusal.contains("a.so"), "{refusal}");
    let names: Vec<&str> = transports.usable().map(|(name, _)| name).collect();
    assert_eq!(names, ["hostile", "other"]);
}

fn open_directories_and_files_are_refused() {
    let dir = place();
    let path = plugin(dir.path(), "x", &["FAULT_CRASH_IN_CONSTRUCTOR"]);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o666);
    let text = refusal(dir.path());
    assert!(
        text.contains("x.so") && text.contains("0666") && text.contains("chmod go-w"),
        "{text}"
    );
    mode(&path, 0o644);
    mode(dir.path(), 0o777);
    let text = refusal(dir.path());
    let name = dir.path().to_str().unwrap();
    assert!(text.contains(name) && text.contains("0777") && text.contains("chmod go-w"), "{text}");
    // It was not even tried: the child would have told of the crash.
    assert!(!text.contains("SIGSEGV"), "{text}");
}

fn a_missing_directory_is_told() {
    let dir = place();
    let text = refusal(&dir.path().join("nowhere"));
    assert!(text.contains("nowhere") && text.contains("check that it exists"), "{text}");
}

struct BuiltIn;

impl Transport for BuiltIn {
    fn facts(&self) -> Facts {
        let capabilities = Capabilities::DATA;
        Facts { name: "hostile".into(), version: "built in".into(), capabilities }
    }

    fn probe(&self, _: &Options) -> Result<String> {
        Ok("always here".into())
    }

    fn listen(&self, _: &Options) -> Result<Box<dyn Listener>> {
        Err(TransportError::unsupported("hostile", "listener"))
    }

    fn connect(&self, _: &Options) -> Result<Box<dyn Connection>> {
        Err(TransportError::unsupported("hostile", "connection"))
    }
}

fn built_in_transports_come_first() {
    let dir = place();
    plugin(dir.path(), "x", &[]);
    let built_in = Transports::default().with(std::sync::Arc::new(BuiltIn));
    let transports = built_in.and_load(dir.path(), &settings());
    assert_eq!(transports.find("hostile").unwrap().facts().version, "built in");
    let [first, second] = transports.list() else { panic!("{:?}", transports.list()) };
    assert!(first.path.is_none() && first.outcome.is_ok());
    let text = second.outcome.as_ref().unwrap_err().to_string();
    assert!(text.contains("this program"), "{text}");
}
