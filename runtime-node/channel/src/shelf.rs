//! Weights that several workers share: the gate keeps their memory, which nobody can change.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use genie_transport::FrozenMemory;
use genie_wire::record::WeightHash;

use crate::message::{Found, SharedWeight, Shelved, Unshelve};
use crate::{Channel, Message};

/// Smaller weights are not shared: each takes a descriptor, and is uploaded soon.
pub const SHARED_BYTES_MIN: u64 = 1 << 20;
/// How long a worker waits for an answer, before it takes it for a no.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A worker's way to the weights that it shares with others.
#[derive(Debug)]
pub struct Shelf {
    channel: Channel,
    asked: u64,
}

impl Shelf {
    /// Over the channel's end that came from the gate.
    pub fn over(channel: OwnedFd) -> Self {
        Shelf { channel: Channel::over(channel), asked: 0 }
    }

    /// A weight that another worker offered: say [`Shelf::leave`] when it is not used any more. Its
    /// bytes are to be checked.
    pub fn seek(&mut self, hash: &WeightHash, bytes: u64) -> Option<FrozenMemory> {
        let number = self.next();
        let seek = Message::Seek(SharedWeight { number, hash: hash.to_vec(), bytes });
        let (Message::Found(_), fds) = self.ask(seek, vec![], number)? else { return None };
        let memory = FrozenMemory::adopt(fds.first()?.as_fd(), bytes);
        if memory.is_err() {
            self.leave(hash);
        }
        memory.ok()
    }

    /// Offers a weight to others; `None` when it is not taken. As with [`Shelf::seek`] then.
    pub fn offer(&mut self, hash: &WeightHash, content: &[u8]) -> Option<FrozenMemory> {
        let (memory, fd) = FrozenMemory::of(content).ok()?;
        let number = self.next();
        let bytes = content.len() as u64;
        let offer = Message::Offer(SharedWeight { number, hash: hash.to_vec(), bytes });
        match self.ask(offer, vec![fd], number)? {
            (Message::Shelved(Shelved { taken: true, .. }), _) => Some(memory),
            _ => None,
        }
    }

    /// A shared weight is not used any more.
    pub fn leave(&mut self, hash: &WeightHash) {
        // A gate that is gone has forgotten it.
        let _ = self.channel.post(Message::Unshelve(Unshelve { hash: hash.to_vec() }), vec![]);
    }

    fn next(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn ask(
        &mut self,
        question: Message,
        fds: Vec<OwnedFd>,
        asked: u64,
    ) -> Option<(Message, Vec<OwnedFd>)> {
        self.channel.post(question, fds).ok()?;
        let until = Instant::now() + ANSWER_MAX;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.channel.wait(Some(left)).ok()??;
            let number = match &answer.0 {
                Message::Found(Found { number }) => *number,
                Message::Shelved(Shelved { number, .. }) => *number,
                _ => return None,
            };
            // Others came too late.
            if number == asked {
                return Some(answer);
            }
        }
    }
}
