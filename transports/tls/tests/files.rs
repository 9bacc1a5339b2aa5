//! Certificate directories that are good, bad, and change while a process runs.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{DAY_S, NOW_S, Site, meet, said};
use genie_tls::{Accept, Identity, Role, TlsError, identity};
use proptest::prelude::*;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

const ALPN: &[&[u8]] = &[b"genie/1"];

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn node_id(name: &str) -> Identity {
    Identity::new(Role::Node, name).unwrap()
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let site = Site::new();
    let key = site.path().join("key.pem");
    for open in [0o644, 0o640, 0o604, 0o660, 0o620, 0o601] {
        mode(&key, open);
        let error = site.try_load(site.path()).unwrap_err();
        assert!(matches!(error, TlsError::KeyPermission { .. }), "{open:o}: {error}");
        let command = format!("chmod 600 {}", key.display());
        assert!(error.to_string().contains(&command), "{error}");
    }
    for closed in [0o600, 0o400] {
        mode(&key, closed);
        site.try_load(site.path()).unwrap();
    }
}

#[test]
fn what_others_can_change_is_not_trusted() {
    let site = Site::new();
    for (path, bad, good) in
        [(site.path().join("ca.pem"), 0o664, 0o644), (site.path().to_owned(), 0o777, 0o755)]
    {
        mode(&path, bad);
        let error = site.try_load(site.path()).unwrap_err();
        assert!(matches!(error, TlsError::WritableByOthers { .. }), "{error}");
        assert_eq!(error.path(), Some(&*path));
        mode(&path, good);
        site.try_load(site.path()).unwrap();
    }
}

#[test]
fn every_file_that_is_missing_or_bad_is_named() {
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        let site = Site::new();
        let path = site.path().join(file);
        for (bytes, reason) in [
            (&b""[..], "holds no"),
            (&b"hello"[..], "holds no"),
            (&[0xff; 5000][..], "holds no"),
            (&b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"[..], ""),
            (&[b'x'; (1 << 20) + 1][..], "larger than 1 MiB"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = site.try_load(site.path()).unwrap_err();
            assert!(matches!(error, TlsError::Bad { .. }), "{error}");
            assert_eq!(error.path(), Some(&*path));
            assert!(error.to_string().contains(reason), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let error = site.try_load(site.path()).unwrap_err();
        assert!(matches!(error, TlsError::Missing { .. }), "{error}");
        assert_eq!(error.path(), Some(&*path));
        fs::create_dir(&path).unwrap();
        assert_eq!(site.try_load(site.path()).unwrap_err().path(), Some(&*path));
    }
}

#[test]
fn files_of_two_issues_do_not_go_together() {
    let (site, other) = (Site::new(), Site::new());
    let a = site.dir("a", &node_id("a"), &["a"]);
    let b = site.dir("b", &node_id("b"), &["b"]);
    fs::copy(b.join("key.pem"), a.join("key.pem")).unwrap();
    let error = site.try_load(&a).unwrap_err();
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
    fs::copy(other.path().join("ca.pem"), b.join("ca.pem")).unwrap();
    let error = site.try_load(&b).unwrap_err();
    assert!(matches!(error, TlsError::ForeignCert { .. }), "{error}");
    // A leaf is no authority.
    fs::copy(b.join("cert.pem"), b.join("ca.pem")).unwrap();
    let error = site.try_load(&b).unwrap_err().to_string();
    assert!(error.contains("no authority's"), "{error}");
}

#[test]
fn a_renewed_certificate_is_used_at_the_next_handshake_and_connections_go_on() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node_for("n", &["n"], 10));
    let (client, server) = common::configs(&host, &node, Accept::Hosts, ALPN, ALPN);
    let first = common::meet_with(client.clone(), server.clone(), "n");
    let shown = first.pair.0.peer_certificates().unwrap()[0].clone();
    assert_eq!(node.not_after_s(), NOW_S + 10 * DAY_S);

    site.clock.set(NOW_S + 5 * DAY_S);
    site.store().issue(&node_id("n"), &[], 100, None).unwrap();
    site.store().rotate(365).unwrap();
    // Past the end of the first certificate, the same configurations work.
    site.clock.set(NOW_S + 20 * DAY_S);
    let second = common::meet_with(client, server, "n");
    assert_eq!(second.server.unwrap().name(), "me");
    assert_ne!(second.pair.0.peer_certificates().unwrap()[0], shown);
    assert_eq!(node.not_after_s(), NOW_S + 105 * DAY_S);
    assert_eq!(site.warnings(), 0, "{:?}", site.warned.lock().unwrap());

    let (mut client, mut server) = first.pair;
    client.writer().write_all(b"still here").unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    common::feed(&mut server, &bytes, &mut None);
    let mut text = [0; 10];
    server.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
}

#[test]
fn broken_new_files_keep_the_old_ones_and_warn_once() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("n", &["n"]));
    let dir = node.dir().to_owned();
    let good = fs::read(dir.join("cert.pem")).unwrap();
    let meets = || meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN).server.is_ok();
    fs::write(dir.join("cert.pem"), b"half a certifi").unwrap();
    for _ in 0..5 {
        assert!(meets(), "the old certificate goes on");
    }
    assert_eq!(site.warnings(), 1, "{:?}", site.warned.lock().unwrap());
    assert!(site.warned.lock().unwrap()[0].contains("node-n/cert.pem"));
    // Another trouble is another warning.
    fs::write(dir.join("cert.pem"), &good).unwrap();
    mode(&dir.join("key.pem"), 0o644);
    assert!(meets() && meets());
    assert_eq!(site.warnings(), 2, "{:?}", site.warned.lock().unwrap());
    // Mended, and the next trouble is told again.
    mode(&dir.join("key.pem"), 0o600);
    assert!(meets());
    fs::remove_file(dir.join("key.pem")).unwrap();
    assert!(meets() && meets());
    assert_eq!(site.warnings(), 3, "{:?}", site.warned.lock().unwrap());
}

#[test]
fn a_node_does_not_become_a_host_while_it_runs() {
    let site = Site::new();
    let node = site.node("n", &["n"]);
    for file in ["cert.pem", "key.pem"] {
        fs::copy(site.path().join(file), node.dir().join(file)).unwrap();
    }
    assert_eq!(node.identity(), node_id("n"));
    assert_eq!(site.warnings(), 1);
    assert!(site.warned.lock().unwrap()[0].contains("genie-host/me"));
}

#[test]
fn an_authority_changes_while_hosts_and_nodes_run() {
    let site = Site::new();
    let host = site.host();
    let node = site.load(&site.dir("remote", &node_id("n"), &["n"]));
    let late = site.load(&site.dir("late", &node_id("late"), &["late"]));
    let meets = |node, name| meet(&host, node, Accept::Hosts, name, ALPN, ALPN);
    // What an administrator copies to a machine.
    let copy = |name: &str, files: &[&str], to: &str| {
        for file in files {
            let from = site.path().join(format!("issued/node-{name}")).join(file);
            fs::copy(from, site.path().join("..").join(to).join(file)).unwrap();
        }
    };
    let all = ["ca.pem", "key.pem", "cert.pem"];

    let issued = site.store().rotate_authority(365).unwrap();
    assert_eq!(issued.len(), 2);
    // Nothing copied yet, then one node's files: all meet.
    assert!(meets(&node, "n").server.is_ok() && meets(&late, "late").server.is_ok());
    copy("n", &all, "remote");
    assert!(meets(&node, "n").server.is_ok() && meets(&late, "late").server.is_ok());

    // The old authority goes: who has the new files stays, who lacks them is refused.
    site.store().finish(365).unwrap();
    assert!(meets(&node, "n").server.is_ok());
    let met = meets(&late, "late");
    said(met.client, "not from an authority in our ca.pem");
    copy("n", &["ca.pem"], "remote");
    copy("late", &all, "late");
    assert!(meets(&node, "n").server.is_ok() && meets(&late, "late").server.is_ok());
    assert_eq!(site.warnings(), 0, "{:?}", site.warned.lock().unwrap());
}

proptest! {
    /// A damaged file is refused or, where the damage is outside what counts, the same identity.
    #[test]
    fn a_damaged_directory_is_refused_or_the_same(
        file in 0usize..3, at in 0usize..4096, byte: u8, cut: bool,
    ) {
        let site = &*SITE;
        let dir = tempfile::tempdir().unwrap();
        for (index, name) in ["ca.pem", "cert.pem", "key.pem"].iter().enumerate() {
            let mut bytes = fs::read(site.path().join(name)).unwrap();
            if index == file {
                let at = at % bytes.len();
                match cut {
                    true => bytes.truncate(at),
                    false => bytes[at] = byte,
                }
            }
            fs::write(dir.path().join(name), bytes).unwrap();
            mode(&dir.path().join(name), 0o600);
        }
        match site.try_load(dir.path()) {
            Ok(certs) => prop_assert_eq!(certs.identity().to_string(), "genie-host/me"),
            Err(error) => prop_assert!(error.path().is_some(), "{}", error),
        }
    }
}

proptest! {
    /// What a peer shows is read before it is trusted: several bytes changed, cut, or doubled.
    #[test]
    fn a_damaged_certificate_is_read_without_a_panic(
        changes in proptest::collection::vec((0usize..4096, any::<u8>()), 0..8),
        cut in 0usize..8192,
        doubled: bool,
    ) {
        let mut der = DER.to_vec();
        for (at, byte) in changes {
            let at = at % der.len();
            der[at] = byte;
        }
        if doubled {
            der.extend_from_slice(&DER);
        }
        der.truncate(cut);
        if let Ok(found) = identity(&der.into()) {
            // Only a name of the permitted form comes out.
            prop_assert!(Identity::new(found.role(), found.name()).is_ok());
            prop_assert!(!doubled || cut <= DER.len());
        }
    }
}

static DER: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    let pem = fs::read(SITE.path().join("cert.pem")).unwrap();
    CertificateDer::from_pem_slice(&pem).unwrap().to_vec()
});
static SITE: std::sync::LazyLock<Site> = std::sync::LazyLock::new(Site::new);
