//! How many bytes the client of a worker may send in a second.

use std::time::{Duration, Instant};

/// An allowance that fills with time. Bursts of one second's worth are taken at once.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_s: u64,
    /// Bytes that may be taken at once; negative while a debt is paid off.
    allowance: f64,
    updated: Option<Instant>,
}

impl Rate {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Rate { bytes_per_s, allowance: bytes_per_s as f64, updated: None }
    }

    /// Counts bytes that the client sent; returns how long it must wait before it sends more.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        if self.bytes_per_s == u64::MAX {
            return None;
        }
        let rate = self.bytes_per_s as f64;
        let passed =
            self.updated.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        self.updated = Some(now);
        self.allowance = (self.allowance + passed.as_secs_f64() * rate).min(rate) - bytes as f64;
        (self.allowance < 0.0).then(|| Duration::from_secs_f64(-self.allowance / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_waited_off() {
        let (mut rate, start) = (Rate::new(1000), Instant::now());
        assert_eq!(rate.take(1000, start), None, "one second's worth at once");
        let wait = rate.take(500, start).expect("over the rate");
        assert!((0.45..0.55).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(rate.take(0, start).is_some(), "the debt stays");
        assert_eq!(rate.take(0, start + Duration::from_secs(1)), None);
        assert_eq!(Rate::new(u64::MAX).take(u64::MAX, start), None);
    }
}
