//! Packets and frames, byte by byte. All integers are big-endian. `docs/reference/bulk.md` has the tables.

use crate::config::REASON_BYTES_MAX;

/// Kind, version, packet number and connection id: in the clear, authenticated.
pub(crate) const HEADER_BYTES: usize = 16;
/// Packet numbers are below this: they travel in six bytes.
pub(crate) const NUMBERS: u64 = 1 << 48;
/// The most ranges in one acknowledgement.
pub(crate) const ACK_RANGES_MAX: usize = 64;
/// The most sequenced frames in one packet.
pub(crate) const SEQUENCED_MAX: u16 = 256;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Who I am and what I speak.
    Hello = 0xb0,
    /// Frames.
    Control = 0xb1,
    /// A fragment with everything about its message.
    First = 0xb2,
    /// A fragment of a message the receiver knows.
    More = 0xb3,
}

/// The clear part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) version: u8,
    pub(crate) number: u64,
    pub(crate) connection_id: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[0] = self.kind as u8;
        bytes[1] = self.version;
        bytes[8..].copy_from_slice(&self.connection_id.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let kind = match bytes[0] {
            0xb0 => Kind::Hello,
            0xb1 => Kind::Control,
            0xb2 => Kind::First,
            0xb3 => Kind::More,
            _ => return None,
        };
        let (first, second) = bytes.split_at(8);
        let first = u64::from_be_bytes(first.try_into().expect("8 bytes"));
        let connection_id = u64::from_be_bytes(second.try_into().expect("8 bytes"));
        Some(Self { kind, version: bytes[1], number: first & (NUMBERS - 1), connection_id })
    }
}

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Reads big-endian integers; never beyond the end.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Malformed("cut short"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

/// Writes into a packet buffer whose room its caller has checked.
pub(crate) struct Writer<'a> {
    buf: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn room(&self) -> usize {
        self.buf.len() - self.at
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// The next `count` bytes, to be filled.
    pub(crate) fn space(&mut self, count: usize) -> &mut [u8] {
        let space = &mut self.buf[self.at..self.at + count];
        self.at += count;
        space
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.buf[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
}

/// The sealed part of a hello; more bytes may follow in later versions and are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: (u8, u8),
    /// The nonce of the hello this one answers; zeros: none.
    pub(crate) echo: [u8; 16],
    pub(crate) datagram_bytes: u32,
    pub(crate) messages_ahead: u32,
}

impl Hello {
    pub(crate) const BYTES: usize = 2 + 16 + 4 + 4;

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.u8(self.versions.0);
        writer.u8(self.versions.1);
        writer.put(&self.echo);
        writer.u32(self.datagram_bytes);
        writer.u32(self.messages_ahead);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        Ok(Self {
            versions: (reader.u8()?, reader.u8()?),
            echo: reader.array()?,
            datagram_bytes: reader.u32()?,
            messages_ahead: reader.u32()?,
        })
    }
}

/// What a fragment of kind `First` says before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    /// The low half of the message's place in the order of starting.
    pub(crate) sequence: u32,
    /// Where the payload is in the message.
    pub(crate) at: u32,
    /// The sender's name of the message.
    pub(crate) message: u64,
    /// Which offer it is written to.
    pub(crate) serial: u32,
    /// Where the message is in the window.
    pub(crate) offset: u64,
    /// The message's length.
    pub(crate) len: u64,
}

impl First {
    pub(crate) const BYTES: usize = 4 + 4 + 8 + 4 + 8 + 8;

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.u32(self.sequence);
        writer.u32(self.at);
        writer.u64(self.message);
        writer.u32(self.serial);
        writer.u64(self.offset);
        writer.u64(self.len);
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: reader.u32()?,
            at: reader.u32()?,
            message: reader.u64()?,
            serial: reader.u32()?,
            offset: reader.u64()?,
            len: reader.u64()?,
        })
    }
}

/// What a fragment of kind `More` says before its payload: sequence and place.
pub(crate) const MORE_BYTES: usize = 8;

/// A frame that must arrive, once, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequenced {
    /// A window: the serial is what packets name.
    Offer { serial: u32, window: u32, bytes: u64 },
    /// An offer is taken back.
    Withdraw { serial: u32 },
    /// Messages with a sequence below this may be started.
    Credit { messages: u64 },
    /// A started message will not be finished.
    Abandon { sequence: u64 },
    /// A started message met an offer that was taken back: none of it will be told.
    Return { sequence: u64 },
}

impl Sequenced {
    const BYTES_MAX: usize = 1 + 4 + 4 + 8;

    fn encode(&self, writer: &mut Writer) {
        match *self {
            Self::Offer { serial, window, bytes } => {
                writer.u8(0x10);
                writer.u32(serial);
                writer.u32(window);
                writer.u64(bytes);
            }
            Self::Withdraw { serial } => {
                writer.u8(0x11);
                writer.u32(serial);
            }
            Self::Credit { messages } => {
                writer.u8(0x12);
                writer.u64(messages);
            }
            Self::Abandon { sequence } => {
                writer.u8(0x13);
                writer.u64(sequence);
            }
            Self::Return { sequence } => {
                writer.u8(0x14);
                writer.u64(sequence);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            0x10 => {
                Self::Offer { serial: reader.u32()?, window: reader.u32()?, bytes: reader.u64()? }
            }
            0x11 => Self::Withdraw { serial: reader.u32()? },
            0x12 => Self::Credit { messages: reader.u64()? },
            0x13 => Self::Abandon { sequence: reader.u64()? },
            0x14 => Self::Return { sequence: reader.u64()? },
            _ => return Err(Malformed("unknown sequenced frame")),
        })
    }
}

/// A frame as it arrives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Ping,
    /// The ranges are in the scratch given to [`Frame::decode`].
    Ack {
        delay_us: u32,
    },
    /// `count` sequenced frames follow in the reader.
    Sequenced {
        first: u64,
        count: u16,
    },
    Close {
        engine: bool,
        code: u32,
        reason: String,
    },
}

const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const SEQUENCED: u8 = 0x03;
const CLOSE: u8 = 0x04;
/// An acknowledgement of one range; each further takes [`ACK_RANGE_BYTES`].
pub(crate) const ACK_BYTES_MIN: usize = 1 + 8 + 4 + 1 + 4;
const ACK_RANGE_BYTES: usize = 8;
/// A run of one sequenced frame.
pub(crate) const SEQUENCED_BYTES_MIN: usize = 1 + 8 + 2 + Sequenced::BYTES_MAX;
/// The longest close.
pub(crate) const CLOSE_BYTES_MAX: usize = 1 + 1 + 4 + 2 + REASON_BYTES_MAX;

impl Frame {
    /// The next frame. An acknowledgement's ranges (first, last; falling) replace what is in `ranges`.
    pub(crate) fn decode(
        reader: &mut Reader,
        ranges: &mut Vec<(u64, u64)>,
    ) -> Result<Self, Malformed> {
        Ok(match reader.u8()? {
            PING => Self::Ping,
            ACK => {
                let largest = reader.u64()?;
                let delay_us = reader.u32()?;
                let count = reader.u8()? as usize;
                if count == 0 || count > ACK_RANGES_MAX {
                    return Err(Malformed("number of acknowledged ranges"));
                }
                const BELOW: Malformed = Malformed("acknowledged range below zero");
                ranges.clear();
                let mut first = largest.checked_sub(u64::from(reader.u32()?)).ok_or(BELOW)?;
                ranges.push((first, largest));
                for _ in 1..count {
                    // A gap of n leaves out n + 1 numbers.
                    let last = first.checked_sub(u64::from(reader.u32()?) + 2).ok_or(BELOW)?;
                    first = last.checked_sub(u64::from(reader.u32()?)).ok_or(BELOW)?;
                    ranges.push((first, last));
                }
                Self::Ack { delay_us }
            }
            SEQUENCED => {
                let first = reader.u64()?;
                let count = reader.u16()?;
                if count == 0 || count > SEQUENCED_MAX {
                    return Err(Malformed("number of sequenced frames"));
                }
                Self::Sequenced { first, count }
            }
            CLOSE => {
                let engine = reader.u8()? != 0;
                let code = reader.u32()?;
                let len = reader.u16()? as usize;
                if len > REASON_BYTES_MAX {
                    return Err(Malformed("length of a reason"));
                }
                let reason = String::from_utf8_lossy(reader.take(len)?).into_owned();
                Self::Close { engine, code, reason }
            }
            _ => return Err(Malformed("unknown frame")),
        })
    }
}

pub(crate) fn encode_ping(writer: &mut Writer) {
    writer.u8(PING);
}

/// Writes an acknowledgement of half-open `ranges`, falling, as many as fit. `false`: there was no room.
pub(crate) fn encode_ack(
    writer: &mut Writer,
    delay_us: u32,
    ranges: impl Iterator<Item = (u64, u64)>,
) -> bool {
    if writer.room() < ACK_BYTES_MIN {
        return false;
    }
    let most = (1 + (writer.room() - ACK_BYTES_MIN) / ACK_RANGE_BYTES).min(ACK_RANGES_MAX);
    let mut below = 0;
    let mut count = 0;
    let mut count_at = 0;
    for (start, end) in ranges.take(most) {
        let span = (end - 1 - start).min(u64::from(u32::MAX)) as u32;
        if count == 0 {
            writer.u8(ACK);
            writer.u64(end - 1);
            writer.u32(delay_us);
            count_at = writer.at();
            writer.u8(0);
            writer.u32(span);
        } else {
            let Ok(gap) = u32::try_from(below - end - 1) else { break };
            writer.u32(gap);
            writer.u32(span);
        }
        count += 1;
        below = end - 1 - u64::from(span);
        if below != start {
            break;
        }
    }
    if count > 0 {
        writer.buf[count_at] = count;
    }
    count > 0
}

/// Writes a run of consecutive sequenced frames from `first`, as many as fit and tells how many.
pub(crate) fn encode_sequenced<'a>(
    writer: &mut Writer,
    first: u64,
    frames: impl Iterator<Item = &'a Sequenced>,
) -> u16 {
    if writer.room() < SEQUENCED_BYTES_MIN {
        return 0;
    }
    writer.u8(SEQUENCED);
    writer.u64(first);
    let count_at = writer.at();
    writer.u16(0);
    let mut count = 0;
    for frame in frames {
        if writer.room() < Sequenced::BYTES_MAX || count == SEQUENCED_MAX {
            break;
        }
        frame.encode(writer);
        count += 1;
    }
    writer.set_u16(count_at, count);
    count
}

pub(crate) fn encode_close(writer: &mut Writer, engine: bool, code: u32, reason: &str) {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    writer.u8(CLOSE);
    writer.u8(u8::from(engine));
    writer.u32(code);
    writer.u16(end as u16);
    writer.put(&reason.as_bytes()[..end]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::RangeSet;
    use proptest::prelude::*;

    fn encoded(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut buf = vec![0; 2000];
        let mut writer = Writer::new(&mut buf);
        write(&mut writer);
        let at = writer.at();
        buf.truncate(at);
        buf
    }

    proptest! {
        #[test]
        fn headers_return(version: u8, number in 0..NUMBERS, connection_id: u64, kind in 0u8..4) {
            let kind = [Kind::Hello, Kind::Control, Kind::First, Kind::More][kind as usize];
            let header = Header { kind, version, number, connection_id };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
        }

        #[test]
        fn firsts_return(sequence: u32, at: u32, message: u64, serial: u32, offset: u64, len: u64) {
            let first = First { sequence, at, message, serial, offset, len };
            let bytes = encoded(|writer| first.encode(writer));
            prop_assert_eq!(bytes.len(), First::BYTES);
            prop_assert_eq!(First::decode(&mut Reader::new(&bytes)), Ok(first));
        }

        #[test]
        fn hellos_return(versions: (u8, u8), echo: [u8; 16], datagram_bytes: u32, messages_ahead: u32) {
            let hello = Hello { versions, echo, datagram_bytes, messages_ahead };
            let bytes = encoded(|writer| hello.encode(writer));
            prop_assert_eq!(bytes.len(), Hello::BYTES);
            prop_assert_eq!(Hello::decode(&bytes), Ok(hello));
        }

        #[test]
        fn acknowledgements_return(
            spans in prop::collection::vec((0u64..100_000, 1u64..50), 1..100), delay: u32, room in 18usize..700,
        ) {
            let mut set = RangeSet::default();
            for (start, len) in spans {
                set.insert(start, start + len);
            }
            let mut buf = vec![0; room];
            let mut writer = Writer::new(&mut buf);
            prop_assert!(encode_ack(&mut writer, delay, set.newest_first()));
            let at = writer.at();
            let mut ranges = Vec::new();
            let mut reader = Reader::new(&buf[..at]);
            prop_assert_eq!(Frame::decode(&mut reader, &mut ranges), Ok(Frame::Ack { delay_us: delay }));
            prop_assert!(reader.is_empty());
            let want = set.newest_first().take(((room - 10) / 8).min(ACK_RANGES_MAX));
            prop_assert!(ranges.iter().map(|&(first, last)| (first, last + 1)).eq(want));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut ranges = Vec::new();
            let mut reader = Reader::new(&bytes);
            while let Ok(frame) = Frame::decode(&mut reader, &mut ranges) {
                if let Frame::Sequenced { count, .. } = frame {
                    for _ in 0..count {
                        let _ = Sequenced::decode(&mut reader);
                    }
                }
                prop_assert!(ranges.len() <= ACK_RANGES_MAX);
            }
        }
    }

    #[test]
    fn sequenced_frames_return_in_runs_that_fit() {
        let frames = [
            Sequenced::Offer { serial: 1, window: 2, bytes: 3 },
            Sequenced::Withdraw { serial: 4 },
            Sequenced::Credit { messages: 5 },
            Sequenced::Return { sequence: 6 },
        ];
        let mut buf = [0; 50];
        let mut writer = Writer::new(&mut buf);
        let count = encode_sequenced(&mut writer, 9, frames.iter());
        assert_eq!(count, 3, "the fourth might not have fitted");
        let at = writer.at();
        let mut reader = Reader::new(&buf[..at]);
        let run = Frame::decode(&mut reader, &mut Vec::new());
        assert_eq!(run, Ok(Frame::Sequenced { first: 9, count: 3 }));
        for frame in &frames[..3] {
            assert_eq!(Sequenced::decode(&mut reader).as_ref(), Ok(frame));
        }
        assert!(reader.is_empty());
    }

    #[test]
    fn reasons_are_cut_at_a_character() {
        let long = "é".repeat(REASON_BYTES_MAX);
        let bytes = encoded(|writer| encode_close(writer, false, 3, &long));
        assert!(bytes.len() <= CLOSE_BYTES_MAX);
        let close = Frame::decode(&mut Reader::new(&bytes), &mut Vec::new());
        let reason = "é".repeat(REASON_BYTES_MAX / 2);
        assert_eq!(close, Ok(Frame::Close { engine: false, code: 3, reason }));
    }
}
