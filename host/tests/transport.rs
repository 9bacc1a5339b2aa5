//! `genie-host transport` as a person runs it, on the example plugin in C.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const ABI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../transports/abi");

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_genie-host"))
        .arg("transport")
        .args(args)
        .arg("--transports")
        .arg(dir)
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it prints UTF-8")
}

/// A directory with the example, and a file that is no plugin.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-std=c11", "-o"])
        .arg(dir.path().join("mirror.so"))
        .arg(format!("-I{ABI}/include"))
        .arg(format!("{ABI}/examples/mirror.c"))
        .status()
        .expect("a C compiler named cc");
    assert!(built.success());
    std::fs::write(dir.path().join("broken.so"), "no plugin").unwrap();
    dir
}

#[test]
fn list_tells_what_is_there_and_what_is_refused() {
    let dir = place();
    let out = run(dir.path(), &["list"]);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let words = ["mirror", "control,data", "this process", "refused:", "broken.so", "RDMA: "];
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    let out = run(dir.path(), &["list", "--json"]);
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    let entries = said["transports"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries[0]["refused"].as_str().unwrap().contains("could not be loaded"));
    assert_eq!(entries[1]["name"], "mirror");
    assert_eq!(entries[1]["usable"], true);
    assert!(said["rdma_devices"].is_array());
}

#[test]
fn probe_asks_one() {
    let dir = place();
    let out = run(dir.path(), &["probe", "mirror"]);
    assert_eq!(text(&out.stdout), "this process, and nobody else\n");
    let out = run(dir.path(), &["probe", "carrier-pigeon"]);
    assert!(!out.status.success());
    let said = text(&out.stderr);
    assert!(said.contains("no transport carrier-pigeon"), "{said}");
    assert!(said.contains("there are: mirror") && said.contains("broken.so"), "{said}");
}

#[test]
fn bench_says_why_it_cannot_begin() {
    let dir = place();
    let out = run(dir.path(), &["bench", "mirror", "--listen", "127.0.0.1:0"]);
    assert!(!out.status.success());
    let said = text(&out.stderr);
    assert!(said.contains("the transport mirror cannot listen"), "{said}");
    let out = run(dir.path(), &["bench", "mirror"]);
    assert!(text(&out.stderr).contains("--listen"));
}
