//! The conformance kit, on this transport directly, on a trusted network with several flows, and
//! behind the C table.

use genie_transport::import::Imported;
use genie_transport::kit::{Setup, assert_passes, names};
use genie_transport::transport::{Options, Transport};
use genie_udp::Udp;

fn setup(_pair: u64) -> Setup {
    let options = Options { address: "127.0.0.1:0".to_owned(), ..Options::default() };
    // Everything happens in `poll`, the signs of life too.
    Setup { silent_means_dead: true, ..Setup::of(options) }
}

/// Over a network without encryption, datagrams as on Ethernet and several flows.
fn trusted_setup(pair: u64) -> Setup {
    let mut setup = setup(pair);
    for options in [&mut setup.listen, &mut setup.connect] {
        options.trusted = true;
        options.settings.insert("mtu".to_owned(), "1500".to_owned());
        options.settings.insert("flows".to_owned(), "3".to_owned());
    }
    setup
}

fn check_all(transport: &dyn Transport, make: &dyn Fn(u64) -> Setup) {
    for name in names() {
        assert_passes(name, transport, make);
    }
}

#[test]
fn directly() {
    check_all(&Udp, &setup);
}

#[test]
fn on_a_trusted_network() {
    check_all(&Udp, &trusted_setup);
}

#[test]
fn behind_the_table() {
    // SAFETY: the entry returns this crate's own table, which is valid for ever.
    let imported = unsafe { Imported::new(genie_udp::genie_transport_v1()) }.unwrap();
    check_all(&imported, &setup);
}
