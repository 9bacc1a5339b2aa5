//! Frames that must arrive, once, in order: offers, withdrawals, credit, abandoned messages.

use std::collections::VecDeque;

use crate::wire::{Sequenced, Writer, encode_sequenced};

/// Frames sent and not acknowledged, so also the most a receiver keeps out of order.
pub(crate) const AHEAD_MAX: u64 = 1024;
/// Frames waiting in all.
pub(crate) const QUEUED_MAX: usize = 262_144;

/// The sending side.
#[derive(Default)]
pub(crate) struct Outbox {
    /// Frames from number `base`, and whether they are acknowledged.
    frames: VecDeque<(Sequenced, bool)>,
    base: u64,
    /// The first never sent.
    fresh: u64,
    /// To be sent again.
    again: VecDeque<u64>,
}

impl Outbox {
    pub(crate) fn push(&mut self, frame: Sequenced) {
        self.frames.push_back((frame, false));
    }

    /// Whether the queue can take no more.
    pub(crate) fn is_full(&self) -> bool {
        self.frames.len() >= QUEUED_MAX
    }

    /// Whether nothing is unacknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether something may be sent now.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.again.is_empty() || self.fresh < self.limit()
    }

    fn limit(&self) -> u64 {
        self.base + AHEAD_MAX.min(self.frames.len() as u64)
    }

    /// Writes a run of frames if there are any and room; gives its first number and length.
    pub(crate) fn write(&mut self, writer: &mut Writer) -> Option<(u64, u16)> {
        while self.again.front().is_some_and(|&number| self.is_acknowledged(number)) {
            self.again.pop_front();
        }
        let (first, until) = match self.again.front() {
            Some(&first) => {
                let run = self.again.iter().zip(first..).take_while(|&(&number, at)| number == at);
                (first, first + run.count() as u64)
            }
            None => (self.fresh, self.limit()),
        };
        if first >= until {
            return None;
        }
        let (from, to) = ((first - self.base) as usize, (until - self.base) as usize);
        let frames = self.frames.range(from..to).map(|(frame, _)| frame);
        let count = encode_sequenced(writer, first, frames);
        if count == 0 {
            return None;
        }
        if first == self.fresh {
            self.fresh += u64::from(count);
        } else {
            self.again.drain(..usize::from(count));
        }
        Some((first, count))
    }

    fn is_acknowledged(&self, number: u64) -> bool {
        number < self.base || self.frames[(number - self.base) as usize].1
    }

    pub(crate) fn acknowledged(&mut self, first: u64, count: u16) {
        for number in first.max(self.base)..first + u64::from(count) {
            self.frames[(number - self.base) as usize].1 = true;
        }
        while self.frames.front().is_some_and(|(_, acknowledged)| *acknowledged) {
            self.frames.pop_front();
            self.base += 1;
        }
    }

    pub(crate) fn lost(&mut self, first: u64, count: u16) {
        for number in first..first + u64::from(count) {
            if !self.is_acknowledged(number) && !self.again.contains(&number) {
                self.again.push_back(number);
            }
        }
    }
}

/// The receiving side.
#[derive(Default)]
pub(crate) struct Inbox {
    next: u64,
    ahead: VecDeque<Option<Sequenced>>,
}

impl Inbox {
    /// Takes frame `number`. `false`: it is further ahead than any honest peer sends.
    pub(crate) fn take(&mut self, number: u64, frame: Sequenced) -> bool {
        let Some(at) = number.checked_sub(self.next) else { return true };
        if at >= AHEAD_MAX {
            return false;
        }
        let at = at as usize;
        if at >= self.ahead.len() {
            self.ahead.resize(at + 1, None);
        }
        self.ahead[at] = Some(frame);
        true
    }

    /// The next frame in order.
    pub(crate) fn pop(&mut self) -> Option<Sequenced> {
        let frame = self.ahead.front_mut()?.take()?;
        self.ahead.pop_front();
        self.next += 1;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frame, Reader};

    /// A packet: its frames with their numbers, and what its sender notes.
    type Packet = (Vec<(u64, Sequenced)>, (u64, u16));

    fn send(outbox: &mut Outbox, room: usize) -> Packet {
        let mut buf = vec![0; room];
        let mut writer = Writer::new(&mut buf);
        let sent = outbox.write(&mut writer).expect("something to send");
        let at = writer.at();
        let mut reader = Reader::new(&buf[..at]);
        let Ok(Frame::Sequenced { first, count }) = Frame::decode(&mut reader, &mut Vec::new())
        else {
            panic!("a run of sequenced frames")
        };
        let frames = (0..u64::from(count))
            .map(|n| (first + n, Sequenced::decode(&mut reader).expect("whole")))
            .collect();
        (frames, sent)
    }

    #[test]
    fn frames_arrive_once_and_in_order_over_a_bad_link() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        let (mut told, mut pushed) = (0, 0);
        let mut flying: Vec<Packet> = Vec::new();
        while told < 3000 {
            if pushed < 3000 && random.bool() {
                outbox.push(Sequenced::Credit { messages: pushed });
                pushed += 1;
            }
            if outbox.wants_to_send() && flying.len() < 10 {
                flying.push(send(&mut outbox, 40 + random.usize(..100)));
            }
            if !flying.is_empty() && random.bool() {
                let (frames, (first, count)) = flying.swap_remove(random.usize(..flying.len()));
                if random.u8(..10) == 0 {
                    outbox.lost(first, count);
                    continue;
                }
                for (number, frame) in frames {
                    assert!(inbox.take(number, frame));
                }
                while let Some(frame) = inbox.pop() {
                    assert_eq!(frame, Sequenced::Credit { messages: told });
                    told += 1;
                }
                outbox.acknowledged(first, count);
            }
        }
        for (_, (first, count)) in flying {
            outbox.acknowledged(first, count);
        }
        assert!(outbox.is_settled() && !outbox.wants_to_send());
    }

    #[test]
    fn frames_far_ahead_are_refused() {
        assert!(!Inbox::default().take(AHEAD_MAX, Sequenced::Withdraw { serial: 0 }));
    }
}
