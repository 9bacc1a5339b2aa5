//! A weight that comes from another node: connect, wait for its bytes, and look at them.

use std::time::Instant;

use genie_transport::transport::{Completion, Connection, Memory, Part};
use genie_wire::control::WeightFetch;

use super::{Step, WINDOW, Watch, part_with};
use crate::transit::Arriving;
use crate::{Backend, Executor};

pub(super) struct Incoming<S> {
    arriving: Arriving<S>,
    /// `None` once all bytes are there.
    data: Option<Box<dyn Connection>>,
    placed: u64,
    /// The server's connection whose session asked, its question, and for which storage.
    connection: u64,
    token: u64,
    storage: u64,
    completions: Vec<Completion>,
}

impl<S> Incoming<S> {
    pub(super) fn new(
        arriving: Arriving<S>,
        data: Box<dyn Connection>,
        connection: u64,
        fetch: &WeightFetch,
    ) -> Self {
        let (token, storage) = (fetch.token, fetch.storage);
        let (data, completions) = (Some(data), Vec::new());
        Incoming { arriving, data, placed: 0, connection, token, storage, completions }
    }

    pub(super) fn asked_by(&self) -> (u64, u64, u64) {
        (self.connection, self.token, self.storage)
    }

    pub(super) fn turn<B: Backend<Storage = S>>(
        &mut self,
        executor: &Executor<B>,
        watch: &Watch<'_>,
        parting: &mut Vec<(Box<dyn Connection>, Instant)>,
    ) -> Result<Step, String> {
        let Some(data) = &mut self.data else {
            let done = executor.copy_arriving(&mut self.arriving);
            return match done.map_err(|failure| failure.message)? {
                true => Ok(Step::Done),
                false => Ok(Step::Busy),
            };
        };
        let polled = data.poll(&mut self.completions);
        for completion in self.completions.drain(..) {
            match completion {
                Completion::Connected => {
                    offer(data.as_mut(), &self.arriving).map_err(|error| error.message)?;
                }
                Completion::Placed { bytes, .. } => {
                    self.placed = self.placed.saturating_add(bytes);
                }
                _ => {}
            }
        }
        if self.placed >= self.arriving.bytes() {
            // Its end may have come behind the last byte.
            if polled.is_ok() {
                data.withdraw(WINDOW).map_err(|error| error.message)?;
            }
            // The giving end closes: it has to be told first that all is there.
            if let Some(data) = self.data.take() {
                part_with(data, watch, parting);
            }
            return Ok(Step::Busy);
        }
        polled.map_err(|error| error.message)?;
        let more = data.arm().map_err(|error| error.message)?;
        Ok(if more { Step::Busy } else { Step::Wait })
    }

    /// Nothing writes the copy any more when this returns.
    pub(super) fn end(self, watch: &Watch<'_>) -> Arriving<S> {
        if let Some(data) = self.data {
            watch.remove(data.event_fd());
        }
        self.arriving
    }
}

/// Lets the other node write all of the copy.
fn offer<S>(
    data: &mut dyn Connection,
    arriving: &Arriving<S>,
) -> genie_transport::transport::Result<()> {
    let key = data.register(Memory::shared(arriving.memory().clone()))?;
    data.offer(WINDOW, Part { key, offset: 0, bytes: arriving.bytes() })
}
