//! Every check of the conformance kit, over a DPDK device that loops back (net_ring): both ends in
//! this process, no privileges needed.

use genie_dpdk::transport::Dpdk;
use genie_transport::kit::Setup;
use genie_transport::transport::Options;

fn options() -> Options {
    let settings = [("device", "net_ring"), ("ip", "10.77.0.1/24"), ("mtu", "1500")];
    Options {
        address: "10.77.0.1:0".to_owned(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Options::default()
    }
}

mod sealed {
    genie_transport::conformance_tests!(&super::Dpdk, |_| super::Setup::of(super::options()));
}

mod trusted {
    fn setup(_: u64) -> super::Setup {
        super::Setup::of(super::Options { trusted: true, ..super::options() })
    }

    genie_transport::conformance_tests!(&super::Dpdk, setup);
}
