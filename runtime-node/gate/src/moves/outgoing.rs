//! A weight that goes to another node: wait for it, write, and be told that all is there.

use std::sync::Arc;
use std::time::Instant;

use genie_transport::SharedMemory;
use genie_transport::transport::{
    Cause, Completion, Connection, Listener, Memory, MemoryKey, Part,
};

use super::{Step, WINDOW, Watch, part_with};

/// The largest message.
const MESSAGE_BYTES: u64 = 4 << 20;

pub(super) struct Outgoing {
    /// The worker's, which fills it.
    memory: Arc<SharedMemory>,
    /// Bytes that are there, from the start.
    copied: u64,
    way: Way,
    posted: u64,
    messages: u64,
    written: u64,
    completions: Vec<Completion>,
}

enum Way {
    Waiting(Box<dyn Listener>),
    /// With the copy's key once the peer proved who it is.
    Connected(Box<dyn Connection>, Option<MemoryKey>),
}

impl Outgoing {
    pub(super) fn new(memory: Arc<SharedMemory>, listener: Box<dyn Listener>) -> Self {
        let (way, completions) = (Way::Waiting(listener), Vec::new());
        Outgoing { memory, copied: 0, way, posted: 0, messages: 0, written: 0, completions }
    }

    /// So many bytes are there, from the start.
    pub(super) fn copied(&mut self, bytes: u64) {
        self.copied = self.copied.max(bytes.min(self.memory.bytes()));
    }

    /// Whether the other node did not connect yet.
    pub(super) fn waits(&self) -> bool {
        matches!(self.way, Way::Waiting(_))
    }

    pub(super) fn turn(&mut self, watch: &Watch<'_>) -> Result<Step, String> {
        self.accept(watch)?;
        let polled = match &mut self.way {
            Way::Waiting(_) => Ok(()),
            Way::Connected(data, _) => data.poll(&mut self.completions),
        };
        let mut connected = false;
        for completion in self.completions.drain(..) {
            match completion {
                Completion::Connected => connected = true,
                Completion::Written { .. } => self.written += 1,
                _ => {}
            }
        }
        if self.is_written() {
            return Ok(Step::Done);
        }
        polled.map_err(|error| error.message)?;
        if connected {
            self.open()?;
        }
        self.write()?;
        let more = match &mut self.way {
            Way::Waiting(_) => false,
            Way::Connected(data, _) => data.arm().map_err(|error| error.message)?,
        };
        Ok(if more { Step::Busy } else { Step::Wait })
    }

    fn is_written(&self) -> bool {
        self.posted == self.memory.bytes() && self.written == self.messages
    }

    fn accept(&mut self, watch: &Watch<'_>) -> Result<(), String> {
        let Way::Waiting(listener) = &mut self.way else { return Ok(()) };
        match listener.accept() {
            Ok(Some(data)) => {
                watch.remove(listener.event_fd());
                watch.add(data.event_fd())?;
                self.way = Way::Connected(data, None);
            }
            Ok(None) => {}
            // Some stranger's; the right one may still come.
            Err(error) => tracing::debug!("a data connection is not accepted: {error}"),
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        if let Way::Connected(data, key) = &mut self.way {
            let memory = Memory::shared(self.memory.clone());
            *key = Some(data.register(memory).map_err(|error| error.message)?);
        }
        Ok(())
    }

    /// Posts what is copied, as far as the transport takes it.
    fn write(&mut self) -> Result<(), String> {
        let Way::Connected(data, Some(key)) = &mut self.way else { return Ok(()) };
        while self.posted < self.copied {
            let bytes = (self.copied - self.posted).min(MESSAGE_BYTES);
            let part = Part { key: *key, offset: self.posted, bytes };
            match data.write(self.messages + 1, &[part], WINDOW, self.posted) {
                Ok(()) => {
                    self.messages += 1;
                    self.posted += bytes;
                }
                Err(error) if error.cause == Cause::OutOfCredit => return Ok(()),
                Err(error) => return Err(error.message),
            }
        }
        Ok(())
    }

    /// Ends the connection: nothing reads the memory any more when this returns, unless all of it
    /// was written.
    pub(super) fn end(self, watch: &Watch<'_>, parting: &mut Vec<(Box<dyn Connection>, Instant)>) {
        let whole = self.is_written();
        match self.way {
            Way::Waiting(listener) => watch.remove(listener.event_fd()),
            Way::Connected(mut data, _) if whole => {
                data.close("the weight is there");
                part_with(data, watch, parting);
            }
            Way::Connected(data, _) => watch.remove(data.event_fd()),
        }
    }
}
