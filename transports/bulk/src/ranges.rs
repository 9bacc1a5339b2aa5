//! A set of numbers kept as few ranges: which packets came, which bytes of a message are there.

use smallvec::SmallVec;

/// Disjoint, not touching, rising half-open ranges. One needs no allocation: a small message's.
#[derive(Debug, Default, Clone)]
pub(crate) struct RangeSet {
    ranges: SmallVec<[(u64, u64); 1]>,
    total: u64,
}

impl RangeSet {
    /// Adds `start..end` and tells how many of its numbers are new.
    pub(crate) fn insert(&mut self, start: u64, end: u64) -> u64 {
        if start >= end {
            return 0;
        }
        // In order is the common case: it extends the last range or follows it.
        match self.ranges.last_mut() {
            Some(last) if start == last.1 => {
                last.1 = end;
                self.total += end - start;
                return end - start;
            }
            Some(last) if start < last.1 => {}
            _ => {
                self.ranges.push((start, end));
                self.total += end - start;
                return end - start;
            }
        }
        // All ranges from `first` to before `after` touch the new one and are joined with it.
        let first = self.ranges.partition_point(|range| range.1 < start);
        let after = self.ranges.partition_point(|range| range.0 <= end);
        let mut joined = (start, end);
        let mut had = 0;
        for range in &self.ranges[first..after] {
            joined = (joined.0.min(range.0), joined.1.max(range.1));
            had += range.1 - range.0;
        }
        if first == after {
            self.ranges.insert(first, joined);
        } else {
            self.ranges[first] = joined;
            self.ranges.drain(first + 1..after);
        }
        let new = (joined.1 - joined.0) - had;
        self.total += new;
        new
    }

    /// Whether all of `start..end` is in the set.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.1 <= start);
        self.ranges.get(at).is_some_and(|range| range.0 <= start && end <= range.1)
    }

    /// How many numbers are in the set.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many ranges it takes.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, falling: the newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().rev().copied()
    }

    /// Forgets all numbers below `below`.
    pub(crate) fn forget_below(&mut self, below: u64) {
        let gone = self.ranges.partition_point(|range| range.1 <= below);
        self.total -= self.ranges[..gone].iter().map(|range| range.1 - range.0).sum::<u64>();
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut()
            && first.0 < below
        {
            self.total -= below - first.0;
            first.0 = below;
        }
    }

    /// Forgets the lowest ranges until at most `most` are left.
    pub(crate) fn forget_oldest(&mut self, most: usize) {
        if self.ranges.len() > most {
            let below = self.ranges[self.ranges.len() - most].0;
            self.forget_below(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(spans in prop::collection::vec((0u64..120, 0u64..20), 0..60), below in 0u64..140) {
            let (mut ranges, mut plain) = (RangeSet::default(), std::collections::BTreeSet::new());
            for (start, len) in spans {
                let new = (start..start + len).filter(|&n| plain.insert(n)).count() as u64;
                prop_assert_eq!(ranges.insert(start, start + len), new);
                prop_assert_eq!(ranges.total(), plain.len() as u64);
                for window in ranges.ranges.windows(2) {
                    prop_assert!(window[0].1 < window[1].0);
                }
            }
            for start in 0..140 {
                let covered = plain.contains(&start) && plain.contains(&(start + 1));
                prop_assert_eq!(ranges.covers(start, start + 2), covered);
            }
            ranges.forget_below(below);
            plain.retain(|&n| n >= below);
            prop_assert_eq!(ranges.total(), plain.len() as u64);
            ranges.forget_oldest(2);
            prop_assert!(ranges.len() <= 2);
        }
    }
}
