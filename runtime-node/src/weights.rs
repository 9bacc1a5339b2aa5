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

struct Stored<S> {
    weight: Arc<Weight<S>>,
    /// When it was last asked for, by the store's own count.
    used: u64,
}

/// The stored weights of one device. A hash gives access only within one client identity.
///
/// Above `bytes_max`, weights that no session holds are dropped, the least recently used first.
pub(crate) struct Weights<S> {
    by_hash: HashMap<(Arc<str>, WeightHash), Stored<S>>,
    bytes: u64,
    bytes_max: u64,
    clock: u64,
    evicted: u64,
}

impl<S> Weights<S> {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Weights { by_hash: HashMap::new(), bytes: 0, bytes_max, clock: 0, evicted: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Weights dropped to stay within the limit.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(crate) fn get(
        &mut self,
        identity: &Arc<str>,
        hash: &WeightHash,
    ) -> Option<&Arc<Weight<S>>> {
        self.clock += 1;
        let stored = self.by_hash.get_mut(&(identity.clone(), *hash))?;
        stored.used = self.clock;
        Some(&stored.weight)
    }

    /// The caller checked the hash and that none is stored under it.
    pub(crate) fn insert(
        &mut self,
        identity: &Arc<str>,
        weight: Arc<Weight<S>>,
        ledger: &mut Ledger,
    ) {
        self.clock += 1;
        self.bytes += weight.bytes;
        let key = (identity.clone(), weight.hash);
        let before = self.by_hash.insert(key, Stored { weight, used: self.clock });
        debug_assert!(before.is_none(), "stored weights are not replaced");
        if self.bytes > self.bytes_max {
            self.evict(ledger);
        }
    }

    #[cold]
    fn evict(&mut self, ledger: &mut Ledger) {
        let idle = |(_, stored): &(&(Arc<str>, WeightHash), &Stored<S>)| {
            Arc::strong_count(&stored.weight) == 1
        };
        let mut idle: Vec<(u64, (Arc<str>, WeightHash))> = self
            .by_hash
            .iter()
            .filter(idle)
            .map(|(key, stored)| (stored.used, key.clone()))
            .collect();
        idle.sort_unstable();
        for (_, (identity, hash)) in idle {
            if self.bytes <= self.bytes_max {
                return;
            }
            let account = ledger.account(&identity);
            let current = ledger.enter(account);
            self.forget(&identity, &hash, ledger);
            ledger.enter(current);
            self.evicted += 1;
        }
    }

    /// Sessions that hold the weight keep it.
    pub(crate) fn forget(&mut self, identity: &Arc<str>, hash: &WeightHash, ledger: &mut Ledger) {
        if let Some(stored) = self.by_hash.remove(&(identity.clone(), *hash)) {
            self.bytes -= stored.weight.bytes;
            release(stored.weight, ledger);
        }
    }
}
