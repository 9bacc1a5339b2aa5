//! The kit on a transport that keeps every promise: directly, and through the C ABI.

mod loopback;

use genie_transport::abi::Vtable;
use genie_transport::export;
use genie_transport::import::Imported;
use genie_transport::kit::Setup;
use genie_transport::transport::{Options, Transport};
use loopback::{Fault, Loopback};

fn setup(_pair: u64) -> Setup {
    Setup::of(Options { address: "@".into(), ..Options::default() })
}

mod direct {
    genie_transport::conformance_tests!(&super::Loopback(super::Fault::None), super::setup);
}

struct Exported;

impl export::Exported for Exported {
    fn transport() -> &'static dyn Transport {
        &Loopback(Fault::None)
    }
}

fn through_the_abi() -> Imported {
    const TABLE: &Vtable = &export::vtable::<Exported>();
    // SAFETY: the table is a constant, made by `vtable`.
    unsafe { Imported::new(TABLE) }.expect("a table of this version")
}

mod imported {
    genie_transport::conformance_tests!(&super::through_the_abi(), super::setup);
}
