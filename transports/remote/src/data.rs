//! The way that payloads take, as far as it has been made.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use genie_transport::SharedMemory;
use genie_transport::transport::{
    Completion, Connection, Listener, Memory, MemoryKey, Part, Result, TransportError,
};
use rustix::event::epoll;

use crate::payloads::{Arrivals, Posted};

/// How far the data connection is.
pub(crate) enum Path {
    /// None was asked for, or the last one failed and the host has not chosen again.
    None,
    /// The host asked and waits for the node to listen.
    Asked,
    /// The node waits for the host to connect.
    Listening(Box<dyn Listener>),
    Connecting(Box<dyn Connection>),
    Open(Box<dyn Connection>),
    /// Payloads go over the control connection.
    OverControl,
    /// The control connection passes the memory itself.
    Shared,
}

/// The regions of a link, and what of them is registered with the connection in use.
#[derive(Default)]
pub(crate) struct Regions {
    memories: BTreeMap<u32, Arc<SharedMemory>>,
    keys: BTreeMap<u32, MemoryKey>,
    bytes: u64,
}

impl Regions {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.memories.len()
    }

    pub(crate) fn insert(&mut self, region: u32, memory: Arc<SharedMemory>) {
        self.bytes += memory.bytes();
        if let Some(before) = self.memories.insert(region, memory) {
            self.bytes -= before.bytes();
        }
        self.keys.remove(&region);
    }

    /// Another connection begins: nothing is registered with it.
    pub(crate) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    /// Registers and offers what the connection does not know yet.
    pub(crate) fn offer_all(&mut self, connection: &mut dyn Connection) -> Result<()> {
        for (region, memory) in &self.memories {
            if self.keys.contains_key(region) {
                continue;
            }
            let key = connection.register(Memory::shared(memory.clone()))?;
            self.keys.insert(*region, key);
            connection.offer(*region, Part { key, offset: 0, bytes: memory.bytes() })?;
        }
        Ok(())
    }

    /// Gives the connection as many payloads as it takes.
    pub(crate) fn write_all(
        &self,
        connection: &mut dyn Connection,
        posted: &mut Posted,
    ) -> Result<()> {
        use genie_transport::transport::Cause;
        while let Some(payload) = posted.next() {
            let Some(key) = self.keys.get(&payload.region) else {
                let message = format!("region {} was never registered", payload.region);
                return Err(TransportError::new(Cause::Invalid, message));
            };
            let part = Part { key: *key, offset: payload.offset, bytes: payload.bytes };
            match connection.write(payload.number, &[part], payload.region, payload.offset) {
                Ok(()) => posted.took(),
                Err(error) if error.cause == Cause::OutOfCredit => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Notes what a completion says about payloads; other completions are returned.
pub(crate) fn note(
    completion: Completion,
    posted: &mut Posted,
    arrivals: &mut Arrivals,
) -> Option<Completion> {
    match completion {
        Completion::Written { message } => {
            posted.written(message);
        }
        Completion::Placed { message, .. } => {
            arrivals.add(message);
        }
        other => return Some(other),
    }
    None
}

/// What a link waits for: one descriptor over those of its connections.
pub(crate) struct Watch {
    epoll: OwnedFd,
}

impl Watch {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Watch { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // It may have been paused, and then it is not there.
        let _ = epoll::delete(&self.epoll, fd);
    }
}
