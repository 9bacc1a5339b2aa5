//! How a connection moves along: an [`Exchange`] and its carrier, without descriptors of their own.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use genie_transport::transport::{Cause, TransportError};

use crate::driven::Carrier;
use crate::exchange::Exchange;

/// See the module.
pub struct Course<C> {
    pub(crate) carrier: C,
    pub(crate) exchange: Exchange,
}

impl<C: Carrier> Course<C> {
    pub fn new(carrier: C, exchange: Exchange) -> Self {
        Course { carrier, exchange }
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.carrier.event_fd()
    }

    pub(crate) fn peer_ip(&self) -> Option<IpAddr> {
        self.carrier.peer_ip()
    }

    /// Whether the peer is there and is who it should be.
    pub(crate) fn is_open(&self) -> bool {
        self.exchange.is_open()
    }

    /// Whether to wake up for room to send.
    pub(crate) fn wants_room(&self) -> bool {
        self.exchange.failure().is_none() && self.carrier.wants_room(&self.exchange)
    }

    pub(crate) fn progress(&mut self, now: Instant) {
        if self.exchange.failure().is_some() {
            return;
        }
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
}
