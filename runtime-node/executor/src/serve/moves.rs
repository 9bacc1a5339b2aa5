//! Weights on their way between this worker and other nodes: the worker's half.
//!
//! The network is the gate's. It reads and writes memory that is given to it for one move; copying
//! to and from that memory, and hashing, are done here, in steps between the sessions' turns.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use genie_channel::Message;
use genie_channel::message::{
    Copied, Fetch, Fetched, Leave, Leaving as LeavingSaid, Left, NotLeaving, Unfetch,
};
use genie_transport::SharedMemory;
use genie_wire::control::WeightFetch;
use genie_wire::record::WeightHash;
use prost::Message as _;

use crate::transit::{Arriving, Leaving};
use crate::{Backend, Executor, Session};

/// Moves of one worker at a time.
const MOVES_MAX: usize = 16;
/// Bytes of the copies that the network reads and writes.
const STAGED_BYTES_MAX: u64 = 2 << 30;
/// What a host says of a fetch.
const FETCH_BYTES_MAX: usize = 16 << 10;
/// How long moves may keep the sessions waiting.
const TURN: Duration = Duration::from_millis(5);

/// A weight that a session asked another node for is here, or does not come.
pub(super) struct Arrival<S> {
    /// The connection whose session asked, and its question.
    pub(super) connection: u64,
    pub(super) token: u64,
    pub(super) storage: u64,
    pub(super) weight: Result<Arriving<S>, String>,
}

struct Incoming<S> {
    arriving: Arriving<S>,
    connection: u64,
    token: u64,
    storage: u64,
    /// The gate has put all bytes into its memory.
    is_there: bool,
}

/// The moves of one worker, by the number that gate and worker have for each.
pub(super) struct Moves<B: Backend> {
    leaving: BTreeMap<u64, Leaving<B::Storage>>,
    incoming: BTreeMap<u64, Incoming<B::Storage>>,
    next: u64,
}

impl<B: Backend> Moves<B> {
    pub(super) fn new() -> Self {
        Moves { leaving: BTreeMap::new(), incoming: BTreeMap::new(), next: 1 }
    }

    /// Begins to give a weight; what to answer the gate.
    pub(super) fn leave(
        &mut self,
        leave: &Leave,
        executor: &mut Executor<B>,
    ) -> (Message, Vec<OwnedFd>) {
        let begun = weight_hash(&leave.hash).and_then(|hash| {
            self.check(1)?;
            let leaving = executor.leave(&leave.identity, &hash);
            let leaving = leaving.map_err(|failure| failure.message)?;
            match self.check(leaving.bytes()).and_then(|()| descriptor(leaving.memory())) {
                Ok(fd) => Ok((leaving, fd)),
                Err(reason) => {
                    executor.left(leaving, false);
                    Err(reason)
                }
            }
        });
        let id = leave.id;
        match begun {
            Ok((leaving, fd)) => {
                let bytes = leaving.bytes();
                if let Some(before) = self.leaving.insert(id, leaving) {
                    executor.left(before, false);
                }
                (Message::Leaving(LeavingSaid { id, bytes }), vec![fd])
            }
            Err(reason) => (Message::NotLeaving(NotLeaving { id, reason }), vec![]),
        }
    }

    pub(super) fn left(&mut self, left: &Left, executor: &mut Executor<B>) {
        if let Some(leaving) = self.leaving.remove(&left.id) {
            executor.left(leaving, left.whole);
        }
    }

    /// Begins to take a weight from another node for the session of a connection; an [`Arrival`]
    /// follows. Returns what to ask of the gate.
    pub(super) fn fetch(
        &mut self,
        fetch: &WeightFetch,
        connection: u64,
        session: &Session<B>,
        executor: &mut Executor<B>,
    ) -> Result<(Message, Vec<OwnedFd>), String> {
        let hash = weight_hash(&fetch.hash)?;
        self.check(fetch.bytes)?;
        if fetch.encoded_len() > FETCH_BYTES_MAX {
            return Err("the address is too long".to_owned());
        }
        let arriving =
            executor.arrive(session, &hash, fetch.bytes).map_err(|failure| failure.message)?;
        let fd = match descriptor(arriving.memory()) {
            Ok(fd) => fd,
            Err(reason) => {
                executor.abandon(arriving);
                return Err(reason);
            }
        };
        let id = self.next;
        self.next += 1;
        let (token, storage) = (fetch.token, fetch.storage);
        let incoming = Incoming { arriving, connection, token, storage, is_there: false };
        self.incoming.insert(id, incoming);
        Ok((Message::Fetch(Fetch { id, fetch: fetch.encode_to_vec() }), vec![fd]))
    }

    /// The gate is done with a fetch.
    pub(super) fn fetched(
        &mut self,
        fetched: Fetched,
        executor: &mut Executor<B>,
    ) -> Option<Arrival<B::Storage>> {
        if fetched.failed.is_empty() {
            // It was given up meanwhile, perhaps.
            self.incoming.get_mut(&fetched.id)?.is_there = true;
            return None;
        }
        let Incoming { arriving, connection, token, storage, .. } =
            self.incoming.remove(&fetched.id)?;
        executor.abandon(arriving);
        Some(Arrival { connection, token, storage, weight: Err(fetched.failed) })
    }

    fn check(&self, bytes: u64) -> Result<(), String> {
        let leaving = self.leaving.values().map(Leaving::bytes);
        let incoming = self.incoming.values().map(|incoming| incoming.arriving.bytes());
        let (staged, moves) =
            (leaving.chain(incoming).sum::<u64>(), self.leaving.len() + self.incoming.len());
        match bytes {
            0 => Err("there is nothing to move".to_owned()),
            bytes if moves >= MOVES_MAX || staged.saturating_add(bytes) > STAGED_BYTES_MAX => {
                Err(format!("{moves} weights ({staged} bytes) move already"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.leaving.values().any(|leaving| !leaving.is_copied())
            || self.incoming.values().any(|incoming| incoming.is_there)
    }

    /// Copies some of what goes, as far as time allows; what to tell the gate.
    pub(super) fn copy_leaving(&mut self, executor: &Executor<B>) -> Vec<Message> {
        let (start, mut said) = (Instant::now(), Vec::new());
        let mut failed = Vec::new();
        for (id, leaving) in self.leaving.iter_mut().filter(|(_, leaving)| !leaving.is_copied()) {
            if start.elapsed() > TURN {
                break;
            }
            let id = *id;
            match executor.copy_leaving(leaving) {
                Ok(()) => said.push(Message::Copied(Copied { id, bytes: leaving.copied() })),
                Err(failure) => failed.push((id, failure.message)),
            }
        }
        for (id, reason) in failed {
            // The gate answers by `Left`; until then nothing more is copied.
            if let Some(leaving) = self.leaving.get_mut(&id) {
                leaving.give_up();
            }
            said.push(Message::NotLeaving(NotLeaving { id, reason }));
        }
        said
    }

    /// Copies and hashes some of what came, as far as time allows.
    pub(super) fn copy_arriving(&mut self, executor: &mut Executor<B>) -> Vec<Arrival<B::Storage>> {
        let (start, mut ended) = (Instant::now(), Vec::new());
        for (id, incoming) in self.incoming.iter_mut().filter(|(_, incoming)| incoming.is_there) {
            if start.elapsed() > TURN {
                break;
            }
            match executor.copy_arriving(&mut incoming.arriving) {
                Ok(false) => {}
                Ok(true) => ended.push((*id, Ok(()))),
                Err(failure) => ended.push((*id, Err(failure.message))),
            }
        }
        let mut arrivals = Vec::new();
        for (id, done) in ended {
            let Incoming { arriving, connection, token, storage, .. } =
                self.incoming.remove(&id).expect("it was just looked at");
            let weight = match done {
                Ok(()) => Ok(arriving),
                Err(reason) => {
                    executor.abandon(arriving);
                    Err(reason)
                }
            };
            arrivals.push(Arrival { connection, token, storage, weight });
        }
        arrivals
    }

    /// The session of this connection ends: nothing is fetched for it any more. What to tell the
    /// gate.
    pub(super) fn cancel(&mut self, connection: u64, executor: &mut Executor<B>) -> Vec<Message> {
        let of_it = |incoming: &Incoming<B::Storage>| incoming.connection == connection;
        let ids: Vec<u64> =
            self.incoming.iter().filter(|(_, one)| of_it(one)).map(|(id, _)| *id).collect();
        let mut said = Vec::new();
        for id in ids {
            let incoming = self.incoming.remove(&id).expect("it was just seen");
            executor.abandon(incoming.arriving);
            said.push(Message::Unfetch(Unfetch { id }));
        }
        said
    }
}

fn descriptor(memory: &SharedMemory) -> Result<OwnedFd, String> {
    memory.fd().try_clone_to_owned().map_err(|error| format!("pass on a copy's memory: {error}"))
}

fn weight_hash(bytes: &[u8]) -> Result<WeightHash, String> {
    bytes.try_into().map_err(|_| "a weight's hash does not have 32 bytes".to_owned())
}
