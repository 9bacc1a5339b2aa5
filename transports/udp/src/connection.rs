//! One connection: the protocol between its caller and its [`Endpoint`].

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use genie_bulk::{CloseReason, Event, MILLISECOND, Role, Time, WindowError, WriteError};
use genie_transport::transport::{
    COMPLETIONS_MAX, Cause, Completion, Connection, Memory, MemoryKey, Options, PARTS_MAX, Part,
    Result, TransportError,
};

use crate::endpoint::Endpoint;
use crate::memories::Memories;
use crate::settings::{Settings, resolve};
use crate::socket::{Socket, any_of, datagram_bytes};
use crate::wake::now;
use crate::{bulk_config, invalid, io};

pub(crate) struct UdpConnection {
    endpoint: Endpoint,
    bulk: genie_bulk::Connection,
    memories: Memories,
    peer: String,
    message_bytes_max: u64,
    datagram_bytes: usize,
    /// Until the peer has answered: when to give up, and the milliseconds that were granted.
    connecting: Option<(Time, u64)>,
    /// Whether a poll is due without anything new from outside.
    more: bool,
    /// The caller may sleep: calls must then see to their own sending and waking.
    armed: bool,
    /// Messages that the peer will never have, to be told one by one.
    undelivered: VecDeque<TransportError>,
    failed: Option<TransportError>,
}

impl UdpConnection {
    pub fn connect(options: &Options) -> Result<Self> {
        let settings = Settings::read(options)?;
        let peer = resolve(&options.address)?;
        let flows = settings.flows();
        let datagram_bytes = datagram_bytes(peer, settings.mtu)
            .map_err(|error| io(&format!("find a route to {peer}"), &error))?;
        let config = bulk_config(options, &settings, Role::Client, datagram_bytes, flows)?;
        let started = now();
        let bulk = genie_bulk::Connection::new(config, started).map_err(invalid)?;
        let sockets: std::io::Result<Vec<_>> =
            (0..flows).map(|_| Socket::open(any_of(peer), settings.buffer_bytes)).collect();
        let endpoint = sockets
            .and_then(|sockets| Endpoint::connected(sockets, peer))
            .map_err(|error| io(&format!("open sockets towards {peer}"), &error))?;
        let mut connection = UdpConnection::new(endpoint, bulk, peer.to_string(), options);
        connection.connecting =
            Some((started + options.connect_ms * MILLISECOND, options.connect_ms));
        // The first hello leaves at once; the poll that sees to the rest is due.
        connection.more |= connection.endpoint.transmit(&mut connection.bulk, started)?;
        connection.settle()?;
        Ok(connection)
    }

    /// A connection whose peer has proved itself.
    pub fn accepted(
        endpoint: Endpoint,
        bulk: genie_bulk::Connection,
        peer: String,
        options: &Options,
    ) -> Result<Self> {
        let mut connection = UdpConnection::new(endpoint, bulk, peer, options);
        // What came behind the hello was handled already: its events wait.
        connection.endpoint.wake_now()?;
        Ok(connection)
    }

    fn new(
        endpoint: Endpoint,
        bulk: genie_bulk::Connection,
        peer: String,
        options: &Options,
    ) -> Self {
        UdpConnection {
            endpoint,
            datagram_bytes: bulk.config().datagram_bytes,
            bulk,
            memories: Memories::default(),
            peer,
            message_bytes_max: options.message_bytes_max,
            connecting: None,
            more: true,
            armed: false,
            undelivered: VecDeque::new(),
            failed: None,
        }
    }

    /// Takes the protocol's events as completions. `true`: there are more.
    fn take_events(&mut self, completions: &mut Vec<Completion>) -> bool {
        for _ in 0..COMPLETIONS_MAX {
            let Some(event) = self.bulk.poll_event() else { return false };
            match event {
                Event::Connected { .. } => {
                    self.connecting = None;
                    completions.push(Completion::Connected);
                }
                Event::Placed { message, window, offset, len } => {
                    completions.push(Completion::Placed { message, window, offset, bytes: len });
                }
                Event::Written { message } => {
                    self.memories.release_message(message);
                    completions.push(Completion::Written { message });
                }
                Event::Failed { message, reason } => {
                    self.memories.release_message(message);
                    let why = invalid(format!("message {message} was not delivered: {reason}"));
                    self.undelivered.push_back(why);
                }
                Event::Writable => completions.push(Completion::Writable),
                Event::Closed(reason) => {
                    self.memories.release_all();
                    self.failed = Some(ended(&self.peer, &reason));
                }
            }
        }
        true
    }

    /// Nobody answered in time.
    fn give_up(&mut self) -> TransportError {
        let granted_ms = self.connecting.take().map_or(0, |(_, granted_ms)| granted_ms);
        self.bulk.close(now(), 0, "no answer");
        self.memories.release_all();
        let peer = &self.peer;
        let heard = match &self.endpoint.last_error {
            Some(error) => format!("the network said: {error}"),
            None => "is its port open, and its secret ours?".to_owned(),
        };
        let message = format!("udp: no answer from {peer} within {granted_ms} ms; {heard}");
        TransportError::new(Cause::TimedOut, message)
    }

    fn next_time(&self) -> Option<Time> {
        let connecting = self.connecting.map(|(until, _)| until);
        [self.bulk.poll_timeout(), connecting].into_iter().flatten().min()
    }

    /// After a call: a caller that sleeps already must neither wait for its bytes to leave nor
    /// miss a time that has become nearer. One that does not sleep calls `poll` or `arm`, which
    /// send several calls' bytes together.
    fn settle(&mut self) -> Result<()> {
        if !self.armed {
            return Ok(());
        }
        let now = now();
        let more = self.endpoint.transmit(&mut self.bulk, now)?;
        if more || self.endpoint.wake_at(self.next_time(), now)? {
            self.endpoint.wake_now()?;
        }
        Ok(())
    }

    fn usable(&self) -> Result<()> {
        match (&self.failed, self.bulk.closed()) {
            (Some(failed), _) => Err(failed.clone()),
            (None, Some(reason)) => Err(ended(&self.peer, reason)),
            (None, None) => Ok(()),
        }
    }
}

impl Connection for UdpConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.endpoint.wake().fd()
    }

    fn arm(&mut self) -> Result<bool> {
        if self.more || self.failed.is_some() || !self.undelivered.is_empty() {
            return Ok(true);
        }
        let now = now();
        if self.endpoint.transmit(&mut self.bulk, now)? {
            return Ok(true);
        }
        if self.endpoint.wake_at(self.next_time(), now)? {
            return Ok(true);
        }
        self.armed = true;
        Ok(false)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        self.armed = false;
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let before = completions.len();
        let UdpConnection { endpoint, bulk, .. } = self;
        let mut more = endpoint.receive(|routes, arrival| routes.feed(bulk, arrival))?;
        let now = endpoint.time();
        if self.bulk.poll_timeout().is_some_and(|at| at <= now) {
            self.bulk.handle_timeout(now);
        }
        more |= self.take_events(completions);
        more |= self.endpoint.transmit(&mut self.bulk, now)?;
        self.more = more;
        if self.failed.is_none() && self.connecting.is_some_and(|(until, _)| until <= now) {
            self.failed = Some(self.give_up());
        }
        if completions.len() > before {
            return Ok(());
        }
        if let Some(undelivered) = self.undelivered.pop_front() {
            return Err(undelivered);
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn send_frame(&mut self, _: u8, _: &[&[u8]], _: Option<BorrowedFd<'_>>) -> Result<()> {
        Err(TransportError::unsupported("udp", "frames: it carries placed writes only"))
    }

    fn queued_bytes(&self) -> u64 {
        0
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.memories.register(memory)
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.memories.unregister(key)
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.usable()?;
        if self.memories.windows_full() {
            return Err(invalid(format!("window {window}: too many are offered already")));
        }
        let span = self.memories.span(part)?;
        self.bulk.offer(window, Arc::new(span)).map_err(|error| window_error(&self.peer, error))?;
        self.memories.hold_for_window(window, part.key);
        self.settle()
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        self.usable()?;
        self.bulk.withdraw(window).map_err(|error| window_error(&self.peer, error))?;
        self.memories.release_window(window);
        self.settle()
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.usable()?;
        if parts.len() > PARTS_MAX {
            let count = parts.len();
            return Err(invalid(format!("a list has {count} parts, {PARTS_MAX} are allowed")));
        }
        let spans: Result<Vec<_>> = parts.iter().map(|part| self.memories.span(*part)).collect();
        let spans = spans?;
        let bytes: u64 = spans.iter().map(|span| span.len() as u64).sum();
        if bytes > self.message_bytes_max {
            let most = self.message_bytes_max;
            return Err(invalid(format!(
                "message {message} has {bytes} bytes, {most} are allowed"
            )));
        }
        self.bulk
            .write(message, spans, window, offset)
            .map_err(|error| write_error(&self.peer, error))?;
        self.memories.hold_for_message(message, parts);
        self.settle()
    }

    fn export_secret(&self, _: &[u8]) -> Result<[u8; 32]> {
        Err(TransportError::unsupported("udp", "secrets of its own: ask the control session"))
    }

    fn peer_identity(&self) -> String {
        // The secret proves that it is the control session's peer, who is known there.
        String::new()
    }

    fn peer_address(&self) -> String {
        self.peer.clone()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let bulk = self.bulk.statistics();
        let edge = self.endpoint.counters;
        let own = [
            ("datagram_bytes", self.datagram_bytes as u64),
            ("system_sends", edge.sends),
            ("system_receives", edge.receives),
            ("send_blocked", edge.blocked),
            ("network_errors", edge.errors),
            // Not zero: net.core.rmem_max is smaller than what was asked for.
            ("receive_buffer_missing_bytes", self.endpoint.clipped_bytes() as u64),
        ];
        let all = bulk.entries().into_iter().chain(own);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn close(&mut self, reason: &str) {
        self.bulk.close(now(), 0, reason);
        self.more = true;
        if self.armed {
            // Nothing to do about a timer that cannot be set: the next poll fails with it.
            let _ = self.endpoint.transmit(&mut self.bulk, now());
            let _ = self.endpoint.wake_now();
        }
    }
}

impl Drop for UdpConnection {
    fn drop(&mut self) {
        if self.bulk.is_connected() {
            self.bulk.close(now(), 0, "its user is gone");
            // The peer would find out by its deadline, too.
            let _ = self.endpoint.transmit(&mut self.bulk, now());
        }
    }
}

/// Why a connection ended, in the words of the trait.
pub(crate) fn ended(peer: &str, reason: &CloseReason) -> TransportError {
    let cause = match reason {
        CloseReason::Here { .. } | CloseReason::Peer { .. } | CloseReason::PeerRestarted => {
            Cause::Closed
        }
        CloseReason::TimedOut { .. } => Cause::TimedOut,
        CloseReason::Version { .. } => Cause::Version,
        CloseReason::PeerFailed { .. } | CloseReason::Protocol { .. } | CloseReason::Exhausted => {
            Cause::Protocol
        }
        CloseReason::Forgeries { .. } => Cause::Refused,
        CloseReason::Placement { .. } => Cause::Io,
    };
    TransportError::new(cause, format!("udp: {peer}: {reason}"))
}

fn write_error(peer: &str, error: WriteError) -> TransportError {
    match error {
        WriteError::OutOfCredit { .. } => {
            TransportError::new(Cause::OutOfCredit, format!("udp: {error}"))
        }
        WriteError::Closed(reason) => ended(peer, &reason),
        other => invalid(other),
    }
}

fn window_error(peer: &str, error: WindowError) -> TransportError {
    match error {
        WindowError::Closed(reason) => ended(peer, &reason),
        other => invalid(other),
    }
}
