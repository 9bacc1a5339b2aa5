//! Weights by content: uploaded once per node, shared read-only by the sessions of one identity.

use std::collections::HashMap;
use std::sync::Arc;

use genie_wire::record::WeightHash;

use crate::ledger::Ledger;

/// Bytes that several sessions read; the first write copies them.
///
/// Invariant: its bytes are in the ledger once, from its making to its last holder's end.
pub(crate) struct Weight<S> {
    pub(crate) storage: S,
    pub(crate) bytes: u64,
    pub(crate) hash: WeightHash,
}

/// Gives up one hold on a weight.
pub(crate) fn release<S>(weight: Arc<Weight<S>>, ledger: &mut Ledger) {
    if let Some(last) = Arc::into_inner(weight) {
        ledger.release(last.bytes);
    }
}

/// The stored weights of one device. A hash gives access only within one client identity.
pub(crate) struct Weights<S> {
    by_hash: HashMap<(Arc<str>, WeightHash), Arc<Weight<S>>>,
    bytes: u64,
}

impl<S> Weights<S> {
    pub(crate) fn new() -> Self {
        Weights { by_hash: HashMap::new(), bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn get(&self, identity: &Arc<str>, hash: &WeightHash) -> Option<&Arc<Weight<S>>> {
        self.by_hash.get(&(identity.clone(), *hash))
    }

    /// The caller checked the hash and that none is stored under it.
    pub(crate) fn insert(&mut self, identity: &Arc<str>, weight: Arc<Weight<S>>) {
        self.bytes += weight.bytes;
        let before = self.by_hash.insert((identity.clone(), weight.hash), weight);
        debug_assert!(before.is_none(), "stored weights are not replaced");
    }

    /// Sessions that hold the weight keep it.
    pub(crate) fn forget(&mut self, identity: &Arc<str>, hash: &WeightHash, ledger: &mut Ledger) {
        if let Some(weight) = self.by_hash.remove(&(identity.clone(), *hash)) {
            self.bytes -= weight.bytes;
            release(weight, ledger);
        }
    }
}
