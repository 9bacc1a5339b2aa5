//! This transport against plain tokio TCP: `bench_tcp [NAME=VALUE ...]` with settings.

#[path = "../../records/examples/against_tcp/mod.rs"]
mod against_tcp;
#[path = "../tests/certificates/mod.rs"]
mod certificates;

use genie_tcp::Tcp;
use genie_transport::transport::Options;

fn main() {
    let settings: std::collections::BTreeMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|text| text.split_once('=').map(|(name, value)| (name.into(), value.into())))
        .collect();
    let address = "127.0.0.1:0".into();
    let trusted = Options { address, trusted: true, settings, ..Options::default() };
    against_tcp::measure("tcp, trusted", &Tcp, &trusted, &trusted);
    let (listen, connect) = certificates::options();
    let with = |options: Options| Options { settings: trusted.settings.clone(), ..options };
    against_tcp::measure("tcp, certificates", &Tcp, &with(listen), &with(connect));
}
