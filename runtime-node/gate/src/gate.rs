//! The gate's one thread: waits for everything, and gives each its turn.

mod admission;
mod leases;
mod serving;
mod sessions;
mod shelf;
mod supervision;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_channel::Message;
use genie_channel::message::Stop;
use genie_remote::LinkSettings;
use genie_transport::Link;
use genie_wire::ErrorCode;
use genie_wire::control::{Device, Refusal};
use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};

use crate::door::Door;
use crate::groups::Groups;
use crate::moves::Moves;
use crate::newcomers::Newcomer;
use crate::quotas::Quotas;
use crate::sessions::{Session, Way, last_word};
use crate::workers::{Nursery, Worker, WorkerLimits};
use shelf::Shelf;

/// What a node tells its clients.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name and version of this program.
    pub software: String,
    pub devices: Vec<Device>,
    /// Sessions of each device at a time.
    pub sessions_max: usize,
}

/// What a gate is made of.
pub struct GateParts {
    pub facts: NodeFacts,
    pub doors: Vec<Door>,
    pub quotas: Quotas,
    /// What a worker may use, by device.
    pub limits: Vec<WorkerLimits>,
    pub nursery: Box<dyn Nursery>,
    /// How long a worker without sessions is kept, with the weights that it has.
    pub linger: Duration,
    /// How long an operator may run after its client left.
    pub operator_max: Duration,
    /// How long any operator may run.
    pub client_operator_max: Option<Duration>,
    /// Clients, by what their certificates name, that share weights with each other.
    pub sharing: Vec<BTreeSet<String>>,
    /// Where workers' control groups are made.
    pub groups: Groups,
    /// Parts of the processor of clients that have more than one, by what their certificates name.
    pub weights: BTreeMap<String, u32>,
    /// Bytes of the regions of one session.
    pub session_bytes: u64,
    /// The transports by which weights move between nodes; without them none do.
    pub links: Option<Arc<LinkSettings>>,
    /// What [`Gate::run`] returns for when it is readable.
    pub interrupt: Option<OwnedFd>,
}

/// The node's process.
pub struct Gate {
    facts: NodeFacts,
    epoll: OwnedFd,
    entrances: Vec<Entrance>,
    /// What new sessions are told, once the node was asked to stop.
    turned_away: Option<String>,
    quotas: Quotas,
    limits: Vec<WorkerLimits>,
    nursery: Box<dyn Nursery>,
    linger: Duration,
    operator_max: Duration,
    client_operator_max: Option<Duration>,
    groups: Groups,
    weights: BTreeMap<String, u32>,
    session_bytes: u64,
    /// When operators were looked at that may not take long.
    looked: Instant,
    /// In the wait set while the gate lives.
    _interrupt: Option<OwnedFd>,
    newcomers: BTreeMap<u64, Newcomer>,
    sessions: BTreeMap<u64, Session>,
    /// Connections of hosts that have weights served to other nodes, by number.
    serving: BTreeMap<u64, Box<dyn Link>>,
    workers: BTreeMap<u64, Worker>,
    moves: Moves,
    shelf: Shelf,
    /// Operators whose client left: worker, operators begun then, and when that is too long.
    forsaken: Vec<(u64, u64, Instant)>,
    /// Workers whose operators wait for memory of others.
    waiting: Vec<leases::Waiting>,
    /// Links whose last words are on their way, and when they are dropped anyway.
    lingering: Vec<(Box<dyn Link>, Instant)>,
    next: u64,
    /// The nursery said something, perhaps.
    nursery_speaks: bool,
    /// The node ends, and its workers with it.
    ends: bool,
    /// It was told that workers are not closed in.
    told_weak: bool,
}

/// A way in.
struct Entrance {
    door: Door,
    /// It fails (descriptors ran out, most likely): it is not watched before this moment.
    shut_until: Option<Instant>,
    /// One failure is told, and then none until a connection came in.
    told: bool,
}

/// Why [`Gate::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The descriptor to interrupt it is readable.
    Interrupted,
    /// The moment has come.
    Due,
    /// The last session ended, after [`Gate::drain`].
    Drained,
}

/// Why a gate cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("wait for events: {0}")]
pub struct GateError(#[from] std::io::Error);

// Names in the wait set: a kind, and a number below it.
const KIND: u64 = 0xff << 56;
const INTERRUPT: u64 = 1 << 56;
const NURSERY: u64 = 2 << 56;
const DOOR: u64 = 3 << 56;
const NEWCOMER: u64 = 4 << 56;
const HOST: u64 = 5 << 56;
const RELAYED: u64 = 6 << 56;
const SERVING: u64 = 7 << 56;
const WORKER: u64 = 8 << 56;
pub(crate) const MOVE: u64 = 9 << 56;
const LENDER: u64 = 10 << 56;
const SHELF: u64 = 11 << 56;

/// How long a link's last words may take.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How often lingering links are looked at.
pub(crate) const LINGER_STEP: Duration = Duration::from_millis(20);
/// How long one may take to say it.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How often an operator is looked at in the time that it may take.
const OPERATOR_LOOKS: u32 = 8;
/// How long it may take until one hears how a worker ended.
const OBITUARY_MAX: Duration = Duration::from_secs(1);
/// Messages of one worker between two looks at the others.
const MESSAGES_AT_ONCE: usize = 64;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl Gate {
    pub fn new(parts: GateParts) -> std::io::Result<Self> {
        let GateParts { facts, doors, quotas, limits, nursery, .. } = parts;
        let GateParts { linger, operator_max, client_operator_max, .. } = parts;
        let GateParts { sharing, groups, weights, session_bytes, links, interrupt, .. } = parts;
        assert_eq!(facts.devices.len(), limits.len(), "each device has its limits");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, door) in doors.iter().enumerate() {
            watch(&epoll, door.event_fd(), DOOR | index as u64, EventFlags::IN)?;
        }
        if let Some(interrupt) = &interrupt {
            watch(&epoll, interrupt.as_fd(), INTERRUPT, EventFlags::IN)?;
        }
        let mut gate = Gate {
            facts,
            epoll,
            entrances: doors
                .into_iter()
                .map(|door| Entrance { door, shut_until: None, told: false })
                .collect(),
            turned_away: None,
            quotas,
            limits,
            nursery,
            linger,
            operator_max,
            client_operator_max,
            groups,
            weights,
            session_bytes,
            looked: Instant::now(),
            _interrupt: interrupt,
            newcomers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            serving: BTreeMap::new(),
            workers: BTreeMap::new(),
            moves: Moves::new(links),
            shelf: Shelf::new(sharing),
            forsaken: Vec::new(),
            waiting: Vec::new(),
            lingering: Vec::new(),
            next: 1,
            nursery_speaks: true,
            ends: false,
            told_weak: false,
        };
        gate.watch_nursery();
        Ok(gate)
    }

    /// Refuses new sessions with these words from now on.
    pub fn drain(&mut self, why: String) {
        self.turned_away = Some(why);
    }

    /// Serves until something happens that the caller decides about, at the latest until then.
    pub fn run(&mut self, until: Option<Instant>) -> Result<Why, GateError> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            if self.turned_away.is_some() && self.sessions.is_empty() && self.moves.is_empty() {
                return Ok(Why::Drained);
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(Why::Due);
            }
            events.clear();
            let timeout = match self.is_busy() {
                true => Some(NOW),
                false => self.sleep_max(until),
            };
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
            let mut interrupted = false;
            for event in &events {
                interrupted |= event.data.u64() == INTERRUPT;
                self.notice(event.data.u64(), event.flags);
            }
            let due = self.nursery.due().is_some_and(|due| due <= Instant::now());
            if std::mem::take(&mut self.nursery_speaks) || due {
                self.hear_nursery();
            }
            self.open_doors();
            self.take_turns();
            self.move_weights();
            self.drive_lingering();
            self.look_at_clock();
            if interrupted {
                return Ok(Why::Interrupted);
            }
        }
    }

    /// Tells everybody why the node leaves them, and gives the words and the workers a moment.
    pub fn cut(mut self, why: &str, grace: Duration) {
        let until = Instant::now() + grace;
        let words = |code| Refusal { code: code as u32, message: why.to_owned() };
        for (_, newcomer) in std::mem::take(&mut self.newcomers) {
            if let Ok(link) = newcomer.into_link() {
                self.leave(link, &words(ErrorCode::NodeLost));
            }
        }
        for worker in self.workers.values_mut() {
            worker.asked = true;
            worker.ending.get_or_insert(until);
            let _ = worker.channel.post(Message::Stop(Stop { why: why.to_owned() }), vec![]);
        }
        // Their last words pass through here; those that cannot say any are spoken for.
        self.turned_away = Some(why.to_owned());
        self.ends = true;
        self.linger = Duration::ZERO;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.workers.is_empty() && Instant::now() < until {
            events.clear();
            let left = until.saturating_duration_since(Instant::now()).min(LINGER_STEP);
            let timeout = Timespec::try_from(left).ok();
            let space = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.epoll, space, timeout.as_ref()).is_err() {
                break;
            }
            for event in &events {
                self.notice(event.data.u64(), event.flags);
            }
            self.hear_nursery();
            self.take_turns();
            self.drive_lingering();
        }
        for (_, session) in std::mem::take(&mut self.sessions) {
            match session.way {
                Way::Direct(socket) => last_word(&socket, ErrorCode::NodeLost, why),
                Way::Relayed(relay) => {
                    self.leave(relay.into_host(), &words(ErrorCode::NodeLost));
                }
            }
        }
        for link in std::mem::take(&mut self.serving).into_values() {
            self.leave(link, &words(ErrorCode::NodeLost));
        }
        self.drive_lingering();
        while !self.lingering.is_empty() {
            std::thread::sleep(LINGER_STEP);
            self.drive_lingering();
        }
    }

    fn is_busy(&self) -> bool {
        let relay = |session: &Session| match &session.way {
            Way::Relayed(relay) => relay.runnable,
            Way::Direct(_) => false,
        };
        self.moves.is_busy() || self.sessions.values().any(relay)
    }

    /// How long to wait for events until the clock alone has something to do.
    fn sleep_max(&self, until: Option<Instant>) -> Option<Timespec> {
        let now = Instant::now();
        let shut = self.entrances.iter().filter_map(|entrance| entrance.shut_until);
        let newcomers = self.newcomers.values().map(|newcomer| newcomer.until);
        let workers = self.workers.values().filter_map(|worker| {
            worker.ending.or(worker.idle_since.map(|since| since + self.linger))
        });
        let forsaken = self.forsaken.iter().map(|(_, _, until)| *until);
        let waiting = self.waiting.iter().map(|one| one.until);
        let due = shut
            .chain(newcomers)
            .chain(waiting)
            .chain(workers)
            .chain(forsaken)
            .chain(self.moves.due());
        let due = due
            .chain(self.next_look_at_operators())
            .chain(self.nursery.due())
            .chain(until)
            .min()
            .map(|at| at.saturating_duration_since(now));
        let linger = (!self.lingering.is_empty()).then_some(LINGER_STEP);
        let wait = due.into_iter().chain(linger).min()?;
        // Rounded up, so that the moment has come when the wait ends.
        Timespec::try_from(wait + Duration::from_micros(50)).ok()
    }

    fn notice(&mut self, name: u64, flags: EventFlags) {
        let id = name & !KIND;
        match name & KIND {
            DOOR => self.accept(id as usize),
            NEWCOMER => self.greet(id),
            HOST | RELAYED => match self.sessions.get_mut(&id).map(|session| &mut session.way) {
                Some(Way::Relayed(relay)) => {
                    relay.runnable = true;
                    relay.worker_speaks |= name & KIND == RELAYED;
                }
                // It is watched for its end alone.
                Some(Way::Direct(_)) if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                    self.end(id);
                }
                _ => {}
            },
            SERVING => self.serve_host(id),
            WORKER => self.hear_worker(id),
            LENDER => self.hear_lender(id),
            SHELF => self.hear_shelf(id),
            NURSERY => self.nursery_speaks = true,
            MOVE => self.moves.notice(id),
            _ => {}
        }
    }

    /// When operators are looked at again that may not take long.
    fn next_look_at_operators(&self) -> Option<Instant> {
        let max = self.client_operator_max?;
        let used = self.workers.values().any(|worker| !worker.sessions.is_empty());
        used.then(|| self.looked + max / OPERATOR_LOOKS)
    }

    /// Ends workers whose operator runs for too long, whoever waits for it.
    fn end_long_operators(&mut self, now: Instant) {
        let Some(max) = self.client_operator_max else { return };
        if self.next_look_at_operators().is_none_or(|next| next > now) {
            return;
        }
        self.looked = now;
        for (id, worker) in &mut self.workers {
            let doing = worker.watched.look();
            worker.running = match (doing.connection, worker.running) {
                (None, _) => None,
                (_, Some((begun, since))) if begun == doing.begun => Some((begun, since)),
                _ => Some((doing.begun, now)),
            };
            if worker.ending.is_none()
                && worker.running.is_some_and(|(_, since)| since + max <= now)
            {
                tracing::warn!(pid = worker.pid, "{} runs for too long", doing.operator);
                worker.overdue = Some("its operator took longer than --client-operator-s allows");
                worker.ending = Some(now + OBITUARY_MAX);
                self.nursery.end(*id);
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What is due although nothing happened.
    fn look_at_clock(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .newcomers
            .iter()
            .filter(|(_, newcomer)| newcomer.until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let message = format!("it said no hello within {} s", HELLO_MAX.as_secs());
            self.refuse_newcomer(id, ErrorCode::Unavailable, message);
        }
        self.end_waits(now);
        let (mut idle, mut dead) = (Vec::new(), Vec::new());
        for (id, worker) in &self.workers {
            match (worker.ending, worker.idle_since) {
                (Some(until), _) if until <= now => dead.push(*id),
                (None, Some(since)) if since + self.linger <= now => idle.push(*id),
                _ => {}
            }
        }
        for id in idle {
            let why = "nobody uses it".to_owned();
            self.post(id, Message::Stop(Stop { why }), vec![]);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.asked = true;
                worker.ending = Some(now + self.operator_max.max(OBITUARY_MAX));
            }
        }
        for id in dead {
            self.nursery.end(id);
            self.bury(id, "ended, nobody knows how");
        }
        for (id, begun, until) in std::mem::take(&mut self.forsaken) {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            let doing = worker.watched.look();
            if doing.begun != begun || doing.connection.is_none() {
                continue;
            }
            if until > now {
                self.forsaken.push((id, begun, until));
                continue;
            }
            tracing::warn!(
                pid = worker.pid,
                "{} still runs although its client left: its worker is ended (--operator-s {})",
                doing.operator,
                self.operator_max.as_secs()
            );
            worker.overdue = Some("--operator-s: another program of this client left");
            worker.ending.get_or_insert(now + OBITUARY_MAX);
            self.nursery.end(id);
        }
        self.end_long_operators(now);
    }
}

fn watch(
    epoll: impl AsFd,
    source: BorrowedFd<'_>,
    name: u64,
    flags: EventFlags,
) -> std::io::Result<()> {
    Ok(epoll::add(epoll, source, epoll::EventData::new_u64(name), flags)?)
}
