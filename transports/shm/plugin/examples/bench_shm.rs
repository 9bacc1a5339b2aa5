//! This transport against plain tokio TCP.

#[path = "../../../records/examples/against_tcp/mod.rs"]
mod against_tcp;

use genie_shm_plugin::Shm;
use genie_transport::transport::Options;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = dir.path().join("socket").to_str().expect("a plain name").into();
    let options = Options { address, ..Options::default() };
    against_tcp::measure("shm", &Shm, &options, &options);
}
