//! Weights that clients share by the node's leave: mapped by each, held in memory once.

use std::sync::Arc;

use genie_channel::{SHARED_BYTES_MIN, Shelf};
use genie_wire::record::WeightHash;

use crate::ledger::Account;
use crate::weights::Weight;
use crate::{Backend, Executor};

impl<B: Backend> Executor<B> {
    /// Weights are sought there, and offered there, from now on.
    pub fn share_weights(&mut self, shelf: Shelf) {
        self.holdings.shelf = Some(shelf);
    }

    /// Takes hold of a weight that is stored here, or that another client shares.
    pub(crate) fn hold_or_seek(
        &mut self,
        account: Account,
        hash: &WeightHash,
        bytes: u64,
    ) -> Option<Arc<Weight<B::Storage>>> {
        if let Some(weight) = self.holdings.hold(account, hash) {
            return Some(weight);
        }
        if bytes < SHARED_BYTES_MIN || self.holdings.shelf.is_none() {
            return None;
        }
        // It counts in the client's share as any weight, whoever else has it.
        self.holdings.room(bytes).ok()?;
        let shelf = self.holdings.shelf.as_mut()?;
        let memory = shelf.seek(hash, bytes)?;
        // Another client made it.
        let content = (blake3::hash(memory.as_slice()) == *hash)
            .then(|| self.backend.adopt(memory))
            .flatten();
        let Some(storage) = content else {
            shelf.leave(hash);
            return None;
        };
        self.counts.weights_shared += 1;
        self.holdings.ledger.charge(bytes);
        let weight = Arc::new(Weight { storage, bytes, hash: *hash, account, shelved: true });
        self.holdings.store(&weight);
        Some(weight)
    }

    /// The same content in memory that others may map, if they may and it pays.
    pub(crate) fn shelve(
        backend: &B,
        shelf: &mut Option<Shelf>,
        storage: &B::Storage,
        hash: &WeightHash,
    ) -> Option<B::Storage> {
        let shelf = shelf.as_mut()?;
        let content = backend.slice(storage)?;
        if (content.len() as u64) < SHARED_BYTES_MIN {
            return None;
        }
        let memory = shelf.offer(hash, content)?;
        let adopted = backend.adopt(memory);
        if adopted.is_none() {
            shelf.leave(hash);
        }
        adopted
    }
}
