//! Memory and windows: this end's, which it offers, and the peer's.

use genie_transport::transport::{Memory, MemoryKey, Part, Result, WINDOWS_MAX};

use super::Exchange;
use crate::record::{Offer, Record, protocol};

pub(super) struct PeerWindow {
    pub generation: u64,
    pub bytes: u64,
}

impl Exchange {
    pub fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.memories.register(self.transport, memory)
    }

    pub fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.memories.unregister(key)
    }

    pub fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.usable()?;
        let memory = self.memories.may_offer(window, &part)?;
        let (mut gate, mut beside, mut base) = (0, None, 0);
        if let Some(sharing) = &mut self.sharing {
            let (given, fd) = sharing.offer(self.memories.generation + 1, memory)?;
            (gate, beside, base) = (given, Some(fd), part.offset);
        }
        let generation = self.memories.offer(window, part, gate);
        let is_beside = beside.is_some();
        let bytes = part.bytes;
        let offer = Offer { window, gate, generation, bytes, base, beside: is_beside };
        self.post(Record::Offer(offer), beside);
        Ok(())
    }

    pub fn withdraw(&mut self, window: u32) -> Result<()> {
        let withdrawn = self.memories.withdraw(window)?;
        for lane in &mut self.lanes {
            if let Some(arriving) = &mut lane.incoming.arriving
                && arriving.write.generation == withdrawn.generation
            {
                arriving.target = None;
            }
        }
        if let Some(sharing) = &mut self.sharing
            && let Err(error) = sharing.withdraw(withdrawn.gate)
        {
            self.fail(error.clone());
            return Err(error);
        }
        self.post(Record::Withdraw { window, generation: withdrawn.generation }, None);
        Ok(())
    }

    pub(super) fn on_offer(&mut self, offer: Offer) -> Result<()> {
        let Offer { window, generation, bytes, .. } = offer;
        if generation <= self.peer_generation
            || bytes == 0
            || self.peer_windows.contains_key(&window)
            || self.peer_windows.len() >= WINDOWS_MAX
            || offer.beside != self.sharing.is_some()
        {
            return Err(protocol(format!("an offer of window {window} that cannot be")));
        }
        if offer.beside {
            let beside = self.take_descriptor()?;
            self.sharing.as_mut().expect("checked above").adopt(&offer, beside)?;
        }
        self.peer_generation = generation;
        self.peer_windows.insert(window, PeerWindow { generation, bytes });
        if let Some(waiting) = self.waiting.remove(&window) {
            self.ready.extend(waiting);
        }
        Ok(())
    }

    pub(super) fn on_withdraw(&mut self, window: u32, generation: u64) -> Result<()> {
        match self.peer_windows.get(&window) {
            Some(open) if open.generation == generation => {
                self.peer_windows.remove(&window);
            }
            _ => return Err(protocol(format!("an end of window {window}, unknown here"))),
        }
        if let Some(sharing) = &mut self.sharing {
            sharing.forget(generation);
        }
        Ok(())
    }
}
