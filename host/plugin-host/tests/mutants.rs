//! Spoiled components: whatever bytes lie in a file, the host neither panics nor hangs.

mod common;

use std::time::{Duration, Instant};

use common::{Place, chain, component};
use genie_plugin_host::{Compiler, Limits, PluginHost, PluginState, Settings};

/// A sequence of numbers that is the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..1 + numbers.below(4) {
        let at = numbers.below(bytes.len());
        match numbers.below(6) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.next() as u8,
            2 => bytes.truncate(at.max(1)),
            3 => bytes.insert(at, numbers.next() as u8),
            4 => {
                bytes.remove(at);
                bytes.push(0);
            }
            _ => {
                let (len, to) = (numbers.below(64), numbers.below(bytes.len()));
                for offset in 0..len.min(bytes.len() - at.max(to)) {
                    bytes[to + offset] = bytes[at + offset];
                }
            }
        }
    }
}

#[test]
fn thousands_of_mutants_do_no_harm() {
    const MUTANTS: usize = 3_000;
    // A slow machine tries fewer within this time.
    const TIME: Duration = Duration::from_secs(60);
    const MUTANTS_MIN: usize = 200;
    const SEED: u64 = 20_251_122;
    let place = Place::new();
    let good = std::fs::read(component("genie-frozen-v0-1")).unwrap();
    place.add_bytes("mutant", "recognizer", &good, "");
    // Compiled here, so that a panic of the compiler would be seen; endless guests are cut soon.
    let limits = Limits {
        call: Duration::from_millis(20),
        load: Duration::from_millis(200),
        memory_bytes: 16 << 20,
        ..Limits::default()
    };
    let settings =
        Settings { compiler: Compiler::InProcess, cache: None, limits, ..place.settings() };
    let host = PluginHost::open(settings).unwrap();
    assert_eq!(host.plugins()[0].state, PluginState::Ready);
    let (graph, mut numbers, begin) = (chain(5), Numbers(SEED), Instant::now());
    let (mut tried, mut loaded, mut answered) = (0, 0, 0);
    while tried < MUTANTS_MIN || (tried < MUTANTS && begin.elapsed() < TIME) {
        let mut bytes = good.clone();
        mutate(&mut bytes, &mut numbers);
        place.add_bytes("mutant", "recognizer", &bytes, "");
        host.rescan();
        tried += 1;
        for call in host.recognize(&graph) {
            loaded += 1;
            answered += usize::from(call.result.is_ok());
        }
    }
    println!(
        "{tried} mutants (seed {SEED}) in {:?}: {loaded} were loaded, {answered} answered",
        begin.elapsed()
    );
}
