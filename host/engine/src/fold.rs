//! Repeats of segments: a loop is kept a few times, then only counted.
//!
//! Segments repeat when their topologies do and when they use the same storages from before at the
//! same places: weights, above all. So two models of one architecture that take turns are a repeat
//! of two, not of one.

use std::sync::Arc;

use genie_srg::{Noted, SegmentHashes, Trace};

/// Segments of the longest repeat that is looked for: a token of a decoder has a few, a training
/// step some ten.
pub const FOLD_PERIOD_MAX: usize = 64;
/// Repeats that are kept whole.
pub const FOLD_REPEATS_MIN: usize = 3;
/// Records that repeats must have together before more of them are only counted: small programs
/// are told operator by operator.
pub const FOLD_RECORDS_MIN: usize = 1 << 12;

/// Looks for repeats at the end of what is kept.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// For each period how many of the last segments have the topology of the one a period before.
    runs: Vec<usize>,
    repeat: Option<Repeat>,
}

/// A repeat that goes on: its last occurrence is kept, and those that follow are counted.
#[derive(Debug)]
struct Repeat {
    /// The first kept segment of the last occurrence.
    first: usize,
    /// For each segment of the period, where it uses a storage that the one before used too.
    lasting: Vec<Vec<usize>>,
    /// Which segment comes next.
    at: usize,
}

impl Fold {
    /// The kept segment that `next` repeats; `None` where it is to be kept itself.
    pub fn repeats(
        &mut self,
        kept: &[Arc<Noted>],
        hashes: SegmentHashes,
        next: &Trace,
    ) -> Option<usize> {
        let repeat = self.repeat.as_mut()?;
        let of = repeat.first + repeat.at;
        let goes_on = kept[of].hashes.topology == hashes.topology
            && lasts(kept[of].trace(), next, &repeat.lasting[repeat.at]);
        if !goes_on {
            *self = Fold::default();
            return None;
        }
        repeat.at = (repeat.at + 1) % repeat.lasting.len();
        Some(of)
    }

    /// Takes note of the last of the kept segments.
    pub fn kept(&mut self, kept: &[Arc<Noted>]) {
        let [before @ .., last] = kept else { return };
        self.runs.resize(FOLD_PERIOD_MAX, 0);
        let earlier = |period: usize| before.len().checked_sub(period).map(|at| &before[at]);
        let mut best: Option<(usize, usize)> = None;
        for period in 1..=FOLD_PERIOD_MAX {
            let run = &mut self.runs[period - 1];
            match earlier(period).filter(|one| one.hashes.topology == last.hashes.topology) {
                None => *run = 0,
                Some(one) => {
                    *run += 1;
                    let shared = lasting(one, last).count();
                    if best.is_none_or(|(most, _)| shared > most) {
                        best = Some((shared, period));
                    }
                }
            }
        }
        let Some((1.., period)) = best else { return };
        let run = self.runs[period - 1] + period;
        let records: usize = kept[kept.len() - run..].iter().map(|one| one.trace().len()).sum();
        if run < period * FOLD_REPEATS_MIN || records < FOLD_RECORDS_MIN {
            return;
        }
        let first = kept.len() - period;
        let of = |at: usize| lasting(&kept[at - period], &kept[at]).collect();
        self.repeat = Some(Repeat { first, lasting: (first..kept.len()).map(of).collect(), at: 0 });
    }
}

/// Where two segments of one topology use the same storage.
fn lasting<'a>(one: &'a Noted, other: &'a Noted) -> impl Iterator<Item = usize> + 'a {
    let both = one.trace().storages().zip(other.trace().storages()).enumerate();
    both.filter(|(_, (a, b))| a == b).map(|(at, _)| at)
}

fn lasts(one: &Trace, other: &Trace, places: &[usize]) -> bool {
    places.iter().all(|place| one.storage(*place) == other.storage(*place))
}
