//! Serving sessions: one thread waits for connections of one device and executes their tapes.
//!
//! Nothing is handed between threads on the way of a record: the thread that reads a frame runs
//! its operators and writes the answer. Sessions take turns bounded in records and in time.

mod connection;
mod door;
mod mailbox;
mod moves;
mod quotas;
mod relief;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_remote::LinkSettings;
use genie_transport::transport::Cause;
use genie_transport::{Link, LinkError};
use genie_wire::ErrorCode;
use genie_wire::control::{Device, Hello};
use rustix::event::{Timespec, epoll};

use crate::{Backend, Executor, SessionSettings};
use connection::{Connection, First, Turn};
pub use door::Door;
pub use mailbox::{Mailbox, Order};
use moves::Moves;
pub use quotas::{QuotaLimits, Quotas};
pub use relief::Relief;

/// What a node tells its clients, the same for all of its devices.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name and version of this program.
    pub software: String,
    /// Version of libtorch.
    pub torch: String,
    pub devices: Vec<Device>,
    /// Connections each device serves at a time.
    pub sessions_max: usize,
    /// CPU threads for clients that do not say how many.
    pub threads: u32,
}

/// What a server is made of.
pub struct ServerParts<B: Backend> {
    pub executor: Executor<B>,
    pub facts: Arc<NodeFacts>,
    /// Schema hashes of the operators the device runs.
    pub ops: Vec<u64>,
    /// One per device, in order.
    pub mailboxes: Arc<[Mailbox]>,
    /// This server's.
    pub device: usize,
    /// They belong to the server of device 0, which passes connections on to the others.
    pub doors: Vec<Door>,
    pub quotas: Arc<Quotas>,
    /// The transports by which weights move between nodes; without them none do.
    pub links: Option<Arc<LinkSettings>>,
}

/// Serves one device of a node.
pub struct Server<B: Backend> {
    executor: Executor<B>,
    facts: Arc<NodeFacts>,
    /// Schema hashes of the operators the device runs.
    ops: Vec<u64>,
    epoll: OwnedFd,
    entrances: Vec<Entrance>,
    /// What new sessions are told, once the node was asked to stop.
    turned_away: Option<String>,
    quotas: Arc<Quotas>,
    /// Links whose last words are on their way, and when they are dropped anyway.
    lingering: Vec<(Box<dyn Link>, Instant)>,
    /// One per device, in order; `mailboxes[device]` is this server's own.
    mailboxes: Arc<[Mailbox]>,
    device: usize,
    moves: Moves<B>,
    connections: BTreeMap<u64, Connection<B>>,
    next_connection: u64,
    next_session: u64,
}

/// A way in.
struct Entrance {
    door: Door,
    /// It fails (descriptors ran out, most likely): it is not watched before this moment.
    shut_until: Option<Instant>,
    /// One failure is told, and then none until a connection came in.
    told: bool,
}

/// Names of descriptors in the wait set; doors count up from `DOOR`, connections from
/// `CONNECTION`, moves of weights from `MOVE`.
const MAILBOX: u64 = 0;
const DOOR: u64 = 1;
const CONNECTION: u64 = DOOR + DOORS_MAX as u64;
const MOVE: u64 = 1 << 63;
/// Ways into one node.
const DOORS_MAX: usize = 16;
/// How long a link's last words may take.
const LINGER: Duration = Duration::from_secs(1);
/// How often lingering links are looked at.
const LINGER_STEP: Duration = Duration::from_millis(20);
/// How long a door that fails is left alone. A connection that ends opens it at once.
const SHUT_FOR: Duration = Duration::from_millis(100);
/// Failures of single peers in one look at a door; more of them are the door's own.
const FAILURES_MAX: usize = 128;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl<B: Backend> Server<B> {
    pub fn new(parts: ServerParts<B>) -> std::io::Result<Self> {
        let ServerParts { executor, facts, ops, mailboxes, device, doors, quotas, links } = parts;
        assert!(doors.len() <= DOORS_MAX, "the command line allows fewer");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, mailboxes[device].event_fd(), MAILBOX)?;
        for (name, door) in (DOOR..).zip(&doors) {
            watch(&epoll, door.event_fd(), name)?;
        }
        Ok(Server {
            executor,
            facts,
            ops,
            epoll,
            entrances: doors
                .into_iter()
                .map(|door| Entrance { door, shut_until: None, told: false })
                .collect(),
            turned_away: None,
            quotas,
            lingering: Vec::new(),
            mailboxes,
            device,
            moves: Moves::new(links),
            connections: BTreeMap::new(),
            next_connection: CONNECTION,
            next_session: 1,
        })
    }

    /// Serves until the mailbox says stop. Removes the socket's file at the end.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let busy = self.connections.values().any(|connection| connection.runnable)
                || self.moves.is_busy();
            events.clear();
            let timeout = if busy { Some(NOW) } else { self.sleep_max() };
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                self.notice(event.data.u64(), event.flags);
            }
            for order in self.mailboxes[self.device].orders() {
                match order {
                    Order::Drain(why) => self.turned_away = Some(why),
                    Order::Stop(why) => {
                        self.cut(&why);
                        return Ok(());
                    }
                }
            }
            self.open_doors();
            self.wake_throttled();
            self.take_turns();
            self.move_weights();
            self.drive_lingering();
            if let Some(why) = self.turned_away.clone()
                && self.is_drained()
            {
                self.cut(&why);
                return Ok(());
            }
        }
    }

    /// Whether no session runs any more, nor any move of a weight.
    fn is_drained(&self) -> bool {
        !self.moves.is_busy() && !self.connections.values().any(Connection::is_open)
    }

    /// Tells everybody why the node leaves them, and gives the words a moment to arrive.
    fn cut(&mut self, why: &str) {
        for (_, mut connection) in std::mem::take(&mut self.connections) {
            connection::refuse(connection.link.as_mut(), ErrorCode::NodeLost, why);
            if connection.link.close(why) {
                self.lingering.push((connection.into_link(), Instant::now() + LINGER));
            }
        }
        self.drive_lingering();
        while !self.lingering.is_empty() {
            std::thread::sleep(LINGER_STEP);
            self.drive_lingering();
        }
    }

    /// How long to wait for events: until a client may send again, a link's end is looked at or a
    /// move takes too long.
    fn sleep_max(&self) -> Option<Timespec> {
        let throttled = self.connections.values().filter_map(|connection| connection.throttled);
        let now = Instant::now();
        let shut = self.entrances.iter().filter_map(|entrance| entrance.shut_until);
        let due = throttled.chain(shut).chain(self.moves.due()).min();
        let due = due.map(|until| until.saturating_duration_since(now));
        let linger = (!self.lingering.is_empty()).then_some(LINGER_STEP);
        let wait = due.into_iter().chain(linger).min()?;
        // Rounded up, so that the moment has come when the wait ends.
        Timespec::try_from(wait + Duration::from_micros(50)).ok()
    }

    fn wake_throttled(&mut self) {
        for connection in self.connections.values_mut() {
            if connection.throttled.is_some_and(|until| until <= Instant::now()) {
                connection.runnable = true;
            }
        }
    }

    fn drive_lingering(&mut self) {
        self.lingering.retain_mut(|(link, until)| {
            Instant::now() < *until && link.drive().is_ok() && link.poll().is_ok()
        });
    }

    fn notice(&mut self, source: u64, flags: epoll::EventFlags) {
        match source {
            MAILBOX => {
                for (link, first) in self.mailboxes[self.device].take() {
                    self.adopt(link, Some(first));
                }
            }
            name if name & MOVE != 0 => self.moves.notice(name),
            door if door < CONNECTION => self.accept((door - DOOR) as usize),
            id => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.runnable = true;
                    connection.gone |=
                        flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                }
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let Some(entrance) = self.entrances.get_mut(index) else { return };
        let (mut accepted, mut failures) = (Vec::new(), 0);
        loop {
            let error = match entrance.door.accept() {
                Ok(Some(link)) => {
                    accepted.push(link);
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
        for link in accepted {
            self.adopt(link, None);
        }
    }

    /// Watches doors again whose time has come.
    fn open_doors(&mut self) {
        let now = Instant::now();
        for (name, entrance) in (DOOR..).zip(&mut self.entrances) {
            if entrance.shut_until.is_some_and(|until| until <= now) {
                entrance.shut_until = match watch(&self.epoll, entrance.door.event_fd(), name) {
                    Ok(()) => None,
                    // It is watched still.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                    Err(_) => Some(now + SHUT_FOR),
                };
            }
        }
    }

    fn adopt(&mut self, mut link: Box<dyn Link>, first: Option<First>) {
        let max = self.facts.sessions_max;
        let full = || {
            format!(
                "the node serves {max} connections already; close one, or start it with a larger \
                 --max-sessions"
            )
        };
        let refused = match &self.turned_away {
            Some(why) => Some(why.clone()),
            None => (self.connections.len() >= max).then(full),
        };
        if let Some(message) = refused {
            tracing::warn!(message, "a connection is refused");
            connection::refuse(link.as_mut(), ErrorCode::Unavailable, &message);
            if link.close(&message) {
                self.lingering.push((link, Instant::now() + LINGER));
            }
            return;
        }
        let id = self.next_connection;
        self.next_connection += 1;
        match watch(&self.epoll, link.event_fd(), id) {
            Ok(()) => drop(self.connections.insert(id, Connection::new(link, first))),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be watched");
                let message = format!("the node cannot take one more connection: {error}");
                connection::refuse(link.as_mut(), ErrorCode::Unavailable, &message);
            }
        }
    }

    fn take_turns(&mut self) {
        let runnable: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.runnable)
            .map(|(id, _)| *id)
            .collect();
        for id in runnable {
            self.with_connection(id, |connection, host| connection.turn(host));
        }
    }

    fn move_weights(&mut self) {
        for arrival in self.moves.turns(&mut self.executor, &self.epoll) {
            // Moves end with their connection, so it is there.
            let id = arrival.connection;
            self.with_connection(id, |connection, host| connection.weight_came(arrival, host));
        }
    }

    /// Lets a connection do something, and draws the consequences.
    fn with_connection(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Connection<B>, &mut Host<'_, B>) -> Turn,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut host = Host {
            executor: &mut self.executor,
            facts: &self.facts,
            ops: &self.ops,
            device: self.device,
            quotas: &self.quotas,
            next_session: &mut self.next_session,
            moves: &mut self.moves,
            epoll: &self.epoll,
            connection: id,
            turned_away: self.turned_away.as_deref(),
        };
        match act(connection, &mut host) {
            Turn::Continue => {
                if let Err(error) = self.set_interest(id) {
                    tracing::warn!(%error, "a connection cannot be watched any more");
                    self.end(id);
                }
            }
            Turn::End => self.end(id),
            Turn::Handover(first) => {
                let device = first.device();
                let connection = self.remove(id).expect("it just had its turn");
                self.mailboxes[device].deliver(connection.into_link(), first);
            }
        }
    }

    fn set_interest(&mut self, id: u64) -> std::io::Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let mut flags = epoll::EventFlags::empty();
        let reads = !connection.paused && connection.throttled.is_none();
        let reads = reads || connection.link.needs_drive();
        flags.set(epoll::EventFlags::IN, reads);
        flags.set(epoll::EventFlags::OUT, connection.link.wants_write());
        if flags != connection.interest {
            connection.interest = flags;
            let data = epoll::EventData::new_u64(id);
            epoll::modify(&self.epoll, connection.link.event_fd(), data, flags)?;
        }
        Ok(())
    }

    fn remove(&mut self, id: u64) -> Option<Connection<B>> {
        let connection = self.connections.remove(&id)?;
        // Closing the descriptor would do as well, were it not passed on.
        if let Err(error) = epoll::delete(&self.epoll, connection.link.event_fd()) {
            tracing::debug!(%error, "a connection was not watched");
        }
        Some(connection)
    }

    fn end(&mut self, id: u64) {
        self.moves.cancel(id, &mut self.executor, &self.epoll);
        if let Some(connection) = self.remove(id)
            && let Some(link) = connection.end(&mut self.executor)
        {
            self.lingering.push((link, Instant::now() + LINGER));
        }
        // There is a descriptor again.
        let now = Instant::now();
        for shut in self.entrances.iter_mut().filter_map(|entrance| entrance.shut_until.as_mut()) {
            *shut = now;
        }
    }
}

/// What a connection's turn may use.
struct Host<'a, B: Backend> {
    executor: &'a mut Executor<B>,
    facts: &'a NodeFacts,
    ops: &'a [u64],
    device: usize,
    quotas: &'a Arc<Quotas>,
    next_session: &'a mut u64,
    moves: &'a mut Moves<B>,
    epoll: &'a OwnedFd,
    /// The number of the connection whose turn it is.
    connection: u64,
    /// What a new session is told, once the node was asked to stop.
    turned_away: Option<&'a str>,
}

impl<B: Backend> Host<'_, B> {
    fn settings(&self, hello: &Hello, peer: &str) -> SessionSettings {
        let threads = if hello.threads == 0 { self.facts.threads } else { hello.threads };
        let threads_fixed = hello.threads_fixed;
        SessionSettings { identity: identity(peer, &hello.identity), threads, threads_fixed }
    }
}

/// What a host says of its client holds within what the host itself proved to be.
fn identity(peer: &str, client: &str) -> String {
    match peer.is_empty() {
        true => client.to_owned(),
        false => format!("{peer}/{client}"),
    }
}

fn watch(epoll: impl AsFd, source: BorrowedFd<'_>, name: u64) -> std::io::Result<()> {
    let data = epoll::EventData::new_u64(name);
    Ok(epoll::add(epoll, source, data, epoll::EventFlags::IN)?)
}

/// Whether a link's error is the peer's fault and worth telling it.
fn is_refusable(error: &LinkError) -> bool {
    match error {
        LinkError::Wire(_) | LinkError::Memory(_) => true,
        LinkError::Transport(error) => error.cause == Cause::Protocol,
        _ => false,
    }
}

#[cfg(test)]
#[path = "serve_moves_tests.rs"]
mod moves_tests;
#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
