//! Repeats of segments: a loop is kept a few times, then only counted.
//!
//! Segments repeat when the same topologies come again in the same order and use the same storages from
//! before at the same places: weights, above all. So two models of one architecture that take turns
//! are a repeat of two. Whole repeats are left out, and where they begin the least is handed on from one
//! to the next (between a training step and the next, say): what is kept reads as if the loop had been
//! short. A repeat that breaks off is kept.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use genie_srg::{Noted, Trace};

/// Segments of the longest repeat that is looked for: a token of a decoder has a few, a training
/// step some ten.
pub const FOLD_PERIOD_MAX: usize = 64;
/// Repeats that are kept whole.
pub const FOLD_REPEATS_MIN: usize = 3;
/// Records that must be kept before repeats are only counted: small programs are told operator by
/// operator.
pub const FOLD_RECORDS_MIN: usize = 1 << 12;
/// Repeats that are known again after something else ran.
const KNOWN_MAX: usize = 64;

/// Looks for repeats at the end of what is kept.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    /// For each period how many of the last segments have the topology of the one a period before.
    runs: Vec<usize>,
    known: VecDeque<Vec<Slot>>,
    /// The repeat that goes on, and what of it was seen since it was last whole.
    going: Option<usize>,
    begun: Vec<Arc<Noted>>,
}

/// A segment of a repeat.
#[derive(Debug)]
struct Slot {
    /// The one that is kept.
    kept: usize,
    /// Where it uses a storage that the one before used too.
    lasting: Vec<usize>,
}

/// What becomes of a segment.
pub(crate) enum Noting {
    /// It may be part of a repeat.
    Waits,
    /// It made a repeat whole: these kept segments ran once more.
    Counted(Vec<usize>),
    /// These are to be kept, in order, it last.
    Kept(Vec<Arc<Noted>>),
}

impl Fold {
    /// Looks at the next segment.
    pub fn note(&mut self, kept: &[Arc<Noted>], next: Arc<Noted>) -> Noting {
        let mut broken = Vec::new();
        if let Some(repeat) = self.going {
            if self.known[repeat][self.begun.len()].fits(kept, &next) {
                return self.goes_on(repeat, next);
            }
            self.going = None;
            broken = std::mem::take(&mut self.begun);
        }
        let last = broken.last().or(kept.last());
        let entry = last.and_then(|last| {
            self.known.iter().position(|slots| {
                slots[slots.len() - 1].fits(kept, last) && slots[0].fits(kept, &next)
            })
        });
        match entry {
            Some(repeat) if broken.is_empty() => self.goes_on(repeat, next),
            _ => {
                broken.push(next);
                Noting::Kept(broken)
            }
        }
    }

    fn goes_on(&mut self, repeat: usize, next: Arc<Noted>) -> Noting {
        self.going = Some(repeat);
        self.begun.push(next);
        let slots = &self.known[repeat];
        if self.begun.len() < slots.len() {
            return Noting::Waits;
        }
        self.begun.clear();
        Noting::Counted(slots.iter().map(|slot| slot.kept).collect())
    }

    /// What was seen of a repeat that is not whole yet.
    pub fn begun_mut(&mut self) -> &mut [Arc<Noted>] {
        &mut self.begun
    }

    pub fn begun(&self) -> &[Arc<Noted>] {
        &self.begun
    }

    /// Takes note of the last of the kept segments; a repeat may begin behind it if
    /// nothing follows it already.
    /// `records` are those of all kept segments together.
    pub fn kept(&mut self, kept: &[Arc<Noted>], records: usize, may_begin: bool) {
        let Some((last, before)) = kept.split_last() else { return };
        self.runs.resize(FOLD_PERIOD_MAX, 0);
        let mut best: Option<(usize, usize)> = None;
        for period in 1..=FOLD_PERIOD_MAX {
            let one = before.len().checked_sub(period).map(|at| &before[at]);
            let run = &mut self.runs[period - 1];
            match one.filter(|one| one.hashes.topology == last.hashes.topology) {
                None => *run = 0,
                Some(one) => {
                    *run += 1;
                    let shared = shared(one.trace(), last.trace()).count();
                    if best.is_none_or(|(most, _)| shared > most) {
                        best = Some((shared, period));
                    }
                }
            }
        }
        let Some((1.., period)) = best.filter(|_| may_begin) else { return };
        let run = self.runs[period - 1] + period;
        if run < period * FOLD_REPEATS_MIN
            || records < FOLD_RECORDS_MIN
            || !parts_here(kept, period)
        {
            return;
        }
        let slot = |at: usize| {
            let lasting = shared(kept[at - period].trace(), kept[at].trace()).collect();
            Slot { kept: at, lasting }
        };
        if self.known.len() == KNOWN_MAX {
            self.known.pop_front();
        }
        self.known.push_back((kept.len() - period..kept.len()).map(slot).collect());
        self.going = Some(self.known.len() - 1);
    }
}

impl Slot {
    fn fits(&self, kept: &[Arc<Noted>], next: &Noted) -> bool {
        let own = &kept[self.kept];
        own.hashes.topology == next.hashes.topology
            && self.lasting.iter().all(|at| own.trace().storage(*at) == next.trace().storage(*at))
    }
}

/// Whether a repeat may begin after the last kept segment: nowhere else within the period less is
/// handed on from one repeat to the next.
fn parts_here(kept: &[Arc<Noted>], period: usize) -> bool {
    let last = kept.len() - period;
    let here = handed_on(kept, period, last);
    (last + 1 - period..last).all(|at| handed_on(kept, period, at) >= here)
}

/// How many storages are made in the period before `at` and used in the one from `at` on.
fn handed_on(kept: &[Arc<Noted>], period: usize, at: usize) -> usize {
    let made: HashSet<_> =
        kept[at - period..at].iter().flat_map(|one| one.trace().made()).collect();
    let used: HashSet<_> =
        kept[at..at + period].iter().flat_map(|one| one.trace().used()).collect();
    made.intersection(&used).count()
}

/// Where two segments of one topology use the same storage.
fn shared<'a>(one: &'a Trace, other: &'a Trace) -> impl Iterator<Item = usize> + 'a {
    let both = one.storages().zip(other.storages()).enumerate();
    both.filter(|(_, (a, b))| a == b).map(|(at, _)| at)
}
