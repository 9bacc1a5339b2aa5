//! How much of a link one stream of messages uses, and what it leaves to a TCP flow beside it.

use std::collections::VecDeque;
use std::sync::Arc;

use genie_bulk::{Config, Connection, Event, MILLISECOND, Protection, Role, SECOND, Span, Time};

use crate::link::{Habits, Link, Load};

const GIGABIT: u64 = 125_000_000;
/// What TCP gets of a link with MTU 1500: 1448 of 1514 bytes.
const TCP_PART: f64 = 1448.0 / 1514.0;
const MESSAGE_BYTES: usize = 1 << 20;

/// One stream, and perhaps a TCP cubic flow, on one link; the first second does not count.
struct Race {
    now: Time,
    link: Link,
    ends: [Connection; 2],
    source: Vec<u8>,
    target: Vec<u8>,
    next_message: u64,
    placed_bytes: u64,
    tcp: Option<Cubic>,
}

impl Race {
    fn new(habits: Habits, flows: u16, tcp: bool) -> Self {
        let end = |role| {
            let mut config = Config::new(1, role, Protection::Trusted, [role as u8 + 1; 16]);
            config.flows = flows;
            Connection::new(config, 0).expect("a configuration that works")
        };
        let back =
            Habits { loss: habits.loss, rate: habits.rate, queue_bytes: 1 << 20, ..habits.clone() };
        let mut race = Self {
            now: 0,
            link: Link::new([back, habits], 5),
            ends: [end(Role::Client), end(Role::Server)],
            source: vec![1; MESSAGE_BYTES],
            target: vec![0; MESSAGE_BYTES],
            next_message: 0,
            placed_bytes: 0,
            tcp: tcp.then(Cubic::default),
        };
        // SAFETY: the vector lives as long as the race and is not looked at.
        let span = unsafe { Span::new(race.target.as_mut_ptr(), MESSAGE_BYTES) };
        race.ends[1].offer(0, Arc::new(span)).expect("offered");
        race
    }

    fn run_until(&mut self, until: Time) {
        let mut buf = vec![0; 64 * 1472];
        while self.now < until {
            // SAFETY: as above.
            let span = unsafe { Span::new(self.source.as_mut_ptr(), MESSAGE_BYTES) };
            while self.ends[0].statistics().messages_written + 4 > self.next_message {
                self.ends[0].write(self.next_message, vec![span], 0, 0).expect("room");
                self.next_message += 1;
            }
            for at in 0..2 {
                while let Some(event) = self.ends[at].poll_event() {
                    assert!(!matches!(event, Event::Closed(_)), "{event:?}");
                }
                while let Some(sent) = self.ends[at].poll_transmit(self.now, &mut buf, 16) {
                    for datagram in buf[..sent.bytes].chunks(sent.segment_bytes) {
                        self.link.send(self.now, 1 - at, sent.flow, datagram);
                    }
                }
            }
            let now = self.now;
            if let Some(tcp) = &mut self.tcp {
                while let Some(number) = tcp.send(now) {
                    self.link.send_tcp(now, 1, number, 1514);
                }
            }
            let timeouts = self.ends.iter().filter_map(Connection::poll_timeout);
            let tcp_at = self.tcp.as_ref().map(|tcp| tcp.timeout_at());
            let next = timeouts.chain(self.link.next_at()).chain(tcp_at).min().expect("a timer");
            self.now = next.max(self.now + 1);
            while let Some((to, load)) = self.link.pop(self.now) {
                match load {
                    Load::Datagram { flow, mut bytes } => {
                        self.ends[to].handle(self.now, flow, &mut bytes);
                    }
                    Load::Tcp { number, .. } if to == 1 => {
                        self.link.send_tcp(self.now, 0, number, 66);
                    }
                    Load::Tcp { number, .. } => {
                        self.tcp.as_mut().expect("it sent").acknowledged(self.now, number);
                    }
                }
            }
            for end in &mut self.ends {
                if end.poll_timeout().is_some_and(|at| at <= self.now) {
                    end.handle_timeout(self.now);
                }
            }
        }
        self.placed_bytes = self.ends[1].statistics().payload_placed;
    }

    /// Payload as a part of the link's rate, between two times.
    fn part(&mut self, from: Time, until: Time) -> f64 {
        self.run_until(from);
        let before = self.placed_bytes;
        self.run_until(until);
        let seconds = (until - from) as f64 / SECOND as f64;
        (self.placed_bytes - before) as f64 / seconds / self.link.habits[1].rate as f64
    }
}

/// TCP cubic (RFC 9438), so far as it shapes a queue: slow start, cubic growth, 0.7 on loss.
struct Cubic {
    window: f64,
    threshold: f64,
    largest: f64,
    epoch: Time,
    next: u64,
    outstanding: VecDeque<(u64, Time)>,
    recover: u64,
    srtt: Time,
    pub delivered: u64,
    heard_at: Time,
}

impl Default for Cubic {
    fn default() -> Self {
        Self {
            window: 10.0,
            threshold: f64::MAX,
            largest: 0.0,
            epoch: 0,
            next: 0,
            outstanding: VecDeque::new(),
            recover: 0,
            srtt: 10 * MILLISECOND,
            delivered: 0,
            heard_at: 0,
        }
    }
}

impl Cubic {
    fn send(&mut self, now: Time) -> Option<u64> {
        if now >= self.timeout_at() {
            self.heard_at = now;
            self.outstanding.clear();
            self.shrink(now);
            self.window = 10.0;
        }
        if self.outstanding.len() as f64 >= self.window {
            return None;
        }
        self.next += 1;
        self.outstanding.push_back((self.next, now));
        Some(self.next)
    }

    fn timeout_at(&self) -> Time {
        self.heard_at + 200 * MILLISECOND + 2 * self.srtt
    }

    fn acknowledged(&mut self, now: Time, number: u64) {
        self.heard_at = now;
        self.delivered += 1448;
        if let Ok(at) = self.outstanding.binary_search_by_key(&number, |&(number, _)| number) {
            let (_, sent_at) = self.outstanding.remove(at).expect("found");
            self.srtt = (7 * self.srtt + (now - sent_at)) / 8;
        }
        let mut lost = false;
        while self.outstanding.front().is_some_and(|&(first, _)| first + 3 <= number) {
            let (first, _) = self.outstanding.pop_front().expect("it is some");
            lost |= first >= self.recover;
        }
        if lost {
            self.shrink(now);
        } else if self.window < self.threshold {
            self.window += 1.0;
        } else {
            let rtt = self.srtt as f64 / 1e9;
            let passed = (now - self.epoch) as f64 / 1e9;
            let k = (self.largest * 0.3 / 0.4).cbrt();
            let target = 0.4 * (passed + rtt - k).powi(3) + self.largest;
            let reno = self.largest * 0.7 + 0.53 * passed / rtt;
            let target = target.max(reno).min(1.5 * self.window);
            self.window += (target - self.window).max(0.01) / self.window;
        }
    }

    fn shrink(&mut self, now: Time) {
        self.largest = self.window;
        self.window = (self.window * 0.7).max(2.0);
        self.threshold = self.window;
        self.epoch = now;
        self.recover = self.next + 1;
    }
}

fn link(loss: f64, queue: Time) -> Habits {
    let queue_bytes = GIGABIT * queue / SECOND;
    Habits { rate: GIGABIT, delay: MILLISECOND, queue_bytes, loss, ..Habits::default() }
}

#[test]
fn a_gigabit_with_2_ms_is_used_whatever_is_lost() {
    for (loss, least) in [(0.0, 0.95), (0.001, 0.95), (0.01, 0.9), (0.03, 0.8)] {
        for queue in [MILLISECOND, 5 * MILLISECOND, 50 * MILLISECOND] {
            let mut race = Race::new(link(loss, queue), 1, false);
            let part = race.part(SECOND / 2, 3 * SECOND) / TCP_PART;
            let end = race.ends[0].statistics();
            println!(
                "loss {loss}, queue {} ms: {:.1} % of what TCP gets without loss, srtt {} us, overflows {}, resent {}, spurious {}",
                queue / MILLISECOND,
                part * 100.0,
                end.srtt / 1000,
                race.link.overflows,
                end.payload_resent,
                end.losses_spurious,
            );
            assert!(part >= least, "loss {loss}, queue {queue}: {part}");
        }
    }
}

#[test]
fn paths_of_other_lengths_are_used_too() {
    for (rate, delay, flows, flow_delay) in [
        (GIGABIT, MILLISECOND / 20, 1, 0),
        (GIGABIT, MILLISECOND, 4, MILLISECOND / 5),
        (GIGABIT / 10, 20 * MILLISECOND, 1, 0),
        (5 * GIGABIT, MILLISECOND, 2, 0),
    ] {
        let queue_bytes = (rate * 4 * delay / SECOND).max(200_000);
        let habits = Habits { rate, delay, queue_bytes, flow_delay, ..Habits::default() };
        let mut race = Race::new(habits, flows, false);
        let part = race.part(SECOND, 3 * SECOND) / TCP_PART;
        println!(
            "{rate} B/s, {} us, {flows} flows: {:.1} %, {:?}",
            delay / 1000,
            part * 100.0,
            race.ends[0].statistics()
        );
        assert!(part >= 0.9, "{rate} {delay} {flows}: {part}");
    }
}

#[test]
fn a_tcp_flow_beside_gets_its_part() {
    let mut shares = Vec::new();
    for queue in [1, 2, 4, 10, 50].map(|ms| ms * MILLISECOND) {
        let mut race = Race::new(link(0.0, queue), 1, true);
        race.run_until(2 * SECOND);
        let tcp_before = race.tcp.as_ref().expect("it runs").delivered;
        let ours = race.part(2 * SECOND, 12 * SECOND);
        let tcp = (race.tcp.as_ref().expect("it runs").delivered - tcp_before) as f64
            / 10.0
            / GIGABIT as f64;
        let share = ours / (ours + tcp);
        println!(
            "queue {} ms: we {:.1} %, TCP {:.1} %, share {share:.2}",
            queue / MILLISECOND,
            ours * 100.0,
            tcp * 100.0
        );
        shares.push((queue, share));
    }
    // A queue below the product of rate and delay is too short for cubic to keep its part.
    for (queue, share) in shares {
        assert!(
            (0.25..=0.65).contains(&share) || queue == MILLISECOND && share < 0.75,
            "queue {queue}: {share}"
        );
    }
}

#[test]
fn after_a_cut_of_5_s_the_stream_goes_on_at_once() {
    let mut habits = link(0.0, 5 * MILLISECOND);
    habits.cut = Some(SECOND..6 * SECOND);
    let mut race = Race::new(habits, 1, false);
    race.link.habits[0].cut = race.link.habits[1].cut.clone();
    assert!(race.part(SECOND + 10 * MILLISECOND, 6 * SECOND) < 0.001, "nothing passes the cut");
    let part = race.part(6 * SECOND + 300 * MILLISECOND, 7 * SECOND) / TCP_PART;
    assert!(part > 0.9, "{part}");
}
