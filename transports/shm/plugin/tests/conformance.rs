//! The conformance kit, directly and through the C table.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use genie_shm_plugin::Shm;
use genie_transport::kit::Setup;
use genie_transport::transport::Options;
use tempfile::TempDir;

/// A socket of its own for each pair.
fn setup(_pair: u64) -> Setup {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    static LAST: AtomicU32 = AtomicU32::new(0);
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path();
    let path = dir.join(LAST.fetch_add(1, Ordering::Relaxed).to_string());
    let address = path.to_str().expect("temporary directories have plain names").into();
    Setup { silent_means_dead: true, ..Setup::of(Options { address, ..Options::default() }) }
}

genie_transport::conformance_tests!(&Shm, setup);

/// What a host does that loads the plugin.
#[test]
fn through_the_c_table() {
    let table = genie_shm_plugin::genie_transport_v1();
    // SAFETY: the table is this crate's own, made for ever.
    let imported = unsafe { genie_transport::import::Imported::new(table) };
    genie_transport::kit::run(&imported.unwrap(), &setup).assert();
}
