//! Spoiled records against an exchange, from a seed: `fuzz [CASES] [SEED]`.
//!
//! Each case speaks to an exchange as a peer would, damages some of it, cuts it in pieces and looks
//! that nothing panics, that no byte outside a window changes, that answers stay bounded, and that
//! every message is told at most as often as it was sent.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_records::record::{HEAD_BYTES, Head, Hello, Offer, Record, Write};
use genie_records::{CONTROL, DATA, Exchange, Setup, Sharing, Span};
use genie_transport::SharedMemory;
use genie_transport::transport::{Completion, Memory, Options, Part, Result};

/// The window in the middle of the memory, and the untouched bytes around it.
const GUARD: u64 = 512;
const WINDOW: u64 = 4 << 10;

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// Small numbers mostly, and the ends of the range.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => u64::MAX - self.below(3),
            1 => self.next(),
            2 => WINDOW - self.below(4),
            _ => self.below(6),
        }
    }
}

/// Memory that is shared in name alone.
struct Shared(File);

impl Sharing for Shared {
    fn greeting(&mut self) -> Result<OwnedFd> {
        Ok(self.0.as_fd().try_clone_to_owned().expect("there are descriptors"))
    }
    fn greeted(&mut self, _beside: OwnedFd) -> Result<()> {
        Ok(())
    }
    fn offer(&mut self, _generation: u64, _memory: &Memory) -> Result<(u32, OwnedFd)> {
        Ok((0, self.greeting()?))
    }
    fn withdraw(&mut self, _gate: u32) -> Result<()> {
        Ok(())
    }
    fn adopt(&mut self, _offer: &Offer, _beside: OwnedFd) -> Result<()> {
        Ok(())
    }
    fn forget(&mut self, _generation: u64) {}
    fn copy(&mut self, _generation: u64, _offset: u64, _from: Span) -> Result<bool> {
        Ok(true)
    }
}

/// What a peer says in one case, on each lane.
fn script(random: &mut Random, two_lanes: bool, shared: bool) -> [Vec<u8>; 2] {
    let mut lanes = [Vec::new(), Vec::new()];
    let hello = Hello {
        frame_bytes_max: random.number(),
        message_bytes_max: random.number(),
        connection: 0,
        secured: random.chance(40),
        nonce: [7; 32],
        beside: shared,
    };
    if !random.chance(50) {
        Record::Hello(hello).encode(&mut lanes[CONTROL]);
    }
    let data = if two_lanes { DATA } else { CONTROL };
    if two_lanes {
        Record::Lane.encode(&mut lanes[DATA]);
    }
    for round in 0..random.below(12) {
        let window = random.below(3) as u32;
        let out = &mut lanes[CONTROL];
        match random.below(12) {
            0 => {
                let body = vec![round as u8; random.below(300) as usize];
                Record::Frame { kind: round as u8, beside: random.chance(10), body: &body }
                    .encode(out);
            }
            1 | 2 => Record::Offer(Offer {
                window,
                gate: random.below(2) as u32,
                generation: if random.chance(4) { random.number() } else { round + 1 },
                bytes: random.number(),
                base: 0,
                beside: shared,
            })
            .encode(out),
            3 => Record::Withdraw { window, generation: random.number() }.encode(out),
            4 => Record::Written { message: random.number() }.encode(out),
            5 => Record::Dropped { message: random.number() }.encode(out),
            6 => Record::Alive.encode(out),
            7 if random.chance(4) => Record::Close { reason: b"enough" }.encode(out),
            8 => Record::Proof([round as u8; 32]).encode(out),
            _ => {
                let bytes = random.below(WINDOW + 1);
                let offset = if random.chance(8) { random.number() } else { random.below(200) };
                let write = Write {
                    message: round + 1,
                    window: if random.chance(6) { window } else { 0 },
                    generation: if random.chance(8) { random.number() } else { 1 },
                    offset,
                    bytes,
                    done: shared,
                };
                let out = &mut lanes[data];
                Record::Write(write).encode(out);
                let mut left = if shared { 0 } else { bytes };
                while left > 0 {
                    let part = (1 + random.below(left)).min(left);
                    Record::Data { bytes: part as u32 }.encode(out);
                    out.resize(out.len() + part as usize, 0xaa);
                    left -= part;
                }
            }
        }
    }
    lanes
}

/// Flips, cuts, repeats.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.below(40) as usize).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let end = (at + random.below(16) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

fn case(random: &mut Random, memory: &Arc<SharedMemory>, file: &File, now: Instant) -> bool {
    let (two_lanes, shared) = match random.below(8) {
        0 => (false, true),
        1..=3 => (true, false),
        _ => (false, false),
    };
    let initiator = random.chance(2);
    let options = Options {
        secret: random.chance(20).then_some([1; 32]),
        frame_bytes_max: 200,
        message_bytes_max: WINDOW,
        ..Options::default()
    };
    let sharing: Option<Box<dyn Sharing>> = match shared {
        true => Some(Box::new(Shared(file.try_clone().expect("there are descriptors")))),
        false => None,
    };
    let setup = Setup {
        transport: "fuzz",
        options: &options,
        initiator,
        two_lanes,
        watch: true,
        sharing,
        nonce: [3; 32],
        now,
    };
    let mut exchange = Exchange::new(setup);
    let key = exchange.register(Memory::shared(memory.clone())).expect("good memory");
    let window = Part { key, offset: GUARD, bytes: WINDOW };
    let source = Part { key, offset: GUARD, bytes: 100 };
    exchange.offer(0, window).expect("a good window");
    exchange.greet(Vec::new(), now).expect("greeting works");
    for message in 1..=random.below(4) {
        exchange.write(message, &[source], random.below(3) as u32, 0).expect("a good message");
    }
    let mut lanes = script(random, two_lanes, shared);
    let spoiled = !random.chance(8);
    if spoiled {
        damage(random, &mut lanes[CONTROL]);
        damage(random, &mut lanes[DATA]);
    }
    if shared {
        for _ in 0..random.below(4) {
            // Refused where there are too many.
            let fd = file.as_fd().try_clone_to_owned().expect("there are descriptors");
            if exchange.feed_descriptor(fd).is_err() {
                break;
            }
        }
    }
    let (mut at, mut now, mut completions) = ([0, 0], now, Vec::new());
    let mut failed = false;
    while !failed && (at[0] < lanes[0].len() || at[1] < lanes[1].len()) {
        let lane = match two_lanes && at[1] < lanes[1].len() && random.chance(2) {
            true => DATA,
            false if at[0] < lanes[0].len() => CONTROL,
            false => DATA,
        };
        if lane == DATA && !two_lanes {
            break;
        }
        let left = &lanes[lane][at[lane]..];
        let step = match random.below(3) {
            0 => left.len(),
            1 => (1 + random.below(9) as usize).min(left.len()),
            _ => (1 + random.below(left.len() as u64) as usize).min(left.len()),
        };
        at[lane] += step;
        if let Err(error) = exchange.feed(lane, &left[..step], now) {
            exchange.fail(error);
            failed = true;
        }
        for lane in [CONTROL, DATA] {
            while let Ok(outgoing) = exchange.outgoing(lane) {
                let bytes = outgoing.bytes();
                if bytes == 0 {
                    break;
                }
                exchange.advance(lane, 1 + random.below(bytes as u64) as usize, now);
            }
        }
        now += Duration::from_millis(random.below(30));
        exchange.tick(now);
        // Complaints and the end come as errors.
        failed |= exchange.take_completions(&mut completions).is_err();
        assert!(exchange.queued_bytes() < 64 << 10, "answers pile up");
        if random.chance(30) {
            // Refused once it is withdrawn.
            let _ = exchange.withdraw(0);
        }
    }
    let placed = completions.iter().filter(|done| matches!(done, Completion::Placed { .. }));
    assert!(placed.count() <= lanes[0].len().max(lanes[1].len()) / HEAD_BYTES);
    exchange.is_open()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (cases, seed): (u64, u64) = (number(1_000_000), number(1));
    let memory = Arc::new(SharedMemory::create(2 * GUARD + WINDOW).expect("memory"));
    let file = File::open("/dev/null").expect("/dev/null");
    let (begin, mut open) = (Instant::now(), 0u64);
    for index in 0..cases {
        let mut random = Random(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
        open += u64::from(case(&mut random, &memory, &file, begin));
        // And the decoder of heads by itself.
        let head = random.next().to_le_bytes();
        if let Ok(head) = Head::decode(head, 64)
            && head.body_bytes() <= 4096
        {
            // Either answer is fine; a panic is not.
            let _ = head.record(&vec![random.next() as u8; head.body_bytes()]);
        }
        if index % 1024 == 0 {
            let mut guard = [0; GUARD as usize];
            for offset in [0, GUARD + WINDOW] {
                memory.read(offset, &mut guard).expect("inside");
                assert_eq!(guard, [0; GUARD as usize], "case {index}: bytes outside the window");
            }
        }
    }
    println!("{cases} cases of seed {seed}: {open} connections came about; nothing panicked");
}
