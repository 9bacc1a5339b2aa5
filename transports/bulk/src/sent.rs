//! The sending side of packet numbers: what is in flight, what an acknowledgement settles, what is lost.
//!
//! Loss is told by transmit order within a flow (a later packet of the flow arrived, and
//! `reorder_packets` others lie between), and by time (a later packet of any flow arrived, and more
//! than a reordering allowance over one round trip has passed), as in RFC 8985 (RACK) and RFC 9002. Both allowances
//! grow when a loss proves spurious. The probe timer serves tails only.

use std::collections::VecDeque;

use crate::acks::DELAY_MAX;
use crate::config::{MILLISECOND, SECOND, Time, mul_div};

/// Packets tracked at most, lost and acknowledged ones among them: half the receiver's replay window.
pub(crate) const TRACKED_MAX: usize = 32_768;
/// The first reordering allowance in packets (RFC 9002 section 6.1.1), and the largest.
const REORDER_PACKETS: u64 = 3;
const REORDER_PACKETS_MAX: u64 = 256;
/// The time allowance is this many eighths of a round trip, and at most that many.
const REORDER_EIGHTHS: u64 = 2;
const REORDER_EIGHTHS_MAX: u64 = 8;
/// The smallest time allowance: what timers and batching blur.
const REORDER_TIME_MIN: Time = MILLISECOND / 4;
/// The round trip assumed before the first measurement.
const RTT_INITIAL: Time = 50 * MILLISECOND;
/// The probe timer never waits longer, so that a link that comes back is used at once.
pub(crate) const PROBE_AFTER_MAX: Time = 250 * MILLISECOND;
/// The least the probe timer allows for delays beyond the measured.
const PROBE_SLACK_MIN: Time = MILLISECOND;

/// What a packet carried that must be sent again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cargo {
    /// A message's bytes.
    Fragment { sequence: u64, at: u64, bytes: u32 },
    /// A run of sequenced frames.
    Sequenced { first: u64, count: u16 },
    /// A ping; `reported`: the highest number in the acknowledgement that went with it.
    Ping { reported: Option<u64> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    Lost,
    Settled,
}

struct Packet {
    cargo: Cargo,
    sent_at: Time,
    /// For the delivery rate: what was delivered, by when, and when the packets of that flight began to go.
    delivered: u64,
    delivered_at: Time,
    flight_from: Time,
    /// Its place among the packets of its flow.
    order: u64,
    bytes: u32,
    flow: u16,
    state: State,
    /// Sent while the application had nothing more to send.
    starved: bool,
}

#[derive(Clone, Copy, Default)]
struct Flow {
    sent: u64,
    /// One past the highest order acknowledged.
    arrived: u64,
}

/// A measurement of the path's delivery rate (draft-cheng-iccrg-delivery-rate-estimation).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateSample {
    pub(crate) bytes_per_s: u64,
    pub(crate) starved: bool,
}

/// What an acknowledgement brought.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) acknowledged: u64,
    pub(crate) rtt: Option<Time>,
    pub(crate) rate: Option<RateSample>,
    /// `delivered` when the newest packet acknowledged was sent: marks rounds.
    pub(crate) delivered_before: u64,
}

/// The packets sent.
pub(crate) struct Sent {
    packets: VecDeque<Packet>,
    /// Number of the packet at the front.
    base: u64,
    /// No packet below is in flight.
    lowest: u64,
    /// One past the highest number acknowledged.
    arrived: u64,
    lost: VecDeque<u64>,
    flows: Vec<Flow>,
    in_flight: u64,
    in_flight_count: usize,
    delivered: u64,
    delivered_at: Time,
    flight_from: Time,
    last_sent_at: Time,
    reorder_packets: u64,
    reorder_eighths: u64,
    loss_at: Option<Time>,
    probe_count: u32,
    /// How long the peer puts acknowledgements off, at most of late.
    peer_delay: Time,
    pub(crate) rtt: Rtt,
    pub(crate) lost_total: u64,
    pub(crate) spurious_total: u64,
}

/// Round-trip estimates (RFC 9002 section 5).
pub(crate) struct Rtt {
    smoothed: Option<Time>,
    variation: Time,
    latest: Time,
}

impl Rtt {
    pub(crate) fn smoothed(&self) -> Time {
        self.smoothed.unwrap_or(RTT_INITIAL)
    }

    pub(crate) fn sample(&mut self, rtt: Time) {
        let rtt = rtt.max(1);
        self.latest = rtt;
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (3 * self.variation + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((7 * smoothed + rtt) / 8);
            }
        }
    }
}

impl Sent {
    pub(crate) fn new(flows: u16) -> Self {
        Self {
            packets: VecDeque::new(),
            base: 0,
            lowest: 0,
            arrived: 0,
            lost: VecDeque::new(),
            flows: vec![Flow::default(); flows.into()],
            in_flight: 0,
            in_flight_count: 0,
            delivered: 0,
            delivered_at: 0,
            flight_from: 0,
            last_sent_at: 0,
            reorder_packets: REORDER_PACKETS,
            reorder_eighths: REORDER_EIGHTHS,
            loss_at: None,
            probe_count: 0,
            peer_delay: 0,
            rtt: Rtt { smoothed: None, variation: 0, latest: 0 },
            lost_total: 0,
            spurious_total: 0,
        }
    }

    /// The next packet number.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.packets.len() as u64
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Whether as many packets are tracked as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.packets.len() >= TRACKED_MAX
    }

    /// Notes the packet with the number [`Sent::next`]. `cargo` `None`: it wants no acknowledgement.
    pub(crate) fn sent(
        &mut self,
        now: Time,
        flow: u16,
        bytes: usize,
        cargo: Option<Cargo>,
        starved: bool,
    ) {
        if self.in_flight == 0 {
            self.flight_from = now;
            self.delivered_at = now;
        }
        let order = self.flows[usize::from(flow)].sent;
        self.flows[usize::from(flow)].sent += 1;
        let state = if cargo.is_some() { State::InFlight } else { State::Settled };
        if cargo.is_some() {
            self.in_flight += bytes as u64;
            self.in_flight_count += 1;
            self.last_sent_at = now;
        }
        self.packets.push_back(Packet {
            cargo: cargo.unwrap_or(Cargo::Ping { reported: None }),
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            flight_from: self.flight_from,
            order,
            bytes: bytes as u32,
            flow,
            state,
            starved,
        });
        self.forget_front(now);
    }

    /// Takes an acknowledgement of `ranges` (first, last; falling), sent `delay` after the highest arrived, and
    /// appends what they carried to `acknowledged`. `None`: it acknowledges what was never sent.
    pub(crate) fn acknowledge(
        &mut self,
        now: Time,
        ranges: &[(u64, u64)],
        delay: Time,
        acknowledged: &mut Vec<Cargo>,
    ) -> Option<Outcome> {
        let largest = ranges.first()?.1;
        if largest >= self.next() {
            return None;
        }
        self.peer_delay = (self.peer_delay - self.peer_delay / 8).max(delay.min(DELAY_MAX));
        let mut outcome = Outcome::default();
        let mut newest: Option<u64> = None;
        for &(first, last) in ranges {
            if last < self.lowest {
                break;
            }
            for number in (first.max(self.lowest)..=last).rev() {
                let packet = &mut self.packets[(number - self.base) as usize];
                if packet.state == State::InFlight {
                    packet.state = State::Settled;
                    self.in_flight -= u64::from(packet.bytes);
                    self.in_flight_count -= 1;
                    let flow = &mut self.flows[usize::from(packet.flow)];
                    flow.arrived = flow.arrived.max(packet.order + 1);
                    outcome.acknowledged += u64::from(packet.bytes);
                    acknowledged.push(packet.cargo);
                    newest = newest.max(Some(number));
                }
            }
        }
        self.acknowledge_lost(now, ranges, &mut outcome, acknowledged);
        self.arrived = self.arrived.max(largest + 1);
        self.delivered += outcome.acknowledged;
        if outcome.acknowledged > 0 {
            self.delivered_at = now;
            self.probe_count = 0;
        }
        if let Some(newest) = newest {
            let packet = &self.packets[(newest - self.base) as usize];
            if newest == largest {
                let rtt = now.saturating_sub(packet.sent_at);
                // The delay is the peer's word: never below what is plausible.
                outcome.rtt = Some(rtt.saturating_sub(delay.min(rtt / 2)).max(1));
            }
            outcome.delivered_before = packet.delivered;
            let sending = packet.sent_at.saturating_sub(packet.flight_from);
            let arriving = now.saturating_sub(packet.delivered_at);
            let interval = sending.max(arriving);
            self.flight_from = packet.sent_at;
            if interval > 0 {
                let bytes_per_s = mul_div(self.delivered - packet.delivered, SECOND, interval);
                outcome.rate = Some(RateSample { bytes_per_s, starved: packet.starved });
            }
        }
        if let Some(rtt) = outcome.rtt {
            self.rtt.sample(rtt);
        }
        self.advance_lowest();
        self.forget_front(now);
        Some(outcome)
    }

    /// Packets declared lost that arrived after all: their cargo counts, and reordering is larger than believed.
    fn acknowledge_lost(
        &mut self,
        now: Time,
        ranges: &[(u64, u64)],
        outcome: &mut Outcome,
        acknowledged: &mut Vec<Cargo>,
    ) {
        let (packets, base) = (&mut self.packets, self.base);
        let (flows, spurious) = (&self.flows, &mut self.spurious_total);
        let (reorder_packets, reorder_eighths) =
            (&mut self.reorder_packets, &mut self.reorder_eighths);
        let rtt = self.rtt.smoothed.unwrap_or(RTT_INITIAL);
        self.lost.retain(|&number| {
            let at = ranges.partition_point(|&(first, _)| first > number);
            if ranges.get(at).is_none_or(|&(_, last)| number > last) {
                return true;
            }
            let packet = &mut packets[(number - base) as usize];
            packet.state = State::Settled;
            outcome.acknowledged += u64::from(packet.bytes);
            acknowledged.push(packet.cargo);
            *spurious += 1;
            let passed = flows[usize::from(packet.flow)].arrived.saturating_sub(packet.order);
            // A cut that lasted many round trips says nothing about reordering.
            if now.saturating_sub(packet.sent_at) < 4 * rtt {
                *reorder_packets = (*reorder_packets).max(passed + 1).min(REORDER_PACKETS_MAX);
                *reorder_eighths = (*reorder_eighths + 1).min(REORDER_EIGHTHS_MAX);
            }
            false
        });
    }

    /// Declares losses and appends what must be sent again to `lost`. Gives the bytes lost.
    pub(crate) fn detect_losses(&mut self, now: Time, lost: &mut Vec<Cargo>) -> u64 {
        let rtt = self.rtt.smoothed().max(self.rtt.latest);
        let allowed = rtt + (rtt * self.reorder_eighths / 8).max(REORDER_TIME_MIN);
        self.loss_at = None;
        let mut bytes = 0;
        for number in self.lowest..self.arrived {
            let packet = &mut self.packets[(number - self.base) as usize];
            if packet.state != State::InFlight {
                continue;
            }
            let arrived = self.flows[usize::from(packet.flow)].arrived;
            let late_at = packet.sent_at + allowed;
            if packet.order + self.reorder_packets < arrived || late_at <= now {
                packet.state = State::Lost;
                self.in_flight -= u64::from(packet.bytes);
                self.in_flight_count -= 1;
                bytes += u64::from(packet.bytes);
                lost.push(packet.cargo);
                self.lost.push_back(number);
                self.lost_total += 1;
            } else {
                self.loss_at = Some(self.loss_at.map_or(late_at, |at| at.min(late_at)));
            }
        }
        self.advance_lowest();
        bytes
    }

    /// When a packet becomes lost by time.
    pub(crate) fn loss_at(&self) -> Option<Time> {
        self.loss_at
    }

    /// When the probe timer fires: the tail in flight may be lost with nothing behind it to tell.
    pub(crate) fn probe_at(&self) -> Option<Time> {
        if self.in_flight_count == 0 {
            return None;
        }
        let slack = (4 * self.rtt.variation).max(PROBE_SLACK_MIN);
        let after = self.rtt.smoothed() + self.rtt.smoothed() / 4 + self.peer_delay + slack;
        let after = after.saturating_mul(1 << self.probe_count.min(16)).min(PROBE_AFTER_MAX);
        Some(self.last_sent_at + after.max(self.rtt.smoothed().saturating_mul(3) / 2))
    }

    /// The probe timer fired: gives the oldest cargoes in flight, up to `most`, to be sent again.
    pub(crate) fn probe(&mut self, now: Time, most: usize, cargoes: &mut Vec<Cargo>) {
        self.probe_count += 1;
        // The next one counts from now, even if nothing can be sent.
        self.last_sent_at = now;
        let from = (self.lowest - self.base) as usize;
        let in_flight = self.packets.range(from..).filter(|p| p.state == State::InFlight);
        cargoes.extend(in_flight.take(most).map(|packet| packet.cargo));
    }

    fn advance_lowest(&mut self) {
        let next = self.next();
        self.lowest = self.lowest.max(self.base);
        while self.lowest < next
            && self.packets[(self.lowest - self.base) as usize].state != State::InFlight
        {
            self.lowest += 1;
        }
    }

    /// Forgets settled packets at the front, and lost ones too old to prove spurious.
    fn forget_front(&mut self, now: Time) {
        let keep = 2 * self.rtt.smoothed() + PROBE_SLACK_MIN;
        let full = self.is_full();
        while let Some(packet) = self.packets.front() {
            match packet.state {
                State::InFlight => break,
                State::Settled => {}
                State::Lost if !full && packet.sent_at + keep > now => break,
                // Losses are declared in rising order but for flows that wait longer.
                State::Lost => self.lost.retain(|&number| number != self.base),
            }
            self.packets.pop_front();
            self.base += 1;
        }
        self.lowest = self.lowest.max(self.base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cargo(n: u64) -> Cargo {
        Cargo::Fragment { sequence: n, at: 0, bytes: 1000 }
    }

    fn sent(count: u64, flows: u16) -> Sent {
        let mut sent = Sent::new(flows);
        for n in 0..count {
            sent.sent(n, (n % u64::from(flows)) as u16, 1000, Some(cargo(n)), false);
        }
        sent
    }

    fn lost(sent: &mut Sent, now: Time) -> Vec<Cargo> {
        let mut lost = Vec::new();
        sent.detect_losses(now, &mut lost);
        lost
    }

    #[test]
    fn a_packet_is_lost_when_the_third_after_it_in_its_flow_arrived() {
        let mut sent = sent(10, 1);
        let mut acknowledged = Vec::new();
        sent.acknowledge(MILLISECOND, &[(1, 2)], 0, &mut acknowledged).unwrap();
        assert_eq!(acknowledged.len(), 2);
        assert!(lost(&mut sent, MILLISECOND).is_empty());
        assert!(sent.loss_at().is_some(), "time will tell");
        sent.acknowledge(MILLISECOND, &[(1, 3)], 0, &mut acknowledged).unwrap();
        assert_eq!(lost(&mut sent, MILLISECOND), [cargo(0)]);
    }

    #[test]
    fn another_flows_packets_are_not_lost_by_order_only_by_time() {
        let mut sent = sent(20, 2);
        let evens: Vec<_> = (0..10).rev().map(|n| (2 * n, 2 * n)).collect();
        sent.acknowledge(MILLISECOND, &evens, 0, &mut Vec::new()).unwrap();
        assert!(lost(&mut sent, MILLISECOND).is_empty());
        let at = sent.loss_at().unwrap();
        assert_eq!(lost(&mut sent, at + 20).len(), 9, "the last was sent after all that arrived");
    }

    #[test]
    fn a_late_arrival_counts_once_and_widens_the_allowance() {
        let mut sent = sent(10, 1);
        let mut acknowledged = Vec::new();
        sent.acknowledge(MILLISECOND, &[(4, 9)], 0, &mut acknowledged).unwrap();
        assert_eq!(lost(&mut sent, MILLISECOND).len(), 4);
        acknowledged.clear();
        for _ in 0..2 {
            sent.acknowledge(MILLISECOND, &[(0, 9)], 0, &mut acknowledged).unwrap();
        }
        assert_eq!(acknowledged.len(), 4);
        assert_eq!((sent.spurious_total, sent.in_flight()), (4, 0));
        assert!(sent.reorder_packets > REORDER_PACKETS);
    }

    #[test]
    fn acknowledging_the_unsent_is_refused() {
        assert!(sent(3, 1).acknowledge(5, &[(0, 3)], 0, &mut Vec::new()).is_none());
    }

    #[test]
    fn probes_back_off_to_a_cap() {
        let mut sent = sent(1, 1);
        let mut now = sent.probe_at().unwrap();
        for _ in 0..20 {
            sent.probe(now, 1, &mut Vec::new());
            let next = sent.probe_at().unwrap();
            assert!(next > now && next - now <= PROBE_AFTER_MAX);
            now = next;
        }
        assert_eq!(sent.probe_at().unwrap() - sent.last_sent_at, PROBE_AFTER_MAX);
    }
}
