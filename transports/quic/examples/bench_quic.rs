//! This transport against plain tokio TCP: `bench_quic [NAME=VALUE ...]` with settings.

#[path = "../../records/examples/against_tcp/mod.rs"]
mod against_tcp;
#[path = "../../tcp/tests/certificates/mod.rs"]
mod certificates;

use genie_quic::Quic;
use genie_transport::transport::Options;

fn main() {
    let settings: std::collections::BTreeMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|text| text.split_once('=').map(|(name, value)| (name.into(), value.into())))
        .collect();
    let address = "127.0.0.1:0".into();
    let trusted = Options { address, trusted: true, settings, ..Options::default() };
    against_tcp::measure("quic, trusted", &Quic, &trusted, &trusted);
    let (listen, connect) = certificates::options();
    let with = |options: Options| Options { settings: trusted.settings.clone(), ..options };
    against_tcp::measure("quic, certificates", &Quic, &with(listen), &with(connect));
}
