//! The gate's one thread: waits for everything, and gives each its turn.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_channel::message::{self, Fork, Stop};
use genie_channel::{Channel, Message, Watched};
use genie_remote::LinkSettings;
use genie_shm::UnixLink;
use genie_transport::{Link, LinkError};
use genie_wire::control::{Device, Hello, Refusal, WeightFetch, WeightServe, WeightServing};
use genie_wire::frame::FrameKind;
use genie_wire::limits::STRING_BYTES_MAX;
use genie_wire::{ErrorCode, PROTOCOL_OLDEST, PROTOCOL_VERSION, common_version};
use prost::Message as _;
use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::door::Door;
use crate::moves::{Moves, Said};
use crate::newcomers::{First, Newcomer, Who};
use crate::quotas::Quotas;
use crate::relay::{Relay, RelayEnd};
use crate::sessions::{Session, Way, last_word};
use crate::workers::{Nursery, Told, Worker, WorkerLimits, describe};

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
    /// In the wait set while the gate lives.
    _interrupt: Option<OwnedFd>,
    newcomers: BTreeMap<u64, Newcomer>,
    sessions: BTreeMap<u64, Session>,
    /// Connections of hosts that have weights served to other nodes, by number.
    serving: BTreeMap<u64, Box<dyn Link>>,
    workers: BTreeMap<u64, Worker>,
    moves: Moves,
    /// Operators whose client left: worker, operators begun then, and when that is too long.
    forsaken: Vec<(u64, u64, Instant)>,
    /// Links whose last words are on their way, and when they are dropped anyway.
    lingering: Vec<(Box<dyn Link>, Instant)>,
    next: u64,
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

/// How long a link's last words may take.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How often lingering links are looked at.
pub(crate) const LINGER_STEP: Duration = Duration::from_millis(20);
/// How long a door that fails is left alone. A connection that ends opens it at once.
const SHUT_FOR: Duration = Duration::from_millis(100);
/// Failures of single peers in one look at a door; more of them are the door's own.
const FAILURES_MAX: usize = 128;
/// Connections that did not say yet what they want; one more, and the oldest is left.
const NEWCOMERS_MAX: usize = 256;
/// How long one may take to say it.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// Connections of hosts that have weights served.
const SERVING_MAX: usize = 64;
/// Workers of a node, all identities and devices together.
const WORKERS_MAX: usize = 512;
/// How many times as long an operator may go on whose worker serves other sessions too: they wait for
/// it, and would be lost with it.
const SHARED_PATIENCE: u32 = 6;
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
        let GateParts { linger, operator_max, links, interrupt, .. } = parts;
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
            _interrupt: interrupt,
            newcomers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            serving: BTreeMap::new(),
            workers: BTreeMap::new(),
            moves: Moves::new(links),
            forsaken: Vec::new(),
            lingering: Vec::new(),
            next: 1,
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
            self.hear_nursery();
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
        let due = shut.chain(newcomers).chain(workers).chain(forsaken).chain(self.moves.due());
        let due = due.chain(until).min().map(|at| at.saturating_duration_since(now));
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
                Some(Way::Relayed(relay)) => relay.runnable = true,
                // It is watched for its end alone.
                Some(Way::Direct(_)) if flags.intersects(EventFlags::HUP | EventFlags::ERR) => {
                    self.end(id);
                }
                _ => {}
            },
            SERVING => self.serve_host(id),
            WORKER => self.hear_worker(id),
            MOVE => self.moves.notice(id),
            _ => {}
        }
    }

    // Newcomers.

    fn accept(&mut self, index: usize) {
        let Some(entrance) = self.entrances.get_mut(index) else { return };
        let (mut accepted, mut failures) = (Vec::new(), 0);
        loop {
            let error = match entrance.door.accept() {
                Ok(Some(arrived)) => {
                    accepted.push(arrived);
                    entrance.told = false;
                    continue;
                }
                Ok(None) => break,
                Err(error) => error,
            };
            failures += 1;
            // Of a stranger, perhaps: it concerns one connection, and the next may be a friend's.
            let is_ones = matches!(error, LinkError::Transport(_) | LinkError::Stranger { .. });
            let fails = !is_ones || failures > FAILURES_MAX;
            if !std::mem::replace(&mut entrance.told, true) {
                tracing::warn!(%error, "a connection is not accepted");
            }
            if fails {
                // Out of descriptors, most likely: wait until some are free.
                entrance.shut_until = Some(Instant::now() + SHUT_FOR);
                if let Err(error) = epoll::delete(&self.epoll, entrance.door.event_fd()) {
                    tracing::debug!(%error, "a door that fails stays watched");
                }
                break;
            }
        }
        for arrived in accepted {
            if self.newcomers.len() >= NEWCOMERS_MAX
                && let Some((id, _)) = self.newcomers.iter().min_by_key(|(_, one)| one.until)
            {
                let id = *id;
                self.refuse_newcomer(id, ErrorCode::Unavailable, "it said no hello".to_owned());
            }
            let newcomer = Newcomer::new(arrived, Instant::now() + HELLO_MAX);
            let id = self.number();
            match watch(&self.epoll, newcomer.event_fd(), NEWCOMER | id, newcomer.interest) {
                Ok(()) => {
                    self.newcomers.insert(id, newcomer);
                    self.greet(id);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be watched");
                    let message = format!("the node cannot take one more connection: {error}");
                    if let Ok(link) = newcomer.into_link() {
                        self.leave(link, &Refusal { code: ErrorCode::Unavailable as u32, message });
                    }
                }
            }
        }
    }

    /// Watches doors again whose time has come.
    fn open_doors(&mut self) {
        let now = Instant::now();
        for (index, entrance) in self.entrances.iter_mut().enumerate() {
            if entrance.shut_until.is_some_and(|until| until <= now) {
                let name = DOOR | index as u64;
                let watched = watch(&self.epoll, entrance.door.event_fd(), name, EventFlags::IN);
                entrance.shut_until = match watched {
                    Ok(()) => None,
                    // It is watched still.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                    Err(_) => Some(now + SHUT_FOR),
                };
            }
        }
    }

    /// Looks whether a newcomer said what it wants.
    fn greet(&mut self, id: u64) {
        let Some(newcomer) = self.newcomers.get_mut(&id) else { return };
        let wants = newcomer.first();
        match wants {
            Ok(Some(first)) => self.admit(id, first),
            Ok(None) => {
                // A link may have something to say of its own.
                if let Who::Elsewhere(link) = &newcomer.who {
                    let mut flags = EventFlags::IN;
                    flags.set(EventFlags::OUT, link.wants_write());
                    if flags != newcomer.interest {
                        newcomer.interest = flags;
                        let data = epoll::EventData::new_u64(NEWCOMER | id);
                        let _ = epoll::modify(&self.epoll, link.event_fd(), data, flags);
                    }
                }
            }
            Err(error) if error.is_refusable() => {
                self.refuse_newcomer(id, ErrorCode::Protocol, error.to_string());
            }
            Err(_) => drop(self.take_newcomer(id)),
        }
    }

    fn take_newcomer(&mut self, id: u64) -> Option<Newcomer> {
        let newcomer = self.newcomers.remove(&id)?;
        let _ = epoll::delete(&self.epoll, newcomer.event_fd());
        self.reopen_doors();
        Some(newcomer)
    }

    fn refuse_newcomer(&mut self, id: u64, code: ErrorCode, message: String) {
        let Some(newcomer) = self.take_newcomer(id) else { return };
        tracing::warn!(peer = newcomer.peer(), message, "a connection is refused");
        if let Ok(link) = newcomer.into_link() {
            self.leave(link, &Refusal { code: code as u32, message });
        }
    }

    fn admit(&mut self, id: u64, first: First) {
        let admitted = match first {
            First::Hello(hello) => self.admit_session(id, hello),
            First::Serve(serve) => self.admit_serving(id, serve),
        };
        if let Err((code, message)) = admitted {
            self.refuse_newcomer(id, code, message);
        }
    }

    fn admit_session(&mut self, id: u64, hello: Hello) -> Result<(), (ErrorCode, String)> {
        if let Some(why) = &self.turned_away {
            return Err((ErrorCode::Unavailable, why.clone()));
        }
        let facts = &self.facts;
        if common_version(hello.protocol).is_none() {
            let message = format!(
                "this node ({}) speaks protocols {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}, the \
                 client ({}) speaks {}; install the same version of Genie on both sides",
                facts.software, hello.software, hello.protocol
            );
            return Err((ErrorCode::Protocol, message));
        }
        if hello.identity.len() > STRING_BYTES_MAX {
            return Err((ErrorCode::Protocol, "the client's identity is too long".to_owned()));
        }
        let (device, count) = (hello.device, facts.devices.len());
        if device as usize >= count {
            let message = format!(
                "device {device} does not exist, the node has {count} (0 to {})",
                count.saturating_sub(1)
            );
            return Err((ErrorCode::Value, message));
        }
        let max = facts.sessions_max;
        if self.sessions.values().filter(|session| session.device == device).count() >= max {
            let message = format!(
                "the node serves {max} connections already; close one, or start it with a larger \
                 --max-sessions"
            );
            return Err((ErrorCode::Unavailable, message));
        }
        let identity = match &self.newcomers[&id].who {
            Who::Here(_) => String::new(),
            Who::Elsewhere(link) => link.peer_identity(),
        };
        let admission =
            self.quotas.admit(&identity).map_err(|message| (ErrorCode::Runtime, message))?;
        let worker = self.worker(identity, device).map_err(|m| (ErrorCode::Unavailable, m))?;
        let newcomer = self.take_newcomer(id).expect("it was just there");
        let name = newcomer.peer();
        let (way, socket, peer, relayed) = match newcomer.who {
            Who::Here(socket) => {
                let passed = socket
                    .try_clone()
                    .map_err(|error| (ErrorCode::Unavailable, format!("keep a socket: {error}")))?;
                (Way::Direct(socket), passed, String::new(), false)
            }
            Who::Elsewhere(link) => {
                let peer = link.peer_identity();
                let pair = relay(link, &hello);
                let (relay, passed) = pair.map_err(|error| (ErrorCode::Unavailable, error))?;
                (Way::Relayed(Box::new(relay)), passed, peer, true)
            }
        };
        let session = message::Session { connection: id, peer, relayed, name };
        let posted = self.post(worker, Message::Session(session), vec![socket]);
        let session = Session { worker, device, way, ended: false, _admission: admission };
        let watched = match &session.way {
            // Its end is told whatever is asked for.
            Way::Direct(socket) => {
                watch(&self.epoll, socket.as_fd(), HOST | id, EventFlags::empty())
            }
            Way::Relayed(relay) => {
                watch(&self.epoll, relay.host.event_fd(), HOST | id, relay.host_interest).and_then(
                    |()| watch(&self.epoll, relay.worker_fd(), RELAYED | id, relay.worker_interest),
                )
            }
        };
        self.sessions.insert(id, session);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.sessions.insert(id);
            worker.idle_since = None;
        }
        let failed = watched.err().map(|error| error.to_string());
        if let Some(reason) = failed.or_else(|| (!posted).then(|| "its worker is gone".to_owned()))
        {
            self.refuse_session(id, ErrorCode::Unavailable, &reason);
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    // Sessions.

    fn take_turns(&mut self) {
        let runnable: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| matches!(&session.way, Way::Relayed(relay) if relay.runnable))
            .map(|(id, _)| *id)
            .collect();
        for id in runnable {
            let Some(Session { way: Way::Relayed(relay), .. }) = self.sessions.get_mut(&id) else {
                continue;
            };
            match relay.turn() {
                Ok(()) => {
                    if let Err(error) = set_interests(&self.epoll, id, relay) {
                        tracing::warn!(%error, "a connection cannot be watched any more");
                        self.end(id);
                    }
                }
                Err(RelayEnd::Host(error)) if error.is_refusable() => {
                    self.refuse_session(id, ErrorCode::Protocol, &error.to_string());
                }
                Err(RelayEnd::Host(_)) => self.end(id),
                Err(RelayEnd::Worker(LinkError::Closed)) => self.worker_hung_up(id),
                Err(RelayEnd::Worker(error)) => {
                    self.refuse_session(id, ErrorCode::Runtime, &error.to_string());
                }
            }
        }
    }

    /// Nothing more comes from the worker, whose last words were passed on. It is alive if it says
    /// that the session ended; else one hears how it died.
    fn worker_hung_up(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Way::Relayed(relay) = &mut session.way {
            let _ = epoll::delete(&self.epoll, relay.worker_fd());
        }
        if session.ended || !self.workers.contains_key(&session.worker) {
            self.part(id);
        }
    }

    /// The session ended in peace.
    fn part(&mut self, id: u64) {
        if let Some(Way::Relayed(relay)) = self.remove(id).map(|session| session.way) {
            self.close(relay.into_host(), "the session ended");
        }
    }

    fn refuse_session(&mut self, id: u64, code: ErrorCode, message: &str) {
        match self.remove(id).map(|session| session.way) {
            Some(Way::Direct(socket)) => {
                tracing::warn!(message, "a session is refused");
                last_word(&socket, code, message);
            }
            Some(Way::Relayed(relay)) => {
                let host = relay.into_host();
                tracing::warn!(peer = host.peer(), message, "a session is refused");
                self.leave(host, &Refusal { code: code as u32, message: message.to_owned() });
            }
            None => {}
        }
    }

    /// The client left.
    fn end(&mut self, id: u64) {
        let Some(session) = self.remove(id) else { return };
        // Nobody waits for what its worker may compute for it.
        if let Some(worker) = self.workers.get(&session.worker) {
            let doing = worker.watched.look();
            if doing.connection == Some(id) {
                let shared = if worker.sessions.is_empty() { 1 } else { SHARED_PATIENCE };
                let until = Instant::now() + self.operator_max * shared;
                self.forsaken.push((session.worker, doing.begun, until));
            }
        }
        if let Way::Relayed(relay) = session.way {
            self.close(relay.into_host(), "the session ended");
        }
    }

    fn remove(&mut self, id: u64) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        match &session.way {
            Way::Direct(socket) => drop(epoll::delete(&self.epoll, socket)),
            Way::Relayed(relay) => {
                let _ = epoll::delete(&self.epoll, relay.host.event_fd());
                let _ = epoll::delete(&self.epoll, relay.worker_fd());
            }
        }
        if let Some(worker) = self.workers.get_mut(&session.worker) {
            worker.sessions.remove(&id);
            if worker.sessions.is_empty() {
                worker.idle_since = Some(Instant::now());
            }
        }
        self.reopen_doors();
        Some(session)
    }

    /// There is a descriptor again.
    fn reopen_doors(&mut self) {
        let now = Instant::now();
        for shut in self.entrances.iter_mut().filter_map(|entrance| entrance.shut_until.as_mut()) {
            *shut = now;
        }
    }

    /// Says a last word over a link, and sees that it arrives.
    fn leave(&mut self, mut link: Box<dyn Link>, words: &Refusal) {
        if let Err(error) = link.post_send(FrameKind::Refusal, &[&words.encode_to_vec()], None) {
            tracing::debug!(%error, "the peer does not take its refusal");
        }
        self.close(link, &words.message);
    }

    /// Ends a link in order, and sees that what was posted arrives.
    fn close(&mut self, mut link: Box<dyn Link>, why: &str) {
        if link.close(why) {
            self.lingering.push((link, Instant::now() + LINGER));
        }
    }

    fn drive_lingering(&mut self) {
        self.lingering.retain_mut(|(link, until)| {
            Instant::now() < *until && link.drive().is_ok() && link.poll().is_ok()
        });
    }

    // Workers.

    /// The worker of an identity on a device, if there is one.
    fn worker_of(&self, key: &(String, u32)) -> Option<u64> {
        let there = |worker: &Worker| worker.key == *key && worker.ending.is_none();
        self.workers.iter().find(|(_, worker)| there(worker)).map(|(id, _)| *id)
    }

    /// The worker of an identity on a device, which is started if there is none.
    fn worker(&mut self, identity: String, device: u32) -> Result<u64, String> {
        let key = (identity, device);
        if let Some(id) = self.worker_of(&key) {
            return Ok(id);
        }
        if self.workers.len() >= WORKERS_MAX {
            return Err(format!("the node has {WORKERS_MAX} workers already"));
        }
        let failed = |error: &dyn std::fmt::Display| format!("a worker cannot be started: {error}");
        let (channel, other) = Channel::pair().map_err(|error| failed(&error))?;
        let (watched, page) = Watched::new().map_err(|error| failed(&error))?;
        let id = self.number();
        let interest = EventFlags::IN;
        watch(&self.epoll, channel.event_fd(), WORKER | id, interest)
            .map_err(|error| failed(&error))?;
        let fork = Fork {
            worker: id,
            device,
            limits: Some(self.limits[device as usize].0.clone()),
            devices: self.facts.devices.clone(),
            node_pid: std::process::id(),
        };
        let started = self.nursery.start(fork, other, page);
        self.watch_nursery();
        started?;
        let worker = Worker {
            channel,
            interest,
            watched,
            key,
            pid: 0,
            sessions: Default::default(),
            idle_since: Some(Instant::now()),
            ending: None,
            asked: false,
            overdue: false,
        };
        self.workers.insert(id, worker);
        Ok(id)
    }

    /// `false` when the worker is gone.
    fn post(&mut self, id: u64, message: Message, fds: Vec<OwnedFd>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        match worker.channel.post(message, fds) {
            Ok(()) => {
                self.watch_worker(id);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "a worker does not hear");
                false
            }
        }
    }

    fn hear_worker(&mut self, id: u64) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let heard = worker.channel.flush().and_then(|()| worker.channel.poll());
            let (said, mut fds) = match heard {
                Ok(Some(said)) => said,
                Ok(None) => break,
                Err(error) => {
                    if !matches!(error, genie_channel::ChannelError::Closed) {
                        tracing::warn!(pid = worker.pid, %error, "a worker is ended");
                        self.nursery.end(id);
                    }
                    return self.channel_ended(id);
                }
            };
            match said {
                Message::SessionEnded(ended) => {
                    let connection = ended.connection;
                    if let Some(session) = self.sessions.get_mut(&connection)
                        && session.worker == id
                    {
                        session.ended = true;
                        // A relayed one goes when its last words were passed on.
                        let is_done = match &session.way {
                            Way::Direct(_) => true,
                            Way::Relayed(relay) => relay.has_parted(),
                        };
                        if is_done {
                            self.part(connection);
                        }
                    }
                }
                Message::Leaving(leaving) => {
                    let fd = fds.pop().expect("the channel checked that it came");
                    self.moves.leaving(id, leaving.id, leaving.bytes, fd, &self.epoll);
                }
                Message::Copied(copied) => self.moves.copied(id, copied.id, copied.bytes),
                Message::NotLeaving(not) => {
                    self.moves.not_leaving(id, not.id, not.reason, &self.epoll);
                }
                Message::Fetch(wanted) => {
                    let fd = fds.pop().expect("the channel checked that it came");
                    match WeightFetch::decode(&wanted.fetch[..]) {
                        Ok(fetch) => self.moves.fetch(id, wanted.id, &fetch, fd, &self.epoll),
                        Err(_) => self.nursery.end(id),
                    }
                }
                Message::Unfetch(unfetch) => self.moves.unfetch(id, unfetch.id, &self.epoll),
                Message::Confined(confined) => {
                    let missing = confined.missing.join("; ");
                    if confined.is_weak && !std::mem::replace(&mut self.told_weak, true) {
                        tracing::warn!(
                            "workers are not closed in: the kernel lacks {missing}. Serve only \
                             clients that you would let run programs on this machine"
                        );
                    } else if confined.wanted && !missing.is_empty() {
                        tracing::info!(
                            "a worker is closed in, but for what the kernel lacks: {missing}"
                        );
                    }
                }
                _ => self.nursery.end(id),
            }
        }
        self.watch_worker(id);
    }

    /// Messages that a worker did not take at once go when it does.
    fn watch_worker(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, worker.channel.wants_write());
        if flags != worker.interest {
            worker.interest = flags;
            let data = epoll::EventData::new_u64(WORKER | id);
            let _ = epoll::modify(&self.epoll, worker.channel.event_fd(), data, flags);
        }
    }

    /// Nothing comes from a worker any more; how it ended is told soon.
    fn channel_ended(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let _ = epoll::delete(&self.epoll, worker.channel.event_fd());
        worker.ending.get_or_insert(Instant::now() + OBITUARY_MAX);
    }

    fn hear_nursery(&mut self) {
        while let Some(told) = self.nursery.poll() {
            match told {
                Told::Forked(forked) if forked.failed.is_empty() => {
                    if let Some(worker) = self.workers.get_mut(&forked.worker) {
                        worker.pid = forked.pid;
                    }
                }
                Told::Forked(forked) => {
                    self.bury(
                        forked.worker,
                        &format!("it could not be started: {}", forked.failed),
                    );
                }
                Told::Ended(ended) => {
                    let Some(worker) = self.workers.get(&ended.worker) else { continue };
                    let how = describe(&ended, &worker.watched.look().operator, worker.overdue);
                    self.bury(ended.worker, &how);
                }
                Told::Lost(why) => {
                    tracing::error!("all workers are lost: {why}");
                    let all: Vec<u64> = self.workers.keys().copied().collect();
                    all.into_iter().for_each(|id| self.bury(id, &why));
                }
            }
        }
        self.watch_nursery();
    }

    /// A worker is dead: its sessions are told, and nobody else notices.
    fn bury(&mut self, id: u64, how: &str) {
        // What it said before, its sessions' last words among it, is heard first.
        self.hear_worker(id);
        let Some(worker) = self.workers.remove(&id) else { return };
        let _ = epoll::delete(&self.epoll, worker.channel.event_fd());
        self.forsaken.retain(|(forsaken, _, _)| *forsaken != id);
        self.moves.worker_gone(id, &self.epoll);
        let sessions = worker.sessions.len();
        if !worker.asked || sessions > 0 {
            tracing::warn!(pid = worker.pid, sessions, "a worker is gone: {how}");
        }
        let message = format!(
            "the process that ran this session's operators on the node {how}; its tensors are lost, \
             sessions of other clients are not touched"
        );
        for session in worker.sessions {
            if let Some(Session { way: Way::Relayed(relay), .. }) = self.sessions.get_mut(&session)
            {
                // What it said before is passed on.
                let _ = relay.turn();
            }
            self.refuse_session(session, ErrorCode::NodeLost, &message);
        }
    }

    fn watch_nursery(&mut self) {
        // It may be another descriptor under the same number: what fails is watched already.
        let Some(fd) = self.nursery.event_fd() else { return };
        if let Err(error) = watch(&self.epoll, fd, NURSERY, EventFlags::IN)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, "the workers' ends cannot be watched");
        }
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
            worker.overdue = true;
            worker.ending.get_or_insert(now + OBITUARY_MAX);
            self.nursery.end(id);
        }
    }

    // Weights.

    fn admit_serving(&mut self, id: u64, serve: WeightServe) -> Result<(), (ErrorCode, String)> {
        if self.serving.len() >= SERVING_MAX {
            let message = format!("{SERVING_MAX} connections have weights served already");
            return Err((ErrorCode::Unavailable, message));
        }
        let newcomer = self.take_newcomer(id).expect("it was just there");
        let here = matches!(newcomer.who, Who::Here(_));
        let link = newcomer.into_link();
        let Ok(mut link) = link else { return Ok(()) };
        if here {
            // It was only looked at.
            let _ = link.poll();
        }
        if let Err(error) = watch(&self.epoll, link.event_fd(), SERVING | id, EventFlags::IN) {
            let words = Refusal { code: ErrorCode::Unavailable as u32, message: error.to_string() };
            self.leave(link, &words);
            return Ok(());
        }
        self.serving.insert(id, link);
        self.serve(id, &serve);
        // More may have come with it.
        self.serve_host(id);
        Ok(())
    }

    /// A host that has weights served says something.
    fn serve_host(&mut self, id: u64) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(link) = self.serving.get_mut(&id) else { return };
            let polled = link.flush().and_then(|()| link.poll());
            let refused = match polled {
                Ok(None) => return,
                Ok(Some(frame)) if frame.kind == FrameKind::WeightServe => {
                    match WeightServe::decode(&frame.body[..]) {
                        Ok(serve) => {
                            self.serve(id, &serve);
                            continue;
                        }
                        Err(error) => Some(error.to_string()),
                    }
                }
                Ok(Some(frame)) => Some(format!("{:?} came where weights are served", frame.kind)),
                Err(error) => error.is_refusable().then(|| error.to_string()),
            };
            let link = self.serving.remove(&id).expect("it just spoke");
            let _ = epoll::delete(&self.epoll, link.event_fd());
            if let Some(message) = refused {
                self.leave(link, &Refusal { code: ErrorCode::Protocol as u32, message });
            }
            return;
        }
    }

    /// Gives a weight of a client of this host to another node.
    fn serve(&mut self, id: u64, serve: &WeightServe) {
        let Some(link) = self.serving.get(&id) else { return };
        let peer = link.peer_identity();
        let worker = self.worker_of(&(peer.clone(), serve.device));
        let count = self.facts.devices.len();
        let asked = match worker {
            _ if serve.device as usize >= count => {
                Err(format!("device {} does not exist, the node has {count}", serve.device))
            }
            None => Err("the weight is not, or no longer, in the node's store".to_owned()),
            Some(_) if serve.identity.len() > STRING_BYTES_MAX => {
                Err("the client's identity is too long".to_owned())
            }
            Some(worker) => {
                self.moves.serve(serve, message::identity(&peer, &serve.identity), id, worker)
            }
        };
        if let Err(refused) = asked {
            self.answer_serve(id, WeightServing { refused, ..WeightServing::default() });
        }
    }

    fn answer_serve(&mut self, id: u64, answer: WeightServing) {
        if let Some(link) = self.serving.get_mut(&id)
            && let Err(error) =
                link.post_send(FrameKind::WeightServing, &[&answer.encode_to_vec()], None)
        {
            tracing::debug!(%error, "a host is not told of a weight");
        }
    }

    fn move_weights(&mut self) {
        self.moves.turns(&self.epoll);
        for said in self.moves.said() {
            match said {
                Said::ToWorker(worker, message) => {
                    self.post(worker, message, vec![]);
                }
                Said::ToHost(host, answer) => self.answer_serve(host, answer),
            }
        }
    }
}

/// A relay, and the socket for its worker, to whom the hello is passed on.
fn relay(host: Box<dyn Link>, hello: &Hello) -> Result<(Relay, OwnedFd), String> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let failed = |error: &dyn std::fmt::Display| format!("a session cannot be passed on: {error}");
    let (mine, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed(&error))?;
    let link = UnixLink::over(mine).map_err(|error| failed(&error))?;
    let mut relay = Relay::new(host, link);
    relay.begin(FrameKind::Hello, &hello.encode_to_vec()).map_err(|error| failed(&error))?;
    Ok((relay, its))
}

fn set_interests(epoll: &OwnedFd, id: u64, relay: &mut Relay) -> std::io::Result<()> {
    let (host, worker) = relay.interests();
    if host != relay.host_interest {
        relay.host_interest = host;
        let data = epoll::EventData::new_u64(HOST | id);
        epoll::modify(epoll, relay.host.event_fd(), data, host)?;
    }
    if worker != relay.worker_interest && !relay.has_parted() {
        relay.worker_interest = worker;
        let data = epoll::EventData::new_u64(RELAYED | id);
        epoll::modify(epoll, relay.worker_fd(), data, worker)?;
    }
    Ok(())
}

fn watch(
    epoll: impl AsFd,
    source: BorrowedFd<'_>,
    name: u64,
    flags: EventFlags,
) -> std::io::Result<()> {
    Ok(epoll::add(epoll, source, epoll::EventData::new_u64(name), flags)?)
}
