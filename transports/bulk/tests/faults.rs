//! Each fault by itself: what happens, and what both ends are told.

use std::sync::Arc;

use genie_bulk::{
    CloseReason, Config, Connection, Event, FailReason, MILLISECOND, Protection, Role, SECOND,
    Span, Time, WriteError,
};

const WINDOW_BYTES: usize = 100_000;

/// Two ends, a millisecond apart; each datagram passes through the test's hands.
struct Pair {
    now: Time,
    ends: [Connection; 2],
    memory: [Vec<u8>; 2],
    source: Vec<u8>,
    events: [Vec<Event>; 2],
}

fn config(role: Role) -> Config {
    Config::new(9, role, Protection::Sealed { secret: [3; 32] }, [role as u8 + 1; 16])
}

fn span(memory: &mut [u8]) -> Span {
    // SAFETY: the pair owns the vector for as long as the connections.
    unsafe { Span::new(memory.as_mut_ptr(), memory.len()) }
}

impl Pair {
    fn new(configs: [Config; 2]) -> Self {
        Self {
            now: 0,
            ends: configs.map(|config| Connection::new(config, 0).expect("works")),
            memory: [vec![0; WINDOW_BYTES], vec![0; WINDOW_BYTES]],
            source: (0..WINDOW_BYTES).map(|at| at as u8).collect(),
            events: Default::default(),
        }
    }

    fn connected() -> Self {
        Self::connected_as([config(Role::Client), config(Role::Server)])
    }

    fn connected_as(configs: [Config; 2]) -> Self {
        let mut pair = Self::new(configs);
        pair.offer(1, 5);
        pair.run(20 * MILLISECOND);
        assert!(pair.ends.iter().all(Connection::is_connected));
        pair.take_events();
        pair
    }

    fn offer(&mut self, at: usize, window: u32) {
        let memory = span(&mut self.memory[at]);
        self.ends[at].offer(window, Arc::new(memory)).expect("offered");
    }

    fn write(&mut self, message: u64, len: usize) {
        let bytes = span(&mut self.source[..len]);
        self.ends[0].write(message, vec![bytes], 5, 0).expect("room");
    }

    fn run(&mut self, time: Time) {
        self.run_with(time, |_, datagram| vec![datagram]);
    }

    /// `pass` turns each datagram for an end into those that arrive.
    fn run_with(&mut self, time: Time, mut pass: impl FnMut(usize, Vec<u8>) -> Vec<Vec<u8>>) {
        let until = self.now + time;
        let mut buf = vec![0; 64 * 1472];
        while self.now < until {
            self.now += MILLISECOND;
            let mut flying = Vec::new();
            for at in 0..2 {
                self.ends[at].handle_timeout(self.now);
                while let Some(sent) = self.ends[at].poll_transmit(self.now, &mut buf, 64) {
                    for datagram in buf[..sent.bytes].chunks(sent.segment_bytes) {
                        flying.extend(
                            pass(1 - at, datagram.to_vec()).into_iter().map(|it| (1 - at, it)),
                        );
                    }
                }
            }
            for (to, mut datagram) in flying {
                self.ends[to].handle(self.now, 0, &mut datagram);
            }
            self.poll();
        }
    }

    fn poll(&mut self) {
        for at in 0..2 {
            while let Some(event) = self.ends[at].poll_event() {
                self.events[at].push(event);
            }
        }
    }

    fn take_events(&mut self) -> [Vec<Event>; 2] {
        self.poll();
        std::mem::take(&mut self.events)
    }
}

#[test]
fn a_message_is_placed_and_told_to_both() {
    for len in [0, 1, 1432, 50_000] {
        let mut pair = Pair::connected();
        pair.write(7, len);
        pair.run(30 * MILLISECOND);
        assert_eq!(pair.memory[1][..len], pair.source[..len]);
        let [here, there] = pair.take_events();
        assert_eq!(here, [Event::Written { message: 7 }]);
        assert_eq!(there, [Event::Placed { message: 7, window: 5, offset: 0, len: len as u64 }]);
        assert!(pair.ends.iter().all(Connection::is_idle));
    }
}

#[test]
fn a_flipped_bit_is_found_and_the_message_sent_again() {
    let mut pair = Pair::connected();
    pair.write(1, 20_000);
    let mut flips = 0;
    pair.run_with(40 * MILLISECOND, |to, mut datagram| {
        if to == 1 && datagram.len() > 1000 && flips < 3 {
            flips += 1;
            datagram[700 + flips] ^= 4;
        }
        vec![datagram]
    });
    assert_eq!((flips, pair.ends[1].statistics().corrupt_dropped), (3, 3));
    assert_eq!(pair.memory[1][..20_000], pair.source[..20_000]);
    assert_eq!(pair.take_events()[0], [Event::Written { message: 1 }]);
}

#[test]
fn replayed_datagrams_are_ignored() {
    let mut pair = Pair::connected();
    pair.write(1, 20_000);
    let mut seen = Vec::new();
    pair.run_with(40 * MILLISECOND, |to, datagram| {
        if to == 1 {
            seen.push(datagram.clone());
        }
        vec![datagram]
    });
    pair.take_events();
    pair.memory[1].fill(0);
    for datagram in &seen {
        pair.ends[1].handle(pair.now, 0, &mut datagram.clone());
    }
    assert_eq!(pair.ends[1].statistics().replays_ignored, seen.len() as u64);
    assert!(pair.memory[1].iter().all(|&byte| byte == 0), "a replay is placed nowhere");
    assert!(pair.take_events()[1].is_empty());
}

#[test]
fn the_older_version_is_spoken_and_no_common_version_names_both() {
    let with = |client, server| {
        let mut configs = [config(Role::Client), config(Role::Server)];
        (configs[0].versions, configs[1].versions) = (client, server);
        let mut pair = Pair::new(configs);
        pair.offer(1, 5);
        pair.write(1, 5000);
        pair.run(40 * MILLISECOND);
        pair
    };
    for (client, server, version) in [((1, 2), (1, 2), 2), ((1, 2), (1, 1), 1), ((1, 1), (1, 2), 1)]
    {
        let [here, there] = with(client, server).take_events();
        assert_eq!(here, [Event::Connected { version }, Event::Written { message: 1 }]);
        assert_eq!(there[0], Event::Connected { version });
    }
    let [here, there] = with((2, 2), (1, 1)).take_events();
    let reason = CloseReason::Version { ours: (2, 2), theirs: (1, 1) };
    assert!(reason.to_string().contains("2..=2") && reason.to_string().contains("1..=1"));
    assert_eq!(here, [Event::Closed(reason)]);
    let reason = CloseReason::Version { ours: (1, 1), theirs: (2, 2) };
    assert_eq!(there, [Event::Closed(reason)]);
}

#[test]
fn another_secret_never_connects() {
    let mut configs = [config(Role::Client), config(Role::Server)];
    configs[1].protection = Protection::Sealed { secret: [4; 32] };
    let mut pair = Pair::new(configs);
    pair.run(31 * SECOND);
    for events in pair.take_events() {
        assert_eq!(events, [Event::Closed(CloseReason::TimedOut { waited_ms: 30_000 })]);
    }
    assert!(pair.ends[1].statistics().corrupt_dropped > 0);
}

#[test]
fn a_restarted_peer_is_told_from_a_replayed_hello() {
    for restarts in [0, 1] {
        let mut hellos = Vec::new();
        let mut pair = Pair::new([config(Role::Client), config(Role::Server)]);
        pair.run_with(20 * MILLISECOND, |to, datagram| {
            if datagram[0] == 0xb0 {
                hellos.push((to, datagram.clone()));
            }
            vec![datagram]
        });
        for (to, hello) in hellos {
            pair.ends[to].handle(pair.now, 0, &mut hello.clone());
        }
        pair.run(20 * MILLISECOND);
        assert!(pair.ends.iter().all(Connection::is_connected), "replays change nothing");
        let mut new = pair.ends[restarts].config().clone();
        new.nonce = [77; 16];
        pair.ends[restarts] = Connection::new(new, pair.now).expect("works");
        // A word of the end that stayed lets a new server say that it is new.
        pair.run(11 * SECOND);
        let events = pair.take_events();
        let restarted = Event::Closed(CloseReason::PeerRestarted);
        assert!(events[1 - restarts].contains(&restarted), "{restarts}: {events:?}");
    }
}

#[test]
fn a_cut_of_5_s_goes_on_and_one_of_120_s_ends_at_the_deadline() {
    for (cut, continues) in [(5 * SECOND, true), (120 * SECOND, false)] {
        let mut pair = Pair::connected();
        pair.write(1, 80_000);
        pair.run_with(cut, |_, _| vec![]);
        pair.run(300 * MILLISECOND);
        let [here, _] = pair.take_events();
        if continues {
            assert_eq!(here, [Event::Written { message: 1 }]);
        } else {
            assert_eq!(here, [Event::Closed(CloseReason::TimedOut { waited_ms: 30_000 })]);
        }
    }
}

/// A message of 50,000 bytes of which some are placed when the window is withdrawn.
fn withdraw_in_the_middle(pair: &mut Pair) {
    pair.write(1, 50_000);
    // Only some of it arrives.
    let mut passed = 0;
    pair.run_with(5 * MILLISECOND, |to, datagram| {
        passed += usize::from(to == 1);
        if to == 1 && passed > 10 { vec![] } else { vec![datagram] }
    });
    pair.ends[1].withdraw(5).expect("it is offered");
    pair.memory[1].fill(0xee);
    pair.run(100 * MILLISECOND);
    assert!(pair.memory[1].iter().all(|&byte| byte == 0xee), "nothing after withdrawal");
}

#[test]
fn a_message_whose_window_is_withdrawn_waits_for_the_next() {
    let mut pair = Pair::connected();
    withdraw_in_the_middle(&mut pair);
    assert_eq!(pair.take_events(), [vec![], vec![]]);
    // Begun when the sender cannot know yet that there is no window.
    pair.write(2, 100);
    pair.run(30 * MILLISECOND);
    assert_eq!(pair.take_events(), [vec![], vec![]]);
    pair.offer(1, 5);
    pair.run(100 * MILLISECOND);
    let [here, there] = pair.take_events();
    assert_eq!(here.len(), 2, "{here:?}");
    assert!(here.contains(&Event::Written { message: 1 }));
    assert!(here.contains(&Event::Written { message: 2 }));
    assert_eq!(there.len(), 2, "each is told once: {there:?}");
    assert_eq!(pair.memory[1][..100], pair.source[..100]);
    assert_eq!(pair.memory[1][1_000..50_000], pair.source[1_000..50_000]);
    assert!(pair.ends[0].is_idle());
}

#[test]
fn with_version_1_a_message_whose_window_is_withdrawn_fails() {
    let mut configs = [config(Role::Client), config(Role::Server)];
    configs[1].versions = (1, 1);
    let mut pair = Pair::connected_as(configs);
    withdraw_in_the_middle(&mut pair);
    let failed = Event::Failed { message: 1, reason: FailReason::Withdrawn };
    assert_eq!(pair.take_events(), [vec![failed], vec![]]);
    pair.offer(1, 5);
    pair.write(2, 100);
    pair.run(30 * MILLISECOND);
    assert_eq!(pair.take_events()[0], [Event::Written { message: 2 }]);
}

#[test]
fn credit_runs_out_and_comes_back() {
    let mut configs = [config(Role::Client), config(Role::Server)];
    configs[0].writes_queued = 3;
    configs[1].messages_ahead = 2;
    let mut pair = Pair::new(configs);
    pair.write(1, 10);
    pair.write(2, 10);
    pair.write(3, 10);
    let bytes = span(&mut pair.source[..10]);
    let refused = pair.ends[0].write(4, vec![bytes], 5, 0);
    assert_eq!(refused, Err(WriteError::OutOfCredit { queued: 3 }));
    pair.run(30 * MILLISECOND);
    assert!(pair.take_events()[0].iter().all(|it| matches!(it, Event::Connected { .. })));
    pair.offer(1, 5);
    pair.run(50 * MILLISECOND);
    let [here, there] = pair.take_events();
    assert!(here.contains(&Event::Writable) && here.contains(&Event::Written { message: 3 }));
    assert_eq!(there.len(), 3);
}

#[test]
fn a_close_reaches_the_peer_with_its_words() {
    let mut pair = Pair::connected();
    let now = pair.now;
    pair.ends[0].close(now, 42, "done");
    pair.run(10 * MILLISECOND);
    let reason = || "done".to_owned();
    let [here, there] = pair.take_events();
    assert_eq!(here, [Event::Closed(CloseReason::Here { code: 42, reason: reason() })]);
    assert_eq!(there, [Event::Closed(CloseReason::Peer { code: 42, reason: reason() })]);
}
