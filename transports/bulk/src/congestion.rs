//! How fast to send, and how much may be in flight.
//!
//! A model of the path after BBR (draft-cardwell-iccrg-bbr-congestion-control): the delivery rate is the largest of
//! the last ten round trips, the path's own delay the smallest recent round trip. Sending is paced at that rate,
//! probing 25 % above for one round trip in eight and draining after; at most one and a half of the product may be in flight.
//! So a lost packet by itself changes nothing: random loss costs what it loses.
//!
//! What differs from BBR, and why:
//! - The smallest round trip is measured anew often (each 100 round trips, at least each half second
//!   on short paths) by a dip of one round trip. Beside a sender that fills the queue (TCP cubic) the
//!   measured round trip then holds that sender's queue, the allowance in flight follows, and the shares stay fair;
//!   a sender that held on to the empty path's delay for ten seconds would starve. Alone, the dip shows the true delay.
//!   A queue that this end's packets cannot explain brings the dip forward.
//! - Heavy loss ([`HEAVY_LOSS`]) over a round trip, or any loss while a queue stands on the path (all round trips of
//!   the round are longer than the path's own, [`SHORT_QUEUE`]), is taken for an overflowing queue. What may be in
//!   flight then shrinks and grows as TCP cubic's window does (RFC 9438), so that it and cubic get like parts of
//!   the queue, but not below what fills the path ([`ENOUGH`]): random loss costs no rate. BBR keeps its queue
//!   whatever is lost, and leaves cubic a fiftieth of a link.

use std::cmp::max;

use crate::config::{MICROSECOND, MILLISECOND, SECOND, Time, mul_div};

/// Sends double each round trip: 2 / ln 2.
const STARTUP_GAIN: f64 = 2.89;
/// Rates of a cycle of round trips: probe, drain what the probe queued, cruise.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// The first phase of the cycle that neither probes nor drains.
const CALM: usize = 2;
const ALLOWANCE_GAIN: f64 = 1.5;
/// Round trips the largest delivery rate is remembered.
const RATE_ROUNDS: u64 = 10;
/// A round trip counts as at least this long, a phase of the cycle as half of it: shorter ones drown in
/// what schedulers and batches do to the samples, and one hiccup would forget ten of them.
const ROUND_MIN: Time = 2 * MILLISECOND;
/// Startup ends when the rate grew less than this in so many round trips.
const FULL_GROWTH: f64 = 1.25;
const FULL_ROUNDS: u32 = 3;
/// Of the bytes of a round trip, more lost than this is a queue that overflows.
const HEAVY_LOSS: f64 = 0.08;
const HEAVY_LOSS_PACKETS_MIN: u64 = 8;
/// What an overflow leaves of what was in flight, and how that grows while a queue stands: cubic's factor, its packets
/// a round trip where it takes Reno's part, and its constant in packets per second cubed (RFC 9438, sections 4.2, 4.3).
const SHRINK: f64 = 0.7;
const GROW_PACKETS: f64 = 0.53;
const CUBIC: f64 = 0.4;
/// An overflow without heavy loss leaves at least so many times the product of the rate and the path's own delay, and [`BUNCHED`].
const ENOUGH: f64 = 1.4;
/// A round trip is without a queue up to so many times the path's own, or so much more. Then nobody is pressed by
/// growing faster.
const SHORT_QUEUE: f64 = 1.25;
const SHORT_QUEUE_MIN: Time = MILLISECOND / 10;
const GROW: f64 = 1.015;
/// The path's own delay is the smallest round trip of the last such span and of the one that runs.
const FLOOR_EVERY: Time = 10 * SECOND;
/// How often the smallest round trip is measured anew.
const DIP_ROUNDS: u64 = 100;
const DIP_EVERY_MIN: Time = SECOND / 2;
const DIP_EVERY_MAX: Time = 10 * SECOND;
/// Sooner, but not sooner than this, if the round trip is so many times what is in flight from here can explain.
const DIP_AGAIN: Time = 100 * MILLISECOND;
const COMPANY: f64 = 1.25;
/// In a dip this part of the product may be in flight.
const DIP_GAIN: f64 = 0.5;
/// What acknowledgements that come in bunches hide, beside the product: this long at the rate, within bounds.
const BUNCHED: Time = MILLISECOND;
const BUNCHED_PACKETS: (u64, u64) = (16, 128);
/// Packets in flight before anything is known.
const PACKETS_INITIAL: u64 = 64;
const PACKETS_MIN: u64 = 8;
/// A burst holds what the rate sends in this time, within bounds.
const BURST: Time = 200 * MICROSECOND;
const BURST_BYTES_MAX: u64 = 65_536;
/// A late timer may catch up this much: a turn of another program on a busy machine. The allowance in flight bounds it too.
const LATENESS: Time = 4 * MILLISECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Looking for the rate.
    Startup,
    /// Emptying the queue that startup made.
    Drain,
    /// Going round [`CYCLE`].
    Cruise,
    /// Measuring the smallest round trip.
    Dip,
}

/// What an acknowledgement and the losses it showed tell the model.
pub(crate) struct Feedback {
    pub(crate) now: Time,
    pub(crate) rtt: Option<Time>,
    pub(crate) rate: Option<crate::sent::RateSample>,
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) delivered: u64,
    pub(crate) delivered_before: u64,
    pub(crate) in_flight: u64,
}

/// The model of the path.
pub(crate) struct Congestion {
    packet: u64,
    rate_initial: u64,
    rate_max: u64,
    mode: Mode,
    rates: MaxOfRounds,
    round: u64,
    round_ends: u64,
    round_at: Time,
    full_rate: u64,
    full_rounds: u32,
    is_full: bool,
    rtt_min: Option<Time>,
    rtt_min_at: Time,
    /// The smallest round trip of this span of [`FLOOR_EVERY`] and of the one before, and when this one began.
    floors: [Time; 2],
    floor_at: Time,
    dip_ends: Option<Time>,
    dip_rtt: Time,
    phase: usize,
    phase_at: Time,
    /// What may be in flight since an overflow.
    cap: Option<u64>,
    /// The last overflow: when, in which round, and what was in flight.
    overflow_at: Time,
    overflow_round: u64,
    overflowing: u64,
    round_acknowledged: u64,
    round_lost: u64,
    round_in_flight: u64,
    round_rtt: Time,
    /// Up to here the time has been used for sending.
    paid_until: Time,
}

impl Congestion {
    pub(crate) fn new(packet_bytes: usize, rate_initial: u64, rate_max: u64, now: Time) -> Self {
        Self {
            packet: packet_bytes as u64,
            rate_initial: rate_initial.min(rate_max),
            rate_max,
            mode: Mode::Startup,
            rates: MaxOfRounds::default(),
            round: 0,
            round_ends: 0,
            round_at: now,
            full_rate: 0,
            full_rounds: 0,
            is_full: false,
            rtt_min: None,
            rtt_min_at: now,
            floors: [Time::MAX; 2],
            floor_at: now,
            dip_ends: None,
            dip_rtt: Time::MAX,
            phase: CALM,
            phase_at: now,
            cap: None,
            overflow_at: now,
            overflow_round: 0,
            overflowing: 0,
            round_acknowledged: 0,
            round_lost: 0,
            round_in_flight: 0,
            round_rtt: Time::MAX,
            paid_until: now,
        }
    }

    /// The estimated delivery rate, bytes a second.
    pub(crate) fn delivery_rate(&self) -> u64 {
        self.rates.max()
    }

    /// The smallest recent round trip.
    pub(crate) fn rtt_min(&self) -> Option<Time> {
        self.rtt_min
    }

    /// The sending rate, bytes a second.
    pub(crate) fn pacing_rate(&self) -> u64 {
        let rate = match self.rates.max() {
            0 => self.rate_initial,
            rate if self.is_full => scale(rate, self.gain()),
            rate => max(scale(rate, STARTUP_GAIN), self.rate_initial),
        };
        rate.clamp(self.packet, self.rate_max)
    }

    fn gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => 1.0 / STARTUP_GAIN,
            Mode::Cruise => CYCLE[self.phase],
            Mode::Dip => 1.0,
        }
    }

    /// The product of rate and delay: what the path holds without a queue.
    fn product(&self) -> Option<u64> {
        let rtt_min = self.rtt_min?;
        (self.rates.max() > 0).then(|| bytes_in(self.rates.max(), rtt_min))
    }

    /// The delay of the path without anybody's queue, so far as it was seen lately.
    fn floor(&self) -> Option<Time> {
        let floor = self.floors[0].min(self.floors[1]);
        (floor < Time::MAX).then_some(floor)
    }

    /// Bytes that may be in flight.
    pub(crate) fn allowance(&self) -> u64 {
        let Some(product) = self.product() else { return PACKETS_INITIAL * self.packet };
        let (least, most) = BUNCHED_PACKETS;
        let bunched = bytes_in(self.rates.max(), BUNCHED);
        let bunched = bunched.clamp(least * self.packet, most * self.packet);
        let allowance = match self.mode {
            Mode::Dip => scale(product, DIP_GAIN),
            Mode::Startup | Mode::Drain => scale(product, STARTUP_GAIN) + bunched,
            Mode::Cruise => scale(product, ALLOWANCE_GAIN) + bunched,
        };
        let least = if self.is_full { PACKETS_MIN } else { PACKETS_INITIAL };
        allowance.min(self.cap.unwrap_or(u64::MAX)).max(least * self.packet)
    }

    /// Takes what an acknowledgement told.
    pub(crate) fn feedback(&mut self, told: &Feedback) {
        self.round_acknowledged += told.acknowledged;
        self.round_lost += told.lost;
        self.round_in_flight =
            self.round_in_flight.max(told.in_flight + told.acknowledged + told.lost);
        let round_over = told.acknowledged > 0
            && told.delivered_before >= self.round_ends
            && told.now.saturating_sub(self.round_at) >= ROUND_MIN;
        if round_over {
            self.round_at = told.now;
            self.round += 1;
            self.round_ends = told.delivered;
        }
        if let Some(sample) = told.rate
            && (!sample.starved || sample.bytes_per_s >= self.rates.max())
        {
            self.rates.add(self.round, sample.bytes_per_s);
        }
        if let Some(rtt) = told.rtt {
            self.dip_rtt = self.dip_rtt.min(rtt);
            self.round_rtt = self.round_rtt.min(rtt);
            if told.now.saturating_sub(self.floor_at) > FLOOR_EVERY {
                (self.floors, self.floor_at) = ([Time::MAX, self.floors[0]], told.now);
            }
            self.floors[0] = self.floors[0].min(rtt);
            if self.rtt_min.is_none_or(|least| rtt <= least) {
                self.rtt_min = Some(rtt);
                self.rtt_min_at = told.now;
            }
        }
        if round_over {
            self.weigh_losses();
            self.suspect_company(told.now);
            self.look_for_full(told.rate.is_some_and(|sample| sample.starved));
        }
        self.turn(told);
    }

    /// Whether no packet of this round found the path without a queue.
    fn queue_stands(&self) -> bool {
        let Some(floor) = self.floor() else { return false };
        let short = scale(floor, SHORT_QUEUE).max(floor + SHORT_QUEUE_MIN);
        self.round_rtt < Time::MAX && self.round_rtt > short
    }

    /// Once a round: what may be in flight after its losses, or without any.
    fn weigh_losses(&mut self) {
        let (lost, acknowledged) = (self.round_lost, self.round_acknowledged);
        let part = lost as f64 / (lost + acknowledged).max(1) as f64;
        let is_heavy = lost >= HEAVY_LOSS_PACKETS_MIN * self.packet && part > HEAVY_LOSS;
        // An overflow shows in two rounds: that in which it happened, and the next.
        let is_new = self.round > self.overflow_round + 1;
        if is_heavy || self.is_full && lost > 0 && is_new && self.queue_stands() {
            let least = if is_heavy { self.product().unwrap_or(0) } else { self.enough() };
            self.cap = Some(max(scale(self.round_in_flight, SHRINK), least));
            (self.overflow_round, self.overflow_at) = (self.round, self.round_at);
            self.overflowing = self.round_in_flight;
            if self.mode == Mode::Startup {
                self.is_full = true;
                self.mode = Mode::Drain;
            }
        } else if let Some(cap) = self.cap {
            let wanted = self.product().map_or(u64::MAX, |product| scale(product, STARTUP_GAIN));
            let cap = if self.queue_stands() {
                let cubic = self.cubic().min(scale(cap, 1.0 / SHRINK));
                cubic.max(cap + scale(self.packet, GROW_PACKETS))
            } else {
                scale(cap, GROW)
            };
            self.cap = (cap < wanted).then_some(cap);
        }
        (self.round_lost, self.round_acknowledged, self.round_in_flight) = (0, 0, 0);
    }

    /// What keeps the path full. Beside others the recent round trip may be far above the path's own; then that counts.
    fn enough(&self) -> u64 {
        let own = scale(self.floor().unwrap_or(0), ENOUGH) + BUNCHED;
        bytes_in(self.rates.max(), own.max(self.rtt_min.unwrap_or(0)))
    }

    /// What cubic's window would be by now, had it filled the queue with what was in flight at the last overflow
    /// (RFC 9438, section 4.2).
    fn cubic(&self) -> u64 {
        let passed = (self.round_at - self.overflow_at) as f64 / SECOND as f64;
        let packets = self.overflowing as f64 / self.packet as f64;
        let returns = (packets * (1.0 - SHRINK) / CUBIC).cbrt();
        let window = CUBIC * (passed - returns).powi(3) + packets;
        (window * self.packet as f64) as u64
    }

    /// A queue longer than all that is in flight from here could make is another sender's (or the
    /// rate fell): worth a dip before its time.
    fn suspect_company(&mut self, now: Time) {
        let round_rtt = std::mem::replace(&mut self.round_rtt, Time::MAX);
        let (Some(rtt_min), true) = (self.rtt_min, self.is_full) else { return };
        let own = time_of(self.allowance(), self.rates.max().max(1)).max(2 * rtt_min);
        if self.mode != Mode::Dip
            && round_rtt < Time::MAX
            && round_rtt > scale(own, COMPANY)
            && now.saturating_sub(self.rtt_min_at) > DIP_AGAIN
        {
            self.dip();
        }
    }

    fn dip(&mut self) {
        self.mode = Mode::Dip;
        self.dip_ends = None;
        self.dip_rtt = Time::MAX;
    }

    fn look_for_full(&mut self, starved: bool) {
        if self.is_full || starved {
            return;
        }
        let rate = self.rates.max();
        if rate as f64 >= self.full_rate as f64 * FULL_GROWTH {
            self.full_rate = rate;
            self.full_rounds = 0;
        } else {
            self.full_rounds += 1;
            if self.full_rounds >= FULL_ROUNDS {
                self.is_full = true;
                self.mode = Mode::Drain;
            }
        }
    }

    /// Goes on to the next mode or phase when its time has come.
    fn turn(&mut self, told: &Feedback) {
        let (Some(product), Some(rtt_min)) = (self.product(), self.rtt_min) else { return };
        match self.mode {
            Mode::Startup => {}
            Mode::Drain => {
                if told.in_flight <= product {
                    self.mode = Mode::Cruise;
                    (self.phase, self.phase_at) = (CALM, told.now);
                }
            }
            Mode::Cruise => {
                let long = told.now.saturating_sub(self.phase_at) >= max(rtt_min, ROUND_MIN / 2);
                let over = match self.phase {
                    // Until the probe has filled what it may, or hurt.
                    0 => long && (told.lost > 0 || told.in_flight >= scale(product, CYCLE[0])),
                    1 => long || told.in_flight <= product,
                    _ => long,
                };
                if over {
                    (self.phase, self.phase_at) = ((self.phase + 1) % CYCLE.len(), told.now);
                }
                let every = (DIP_ROUNDS * rtt_min).clamp(DIP_EVERY_MIN, DIP_EVERY_MAX);
                if told.now.saturating_sub(self.rtt_min_at) > every {
                    self.dip();
                }
            }
            Mode::Dip => {
                let shallow = max(scale(product, DIP_GAIN), PACKETS_MIN * self.packet);
                match self.dip_ends {
                    None if told.in_flight <= shallow + self.packet => {
                        self.dip_ends = Some(told.now + max(rtt_min, MILLISECOND / 2));
                        self.dip_rtt = Time::MAX;
                    }
                    Some(ends) if told.now >= ends && self.dip_rtt < Time::MAX => {
                        self.rtt_min = Some(self.dip_rtt);
                        self.rtt_min_at = told.now;
                        self.mode = Mode::Cruise;
                        (self.phase, self.phase_at) = (CALM, told.now);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Bytes that pacing lets go now: nothing until a burst has come together.
    pub(crate) fn budget(&mut self, now: Time) -> u64 {
        let rate = self.pacing_rate();
        let burst = time_of(self.burst(rate), rate);
        // What a late timer may catch up is bounded.
        self.paid_until = self.paid_until.max(now.saturating_sub(max(burst, LATENESS)));
        let passed = now.saturating_sub(self.paid_until);
        if passed < burst { 0 } else { bytes_in(rate, passed).max(1) }
    }

    /// Bytes were sent.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.paid_until += time_of(bytes, self.pacing_rate());
    }

    /// When pacing lets the next burst go.
    pub(crate) fn send_at(&self) -> Time {
        let rate = self.pacing_rate();
        self.paid_until + time_of(self.burst(rate), rate)
    }

    /// How many bytes make a burst worth waking for.
    fn burst(&self, rate: u64) -> u64 {
        bytes_in(rate, BURST).clamp(self.packet, max(BURST_BYTES_MAX, self.packet))
    }
}

fn time_of(bytes: u64, rate: u64) -> Time {
    mul_div(bytes, SECOND, rate)
}

fn bytes_in(rate: u64, time: Time) -> u64 {
    mul_div(rate, time, SECOND)
}

fn scale(value: u64, by: f64) -> u64 {
    (value as f64 * by) as u64
}

/// The largest of the samples of the last [`RATE_ROUNDS`] rounds: one maximum a round is enough.
#[derive(Default)]
struct MaxOfRounds {
    rounds: [(u64, u64); RATE_ROUNDS as usize],
    max: u64,
}

impl MaxOfRounds {
    fn add(&mut self, round: u64, value: u64) {
        let slot = &mut self.rounds[(round % RATE_ROUNDS) as usize];
        if slot.0 == round {
            slot.1 = slot.1.max(value);
        } else {
            *slot = (round, value);
        }
        let recent = self.rounds.iter().filter(|(at, _)| at + RATE_ROUNDS > round);
        self.max = recent.map(|&(_, value)| value).max().unwrap_or(0);
    }

    fn max(&self) -> u64 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_rate_is_forgotten_after_ten_rounds() {
        let mut rates = MaxOfRounds::default();
        rates.add(0, 100);
        for round in 1..10 {
            rates.add(round, 50);
            assert_eq!(rates.max(), 100);
        }
        rates.add(10, 50);
        assert_eq!(rates.max(), 50);
    }

    #[test]
    fn pacing_gives_the_rate_in_bursts_and_bounds_what_a_late_timer_catches_up() {
        let mut congestion = Congestion::new(1000, 10_000_000, u64::MAX, 0);
        let (mut now, mut bytes) = (0, 0_u64);
        while now < SECOND {
            while congestion.budget(now) > 0 {
                congestion.spend(1000);
                bytes += 1000;
            }
            // Asked more often than bytes come together, nothing is lost.
            now = (now + 700).min(congestion.send_at());
        }
        assert!(bytes.abs_diff(10_000_000) < 20_000, "{bytes}");
        let budget = congestion.budget(now + 100 * SECOND);
        assert!(budget <= bytes_in(10_000_000, LATENESS), "{budget}");
    }

    /// A path of 100 MB/s and 2 ms seen through feedback, with a part of the bytes lost.
    fn settle(loss: f64) -> Congestion {
        let mut congestion = Congestion::new(1500, 1_000_000, u64::MAX, 0);
        let (mut now, mut delivered) = (0, 0);
        for _ in 0..3000 {
            let rate = congestion.pacing_rate().min(100_000_000);
            let queue = congestion.allowance().saturating_sub(200_000) * 10;
            let rtt = 2 * MILLISECOND + if rate == 100_000_000 { queue } else { 0 };
            now += rtt / 4;
            let sent = bytes_in(rate, rtt / 4);
            let lost = scale(sent, loss);
            delivered += sent - lost;
            congestion.feedback(&Feedback {
                now,
                rtt: Some(rtt),
                rate: Some(crate::sent::RateSample {
                    bytes_per_s: scale(rate, 1.0 - loss),
                    starved: false,
                }),
                acknowledged: sent - lost,
                lost,
                delivered,
                delivered_before: delivered.saturating_sub(4 * sent),
                in_flight: congestion.allowance().min(bytes_in(rate, rtt)),
            });
        }
        congestion
    }

    #[test]
    fn the_rate_is_found_and_random_loss_keeps_it() {
        for loss in [0.0, 0.001, 0.01, 0.03] {
            let congestion = settle(loss);
            let rate = congestion.delivery_rate();
            assert!(rate > scale(100_000_000, 0.99 - loss), "loss {loss}: {rate}");
            let product = congestion.product().expect("measured");
            assert!(congestion.allowance() >= product, "loss {loss}");
        }
    }

    #[test]
    fn heavy_loss_shrinks_the_allowance_to_the_product() {
        let congestion = settle(0.2);
        let product = congestion.product().unwrap();
        assert!(congestion.allowance() <= scale(product, 1.2), "{}", congestion.allowance());
    }
}
