//! The connection: everything a carrier calls.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{Config, Time};
use crate::error::{CloseReason, ConfigError, WindowError, WriteError};
use crate::event::{Event, Statistics, Transmit};
use crate::memory::{Span, WindowMemory};

/// One end of a connection. Every call that can depend on time is told it.
pub struct Connection {
    config: Config,
    events: VecDeque<Event>,
    closed: Option<CloseReason>,
    statistics: Statistics,
    _started: Time,
}

impl Connection {
    /// A new end; the client's first `poll_transmit` says hello.
    ///
    /// # Errors
    /// A configuration that cannot work.
    pub fn new(config: Config, now: Time) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            config,
            events: VecDeque::new(),
            closed: None,
            statistics: Statistics::default(),
            _started: now,
        })
    }

    /// The connection id a datagram names, for carriers that share a socket between connections.
    /// `None`: too short to be of this protocol.
    pub fn id_of(datagram: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(datagram.get(8..16)?.try_into().ok()?))
    }

    /// Lets the peer write into `memory` under the id `window`. May be called before `Connected`.
    ///
    /// # Errors
    /// The id is in use, or too many windows are offered, or the connection is closed.
    pub fn offer(&mut self, window: u32, memory: Arc<dyn WindowMemory>) -> Result<(), WindowError> {
        let _ = (window, memory);
        Ok(())
    }

    /// Takes a window back. When this returns nothing will be placed into its memory any more, and
    /// messages that were partly placed are forgotten (the peer's writes fail). The id may be offered again at once.
    ///
    /// # Errors
    /// The window is not offered.
    pub fn withdraw(&mut self, window: u32) -> Result<(), WindowError> {
        Err(WindowError::NotOffered { window })
    }

    /// Queues a message of the bytes of `parts`, one after another, for `offset` in the peer's
    /// `window`. If the peer has not offered the window yet, the message waits for it. Ids must rise.
    ///
    /// # Errors
    /// Nothing was queued, see [`WriteError`].
    pub fn write(
        &mut self,
        message: u64,
        parts: Vec<Span>,
        window: u32,
        offset: u64,
    ) -> Result<(), WriteError> {
        let _ = (message, parts, window, offset);
        Ok(())
    }

    /// Handles one received datagram, which it may change (it is opened in place).
    pub fn handle(&mut self, now: Time, flow: u16, datagram: &mut [u8]) {
        let _ = (now, flow, datagram);
    }

    /// Fills `buf` with datagrams to send on one flow: as many as `segments_max`, `buf`, credit and
    /// pacing allow. `None`: nothing to send before [`Connection::poll_timeout`], the next datagram or call.
    /// `buf` must hold at least one datagram of `Config::datagram_bytes`.
    pub fn poll_transmit(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
    ) -> Option<Transmit> {
        let _ = (now, buf, segments_max);
        None
    }

    /// When to call [`Connection::handle_timeout`] and then [`Connection::poll_transmit`], if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// Does what is due at `now`. Calling it early does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        let _ = now;
    }

    /// The next event. Polling `Placed` gives the peer credit for another message.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Closes with the application's code and words (cut at [`crate::REASON_BYTES_MAX`]). The peer is
    /// told once by the next `poll_transmit`, and again for whatever it still sends.
    pub fn close(&mut self, code: u32, reason: &str) {
        self.closed.get_or_insert(CloseReason::Here { code, reason: reason.to_owned() });
    }

    /// Whether both ends have proven themselves and the connection is not closed.
    pub fn is_connected(&self) -> bool {
        false
    }

    /// Why the connection is closed, if it is.
    pub fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }

    /// Nothing to send, nothing unacknowledged, nothing to acknowledge and no event waiting: the
    /// carrier may sleep until a call, a datagram or `poll_timeout` (a keepalive).
    pub fn is_idle(&self) -> bool {
        self.events.is_empty()
    }

    /// Counters and the present view of the path.
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// What it was configured with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
