//! How many attempts may be made that come to nothing: a bucket of tokens for each source, and one
//! for all strangers together.

use std::time::Instant;

use super::Source;
use super::recent::Recent;

/// Attempts in vain that an address may make at once, and a second from then on.
pub const ATTEMPTS_OF_ADDRESS_BURST: u32 = 128;
pub const ATTEMPTS_OF_ADDRESS_PER_S: u32 = 32;
/// Addresses whose attempts are counted at a time.
pub const ATTEMPTS_ADDRESSES_MAX: usize = 4096;
/// The same of all addresses together, friends' left out: what strangers cost is bounded, however
/// many they are.
pub const ATTEMPTS_BURST: u32 = 256;
pub const ATTEMPTS_PER_S: u32 = 256;

struct Bucket {
    most: u32,
    per_s: u32,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(most: u32, per_s: u32, now: Instant) -> Self {
        Bucket { most, per_s, tokens: most.into(), at: now }
    }

    fn add(&mut self, tokens: f64) {
        self.tokens = f64::from(self.most).min(self.tokens + tokens);
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.add(passed.as_secs_f64() * f64::from(self.per_s));
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }
}

pub(super) struct Attempts {
    each: Recent<Bucket>,
    all: Option<Bucket>,
}

impl Attempts {
    pub fn new() -> Self {
        Attempts { each: Recent::new(ATTEMPTS_ADDRESSES_MAX), all: None }
    }

    /// Takes a token; `false` where there is none.
    pub fn take(&mut self, source: Source, is_friend: bool, now: Instant) -> bool {
        if !source.is_address() {
            return true;
        }
        let (burst, per_s) = (ATTEMPTS_OF_ADDRESS_BURST, ATTEMPTS_OF_ADDRESS_PER_S);
        let each = self.each.see(source, || Bucket::new(burst, per_s, now));
        let all = self.all.get_or_insert_with(|| Bucket::new(ATTEMPTS_BURST, ATTEMPTS_PER_S, now));
        each.take(now) && (is_friend || all.take(now))
    }

    /// An attempt was not in vain: it costs nothing.
    pub fn give_back(&mut self, source: Source, is_friend: bool) {
        if let Some(each) = self.each.get_mut(source) {
            each.add(1.0);
        }
        if let Some(all) = self.all.as_mut().filter(|_| !is_friend) {
            all.add(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(attempts: &mut Attempts, source: Source, at: Instant) -> u32 {
        (0..1000).filter(|_| attempts.take(source, true, at)).count() as u32
    }

    #[test]
    fn a_burst_and_then_a_rate_each() {
        let (one, other) = (Source::V4([10, 0, 0, 1]), Source::V4([10, 0, 0, 2]));
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut attempts = Attempts::new();
        assert_eq!(taken(&mut attempts, one, begin), ATTEMPTS_OF_ADDRESS_BURST);
        assert_eq!(taken(&mut attempts, other, begin), ATTEMPTS_OF_ADDRESS_BURST);
        assert_eq!(taken(&mut attempts, one, after(1)), ATTEMPTS_OF_ADDRESS_PER_S);
        assert_eq!(taken(&mut attempts, one, after(999)), ATTEMPTS_OF_ADDRESS_BURST);
        assert_eq!(taken(&mut attempts, Source::Here, begin), 1000);
    }

    #[test]
    fn strangers_of_many_addresses_leave_friends_theirs() {
        let source = |number: u32| Source::V4(number.to_be_bytes());
        let begin = Instant::now();
        let mut attempts = Attempts::new();
        let mut strangers = |at| (0..9999).filter(|n| attempts.take(source(*n), false, at)).count();
        assert_eq!(strangers(begin) as u32, ATTEMPTS_BURST);
        assert_eq!(strangers(begin + Duration::from_secs(1)) as u32, ATTEMPTS_PER_S);
        assert!(attempts.take(source(10_000), true, begin));
    }

    #[test]
    fn who_gets_in_pays_nothing() {
        let source = Source::V6([7; 8]);
        let now = Instant::now();
        let mut attempts = Attempts::new();
        for _ in 0..10 * ATTEMPTS_BURST {
            assert!(attempts.take(source, false, now));
            attempts.give_back(source, false);
        }
    }
}
