//! What networks, peers and attackers do.

mod support;

use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use genie_transport::transport::{Cause, Options, Transport};
use genie_udp::Udp;
use support::{
    End, Faults, Relay, cause, content, drive, meet, options, pattern, relayed, transports,
};

/// Writes messages of many sizes through the relay; all must arrive whole.
fn check_delivery(faults: Faults, adapt: impl Fn(&mut Options)) -> (End, End, Relay) {
    let (mut a, mut b, relay) = relayed(faults, adapt);
    let sizes = [0, 1, 1399, 1400, 1401, 100_000, 1_500_000];
    let mut windows = Vec::new();
    for (index, &size) in sizes.iter().enumerate() {
        let bytes = pattern(index as u64, size);
        windows.push((b.offer(index as u32, size.max(1) as u64), bytes.clone()));
        let part = a.source(&bytes);
        a.connection.write(index as u64 + 1, &[part], index as u32, 0).unwrap();
    }
    drive(&mut a, &mut b, |a, b| {
        a.written().len() == sizes.len() && b.placed().len() == sizes.len()
    });
    for (window, bytes) in windows {
        assert!(content(&window)[..bytes.len()] == bytes, "{} bytes differ", bytes.len());
    }
    let mut placed = b.placed();
    placed.sort_unstable();
    assert_eq!(placed, (1..=sizes.len() as u64).collect::<Vec<_>>(), "each once");
    (a, b, relay)
}

#[test]
fn loss_is_mended() {
    let (a, ..) = check_delivery(Faults { seed: 1, lost: 30, ..Faults::default() }, |_| {});
    assert!(a.statistic("retransmitted") > 0);
}

#[test]
fn late_and_double_datagrams_do_no_harm() {
    let faults = Faults { seed: 2, late: 100, twice: 50, ..Faults::default() };
    let (_, b, _) = check_delivery(faults, |_| {});
    assert!(b.statistic("replays_ignored") > 0);
}

#[test]
fn damage_is_found_with_and_without_encryption() {
    for trusted in [false, true] {
        let faults = Faults { seed: 3, damaged: 20, ..Faults::default() };
        let (_, b, relay) = check_delivery(faults, |options| options.trusted = trusted);
        assert!(relay.switches.damaged.load(Ordering::Relaxed) > 0);
        let dropped = b.statistic("corrupt_dropped") + b.statistic("foreign_dropped");
        assert!(dropped > 0, "trusted {trusted}");
    }
}

#[test]
fn everything_at_once_over_several_flows() {
    let faults = Faults { seed: 4, lost: 20, late: 50, twice: 20, damaged: 10 };
    check_delivery(faults, |options| {
        options.settings.insert("flows".to_owned(), "3".to_owned());
    });
}

#[test]
fn replayed_datagrams_are_ignored() {
    for trusted in [false, true] {
        let (mut a, mut b, relay) =
            check_delivery(Faults::default(), |options| options.trusted = trusted);
        let (told_a, told_b) = (a.told.len(), b.told.len());
        let ignored = |end: &End| {
            end.statistic("replays_ignored")
                + end.statistic("foreign_dropped")
                + end.statistic("corrupt_dropped")
        };
        let before = ignored(&b);
        relay.switches.replay.store(true, Ordering::Relaxed);
        drive(&mut a, &mut b, |_, b| {
            relay.switches.replayed.load(Ordering::Relaxed) > 0 && ignored(b) > before
        });
        // Behind the replay, a new message still arrives, and nothing was told twice.
        let window = b.offer(100, 4);
        let part = a.source(b"next");
        a.connection.write(100, &[part], 100, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written().contains(&100));
        assert_eq!(content(&window), b"next");
        assert_eq!((a.told.len(), b.told.len()), (told_a + 1, told_b + 1));
    }
}

#[test]
fn a_cut_link_goes_on_when_it_is_mended() {
    let (mut a, mut b, relay) = relayed(Faults::default(), |_| {});
    let bytes = pattern(9, 3_000_000);
    let window = b.offer(1, bytes.len() as u64);
    let part = a.source(&bytes);
    a.connection.write(1, &[part], 1, 0).unwrap();
    let mut cut_at = None;
    drive(&mut a, &mut b, |a, b| {
        if cut_at.is_none() && b.statistic("payload_placed") > 100_000 {
            relay.switches.cut.store(true, Ordering::Relaxed);
            cut_at = Some(Instant::now());
        }
        if cut_at.is_some_and(|at: Instant| at.elapsed() > Duration::from_millis(1500)) {
            relay.switches.cut.store(false, Ordering::Relaxed);
        }
        a.written() == [1]
    });
    assert!(cut_at.is_some());
    assert!(content(&window) == bytes);
}

#[test]
fn silence_ends_at_the_deadline() {
    for busy in [true, false] {
        let (mut a, mut b, relay) = relayed(Faults::default(), |options| options.deadline_ms = 500);
        relay.switches.cut.store(true, Ordering::Relaxed);
        let since = Instant::now();
        if busy {
            let part = a.source(&[1; 100_000]);
            b.offer(1, 100_000);
            a.connection.write(1, &[part], 1, 0).unwrap();
        }
        drive(&mut a, &mut b, |a, b| a.failed.is_some() && b.failed.is_some());
        for end in [a, b] {
            assert_eq!(end.failed.unwrap().cause, Cause::TimedOut);
        }
        let took = since.elapsed();
        assert!(took > Duration::from_millis(350), "{took:?}");
    }
}

#[test]
fn nobody_there_is_a_timeout_that_says_so() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (_, transport) in transports() {
        let mut wanted = options(&nobody);
        wanted.connect_ms = 300;
        let mut end = End::new(transport.connect(&wanted).unwrap());
        let mut other = End::new(transport.connect(&wanted).unwrap());
        drive(&mut end, &mut other, |a, b| a.failed.is_some() && b.failed.is_some());
        let failed = end.failed.unwrap();
        assert_eq!(failed.cause, Cause::TimedOut);
        assert!(failed.message.contains(&nobody) && failed.message.contains("300 ms"), "{failed}");
        assert!(failed.message.contains("refused"), "the network's own words: {failed}");
    }
}

#[test]
fn a_late_listener_is_found() {
    let place = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = End::new(Udp.connect(&options(&place.to_string())).unwrap());
    let mut listener = Udp.listen(&options(&place.to_string())).unwrap();
    meet(client, &mut *listener).unwrap();
}

#[test]
fn a_wrong_secret_or_number_is_not_answered_and_the_right_one_still_is() {
    for (_, transport) in transports() {
        let mut listener = transport.listen(&options("127.0.0.1:0")).unwrap();
        let right = Options { address: listener.address(), ..options("") };
        let mut wrong_secret = Options { connect_ms: 300, ..right.clone() };
        wrong_secret.secret = Some([8; 32]);
        let wrong_number = Options { connect_ms: 300, connection: 5, ..right.clone() };
        let trusting = Options { connect_ms: 300, trusted: true, ..right.clone() };
        for wrong in [wrong_secret, wrong_number, trusting] {
            let client = End::new(transport.connect(&wrong).unwrap());
            let refused = meet(client, &mut *listener).err().expect("refused");
            assert_eq!(refused.cause, Cause::TimedOut, "{refused}");
        }
        let client = End::new(transport.connect(&right).unwrap());
        meet(client, &mut *listener).unwrap();
    }
}

#[test]
fn noise_is_ignored_before_and_after_the_connection() {
    let mut listener = Udp.listen(&options("127.0.0.1:0")).unwrap();
    let address = listener.address();
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    let number = options("").connection.to_be_bytes();
    let shout = || {
        for length in [0, 1, 15, 16, 40, 1472] {
            let mut bytes = pattern(length, length as usize);
            noise.send_to(&bytes, &address).unwrap();
            if bytes.len() >= 16 {
                bytes[8..16].copy_from_slice(&number);
                noise.send_to(&bytes, &address).unwrap();
            }
        }
    };
    shout();
    let client =
        End::new(Udp.connect(&Options { address: address.clone(), ..options("") }).unwrap());
    let (mut a, mut b) = meet(client, &mut *listener).unwrap();
    shout();
    let window = b.offer(1, 3);
    let part = a.source(b"yes");
    a.connection.write(1, &[part], 1, 0).unwrap();
    drive(&mut a, &mut b, |a, _| a.written() == [1]);
    assert_eq!(content(&window), b"yes");
}

#[test]
fn a_restarted_peer_does_not_continue_the_old_connection() {
    let wanted = Options { deadline_ms: 1000, connect_ms: 1000, ..options("127.0.0.1:0") };
    let mut listener = Udp.listen(&wanted).unwrap();
    let right = Options { address: listener.address(), ..wanted };
    let client = End::new(Udp.connect(&right).unwrap());
    let (mut a, mut b) = meet(client, &mut *listener).unwrap();
    let window = b.offer(1, 8);
    let part = a.source(b"original");
    a.connection.write(1, &[part], 1, 0).unwrap();
    drive(&mut a, &mut b, |a, _| a.written() == [1]);
    // The first client is gone without a word; its successor knows number and secret.
    std::mem::forget(a);
    let mut successor = End::new(Udp.connect(&right).unwrap());
    let part = successor.source(b"imposter");
    let _ = successor.connection.write(1, &[part], 1, 0);
    drive(&mut successor, &mut b, |successor, b| successor.failed.is_some() && b.failed.is_some());
    assert_eq!(content(&window), b"original");
    assert!(!successor.connected());
}

#[test]
fn a_secret_is_needed_unless_the_network_is_trusted() {
    for (_, transport) in transports() {
        let none = Options { secret: None, ..options("127.0.0.1:0") };
        assert_eq!(cause(transport.listen(&none)), Cause::Invalid);
        let none = Options { address: "127.0.0.1:9".to_owned(), ..none };
        assert_eq!(cause(transport.connect(&none)), Cause::Invalid);
    }
}

#[test]
fn ports_are_taken_from_the_range_until_none_is_free() {
    let base = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = base.min(65_000);
    let mut wanted = options("127.0.0.1:0");
    wanted.settings.insert("ports".to_owned(), format!("{base}-{}", base + 3));
    let mut listeners = Vec::new();
    let refused = loop {
        assert!(listeners.len() <= 4);
        match Udp.listen(&wanted) {
            Ok(listener) => listeners.push(listener),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.cause, Cause::Io);
    for listener in &listeners {
        let port: u16 = listener.address().rsplit_once(':').unwrap().1.parse().unwrap();
        assert!((base..=base + 3).contains(&port));
    }
    assert!(!listeners.is_empty());
}
