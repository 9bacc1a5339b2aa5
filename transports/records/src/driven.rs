//! A connection of the trait, from an [`Exchange`] and a carrier.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use genie_transport::transport::{Completion, Connection, Memory, MemoryKey, Part, Result};

use crate::course::Course;
use crate::exchange::Exchange;
use crate::guard::Tally;
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

    /// Of the accepting end: it has something to say before the peer does.
    fn speaks_first(&self) -> bool {
        false
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

    /// Where the peer is; nothing on this machine.
    fn peer_ip(&self) -> Option<IpAddr> {
        None
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// A connection of the trait, driven by its caller alone.
pub struct Driven<C> {
    course: Course<C>,
    readiness: Readiness,
    /// Of the listener that it came by.
    tally: Option<Arc<Tally>>,
}

impl<C: Carrier> Driven<C> {
    pub fn new(course: Course<C>) -> Result<Self> {
        let readiness = Readiness::new(course.event_fd())?;
        let mut driven = Driven { course, readiness, tally: None };
        driven.settle(Instant::now());
        Ok(driven)
    }

    /// Its statistics tell what became of others at that listener.
    pub(crate) fn came_by(&mut self, tally: Arc<Tally>) {
        self.tally = Some(tally);
    }

    /// Makes progress; what comes of it waits for `poll`.
    fn progress(&mut self) {
        let now = Instant::now();
        self.course.progress(now);
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        let (room, due) = (self.course.wants_room(), self.course.exchange.next_tick(now));
        let settled = self.readiness.settle(self.course.event_fd(), room, due, now);
        if let Err(error) = settled {
            self.course.exchange.fail(error);
        }
    }

    /// After a post: sends at once what can be.
    fn push(&mut self) {
        if !self.course.exchange.is_open() || self.course.exchange.failure().is_some() {
            return;
        }
        let now = Instant::now();
        // Its error comes with the next poll, which tries again and reads the peer's goodbye.
        let _ = self.course.carrier.send(&mut self.course.exchange, now);
        self.settle(now);
    }
}

impl<C: Carrier> Connection for Driven<C> {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.readiness.fd()
    }

    fn arm(&mut self) -> Result<bool> {
        Ok(self.course.exchange.has_news() || self.course.carrier.has_more())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        self.progress();
        self.course.exchange.take_completions(completions)
    }

    fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.course.exchange.send_frame(kind, parts, memory)?;
        self.push();
        Ok(())
    }

    fn queued_bytes(&self) -> u64 {
        self.course.exchange.queued_bytes() as u64
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.course.exchange.register(memory)
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        self.course.exchange.unregister(key)
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.course.exchange.offer(window, part)?;
        self.push();
        Ok(())
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        self.course.exchange.withdraw(window)?;
        self.push();
        Ok(())
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.course.exchange.write(message, parts, window, offset)?;
        self.push();
        Ok(())
    }

    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        self.course.carrier.export_secret(&self.course.exchange, label)
    }

    fn peer_identity(&self) -> String {
        self.course.carrier.peer_identity()
    }

    fn peer_address(&self) -> String {
        self.course.carrier.peer_address()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let mut all = self.course.exchange.statistics();
        all.extend(self.course.carrier.statistics());
        all.extend(self.tally.iter().flat_map(|tally| tally.statistics()));
        all
    }

    fn close(&mut self, reason: &str) {
        self.course.exchange.close(reason, Instant::now());
        self.push();
    }
}
