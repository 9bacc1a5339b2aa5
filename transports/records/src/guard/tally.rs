//! What became of strangers: counters, and at most one line about them in a while.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often strangers are written about, however many they are.
pub const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Failures that are told one by one in that time, so that the odd one is explained.
pub const TOLD_SINGLY_MAX: u32 = 8;

/// What became of a stranger's attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is not who it should be, or it left.
    Failed,
    /// It did not finish in time.
    Overdue,
    /// Others came, and its place was taken.
    CrowdedOut,
    /// There were too many attempts in vain, of its address or of all.
    OverRate,
    /// It was asked to show that it is where it says.
    AskedForProof,
}

const FATES: [(Fate, &str, &str); 5] = [
    (Fate::Failed, "strangers_failed", "failed"),
    (Fate::Overdue, "strangers_overdue", "took too long"),
    (Fate::CrowdedOut, "strangers_crowded_out", "gave way to others"),
    (Fate::OverRate, "strangers_over_rate", "came too often"),
    (Fate::AskedForProof, "strangers_asked_for_proof", "had to prove their address"),
];

/// See the module.
pub struct Tally {
    transport: &'static str,
    counts: [AtomicU64; FATES.len()],
    telling: Mutex<Telling>,
}

struct Telling {
    since: Instant,
    singly: u32,
    untold: [u64; FATES.len()],
    last: Option<IpAddr>,
}

impl Tally {
    pub fn new(transport: &'static str) -> Arc<Self> {
        let telling =
            Telling { since: Instant::now(), singly: 0, untold: Default::default(), last: None };
        Arc::new(Tally { transport, counts: Default::default(), telling: Mutex::new(telling) })
    }

    /// Whether the caller should tell of this one by itself.
    #[must_use]
    pub fn count_and_tell(&self, fate: Fate, from: Option<IpAddr>, now: Instant) -> bool {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_line(&mut telling, now);
        self.counts[fate as usize].fetch_add(1, Ordering::Relaxed);
        let tells = telling.singly < TOLD_SINGLY_MAX;
        match tells {
            true => telling.singly += 1,
            false => telling.note(fate, from),
        }
        tells
    }

    /// Not worth a line of its own.
    pub fn count(&self, fate: Fate, from: Option<IpAddr>, now: Instant) {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_line(&mut telling, now);
        self.counts[fate as usize].fetch_add(1, Ordering::Relaxed);
        telling.note(fate, from);
    }

    /// The line of the time that has passed, if it is due.
    pub fn tell(&self, now: Instant) {
        let mut telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_line(&mut telling, now);
    }

    fn write_line(&self, telling: &mut Telling, now: Instant) {
        if let Some(line) = telling.line(now) {
            // A plugin's `tracing` reaches nobody.
            eprintln!("genie-{}: {line}", self.transport);
        }
    }

    pub fn statistics(&self) -> impl Iterator<Item = (String, u64)> {
        let counted = |(count, (_, name, _)): (&AtomicU64, (Fate, &str, &str))| {
            (name.to_owned(), count.load(Ordering::Relaxed))
        };
        self.counts.iter().zip(FATES).map(counted)
    }
}

impl Telling {
    fn note(&mut self, fate: Fate, from: Option<IpAddr>) {
        self.untold[fate as usize] += 1;
        self.last = from;
    }

    fn line(&mut self, now: Instant) -> Option<String> {
        let passed = now.saturating_duration_since(self.since);
        if passed < TOLD_EVERY {
            return None;
        }
        let (untold, last) = (std::mem::take(&mut self.untold), self.last.take());
        (self.since, self.singly) = (now, 0);
        if untold.iter().all(|count| *count == 0) {
            return None;
        }
        let mut line = format!("strangers in the last {} s:", passed.as_secs());
        let mut comma = "";
        for (count, (_, _, words)) in untold.iter().zip(FATES).filter(|(count, _)| **count > 0) {
            // Writing to a string does not fail.
            let _ = write!(line, "{comma} {count} {words}");
            comma = ",";
        }
        if let Some(last) = last {
            let _ = write!(line, "; the last from {last}");
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_are_in_order() {
        assert!(FATES.iter().enumerate().all(|(index, (fate, ..))| *fate as usize == index));
    }

    #[test]
    fn a_thousand_strangers_are_one_line() {
        let tally = Tally::new("test");
        let begin = tally.telling.lock().unwrap().since;
        let from = Some("10.0.0.7".parse().unwrap());
        let told = (0..1000).filter(|_| tally.count_and_tell(Fate::Failed, from, begin)).count();
        assert_eq!(told as u32, TOLD_SINGLY_MAX);
        tally.count(Fate::OverRate, from, begin);
        let mut telling = tally.telling.lock().unwrap();
        assert_eq!(telling.line(begin + TOLD_EVERY / 2), None);
        assert_eq!(
            telling.line(begin + TOLD_EVERY).unwrap(),
            "strangers in the last 10 s: 992 failed, 1 came too often; the last from \
              10.0.0.7"
        );
        assert_eq!(telling.line(begin + 2 * TOLD_EVERY), None);
        drop(telling);
        assert!(tally.count_and_tell(Fate::Failed, from, begin + 2 * TOLD_EVERY));
        assert!(tally.statistics().any(|counter| counter == ("strangers_failed".into(), 1001)));
    }
}
