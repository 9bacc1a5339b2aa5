//! Throws damaged and invented bytes at every decoder, a million of each kind when asked:
//!
//! `GENIE_FUZZ_CASES=1000000 cargo test --release -p genie-bulk fuzz`
//!
//! Bodies are sealed with the peer's own keys, so they reach the decoders and the state behind them.
//! `GENIE_FUZZ_SEED` starts elsewhere; a case that panics is found again by the same two numbers.

use std::sync::Arc;

use crate::config::{Config, MILLISECOND, Protection, Role};
use crate::connection::Connection;
use crate::error::{CloseReason, PlaceError};
use crate::event::Event;
use crate::hello::session_keys;
use crate::memory::{Span, WindowMemory};
use crate::protect::{Keys, Purpose, tag_bytes};
use crate::wire::{First, HEADER_BYTES, Header, Hello, Kind, Sequenced, Writer};
use crate::wire::{encode_ack, encode_close, encode_ping, encode_sequenced};

const WINDOW_BYTES: u64 = 100_000;
const CASES: u64 = 20_000;

/// Memory that checks where it is written.
struct Bounds;

impl WindowMemory for Bounds {
    fn bytes(&self) -> u64 {
        WINDOW_BYTES
    }

    fn place(&self, offset: u64, bytes: &[u8]) -> Result<(), PlaceError> {
        assert!(offset + bytes.len() as u64 <= WINDOW_BYTES, "placed beyond the window");
        Ok(())
    }
}

fn config(role: Role) -> Config {
    let mut config = Config::new(7, role, Protection::Trusted, [role as u8 + 1; 16]);
    config.messages_ahead = 64;
    config
}

/// A connected victim, and the keys of its peer.
struct Victim {
    connection: Connection,
    keys: Keys,
    number: u64,
    sequence: u32,
    now: u64,
    _source: Vec<u8>,
}

impl Victim {
    fn new(role: Role) -> Self {
        let peer = if role == Role::Client { Role::Server } else { Role::Client };
        let mut ends =
            [config(role), config(peer)].map(|it| Connection::new(it, 0).expect("works"));
        let mut source = vec![0; 20_000];
        for end in &mut ends {
            for window in 0..3 {
                end.offer(window, Arc::new(Bounds)).expect("offered");
            }
            for message in 0..3 {
                // SAFETY: the vector goes with the victim, and the peer is dropped before.
                let span = unsafe { Span::new(source.as_mut_ptr(), 5000 * message as usize) };
                end.write(message, vec![span], message as u32, 0).expect("room");
            }
        }
        let mut buf = vec![0; 20_000];
        let mut number = 0;
        for now in 1..6 {
            for from in [0, 1, 0] {
                while let Some(sent) = ends[from].poll_transmit(now * MILLISECOND, &mut buf, 10) {
                    for datagram in buf[..sent.bytes].chunks_mut(sent.segment_bytes) {
                        number += 1;
                        ends[1 - from].handle(now * MILLISECOND, 0, datagram);
                    }
                }
            }
        }
        assert!(ends[0].is_connected());
        let keys = session_keys(&config(peer), &config(role).nonce).0;
        let [connection, _] = ends;
        Self { connection, keys, number, sequence: 3, now: 10 * MILLISECOND, _source: source }
    }

    /// Gives the victim a body as if its peer had sent it.
    fn give(&mut self, kind: Kind, body: &[u8]) {
        self.number += 1;
        let header = Header { kind, version: 2, number: self.number, connection_id: 7 }.encode();
        let mut packet = header.to_vec();
        packet.resize(HEADER_BYTES + 4, 0);
        packet.extend(body);
        let (front, body) = packet.split_at_mut(HEADER_BYTES + 4);
        self.keys.seal(self.number, &header, &mut front[HEADER_BYTES..], body);
        self.now += 1000;
        self.connection.handle(self.now, 0, &mut packet);
    }

    /// Lets it answer; `false`: it closed, for a reason that the peer is to blame for.
    fn goes_on(&mut self, random: &mut fastrand::Rng) -> bool {
        let mut buf = [0; 3000];
        self.connection.handle_timeout(self.now);
        while self.connection.poll_transmit(self.now, &mut buf, 2).is_some() {}
        if random.bool() {
            while let Some(event) = self.connection.poll_event() {
                if let Event::Closed(reason) = event {
                    let blames = matches!(
                        reason,
                        CloseReason::Protocol { .. }
                            | CloseReason::Peer { .. }
                            | CloseReason::PeerFailed { .. }
                            | CloseReason::TimedOut { .. }
                    );
                    assert!(blames, "{reason}");
                }
            }
        }
        self.connection.closed().is_none()
    }
}

/// Integers at the edges more often than elsewhere.
fn integer(random: &mut fastrand::Rng) -> u64 {
    let near = random.u64(..4);
    match random.u8(..6) {
        0 => near,
        1 => u64::MAX - near,
        2 => u64::from(u32::MAX) - 1 + near,
        3 => random.u64(..WINDOW_BYTES + 2),
        4 => random.u64(..100),
        _ => random.u64(..),
    }
}

fn damage(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    for _ in 0..random.usize(..3) {
        match random.u8(..6) {
            0 => bytes.truncate(random.usize(..=bytes.len())),
            1 => bytes.extend((0..random.usize(..64)).map(|_| random.u8(..))),
            2 if bytes.len() >= 8 => {
                let at = random.usize(..bytes.len() - 7);
                bytes[at..at + 8].copy_from_slice(&integer(random).to_be_bytes());
            }
            3 if bytes.len() >= 4 => {
                let at = random.usize(..bytes.len() - 3);
                bytes[at..at + 4].copy_from_slice(&(integer(random) as u32).to_be_bytes());
            }
            _ if !bytes.is_empty() => {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            _ => {}
        }
    }
}

/// Frames that are nearly right.
fn frames(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut buf = [0; 1400];
    let mut writer = Writer::new(&mut buf);
    for _ in 0..random.usize(1..4) {
        match random.u8(..10) {
            0 => encode_ping(&mut writer),
            1..=4 => {
                let count = random.usize(1..70);
                let mut below = random.u64(..40) + 1;
                let ranges = std::iter::from_fn(|| {
                    let end = below.checked_sub(random.u64(..3) + 1)?;
                    let start = end.checked_sub(random.u64(1..4))?;
                    below = start;
                    Some((start, end))
                });
                let ranges: Vec<_> = ranges.take(count).collect();
                encode_ack(&mut writer, integer(random) as u32, ranges.into_iter());
            }
            5..=8 => {
                let small = |random: &mut fastrand::Rng| match random.u8(..8) {
                    0 => integer(random),
                    _ => random.u64(..8),
                };
                let run: Vec<_> = (0..random.usize(1..6))
                    .map(|_| match random.u8(..5) {
                        0 => Sequenced::Offer {
                            serial: small(random) as u32,
                            window: small(random) as u32,
                            bytes: integer(random),
                        },
                        1 => Sequenced::Withdraw { serial: small(random) as u32 },
                        2 => Sequenced::Credit { messages: integer(random) },
                        3 => Sequenced::Return { sequence: small(random) },
                        _ => Sequenced::Abandon { sequence: small(random) },
                    })
                    .collect();
                encode_sequenced(&mut writer, small(random).saturating_add(3), run.iter());
            }
            _ if random.u8(..50) == 0 => {
                encode_close(&mut writer, random.bool(), random.u32(..), "wörds");
            }
            _ => {}
        }
    }
    let at = writer.at();
    buf[..at].to_vec()
}

/// A fragment that is nearly right.
fn fragment(random: &mut fastrand::Rng, victim: &mut Victim) -> (Kind, Vec<u8>) {
    let mut buf = [0; 1400];
    let mut writer = Writer::new(&mut buf);
    victim.sequence = victim.sequence.wrapping_add(random.u32(..2));
    let sequence = victim.sequence.wrapping_sub(random.u32(..3));
    let len = [0, 1, 700, 5000, 90_000][random.usize(..5)];
    let at = random.u32(..=len as u32);
    let kind = if random.bool() {
        let serial = random.u32(..3);
        let (message, offset) = (u64::from(sequence), random.u64(..WINDOW_BYTES - len + 1));
        First { sequence, at, message, serial, offset, len }.encode(&mut writer);
        Kind::First
    } else {
        writer.u32(sequence);
        writer.u32(at);
        Kind::More
    };
    let payload = random.usize(..=writer.room());
    writer.space(payload);
    let at = writer.at();
    (kind, buf[..at].to_vec())
}

fn cases(what: &str, mut case: impl FnMut(&mut fastrand::Rng)) {
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let seed = number("GENIE_FUZZ_SEED").unwrap_or(1);
    let count = number("GENIE_FUZZ_CASES").unwrap_or(CASES);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..count {
        case(&mut random);
    }
    println!("{what}: {count} cases from seed {seed}");
}

/// Bodies of one kind against a victim that is made anew whenever it closes.
fn bodies(what: &str, body: impl Fn(&mut fastrand::Rng, &mut Victim) -> (Kind, Vec<u8>)) {
    let mut victim = Victim::new(Role::Server);
    let (mut closed, mut placed) = (0, 0);
    cases(what, |random| {
        let (kind, mut bytes) = body(random, &mut victim);
        damage(random, &mut bytes);
        victim.give(kind, &bytes);
        if !victim.goes_on(random) {
            closed += 1;
            placed += victim.connection.statistics().messages_placed;
            victim = Victim::new(if random.bool() { Role::Client } else { Role::Server });
        }
    });
    println!("{what}: {closed} connections closed, {placed} messages placed");
    assert!(closed > 0, "some cases must be wrong enough");
}

#[test]
fn fuzz_frames() {
    bodies("frames", |random, _| (Kind::Control, frames(random)));
}

#[test]
fn fuzz_fragments() {
    bodies("fragments", fragment);
}

#[test]
fn fuzz_fragments_with_frames_behind() {
    bodies("fragments with frames behind", |random, victim| {
        let (kind, mut bytes) = fragment(random, victim);
        bytes.extend(frames(random));
        (kind, bytes)
    });
}

#[test]
fn fuzz_headers() {
    let mut victim = Victim::new(Role::Server);
    cases("headers", |random| {
        let mut bytes: [u8; HEADER_BYTES] = std::array::from_fn(|_| random.u8(..));
        bytes[0] = random.u8(0xae..0xb6);
        if let Some(header) = Header::decode(&bytes) {
            assert_eq!(header.encode(), bytes);
        }
        if random.bool() {
            bytes[8..].copy_from_slice(&7_u64.to_be_bytes());
        }
        let mut packet = bytes.to_vec();
        packet.extend((0..random.usize(..60)).map(|_| random.u8(..)));
        packet.truncate(random.usize(..=packet.len()));
        victim.connection.handle(victim.now, random.u16(..), &mut packet);
        assert!(victim.connection.closed().is_none(), "an unauthenticated packet changes nothing");
    });
}

#[test]
fn fuzz_hellos() {
    let (ours, theirs) = (config(Role::Server), config(Role::Client));
    let mut victim = Connection::new(ours.clone(), 0).expect("works");
    cases("hellos", |random| {
        let hello = Hello {
            versions: (random.u8(..4), random.u8(..4)),
            echo: if random.bool() { ours.nonce } else { [random.u8(..); 16] },
            datagram_bytes: integer(random) as u32,
            messages_ahead: integer(random) as u32,
        };
        let mut body = [0; Hello::BYTES];
        hello.encode(&mut Writer::new(&mut body));
        let mut body = body.to_vec();
        damage(random, &mut body);
        let nonce = [random.u8(1..4); 16];
        let header =
            Header { kind: Kind::Hello, version: 0, number: random.u64(..9), connection_id: 7 };
        let clear = [&header.encode()[..], &nonce].concat();
        let protection = &theirs.protection;
        let mut keys = Keys::new(protection, Purpose::Hello, Role::Client, 7, &[&nonce]);
        let mut tag = vec![0; tag_bytes(protection)];
        keys.seal(header.number, &clear, &mut tag, &mut body);
        let mut packet = [&header.encode()[..], &tag, &nonce, &body].concat();
        victim.handle(0, 0, &mut packet);
        let mut buf = [0; 2000];
        while victim.poll_transmit(0, &mut buf, 1).is_some() {}
        if let Some(reason) = victim.closed() {
            let expected =
                matches!(reason, CloseReason::Version { .. } | CloseReason::PeerRestarted);
            assert!(expected, "{reason}");
            victim = Connection::new(ours.clone(), 0).expect("works");
        }
    });
}
