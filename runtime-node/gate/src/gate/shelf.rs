//! Weights that clients share who were told to: one memory, which their workers map.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use genie_channel::message::{Found, SharedWeight, Shelved, Unshelve};
use genie_channel::{ChannelError, Message, SHARED_BYTES_MIN};
use genie_transport::FrozenMemory;

use super::{Gate, MESSAGES_AT_ONCE};

/// Shared weights of all clients and devices; each takes a descriptor.
const SHARED_MAX: usize = 4096;

/// A weight is shared within a group, on a device.
type Key = (usize, u32, Vec<u8>);

/// The weights that clients share.
pub(super) struct Shelf {
    /// Clients that share with each other.
    groups: Vec<BTreeSet<String>>,
    weights: BTreeMap<Key, Shared>,
}

struct Shared {
    memory: OwnedFd,
    bytes: u64,
    /// The workers that have it, and how often.
    users: BTreeMap<u64, u32>,
}

impl Shelf {
    pub(super) fn new(groups: Vec<BTreeSet<String>>) -> Self {
        Shelf { groups, weights: BTreeMap::new() }
    }

    /// The group that a client shares with.
    pub(super) fn group(&self, identity: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.contains(identity))
    }

    /// Bytes that shared weights take on a device.
    pub(super) fn bytes(&self, device: u32) -> u64 {
        let on_it = self.weights.iter().filter(|((_, on, _), _)| *on == device);
        on_it.map(|(_, shared)| shared.bytes).sum()
    }

    /// A worker has a weight, if it is there.
    fn take(&mut self, key: &Key, bytes: u64, worker: u64) -> Option<OwnedFd> {
        let shared = self.weights.get_mut(key).filter(|shared| shared.bytes == bytes)?;
        let memory = shared.memory.try_clone().ok()?;
        *shared.users.entry(worker).or_default() += 1;
        Some(memory)
    }

    fn put(&mut self, key: Key, memory: OwnedFd, bytes: u64, worker: u64) -> bool {
        if self.weights.len() >= SHARED_MAX || self.weights.contains_key(&key) {
            return false;
        }
        self.weights.insert(key, Shared { memory, bytes, users: [(worker, 1)].into() });
        true
    }

    /// A worker does not have it any more.
    fn leave(&mut self, key: &Key, worker: u64) {
        let Some(shared) = self.weights.get_mut(key) else { return };
        if let Some(count) = shared.users.get_mut(&worker) {
            *count -= 1;
            if *count == 0 {
                shared.users.remove(&worker);
            }
        }
        if shared.users.is_empty() {
            self.weights.remove(key);
        }
    }

    /// A worker is dead.
    pub(super) fn leave_all(&mut self, worker: u64) {
        self.weights.retain(|_, shared| {
            shared.users.remove(&worker);
            !shared.users.is_empty()
        });
    }
}

impl Gate {
    /// A worker asks for shared weights, or offers some.
    pub(super) fn hear_shelf(&mut self, id: u64) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let (key, group) = (worker.key.clone(), self.shelf.group(&worker.key.0));
            let heard = worker.shelf.flush().and_then(|()| worker.shelf.poll());
            let answer = match (heard, group) {
                (Ok(None), _) => return,
                (
                    Ok(Some((Message::Seek(SharedWeight { number, hash, bytes }), _))),
                    Some(group),
                ) => match self.shelf.take(&(group, key.1, hash), bytes, id) {
                    Some(memory) => (Message::Found(Found { number }), vec![memory]),
                    None => (Message::Shelved(Shelved { number, taken: false }), vec![]),
                },
                (Ok(Some((Message::Offer(offer), fds))), Some(group)) => {
                    let number = offer.number;
                    let taken = self.shelve(id, group, key.1, offer, fds);
                    (Message::Shelved(Shelved { number, taken }), vec![])
                }
                (Ok(Some((Message::Unshelve(Unshelve { hash }), _))), Some(group)) => {
                    self.shelf.leave(&(group, key.1, hash), id);
                    self.memory_came(id);
                    continue;
                }
                // Gone: its own channel tells.
                (Err(ChannelError::Closed), _) => return self.forget_shelf(id),
                _ => {
                    self.forget_shelf(id);
                    return self.nursery.end(id);
                }
            };
            if let Some(worker) = self.workers.get_mut(&id)
                && worker.shelf.post(answer.0, answer.1).is_err()
            {
                return self.forget_shelf(id);
            }
        }
    }

    fn shelve(
        &mut self,
        id: u64,
        group: usize,
        device: u32,
        offer: SharedWeight,
        mut fds: Vec<OwnedFd>,
    ) -> bool {
        let SharedWeight { hash, bytes, .. } = offer;
        let memory = fds.pop().expect("the channel checked that it came");
        // Its content is checked by whoever takes it.
        bytes >= SHARED_BYTES_MIN
            && hash.len() == 32
            && FrozenMemory::check(memory.as_fd(), bytes).is_ok()
            && self.has_room(device, bytes)
            && self.shelf.put((group, device, hash), memory, bytes, id)
    }

    fn forget_shelf(&mut self, id: u64) {
        if let Some(worker) = self.workers.get(&id) {
            let _ = rustix::event::epoll::delete(&self.epoll, worker.shelf.event_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> OwnedFd {
        FrozenMemory::of(&[7; 10]).unwrap().1
    }

    #[test]
    fn only_those_of_a_group_find_a_weight_and_the_last_user_ends_it() {
        let group = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let mut shelf = Shelf::new(vec![group(&["a", "b"]), group(&["c"])]);
        assert_eq!(
            ["a", "b", "c", "d"].map(|name| shelf.group(name)),
            [Some(0), Some(0), Some(1), None]
        );
        let key = |group| (group, 0, vec![1; 32]);
        assert!(shelf.put(key(0), memory(), 10, 5));
        assert!(!shelf.put(key(0), memory(), 10, 6), "it is there");
        assert!(shelf.take(&key(1), 10, 7).is_none(), "another group");
        assert!(shelf.take(&key(0), 11, 6).is_none(), "another size");
        assert!(shelf.take(&key(0), 10, 6).is_some());
        assert_eq!((shelf.bytes(0), shelf.bytes(1)), (10, 0));
        shelf.leave(&key(0), 5);
        shelf.leave(&key(0), 5);
        shelf.leave(&key(0), 99);
        assert_eq!(shelf.bytes(0), 10, "the other has it");
        shelf.leave_all(6);
        assert_eq!(shelf.bytes(0), 0);
    }
}
