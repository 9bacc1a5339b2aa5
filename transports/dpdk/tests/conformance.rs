//! Every check of the conformance kit, over a DPDK device that loops back (net_ring): both ends in
//! this process, no privileges needed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_dpdk::transport::Dpdk;
use genie_transport::kit::{self, Outcome, Setup};
use genie_transport::transport::{Cause, Completion, Connection, Memory, Options, Part, Transport};

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

fn every_check_passes(options: &Options) {
    let make = |_: u64| Setup::of(options.clone());
    let (mut failed, mut passed) = (Vec::new(), 0);
    for name in kit::names() {
        match kit::check(name, &Dpdk, &make).outcome {
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

fn trusted(zero_copy: &str) -> Options {
    let mut options = Options { trusted: true, ..options() };
    options.settings.insert("zero_copy".to_owned(), zero_copy.to_owned());
    options
}

#[test]
fn every_check_passes_trusted() {
    every_check_passes(&trusted("no"));
}

#[test]
fn every_check_passes_without_copies() {
    every_check_passes(&trusted("yes"));
}

#[test]
fn without_copies_a_sealed_connection_is_refused() {
    let settings = trusted("yes").settings;
    let sealed = Options { secret: Some([7; 32]), settings, ..Options::default() };
    let refused = Dpdk.listen(&sealed).err().expect("sealing copies");
    assert!(refused.message.contains("zero_copy"), "{refused}");
}

/// Both ends of one connection, polled until `done`.
fn poll_until(
    ends: &mut [Box<dyn Connection>; 2],
    mut done: impl FnMut(usize, Completion) -> bool,
) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        for (at, end) in ends.iter_mut().enumerate() {
            let mut completions = Vec::new();
            end.poll(&mut completions).unwrap();
            // All are looked at, although one is the last.
            let mut is_over = false;
            for completion in completions {
                is_over |= done(at, completion);
            }
            if is_over {
                return;
            }
        }
        assert!(Instant::now() < until, "it ends in time");
        std::thread::yield_now();
    }
}

fn statistic(end: &dyn Connection, name: &str) -> u64 {
    let all = end.statistics();
    all.into_iter().find(|(it, _)| it == name).expect("it is counted").1
}

/// Payloads are read where they lie, in one part and in several; when all is told, no packet refers
/// to the memory, and giving it up frees it.
#[test]
fn messages_are_sent_from_where_they_lie_and_their_memory_is_given_back() {
    const BYTES: u64 = 3 << 20;
    const MESSAGES: u64 = 12;
    let mut options = trusted("yes");
    options.connection = 77;
    let mut listener = Dpdk.listen(&options).unwrap();
    options.address = listener.address();
    let connecting = Dpdk.connect(&options).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let accepted = loop {
        match listener.accept().unwrap() {
            Some(accepted) => break accepted,
            None => assert!(Instant::now() < until, "the connection comes"),
        }
    };
    let mut ends = [connecting, accepted];

    let (memory, source) = Memory::allocate(BYTES).unwrap();
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at * 7 + at / 1021) as u8).collect();
    source.write(0, &bytes).unwrap();
    let key = ends[0].register(memory).unwrap();
    let (memory, target) = Memory::allocate(BYTES).unwrap();
    let window = ends[1].register(memory).unwrap();
    ends[1].offer(1, Part { key: window, offset: 0, bytes: BYTES }).unwrap();
    let parts = [(0, 1000), (4096, 1_000_000), (1_004_096, 33), (2_000_001, 700_000)];
    let parts = parts.map(|(offset, bytes)| Part { key, offset, bytes });
    let whole = [Part { key, offset: 0, bytes: BYTES }];
    for message in 1..=MESSAGES {
        let parts = if message % 2 == 0 { &parts[..] } else { &whole };
        ends[0].write(message, parts, 1, 0).unwrap();
        let (mut written, mut placed) = (false, false);
        poll_until(&mut ends, |_, completion| {
            written |= matches!(completion, Completion::Written { message: m } if m == message);
            placed |= matches!(completion, Completion::Placed { message: m, .. } if m == message);
            written && placed
        });
        let expect: Vec<u8> = parts
            .iter()
            .flat_map(|part| &bytes[part.offset as usize..(part.offset + part.bytes) as usize])
            .copied()
            .collect();
        let mut seen = vec![0; expect.len()];
        target.read(0, &mut seen).unwrap();
        assert!(seen == expect, "message {message} arrived changed");
        assert_eq!(statistic(&*ends[0], "attached_now"), 0, "told before the device was done");
    }
    let attached = statistic(&*ends[0], "zero_copy_packets");
    let copied = statistic(&*ends[0], "copied_packets");
    assert!(attached > 1000 && copied < attached / 10, "{attached} attached, {copied} copied");
    ends[0].unregister(key).unwrap();
    assert_eq!(Arc::strong_count(&source), 1, "nothing keeps the memory");

    // A connection that ends in the midst of a message gives its memory back, too.
    let (memory, source) = Memory::allocate(BYTES).unwrap();
    let key = ends[0].register(memory).unwrap();
    for message in MESSAGES + 1..MESSAGES + 9 {
        ends[0].write(message, &[Part { key, offset: 0, bytes: BYTES }], 1, 0).unwrap();
    }
    while statistic(&*ends[0], "zero_copy_packets") == attached {
        assert!(Instant::now() < until, "packets leave");
    }
    ends[0].close("enough");
    ends[0].unregister(key).unwrap();
    let twice = ends[0].unregister(key).unwrap_err();
    assert_eq!(twice.cause, Cause::Invalid, "{twice}");
    while Arc::strong_count(&source) > 1 {
        assert!(Instant::now() < until, "the device keeps the memory of a closed connection");
        std::thread::yield_now();
    }
}
