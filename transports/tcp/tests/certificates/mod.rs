//! Certificates for tests: a host and a node of one authority, and others who should be refused.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use genie_tls::store::Store;
use genie_tls::{Identity, Role};
use genie_transport::transport::Options;

const YEAR_DAYS: u32 = 365;

pub fn now_s() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs() as i64
}

/// A directory for the process, with the certificates of `name`'s authority made at `at_s`.
fn site(name: &str, at_s: i64) -> PathBuf {
    let dir = tempfile::tempdir().unwrap().keep().join(name);
    Store::init(&dir, name, 30, at_s).unwrap();
    issue_node(&dir, at_s, "127.0.0.1");
    dir
}

/// Issues (again) the certificate of the node of a site.
pub fn issue_node(site: &Path, at_s: i64, address: &str) -> PathBuf {
    let node = Identity::new(Role::Node, "worker").unwrap();
    let store = Store::open(site, at_s).unwrap();
    store.issue(&node, &[address.to_owned()], YEAR_DAYS, None).unwrap().dir
}

/// The host `me` and the node `worker` at 127.0.0.1; and another authority's; and one whose host
/// certificate has expired.
pub struct Sites {
    pub ours: PathBuf,
    pub strange: PathBuf,
    pub expired: PathBuf,
}

pub fn sites() -> &'static Sites {
    static SITES: OnceLock<Sites> = OnceLock::new();
    SITES.get_or_init(|| Sites {
        ours: site("me", now_s()),
        strange: site("stranger", now_s()),
        expired: site("late", now_s() - 60 * 86_400),
    })
}

/// A site of one test alone, whose files may change.
pub fn own_site() -> PathBuf {
    site("me", now_s())
}

pub fn node_dir(site: &Path) -> PathBuf {
    site.join("issued/node-worker")
}

/// Options of a node that listens on loopback, and of a host that connects.
pub fn options_of(node_site: &Path, host_site: &Path) -> (Options, Options) {
    let address: String = "127.0.0.1:0".into();
    let of = |certificates: PathBuf| Options {
        address: address.clone(),
        certificates: Some(certificates),
        ..Options::default()
    };
    (of(node_dir(node_site)), of(host_site.to_owned()))
}

pub fn options() -> (Options, Options) {
    options_of(&sites().ours, &sites().ours)
}
