//! One direction: packets from a TUN device, held, spoiled, written back to it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::fault::{Aim, Deed, Fault};
use crate::packet::Shape;
use crate::tun::Tun;

/// Packets that a lane holds at most; more are dropped and counted.
pub const HELD_MAX: usize = 200_000;
/// Packets that a lane remembers for a replay at most.
pub const REMEMBERED_MAX: usize = 4096;
/// Packets read in one go, so that those due are not kept waiting.
const READ_MAX: usize = 256;
const PACKET_BYTES_MAX: usize = 1 << 16;

/// A held packet, ordered by when it is due and then by its coming.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Instant,
    number: u64,
    bytes: Box<[u8]>,
}

/// What a lane has done so far.
#[derive(Default)]
pub struct Counts {
    pub read: u64,
    pub written: u64,
    pub refused: u64,
    pub overflowed: u64,
    pub dropped: u64,
    pub duplicated: u64,
    pub held_longer: u64,
    pub flipped: u64,
    pub replayed: u64,
    /// Sum and maximum of how late packets were written after they were due.
    pub late: Duration,
    pub late_max: Duration,
}

/// One direction of the link.
pub struct Lane {
    pub name: String,
    pub delay: Duration,
    pub faults: Vec<Fault>,
    pub counts: Counts,
    device: Tun,
    held: BinaryHeap<Reverse<Held>>,
    numbered: u64,
    remembered: VecDeque<Box<[u8]>>,
    remember_max: usize,
    buffer: Vec<u8>,
}

impl Lane {
    pub fn new(name: &str, device: Tun) -> Self {
        Self {
            name: name.to_owned(),
            delay: Duration::ZERO,
            faults: Vec::new(),
            counts: Counts::default(),
            device,
            held: BinaryHeap::new(),
            numbered: 0,
            remembered: VecDeque::new(),
            remember_max: 0,
            buffer: vec![0; PACKET_BYTES_MAX],
        }
    }

    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// When the first held packet is to be written.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    /// Packets in hand.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Reads what has come, at most `READ_MAX` packets; returns how many.
    pub fn take_in(&mut self, now: Instant) -> Result<usize> {
        for read in 0..READ_MAX {
            let Some(length) = self.device.read(&mut self.buffer)? else {
                return Ok(read);
            };
            self.counts.read += 1;
            let bytes = Box::from(&self.buffer[..length]);
            self.treat(bytes, now);
        }
        Ok(READ_MAX)
    }

    /// Writes what is due.
    pub fn release(&mut self, now: Instant) {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(held) = self.held.pop().expect("peeked");
            let late = now - held.due;
            self.counts.late += late;
            self.counts.late_max = self.counts.late_max.max(late);
            match self.device.write(&held.bytes) {
                true => self.counts.written += 1,
                false => self.counts.refused += 1,
            }
        }
    }

    /// Keeps copies of the last `count` packets that carry something, for `replay`.
    pub fn remember(&mut self, count: usize) {
        self.remember_max = count.min(REMEMBERED_MAX);
        self.remembered.clear();
    }

    /// Writes the remembered packets that `aim` takes once more, the last `count` of them, oldest first.
    pub fn replay(&mut self, aim: &Aim, count: usize, now: Instant) -> usize {
        let meant = |bytes: &[u8]| Shape::of(bytes).is_some_and(|shape| aim.takes(&shape));
        let latest = self.remembered.iter().rev().filter(|bytes| meant(bytes));
        let mut again: Vec<_> = latest.take(count).cloned().collect();
        again.reverse();
        let sent = again.len();
        for bytes in again {
            self.counts.replayed += 1;
            self.hold(bytes, now);
        }
        sent
    }

    fn treat(&mut self, mut bytes: Box<[u8]>, now: Instant) {
        let mut due = now + self.delay;
        let mut copies = 1;
        if self.remember_max > 0 || !self.faults.is_empty() {
            let Some(shape) = Shape::of(&bytes) else {
                return self.hold(bytes, due);
            };
            if self.remember_max > 0 && shape.payload_bytes() > 0 {
                if self.remembered.len() == self.remember_max {
                    self.remembered.pop_front();
                }
                self.remembered.push_back(bytes.clone());
            }
            for fault in &mut self.faults {
                if !fault.strikes(&shape) {
                    continue;
                }
                match fault.deed {
                    Deed::Drop => {
                        self.counts.dropped += 1;
                        copies = 0;
                    }
                    Deed::Duplicate => {
                        self.counts.duplicated += 1;
                        copies *= 2;
                    }
                    Deed::Hold(longer) => {
                        self.counts.held_longer += 1;
                        due += longer;
                    }
                    Deed::Flip { offset, bit } => {
                        self.counts.flipped += u64::from(shape.flip(&mut bytes, offset, bit));
                    }
                }
            }
            self.faults.retain(|fault| fault.left > 0);
        }
        for _ in 1..copies {
            self.hold(bytes.clone(), due);
        }
        if copies > 0 {
            self.hold(bytes, due);
        }
    }

    fn hold(&mut self, bytes: Box<[u8]>, due: Instant) {
        if self.held.len() >= HELD_MAX {
            self.counts.overflowed += 1;
            return;
        }
        self.numbered += 1;
        self.held.push(Reverse(Held { due, number: self.numbered, bytes }));
    }
}
