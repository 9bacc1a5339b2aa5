//! A weight that comes from another node: connect, and wait for its bytes.

use std::sync::Arc;
use std::time::Instant;

use genie_transport::SharedMemory;
use genie_transport::transport::{Completion, Connection, Memory, Part, Result as Transported};

use super::{Step, WINDOW, Watch, part_with};

pub(super) struct Incoming {
    /// The worker's, to be filled.
    memory: Arc<SharedMemory>,
    /// `None` once all bytes are there.
    data: Option<Box<dyn Connection>>,
    placed: u64,
    completions: Vec<Completion>,
}

impl Incoming {
    pub(super) fn new(memory: Arc<SharedMemory>, data: Box<dyn Connection>) -> Self {
        Incoming { memory, data: Some(data), placed: 0, completions: Vec::new() }
    }

    pub(super) fn turn(
        &mut self,
        watch: &Watch<'_>,
        parting: &mut Vec<(Box<dyn Connection>, Instant)>,
    ) -> Result<Step, String> {
        let Some(data) = &mut self.data else { return Ok(Step::Done) };
        let polled = data.poll(&mut self.completions);
        for completion in self.completions.drain(..) {
            match completion {
                Completion::Connected => {
                    offer(data.as_mut(), &self.memory).map_err(|error| error.message)?;
                }
                Completion::Placed { bytes, .. } => {
                    self.placed = self.placed.saturating_add(bytes);
                }
                _ => {}
            }
        }
        if self.placed >= self.memory.bytes() {
            // Its end may have come behind the last byte.
            if polled.is_ok() {
                data.withdraw(WINDOW).map_err(|error| error.message)?;
            }
            // The giving end closes: it has to be told first that all is there.
            if let Some(data) = self.data.take() {
                part_with(data, watch, parting);
            }
            return Ok(Step::Done);
        }
        polled.map_err(|error| error.message)?;
        let more = data.arm().map_err(|error| error.message)?;
        Ok(if more { Step::Busy } else { Step::Wait })
    }

    /// Nothing writes the memory any more when this returns.
    pub(super) fn end(self, watch: &Watch<'_>) {
        if let Some(data) = self.data {
            watch.remove(data.event_fd());
        }
    }
}

/// Lets the other node write all of the memory.
fn offer(data: &mut dyn Connection, memory: &Arc<SharedMemory>) -> Transported<()> {
    let bytes = memory.bytes();
    let key = data.register(Memory::shared(memory.clone()))?;
    data.offer(WINDOW, Part { key, offset: 0, bytes })
}
