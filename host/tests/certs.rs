//! `genie-host certs` as a person runs it, into temporary directories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use genie_tls::{Accept, ReloadingCerts, Role};
use serde_json::Value;
use tempfile::TempDir;

/// A home directory of its own; nothing of the caller's environment is used.
struct Home(TempDir);

struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn certs(&self) -> PathBuf {
        self.0.path().join(".config/genie/certs")
    }

    fn run(&self, args: &[&str]) -> Said {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], env: &[(&str, &Path)]) -> Said {
        let output = Command::new(env!("CARGO_BIN_EXE_genie-host"))
            .arg("certs")
            .args(args)
            .env_clear()
            .env("HOME", self.0.path())
            .envs(env.iter().copied())
            .output()
            .unwrap();
        Said {
            ok: output.status.success(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs what must succeed.
    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert!(said.ok, "{args:?}: {}", said.err);
        said.out
    }

    /// Runs what must fail, in words that hold each part.
    #[track_caller]
    fn bad(&self, args: &[&str], parts: &[&str]) {
        let said = self.run(args);
        assert!(!said.ok, "{args:?}: {}", said.out);
        for part in parts {
            assert!(said.err.contains(part), "{:?} does not say {part:?}", said.err);
        }
    }

    fn show(&self) -> Vec<Value> {
        let report: Value = serde_json::from_str(&self.good(&["show", "--json"])).unwrap();
        report["certificates"].as_array().unwrap().clone()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_directory_that_a_host_can_use() {
    let home = Home::new();
    let out = home.good(&["init", "--name", "desk"]);
    assert!(out.contains("genie-host/desk") && out.contains("certs issue node NAME"), "{out}");
    let certs = ReloadingCerts::load(home.certs()).unwrap();
    assert_eq!(certs.identity().to_string(), "genie-host/desk");
    certs.client_config(&[b"x"]).unwrap();
    assert_eq!(mode(&home.certs()), 0o700);
    for (file, want) in
        [("ca-key.pem", 0o600), ("key.pem", 0o600), ("ca.pem", 0o644), ("cert.pem", 0o644)]
    {
        // The caller's umask may take more away.
        assert_eq!(mode(&home.certs().join(file)) & !want, 0, "{file}");
    }
}

#[test]
fn init_takes_the_machines_name_and_a_directory_from_the_environment() {
    let home = Home::new();
    let elsewhere = home.0.path().join("else where");
    let said = home.run_with(&["init"], &[("GENIE_CERTS", &elsewhere)]);
    assert!(said.ok, "{}", said.err);
    assert!(said.out.contains(&format!("--dir '{}'", elsewhere.display())), "{}", said.out);
    assert_eq!(ReloadingCerts::load(elsewhere).unwrap().identity().role(), Role::Host);
    let config = home.0.path().join("config");
    assert!(home.run_with(&["init"], &[("XDG_CONFIG_HOME", &config)]).ok);
    ReloadingCerts::load(config.join("genie/certs")).unwrap();
    assert!(!home.certs().exists());
}

#[test]
fn init_overwrites_nothing() {
    let home = Home::new();
    home.good(&["init"]);
    let before = fs::read(home.certs().join("ca-key.pem")).unwrap();
    home.bad(&["init"], &["ca-key.pem is there already", "certs show", "certs rotate"]);
    assert_eq!(fs::read(home.certs().join("ca-key.pem")).unwrap(), before);
    // Nor a node's directory, which has no authority.
    home.good(&["issue", "node", "n", "--address", "n"]);
    let node = home.certs().join("issued/node-n");
    home.bad(&["init", "--dir", node.to_str().unwrap()], &["ca.pem is there already"]);
    assert_eq!(ReloadingCerts::load(node).unwrap().identity().to_string(), "genie-node/n");
}

#[test]
fn a_node_gets_a_directory_and_the_commands_that_use_it() {
    let home = Home::new();
    home.good(&["init"]);
    let out = home.good(&["issue", "node", "gpu-1", "--address", "gpu-1.lan", "fd00::7"]);
    let dir = home.certs().join("issued/node-gpu-1");
    for part in [
        format!("scp -p {}/{{ca,cert,key}}.pem gpu-1.lan:.config/genie/certs/", dir.display()),
        "genie-node --listen quic://0.0.0.0:4610 --certs ~/.config/genie/certs".to_owned(),
        format!("genie-host serve --node quic://gpu-1.lan:4610 --certs {}", home.certs().display()),
    ] {
        assert!(out.contains(&part), "{out}\ndoes not hold {part}");
    }
    let node = ReloadingCerts::load(&dir).unwrap();
    node.server_config(Accept::Hosts, &[b"x"]).unwrap();
    assert!(!dir.join("ca-key.pem").exists(), "the authority stays here");

    // Elsewhere, for an IPv6 address; then renewed with the addresses that it has.
    let out_dir = home.0.path().join("for-six");
    let args = ["issue", "node", "six", "--out", out_dir.to_str().unwrap()];
    let out = home.good(&[&args[..], &["--address", "fd00::6"]].concat());
    assert!(out.contains("[fd00::6]:.config") && out.contains("quic://[fd00::6]:4610"), "{out}");
    let before = fs::read(out_dir.join("cert.pem")).unwrap();
    assert!(home.good(&args).contains("fd00::6"));
    assert_ne!(fs::read(out_dir.join("cert.pem")).unwrap(), before);
}

#[test]
fn another_host_gets_one_too() {
    let home = Home::new();
    home.good(&["init", "--name", "desk"]);
    let out = home.good(&["issue", "host", "lab"]);
    assert!(out.contains("genie-host serve --node quic://NODE:4610"), "{out}");
    let lab = ReloadingCerts::load(home.certs().join("issued/host-lab")).unwrap();
    assert_eq!(lab.identity().to_string(), "genie-host/lab");
    home.bad(&["issue", "host", "desk"], &["this host's own", "certs rotate"]);
}

#[test]
fn what_cannot_be_issued_says_why() {
    let home = Home::new();
    home.bad(&["issue", "node", "n", "--address", "n"], &["no authority", "certs init"]);
    home.bad(&["rotate"], &["no authority", "certs init"]);
    home.good(&["init"]);
    home.bad(&["issue", "node", "n"], &["--address"]);
    home.bad(&["issue", "node", "a/b", "--address", "n"], &["no name for a host or node"]);
    home.bad(&["issue", "node", "n", "--address", "a b"], &["neither a host name nor an IP"]);
    home.bad(&["issue", "node", "n", "--address", "n", "--days", "0"], &["1..=3650"]);
    home.bad(&["rotate", "--finish"], &["no change of the authority", "rotate --ca"]);
    home.bad(&["rotate", "--finish", "--ca"], &["cannot be used with"]);
    // Not over somebody else's files.
    home.good(&["issue", "node", "n", "--address", "n"]);
    let n = home.certs().join("issued/node-n");
    let args = ["issue", "node", "m", "--address", "m", "--out", n.to_str().unwrap()];
    home.bad(&args, &["is the certificate of genie-node/n", "another `--out`"]);
    // Nor with an authority that others can read.
    let key = home.certs().join("ca-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    home.bad(&["rotate"], &["chmod 600", "ca-key.pem"]);
}

#[test]
fn two_at_a_time_do_not_mix() {
    let home = Home::new();
    home.good(&["init"]);
    let lock = fs::File::options().append(true).open(home.certs().join(".lock")).unwrap();
    lock.lock().unwrap();
    home.bad(&["rotate"], &["another `genie-host certs` is at work"]);
    lock.unlock().unwrap();
    home.good(&["rotate"]);
}

#[test]
fn rotate_renews_this_hosts_certificate_alone() {
    let home = Home::new();
    home.good(&["init", "--days", "10"]);
    home.good(&["issue", "node", "n", "--address", "n"]);
    let certs = ReloadingCerts::load(home.certs()).unwrap();
    let (ca, expires) = (fs::read(home.certs().join("ca.pem")).unwrap(), certs.not_after_s());
    let out = home.good(&["rotate", "--days", "400"]);
    assert!(out.contains("nothing to copy"), "{out}");
    assert!(certs.not_after_s() > expires + 380 * 86_400, "a running host has the new one");
    assert_eq!(fs::read(home.certs().join("ca.pem")).unwrap(), ca);
    let names: Vec<_> =
        fs::read_dir(home.certs()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(".new-")), "{names:?}");
}

#[test]
fn an_authority_is_replaced_in_two_steps() {
    let home = Home::new();
    home.good(&["init", "--name", "desk"]);
    home.good(&["issue", "node", "n", "--address", "10.0.0.7"]);
    home.good(&["issue", "host", "lab"]);
    let authorities = || {
        let all = home.show();
        all.iter().filter(|cert| cert["role"] == "authority").cloned().collect::<Vec<_>>()
    };
    let issuer = |name: &str| {
        let all = home.show();
        all.iter().find(|cert| cert["name"] == name).unwrap()["issuer"].clone()
    };
    let old = authorities()[0]["name"].clone();

    let out = home.good(&["rotate", "--ca"]);
    let order = ["copy to 10.0.0.7", "copy to lab", "rotate --finish"].map(|part| out.find(part));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{out}");
    assert_eq!(authorities().len(), 2);
    assert_eq!(issuer("desk"), old, "nodes without the new files must still take this host");
    assert_ne!(issuer("n"), old);
    for dir in
        [home.certs(), home.certs().join("issued/node-n"), home.certs().join("issued/host-lab")]
    {
        ReloadingCerts::load(dir).unwrap();
    }
    home.bad(&["rotate"], &["under way", "rotate --finish"]);
    home.bad(&["rotate", "--ca"], &["under way", "rotate --finish"]);

    let out = home.good(&["rotate", "--finish"]);
    assert!(out.contains("scp -p") && out.contains("node-n/ca.pem 10.0.0.7:"), "{out}");
    assert_eq!(authorities().len(), 1);
    assert_ne!(issuer("desk"), old);
    for dir in
        [home.certs(), home.certs().join("issued/node-n"), home.certs().join("issued/host-lab")]
    {
        ReloadingCerts::load(dir).unwrap();
    }
    home.good(&["rotate"]);
}

#[test]
fn finish_waits_for_what_still_comes_from_the_old_authority() {
    let home = Home::new();
    home.good(&["init"]);
    home.good(&["issue", "node", "n", "--address", "n"]);
    let record = home.certs().join("issued/node-n/cert.pem");
    let old = fs::read(&record).unwrap();
    home.good(&["rotate", "--ca"]);
    fs::write(&record, old).unwrap();
    home.bad(&["rotate", "--finish"], &["node-n/cert.pem still comes from the old authority"]);
    home.good(&["issue", "node", "n"]);
    home.good(&["rotate", "--finish"]);
}

#[test]
fn show_tells_who_where_and_until_when() {
    let home = Home::new();
    home.bad(&["show"], &["can be read"]);
    home.good(&["init", "--name", "desk"]);
    home.good(&["issue", "node", "gpu-1", "--address", "gpu-1.lan", "10.0.0.7", "--days", "20"]);
    let text = home.good(&["show"]);
    for part in [
        "genie-host/desk  (cert.pem)",
        "genie-node/gpu-1  (issued/node-gpu-1/cert.pem)",
        "addresses: gpu-1.lan, 10.0.0.7",
        " days left)",
        "`genie-host certs issue node gpu-1` renews it",
    ] {
        assert!(text.contains(part), "{text}\ndoes not hold {part}");
    }
    assert_eq!(text.matches("warning").count(), 1, "{text}");
    let all = home.show();
    let roles: Vec<_> = all.iter().map(|cert| cert["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["authority", "host", "node"]);
    assert_eq!(all[2]["addresses"], serde_json::json!(["gpu-1.lan", "10.0.0.7"]));
    // Whole days, by a clock that went on since.
    assert!(matches!(all[1]["days_left"].as_i64(), Some(364 | 365)), "{all:?}");
    assert!(matches!(all[2]["days_left"].as_i64(), Some(19 | 20)), "{all:?}");
    assert!(all[1]["warning"].is_null());

    // A damaged one is told, beside those that are good.
    fs::write(home.certs().join("cert.pem"), "x").unwrap();
    let said = home.run(&["show", "--json"]);
    assert!(!said.ok && said.err.contains("not every certificate"), "{}", said.err);
    let report: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(report["certificates"].as_array().unwrap().len(), 2);
    assert!(report["problems"][0].as_str().unwrap().contains("cert.pem"));
}
