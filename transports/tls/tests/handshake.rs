//! Hosts and nodes meet in memory: who is taken, who is refused and in which words, and what
//! changes while a process runs.

mod common;

use common::{DAY_S, NOW_S, Site, meet, said};
use genie_tls::{Accept, Identity, ReloadingCerts, Role, TlsError};

const ALPN: &[&[u8]] = &[b"genie/1"];

#[test]
fn a_host_and_a_node_of_one_authority_know_each_other() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("gpu-1", &["gpu-1.lan", "10.0.0.7", "fd00::7"]));
    for address in ["gpu-1.lan", "10.0.0.7", "fd00::7", "[fd00::7]"] {
        let met = meet(&host, &node, Accept::Hosts, address, ALPN, ALPN);
        assert_eq!(met.client.unwrap(), Identity::new(Role::Node, "gpu-1").unwrap());
        assert_eq!(met.server.unwrap(), Identity::new(Role::Host, "me").unwrap());
        assert_eq!(met.alpn.as_deref(), Some(ALPN[0]));
        assert!(!met.resumed);
    }
}

#[test]
fn a_second_meeting_resumes_nothing() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("n", &["n"]));
    let (client, server) = common::configs(&host, &node, Accept::Hosts, ALPN, ALPN);
    for _ in 0..2 {
        let met = common::meet_with(client.clone(), server.clone(), "n");
        assert!(met.server.is_ok() && !met.resumed);
    }
}

#[test]
fn another_authority_is_refused_by_both() {
    let (ours, theirs) = (Site::new(), Site::new());
    let met = meet(&ours.host(), &theirs.node("n", &["n"]), Accept::Hosts, "n", ALPN, ALPN);
    said(met.client, "not from an authority in our ca.pem");
    said(met.server, "does not know the authority that issued our certificate");
    // The node refuses too: a host that trusts both, with a certificate of its own authority.
    let stranger = ours.dir("stranger", &Identity::new(Role::Host, "stranger").unwrap(), &[]);
    let theirs_ca = std::fs::read_to_string(theirs.path().join("ca.pem")).unwrap();
    let both = std::fs::read_to_string(stranger.join("ca.pem")).unwrap() + &theirs_ca;
    std::fs::write(stranger.join("ca.pem"), both).unwrap();
    let met =
        meet(&ours.load(&stranger), &theirs.node("n", &["n"]), Accept::Hosts, "n", ALPN, ALPN);
    said(met.server, "not from an authority in our ca.pem");
    said(met.client, "does not know the authority");
}

#[test]
fn an_address_that_the_certificate_does_not_name_is_refused() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("n", &["gpu-1.lan", "10.0.0.7"]));
    for address in ["gpu-2.lan", "10.0.0.8", "me", "localhost"] {
        let met = meet(&host, &node, Accept::Hosts, address, ALPN, ALPN);
        let words = said(met.client, &format!("not {address}, which was dialled"));
        assert!(words.contains("gpu-1.lan") && words.contains(&format!("--address {address}")));
        said(met.server, "does not name the address that was dialled");
    }
}

#[test]
fn roles_are_kept_apart() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("n", &["n"]));
    let other = site.node("other", &["other"]);
    // A node dials a node: only where that is asked for.
    let met = meet(&other, &node, Accept::Hosts, "n", ALPN, ALPN);
    said(met.server, "the peer is genie-node/other, and only a host may speak here");
    said(met.client, "does not take certificates of our role");
    let met = meet(&other, &node, Accept::HostsAndNodes, "n", ALPN, ALPN);
    assert_eq!(met.server.unwrap().to_string(), "genie-node/other");
    // A host's certificate serves nobody.
    let error = host.server_config(Accept::Hosts, ALPN).unwrap_err();
    assert!(matches!(error, TlsError::OwnRole { .. }), "{error}");
    assert!(error.to_string().contains("issue node"), "{error}");
    // Nor with a server that does not mind: the client does.
    let met = meet_host_that_serves(&site, &host);
    said(met.client, "the peer is genie-host/me, and only a node may speak here");
}

/// A server that shows the host's certificate, which `server_config` refuses to.
fn meet_host_that_serves(site: &Site, host: &std::sync::Arc<ReloadingCerts>) -> common::Met {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let read = |file: &str| std::fs::read(site.path().join(file)).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&read("cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_details(provider, site.clock.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    server.alpn_protocols = vec![ALPN[0].to_vec()];
    common::meet_with(host.client_config(ALPN).unwrap().into(), server.into(), "me")
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let site = Site::new();
    let node = site.node("n", &["n"]);
    let (client, server) = common::configs(&site.host(), &node, Accept::Hosts, ALPN, ALPN);
    let mut client = std::sync::Arc::unwrap_or_clone(client);
    client.client_auth_cert_resolver = std::sync::Arc::new(Nobody);
    let met = common::meet_with(client.into(), server, "n");
    said(met.server, "the peer sent no certificate");
    said(met.client, "wants a certificate and we have none");
}

#[test]
fn an_expired_certificate_is_refused_with_its_date() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node_for("n", &["n"], 10));
    assert!(meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN).server.is_ok());
    site.clock.set(NOW_S + 11 * DAY_S);
    let met = meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN);
    let words = said(met.client, "expired on");
    assert!(words.contains(&genie_tls::date(NOW_S + 10 * DAY_S)), "{words}");
    assert!(words.contains("genie-host certs issue node"), "{words}");
    said(met.server, "our certificate has expired");
    // The node said so itself, once, and a fresh process does not start with it.
    let _ = meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN);
    assert_eq!(site.warnings(), 1, "{:?}", site.warned.lock().unwrap());
    let error = site.try_load(&site.path().join("issued/node-n")).unwrap_err();
    assert!(matches!(error, TlsError::Expired { role: Some(Role::Node), .. }), "{error}");
    // A host's, the other way round.
    site.clock.set(NOW_S + 366 * DAY_S);
    let error = site.try_load(site.path()).unwrap_err().to_string();
    assert!(error.contains("genie-host certs rotate"), "{error}");
}

#[test]
fn an_expired_client_is_refused_by_a_node_that_is_not() {
    let site = Site::new();
    let node = site.node_for("n", &["n"], 1000);
    let host = site.host();
    site.clock.set(NOW_S + 366 * DAY_S);
    let met = meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN);
    said(met.server, "genie-host certs rotate");
    said(met.client, "genie-host certs rotate");
}

#[test]
fn a_certificate_of_tomorrow_blames_the_clocks() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node("n", &["n"]));
    site.clock.set(NOW_S - DAY_S);
    let met = meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN);
    said(met.client, "compare the clocks");
}

#[test]
fn another_protocol_is_told() {
    let site = Site::new();
    let met = meet(&site.host(), &site.node("n", &["n"]), Accept::Hosts, "n", ALPN, &[b"genie/2"]);
    said(met.client, "another protocol or version of Genie");
    said(met.server, "another protocol or version of Genie");
}

#[test]
fn an_expired_authority_vouches_for_nobody() {
    let site = Site::new();
    let (host, node) = (site.host(), site.node_for("n", &["n"], 3650));
    site.clock.set(NOW_S + 3651 * DAY_S);
    assert!(meet(&host, &node, Accept::Hosts, "n", ALPN, ALPN).client.is_err());
    let error = site.try_load(site.path()).unwrap_err();
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
}
