//! Weights on their way between this node and others, each over a data connection of its own: the
//! network's half.
//!
//! A host asks the node that has a weight to **serve** it ([`Moves::serve`]) and the node of its
//! session to **fetch** it ([`Moves::fetch`]); number and secret of the connection between the two
//! come from the host. The bytes lie in memory that the worker made for the move. Nothing blocks:
//! the gate's loop gives each move its turns.

mod incoming;
mod outgoing;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_channel::Message;
use genie_channel::message::{Fetched, Leave, Left};
use genie_remote::LinkSettings;
use genie_remote::message::TEXT_BYTES_MAX;
use genie_remote::moves::{MOVE_BYTES_MAX, deadline};
use genie_transport::SharedMemory;
use genie_transport::transport::{Completion, Connection, Listener, Options, Transport};
use genie_wire::control::{WeightFetch, WeightServe, WeightServing};
use genie_wire::record::WeightHash;
use rustix::event::epoll;

use crate::gate::{LINGER, LINGER_STEP};
use incoming::Incoming;
use outgoing::Outgoing;

/// Moves of a node at a time.
const MOVES_MAX: usize = 64;
/// How long moves may keep the sessions waiting.
const TURN: Duration = Duration::from_millis(5);
/// The window that a fetching node offers.
const WINDOW: u32 = 0;

/// How a move's turn ended.
enum Step {
    /// Nothing to do until its descriptor is readable.
    Wait,
    /// There is more to do at once.
    Busy,
    Done,
}

struct Move {
    cargo: Cargo,
    /// The worker whose weight it is.
    worker: u64,
    bytes: u64,
    until: Instant,
    runnable: bool,
}

enum Cargo {
    /// Its worker was asked for it.
    Asked(Asked),
    Out(Outgoing),
    /// With the worker's number for it.
    In(Incoming, u64),
}

/// A weight that a host wants to have served.
struct Asked {
    /// The host's connection.
    host: u64,
    listener: Box<dyn Listener>,
}

/// What the gate has to say of a move.
#[derive(Debug)]
pub(crate) enum Said {
    ToWorker(u64, Message),
    /// To the host that asked for a weight to be served, over its connection.
    ToHost(u64, WeightServing),
}

/// The moves of a node.
pub(crate) struct Moves {
    /// The transports; without them nothing moves.
    links: Option<Arc<LinkSettings>>,
    moves: BTreeMap<u64, Move>,
    next: u64,
    /// The one that had its turn last.
    last: u64,
    /// Connections whose last words are on their way.
    parting: Vec<(Box<dyn Connection>, Instant)>,
    said: Vec<Said>,
}

/// The wait set, and a move's name in it.
struct Watch<'a> {
    epoll: &'a OwnedFd,
    name: u64,
}

impl Watch<'_> {
    fn add(&self, fd: BorrowedFd<'_>) -> Result<(), String> {
        let data = epoll::EventData::new_u64(self.name);
        epoll::add(self.epoll.as_fd(), fd, data, epoll::EventFlags::IN)
            .map_err(|errno| format!("a connection cannot be watched: {errno}"))
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        // It was added, unless that failed.
        let _ = epoll::delete(self.epoll.as_fd(), fd);
    }
}

impl Moves {
    pub(crate) fn new(links: Option<Arc<LinkSettings>>) -> Self {
        Moves {
            links,
            moves: BTreeMap::new(),
            next: 1,
            last: 0,
            parting: Vec::new(),
            said: Vec::new(),
        }
    }

    /// What there is to say since the last look.
    pub(crate) fn said(&mut self) -> Vec<Said> {
        std::mem::take(&mut self.said)
    }

    /// Asks a worker for a weight that a host wants to have served; the answer to the host is
    /// [`Said::ToHost`].
    pub(crate) fn serve(
        &mut self,
        serve: &WeightServe,
        identity: String,
        host: u64,
        worker: u64,
    ) -> Result<(), String> {
        let links = self.links()?;
        self.check(1)?;
        if serve.hash.len() != WeightHash::default().len() {
            return Err("a weight's hash does not have 32 bytes".to_owned());
        }
        let (transport, options) =
            data(&links, &serve.transport, &links.data_address, serve.connection, &serve.secret)?;
        let listener = transport.listen(&options).map_err(|error| error.message)?;
        let id = self.next;
        let leave = Leave { id, identity, hash: serve.hash.clone() };
        self.said.push(Said::ToWorker(worker, Message::Leave(leave)));
        self.insert(Cargo::Asked(Asked { host, listener }), worker, 0, deadline(0));
        Ok(())
    }

    /// A worker gives a weight that it was asked for.
    pub(crate) fn leaving(
        &mut self,
        worker: u64,
        id: u64,
        bytes: u64,
        fd: OwnedFd,
        epoll: &OwnedFd,
    ) {
        let refused = self.check(bytes).err();
        let Some((asked, until)) = self.asked(worker, id) else {
            // It was given up meanwhile.
            self.said.push(Said::ToWorker(worker, Message::Left(Left { id, whole: false })));
            return;
        };
        let memory = SharedMemory::adopt(fd, bytes).map_err(|error| error.to_string());
        let begun = refused.map_or(Ok(()), Err).and(memory).and_then(|memory| {
            let watch = Watch { epoll, name: crate::gate::MOVE | id };
            watch.add(asked.listener.event_fd())?;
            Ok(memory)
        });
        match begun {
            Ok(memory) => {
                let address = asked.listener.address();
                let refused = String::new();
                self.said.push(Said::ToHost(asked.host, WeightServing { address, bytes, refused }));
                let cargo = Cargo::Out(Outgoing::new(Arc::new(memory), asked.listener));
                self.moves.insert(id, Move { cargo, worker, bytes, until, runnable: true });
            }
            Err(reason) => {
                self.said.push(Said::ToHost(asked.host, refusal(reason)));
                self.said.push(Said::ToWorker(worker, Message::Left(Left { id, whole: false })));
            }
        }
    }

    /// Takes out the move in which this worker was asked for a weight.
    fn asked(&mut self, worker: u64, id: u64) -> Option<(Asked, Instant)> {
        let asked = |one: &mut Move| one.worker == worker && matches!(one.cargo, Cargo::Asked(_));
        match self.moves.get_mut(&id).is_some_and(asked) {
            true => match self.moves.remove(&id)? {
                Move { cargo: Cargo::Asked(asked), until, .. } => Some((asked, until)),
                _ => None,
            },
            false => None,
        }
    }

    /// A worker copied so much of a weight.
    pub(crate) fn copied(&mut self, worker: u64, id: u64, bytes: u64) {
        if let Some(one) = self.moves.get_mut(&id)
            && one.worker == worker
            && let Cargo::Out(outgoing) = &mut one.cargo
        {
            outgoing.copied(bytes.min(one.bytes));
            one.runnable = true;
        }
    }

    /// A worker does not give a weight that it was asked for, or no more of it.
    pub(crate) fn not_leaving(&mut self, worker: u64, id: u64, reason: String, epoll: &OwnedFd) {
        if self.moves.get(&id).is_some_and(|one| one.worker == worker) {
            self.end(id, Err(reason), epoll);
        }
    }

    /// Fetches a weight from another node into a worker's memory; [`Fetched`] follows.
    pub(crate) fn fetch(
        &mut self,
        worker: u64,
        id: u64,
        fetch: &WeightFetch,
        fd: OwnedFd,
        epoll: &OwnedFd,
    ) {
        let begun = self.begin_fetch(fetch, fd, epoll);
        match begun {
            Ok(incoming) => {
                let wait = Duration::from_millis(fetch.deadline_ms.into());
                let wait = wait.min(deadline(fetch.bytes));
                self.insert(Cargo::In(incoming, id), worker, fetch.bytes, wait);
            }
            Err(failed) => {
                let fetched = Message::Fetched(Fetched { id, failed });
                self.said.push(Said::ToWorker(worker, fetched));
            }
        }
    }

    fn begin_fetch(
        &self,
        fetch: &WeightFetch,
        fd: OwnedFd,
        epoll: &OwnedFd,
    ) -> Result<Incoming, String> {
        let links = self.links()?;
        self.check(fetch.bytes)?;
        let memory = SharedMemory::adopt(fd, fetch.bytes).map_err(|error| error.to_string())?;
        let (transport, options) =
            data(&links, &fetch.transport, &fetch.address, fetch.connection, &fetch.secret)?;
        let data = transport.connect(&options).map_err(|error| error.message)?;
        self.watch(epoll).add(data.event_fd())?;
        Ok(Incoming::new(Arc::new(memory), data))
    }

    /// Nobody waits for a weight any more.
    pub(crate) fn unfetch(&mut self, worker: u64, fetch: u64, epoll: &OwnedFd) {
        let wanted = |one: &Move| {
            one.worker == worker && matches!(&one.cargo, Cargo::In(_, id) if *id == fetch)
        };
        let ids: Vec<u64> =
            self.moves.iter().filter(|(_, one)| wanted(one)).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, Err("the session ended".to_owned()), epoll);
        }
    }

    /// A worker is gone, and with it what it gave and wanted.
    pub(crate) fn worker_gone(&mut self, worker: u64, epoll: &OwnedFd) {
        let ids: Vec<u64> =
            self.moves.iter().filter(|(_, one)| one.worker == worker).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, Err("the worker that had it ended".to_owned()), epoll);
        }
    }

    fn links(&self) -> Result<Arc<LinkSettings>, String> {
        self.links.clone().ok_or_else(|| "the node has no transports to others".to_owned())
    }

    fn check(&self, bytes: u64) -> Result<(), String> {
        match bytes {
            0 => Err("there is nothing to move".to_owned()),
            bytes if bytes > MOVE_BYTES_MAX => {
                Err(format!("it has {bytes} bytes, at most {MOVE_BYTES_MAX} move"))
            }
            _ if self.moves.len() >= MOVES_MAX => {
                Err(format!("{} weights move already", self.moves.len()))
            }
            _ => Ok(()),
        }
    }

    /// For the move that begins now.
    fn watch<'a>(&self, epoll: &'a OwnedFd) -> Watch<'a> {
        Watch { epoll, name: crate::gate::MOVE | self.next }
    }

    fn insert(&mut self, cargo: Cargo, worker: u64, bytes: u64, wait: Duration) {
        let until = Instant::now() + wait;
        self.moves.insert(self.next, Move { cargo, worker, bytes, until, runnable: true });
        self.next += 1;
    }

    /// The descriptor of a move is readable.
    pub(crate) fn notice(&mut self, id: u64) {
        if let Some(one) = self.moves.get_mut(&id) {
            one.runnable = true;
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.moves.values().any(|one| one.runnable)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// When a turn is due although nothing happens.
    pub(crate) fn due(&self) -> Option<Instant> {
        let parting = (!self.parting.is_empty()).then(|| Instant::now() + LINGER_STEP);
        self.moves.values().map(|one| one.until).chain(parting).min()
    }

    /// Gives moves that can do something their turns, as far as time allows, one after the other.
    pub(crate) fn turns(&mut self, epoll: &OwnedFd) {
        self.part();
        let now = Instant::now();
        let due = |one: &Move| one.runnable || one.until <= now;
        let mut due: Vec<u64> =
            self.moves.iter().filter(|(_, one)| due(one)).map(|(id, _)| *id).collect();
        due.sort_unstable_by_key(|id| (*id <= self.last, *id));
        for id in due {
            if now.elapsed() > TURN {
                break;
            }
            self.last = id;
            let Some(one) = self.moves.get_mut(&id) else { continue };
            let watch = Watch { epoll, name: crate::gate::MOVE | id };
            let turn = AssertUnwindSafe(|| one.turn(&watch, &mut self.parting));
            let step = catch_unwind(turn)
                .unwrap_or_else(|_| Err("the node failed inside".to_owned()))
                .and_then(|step| match step {
                    Step::Wait | Step::Busy if one.until <= now => {
                        Err("it took longer than its deadline".to_owned())
                    }
                    step => Ok(step),
                });
            match step {
                Ok(Step::Wait) => one.runnable = false,
                Ok(Step::Busy) => one.runnable = true,
                Ok(Step::Done) => self.end(id, Ok(()), epoll),
                Err(reason) => self.end(id, Err(reason), epoll),
            }
        }
    }

    fn end(&mut self, id: u64, ended: Result<(), String>, epoll: &OwnedFd) {
        let watch = Watch { epoll, name: crate::gate::MOVE | id };
        let Some(Move { cargo, worker, .. }) = self.moves.remove(&id) else { return };
        let failed = ended.as_ref().err().cloned();
        match cargo {
            Cargo::Asked(asked) => {
                let reason = failed.unwrap_or_else(|| "it was given up".to_owned());
                self.said.push(Said::ToHost(asked.host, refusal(reason)));
            }
            Cargo::Out(outgoing) => {
                if let Some(reason) = failed {
                    tracing::warn!("a weight is not given to another node: {reason}");
                }
                outgoing.end(&watch, &mut self.parting);
                let left = Message::Left(Left { id, whole: ended.is_ok() });
                self.said.push(Said::ToWorker(worker, left));
            }
            Cargo::In(incoming, fetch) => {
                incoming.end(&watch);
                let fetched = Fetched { id: fetch, failed: failed.unwrap_or_default() };
                self.said.push(Said::ToWorker(worker, Message::Fetched(fetched)));
            }
        }
    }

    /// Drives connections that are about to end.
    fn part(&mut self) {
        let (now, mut completions) = (Instant::now(), Vec::<Completion>::new());
        self.parting.retain_mut(|(connection, until)| {
            completions.clear();
            now < *until && connection.poll(&mut completions).is_ok()
        });
    }
}

impl Move {
    fn turn(
        &mut self,
        watch: &Watch<'_>,
        parting: &mut Vec<(Box<dyn Connection>, Instant)>,
    ) -> Result<Step, String> {
        match &mut self.cargo {
            Cargo::Asked(_) => Ok(Step::Wait),
            Cargo::Out(outgoing) => {
                let waited = outgoing.waits();
                let step = outgoing.turn(watch);
                if waited && !outgoing.waits() {
                    self.until = Instant::now() + deadline(self.bytes);
                }
                step
            }
            Cargo::In(incoming, _) => incoming.turn(watch, parting),
        }
    }
}

fn refusal(refused: String) -> WeightServing {
    WeightServing { refused, ..WeightServing::default() }
}

/// Drives a connection that is not needed any more until its peer ended it, for a moment.
fn part_with(
    connection: Box<dyn Connection>,
    watch: &Watch<'_>,
    parting: &mut Vec<(Box<dyn Connection>, Instant)>,
) {
    watch.remove(connection.event_fd());
    parting.push((connection, Instant::now() + LINGER));
}

/// How to make the data connection that a host named.
fn data(
    links: &LinkSettings,
    transport: &str,
    address: &str,
    connection: u64,
    secret: &[u8],
) -> Result<(Arc<dyn Transport>, Options), String> {
    let secret = secret.try_into().map_err(|_| "the secret does not have 32 bytes".to_owned())?;
    let found = links.transport(transport).cloned();
    let found = found.ok_or_else(|| "the node does not have this transport".to_owned())?;
    if address.len() > TEXT_BYTES_MAX {
        return Err("the address is too long".to_owned());
    }
    Ok((found, links.data_options(transport, address, connection, secret)))
}
