//! An authority in a temporary directory, a clock that tests set, and handshakes in memory.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use genie_tls::store::Store;
use genie_tls::{Accept, Identity, ReloadingCerts, Role, TlsError, describe, peer_identity};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use tempfile::TempDir;

/// 2026-01-01.
pub const NOW_S: i64 = 1_767_225_600;
pub const DAY_S: i64 = 86_400;

#[derive(Debug)]
pub struct Clock(AtomicI64);

impl Clock {
    pub fn at(now_s: i64) -> Self {
        Self(AtomicI64::new(now_s))
    }

    pub fn set(&self, now_s: i64) {
        self.0.store(now_s, Ordering::SeqCst);
    }

    pub fn now_s(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s() as u64)))
    }
}

/// A host `me` with its authority, as `genie-host certs init` makes them.
pub struct Site {
    dir: TempDir,
    pub clock: Arc<Clock>,
    pub warned: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Store::init(&dir.path().join("certs"), "me", 365, NOW_S).unwrap();
        Self { dir, clock: Arc::new(Clock::at(NOW_S)), warned: Arc::default() }
    }

    pub fn path(&self) -> &'static Path {
        Box::leak(self.dir.path().join("certs").into_boxed_path())
    }

    pub fn store(&self) -> Store {
        Store::open(self.path(), self.clock.now_s()).unwrap()
    }

    pub fn try_load(&self, dir: &Path) -> Result<Arc<ReloadingCerts>, TlsError> {
        let warned = self.warned.clone();
        let warn = Box::new(move |error: &TlsError| warned.lock().unwrap().push(error.to_string()));
        ReloadingCerts::load_with(dir, self.clock.clone(), warn)
    }

    pub fn load(&self, dir: &Path) -> Arc<ReloadingCerts> {
        self.try_load(dir).unwrap()
    }

    pub fn host(&self) -> Arc<ReloadingCerts> {
        self.load(self.path())
    }

    pub fn dir(&self, out: &str, identity: &Identity, addresses: &[&str]) -> PathBuf {
        let out = self.dir.path().join(out);
        let addresses: Vec<String> = addresses.iter().map(|&address| address.into()).collect();
        self.store().issue(identity, &addresses, 365, Some(&out)).unwrap();
        out
    }

    pub fn node(&self, name: &str, addresses: &[&str]) -> Arc<ReloadingCerts> {
        self.node_for(name, addresses, 365)
    }

    pub fn node_for(&self, name: &str, addresses: &[&str], days: u32) -> Arc<ReloadingCerts> {
        let addresses: Vec<String> = addresses.iter().map(|&address| address.into()).collect();
        let node = Identity::new(Role::Node, name).unwrap();
        let issued = self.store().issue(&node, &addresses, days, None).unwrap();
        self.load(&issued.dir)
    }

    pub fn warnings(&self) -> usize {
        self.warned.lock().unwrap().len()
    }
}

/// What each side knows of the other, or why it refused.
pub struct Met {
    pub client: Result<Identity, rustls::Error>,
    pub server: Result<Identity, rustls::Error>,
    pub alpn: Option<Vec<u8>>,
    pub resumed: bool,
    pub pair: (ClientConnection, ServerConnection),
}

pub fn configs(
    client: &Arc<ReloadingCerts>,
    server: &Arc<ReloadingCerts>,
    accept: Accept,
    client_alpn: &[&[u8]],
    server_alpn: &[&[u8]],
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let client = client.client_config(client_alpn).unwrap();
    (client.into(), server.server_config(accept, server_alpn).unwrap().into())
}

pub fn meet(
    client: &Arc<ReloadingCerts>,
    server: &Arc<ReloadingCerts>,
    accept: Accept,
    address: &str,
    client_alpn: &[&[u8]],
    server_alpn: &[&[u8]],
) -> Met {
    let (client, server) = configs(client, server, accept, client_alpn, server_alpn);
    meet_with(client, server, address)
}

pub fn meet_with(client: Arc<ClientConfig>, server: Arc<ServerConfig>, address: &str) -> Met {
    let name = genie_tls::server_name(address).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&mut server, &bytes, &mut server_error);
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&mut client, &bytes, &mut client_error);
    }
    let known = |chain, error: Option<rustls::Error>| match error {
        Some(error) => Err(error),
        None => Ok(peer_identity(chain).unwrap()),
    };
    Met {
        client: known(client.peer_certificates(), client_error),
        server: known(server.peer_certificates(), server_error),
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        resumed: client.handshake_kind() == Some(HandshakeKind::Resumed),
        pair: (client, server),
    }
}

pub fn feed<Data>(
    side: &mut rustls::ConnectionCommon<Data>,
    mut bytes: &[u8],
    error: &mut Option<rustls::Error>,
) {
    while !bytes.is_empty() && error.is_none() {
        side.read_tls(&mut bytes).unwrap();
        *error = side.process_new_packets().err();
    }
}

/// The words for a refusal, which must hold `part`.
#[track_caller]
pub fn said(result: Result<Identity, rustls::Error>, part: &str) -> String {
    let words = describe(&result.expect_err("must be refused"));
    assert!(words.contains(part), "{words:?} does not say {part:?}");
    words
}
