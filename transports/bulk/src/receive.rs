//! Messages on their way in: windows, fragments placed, each message told once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::config::{MESSAGE_BYTES_MAX, WINDOWS_MAX};
use crate::error::{CloseReason, WindowError};
use crate::event::Event;
use crate::memory::WindowMemory;
use crate::ranges::RangeSet;
use crate::wire::{First, MORE_BYTES, Malformed, Reader};

/// Separate stretches of unfinished messages remembered, over all of them.
const STRETCHES_MAX: usize = 65_536;
/// The sequences from the oldest unfinished message to the newest, for each message granted.
const SPAN_PER_MESSAGE: u64 = 16;

struct Window {
    window: u32,
    memory: Arc<dyn WindowMemory>,
}

enum Slot {
    /// Nothing of it came yet.
    Unseen,
    Partial(Box<Partial>),
    /// Told, and not polled.
    Placed,
    /// Its window was withdrawn: nothing of it is acknowledged, so that the sender cannot take it
    /// for written, until it abandons it.
    Withdrawn,
    /// Polled or abandoned.
    Over,
}

struct Partial {
    message: u64,
    serial: u32,
    window: u32,
    offset: u64,
    len: u64,
    got: RangeSet,
    memory: Arc<dyn WindowMemory>,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Payload bytes that were new, and that were not.
    pub(crate) new: u64,
    pub(crate) again: u64,
    /// Where frames start in the packet's body, behind the payload.
    pub(crate) frames_at: usize,
    /// The message that it completed, with its sequence.
    pub(crate) placed: Option<(u64, Event)>,
}

/// Why a fragment was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A limit was reached or its window withdrawn: as if it was never received.
    Unheard,
    /// The first of a message whose window was withdrawn; otherwise as above.
    Return {
        sequence: u64,
    },
    Close(CloseReason),
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        broken(malformed.0)
    }
}

fn broken(what: &'static str) -> Refused {
    Refused::Close(CloseReason::Protocol { what })
}

/// All messages on their way in.
pub(crate) struct Incoming {
    windows: HashMap<u32, u32>,
    offers: HashMap<u32, Window>,
    serial_next: u32,
    /// Messages from sequence `base`.
    slots: VecDeque<Slot>,
    base: u64,
    /// Messages over; with `ahead` it gives the credit.
    over: u64,
    ahead: u64,
    /// Sequences below may be started, as the peer was told.
    granted: u64,
    stretches: usize,
}

impl Incoming {
    pub(crate) fn new(messages_ahead: u32) -> Self {
        let ahead = u64::from(messages_ahead);
        Self {
            windows: HashMap::new(),
            offers: HashMap::new(),
            serial_next: 0,
            slots: VecDeque::new(),
            base: 0,
            over: 0,
            ahead,
            granted: ahead,
            stretches: 0,
        }
    }

    /// Offers a window; gives its serial.
    pub(crate) fn offer(
        &mut self,
        window: u32,
        memory: Arc<dyn WindowMemory>,
    ) -> Result<u32, WindowError> {
        if self.windows.contains_key(&window) {
            return Err(WindowError::Offered { window });
        }
        if self.windows.len() >= WINDOWS_MAX {
            return Err(WindowError::TooMany);
        }
        let serial = self.serial_next;
        self.serial_next =
            serial.checked_add(1).ok_or(WindowError::Closed(CloseReason::Exhausted))?;
        self.windows.insert(window, serial);
        self.offers.insert(serial, Window { window, memory });
        Ok(serial)
    }

    /// Takes a window back; gives the offer's serial, and the messages that were partly placed.
    pub(crate) fn withdraw(&mut self, window: u32) -> Result<(u32, Vec<u64>), WindowError> {
        let serial = self.windows.remove(&window).ok_or(WindowError::NotOffered { window })?;
        self.offers.remove(&serial);
        let mut returned = Vec::new();
        for at in 0..self.slots.len() {
            if matches!(&self.slots[at], Slot::Partial(partial) if partial.serial == serial) {
                self.close_slot(at, Slot::Withdrawn);
                returned.push(self.base + at as u64);
            }
        }
        Ok((serial, returned))
    }

    /// Forgets all memory: nothing will be placed any more.
    pub(crate) fn clear(&mut self) {
        self.windows.clear();
        self.offers.clear();
        self.slots.clear();
    }

    /// The peer gives up a message that it started.
    pub(crate) fn abandoned(&mut self, sequence: u64) -> Result<(), CloseReason> {
        if sequence >= self.granted {
            return Err(CloseReason::Protocol { what: "a message beyond credit is abandoned" });
        }
        let Some(at) = sequence.checked_sub(self.base) else { return Ok(()) };
        self.reach(at as usize);
        // A message already told stays told.
        if !matches!(self.slots[at as usize], Slot::Placed | Slot::Over) {
            self.end(at as usize);
            self.advance();
        }
        Ok(())
    }

    /// Takes a packet's body, which starts with a fragment.
    pub(crate) fn take(&mut self, is_first: bool, body: &[u8]) -> Result<Taken, Refused> {
        let mut reader = Reader::new(body);
        let (first, low, from) = if is_first {
            let first = First::decode(&mut reader)?;
            (Some(first), first.sequence, first.at)
        } else {
            (None, reader.u32()?, reader.u32()?)
        };
        let payload = reader.rest();
        let header = if is_first { First::BYTES } else { MORE_BYTES };
        let nothing = |again: usize| Taken {
            new: 0,
            again: again as u64,
            frames_at: header + payload.len(),
            placed: None,
        };
        let ahead = i64::from(low.wrapping_sub(self.base as u32) as i32);
        let Some(sequence) = self.base.checked_add_signed(ahead) else {
            return Err(broken("a message before the first"));
        };
        if ahead < 0 {
            return Ok(nothing(payload.len()));
        }
        if sequence >= self.granted {
            return Err(broken("a message beyond credit"));
        }
        let at = ahead as usize;
        self.reach(at);
        match (&self.slots[at], first) {
            (Slot::Unseen, Some(first)) => {
                if self.stretches >= STRETCHES_MAX {
                    return Err(Refused::Unheard);
                }
                self.open(at, &first)?;
            }
            (Slot::Withdrawn, _) => return Err(Refused::Unheard),
            (Slot::Unseen, None) => return Err(broken("a fragment of an unknown message")),
            (Slot::Placed | Slot::Over, _) => return Ok(nothing(payload.len())),
            (Slot::Partial(partial), Some(first)) => {
                if !partial.matches(&first) {
                    return Err(broken("a message that changes"));
                }
            }
            (Slot::Partial(_), None) => {}
        }
        let Slot::Partial(partial) = &mut self.slots[at] else { unreachable!("opened above") };
        let from = u64::from(from);
        let Some(left) = partial.len.checked_sub(from) else {
            return Err(broken("a fragment beyond its message"));
        };
        let bytes = left.min(payload.len() as u64);
        if bytes == 0 && partial.len > 0 {
            return Err(broken("a fragment without bytes"));
        }
        let taken = &payload[..bytes as usize];
        let frames_at = header + taken.len();
        if bytes > 0 && partial.got.covers(from, from + bytes) {
            return Ok(Taken { new: 0, again: bytes, frames_at, placed: None });
        }
        if self.stretches >= STRETCHES_MAX && partial.got.len() > 1 {
            return Err(Refused::Unheard);
        }
        partial.memory.place(partial.offset + from, taken).map_err(|error| {
            Refused::Close(CloseReason::Placement { window: partial.window, error })
        })?;
        self.stretches -= partial.got.len();
        let new = partial.got.insert(from, from + bytes);
        self.stretches += partial.got.len();
        let mut placed = None;
        if partial.got.total() == partial.len {
            let Partial { message, window, offset, len, .. } = **partial;
            placed = Some((sequence, Event::Placed { message, window, offset, len }));
            self.stretches -= partial.got.len();
            self.slots[at] = Slot::Placed;
        }
        Ok(Taken { new, again: bytes - new, frames_at, placed })
    }

    /// Opens the slot of a message seen for the first time.
    fn open(&mut self, at: usize, first: &First) -> Result<(), Refused> {
        if first.serial >= self.serial_next {
            return Err(broken("a message to a window never offered"));
        }
        if first.len > MESSAGE_BYTES_MAX {
            return Err(broken("a message too long"));
        }
        let Some(Window { window, memory }) = self.offers.get(&first.serial) else {
            self.slots[at] = Slot::Withdrawn;
            return Err(Refused::Return { sequence: self.base + at as u64 });
        };
        if first.offset.checked_add(first.len).is_none_or(|end| end > memory.bytes()) {
            return Err(broken("a message outside its window"));
        }
        self.slots[at] = Slot::Partial(Box::new(Partial {
            message: first.message,
            serial: first.serial,
            window: *window,
            offset: first.offset,
            len: first.len,
            got: RangeSet::default(),
            memory: memory.clone(),
        }));
        Ok(())
    }

    /// The application took the event of a placed message.
    pub(crate) fn polled(&mut self, sequence: u64) {
        if let Some(at) = sequence.checked_sub(self.base)
            && (at as usize) < self.slots.len()
        {
            self.end(at as usize);
            self.advance();
        }
    }

    /// New credit to announce, if it is worth a frame.
    pub(crate) fn new_credit(&mut self) -> Option<u64> {
        let credit = (self.over + self.ahead).min(self.base + SPAN_PER_MESSAGE * self.ahead);
        if credit.saturating_sub(self.granted) < self.ahead.div_ceil(4) {
            return None;
        }
        self.granted = credit;
        Some(credit)
    }

    fn reach(&mut self, at: usize) {
        // Bounded by what was granted.
        while self.slots.len() <= at {
            self.slots.push_back(Slot::Unseen);
        }
    }

    fn end(&mut self, at: usize) {
        self.close_slot(at, Slot::Over);
        self.over += 1;
    }

    fn close_slot(&mut self, at: usize, to: Slot) {
        if let Slot::Partial(partial) = std::mem::replace(&mut self.slots[at], to) {
            self.stretches -= partial.got.len();
        }
    }

    fn advance(&mut self) {
        while let Some(Slot::Over) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

impl Partial {
    fn matches(&self, first: &First) -> bool {
        (self.message, self.serial, self.offset, self.len)
            == (first.message, first.serial, first.offset, first.len)
    }
}
