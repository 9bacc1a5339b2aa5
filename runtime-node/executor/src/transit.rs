//! Weights on their way between nodes: what the executor gives and takes.
//!
//! The network reads and writes a copy in host memory that it is given for the move. Copying and
//! hashing go in steps, so that sessions of the device take their turns between.

use std::sync::Arc;

use genie_transport::SharedMemory;
use genie_wire::record::WeightHash;
use genie_wire::{ErrorCode, StorageId};

use crate::executor::Moved;
use crate::ledger::{Account, Ledger};
use crate::weights::{Holdings, Weight};
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
    fn new<S>(bytes: u64, account: Account, holdings: &mut Holdings<S>) -> Result<Self, Failure> {
        holdings.ledger.enter(account);
        holdings.room(bytes)?;
        let memory = SharedMemory::create(bytes)
            .map_err(|error| Failure::new(ErrorCode::OutOfMemory, error.to_string()))?;
        holdings.ledger.charge(bytes);
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

    /// Nothing more of it is copied.
    pub fn give_up(&mut self) {
        self.copy.done = self.copy.memory.bytes();
    }
}

/// A weight that comes from another node.
pub struct Arriving<S> {
    storage: S,
    hash: WeightHash,
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
        let account = self.holdings.ledger.account(&Arc::from(identity));
        let Some(weight) = self.holdings.hold(account, hash) else {
            let message = "the weight is not, or no longer, in the node's store";
            return Err(Failure::new(ErrorCode::WeightMissing, message));
        };
        match Staging::new(weight.bytes, account, &mut self.holdings) {
            Ok(copy) => Ok(Leaving { weight, copy }),
            Err(failure) => {
                self.holdings.release(weight);
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
        leaving.copy.give_up(&mut self.holdings.ledger);
        self.holdings.release(leaving.weight);
    }

    /// Begins to take a weight for a session; end it by [`Executor::arrived`] or
    /// [`Executor::abandon`].
    pub fn arrive(
        &mut self,
        session: &Session<B>,
        hash: &WeightHash,
        bytes: u64,
    ) -> Result<Arriving<B::Storage>, Failure> {
        let copy = Staging::new(bytes, session.account(), &mut self.holdings)?;
        let (holdings, backend) = (&mut self.holdings, &self.backend);
        let storage =
            holdings.room(bytes).and_then(|()| holdings.taking(|| backend.allocate(bytes)));
        match storage {
            Ok(storage) => {
                self.holdings.ledger.charge(bytes);
                Ok(Arriving { storage, hash: *hash, hasher: blake3::Hasher::new(), copy })
            }
            Err(failure) => {
                copy.give_up(&mut self.holdings.ledger);
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

    /// Stores a weight that was copied whole, if it is the one that was asked for, and makes it
    /// the content of a storage of the session; see [`Executor::bind_if_stored`]. Returns its bytes.
    pub fn arrived(
        &mut self,
        session: &mut Session<B>,
        arriving: Arriving<B::Storage>,
        id: StorageId,
    ) -> Result<u64, Failure> {
        if !arriving.copy.is_done() || *arriving.hasher.finalize().as_bytes() != arriving.hash {
            self.abandon(arriving);
            let message = "what came does not have the weight's hash";
            return Err(Failure::new(ErrorCode::Value, message));
        }
        let (bytes, hash, account) = (arriving.bytes(), arriving.hash, session.account());
        self.counts.moved_in.add(bytes);
        let weight = match self.holdings.hold(account, &hash) {
            // Another session brought it meanwhile.
            Some(weight) => {
                self.abandon(arriving);
                weight
            }
            None => {
                let Arriving { storage, copy, .. } = arriving;
                copy.give_up(&mut self.holdings.ledger);
                // The storage's charge passes on to the weight.
                let weight = Arc::new(Weight { storage, bytes, hash, account, shelved: false });
                self.holdings.store(&weight);
                weight
            }
        };
        // Bound while it is held here, so that it cannot go before.
        let bound = self.bind_if_stored(session, id, bytes, &hash);
        self.holdings.release(weight);
        match bound {
            Ok(true) => Ok(bytes),
            Ok(false) => Err(Failure::new(ErrorCode::WeightMissing, "its storage is gone")),
            Err(error) => Err(Failure::new(ErrorCode::Runtime, error.to_string())),
        }
    }

    /// A weight does not come.
    pub fn abandon(&mut self, arriving: Arriving<B::Storage>) {
        let bytes = arriving.bytes();
        arriving.copy.give_up(&mut self.holdings.ledger);
        self.holdings.ledger.release(bytes);
    }
}

impl Moved {
    fn add(&mut self, bytes: u64) {
        self.weights += 1;
        self.bytes += bytes;
    }
}
