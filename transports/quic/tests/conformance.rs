//! The conformance kit: on a trusted network, with certificates, and through the C table.

#[path = "../../tcp/tests/certificates/mod.rs"]
mod certificates;

use genie_quic::Quic;
use genie_transport::kit::Setup;
use genie_transport::transport::Options;

fn trusted(_pair: u64) -> Setup {
    let address = "127.0.0.1:0".into();
    Setup::of(Options { address, trusted: true, ..Options::default() })
}

fn with_certificates(_pair: u64) -> Setup {
    let (listen, connect) = certificates::options();
    Setup { listen, connect, silent_means_dead: false }
}

mod trusted {
    genie_transport::conformance_tests!(&super::Quic, super::trusted);
}

mod certified {
    genie_transport::conformance_tests!(&super::Quic, super::with_certificates);
}

/// What a host does that loads the plugin.
#[test]
fn through_the_c_table() {
    // SAFETY: the table is this crate's own, made for ever.
    let imported =
        unsafe { genie_transport::import::Imported::new(genie_quic::genie_transport_v1()) };
    genie_transport::kit::run(&imported.unwrap(), &with_certificates).assert();
}
