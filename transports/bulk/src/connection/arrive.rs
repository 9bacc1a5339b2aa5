//! What arrives: hellos, packets, their fragments, frames and acknowledgements.

use super::{Connection, Session};
use crate::config::{MESSAGES_AHEAD_MAX, MICROSECOND, MILLISECOND, Role, Time};
use crate::congestion::Feedback;
use crate::error::CloseReason;
use crate::event::Event;
use crate::hello::{Greeter, Heard, common_version, session_keys};
use crate::receive::{Refused, Taken};
use crate::sent::{Cargo, Outcome};
use crate::wire::{Frame, HEADER_BYTES, Header, Kind, Malformed, Reader, Sequenced};

/// A close is told again to a peer that goes on sending, this often.
const CLOSE_EVERY: Time = 10 * MILLISECOND;

impl Connection {
    /// Handles one datagram received on `flow`, which it may change (it is opened in place).
    pub fn handle(&mut self, now: Time, flow: u16, datagram: &mut [u8]) {
        let bytes = datagram.len() as u64;
        let header = datagram.first_chunk().and_then(Header::decode);
        let Some(header) = header.filter(|it| it.connection_id == self.config.connection_id) else {
            self.statistics.foreign_dropped += 1;
            return;
        };
        let taken = if header.kind == Kind::Hello {
            self.handle_hello(now, &header, datagram)
        } else {
            self.handle_packet(now, &header, datagram)
        };
        if taken {
            self.statistics.packets_received += 1;
            self.statistics.bytes_received += bytes;
            self.heard_at = now;
            self.reply_flow = flow % self.config.flows;
            if self.waiting_since.is_some() {
                let waits = self.sent.in_flight() > 0 || !self.is_connected();
                self.waiting_since = waits.then_some(now);
            }
        }
        self.settle(now);
    }

    /// Takes a hello; `true`: it was made now, not replayed.
    fn handle_hello(&mut self, now: Time, header: &Header, datagram: &mut [u8]) -> bool {
        let Some(heard) = Greeter::open(&self.config, header, datagram) else {
            self.corrupt();
            return false;
        };
        if self.closed.is_some() {
            return false;
        }
        let is_server = self.config.role == Role::Server;
        let proven = self.session.as_ref().filter(|session| session.is_proven);
        if let Some(session) = proven {
            let is_known = session.peer_nonce == heard.nonce;
            if !is_known && heard.is_fresh {
                self.end(now, CloseReason::PeerRestarted);
            } else if !is_known || !is_server {
                // A new instance of the peer, or a replay: only the former can echo our nonce. Or a
                // server that did not hear our answer.
                self.greeter.answer(now, Some(heard.nonce));
            }
        } else if is_server {
            self.greeter.answer(now, Some(heard.nonce));
            if self.adopt(now, &heard) && heard.is_fresh {
                self.prove(now);
            }
        } else if heard.is_fresh && self.adopt(now, &heard) {
            self.greeter.rest();
            self.greeter.answer(now, Some(heard.nonce));
            self.prove(now);
        }
        heard.is_fresh
    }

    /// Makes the session that a hello proposes. `false`: there is no version in common.
    fn adopt(&mut self, now: Time, heard: &Heard) -> bool {
        let (ours, theirs) = (self.config.versions, heard.hello.versions);
        let Some(version) = common_version(ours, theirs) else {
            self.end(now, CloseReason::Version { ours, theirs });
            return false;
        };
        if self.session.as_ref().is_some_and(|session| session.peer_nonce == heard.nonce) {
            return true;
        }
        let (seal, open) = session_keys(&self.config, &heard.nonce);
        let peer_nonce = heard.nonce;
        self.session = Some(Session { peer_nonce, version, seal, open, is_proven: false });
        let theirs = heard.hello.datagram_bytes as usize;
        self.datagram_bytes =
            self.config.datagram_bytes.min(theirs.max(crate::config::DATAGRAM_BYTES_MIN));
        self.outgoing.credited(heard.hello.messages_ahead.min(MESSAGES_AHEAD_MAX).into());
        true
    }

    /// The peer is there now: the connection begins.
    fn prove(&mut self, now: Time) {
        let Some(session) = self.session.as_mut().filter(|session| !session.is_proven) else {
            return;
        };
        session.is_proven = true;
        if let Some(rtt) = self.greeter.round_trip(now) {
            self.sent.rtt.sample(rtt);
        }
        // So that the server hears from us even if nothing is written.
        self.ping_wanted = self.config.role == Role::Client;
        let version = session.version;
        self.events.push_back((Event::Connected { version }, None));
    }

    /// Takes a session packet; `true`: it was the peer's.
    fn handle_packet(&mut self, now: Time, header: &Header, datagram: &mut [u8]) -> bool {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let Some((front, body)) = datagram.split_at_mut_checked(body_at) else {
            self.statistics.foreign_dropped += 1;
            return false;
        };
        let Some(session) = &mut self.session else {
            if self.config.role == Role::Server {
                // A client that talks to our predecessor, perhaps: say that we are new.
                self.greeter.answer(now, None);
            }
            self.statistics.foreign_dropped += 1;
            return false;
        };
        if header.version != session.version {
            self.statistics.foreign_dropped += 1;
            return false;
        }
        if self.acks.is_replay(header.number) {
            self.statistics.replays_ignored += 1;
            return false;
        }
        let (clear, tag) = front.split_at(HEADER_BYTES);
        if !session.open.open(header.number, clear, tag, body) {
            if self.config.role == Role::Server && !session.is_proven {
                self.greeter.answer(now, None);
            }
            self.corrupt();
            return false;
        }
        self.prove(now);
        if let Some(reason) = &self.closed {
            let tell = !matches!(reason, CloseReason::Peer { .. } | CloseReason::PeerFailed { .. });
            if tell {
                self.close_at.get_or_insert(now + CLOSE_EVERY);
            }
            return true;
        }
        if let Err(reason) = self.take_body(now, header, body) {
            self.end(now, reason);
        }
        true
    }

    /// Takes what an authentic packet says.
    fn take_body(&mut self, now: Time, header: &Header, body: &[u8]) -> Result<(), CloseReason> {
        let is_control = header.kind == Kind::Control;
        let mut frames = body;
        if !is_control {
            let taken = match self.incoming.take(header.kind == Kind::First, body) {
                Ok(taken) => taken,
                Err(Refused::Unheard) => {
                    self.statistics.limit_dropped += 1;
                    return Ok(());
                }
                Err(Refused::Return { sequence }) => {
                    self.statistics.limit_dropped += 1;
                    return self.give_back(sequence);
                }
                Err(Refused::Close(reason)) => return Err(reason),
            };
            frames = &body[taken.frames_at..];
            self.note_taken(taken);
        }
        let wants_ack = self
            .take_frames(now, frames)
            .map_err(|Malformed(what)| CloseReason::Protocol { what })?;
        let rtt = self.sent.rtt.smoothed();
        self.acks.received(now, header.number, wants_ack || !is_control, rtt);
        while let Some(frame) = self.inbox.pop() {
            self.take_sequenced(frame)?;
        }
        Ok(())
    }

    fn note_taken(&mut self, taken: Taken) {
        self.statistics.payload_placed += taken.new;
        self.statistics.duplicate_bytes += taken.again;
        if let Some((sequence, event)) = taken.placed {
            self.statistics.messages_placed += 1;
            self.events.push_back((event, Some(sequence)));
        }
    }

    /// Takes frames; `true`: they want an acknowledgement.
    fn take_frames(&mut self, now: Time, frames: &[u8]) -> Result<bool, Malformed> {
        let mut reader = Reader::new(frames);
        let mut wants_ack = false;
        let mut ranges = std::mem::take(&mut self.ranges);
        while !reader.is_empty() && self.closed.is_none() {
            match Frame::decode(&mut reader, &mut ranges)? {
                Frame::Ping => {
                    wants_ack = true;
                    self.acks.asked(now);
                }
                Frame::Ack { delay_us } => {
                    let delay = Time::from(delay_us) * MICROSECOND;
                    self.take_ack(now, &ranges, delay)?;
                }
                Frame::Sequenced { first, count } => {
                    wants_ack = true;
                    for at in 0..u64::from(count) {
                        let frame = Sequenced::decode(&mut reader)?;
                        if !self.inbox.take(first.saturating_add(at), frame) {
                            return Err(Malformed("a sequenced frame too far ahead"));
                        }
                    }
                }
                Frame::Close { engine: true, reason, .. } => {
                    self.end(now, CloseReason::PeerFailed { reason });
                }
                Frame::Close { engine: false, code, reason } => {
                    self.end(now, CloseReason::Peer { code, reason });
                }
            }
        }
        self.ranges = ranges;
        Ok(wants_ack)
    }

    fn take_ack(&mut self, now: Time, ranges: &[(u64, u64)], delay: Time) -> Result<(), Malformed> {
        let mut cargoes = std::mem::take(&mut self.cargoes);
        cargoes.clear();
        let outcome = self
            .sent
            .acknowledge(now, ranges, delay, &mut cargoes)
            .ok_or(Malformed("an acknowledgement of what was never sent"))?;
        for cargo in &cargoes {
            match *cargo {
                Cargo::Fragment { sequence, at, bytes } => {
                    self.outgoing.acknowledged(sequence, at, bytes);
                }
                Cargo::Sequenced { first, count } => self.outbox.acknowledged(first, count),
                Cargo::Ping { reported: Some(highest) } => self.acks.confirmed(highest),
                Cargo::Ping { reported: None } => {}
            }
        }
        self.cargoes = cargoes;
        self.lose(now, &outcome);
        Ok(())
    }

    /// Declares what is lost, queues it again, and tells the model of the path.
    pub(super) fn lose(&mut self, now: Time, outcome: &Outcome) {
        let mut cargoes = std::mem::take(&mut self.cargoes);
        cargoes.clear();
        let lost = self.sent.detect_losses(now, &mut cargoes);
        for cargo in &cargoes {
            self.again(*cargo);
        }
        self.cargoes = cargoes;
        if outcome.acknowledged > 0 || lost > 0 {
            self.congestion.feedback(&Feedback {
                now,
                rtt: outcome.rtt,
                rate: outcome.rate,
                acknowledged: outcome.acknowledged,
                lost,
                delivered: self.sent.delivered(),
                delivered_before: outcome.delivered_before,
                in_flight: self.sent.in_flight(),
            });
        }
    }

    pub(super) fn again(&mut self, cargo: Cargo) {
        match cargo {
            Cargo::Fragment { sequence, at, bytes } => self.outgoing.again(sequence, at, bytes),
            Cargo::Sequenced { first, count } => self.outbox.lost(first, count),
            // A lost ping has done its work: what matters is asked again when it is due.
            Cargo::Ping { .. } => {}
        }
    }

    fn take_sequenced(&mut self, frame: Sequenced) -> Result<(), CloseReason> {
        match frame {
            Sequenced::Offer { serial, window, bytes } => {
                self.outgoing.offered(serial, window, bytes)
            }
            Sequenced::Withdraw { serial } => self.outgoing.withdrawn(serial, self.returns()),
            Sequenced::Return { sequence } => self.outgoing.returned(sequence),
            Sequenced::Credit { messages } => {
                self.outgoing.credited(messages);
                Ok(())
            }
            Sequenced::Abandon { sequence } => {
                self.incoming.abandoned(sequence)?;
                self.grant();
                Ok(())
            }
        }
    }

    /// Tells the sender that a message's window is gone, and that it may begin it anew.
    fn give_back(&mut self, sequence: u64) -> Result<(), CloseReason> {
        if !self.returns() {
            return Ok(());
        }
        if self.outbox.is_full() {
            return Err(CloseReason::Protocol {
                what: "more messages for withdrawn windows than are heard of",
            });
        }
        self.outbox.push(Sequenced::Return { sequence });
        Ok(())
    }

    pub(super) fn grant(&mut self) {
        if let Some(messages) = self.incoming.new_credit() {
            self.outbox.push(Sequenced::Credit { messages });
        }
    }
}
