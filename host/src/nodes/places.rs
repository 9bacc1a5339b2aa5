//! Where weights are, as remote nodes told: what one of them has, another may take from it.
//!
//! The index is a memory, not a promise: a node drops weights and starts anew without saying so.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_wire::record::WeightHash;

/// Weights that are remembered; above it the oldest are forgotten.
const WEIGHTS_MAX: usize = 1 << 16;
/// Places of one weight that are remembered.
const PLACES_OF_ONE_MAX: usize = 4;
/// How long no move is tried from one node to another after one failed.
const AVOIDED_FOR: Duration = Duration::from_secs(60);

/// A device of a node, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    pub node: usize,
    pub device: u32,
}

/// A weight's place and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub place: Place,
    pub bytes: u64,
}

/// The places of all weights, each under the identity whose weight it is.
#[derive(Debug, Default)]
pub struct Places {
    inner: Mutex<Inner>,
}

type Key = (Arc<str>, WeightHash);

#[derive(Debug, Default)]
struct Inner {
    weights: HashMap<Key, Weight>,
    /// The keys of `weights`, each once, the oldest first.
    order: VecDeque<Key>,
    avoided: HashMap<(usize, usize), Instant>,
}

#[derive(Debug)]
struct Weight {
    bytes: u64,
    /// The newest last.
    places: VecDeque<Place>,
}

impl Places {
    /// A node said that it has a weight.
    pub fn note(&self, identity: &Arc<str>, hash: &WeightHash, bytes: u64, place: Place) {
        let mut inner = self.lock();
        let key = (identity.clone(), *hash);
        if !inner.weights.contains_key(&key) {
            inner.order.push_back(key.clone());
        }
        let new = || Weight { bytes, places: VecDeque::new() };
        let weight = inner.weights.entry(key).or_insert_with(new);
        weight.bytes = bytes;
        weight.places.retain(|known| *known != place);
        weight.places.push_back(place);
        if weight.places.len() > PLACES_OF_ONE_MAX {
            weight.places.pop_front();
        }
        if inner.weights.len() > WEIGHTS_MAX
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.weights.remove(&oldest);
        }
    }

    /// A node does not have the weight, or does not give it.
    pub fn forget(&self, identity: &Arc<str>, hash: &WeightHash, place: Place) {
        // An empty list goes when its turn comes.
        if let Some(weight) = self.lock().weights.get_mut(&(identity.clone(), *hash)) {
            weight.places.retain(|known| *known != place);
        }
    }

    /// Another node from which the node `to` may take a weight.
    pub fn find(
        &self,
        identity: &Arc<str>,
        hash: &WeightHash,
        to: usize,
        now: Instant,
    ) -> Option<Found> {
        let inner = self.lock();
        let weight = inner.weights.get(&(identity.clone(), *hash))?;
        let avoided = |from| inner.avoided.get(&(from, to)).is_some_and(|until| now < *until);
        let usable = |place: &&Place| place.node != to && !avoided(place.node);
        let place = weight.places.iter().rev().find(usable)?;
        Some(Found { place: *place, bytes: weight.bytes })
    }

    /// A move between these nodes failed: none is tried for a while.
    pub fn avoid(&self, from: usize, to: usize, now: Instant) {
        self.lock().avoided.insert((from, to), now + AVOIDED_FOR);
    }

    /// What is locked are plain values, whole between any two statements that matter.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(node: usize) -> Place {
        Place { node, device: 0 }
    }

    fn hash(number: usize) -> WeightHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        hash
    }

    #[test]
    fn a_weight_is_found_elsewhere_and_for_its_owner_only() {
        let (places, now) = (Places::default(), Instant::now());
        let (mine, yours): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        assert_eq!(places.find(&mine, &hash(1), 0, now), None);
        places.note(&mine, &hash(1), 10, at(0));
        assert_eq!(places.find(&mine, &hash(1), 0, now), None, "it is there already");
        let found = Some(Found { place: at(0), bytes: 10 });
        assert_eq!(places.find(&mine, &hash(1), 1, now), found);
        assert_eq!(places.find(&yours, &hash(1), 1, now), None);
        assert_eq!(places.find(&mine, &hash(2), 1, now), None);

        places.note(&mine, &hash(1), 10, at(2));
        assert_eq!(places.find(&mine, &hash(1), 1, now).unwrap().place, at(2), "the newest");
        places.forget(&mine, &hash(1), at(2));
        assert_eq!(places.find(&mine, &hash(1), 1, now), found);
        places.forget(&mine, &hash(1), at(0));
        assert_eq!(places.find(&mine, &hash(1), 1, now), None);
    }

    #[test]
    fn a_way_that_failed_is_avoided_for_a_while() {
        let (places, now) = (Places::default(), Instant::now());
        let mine: Arc<str> = "1".into();
        places.note(&mine, &hash(1), 10, at(0));
        places.avoid(0, 1, now);
        assert_eq!(places.find(&mine, &hash(1), 1, now), None);
        assert!(places.find(&mine, &hash(1), 2, now).is_some(), "another way");
        assert!(places.find(&mine, &hash(1), 1, now + AVOIDED_FOR).is_some());
    }

    #[test]
    fn the_index_is_bounded() {
        let (places, now) = (Places::default(), Instant::now());
        let mine: Arc<str> = "1".into();
        for number in 0..=WEIGHTS_MAX {
            places.note(&mine, &hash(number), 10, at(0));
            places.note(&mine, &hash(number), 10, at(0));
        }
        assert_eq!(places.find(&mine, &hash(0), 1, now), None, "the oldest went");
        assert!(places.find(&mine, &hash(1), 1, now).is_some());
        assert!(places.find(&mine, &hash(WEIGHTS_MAX), 1, now).is_some());
        let inner = places.lock();
        assert_eq!((inner.weights.len(), inner.order.len()), (WEIGHTS_MAX, WEIGHTS_MAX));
        drop(inner);
        for node in 0..20 {
            places.note(&mine, &hash(1), 10, at(node));
        }
        assert_eq!(places.lock().weights[&(mine, hash(1))].places.len(), PLACES_OF_ONE_MAX);
    }
}
