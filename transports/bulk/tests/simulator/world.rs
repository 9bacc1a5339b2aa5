//! Two ends on a link, each with random messages for the other; everything follows from the seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use genie_bulk::{
    CloseReason, Config, Connection, Event, MILLISECOND, Protection, Role, SECOND, Span, Time,
    Transmit, WriteError,
};

use crate::link::{Habits, Link, Load};

const WINDOW_BYTES: usize = 1 << 18;
const POISON: u8 = 0xee;
const LONGEST: Time = 400 * SECOND;

/// What a seed stands for.
#[derive(Debug)]
pub struct Scenario {
    pub configs: [Config; 2],
    pub habits: [Habits; 2],
    pub messages: [u64; 2],
    pub message_bytes_max: usize,
    /// End 0 or 1 is replaced by a new instance at this time.
    pub restart: Option<(usize, Time)>,
    /// Chance that a receiver withdraws a window when a message is placed.
    pub withdraw: f64,
    /// An end may close with one of these; empty: nothing may close.
    pub may_close: fn(&CloseReason) -> bool,
    pub must_close: bool,
}

impl Scenario {
    pub fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let mut scenario = Self::plain(&mut random);
        let kind = random.u8(..20);
        match kind {
            // A new instance takes an end's place.
            0..=2 => {
                let at = random.u64(..60) * MILLISECOND;
                scenario.restart = Some((random.usize(..2), at));
                scenario.may_close = |reason| {
                    matches!(
                        reason,
                        CloseReason::PeerRestarted
                            | CloseReason::TimedOut { .. }
                            | CloseReason::PeerFailed { .. }
                    )
                };
                for habits in &mut scenario.habits {
                    habits.cut = None;
                }
            }
            // No version in common.
            3 => {
                let old = random.usize(..2);
                scenario.configs[old].versions = (1, 1);
                scenario.configs[1 - old].versions = (2, 2);
                scenario.may_close = |reason| {
                    matches!(reason, CloseReason::Version { .. } | CloseReason::TimedOut { .. })
                };
                scenario.must_close = true;
            }
            // A cut beyond the deadline.
            4 => {
                let at = random.u64(..40) * MILLISECOND;
                for habits in &mut scenario.habits {
                    habits.cut = Some(at..at + 20 * SECOND);
                }
                scenario.may_close = |reason| matches!(reason, CloseReason::TimedOut { .. });
            }
            _ => {}
        }
        scenario
    }

    fn plain(random: &mut fastrand::Rng) -> Self {
        let id = random.u64(..);
        let protection = if random.u8(..4) == 0 {
            Protection::Trusted
        } else {
            Protection::Sealed { secret: random_bytes(random) }
        };
        let timeout = 8 * SECOND;
        let mut config = |role| {
            let mut config = Config::new(id, role, protection.clone(), random_bytes(random));
            config.versions = [(1, 2), (1, 2), (1, 1)][random.usize(..3)];
            config.datagram_bytes = [512, 1200, 1472, 1472, 8972][random.usize(..5)];
            config.flows = random.u16(1..5);
            config.rate_initial = 10_u64.pow(random.u32(5..9));
            config.messages_ahead = [1, 2, 5, 64, 4096][random.usize(..5)];
            config.writes_queued = [1, 4, 1000][random.usize(..3)];
            config.peer_timeout = timeout;
            config.keepalive = Some(2 * SECOND);
            config
        };
        let configs = [config(Role::Client), config(Role::Server)];
        let bad = random.bool();
        let mut habits = || {
            let mut chance = |most: f64| {
                if random.bool() { random.f64() * most } else { 0.0 }
            };
            let mut habits = Habits {
                loss: chance(if bad { 0.25 } else { 0.02 }),
                reorder: chance(0.3),
                duplicate: chance(0.1),
                corrupt: chance(0.05),
                truncate: chance(0.05),
                replay: chance(0.1),
                ..Habits::default()
            };
            habits.rate = 10_u64.pow(random.u32(6..9)) * random.u64(1..10);
            habits.delay = random.u64(..5000) * 1000;
            habits.queue_bytes = random.u64(30_000..1_000_000);
            habits.reorder_by = random.u64(1..5000) * 1000;
            habits.flow_delay = random.u64(..500) * 1000;
            if random.u8(..5) == 0 {
                let at = random.u64(..100) * MILLISECOND;
                habits.cut = Some(at..at + random.u64(1..5000) * MILLISECOND);
            }
            habits
        };
        let habits = [habits(), habits()];
        Self {
            configs,
            habits,
            messages: [random.u64(..40), random.u64(..40)],
            message_bytes_max: [100, 3000, 20_000, 100_000][random.usize(..4)],
            restart: None,
            withdraw: if random.u8(..4) == 0 { 0.05 } else { 0.0 },
            may_close: |_| false,
            must_close: false,
        }
    }
}

fn random_bytes<const N: usize>(random: &mut fastrand::Rng) -> [u8; N] {
    std::array::from_fn(|_| random.u8(1..))
}

/// A message's bytes follow from who sends it and its id.
fn content(from: usize, message: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(message * 2 + from as u64);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

struct Planned {
    message: u64,
    len: usize,
    window: u32,
    offset: u64,
}

#[derive(Default)]
struct Tally {
    taken: BTreeSet<u64>,
    written: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    placed: BTreeSet<u64>,
}

struct End {
    connection: Connection,
    plan: VecDeque<Planned>,
    /// Source memory by message: freed (and poisoned) when told.
    sources: BTreeMap<u64, Vec<Vec<u8>>>,
    windows: BTreeMap<u32, Vec<u8>>,
    tally: Tally,
    /// A write was refused, and `Writable` has not come.
    is_refused: bool,
    closed: Option<CloseReason>,
}

/// The state of a run.
pub struct World {
    pub now: Time,
    scenario: Scenario,
    link: Link,
    ends: [End; 2],
    random: fastrand::Rng,
    trace: std::hash::DefaultHasher,
    buf: Vec<u8>,
    restarted: bool,
    /// The end that stayed was connected when the other was replaced.
    knew_the_old: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let scenario = Scenario::of(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let link = Link::new(scenario.habits.clone(), seed + 1);
        let ends = [0, 1].map(|at| {
            let mut plan = VecDeque::new();
            let (mut message, mut window, mut offset) = (0, 0, 0);
            for _ in 0..scenario.messages[at] {
                message += random.u64(1..1000);
                let len = match random.u8(..6) {
                    0 => random.usize(..3),
                    1 => scenario.message_bytes_max,
                    _ => random.usize(..=scenario.message_bytes_max),
                };
                if offset + len > WINDOW_BYTES {
                    (window, offset) = (window + 1, 0);
                }
                let gap = random.usize(..10).min(WINDOW_BYTES - offset - len);
                offset += gap;
                plan.push_back(Planned { message, len, window, offset: offset as u64 });
                offset += len;
            }
            End::new(scenario.configs[at].clone(), plan, 0)
        });
        let mut world = Self {
            now: 0,
            scenario,
            link,
            ends,
            random,
            trace: std::hash::DefaultHasher::new(),
            buf: vec![0; 65_536],
            restarted: false,
            knew_the_old: false,
        };
        for at in 0..2 {
            let needed = world.ends[1 - at].plan.back().map_or(0, |last| last.window + 1);
            for window in 0..needed {
                world.offer(at, window);
            }
        }
        world
    }

    fn offer(&mut self, at: usize, window: u32) {
        let end = &mut self.ends[at];
        let memory = end.windows.entry(window).or_insert_with(|| vec![POISON; WINDOW_BYTES]);
        // SAFETY: the vector is neither moved nor freed while the world lives, and read only between calls.
        let span = unsafe { Span::new(memory.as_mut_ptr(), memory.len()) };
        end.connection.offer(window, Arc::new(span)).expect("offered");
    }

    /// Runs to the end; gives a hash of everything that happened.
    pub fn run(mut self) -> u64 {
        while !self.is_done() {
            assert!(self.now < LONGEST, "not done in time: {}", self.describe());
            self.step();
        }
        self.check();
        self.trace.finish()
    }

    fn step(&mut self) {
        if let Some((at, when)) = self.scenario.restart
            && !self.restarted
            && self.now >= when
        {
            self.restart(at);
        }
        for at in 0..2 {
            self.write(at);
            self.transmit(at);
            self.events(at);
            self.transmit(at);
        }
        let timeouts = self.ends.iter().filter_map(|end| end.connection.poll_timeout());
        let restart = self.scenario.restart.filter(|_| !self.restarted).map(|(_, when)| when);
        let next = timeouts.chain(self.link.next_at()).chain(restart).min();
        self.now = next.unwrap_or(LONGEST).max(self.now + 1);
        while let Some((to, load)) = self.link.pop(self.now) {
            let Load::Datagram { flow, mut bytes } = load else { unreachable!("no TCP here") };
            (self.now, to, &bytes).hash(&mut self.trace);
            self.ends[to].connection.handle(self.now, flow, &mut bytes);
        }
        for end in &mut self.ends {
            if end.connection.poll_timeout().is_some_and(|at| at <= self.now) {
                end.connection.handle_timeout(self.now);
            }
        }
    }

    fn restart(&mut self, at: usize) {
        self.restarted = true;
        self.knew_the_old = self.ends[1 - at].connection.is_connected();
        let mut config = self.scenario.configs[at].clone();
        config.nonce = random_bytes(&mut self.random);
        // The other end's memory stays; the new instance has neither plan nor windows.
        self.ends[at] = End::new(config, VecDeque::new(), self.now);
    }

    fn write(&mut self, at: usize) {
        let end = &mut self.ends[at];
        while !end.is_refused
            && let Some(Planned { message, len, window, offset }) = end.plan.front()
        {
            let bytes = content(at, *message, *len);
            let mut parts = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() && parts.len() < 10 {
                let cut = self.random.usize(..=rest.len());
                parts.push(rest[..cut].to_vec());
                rest = &rest[cut..];
            }
            parts.push(rest.to_vec());
            // SAFETY: the vectors stay in `sources` until the message's last event.
            let spans =
                parts.iter_mut().map(|part| unsafe { Span::new(part.as_mut_ptr(), part.len()) });
            match end.connection.write(*message, spans.collect(), *window, *offset) {
                Ok(()) => {}
                Err(WriteError::OutOfCredit { .. } | WriteError::Closed(_)) => {
                    end.is_refused = true;
                    return;
                }
                Err(error) => panic!("{error}"),
            }
            end.sources.insert(*message, parts);
            end.tally.taken.insert(*message);
            end.plan.pop_front();
        }
    }

    fn transmit(&mut self, at: usize) {
        let connection = &mut self.ends[at].connection;
        let segments = self.random.usize(1..40);
        while let Some(transmit) = connection.poll_transmit(self.now, &mut self.buf, segments) {
            let Transmit { flow, segments, segment_bytes, bytes } = transmit;
            assert_eq!(bytes.div_ceil(segment_bytes), segments);
            assert!(flow < connection.config().flows);
            for datagram in self.buf[..bytes].chunks(segment_bytes) {
                self.link.send(self.now, 1 - at, flow, datagram);
            }
        }
    }

    fn events(&mut self, at: usize) {
        while let Some(event) = self.ends[at].connection.poll_event() {
            (self.now, at, format!("{event:?}")).hash(&mut self.trace);
            let end = &mut self.ends[at];
            assert!(end.closed.is_none(), "{event:?} after the close");
            match event {
                Event::Connected { .. } => {}
                Event::Writable => end.is_refused = false,
                Event::Placed { message, window, offset, len } => {
                    assert!(end.tally.placed.insert(message), "message {message} placed twice");
                    if let Some(memory) = end.windows.get(&window) {
                        let got = &memory[offset as usize..][..len as usize];
                        let want = content(1 - at, message, len as usize);
                        assert!(got == want, "message {message} is not intact");
                    }
                    if self.random.f64() < self.scenario.withdraw {
                        self.withdraw(at, window);
                    }
                }
                Event::Written { message } => {
                    assert!(end.tally.written.insert(message), "message {message} told twice");
                    end.release(message);
                }
                Event::Failed { message, .. } => {
                    assert!(end.tally.failed.insert(message), "message {message} failed twice");
                    assert!(self.scenario.withdraw > 0.0, "message {message} failed");
                    let returns = self.scenario.configs.iter().all(|it| it.versions.1 >= 2);
                    assert!(!returns, "message {message} failed instead of waiting");
                    end.release(message);
                }
                Event::Closed(reason) => {
                    assert!((self.scenario.may_close)(&reason), "closed: {reason}");
                    end.closed = Some(reason);
                }
            }
        }
    }

    /// Takes a window back, checks that it stays untouched for a moment, and offers it again.
    fn withdraw(&mut self, at: usize, window: u32) {
        if self.ends[at].connection.withdraw(window).is_ok() {
            // New memory for the new offer: the old must stay poisoned to the end.
            let old = self.ends[at].windows.get_mut(&window).expect("it was offered");
            old.fill(POISON);
            let old = std::mem::take(old);
            let retired = u32::MAX - self.ends[at].windows.len() as u32;
            self.ends[at].windows.insert(retired, old);
            self.ends[at].windows.remove(&window);
            self.offer(at, window);
        }
    }

    fn is_done(&self) -> bool {
        if self.ends.iter().all(|end| end.closed.is_some()) {
            return true;
        }
        if let Some((restarts, when)) = self.scenario.restart {
            // The end that stayed must find out; the new instance then has nobody to talk to.
            // An end that had not met the old instance meets the new one as if it were the first.
            let met = !self.knew_the_old && self.now > when + 5 * SECOND;
            return self.restarted && (self.ends[1 - restarts].closed.is_some() || met);
        }
        !self.scenario.must_close
            && self.ends.iter().all(|end| {
                end.plan.is_empty()
                    && end.sources.is_empty()
                    && end.connection.is_connected()
                    && end.connection.is_idle()
            })
    }

    fn check(&self) {
        for at in 0..2 {
            let (from, to) = (&self.ends[at], &self.ends[1 - at]);
            for (window, memory) in &from.windows {
                if *window > u32::MAX / 2 {
                    assert!(memory.iter().all(|&byte| byte == POISON), "written after withdrawal");
                }
            }
            if self.restarted {
                continue;
            }
            assert!(to.tally.placed.is_subset(&from.tally.taken));
            assert!(from.tally.written.is_subset(&to.tally.placed), "told but not placed");
            if from.closed.is_none() {
                let over: BTreeSet<_> =
                    from.tally.written.union(&from.tally.failed).copied().collect();
                assert_eq!(over, from.tally.taken, "each message ends");
            }
        }
        if self.scenario.must_close {
            assert!(self.ends.iter().any(
                |end| matches!(&end.closed, Some(CloseReason::Version { ours, theirs }) if ours != theirs)
            ));
        }
    }

    fn describe(&self) -> String {
        let ends = self.ends.iter().map(|end| {
            let (tally, connection) = (&end.tally, &end.connection);
            format!(
                "\n{} planned, {} taken, {} written, {} failed, {} placed, idle {}, timeout {:?}, {:?}, {:?}",
                end.plan.len(),
                tally.taken.len(),
                tally.written.len(),
                tally.failed.len(),
                tally.placed.len(),
                connection.is_idle(),
                connection.poll_timeout(),
                end.closed,
                connection.statistics(),
            )
        });
        format!("{:?}{}", self.scenario, ends.collect::<String>())
    }
}

impl End {
    fn new(config: Config, plan: VecDeque<Planned>, now: Time) -> Self {
        Self {
            connection: Connection::new(config, now).expect("a configuration that works"),
            plan,
            sources: BTreeMap::new(),
            windows: BTreeMap::new(),
            tally: Tally::default(),
            is_refused: false,
            closed: None,
        }
    }

    fn release(&mut self, message: u64) {
        for mut part in self.sources.remove(&message).expect("it was taken") {
            part.fill(POISON);
        }
    }
}
