//! The receiving side of packet numbers: what was received (so that a replay is ignored) and what to acknowledge when.

use crate::config::{MICROSECOND, MILLISECOND, Time};
use crate::ranges::RangeSet;
use crate::wire::{Writer, encode_ack};

/// Packet numbers remembered one by one; older ones count as replays.
pub(crate) const REPLAY_WINDOW: u64 = 65_536;
/// Ranges remembered for acknowledging.
const RANGES_MAX: usize = 256;
/// Acknowledge at the latest after this many packets, or fewer large ones of so many bytes,
const EVERY: u32 = 32;
const EVERY_BYTES: usize = 128 * 1024;
const EVERY_MIN: u32 = 2;
/// or this many when one is missing before them.
const EVERY_WITH_GAPS: u32 = 4;
/// The longest an acknowledgement is put off, and the shortest time worth a timer.
pub(crate) const DELAY_MAX: Time = 5 * MILLISECOND;
const DELAY_MIN: Time = 25 * MICROSECOND;
/// With this many ranges, ask the peer which of our acknowledgements it has.
const RANGES_MANY: usize = 8;

/// Received packet numbers.
pub(crate) struct Acks {
    seen: Box<[u64]>,
    /// One past the highest number received.
    next: u64,
    ranges: RangeSet,
    highest_at: Time,
    /// Packets since the last acknowledgement that want one.
    unacknowledged: u32,
    every: u32,
    every_usual: u32,
    due_at: Option<Time>,
}

impl Acks {
    pub(crate) fn new(datagram_bytes: usize) -> Self {
        let every = ((EVERY_BYTES / datagram_bytes) as u32).clamp(EVERY_MIN, EVERY);
        Self {
            seen: vec![0; (REPLAY_WINDOW / 64) as usize].into(),
            next: 0,
            ranges: RangeSet::default(),
            highest_at: 0,
            unacknowledged: 0,
            every,
            every_usual: every,
            due_at: None,
        }
    }

    /// Whether this number was received before, or is too old to tell.
    pub(crate) fn is_replay(&self, number: u64) -> bool {
        if number >= self.next {
            return false;
        }
        number + REPLAY_WINDOW < self.next || self.seen[word(number)] & bit(number) != 0
    }

    /// Notes a packet that was authenticated and taken.
    pub(crate) fn received(&mut self, now: Time, number: u64, wants_ack: bool, rtt: Time) {
        let gap = number != self.next;
        if number >= self.next {
            // Numbers skipped were not seen; the ring forgets those one turn older.
            if number - self.next >= REPLAY_WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in self.next..=number {
                    self.seen[word(skipped)] &= !bit(skipped);
                }
            }
            self.next = number + 1;
            self.highest_at = now;
        }
        self.seen[word(number)] |= bit(number);
        self.ranges.insert(number, number + 1);
        self.ranges.forget_oldest(RANGES_MAX);
        if wants_ack {
            self.unacknowledged += 1;
            if gap {
                self.every = self.every.min(EVERY_WITH_GAPS);
            }
            let delay = (rtt / 4).clamp(DELAY_MIN, DELAY_MAX);
            self.due_at = Some(self.due_at.map_or(now + delay, |due| due.min(now + delay)));
        }
    }

    /// The peer asks: the acknowledgement goes now. (Put off, it might arrive after the next probe,
    /// whose acknowledgement is put off again.)
    pub(crate) fn asked(&mut self, now: Time) {
        self.due_at = Some(now);
    }

    /// Whether an acknowledgement should go now.
    pub(crate) fn is_due(&self, now: Time) -> bool {
        self.unacknowledged >= self.every || self.due_at.is_some_and(|due| due <= now)
    }

    /// Whether some packet waits for an acknowledgement.
    pub(crate) fn is_pending(&self) -> bool {
        self.unacknowledged > 0
    }

    /// When an acknowledgement falls due.
    pub(crate) fn due_at(&self) -> Option<Time> {
        self.due_at
    }

    /// So many separate ranges that the peer should confirm an acknowledgement of ours.
    pub(crate) fn wants_confirmation(&self) -> bool {
        self.ranges.len() > RANGES_MANY
    }

    /// The highest number received, which the next acknowledgement reports.
    pub(crate) fn highest(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Writes an acknowledgement if there is anything to acknowledge and room.
    pub(crate) fn write(&mut self, now: Time, writer: &mut Writer) -> bool {
        let delay = now.saturating_sub(self.highest_at) / MICROSECOND;
        let delay = u32::try_from(delay).unwrap_or(u32::MAX);
        let written = encode_ack(writer, delay, self.ranges.newest_first());
        if written {
            self.unacknowledged = 0;
            self.every = self.every_usual;
            self.due_at = None;
        }
        written
    }

    /// The peer confirmed an acknowledgement that reported up to `highest`: what lies one replay
    /// window's worth of reordering below need not be told again.
    pub(crate) fn confirmed(&mut self, highest: u64) {
        self.ranges.forget_below(highest);
    }
}

fn word(number: u64) -> usize {
    (number % REPLAY_WINDOW / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_new_once(jumps in prop::collection::vec((0u64..4, 0u64..70_000), 1..60)) {
            let (mut acks, mut plain) = (Acks::new(1472), std::collections::BTreeSet::new());
            let mut highest = 0;
            for (kind, jump) in jumps {
                let number = if kind == 0 { highest + jump } else { (highest + kind).saturating_sub(jump % 100) };
                if !acks.is_replay(number) {
                    prop_assert!(plain.insert(number), "{number} was new twice");
                    acks.received(0, number, true, 0);
                } else {
                    prop_assert!(plain.contains(&number) || number + REPLAY_WINDOW < acks.next);
                }
                highest = highest.max(number);
            }
            for number in plain {
                prop_assert!(acks.is_replay(number));
            }
        }
    }

    #[test]
    fn acknowledgements_come_every_32_packets_sooner_with_gaps_and_in_time() {
        let mut acks = Acks::new(1472);
        for number in 0..31 {
            acks.received(0, number, true, 2 * MILLISECOND);
            assert!(!acks.is_due(0));
        }
        assert!(acks.is_due(MILLISECOND / 2), "a quarter of the round trip has passed");
        acks.received(0, 31, true, 2 * MILLISECOND);
        assert!(acks.is_due(0));
        let mut buf = [0; 100];
        assert!(acks.write(0, &mut Writer::new(&mut buf)));
        assert!(!acks.is_pending() && acks.due_at().is_none());
        for number in [33, 34, 35] {
            acks.received(0, number, true, 2 * MILLISECOND);
            assert!(!acks.is_due(0));
        }
        acks.received(0, 36, true, 2 * MILLISECOND);
        assert!(acks.is_due(0), "one is missing");
    }
}
