//! Which payloads were posted, which arrived.
//!
//! Payloads are numbered from 1 in the order in which they were posted. Their bytes stay in their
//! region until the peer has them, so they can be written again over another connection.
//!
//! Invariant: no payload is written again that the peer has told to have: its place in the region
//! may hold other bytes by then.

use std::collections::{BTreeMap, VecDeque};

use crate::message::Arrived;

/// A range of a region that the peer shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    pub number: u64,
    pub region: u32,
    pub offset: u64,
    pub bytes: u64,
}

/// Payloads of this end that the peer may not have yet.
#[derive(Debug, Default)]
pub struct Posted {
    last: u64,
    /// In order; the first `given` of them were given to the current data connection.
    unwritten: VecDeque<Payload>,
    given: usize,
}

impl Posted {
    /// How many were posted so far; the number of the newest.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Payloads that the peer may not have yet.
    pub fn waiting(&self) -> usize {
        self.unwritten.len()
    }

    pub fn post(&mut self, region: u32, offset: u64, bytes: u64) {
        self.last += 1;
        self.unwritten.push_back(Payload { number: self.last, region, offset, bytes });
    }

    /// The next payload for the connection.
    pub fn next(&self) -> Option<Payload> {
        self.unwritten.get(self.given).copied()
    }

    /// The connection took what [`Posted::next`] returned.
    pub fn took(&mut self) {
        debug_assert!(self.given < self.unwritten.len(), "there was a next one");
        self.given += 1;
    }

    /// The peer has this one. `false` when it was not given to the connection.
    pub fn written(&mut self, number: u64) -> bool {
        let position = self.unwritten.binary_search_by_key(&number, |payload| payload.number);
        match position {
            Ok(index) if index < self.given => {
                self.unwritten.remove(index);
                self.given -= 1;
                true
            }
            _ => false,
        }
    }

    /// A new connection begins, and the peer told what it has.
    pub fn start_again(&mut self, arrived: &Arrived) {
        self.unwritten.retain(|payload| !arrived.has(payload.number));
        self.given = 0;
    }
}

/// Payloads of the peer that arrived.
#[derive(Debug, Default)]
pub struct Arrivals {
    through: u64,
    /// Ranges above `through`: first to last, not adjoining.
    ranges: BTreeMap<u64, u64>,
}

impl Arrivals {
    /// All payloads up to this number arrived.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Ranges above [`Arrivals::through`].
    pub fn gaps(&self) -> usize {
        self.ranges.len()
    }

    /// Ranges (first, last) that arrived above [`Arrivals::through`].
    pub fn above(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    /// Notes an arrival; `false` when it was noted before.
    pub fn add(&mut self, number: u64) -> bool {
        if number <= self.through {
            return false;
        }
        let before = self.ranges.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= number) {
            return false;
        }
        let mut range = (number, number);
        if let Some((first, last)) = before
            && last + 1 == number
        {
            self.ranges.remove(&first);
            range.0 = first;
        }
        if let Some(next) = number.checked_add(1)
            && let Some(last) = self.ranges.remove(&next)
        {
            range.1 = last;
        }
        if range.0 == self.through + 1 {
            self.through = range.1;
        } else {
            self.ranges.insert(range.0, range.1);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn arrivals_are_a_set(numbers in proptest::collection::vec(1u64..60, 0..80)) {
            let (mut arrivals, mut set) = (Arrivals::default(), BTreeSet::new());
            for number in numbers {
                prop_assert_eq!(arrivals.add(number), set.insert(number));
                let told = Arrived::from(&arrivals);
                for asked in 1..62 {
                    prop_assert_eq!(told.has(asked), set.contains(&asked), "{}", asked);
                }
                let through = (1..).take_while(|number| set.contains(number)).count() as u64;
                prop_assert_eq!(arrivals.through(), through);
            }
        }
    }

    #[test]
    fn what_the_peer_has_is_never_written_again() {
        let mut posted = Posted::default();
        for offset in 0..5 {
            posted.post(0, offset, 1);
        }
        for _ in 0..4 {
            posted.took();
        }
        assert!(posted.written(2) && !posted.written(2), "once");
        assert!(!posted.written(5), "it was not given yet");
        posted.start_again(&Arrived { through: 1, above: vec![4, 4] });
        let left: Vec<u64> = std::iter::from_fn(|| {
            let next = posted.next()?;
            posted.took();
            Some(next.number)
        })
        .collect();
        assert_eq!(left, [3, 5]);
        assert_eq!(posted.last(), 5);
    }
}
