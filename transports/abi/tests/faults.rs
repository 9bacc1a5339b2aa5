//! The kit can fail: for each promise that the loopback transport breaks on purpose, the check
//! that is there for it fails, and says why.

mod loopback;

use genie_transport::kit::{self, Outcome, Setup};
use genie_transport::transport::Options;
use loopback::{Fault, Loopback};

fn setup(_pair: u64) -> Setup {
    Setup::of(Options { address: "@".into(), ..Options::default() })
}

/// A check fails over a transport with a fault, and says why.
fn fails(fault: Fault, check: &'static str, says: &str) {
    let checked = kit::check(check, &Loopback(fault), &setup);
    match checked.outcome {
        Outcome::Failed(why) => assert!(why.contains(says), "{check} fails with: {why}"),
        outcome => panic!("{check} should fail, it is {outcome:?}"),
    }
}

macro_rules! fails {
    ($($fault:ident => $check:ident, $says:literal;)*) => {$(
        #[test]
        #[allow(non_snake_case)]
        fn $fault() {
            fails(Fault::$fault, stringify!($check), $says);
        }
    )*};
}

/// What never happens is waited for a whole [`kit::STEP`]: at the same time.
#[test]
fn what_never_happens_is_missed() {
    let faults = [
        (Fault::DropsAFrame, "frames_arrive_whole_and_in_order", "did not happen"),
        (Fault::NeverWritable, "messages_are_limited", "Writable"),
        (Fault::WritesPastTheWindow, "writes_outside_a_window_touch_nothing", ""),
        (Fault::DropIsSilent, "a_dropped_peer_is_noticed", "no error within"),
        (Fault::LosesWakeUps, "many_messages_come_once_each", "sleeping only on the event"),
    ];
    std::thread::scope(|scope| {
        for (fault, check, says) in faults {
            scope.spawn(move || fails(fault, check, says));
        }
    });
}

fails! {
    ConnectedTwice => both_ends_become_connected, "Connected came twice";
    SwapsFrames => frames_arrive_whole_and_in_order, "has the kind";
    NoQueueLimit => frames_meet_backpressure, "bytes are queued";
    NoFrameLimit => frames_above_the_limit_are_refused, "was accepted";
    OneSecretForAll => secrets_are_equal_at_both_ends, "two labels have one secret";
    PlacedTwice => many_messages_come_once_each, "was placed twice";
    WrittenAtOnce => written_means_that_the_peer_has_it, "the peer lacks byte";
    ForgetsTheOffset => messages_of_all_sizes_are_placed, "is wrong";
    WritesAfterWithdraw => a_withdrawn_window_stays_untouched, "after it was withdrawn";
    DoesNotWait => a_write_waits_for_its_window, "before its window was offered";
    KeepsMemory => memory_is_given_up, "after it was unregistered";
    UnregistersInUse => memory_in_use_cannot_be_unregistered, "was accepted";
    TakesAnyRange => senseless_calls_are_invalid, "was accepted";
    TakesAnyNumber => senseless_calls_are_invalid, "a message number again was accepted";
    TakesManyWindows => windows_are_limited, "was accepted";
    TakesManyMessages => messages_are_limited, "were taken";
    TakesGpuMemory => gpu_memory_is_taken_or_refused, "was accepted";
    CloseLosesFrames => close_delivers_and_then_tells, "frames came before the end";
    WorksAfterTheEnd => calls_after_the_end_fail, "is accepted after";
    Spins => an_idle_connection_sleeps, "woke their owner";
    ConnectsToNobody => nonsense_addresses_are_refused, "it connected to";
    AcceptsTooMany => accept_max_is_kept, "a second connection";
    BadName => facts_name_the_transport, "not a word of lower case";
}
