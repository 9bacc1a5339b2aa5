//! A link in virtual time: rate, delay, a queue that overflows, and everything that goes wrong.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use genie_bulk::Time;

/// Bytes on the wire beside the datagram: Ethernet, IPv4 and UDP headers.
pub const FRAME_BYTES: u64 = 42;
const HISTORY: usize = 200;

/// One direction's habits; chances are of one datagram.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Bytes a second; 0: no limit.
    pub rate: u64,
    pub delay: Time,
    pub queue_bytes: u64,
    pub loss: f64,
    pub reorder: f64,
    pub reorder_by: Time,
    pub duplicate: f64,
    pub corrupt: f64,
    pub truncate: f64,
    pub replay: f64,
    /// How much longer each flow's path is than the one before.
    pub flow_delay: Time,
    pub cut: Option<Range<Time>>,
}

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    Datagram {
        flow: u16,
        bytes: Vec<u8>,
    },
    /// A numbered packet of the TCP model, or its acknowledgement.
    Tcp {
        number: u64,
        bytes: u64,
    },
}

pub struct Link {
    pub habits: [Habits; 2],
    busy_until: [Time; 2],
    history: [VecDeque<(u16, Vec<u8>)>; 2],
    arrivals: BinaryHeap<Reverse<(Time, u64, usize, Load)>>,
    count: u64,
    random: fastrand::Rng,
    pub overflows: u64,
}

impl Link {
    pub fn new(habits: [Habits; 2], seed: u64) -> Self {
        Self {
            habits,
            busy_until: [0; 2],
            history: Default::default(),
            arrivals: BinaryHeap::new(),
            count: 0,
            random: fastrand::Rng::with_seed(seed),
            overflows: 0,
        }
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.f64() < chance
    }

    fn arrive(&mut self, at: Time, to: usize, load: Load) {
        self.count += 1;
        self.arrivals.push(Reverse((at, self.count, to, load)));
    }

    /// A datagram leaves for end `to`.
    pub fn send(&mut self, now: Time, to: usize, flow: u16, bytes: &[u8]) {
        let habits = self.habits[to].clone();
        let Some(sent_at) = self.queue(now, to, bytes.len() as u64 + FRAME_BYTES) else { return };
        if self.history[to].len() == HISTORY {
            self.history[to].pop_front();
        }
        if habits.replay > 0.0 {
            self.history[to].push_back((flow, bytes.to_vec()));
        }
        if self.chance(habits.replay) {
            let at = self.random.usize(..self.history[to].len());
            let (flow, bytes) = self.history[to][at].clone();
            let later = sent_at + habits.delay + self.random.u64(..50_000_000);
            self.arrive(later, to, Load::Datagram { flow, bytes });
        }
        let copies = 1 + usize::from(self.chance(habits.duplicate));
        for _ in 0..copies {
            if self.chance(habits.loss) {
                continue;
            }
            let mut bytes = bytes.to_vec();
            if self.chance(habits.corrupt) {
                for _ in 0..self.random.usize(1..4) {
                    let bit = self.random.usize(..bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
            if self.chance(habits.truncate) {
                bytes.truncate(self.random.usize(..bytes.len()));
            }
            let mut at = sent_at + habits.delay + habits.flow_delay * Time::from(flow);
            if self.chance(habits.reorder) {
                at += self.random.u64(..=habits.reorder_by);
            }
            self.arrive(at, to, Load::Datagram { flow, bytes });
        }
    }

    /// A packet of the TCP model leaves for end `to`: it shares the queue and suffers loss, no more.
    pub fn send_tcp(&mut self, now: Time, to: usize, number: u64, bytes: u64) {
        let (loss, delay) = (self.habits[to].loss, self.habits[to].delay);
        if let Some(sent_at) = self.queue(now, to, bytes)
            && !self.chance(loss)
        {
            self.arrive(sent_at + delay, to, Load::Tcp { number, bytes });
        }
    }

    /// When the last bit is on the wire; `None`: the queue overflowed or the link is cut.
    fn queue(&mut self, now: Time, to: usize, bytes: u64) -> Option<Time> {
        let habits = &self.habits[to];
        if habits.cut.as_ref().is_some_and(|cut| cut.contains(&now)) {
            return None;
        }
        if habits.rate == 0 {
            return Some(now);
        }
        let busy_until = self.busy_until[to].max(now);
        let backlog = u128::from(busy_until - now) * u128::from(habits.rate) / 1_000_000_000;
        if backlog as u64 + bytes > habits.queue_bytes {
            self.overflows += 1;
            return None;
        }
        self.busy_until[to] = busy_until + bytes * 1_000_000_000 / habits.rate;
        Some(self.busy_until[to])
    }

    pub fn next_at(&self) -> Option<Time> {
        self.arrivals.peek().map(|Reverse((at, ..))| *at)
    }

    pub fn pop(&mut self, now: Time) -> Option<(usize, Load)> {
        if self.next_at()? > now {
            return None;
        }
        self.arrivals.pop().map(|Reverse((_, _, to, load))| (to, load))
    }
}
