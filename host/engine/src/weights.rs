//! Which weights the node has stored, for all sessions that use it.
//!
//! A weight is known by (identity, content hash): a hash gives access only within one identity.
//! A session *holds* the weights it was told about or stored; what is held is never evicted.
//!
//! Eviction takes two steps, because sessions reach the node over connections of their own whose
//! order among each other is not known: an evicted weight is `forgetting` until the node answered
//! the fence behind the `ForgetWeight`, and nobody may count on it meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_wire::record::WeightHash;

/// The index of one node process, shared by its sessions.
#[derive(Debug, Clone)]
pub struct SharedWeights {
    index: Arc<Mutex<WeightIndex>>,
}

/// The index itself.
#[derive(Debug)]
pub struct WeightIndex {
    identities: HashMap<String, HashMap<WeightHash, Weight>>,
    /// Weights that a session wanted forgotten, but ended before the node confirmed it.
    orphans: HashMap<String, Vec<WeightHash>>,
    /// Bytes of stored weights that are not being forgotten.
    bytes: u64,
    bytes_max: u64,
    clock: u64,
}

#[derive(Debug, Default)]
struct Weight {
    bytes: u64,
    /// The node confirmed that it has it.
    stored: bool,
    forgetting: bool,
    holders: u32,
    used: u64,
}

impl SharedWeights {
    /// An empty index that evicts above `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        let index = WeightIndex {
            identities: HashMap::new(),
            orphans: HashMap::new(),
            bytes: 0,
            bytes_max,
            clock: 0,
        };
        SharedWeights { index: Arc::new(Mutex::new(index)) }
    }

    /// The index stays consistent between statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, WeightIndex> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Weights and their bytes.
    pub fn size(&self) -> (u64, u64) {
        let index = self.lock();
        let count = index.identities.values().map(|weights| {
            weights.values().filter(|weight| weight.stored && !weight.forgetting).count() as u64
        });
        (count.sum(), index.bytes)
    }

    /// If the node has the weight, holds it (`held` says whether the session holds it already)
    /// and returns its bytes.
    pub(crate) fn hold_stored(&self, identity: &str, hash: &WeightHash, held: bool) -> Option<u64> {
        let mut index = self.lock();
        index.clock += 1;
        let clock = index.clock;
        let weight = index.identities.get_mut(identity)?.get_mut(hash)?;
        if !weight.stored || weight.forgetting {
            return None;
        }
        weight.holders += u32::from(!held);
        weight.used = clock;
        Some(weight.bytes)
    }

    /// A session is about to store a weight: holds it, so that it cannot be evicted meanwhile.
    /// `false` when the weight is being forgotten and so cannot be counted on.
    pub(crate) fn hold_pending(&self, identity: &str, hash: &WeightHash) -> bool {
        let mut index = self.lock();
        let weight =
            index.identities.entry(identity.to_owned()).or_default().entry(*hash).or_default();
        if weight.forgetting {
            return false;
        }
        weight.holders += 1;
        true
    }

    /// The node stored a weight, which this session holds or not. Returns weights of this identity that the node shall
    /// forget to stay within the budget; they are `forgetting` now.
    pub(crate) fn stored(
        &self,
        identity: &str,
        hash: &WeightHash,
        bytes: u64,
        held: bool,
    ) -> Vec<WeightHash> {
        let mut index = self.lock();
        index.clock += 1;
        let clock = index.clock;
        let weight = index.identities.get_mut(identity).and_then(|weights| weights.get_mut(hash));
        if let Some(weight) = weight.filter(|_| held) {
            weight.used = clock;
            if !weight.stored {
                weight.stored = true;
                weight.bytes = bytes;
                index.bytes = index.bytes.saturating_add(bytes);
            }
        }
        index.evict(identity)
    }

    /// The node forgot these.
    pub(crate) fn forgotten(&self, identity: &str, hashes: &[WeightHash]) {
        let mut index = self.lock();
        if let Some(weights) = index.identities.get_mut(identity) {
            for hash in hashes {
                weights.remove(hash);
            }
        }
    }

    /// A session ends before the node confirmed that it forgot these: the next session to store
    /// something asks again.
    pub(crate) fn orphan(&self, identity: &str, hashes: Vec<WeightHash>) {
        self.lock().orphans.entry(identity.to_owned()).or_default().extend(hashes);
    }

    /// A session stops holding weights.
    pub(crate) fn release(&self, identity: &str, hashes: impl Iterator<Item = WeightHash>) {
        let mut index = self.lock();
        let Some(weights) = index.identities.get_mut(identity) else {
            return;
        };
        for hash in hashes {
            if let Some(weight) = weights.get_mut(&hash) {
                weight.holders = weight.holders.saturating_sub(1);
                if !weight.stored && weight.holders == 0 {
                    weights.remove(&hash);
                }
            }
        }
    }
}

impl WeightIndex {
    fn evict(&mut self, identity: &str) -> Vec<WeightHash> {
        let mut evicted = self.orphans.remove(identity).unwrap_or_default();
        if self.bytes <= self.bytes_max {
            return evicted;
        }
        let Some(weights) = self.identities.get_mut(identity) else {
            return evicted;
        };
        let mut idle: Vec<(u64, WeightHash)> = weights
            .iter()
            .filter(|(_, weight)| weight.stored && !weight.forgetting && weight.holders == 0)
            .map(|(hash, weight)| (weight.used, *hash))
            .collect();
        idle.sort_unstable();
        for (_, hash) in idle {
            if self.bytes <= self.bytes_max {
                break;
            }
            if let Some(weight) = weights.get_mut(&hash) {
                weight.forgetting = true;
                self.bytes = self.bytes.saturating_sub(weight.bytes);
                evicted.push(hash);
            }
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> WeightHash {
        [byte; 32]
    }

    fn store(weights: &SharedWeights, identity: &str, byte: u8, bytes: u64) -> Vec<WeightHash> {
        assert!(weights.hold_pending(identity, &hash(byte)));
        weights.stored(identity, &hash(byte), bytes, true)
    }

    #[test]
    fn a_hash_gives_access_only_within_one_identity() {
        let weights = SharedWeights::new(100);
        store(&weights, "1000", 1, 10);
        assert_eq!(weights.hold_stored("1000", &hash(1), false), Some(10));
        assert_eq!(weights.hold_stored("1001", &hash(1), false), None);
    }

    #[test]
    fn the_least_recently_used_weight_that_nobody_holds_is_forgotten() {
        let weights = SharedWeights::new(25);
        for byte in 1..=2 {
            store(&weights, "a", byte, 10);
        }
        weights.release("a", [hash(1), hash(2)].into_iter());
        assert!(weights.hold_stored("a", &hash(1), false).is_some());
        weights.release("a", [hash(1)].into_iter());
        assert_eq!(store(&weights, "a", 3, 10), [hash(2)]);
        assert_eq!(weights.size(), (2, 20));
    }

    #[test]
    fn what_is_held_or_forgetting_is_not_counted_on_wrongly() {
        let weights = SharedWeights::new(5);
        assert!(store(&weights, "a", 1, 10).is_empty(), "it is held");
        weights.release("a", [hash(1)].into_iter());
        assert_eq!(store(&weights, "a", 2, 1), [hash(1)]);
        assert_eq!(weights.hold_stored("a", &hash(1), false), None);
        assert!(!weights.hold_pending("a", &hash(1)), "until the node forgot it");
        weights.forgotten("a", &[hash(1)]);
        assert!(weights.hold_pending("a", &hash(1)));
    }

    #[test]
    fn a_session_that_ends_while_the_node_forgets_hands_the_question_on() {
        let weights = SharedWeights::new(5);
        store(&weights, "a", 1, 10);
        weights.release("a", [hash(1)].into_iter());
        let forgetting = store(&weights, "a", 2, 1);
        weights.orphan("a", forgetting);
        assert_eq!(weights.stored("a", &hash(1), 10, false), [hash(1)]);
        assert_eq!(weights.hold_stored("a", &hash(1), false), None);
    }

    #[test]
    fn a_pending_weight_whose_session_ended_leaves_nothing() {
        let weights = SharedWeights::new(5);
        assert!(weights.hold_pending("a", &hash(1)));
        weights.release("a", [hash(1)].into_iter());
        assert_eq!(weights.hold_stored("a", &hash(1), false), None);
        assert_eq!(weights.size(), (0, 0));
    }
}
