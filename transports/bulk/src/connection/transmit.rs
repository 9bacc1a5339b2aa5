//! What is sent: hellos, control, fragments, the close; each packet numbered and sealed.

use super::{Connection, FLOW_TURN};
use crate::config::{Protection, Time, VERSION_RIDING_ACKS};
use crate::error::CloseReason;
use crate::event::Transmit;
use crate::hello::HELLO_BYTES_MAX;
use crate::sent::Cargo;
use crate::split::{Piece, SPLIT_BYTES_MIN};
use crate::wire::{
    ACK_BYTES_MIN, CLOSE_BYTES_MAX, HEADER_BYTES, Header, Kind, MORE_BYTES, Writer, encode_close,
    encode_ping,
};

impl Connection {
    /// Fills `buf` with datagrams to send on one flow: as many as `segments_max`, `buf`, credit and
    /// pacing allow. `None`: nothing to send before [`Connection::poll_timeout`], the next datagram
    /// or call.
    ///
    /// # Panics
    /// If `buf` does not hold one datagram of `Config::datagram_bytes`.
    pub fn poll_transmit(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
    ) -> Option<Transmit> {
        self.transmit(now, buf, segments_max, None)
    }

    /// As [`Connection::poll_transmit`] for one datagram, whose payload may stay where it lies:
    /// `pieces` (cleared first) then says where, at most [`crate::PIECES_MAX`] of them, and `head`
    /// holds what comes before, [`Transmit::bytes`] less the pieces. Together they are the very
    /// bytes of `poll_transmit`; the check is made by reading.
    ///
    /// Only trusted connections split, and not all their datagrams. The pieces must stay as they
    /// are until the carrier has sent them, perhaps after `Written`: that is for the carrier to
    /// see to.
    ///
    /// # Panics
    /// As `poll_transmit`.
    pub fn poll_transmit_split(
        &mut self,
        now: Time,
        head: &mut [u8],
        pieces: &mut Vec<Piece>,
    ) -> Option<Transmit> {
        pieces.clear();
        self.transmit(now, head, 1, Some(pieces))
    }

    fn transmit(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
        pieces: Option<&mut Vec<Piece>>,
    ) -> Option<Transmit> {
        const { assert!(HELLO_BYTES_MAX <= crate::DATAGRAM_BYTES_MIN) };
        assert!(buf.len() >= self.config.datagram_bytes, "the buffer holds a datagram");
        if let Some(bytes) = self.greeter.write(&self.config, now, buf) {
            return Some(self.single(self.reply_flow, bytes));
        }
        if self.closed.is_some() {
            return self.transmit_close(now, buf);
        }
        if !self.is_connected() {
            return None;
        }
        let transmit = if self.wants_control(now) {
            self.transmit_control(now, buf)
        } else {
            self.transmit_fragments(now, buf, segments_max, pieces)
        };
        if transmit.is_some() && self.sent.in_flight() > 0 {
            self.waiting_since.get_or_insert(now);
        }
        transmit
    }

    fn single(&mut self, flow: u16, bytes: usize) -> Transmit {
        self.statistics.packets_sent += 1;
        self.statistics.bytes_sent += bytes as u64;
        Transmit { flow, segments: 1, segment_bytes: bytes, bytes }
    }

    fn transmit_close(&mut self, now: Time, buf: &mut [u8]) -> Option<Transmit> {
        const { assert!(HEADER_BYTES + 16 + CLOSE_BYTES_MAX <= crate::DATAGRAM_BYTES_MIN) };
        if self.close_at? > now {
            return None;
        }
        self.close_at = None;
        self.session.as_ref()?;
        let (engine, code, reason) = match self.closed.as_ref()? {
            CloseReason::Here { code, reason } => (false, *code, reason.clone()),
            reason => (true, 0, reason.to_string()),
        };
        let body_at = HEADER_BYTES + self.tag_bytes;
        let mut writer = Writer::new(&mut buf[body_at..self.datagram_bytes]);
        encode_close(&mut writer, engine, code, &reason);
        let len = body_at + writer.at();
        let flow = self.reply_flow;
        self.seal(now, Kind::Control, flow, &mut buf[..len], &[], None);
        Some(self.single(flow, len))
    }

    fn wants_control(&self, now: Time) -> bool {
        self.acks.is_due(now)
            || self.ping_wanted
            || !self.sent.is_full() && self.outbox.wants_to_send()
    }

    fn transmit_control(&mut self, now: Time, buf: &mut [u8]) -> Option<Transmit> {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let mut writer = Writer::new(&mut buf[body_at..self.datagram_bytes]);
        let mut cargo = None;
        let mut reported = None;
        if self.acks.is_pending() && self.acks.write(now, &mut writer) {
            reported = Some(self.acks.highest());
        }
        if !self.sent.is_full() {
            let run = self.outbox.write(&mut writer);
            cargo = run.map(|(first, count)| Cargo::Sequenced { first, count });
        }
        let confirm =
            reported.is_some() && self.acks.wants_confirmation() && now >= self.confirmation_at;
        if cargo.is_none() && (self.ping_wanted || confirm) {
            encode_ping(&mut writer);
            cargo = Some(Cargo::Ping { reported });
            self.confirmation_at = now + self.sent.rtt.smoothed();
        }
        // Whatever goes asks for an acknowledgement as a ping does.
        self.ping_wanted &= cargo.is_none();
        let len = body_at + writer.at();
        if writer.at() == 0 {
            return None;
        }
        let flow = self.reply_flow;
        self.seal(now, Kind::Control, flow, &mut buf[..len], &[], cargo);
        Some(self.single(flow, len))
    }

    fn transmit_fragments(
        &mut self,
        now: Time,
        buf: &mut [u8],
        segments_max: usize,
        mut pieces: Option<&mut Vec<Piece>>,
    ) -> Option<Transmit> {
        let in_flight = self.sent.in_flight();
        let allowance = self.congestion.allowance();
        if !self.outgoing.wants_to_send() {
            if in_flight < allowance {
                self.starved_until = self.sent.delivered() + in_flight.max(1);
            }
            return None;
        }
        let packet = self.datagram_bytes;
        let is_probe = self.probe_packets > 0;
        let bytes_max = if is_probe {
            std::mem::take(&mut self.probe_packets) * packet
        } else {
            let window = allowance.saturating_sub(in_flight);
            if window == 0 {
                return None;
            }
            self.congestion.budget(now).min(window) as usize
        };
        if bytes_max == 0 {
            return None;
        }
        self.turn_flow();
        let flow = self.flow;
        let (mut bytes, mut segments) = (0, 0);
        while segments < segments_max
            && bytes < bytes_max
            && bytes + packet <= buf.len()
            && (is_probe || !self.sent.is_full())
        {
            let space = &mut buf[bytes..bytes + packet];
            let pieces = pieces.as_deref_mut();
            let Some(len) = self.write_fragment(now, flow, space, pieces) else { break };
            bytes += len;
            segments += 1;
            if len < packet {
                break;
            }
        }
        if segments == 0 {
            return None;
        }
        self.congestion.spend(bytes as u64);
        self.flow_left = self.flow_left.saturating_sub(segments as u64);
        self.statistics.packets_sent += segments as u64;
        self.statistics.data_packets += segments as u64;
        self.statistics.bytes_sent += bytes as u64;
        Some(Transmit { flow, segments, segment_bytes: bytes.min(packet), bytes })
    }

    fn turn_flow(&mut self) {
        if self.flow_left == 0 {
            self.flow = (self.flow + 1) % self.config.flows;
            self.flow_left = FLOW_TURN;
        }
    }

    /// Makes one packet of the next fragment, or its head, if `pieces` may take the payload; gives
    /// the length of both.
    fn write_fragment(
        &mut self,
        now: Time,
        flow: u16,
        buf: &mut [u8],
        pieces: Option<&mut Vec<Piece>>,
    ) -> Option<usize> {
        let body_at = HEADER_BYTES + self.tag_bytes;
        let fragment = self.outgoing.next(buf.len() - body_at, MORE_BYTES)?;
        let mut writer = Writer::new(&mut buf[body_at..]);
        let kind = match &fragment.first {
            Some(first) => {
                first.encode(&mut writer);
                Kind::First
            }
            None => {
                writer.u32(fragment.sequence as u32);
                writer.u32(fragment.at as u32);
                Kind::More
            }
        };
        let payload = fragment.bytes as usize;
        let rides = fragment.is_last
            && self.version() >= VERSION_RIDING_ACKS
            && self.acks.is_pending()
            && writer.room() >= payload + ACK_BYTES_MIN;
        let is_whole = rides
            || payload < SPLIT_BYTES_MIN
            || !matches!(self.config.protection, Protection::Trusted);
        // What stays where it lies; nothing, if the packet is whole.
        let pieces: &[Piece] = match pieces.filter(|_| !is_whole) {
            Some(pieces) => {
                self.outgoing.pieces(&fragment, pieces);
                pieces
            }
            None => &[],
        };
        if pieces.is_empty() {
            self.outgoing.read(&fragment, writer.space(payload));
        }
        if rides {
            self.acks.write(now, &mut writer);
        }
        let len = body_at + writer.at();
        let bytes = u64::from(fragment.bytes);
        if fragment.is_resent {
            self.statistics.payload_resent += bytes;
        } else {
            self.statistics.payload_sent += bytes;
        }
        let (sequence, at, bytes) = (fragment.sequence, fragment.at, fragment.bytes);
        let cargo = Cargo::Fragment { sequence, at, bytes };
        Some(self.seal(now, kind, flow, &mut buf[..len], pieces, Some(cargo)))
    }

    /// Numbers, seals and notes a packet whose body is in place, or goes on in `pieces`; gives its
    /// length.
    fn seal(
        &mut self,
        now: Time,
        kind: Kind,
        flow: u16,
        packet: &mut [u8],
        pieces: &[Piece],
        cargo: Option<Cargo>,
    ) -> usize {
        let session = self.session.as_mut().expect("only a session sends packets");
        let number = self.sent.next();
        let connection_id = self.config.connection_id;
        let header = Header { kind, version: session.version, number, connection_id }.encode();
        let len = packet.len() + pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>();
        let (front, body) = packet.split_at_mut(HEADER_BYTES + self.tag_bytes);
        let (clear, tag) = front.split_at_mut(HEADER_BYTES);
        clear.copy_from_slice(&header);
        if pieces.is_empty() {
            session.seal.seal(number, &header, tag, body);
        } else {
            session.seal.sign(number, &header, tag, body, pieces);
        }
        let starved = self.sent.delivered() < self.starved_until;
        self.sent.sent(now, flow, len, cargo, starved);
        len
    }
}
