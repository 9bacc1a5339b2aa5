//! Weights on their way between nodes: what the executor gives and takes.
//!
//! The network reads and writes a copy in host memory that it is given for the move. Copying and
//! hashing go in steps, so that sessions of the device take their turns between.

use std::sync::Arc;

use genie_transport::SharedMemory;
use genie_wire::ErrorCode;
use genie_wire::record::WeightHash;

use crate::executor::Moved;
use crate::ledger::{Account, Ledger};
use crate::weights::{Weight, release};
use crate::{Backend, Executor, Failure, Session};

/// Bytes that are copied in one step; it takes about a millisecond.
const STEP_BYTES: u64 = 2 << 20;

/// Host memory that the network uses; its bytes are in the ledger.
struct Staging {
    memory: Arc<SharedMemory>,
    /// How far it was filled, or read.
    done: u64,
    account: Account,
}

impl Staging {
    fn new(bytes: u64, account: Account, ledger: &mut Ledger) -> Result<Self, Failure> {
        ledger.enter(account);
        ledger.check(bytes)?;
        let memory = SharedMemory::create(bytes)
            .map_err(|error| Failure::new(ErrorCode::OutOfMemory, error.to_string()))?;
        ledger.charge(bytes);
        Ok(Staging { memory: Arc::new(memory), done: 0, account })
    }

    /// The next step: offset and length.
    fn next(&self) -> (u64, u64) {
        (self.done, (self.memory.bytes() - self.done).min(STEP_BYTES))
    }

    fn is_done(&self) -> bool {
        self.done == self.memory.bytes()
    }

    fn give_up(self, ledger: &mut Ledger) {
        ledger.enter(self.account);
        ledger.release(self.memory.bytes());
    }
}

/// A weight that goes to another node.
pub struct Leaving<S> {
    weight: Arc<Weight<S>>,
    copy: Staging,
}

impl<S> Leaving<S> {
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.copy.memory
    }

    pub fn bytes(&self) -> u64 {
        self.copy.memory.bytes()
    }

    /// Bytes that are copied, from the start.
    pub fn copied(&self) -> u64 {
        self.copy.done
    }

    pub fn is_copied(&self) -> bool {
        self.copy.is_done()
    }
}

/// A weight that comes from another node.
pub struct Arriving<S> {
    storage: S,
    hash: WeightHash,
    identity: Arc<str>,
    hasher: blake3::Hasher,
    copy: Staging,
}

impl<S> Arriving<S> {
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.copy.memory
    }

    pub fn bytes(&self) -> u64 {
        self.copy.memory.bytes()
    }
}

impl<B: Backend> Executor<B> {
    /// Begins to give a weight; end it by [`Executor::left`]. The error says why not.
    pub fn leave(
        &mut self,
        identity: &str,
        hash: &WeightHash,
    ) -> Result<Leaving<B::Storage>, Failure> {
        let identity: Arc<str> = Arc::from(identity);
        let Some(weight) = self.weights.get(&identity, hash).cloned() else {
            let message = "the weight is not, or no longer, in the node's store";
            return Err(Failure::new(ErrorCode::WeightMissing, message));
        };
        let account = self.ledger.account(&identity);
        match Staging::new(weight.bytes, account, &mut self.ledger) {
            Ok(copy) => Ok(Leaving { weight, copy }),
            Err(failure) => {
                release(weight, &mut self.ledger);
                Err(failure)
            }
        }
    }

    /// Copies some more of a weight.
    pub fn copy_leaving(&self, leaving: &mut Leaving<B::Storage>) -> Result<(), Failure> {
        let (offset, bytes) = leaving.copy.next();
        let storage = &leaving.weight.storage;
        let memory = &leaving.copy.memory;
        let written = match self.backend.slice(storage) {
            Some(content) => memory.write(offset, &content[offset as usize..][..bytes as usize]),
            None => {
                let mut buffer = vec![0; bytes as usize];
                self.backend.copy_out(storage, offset, &mut buffer)?;
                memory.write(offset, &buffer)
            }
        };
        written.map_err(|error| Failure::new(ErrorCode::Runtime, error.to_string()))?;
        leaving.copy.done += bytes;
        Ok(())
    }

    /// The other node has the weight, or does not get it. Nothing reads the copy any more.
    pub fn left(&mut self, leaving: Leaving<B::Storage>, whole: bool) {
        if whole {
            self.counts.moved_out.add(leaving.bytes());
        }
        leaving.copy.give_up(&mut self.ledger);
        release(leaving.weight, &mut self.ledger);
    }

    /// Begins to take a weight for a session; end it by [`Executor::arrived`] or
    /// [`Executor::abandon`].
    pub fn arrive(
        &mut self,
        session: &Session<B>,
        hash: &WeightHash,
        bytes: u64,
    ) -> Result<Arriving<B::Storage>, Failure> {
        let copy = Staging::new(bytes, session.account(), &mut self.ledger)?;
        let storage = self.ledger.check(bytes).and_then(|()| self.backend.allocate(bytes));
        match storage {
            Ok(storage) => {
                self.ledger.charge(bytes);
                let (identity, hasher) = (session.identity().clone(), blake3::Hasher::new());
                Ok(Arriving { storage, hash: *hash, identity, hasher, copy })
            }
            Err(failure) => {
                copy.give_up(&mut self.ledger);
                Err(failure)
            }
        }
    }

    /// Copies and hashes some more of a weight whose bytes are all there. The network writes them
    /// no more. `true`: that was all.
    pub fn copy_arriving(&self, arriving: &mut Arriving<B::Storage>) -> Result<bool, Failure> {
        let (offset, bytes) = arriving.copy.next();
        let mut buffer = vec![0; bytes as usize];
        let memory = &arriving.copy.memory;
        memory
            .read(offset, &mut buffer)
            .map_err(|error| Failure::new(ErrorCode::Runtime, error.to_string()))?;
        arriving.hasher.update(&buffer);
        self.backend.copy_in(&mut arriving.storage, offset, &buffer)?;
        arriving.copy.done += bytes;
        Ok(arriving.copy.is_done())
    }

    /// Stores a weight that was copied whole, and holds it for the session, if it is the one that
    /// was asked for. Returns its bytes.
    pub fn arrived(
        &mut self,
        session: &mut Session<B>,
        arriving: Arriving<B::Storage>,
    ) -> Result<u64, Failure> {
        if !arriving.copy.is_done() || *arriving.hasher.finalize().as_bytes() != arriving.hash {
            self.abandon(arriving);
            let message = "what came does not have the weight's hash";
            return Err(Failure::new(ErrorCode::Value, message));
        }
        let (bytes, hash) = (arriving.bytes(), arriving.hash);
        self.counts.moved_in.add(bytes);
        if self.weights.get(&arriving.identity, &hash).is_some() {
            // Another session brought it meanwhile.
            self.abandon(arriving);
        } else {
            let Arriving { storage, identity, copy, .. } = arriving;
            copy.give_up(&mut self.ledger);
            // The storage's charge passes on to the weight, which this hold keeps while room is
            // made for it.
            let weight = Arc::new(Weight { storage, bytes, hash });
            self.weights.insert(&identity, weight.clone(), &mut self.ledger);
            self.ledger.enter(session.account());
            release(weight, &mut self.ledger);
        }
        match session.hold_weight(self, &hash) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(Failure::new(ErrorCode::WeightMissing, "the weight vanished")),
            Err(error) => Err(Failure::new(ErrorCode::Runtime, error.to_string())),
        }
    }

    /// A weight does not come.
    pub fn abandon(&mut self, arriving: Arriving<B::Storage>) {
        let bytes = arriving.bytes();
        arriving.copy.give_up(&mut self.ledger);
        self.ledger.release(bytes);
    }
}

impl Moved {
    fn add(&mut self, bytes: u64) {
        self.weights += 1;
        self.bytes += bytes;
    }
}
