//! Time and the end: signs of life, deadlines and goodbyes.

use std::time::Instant;

use genie_transport::transport::{Cause, TransportError};

use super::{CONTROL, Exchange};
use crate::record::{REASON_BYTES_MAX, Record};

/// A sign of life is given this many times within the deadline.
const SIGNS_PER_DEADLINE: u32 = 4;

impl Exchange {
    /// Queued frames are still sent; then the peer is told.
    pub fn close(&mut self, reason: &str, now: Instant) {
        if self.closing || self.failure.is_some() {
            return;
        }
        if self.is_open() {
            self.push_close(reason);
        } else {
            // Nothing was sent that anybody could miss.
            self.failure = Some(closed_here());
        }
        self.closing = true;
        self.closing_since = Some(now);
    }

    /// Whether everything that this end had to say is on its way, goodbye included.
    pub fn has_said_all(&self) -> bool {
        self.closing && self.lanes[CONTROL].queued() == 0 && self.lanes[CONTROL].chunk.is_none()
    }

    /// What is due by now: signs of life, and the ends of patience.
    pub fn tick(&mut self, now: Instant) {
        if self.failure.is_some() {
            return;
        }
        if !self.is_open() {
            if now >= self.begun + self.connect_time {
                self.fail(TransportError::new(
                    Cause::TimedOut,
                    format!(
                        "the peer did not answer within {} ms; is it reachable, and does it speak \
                         this transport?",
                        self.connect_time.as_millis()
                    ),
                ));
            }
            return;
        }
        if let Some(closed) = self.closing_since
            && now >= closed + self.deadline
        {
            self.failure = Some(closed_here());
            return;
        }
        if !self.watch {
            return;
        }
        if self.has_much_news() {
            // It is the caller who does not take what the peer sent.
            self.heard = now;
        }
        if now >= self.heard + self.deadline {
            self.fail(TransportError::new(
                Cause::TimedOut,
                format!("no sign of life from the peer for {} ms", self.deadline.as_millis()),
            ));
        } else if now >= self.sent + self.deadline / SIGNS_PER_DEADLINE && !self.wants_to_send() {
            Record::Alive.encode(self.lanes[CONTROL].record(None));
            self.sent = now;
        }
    }

    /// When [`Exchange::tick`] is due next.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        if self.failure.is_some() {
            return None;
        }
        if !self.is_open() {
            return Some(self.begun + self.connect_time);
        }
        if let Some(closed) = self.closing_since {
            return Some(closed + self.deadline);
        }
        if !self.watch {
            return None;
        }
        let sign = self.sent + self.deadline / SIGNS_PER_DEADLINE;
        let end = self.heard + self.deadline;
        // A sign that is overdue cannot leave: the peer reads nothing, its own are awaited.
        Some(if sign > now { sign.min(end) } else { end })
    }

    /// The peer said goodbye.
    pub(super) fn on_close(&mut self, reason: &[u8]) {
        self.peer_closed = true;
        let reason = String::from_utf8_lossy(reason);
        let error = match self.closing {
            true => closed_here(),
            false => {
                // So that the peer knows that its goodbye was heard.
                self.push_close("");
                let text = match reason.is_empty() {
                    true => "the peer closed the connection".to_owned(),
                    false => format!("the peer closed the connection: {reason}"),
                };
                TransportError::new(Cause::Closed, text)
            }
        };
        self.failure.get_or_insert(error);
    }

    pub(super) fn push_close(&mut self, reason: &str) {
        let mut bytes = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(bytes) {
            bytes -= 1;
        }
        let reason = &reason.as_bytes()[..bytes];
        Record::Close { reason }.encode(self.lanes[CONTROL].record(None));
    }
}

fn closed_here() -> TransportError {
    TransportError::new(Cause::Closed, "the connection was closed by this end")
}
