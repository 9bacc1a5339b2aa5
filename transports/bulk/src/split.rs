//! Datagrams whose payload stays where it lies: the carrier gets their head, and pieces of the
//! caller's memory that belong behind it.

use crate::memory::Span;

/// Payloads below this are copied: two buffers of a device cost more.
pub(crate) const SPLIT_BYTES_MIN: usize = 512;
/// Payloads that lie in more pieces are copied; network cards chain few buffers.
pub const PIECES_MAX: usize = 4;
/// Copied at once for the check, small enough to stay in the processor's nearest cache.
const CHECKED_AT_ONCE: usize = 2048;

/// A stretch of a message's memory, as [`crate::Connection::poll_transmit_split`] gives it out.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The message, as its writer numbered it.
    pub message: u64,
    /// Which of the spans that [`crate::Connection::write`] was given.
    pub part: usize,
    /// Where in that span the piece begins.
    pub at: usize,
    /// The piece itself.
    pub bytes: Span,
}

/// Gives the bytes of pieces to `each`, in order. They may be changing, so no reference to them is
/// made: they go through a small buffer.
pub(crate) fn read_through(pieces: &[Piece], mut each: impl FnMut(&[u8])) {
    let mut buf = [0; CHECKED_AT_ONCE];
    for piece in pieces {
        let len = piece.bytes.len();
        for at in (0..len).step_by(CHECKED_AT_ONCE) {
            let chunk = &mut buf[..CHECKED_AT_ONCE.min(len - at)];
            piece.bytes.read(at, chunk);
            each(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Config, Connection, Event, MILLISECOND, Protection, Role, Time, Transmit};

    const WINDOW: u32 = 3;
    const WINDOW_BYTES: usize = 200_000;
    /// A message's parts; those of the last are too many for a datagram not to be copied.
    const MESSAGES: [&[usize]; 6] = [
        &[100_000],
        &[64],
        &[3000, 0, 5, 40_001, 700],
        &[],
        &[1],
        &[150, 150, 150, 150, 150, 150, 150, 150, 150, 150],
    ];

    struct Ends {
        ends: [Connection; 2],
        source: Vec<u8>,
        window: Vec<u8>,
        events: Vec<Event>,
    }

    fn span(bytes: &mut [u8]) -> Span {
        // SAFETY: the vectors live beside the connections, and are not resized.
        unsafe { Span::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    impl Ends {
        fn new(protection: &Protection) -> Self {
            let make = |role| {
                let mut config = Config::new(4, role, protection.clone(), [role as u8 + 1; 16]);
                config.datagram_bytes = 1400;
                Connection::new(config, 0).unwrap()
            };
            let source = (0..WINDOW_BYTES).map(|at| (at * 31 + at / 251) as u8).collect();
            let ends = [Role::Client, Role::Server].map(make);
            let window = vec![0; WINDOW_BYTES];
            let mut made = Self { ends, source, window, events: Vec::new() };
            let window = span(&mut made.window);
            made.ends[1].offer(WINDOW, Arc::new(window)).unwrap();
            for (message, parts) in MESSAGES.iter().enumerate() {
                let mut rest = &mut made.source[message * 1000..];
                let spans = parts.iter().map(|&len| {
                    let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
                    rest = behind;
                    span(part)
                });
                let spans = spans.collect();
                made.ends[0].write(message as u64 + 1, spans, WINDOW, 0).unwrap();
            }
            made
        }

        fn give(&mut self, at: usize, now: Time, mut datagram: Vec<u8>) {
            self.ends[at].handle(now, 0, &mut datagram);
        }

        fn settle(&mut self, now: Time) {
            for end in &mut self.ends {
                if end.poll_timeout().is_some_and(|due| due <= now) {
                    end.handle_timeout(now);
                }
                self.events.extend(std::iter::from_fn(|| end.poll_event()));
            }
        }
    }

    fn whole(end: &mut Connection, now: Time) -> Option<(Transmit, Vec<u8>)> {
        let mut buf = vec![0; 1400];
        let sent = end.poll_transmit(now, &mut buf, 1)?;
        buf.truncate(sent.bytes);
        Some((sent, buf))
    }

    /// Puts a split datagram together; notes how many there were.
    fn joined(end: &mut Connection, now: Time, split: &mut usize) -> Option<(Transmit, Vec<u8>)> {
        let (mut buf, mut pieces) = (vec![0; 1400], Vec::new());
        let sent = end.poll_transmit_split(now, &mut buf, &mut pieces)?;
        let bytes: usize = pieces.iter().map(|piece: &Piece| piece.bytes.len()).sum();
        buf.truncate(sent.bytes - bytes);
        for piece in &pieces {
            let parts = MESSAGES[piece.message as usize - 1];
            assert!(piece.at + piece.bytes.len() <= parts[piece.part] && !piece.bytes.is_empty());
            let at = buf.len();
            buf.resize(at + piece.bytes.len(), 0);
            piece.bytes.read(0, &mut buf[at..]);
        }
        assert!(pieces.len() <= PIECES_MAX);
        *split += usize::from(!pieces.is_empty());
        Some((sent, buf))
    }

    /// Runs two equal pairs of ends, one each way, losing some datagrams, and compares each.
    fn compare(protection: &Protection) -> (usize, u64) {
        let [mut left, mut right] = [Ends::new(protection), Ends::new(protection)];
        let (mut split, mut count) = (0, 0);
        for step in 0..400 {
            let now = step * MILLISECOND;
            for from in [0, 1] {
                loop {
                    let one = whole(&mut left.ends[from], now);
                    let other = joined(&mut right.ends[from], now, &mut split);
                    assert_eq!(one, other, "datagram {count}");
                    let Some((_, datagram)) = one else { break };
                    count += 1;
                    if count % 13 != 7 {
                        left.give(1 - from, now, datagram.clone());
                        right.give(1 - from, now, datagram);
                    }
                }
            }
            left.settle(now);
            right.settle(now);
        }
        assert_eq!(left.events, right.events);
        let written = |event: &&Event| matches!(event, Event::Written { .. });
        assert_eq!(right.events.iter().filter(written).count(), MESSAGES.len());
        // The longest message covers all others; which was placed last does not matter here.
        assert_eq!(left.window, right.window);
        let statistics = right.ends[0].statistics();
        assert_eq!(statistics, left.ends[0].statistics());
        assert!(statistics.payload_resent > 0, "losses are part of the test");
        (split, statistics.data_packets)
    }

    #[test]
    fn a_split_datagram_has_the_very_bytes_of_a_whole_one() {
        let (split, data) = compare(&Protection::Trusted);
        assert!(split > 90 && (split as u64) < data, "{split} of {data} were split");
    }

    #[test]
    fn sealed_datagrams_are_never_split() {
        assert_eq!(compare(&Protection::Sealed { secret: [5; 32] }).0, 0);
    }
}
