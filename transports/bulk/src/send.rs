//! Messages on their way out: waiting for a window, started, acknowledged byte by byte.

use std::collections::{HashMap, VecDeque};

use crate::config::WINDOWS_MAX;
use crate::error::{CloseReason, FailReason, WriteError};
use crate::memory::Parts;
use crate::ranges::RangeSet;
use crate::split::{PIECES_MAX, Piece};
use crate::wire::First;

/// Messages up to this length do not wait behind longer ones.
const SMALL_BYTES: u64 = 16 * 1024;
/// The sequences from the oldest unfinished message to the newest.
const SPAN_MAX: usize = 1 << 22;

/// A message not started yet.
struct Waiting {
    message: u64,
    parts: Parts,
    window: u32,
    offset: u64,
}

/// A message some of whose bytes were sent.
struct Started {
    message: u64,
    parts: Parts,
    window: u32,
    serial: u32,
    offset: u64,
    len: u64,
    /// Bytes from here were never sent.
    fresh: u64,
    acknowledged: RangeSet,
    /// Whether the receiver knows the message, so that short headers do.
    is_known: bool,
}

/// What to send next; the payload is read by [`Outgoing::read`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub(crate) sequence: u64,
    pub(crate) at: u64,
    pub(crate) bytes: u32,
    /// The long header, if the receiver may not know the message.
    pub(crate) first: Option<First>,
    /// Whether it holds the message's last byte.
    pub(crate) is_last: bool,
    pub(crate) is_resent: bool,
}

struct PeerWindow {
    serial: u32,
    bytes: u64,
}

/// What is over: a message, or its sequence, whether or not the message begins anew under another.
pub(crate) enum Over {
    Written { message: u64 },
    Failed { message: u64, reason: FailReason },
    Abandoned { sequence: u64 },
}

/// All messages on their way out.
#[derive(Default)]
pub(crate) struct Outgoing {
    windows: HashMap<u32, PeerWindow>,
    serials: HashMap<u32, u32>,
    /// The next serial the peer may offer.
    serial_next: u32,
    /// Waiting for their window.
    parked: HashMap<u32, Vec<Waiting>>,
    small: VecDeque<Waiting>,
    large: VecDeque<Waiting>,
    /// Started messages from sequence `base`; `None`: over.
    started: VecDeque<Option<Box<Started>>>,
    base: u64,
    /// Sequences below may be started.
    credit: u64,
    /// The started messages whose fresh bytes go next: short ones first.
    sending_small: Option<u64>,
    sending_large: Option<u64>,
    /// Stretches to send again: sequence, from, to.
    again: VecDeque<(u64, u64, u64)>,
    /// Messages neither written nor failed.
    pub(crate) queued: usize,
    last_message: Option<u64>,
    pub(crate) over: Vec<Over>,
}

impl Outgoing {
    pub(crate) fn write(
        &mut self,
        message: u64,
        parts: Parts,
        window: u32,
        offset: u64,
    ) -> Result<(), WriteError> {
        if let Some(last) = self.last_message.filter(|&last| message <= last) {
            return Err(WriteError::NotRising { message, last });
        }
        if let Some(peer) = self.windows.get(&window) {
            fits(&parts, offset, peer.bytes).map_err(|end| WriteError::OutsideWindow {
                message,
                window,
                end,
                window_bytes: peer.bytes,
            })?;
        }
        self.last_message = Some(message);
        self.queued += 1;
        let waiting = Waiting { message, parts, window, offset };
        if self.windows.contains_key(&window) {
            self.ready(waiting);
        } else {
            self.parked.entry(window).or_default().push(waiting);
        }
        Ok(())
    }

    fn ready(&mut self, waiting: Waiting) {
        if waiting.parts.bytes() <= SMALL_BYTES {
            self.small.push_back(waiting);
        } else {
            self.large.push_back(waiting);
        }
    }

    /// The peer offers a window.
    pub(crate) fn offered(
        &mut self,
        serial: u32,
        window: u32,
        bytes: u64,
    ) -> Result<(), CloseReason> {
        const fn broken(what: &'static str) -> CloseReason {
            CloseReason::Protocol { what }
        }
        if serial != self.serial_next {
            return Err(broken("offer with a serial out of order"));
        }
        if self.windows.len() >= WINDOWS_MAX {
            return Err(broken("too many windows offered"));
        }
        if self.windows.contains_key(&window) {
            return Err(broken("window offered twice"));
        }
        self.serial_next = serial.checked_add(1).ok_or(CloseReason::Exhausted)?;
        self.windows.insert(window, PeerWindow { serial, bytes });
        self.serials.insert(serial, window);
        for waiting in self.parked.remove(&window).unwrap_or_default() {
            self.wait(waiting);
        }
        Ok(())
    }

    /// Queues a message that was taken already, for the offer of its window that there is or will be.
    fn wait(&mut self, waiting: Waiting) {
        match self.windows.get(&waiting.window) {
            None => self.parked.entry(waiting.window).or_default().push(waiting),
            Some(peer) if fits(&waiting.parts, waiting.offset, peer.bytes).is_ok() => {
                self.ready(waiting);
            }
            Some(_) => {
                self.queued -= 1;
                self.over.push(Over::Failed {
                    message: waiting.message,
                    reason: FailReason::OutsideWindow,
                });
            }
        }
    }

    /// The peer withdrew an offer: what was not started waits for the next. What was started fails; or,
    /// with a peer that `returns`, it goes on until the peer has it all or returns it.
    pub(crate) fn withdrawn(&mut self, serial: u32, returns: bool) -> Result<(), CloseReason> {
        let Some(window) = self.serials.remove(&serial) else {
            return Err(CloseReason::Protocol { what: "withdrawal of what was not offered" });
        };
        self.windows.remove(&window);
        for queue in [&mut self.small, &mut self.large] {
            if queue.iter().any(|waiting| waiting.window == window) {
                let (back, stay) = queue.drain(..).partition(|waiting| waiting.window == window);
                *queue = stay;
                let back: VecDeque<_> = back;
                self.parked.entry(window).or_default().extend(back);
            }
        }
        let failing = if returns { 0 } else { self.started.len() as u64 };
        for sequence in self.base..self.base + failing {
            if self.get(sequence).is_some_and(|started| started.serial == serial) {
                let started = self.stop(sequence).expect("it is some");
                self.queued -= 1;
                self.over
                    .push(Over::Failed { message: started.message, reason: FailReason::Withdrawn });
                self.over.push(Over::Abandoned { sequence });
            }
        }
        self.advance();
        Ok(())
    }

    /// The peer will not tell of a message: its window was withdrawn before it was whole.
    pub(crate) fn returned(&mut self, sequence: u64) -> Result<(), CloseReason> {
        if sequence >= self.base + self.started.len() as u64 {
            return Err(CloseReason::Protocol { what: "a message returned that was not started" });
        }
        if let Some(started) = self.stop(sequence) {
            let Started { message, parts, window, offset, .. } = *started;
            self.over.push(Over::Abandoned { sequence });
            self.wait(Waiting { message, parts, window, offset });
            self.advance();
        }
        Ok(())
    }

    /// Takes a started message out.
    fn stop(&mut self, sequence: u64) -> Option<Box<Started>> {
        let at = sequence.checked_sub(self.base)?;
        let started = self.started.get_mut(at as usize)?.take()?;
        self.sending_small = self.sending_small.filter(|&sending| sending != sequence);
        self.sending_large = self.sending_large.filter(|&sending| sending != sequence);
        Some(started)
    }

    /// The peer lets messages below this sequence start.
    pub(crate) fn credited(&mut self, messages: u64) {
        self.credit = self.credit.max(messages);
    }

    /// Whether there is anything to send now.
    pub(crate) fn wants_to_send(&self) -> bool {
        !self.again.is_empty()
            || self.sending_small.is_some()
            || self.sending_large.is_some()
            || self.may_start()
    }

    fn may_start(&self) -> bool {
        self.base + (self.started.len() as u64) < self.credit
            && self.started.len() < SPAN_MAX
            && !(self.small.is_empty() && self.large.is_empty())
    }

    /// The next fragment, at most `room` bytes with its header (`more_bytes` is the short header's length).
    pub(crate) fn next(&mut self, room: usize, more_bytes: usize) -> Option<Fragment> {
        while let Some((sequence, from, to)) = self.again.pop_front() {
            let Some(started) = self.get(sequence) else { continue };
            if started.is_known && (from == to || started.acknowledged.covers(from, to)) {
                continue;
            }
            let fragment = started.fragment(sequence, from, to, true, room, more_bytes);
            let end = fragment.at + u64::from(fragment.bytes);
            if end < to {
                self.again.push_front((sequence, end, to));
            }
            return Some(fragment);
        }
        if self.sending_small.is_none() && self.may_start() {
            self.sending_small = self.small.pop_front().map(|waiting| self.start(waiting));
        }
        let is_small = self.sending_small.is_some();
        if !is_small && self.sending_large.is_none() && self.may_start() {
            self.sending_large = self.large.pop_front().map(|waiting| self.start(waiting));
        }
        let sequence = self.sending_small.or(self.sending_large)?;
        let started = self.get(sequence).expect("a message being sent is not over");
        let (fresh, len) = (started.fresh, started.len);
        let fragment = started.fragment(sequence, fresh, len, false, room, more_bytes);
        let end = fragment.at + u64::from(fragment.bytes);
        self.get_mut(sequence).expect("as above").fresh = end;
        if end == len {
            *(if is_small { &mut self.sending_small } else { &mut self.sending_large }) = None;
        }
        Some(fragment)
    }

    fn start(&mut self, waiting: Waiting) -> u64 {
        let Waiting { message, parts, window, offset } = waiting;
        let serial = self.windows[&window].serial;
        let len = parts.bytes();
        let acknowledged = RangeSet::default();
        let (fresh, is_known) = (0, false);
        let started =
            Started { message, parts, window, serial, offset, len, fresh, acknowledged, is_known };
        self.started.push_back(Some(Box::new(started)));
        self.base + self.started.len() as u64 - 1
    }

    fn get(&self, sequence: u64) -> Option<&Started> {
        let at = sequence.checked_sub(self.base)?;
        self.started.get(at as usize)?.as_deref()
    }

    fn get_mut(&mut self, sequence: u64) -> Option<&mut Started> {
        let at = sequence.checked_sub(self.base)?;
        self.started.get_mut(at as usize)?.as_deref_mut()
    }

    /// Reads a fragment's payload.
    pub(crate) fn read(&self, fragment: &Fragment, to: &mut [u8]) {
        let started = self.get(fragment.sequence).expect("it was just taken from here");
        started.parts.read(fragment.at, to);
    }

    /// Where a fragment's payload lies; nothing, if in too many pieces.
    pub(crate) fn pieces(&self, fragment: &Fragment, to: &mut Vec<Piece>) {
        let started = self.get(fragment.sequence).expect("it was just taken from here");
        let message = started.message;
        let pieces = started.parts.pieces(fragment.at, fragment.bytes as usize);
        to.extend(pieces.take(PIECES_MAX + 1).map(|(part, at, bytes)| Piece {
            message,
            part,
            at,
            bytes,
        }));
        if to.len() > PIECES_MAX {
            to.clear();
        }
    }

    /// A fragment arrived.
    pub(crate) fn acknowledged(&mut self, sequence: u64, at: u64, bytes: u32) {
        let Some(started) = self.get_mut(sequence) else { return };
        // The receiver knows the message by whatever fragment it took: short headers go only to those.
        started.is_known = true;
        started.acknowledged.insert(at, at + u64::from(bytes));
        if started.acknowledged.total() == started.len {
            let message = started.message;
            self.started[(sequence - self.base) as usize] = None;
            self.queued -= 1;
            self.over.push(Over::Written { message });
            self.advance();
        }
    }

    /// A fragment was lost, or is probed with: it goes again.
    pub(crate) fn again(&mut self, sequence: u64, at: u64, bytes: u32) {
        let to = at + u64::from(bytes);
        if self.get(sequence).is_none() {
            return;
        }
        match self.again.back_mut() {
            Some(last) if last.0 == sequence && last.2 == at && bytes > 0 => last.2 = to,
            _ => self.again.push_back((sequence, at, to)),
        }
    }

    fn advance(&mut self) {
        while let Some(None) = self.started.front() {
            self.started.pop_front();
            self.base += 1;
        }
    }
}

impl Started {
    fn fragment(
        &self,
        sequence: u64,
        from: u64,
        to: u64,
        is_resent: bool,
        room: usize,
        more_bytes: usize,
    ) -> Fragment {
        let header = if self.is_known { more_bytes } else { First::BYTES };
        let bytes = (to - from).min((room - header) as u64) as u32;
        let first = (!self.is_known).then_some(First {
            sequence: sequence as u32,
            at: from as u32,
            message: self.message,
            serial: self.serial,
            offset: self.offset,
            len: self.len,
        });
        let is_last = from + u64::from(bytes) == self.len;
        Fragment { sequence, at: from, bytes, first, is_last, is_resent }
    }
}

/// Whether a message fits its window; else where it would end.
fn fits(parts: &Parts, offset: u64, window_bytes: u64) -> Result<(), u64> {
    let end = offset.saturating_add(parts.bytes());
    if end <= window_bytes { Ok(()) } else { Err(end) }
}
