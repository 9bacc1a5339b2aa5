//! Messages between two ends over the loopback, directly and over the C table.

mod support;

use genie_transport::transport::{Capabilities, Cause, Completion, Memory, Options, Part};
use support::{cause, content, drive, options, pair, pattern, transports};

#[test]
fn a_large_message_of_many_parts_arrives_whole() {
    for (name, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        let bytes = pattern(1, 9_000_001);
        let window = b.offer(5, 10_000_000);
        let cuts = [0, 1, 1, 4096, 1_000_000, bytes.len()];
        let parts: Vec<Part> =
            cuts.windows(2).map(|cut| a.source(&bytes[cut[0]..cut[1]])).collect();
        a.connection.write(3, &parts, 5, 999).unwrap();
        drive(&mut a, &mut b, |a, b| a.written() == [3] && b.placed() == [3]);
        assert_eq!(content(&window)[999..999 + bytes.len()], bytes, "{name}");
        let placed = b.told.iter().find(|told| matches!(told, Completion::Placed { .. }));
        let Some(Completion::Placed { message: 3, window: 5, offset: 999, bytes: count }) = placed
        else {
            panic!("{placed:?}");
        };
        assert_eq!(*count, bytes.len() as u64);
        // Used up: the memory may go.
        parts.iter().for_each(|part| a.connection.unregister(part.key).unwrap());
    }
}

#[test]
fn many_windows_in_both_directions() {
    const WINDOWS: u32 = 200;
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        let mut windows = Vec::new();
        for window in 0..WINDOWS {
            windows.push((window, a.offer(window, 5000), b.offer(window, 5000)));
            let (to_a, to_b) = (pattern(window.into(), 5000), pattern(!u64::from(window), 5000));
            let (to_a, to_b) = (b.source(&to_a), a.source(&to_b));
            a.connection.write(u64::from(window) + 1, &[to_b], window, 0).unwrap();
            b.connection.write(u64::from(window) + 1, &[to_a], window, 0).unwrap();
        }
        let all = WINDOWS as usize;
        drive(&mut a, &mut b, |a, b| {
            [a.written(), a.placed(), b.written(), b.placed()].iter().all(|seen| seen.len() == all)
        });
        for (window, at_a, at_b) in windows {
            assert_eq!(content(&at_a), pattern(window.into(), 5000));
            assert_eq!(content(&at_b), pattern(!u64::from(window), 5000));
        }
    }
}

#[test]
fn a_write_waits_for_its_window() {
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        let part = a.source(b"early");
        a.connection.write(1, &[part], 8, 2).unwrap();
        assert_eq!(cause(a.connection.unregister(part.key)), Cause::Invalid, "in use");
        let other = a.source(b"other");
        b.offer(9, 10);
        a.connection.write(2, &[other], 9, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written() == [2]);
        let window = b.offer(8, 7);
        drive(&mut a, &mut b, |a, _| a.written() == [2, 1]);
        assert_eq!(content(&window), b"\0\0early");
    }
}

#[test]
fn several_flows_carry_one_connection() {
    let (_, transport) = &transports()[0];
    let (mut a, mut b) = pair(&**transport, |options| {
        options.settings.insert("flows".to_owned(), "4".to_owned());
    });
    let bytes = pattern(4, 4_000_000);
    let (to_b, to_a) = (b.offer(1, 4_000_000), a.offer(1, 4_000_000));
    let (from_a, from_b) = (a.source(&bytes), b.source(&bytes));
    a.connection.write(1, &[from_a], 1, 0).unwrap();
    b.connection.write(1, &[from_b], 1, 0).unwrap();
    drive(&mut a, &mut b, |a, b| a.written() == [1] && b.written() == [1]);
    assert_eq!(content(&to_b), bytes);
    assert_eq!(content(&to_a), bytes);
}

#[test]
fn a_trusted_network_needs_no_secret() {
    for (_, transport) in transports() {
        let open = |options: &mut Options| (options.trusted, options.secret) = (true, None);
        let (mut a, mut b) = pair(&*transport, open);
        let window = b.offer(1, 5);
        let part = a.source(b"hello");
        a.connection.write(1, &[part], 1, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written() == [1]);
        assert_eq!(content(&window), b"hello");
    }
}

#[test]
fn too_many_writes_are_refused_until_there_is_room() {
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        let part = a.source(b"x");
        let mut message = 0;
        let refused = loop {
            message += 1;
            assert!(message < 100_000, "the queue has no end");
            if let Err(error) = a.connection.write(message, &[part], 1, 0) {
                break error;
            }
        };
        assert_eq!(refused.cause, Cause::OutOfCredit);
        b.offer(1, 1);
        let writable = |told: &Completion| matches!(told, Completion::Writable);
        drive(&mut a, &mut b, |a, _| a.told.iter().any(writable));
        a.connection.write(message, &[part], 1, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written().len() as u64 == message);
        assert_eq!(b.placed().len() as u64, message);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_harms_nothing() {
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |options| options.message_bytes_max = 1000);
        let part = a.source(&[1; 600]);
        let unknown = Part { key: genie_transport::transport::MemoryKey(77), ..part };
        let outside = Part { offset: 500, ..part };
        for parts in [&[unknown][..], &[outside], &[part, part]] {
            assert_eq!(cause(a.connection.write(1, parts, 1, 0)), Cause::Invalid);
        }
        assert_eq!(cause(a.connection.withdraw(3)), Cause::Invalid);
        assert_eq!(cause(a.connection.offer(3, outside)), Cause::Invalid);
        assert_eq!(cause(a.connection.send_frame(1, &[], None)), Cause::Unsupported);
        assert_eq!(cause(a.connection.export_secret(b"x")), Cause::Unsupported);
        b.offer(1, 600);
        a.connection.write(1, &[part], 1, 0).unwrap();
        assert_eq!(cause(a.connection.write(1, &[part], 1, 0)), Cause::Invalid, "must rise");
        drive(&mut a, &mut b, |a, _| a.written() == [1]);
    }
}

#[test]
fn a_write_to_a_withdrawn_window_waits_for_the_next() {
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        let window = b.offer(1, 8);
        let part = a.source(b"12345678");
        a.connection.write(1, &[part], 1, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written() == [1]);
        b.connection.withdraw(1).unwrap();
        window.write(0, &[0; 8]).unwrap();
        a.connection.write(2, &[part], 1, 0).unwrap();
        // The next window shows that the connection goes on.
        let after = b.offer(2, 8);
        a.connection.write(3, &[part], 2, 0).unwrap();
        drive(&mut a, &mut b, |a, _| a.written().contains(&3));
        assert_eq!(content(&window), [0; 8], "nothing is placed after the withdrawal");
        assert_eq!(content(&after), b"12345678");
        assert!(!a.written().contains(&2));
        let anew = b.offer(1, 8);
        drive(&mut a, &mut b, |a, _| a.written().contains(&2));
        assert_eq!(content(&anew), b"12345678");
    }
}

#[test]
fn closing_is_seen_by_the_peer_with_its_reason() {
    for (_, transport) in transports() {
        let (mut a, mut b) = pair(&*transport, |_| {});
        a.connection.close("work is done");
        drive(&mut a, &mut b, |a, b| a.failed.is_some() && b.failed.is_some());
        assert_eq!(a.failed.unwrap().cause, Cause::Closed);
        let failed = b.failed.unwrap();
        assert_eq!(failed.cause, Cause::Closed);
        assert!(failed.message.contains("work is done"), "{failed}");
    }
}

#[test]
fn dropping_is_seen_by_the_peer() {
    let (_, transport) = &transports()[1];
    let (a, mut b) = pair(&**transport, |_| {});
    drop(a);
    let (mut c, _d) = pair(&**transport, |_| {});
    drive(&mut b, &mut c, |b, _| b.failed.is_some());
    assert_eq!(b.failed.unwrap().cause, Cause::Closed);
}

#[test]
fn facts_and_probe() {
    for (_, transport) in transports() {
        let facts = transport.facts();
        assert_eq!(facts.name, "udp");
        let all = Capabilities::DATA.with(Capabilities::NETWORK);
        assert_eq!(facts.capabilities, all);
        let found = transport.probe(&options("127.0.0.1:1")).unwrap();
        assert!(found.contains("kernel UDP"), "{found}");
        assert_eq!(cause(transport.probe(&options("nowhere"))), Cause::Invalid);
    }
}

#[test]
fn device_memory_is_unsupported() {
    let (_, transport) = &transports()[0];
    let (mut a, _b) = pair(&**transport, |_| {});
    let kind = genie_transport::transport::MemoryKind::Gpu;
    // SAFETY: the memory is never touched: registering it is refused.
    let memory = unsafe { Memory::from_raw(8 as *mut u8, 8, kind, 0, -1, std::sync::Arc::new(())) };
    assert_eq!(cause(a.connection.register(memory)), Cause::Unsupported);
}
