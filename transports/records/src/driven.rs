//! A connection of the trait, from an [`Exchange`] and a carrier.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use genie_transport::transport::{
    Cause, Completion, Connection, Memory, MemoryKey, Part, Result, TransportError,
};

use crate::exchange::Exchange;
use crate::readiness::Readiness;

/// Moves bytes between an [`Exchange`] and a peer. Never blocks.
pub trait Carrier: Send {
    /// Readable when [`Carrier::receive`] has something to do; writable, while
    /// [`Carrier::wants_room`], when [`Carrier::send`] has.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Feeds the exchange with what is there, up to a bound. Calls [`Exchange::greet`] once the
    /// way is clear. Errors come after what arrived before them.
    fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()>;

    /// Sends what the exchange has, as far as the peer takes it, up to a bound.
    fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()>;

    /// Whether to wake up for room to send.
    fn wants_room(&self, exchange: &Exchange) -> bool {
        exchange.wants_to_send()
    }

    /// Whether something is there that the event descriptor does not show.
    fn has_more(&self) -> bool {
        false
    }

    /// All has been said: ends the sending direction. Called again and again.
    fn finish(&mut self) {}

    fn export_secret(&self, exchange: &Exchange, label: &[u8]) -> Result<[u8; 32]>;

    fn peer_identity(&self) -> String;

    fn peer_address(&self) -> String;

    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// A connection of the trait, driven by its caller alone.
pub struct Driven<C> {
    carrier: C,
    exchange: Exchange,
    readiness: Readiness,
}

impl<C: Carrier> Driven<C> {
    pub fn new(carrier: C, exchange: Exchange) -> Result<Self> {
        let readiness = Readiness::new(carrier.event_fd())?;
        let mut driven = Driven { carrier, exchange, readiness };
        driven.settle(Instant::now());
        Ok(driven)
    }

    /// Whether the peer is there and is who it should be.
    pub fn is_open(&self) -> bool {
        self.exchange.is_open()
    }

    /// The error that ended the connection.
    pub fn failure(&self) -> Option<&TransportError> {
        self.exchange.failure()
    }

    /// A peer that leaves before the connection stands refuses it.
    fn end(&mut self, error: TransportError) {
        self.exchange.fail(match error.cause {
            Cause::Closed if !self.exchange.is_open() => TransportError::new(
                Cause::Refused,
                format!(
                    "the peer ended the connection before it stood ({}); its log may say why",
                    error.message
                ),
            ),
            _ => error,
        });
    }

    /// Makes progress; what comes of it waits for `poll`.
    pub fn progress(&mut self) {
        let now = Instant::now();
        if self.exchange.failure().is_none() {
            let mut sent = Ok(());
            if !self.exchange.is_full()
                && let Err(error) = self.carrier.receive(&mut self.exchange, now)
            {
                self.end(error);
            }
            if self.exchange.failure().is_none() {
                self.exchange.tick(now);
                sent = self.carrier.send(&mut self.exchange, now);
            }
            if let Err(error) = sent {
                // The peer's goodbye may lie before the end.
                let farewell = match error.cause {
                    Cause::Closed => self.carrier.receive(&mut self.exchange, now),
                    _ => Ok(()),
                };
                self.end(farewell.err().unwrap_or(error));
            }
            if self.exchange.failure().is_some() {
                // The reason, if the peer can still be told: what remains unsent has no reader.
                let _ = self.carrier.send(&mut self.exchange, now);
                self.carrier.finish();
            } else if self.exchange.has_said_all() {
                self.carrier.finish();
            }
        }
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        let ended = self.exchange.failure().is_some();
        let room = !ended && self.carrier.wants_room(&self.exchange);
        let due = self.exchange.next_tick(now);
        let settled = self.readiness.settle(self.carrier.event_fd(), room, due, now);
        if let Err(error) = settled {
            self.exchange.fail(error);
        }
    }

    /// After a post: sends at once what can be.
    fn push(&mut self) {
        if !self.exchange.is_open() || self.exchange.failure().is_some() {
            return;
        }
        let now = Instant::now();
        // Its error comes with the next poll, which tries again and reads the peer's goodbye.
        let _ = self.carrier.send(&mut self.exchange, now);
        self.settle(now);
    }
}

impl<C: Carrier> Connection for Driven<C> {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.readiness.fd()
    }

    fn arm(&mut self) -> Result<bool> {
        Ok(self.exchange.has_news() || self.carrier.has_more())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        self.progress();
        self.exchange.take_completions(completions)
    }

    fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.exchange.send_frame(kind, parts, memory)?;
        self.push();
        Ok(())
    }

    fn queued_bytes(&self) -> u64 {
        self.exchange.queued_bytes() as u64
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.exchange.register(memory)
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.exchange.unregister(key)
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.exchange.offer(window, part)?;
        self.push();
        Ok(())
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        self.exchange.withdraw(window)?;
        self.push();
        Ok(())
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.exchange.write(message, parts, window, offset)?;
        self.push();
        Ok(())
    }

    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        self.carrier.export_secret(&self.exchange, label)
    }

    fn peer_identity(&self) -> String {
        self.carrier.peer_identity()
    }

    fn peer_address(&self) -> String {
        self.carrier.peer_address()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let mut all = self.exchange.statistics();
        all.extend(self.carrier.statistics());
        all
    }

    fn close(&mut self, reason: &str) {
        self.exchange.close(reason, Instant::now());
        self.push();
    }
}
