//! How many attempts a source may make that come to nothing: a bucket of tokens for each.

use std::time::Instant;

use super::Source;
use super::recent::Recent;

/// Attempts in vain that an address may make at once, and a second from then on.
pub const ATTEMPTS_BURST: u32 = 128;
pub const ATTEMPTS_PER_S: u32 = 32;
/// Addresses whose attempts are counted at a time.
pub const ATTEMPTS_ADDRESSES_MAX: usize = 4096;

struct Bucket {
    tokens: f64,
    at: Instant,
}

pub(super) struct Attempts {
    buckets: Recent<Bucket>,
}

impl Attempts {
    pub fn new() -> Self {
        Attempts { buckets: Recent::new(ATTEMPTS_ADDRESSES_MAX) }
    }

    /// Takes a token; `false` where the source has none.
    pub fn take(&mut self, source: Source, now: Instant) -> bool {
        if !source.is_address() {
            return true;
        }
        let full = f64::from(ATTEMPTS_BURST);
        let bucket = self.buckets.see(source, || Bucket { tokens: full, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = full.min(bucket.tokens + passed * f64::from(ATTEMPTS_PER_S));
        bucket.at = now;
        let some = bucket.tokens >= 1.0;
        if some {
            bucket.tokens -= 1.0;
        }
        some
    }

    /// An attempt was a friend's: it costs nothing.
    pub fn give_back(&mut self, source: Source) {
        if let Some(bucket) = self.buckets.get_mut(source) {
            bucket.tokens = f64::from(ATTEMPTS_BURST).min(bucket.tokens + 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_and_then_a_rate_each() {
        let (one, other) = (Source::V4([10, 0, 0, 1]), Source::V4([10, 0, 0, 2]));
        let begin = Instant::now();
        let mut attempts = Attempts::new();
        let taken = |attempts: &mut Attempts, source, at| {
            (0..1000).filter(|_| attempts.take(source, at)).count() as u32
        };
        assert_eq!(taken(&mut attempts, one, begin), ATTEMPTS_BURST);
        assert_eq!(taken(&mut attempts, other, begin), ATTEMPTS_BURST);
        assert_eq!(taken(&mut attempts, one, begin + Duration::from_secs(1)), ATTEMPTS_PER_S);
        assert_eq!(taken(&mut attempts, one, begin + Duration::from_secs(999)), ATTEMPTS_BURST);
        assert_eq!(taken(&mut attempts, Source::Here, begin), 1000);
    }

    #[test]
    fn who_gets_in_pays_nothing() {
        let source = Source::V6([7; 8]);
        let now = Instant::now();
        let mut attempts = Attempts::new();
        for _ in 0..10 * ATTEMPTS_BURST {
            assert!(attempts.take(source, now));
            attempts.give_back(source);
        }
    }
}
