//! Whose turn it is: sessions that want to compute get equal times, however long their operators are.
//!
//! As the kernel's fair scheduler does it: who has had least goes first, and who slept gets nothing
//! after the fact.

use std::collections::BTreeMap;
use std::time::Duration;

/// How much more than another one may have had and still be given a turn with it.
const SLACK: Duration = Duration::from_millis(5);

/// What connections have had, by number.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: BTreeMap<u64, Duration>,
    /// What the one had that had least, when it was last chosen.
    least: Duration,
}

impl Turns {
    /// Leaves those who get a turn now: at least one, if there is any.
    pub(super) fn choose(&mut self, runnable: &mut Vec<u64>) {
        if runnable.len() < 2 {
            return;
        }
        for id in &*runnable {
            let taken = self.taken.entry(*id).or_default();
            *taken = (*taken).max(self.least);
        }
        let least = runnable.iter().map(|id| self.taken[id]).min();
        self.least = least.expect("there are two");
        runnable.retain(|id| self.taken[id] <= self.least + SLACK);
    }

    pub(super) fn took(&mut self, id: u64, time: Duration) {
        *self.taken.entry(id).or_default() += time;
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.taken.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Gives turns that take so many milliseconds until `until` ms are used; what each got.
    fn run(turns: &mut Turns, costs: &[(u64, u32)], until: u32) -> BTreeMap<u64, u32> {
        let mut got = BTreeMap::new();
        while got.values().sum::<u32>() < until {
            let mut runnable: Vec<u64> = costs.iter().map(|(id, _)| *id).collect();
            turns.choose(&mut runnable);
            assert!(!runnable.is_empty());
            for id in runnable {
                let (_, cost) = costs[costs.iter().position(|(one, _)| *one == id).unwrap()];
                turns.took(id, MS * cost);
                *got.entry(id).or_default() += cost;
            }
        }
        got
    }

    #[test]
    fn long_operators_get_no_more_than_short_ones() {
        let got = run(&mut Turns::default(), &[(1, 100), (2, 5), (3, 1)], 30_000);
        for (id, ms) in &got {
            assert!((9_800..=10_200).contains(ms), "session {id} got {ms} ms: {got:?}");
        }
    }

    #[test]
    fn who_slept_gets_nothing_after_the_fact() {
        let mut turns = Turns::default();
        run(&mut turns, &[(1, 5), (2, 5)], 10_000);
        // It was there before, or not: the same.
        turns.took(3, MS);
        let got = run(&mut turns, &[(1, 5), (2, 5), (3, 5), (4, 5)], 400);
        assert!(got.values().all(|ms| (90..=110).contains(ms)), "{got:?}");
        turns.forget(3);
        assert_eq!(turns.taken.len(), 3);
    }

    #[test]
    fn one_alone_is_not_counted_against() {
        let mut turns = Turns::default();
        let mut alone = vec![7];
        turns.choose(&mut alone);
        assert_eq!((alone, turns.taken.len()), (vec![7], 0));
    }
}
