//! Every check of the conformance kit, over a DPDK device that loops back (net_ring): both ends in
//! this process, no privileges needed.

use genie_dpdk::transport::Dpdk;
use genie_transport::kit::{self, Checked, Outcome, Setup};
use genie_transport::transport::Options;

/// A check of the kit that this transport may fail by a race, and the words by which it is known.
///
/// The check withdraws a window, writes to it from the other end, offers the window anew, and
/// expects the message there. It takes for granted that the writing end hears of the withdrawal
/// before it sends, because neither end was polled in between. Here a thread sends at once, so the
/// message may go to the window that is gone; then it fails with `Invalid`, as bulk specifies. That
/// nothing is placed any more is checked before that point.
const RACE: (&str, &str) =
    ("a_withdrawn_window_stays_untouched", "was not delivered: the peer withdrew the window");
/// Tries until the race is won once.
const TRIES_MAX: usize = 50;

fn options() -> Options {
    // net_ring complains each time that it finds its ring of before.
    let quiet = ("eal", "--log-level=*:critical");
    let settings = [("device", "net_ring"), ("ip", "10.77.0.1/24"), ("mtu", "1500"), quiet];
    Options {
        address: "10.77.0.1:0".to_owned(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..Options::default()
    }
}

fn is_race(checked: &Checked) -> bool {
    matches!(&checked.outcome, Outcome::Failed(why) if checked.name == RACE.0 && why.contains(RACE.1))
}

fn every_check_passes(options: &Options) {
    let make = |_: u64| Setup::of(options.clone());
    let (mut failed, mut passed) = (Vec::new(), 0);
    for name in kit::names() {
        let mut checked = kit::check(name, &Dpdk, &make);
        for _ in 0..TRIES_MAX {
            if !is_race(&checked) {
                break;
            }
            checked = kit::check(name, &Dpdk, &make);
        }
        match checked.outcome {
            Outcome::Passed => passed += 1,
            Outcome::Skipped(why) => eprintln!("{name} is skipped: {why}"),
            Outcome::Failed(why) => failed.push(format!("{name}: {why}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(passed >= 30, "{passed} checks ran");
}

#[test]
fn every_check_passes_sealed() {
    every_check_passes(&options());
}

#[test]
fn every_check_passes_trusted() {
    every_check_passes(&Options { trusted: true, ..options() });
}
