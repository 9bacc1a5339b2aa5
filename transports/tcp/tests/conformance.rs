//! The conformance kit: on a trusted network, with certificates, and through the C table.

mod certificates;

use genie_tcp::Tcp;
use genie_transport::kit::Setup;
use genie_transport::transport::Options;

fn trusted(_pair: u64) -> Setup {
    let address = "127.0.0.1:0".into();
    let setup = Setup::of(Options { address, trusted: true, ..Options::default() });
    Setup { silent_means_dead: true, ..setup }
}

fn with_certificates(_pair: u64) -> Setup {
    let (listen, connect) = certificates::options();
    Setup { listen, connect, silent_means_dead: true }
}

mod plain {
    genie_transport::conformance_tests!(&super::Tcp, super::trusted);
}

mod tls {
    genie_transport::conformance_tests!(&super::Tcp, super::with_certificates);
}

/// What a host does that loads the plugin.
#[test]
fn through_the_c_table() {
    // SAFETY: the table is this crate's own, made for ever.
    let imported =
        unsafe { genie_transport::import::Imported::new(genie_tcp::genie_transport_v1()) };
    genie_transport::kit::run(&imported.unwrap(), &with_certificates).assert();
}
