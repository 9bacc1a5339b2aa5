//! Weights on their way between this node and others, each over a data connection of its own.
//!
//! A host asks the node that has a weight to **serve** it ([`Moves::serve`]) and the node of its
//! session to **fetch** it ([`Moves::fetch`]); number and secret of the connection between the two
//! come from the host. Nothing blocks: the server's loop gives each move its turns.

mod incoming;
mod outgoing;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_remote::LinkSettings;
use genie_remote::message::TEXT_BYTES_MAX;
use genie_remote::moves::{MOVE_BYTES_MAX, deadline};
use genie_transport::transport::{Completion, Connection, Options, Transport};
use genie_wire::control::{WeightFetch, WeightServe};
use genie_wire::record::WeightHash;
use rustix::event::epoll;

use super::{LINGER, LINGER_STEP};
use crate::transit::Arriving;
use crate::{Backend, Executor, Session};
use incoming::Incoming;
use outgoing::Outgoing;

/// Moves of one device at a time.
const MOVES_MAX: usize = 16;
/// Bytes of the copies that the network reads and writes.
const STAGED_BYTES_MAX: u64 = 2 << 30;
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

struct Move<B: Backend> {
    cargo: Cargo<B>,
    bytes: u64,
    until: Instant,
    runnable: bool,
}

enum Cargo<B: Backend> {
    Out(Outgoing<B::Storage>),
    In(Box<Incoming<B::Storage>>),
}

/// What became of a fetch.
pub(super) struct Arrival<S> {
    /// The connection whose session asked, and its question.
    pub(super) connection: u64,
    pub(super) token: u64,
    pub(super) storage: u64,
    pub(super) weight: Result<Arriving<S>, String>,
}

/// The moves of one device.
pub(super) struct Moves<B: Backend> {
    /// The transports; without them nothing moves.
    links: Option<Arc<LinkSettings>>,
    moves: BTreeMap<u64, Move<B>>,
    next: u64,
    /// The one that had its turn last.
    last: u64,
    /// Connections whose last words are on their way.
    parting: Vec<(Box<dyn Connection>, Instant)>,
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

impl<B: Backend> Moves<B> {
    pub(super) fn new(links: Option<Arc<LinkSettings>>) -> Self {
        Moves { links, moves: BTreeMap::new(), next: 0, last: 0, parting: Vec::new() }
    }

    /// Waits for another node, to give it a weight. Returns where, and the weight's size.
    pub(super) fn serve(
        &mut self,
        serve: &WeightServe,
        identity: &str,
        executor: &mut Executor<B>,
        epoll: &OwnedFd,
    ) -> Result<(String, u64), String> {
        let (hash, links) = (weight_hash(&serve.hash)?, self.links()?);
        let (transport, options) =
            data(&links, &serve.transport, &links.data_address, serve.connection, &serve.secret)?;
        let leaving = executor.leave(identity, &hash).map_err(|failure| failure.message)?;
        let bytes = leaving.bytes();
        let begun = self.check(bytes).and_then(|()| {
            let listener = transport.listen(&options).map_err(|error| error.message)?;
            self.watch(epoll).add(listener.event_fd())?;
            Ok(listener)
        });
        match begun {
            Ok(listener) => {
                let address = listener.address();
                self.insert(Cargo::Out(Outgoing::new(leaving, listener)), bytes, deadline(0));
                Ok((address, bytes))
            }
            Err(reason) => {
                executor.left(leaving, false);
                Err(reason)
            }
        }
    }

    /// Fetches a weight from another node for the session of a connection; an [`Arrival`] follows.
    pub(super) fn fetch(
        &mut self,
        fetch: &WeightFetch,
        connection: u64,
        session: &Session<B>,
        executor: &mut Executor<B>,
        epoll: &OwnedFd,
    ) -> Result<(), String> {
        let (hash, links) = (weight_hash(&fetch.hash)?, self.links()?);
        self.check(fetch.bytes)?;
        let (transport, options) =
            data(&links, &fetch.transport, &fetch.address, fetch.connection, &fetch.secret)?;
        let arriving =
            executor.arrive(session, &hash, fetch.bytes).map_err(|failure| failure.message)?;
        let begun = transport.connect(&options).map_err(|error| error.message).and_then(|data| {
            self.watch(epoll).add(data.event_fd())?;
            Ok(data)
        });
        match begun {
            Ok(data) => {
                let wait = Duration::from_millis(fetch.deadline_ms.into());
                let wait = wait.min(deadline(fetch.bytes));
                let incoming = Incoming::new(arriving, data, connection, fetch);
                self.insert(Cargo::In(Box::new(incoming)), fetch.bytes, wait);
                Ok(())
            }
            Err(reason) => {
                executor.abandon(arriving);
                Err(reason)
            }
        }
    }

    fn links(&self) -> Result<Arc<LinkSettings>, String> {
        self.links.clone().ok_or_else(|| "the node has no transports to others".to_owned())
    }

    fn check(&self, bytes: u64) -> Result<(), String> {
        let staged: u64 = self.moves.values().map(|one| one.bytes).sum();
        match bytes {
            0 => Err("there is nothing to move".to_owned()),
            bytes if bytes > MOVE_BYTES_MAX => {
                Err(format!("it has {bytes} bytes, at most {MOVE_BYTES_MAX} move"))
            }
            bytes if self.moves.len() >= MOVES_MAX || staged + bytes > STAGED_BYTES_MAX => {
                Err(format!("{} weights ({staged} bytes) move already", self.moves.len()))
            }
            _ => Ok(()),
        }
    }

    /// For the move that begins now.
    fn watch<'a>(&self, epoll: &'a OwnedFd) -> Watch<'a> {
        Watch { epoll, name: super::MOVE | self.next }
    }

    fn insert(&mut self, cargo: Cargo<B>, bytes: u64, wait: Duration) {
        let until = Instant::now() + wait;
        self.moves.insert(self.next, Move { cargo, bytes, until, runnable: true });
        self.next += 1;
    }

    /// The descriptor of a move is readable.
    pub(super) fn notice(&mut self, name: u64) {
        if let Some(one) = self.moves.get_mut(&(name & !super::MOVE)) {
            one.runnable = true;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.moves.values().any(|one| one.runnable)
    }

    /// When a turn is due although nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let parting = (!self.parting.is_empty()).then(|| Instant::now() + LINGER_STEP);
        self.moves.values().map(|one| one.until).chain(parting).min()
    }

    /// Gives moves that can do something their turns, as far as time allows, one after the other.
    pub(super) fn turns(
        &mut self,
        executor: &mut Executor<B>,
        epoll: &OwnedFd,
    ) -> Vec<Arrival<B::Storage>> {
        self.part();
        let now = Instant::now();
        let due = |one: &Move<B>| one.runnable || one.until <= now;
        let mut due: Vec<u64> =
            self.moves.iter().filter(|(_, one)| due(one)).map(|(id, _)| *id).collect();
        due.sort_unstable_by_key(|id| (*id <= self.last, *id));
        let mut arrivals = Vec::new();
        for id in due {
            if now.elapsed() > TURN {
                break;
            }
            self.last = id;
            let Some(one) = self.moves.get_mut(&id) else { continue };
            let watch = Watch { epoll, name: super::MOVE | id };
            let turn = AssertUnwindSafe(|| one.turn(executor, &watch, &mut self.parting));
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
                Ok(Step::Done) => arrivals.extend(self.end(id, Ok(()), executor, epoll)),
                Err(reason) => arrivals.extend(self.end(id, Err(reason), executor, epoll)),
            }
        }
        arrivals
    }

    fn end(
        &mut self,
        id: u64,
        ended: Result<(), String>,
        executor: &mut Executor<B>,
        epoll: &OwnedFd,
    ) -> Option<Arrival<B::Storage>> {
        let watch = Watch { epoll, name: super::MOVE | id };
        match self.moves.remove(&id)?.cargo {
            Cargo::Out(outgoing) => {
                if let Err(reason) = &ended {
                    tracing::warn!("a weight is not given to another node: {reason}");
                }
                let leaving = outgoing.end(&watch, &mut self.parting);
                executor.left(leaving, ended.is_ok());
                None
            }
            Cargo::In(incoming) => {
                let (connection, token, storage) = incoming.asked_by();
                let arriving = incoming.end(&watch);
                let weight = match ended {
                    Ok(()) => Ok(arriving),
                    Err(reason) => {
                        executor.abandon(arriving);
                        Err(reason)
                    }
                };
                Some(Arrival { connection, token, storage, weight })
            }
        }
    }

    /// The session of this connection ends: nothing is fetched for it any more.
    pub(super) fn cancel(&mut self, connection: u64, executor: &mut Executor<B>, epoll: &OwnedFd) {
        let of_it = |one: &Move<B>| match &one.cargo {
            Cargo::In(incoming) => incoming.asked_by().0 == connection,
            Cargo::Out(_) => false,
        };
        let ids: Vec<u64> =
            self.moves.iter().filter(|(_, one)| of_it(one)).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, Err("the session ended".to_owned()), executor, epoll);
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

impl<B: Backend> Move<B> {
    fn turn(
        &mut self,
        executor: &mut Executor<B>,
        watch: &Watch<'_>,
        parting: &mut Vec<(Box<dyn Connection>, Instant)>,
    ) -> Result<Step, String> {
        match &mut self.cargo {
            Cargo::Out(outgoing) => {
                let waited = outgoing.waits();
                let step = outgoing.turn(executor, watch);
                if waited && !outgoing.waits() {
                    self.until = Instant::now() + deadline(self.bytes);
                }
                step
            }
            Cargo::In(incoming) => incoming.turn(executor, watch, parting),
        }
    }
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

fn weight_hash(bytes: &[u8]) -> Result<WeightHash, String> {
    bytes.try_into().map_err(|_| "a weight's hash does not have 32 bytes".to_owned())
}
