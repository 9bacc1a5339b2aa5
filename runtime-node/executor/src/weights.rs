//! Weights by content: uploaded once per node, shared read-only by the sessions of one identity.
//!
//! A weight is *held* while a storage refers to it. What nobody holds is kept for the next who
//! asks, as far as room allows: within bounds of its own, and only while live tensors do not need
//! the memory. The least recently held goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use genie_channel::Shelf;
use genie_wire::ErrorCode;
use genie_wire::record::WeightHash;

use crate::Failure;
use crate::ledger::{Account, Ledger};

/// Weights that are kept while nobody holds them, whatever their bytes.
const UNHELD_MAX: usize = 1 << 16;

/// Bytes that several sessions read; the first write copies them.
pub(crate) struct Weight<S> {
    pub(crate) storage: S,
    pub(crate) bytes: u64,
    pub(crate) hash: WeightHash,
    /// A hash gives access only within the identity of this account.
    pub(crate) account: Account,
    /// Its memory is the gate's, which other workers map too.
    pub(crate) shelved: bool,
}

type Key = (Account, WeightHash);

struct Stored<S> {
    weight: Arc<Weight<S>>,
    /// Its place in `unheld`, while nobody holds it.
    unheld: Option<u64>,
}

/// What one device holds in memory: the books of all bytes, and the stored weights.
///
/// Invariant: a weight's bytes are in the ledger once, while it is stored; what is held is stored.
pub(crate) struct Holdings<S> {
    pub(crate) ledger: Ledger,
    by_hash: HashMap<Key, Stored<S>>,
    bytes: u64,
    /// Weights that nobody holds, the least recently held first.
    unheld: BTreeMap<u64, Key>,
    unheld_bytes: u64,
    unheld_bytes_max: u64,
    clock: u64,
    evicted: u64,
    /// Where weights are shared with other clients, if they may be.
    pub(crate) shelf: Option<Shelf>,
}

impl<S> Holdings<S> {
    pub(crate) fn new(ledger: Ledger, unheld_bytes_max: u64) -> Self {
        Holdings {
            ledger,
            by_hash: HashMap::new(),
            bytes: 0,
            unheld: BTreeMap::new(),
            unheld_bytes: 0,
            unheld_bytes_max,
            clock: 0,
            evicted: 0,
            shelf: None,
        }
    }

    /// Stored weights.
    pub(crate) fn weights(&self) -> usize {
        self.by_hash.len()
    }

    pub(crate) fn weight_bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn unheld_bytes(&self) -> u64 {
        self.unheld_bytes
    }

    /// Weights dropped to make room.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether `bytes` more fit; weights that nobody holds make room for them. The error says
    /// what to do.
    #[inline]
    pub(crate) fn room(&mut self, bytes: u64) -> Result<(), Failure> {
        match self.ledger.check(bytes) {
            Ok(()) => Ok(()),
            Err(full) => self.make_room(bytes, full),
        }
    }

    #[cold]
    fn make_room(&mut self, bytes: u64, mut full: Failure) -> Result<(), Failure> {
        // Nothing is given up for what would not fit all the same.
        if bytes > self.ledger.budget() {
            return Err(full);
        }
        let whose = self.ledger.share_is_short(bytes).then(|| self.ledger.current());
        let own = |(_, (account, _)): &(&u64, &Key)| whose.is_none_or(|whose| *account == whose);
        let oldest_first: Vec<Key> = self.unheld.iter().filter(own).map(|(_, key)| *key).collect();
        for key in oldest_first {
            self.evict(&key);
            match self.ledger.check(bytes) {
                Ok(()) => return Ok(()),
                Err(still) => full = still,
            }
        }
        Err(full)
    }

    /// Takes memory of the device. Less may be there than the books say, for other clients have it:
    /// then weights that nobody holds make room. The error says what to do.
    pub(crate) fn taking<R>(
        &mut self,
        mut take: impl FnMut() -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let full = match take() {
            Err(full) if full.code == ErrorCode::OutOfMemory => full,
            done => return done,
        };
        let again = if self.make_all_room() { take() } else { Err(full) };
        again.map_err(|full| match full.code {
            ErrorCode::OutOfMemory => self.ledger.full_device(&full.message),
            _ => full,
        })
    }

    /// Drops weights that nobody holds, the least recently held first, until so many bytes are free.
    pub(crate) fn shed(&mut self, bytes: u64) {
        let mut freed = 0;
        while freed < bytes
            && let Some((_, oldest)) = self.unheld.first_key_value()
        {
            let oldest = *oldest;
            let before = self.bytes;
            self.evict(&oldest);
            freed += before - self.bytes;
        }
    }

    /// Drops the weights that nobody holds, for an operator that needs more while it runs than was
    /// known; whether there were any that count for it.
    #[cold]
    pub(crate) fn make_all_room(&mut self) -> bool {
        let share_only = self.ledger.share_is_tighter();
        let current = self.ledger.current();
        let own = |(_, (account, _)): &(&u64, &Key)| !share_only || *account == current;
        let keys: Vec<Key> = self.unheld.iter().filter(own).map(|(_, key)| *key).collect();
        keys.iter().for_each(|key| self.evict(key));
        !keys.is_empty()
    }

    /// Takes hold of a weight, if it is stored.
    pub(crate) fn hold(&mut self, account: Account, hash: &WeightHash) -> Option<Arc<Weight<S>>> {
        let stored = self.by_hash.get_mut(&(account, *hash))?;
        if let Some(place) = stored.unheld.take() {
            self.unheld.remove(&place);
            self.unheld_bytes -= stored.weight.bytes;
        }
        Some(stored.weight.clone())
    }

    /// Gives up one hold on a weight.
    pub(crate) fn release(&mut self, weight: Arc<Weight<S>>) {
        let key = (weight.account, weight.hash);
        drop(weight);
        let Some(stored) = self.by_hash.get_mut(&key) else {
            debug_assert!(false, "what is held is stored");
            return;
        };
        if Arc::strong_count(&stored.weight) > 1 {
            return;
        }
        self.clock += 1;
        stored.unheld = Some(self.clock);
        self.unheld_bytes += stored.weight.bytes;
        self.unheld.insert(self.clock, key);
        while self.unheld_bytes > self.unheld_bytes_max || self.unheld.len() > UNHELD_MAX {
            let Some((_, oldest)) = self.unheld.first_key_value() else {
                return;
            };
            let oldest = *oldest;
            self.evict(&oldest);
        }
    }

    /// Stores a weight, which the caller holds. Its bytes are in the ledger, its hash was checked,
    /// and none is stored under it.
    pub(crate) fn store(&mut self, weight: &Arc<Weight<S>>) {
        self.bytes += weight.bytes;
        let stored = Stored { weight: weight.clone(), unheld: None };
        let before = self.by_hash.insert((weight.account, weight.hash), stored);
        debug_assert!(before.is_none(), "stored weights are not replaced");
    }

    /// Drops a weight that nobody holds.
    fn evict(&mut self, key: &Key) {
        let Some(Stored { weight, unheld: Some(place) }) = self.by_hash.remove(key) else {
            debug_assert!(false, "only what nobody holds is evicted");
            return;
        };
        self.unheld.remove(&place);
        self.unheld_bytes -= weight.bytes;
        self.bytes -= weight.bytes;
        let current = self.ledger.enter(weight.account);
        self.ledger.release(weight.bytes);
        self.ledger.enter(current);
        self.evicted += 1;
        let (hash, shelved) = (weight.hash, weight.shelved);
        drop(weight);
        if shelved && let Some(shelf) = &mut self.shelf {
            shelf.leave(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        holdings: Holdings<()>,
        account: Account,
    }

    fn bench(budget: u64, share: u64, unheld: u64) -> Bench {
        let mut holdings = Holdings::new(Ledger::new(budget, share), unheld);
        let account = holdings.ledger.account(&"a".into());
        holdings.ledger.enter(account);
        Bench { holdings, account }
    }

    impl Bench {
        fn store(&mut self, number: u64, bytes: u64) -> Arc<Weight<()>> {
            self.holdings.ledger.charge(bytes);
            let (hash, account) = (hash(number), self.account);
            let weight = Weight { storage: (), bytes, hash, account, shelved: false };
            let weight = Arc::new(weight);
            self.holdings.store(&weight);
            weight
        }

        fn has(&mut self, number: u64) -> bool {
            match self.holdings.hold(self.account, &hash(number)) {
                Some(weight) => {
                    self.holdings.release(weight);
                    true
                }
                None => false,
            }
        }
    }

    fn hash(number: u64) -> WeightHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        hash
    }

    #[test]
    fn the_least_recently_held_goes_first_and_what_is_held_stays() {
        let mut bench = bench(1000, 1000, 25);
        let held = bench.store(0, 100);
        for number in 1..=2 {
            let weight = bench.store(number, 10);
            bench.holdings.release(weight);
        }
        assert!(bench.has(1), "now more recent than 2");
        let third = bench.store(3, 10);
        assert_eq!(bench.holdings.evicted(), 0, "it is held, so it counts as live");
        bench.holdings.release(third);
        assert!(bench.has(1) && !bench.has(2) && bench.has(3) && bench.has(0));
        assert_eq!((bench.holdings.unheld_bytes(), bench.holdings.ledger.used()), (20, 120));
        // Larger than the bound: it is not kept.
        bench.holdings.release(held);
        assert!(!bench.has(0));
    }

    #[test]
    fn live_tensors_take_the_room_of_weights_that_nobody_holds() {
        let mut bench = bench(100, 100, 100);
        let held = bench.store(0, 20);
        for number in 1..=8 {
            let weight = bench.store(number, 10);
            bench.holdings.release(weight);
        }
        assert!(bench.holdings.room(25).is_ok());
        assert_eq!((bench.holdings.evicted(), bench.holdings.ledger.used()), (3, 70));
        assert!(bench.holdings.room(101).is_err());
        assert_eq!(bench.holdings.evicted(), 3, "nothing goes for what cannot fit");
        assert!(bench.holdings.room(90).is_err(), "20 are held");
        assert_eq!(bench.holdings.ledger.used(), 20);
        bench.holdings.release(held);
    }

    #[test]
    fn one_client_makes_room_in_its_own_share_only() {
        let mut bench = bench(100, 30, 100);
        let mine = bench.store(1, 20);
        bench.holdings.release(mine);
        let other = bench.holdings.ledger.account(&"b".into());
        let first = std::mem::replace(&mut bench.account, other);
        bench.holdings.ledger.enter(other);
        let theirs = bench.store(1, 20);
        bench.holdings.release(theirs);
        assert!(bench.holdings.room(20).is_ok());
        assert!(!bench.has(1));
        bench.account = first;
        assert!(bench.has(1), "the other client's weight stays");
    }

    #[test]
    fn their_number_is_bounded_too() {
        let mut bench = bench(u64::MAX, u64::MAX, u64::MAX);
        for number in 0..=UNHELD_MAX as u64 {
            let weight = bench.store(number, 1);
            bench.holdings.release(weight);
        }
        assert_eq!(bench.holdings.weights(), UNHELD_MAX);
        assert!(!bench.has(0) && bench.has(1));
    }
}
