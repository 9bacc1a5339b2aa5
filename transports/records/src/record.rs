//! The codec: one record is a head of 8 bytes and a body.
//!
//! ```text
//! kind u8 | detail u8 | flags u16 | bytes u32 | body
//! ```
//! Little endian. The body of `Data` is payload and is never collected; all others are bounded.

use genie_transport::transport::{Cause, Result, TransportError};

/// The version of the protocol, the `detail` of [`Record::Hello`]. One older is accepted when
/// there is one.
pub const VERSION: u8 = 1;
/// Bytes of a record's head.
pub const HEAD_BYTES: usize = 8;
/// The largest payload of one `Data` record: how long a frame may have to wait for its turn.
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// The longest reason of a `Close`.
pub const REASON_BYTES_MAX: usize = 1 << 10;
/// The first bytes of a `Hello`'s body, by which a stranger is told from another version.
const MARK: u64 = u64::from_le_bytes(*b"genie io");

/// Flag of `Hello`, `Frame` and `Offer`: a descriptor comes beside it.
const BESIDE: u16 = 1;
/// Flag of `Write`: the bytes lie in the window already.
const DONE: u16 = 1;

const HELLO: u8 = 1;
const PROOF: u8 = 2;
const LANE: u8 = 3;
pub(crate) const FRAME: u8 = 4;
const OFFER: u8 = 5;
const WITHDRAW: u8 = 6;
const WRITE: u8 = 7;
const DATA: u8 = 8;
const WRITTEN: u8 = 9;
const DROPPED: u8 = 10;
const ALIVE: u8 = 11;
const CLOSE: u8 = 12;

/// What both ends say first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The largest frame and message that the sender of this accepts.
    pub frame_bytes_max: u64,
    pub message_bytes_max: u64,
    /// The number of the data connection; 0 for none.
    pub connection: u64,
    /// A proof of the connection's secret follows, and one is wanted.
    pub secured: bool,
    pub nonce: [u8; 32],
    /// A descriptor comes beside it.
    pub beside: bool,
}

/// An offered window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub window: u32,
    /// Shared memory only: the gate that guards the window.
    pub gate: u32,
    /// Which offer of the connection this is, from 1 on: a window that is offered again is another.
    pub generation: u64,
    pub bytes: u64,
    /// Shared memory only: where the window begins in the memory beside it.
    pub base: u64,
    pub beside: bool,
}

/// The begin of a message; `Data` records of `bytes` bytes together follow, unless `done`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub message: u64,
    pub window: u32,
    pub generation: u64,
    pub offset: u64,
    pub bytes: u64,
    /// Shared memory only: the bytes lie in the window already.
    pub done: bool,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    Hello(Hello),
    Proof([u8; 32]),
    /// Opens the second stream of a transport that has one for payload.
    Lane,
    Frame {
        kind: u8,
        beside: bool,
        body: &'a [u8],
    },
    Offer(Offer),
    Withdraw {
        window: u32,
        generation: u64,
    },
    Write(Write),
    /// `bytes` bytes of the message that is open follow.
    Data {
        bytes: u32,
    },
    Written {
        message: u64,
    },
    /// The window was withdrawn before all bytes were there: the message waits for the next offer.
    Dropped {
        message: u64,
    },
    Alive,
    Close {
        reason: &'a [u8],
    },
}

/// A record's head, checked as far as it can be alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    kind: u8,
    detail: u8,
    flags: u16,
    bytes: u32,
}

impl Head {
    /// Checks kind, flags and size; a body may have at most `frame_bytes_max` bytes in a frame.
    pub fn decode(head: [u8; HEAD_BYTES], frame_bytes_max: u64) -> Result<Head> {
        let [kind, detail, f0, f1, b0, b1, b2, b3] = head;
        let flags = u16::from_le_bytes([f0, f1]);
        let bytes = u32::from_le_bytes([b0, b1, b2, b3]);
        let (flags_known, fits) = match kind {
            // What another version says in its hello is not ours to judge.
            HELLO if detail != VERSION => (u16::MAX, bytes <= 4096),
            HELLO => (BESIDE, bytes == 72),
            PROOF => (0, bytes == 32),
            LANE | ALIVE => (0, bytes == 0),
            FRAME => (BESIDE, u64::from(bytes) <= frame_bytes_max),
            OFFER => (BESIDE, bytes == 32),
            WITHDRAW => (0, bytes == 16),
            WRITE => (DONE, bytes == 40),
            DATA => (0, (1..=DATA_BYTES_MAX).contains(&bytes)),
            WRITTEN | DROPPED => (0, bytes == 8),
            CLOSE => (0, bytes as usize <= REASON_BYTES_MAX),
            _ => return Err(protocol(format!("a record of the unknown kind {kind}"))),
        };
        if flags & !flags_known != 0 {
            return Err(protocol(format!("a record of kind {kind} with unknown flags {flags:#x}")));
        }
        if !matches!(kind, HELLO | FRAME) && detail != 0 {
            return Err(protocol(format!("a record of kind {kind} with the detail {detail}")));
        }
        if !fits {
            return Err(protocol(format!("a record of kind {kind} with {bytes} bytes")));
        }
        Ok(Head { kind, detail, flags, bytes })
    }

    /// Bytes that must be there before [`Head::record`]: none for `Data`, whose payload is placed.
    pub fn body_bytes(self) -> usize {
        match self.kind {
            DATA => 0,
            _ => self.bytes as usize,
        }
    }

    /// The record with this head; `body` has [`Head::body_bytes`] bytes.
    pub fn record(self, body: &[u8]) -> Result<Record<'_>> {
        let mut fields = Fields(body);
        let record = match self.kind {
            HELLO if self.detail != VERSION => {
                let message = format!(
                    "the peer speaks version {} of Genie's stream protocol, this end speaks version \
                     {VERSION}; install the same release on both",
                    self.detail
                );
                return Err(TransportError::new(Cause::Version, message));
            }
            HELLO => {
                if fields.u64() != MARK {
                    return Err(protocol("a greeting that is not Genie's".into()));
                }
                let hello = Hello {
                    frame_bytes_max: fields.u64(),
                    message_bytes_max: fields.u64(),
                    connection: fields.u64(),
                    secured: match fields.u64() {
                        0 => false,
                        1 => true,
                        _ => return Err(protocol("a greeting with unknown features".into())),
                    },
                    nonce: fields.bytes32(),
                    beside: self.flags & BESIDE != 0,
                };
                Record::Hello(hello)
            }
            PROOF => Record::Proof(fields.bytes32()),
            LANE => Record::Lane,
            FRAME => Record::Frame { kind: self.detail, beside: self.flags & BESIDE != 0, body },
            OFFER => Record::Offer(Offer {
                window: fields.u32(),
                gate: fields.u32(),
                generation: fields.u64(),
                bytes: fields.u64(),
                base: fields.u64(),
                beside: self.flags & BESIDE != 0,
            }),
            WITHDRAW => {
                let window = fields.u32();
                fields.zero()?;
                Record::Withdraw { window, generation: fields.u64() }
            }
            WRITE => {
                let window = fields.u32();
                fields.zero()?;
                Record::Write(Write {
                    window,
                    message: fields.u64(),
                    generation: fields.u64(),
                    offset: fields.u64(),
                    bytes: fields.u64(),
                    done: self.flags & DONE != 0,
                })
            }
            DATA => Record::Data { bytes: self.bytes },
            WRITTEN => Record::Written { message: fields.u64() },
            DROPPED => Record::Dropped { message: fields.u64() },
            ALIVE => Record::Alive,
            CLOSE => Record::Close { reason: body },
            _ => unreachable!("decode knows the kinds"),
        };
        Ok(record)
    }
}

impl Record<'_> {
    /// Appends the record; of `Data` the head alone.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut head = |kind: u8, detail: u8, flags: u16, bytes: usize| {
            out.extend_from_slice(&[kind, detail]);
            out.extend_from_slice(&flags.to_le_bytes());
            out.extend_from_slice(&(bytes as u32).to_le_bytes());
        };
        match self {
            Record::Hello(hello) => {
                head(HELLO, VERSION, hello.beside.into(), 72);
                let limits = [hello.frame_bytes_max, hello.message_bytes_max];
                put(out, &[MARK, limits[0], limits[1], hello.connection, hello.secured.into()]);
                out.extend_from_slice(&hello.nonce);
            }
            Record::Proof(proof) => {
                head(PROOF, 0, 0, 32);
                out.extend_from_slice(proof);
            }
            Record::Lane => head(LANE, 0, 0, 0),
            Record::Frame { kind, beside, body } => {
                head(FRAME, *kind, (*beside).into(), body.len());
                out.extend_from_slice(body);
            }
            Record::Offer(offer) => {
                head(OFFER, 0, offer.beside.into(), 32);
                let first = u64::from(offer.window) | u64::from(offer.gate) << 32;
                put(out, &[first, offer.generation, offer.bytes, offer.base]);
            }
            Record::Withdraw { window, generation } => {
                head(WITHDRAW, 0, 0, 16);
                put(out, &[(*window).into(), *generation]);
            }
            Record::Write(write) => {
                head(WRITE, 0, write.done.into(), 40);
                let Write { window, message, generation, offset, bytes, .. } = *write;
                put(out, &[window.into(), message, generation, offset, bytes]);
            }
            Record::Data { bytes } => head(DATA, 0, 0, *bytes as usize),
            Record::Written { message } => {
                head(WRITTEN, 0, 0, 8);
                put(out, &[*message]);
            }
            Record::Dropped { message } => {
                head(DROPPED, 0, 0, 8);
                put(out, &[*message]);
            }
            Record::Alive => head(ALIVE, 0, 0, 0),
            Record::Close { reason } => {
                head(CLOSE, 0, 0, reason.len());
                out.extend_from_slice(reason);
            }
        }
    }

    /// Appends a frame whose body is the concatenation of `parts`.
    pub(crate) fn encode_frame(kind: u8, beside: bool, parts: &[&[u8]], out: &mut Vec<u8>) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        out.reserve(HEAD_BYTES + bytes);
        out.extend_from_slice(&[FRAME, kind, beside.into(), 0]);
        out.extend_from_slice(&(bytes as u32).to_le_bytes());
        for part in parts {
            out.extend_from_slice(part);
        }
    }
}

fn put(out: &mut Vec<u8>, fields: &[u64]) {
    for field in fields {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Reads fields off a body whose size was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the head's size was checked");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn bytes32(&mut self) -> [u8; 32] {
        self.take()
    }

    fn zero(&mut self) -> Result<()> {
        match self.u32() {
            0 => Ok(()),
            _ => Err(protocol("a record with a field set that must be zero".into())),
        }
    }
}

/// The peer broke the protocol by sending `what`.
pub(crate) fn protocol(what: String) -> TransportError {
    let message = format!("the peer sent {what}; the connection is given up");
    TransportError::new(Cause::Protocol, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAME_BYTES: u64 = 1 << 16;

    fn decode(bytes: &[u8]) -> Result<Record<'_>> {
        let (head, body) = bytes.split_first_chunk().expect("a head");
        let head = Head::decode(*head, FRAME_BYTES)?;
        head.record(&body[..head.body_bytes()])
    }

    fn any_record() -> impl Strategy<Value = Record<'static>> {
        let body = || proptest::collection::vec(any::<u8>(), 0..100).prop_map(|b| &*b.leak());
        let numbers = any::<(u32, u32, u64, u64, u64, bool)>();
        prop_oneof![
            (any::<(u64, u64, u64, bool, [u8; 32], bool)>()).prop_map(
                |(frame_bytes_max, message_bytes_max, connection, secured, nonce, beside)| {
                    let limits = (frame_bytes_max, message_bytes_max);
                    Record::Hello(Hello {
                        frame_bytes_max: limits.0,
                        message_bytes_max: limits.1,
                        connection,
                        secured,
                        nonce,
                        beside,
                    })
                }
            ),
            any::<[u8; 32]>().prop_map(Record::Proof),
            Just(Record::Lane),
            (any::<u8>(), any::<bool>(), body()).prop_map(|(kind, beside, body)| Record::Frame {
                kind,
                beside,
                body
            }),
            numbers.prop_map(|(window, gate, generation, bytes, base, beside)| {
                Record::Offer(Offer { window, gate, generation, bytes, base, beside })
            }),
            any::<(u32, u64)>()
                .prop_map(|(window, generation)| Record::Withdraw { window, generation }),
            any::<(u32, u64, u64, u64, u64, bool)>().prop_map(
                |(window, message, generation, offset, bytes, done)| {
                    Record::Write(Write { message, window, generation, offset, bytes, done })
                }
            ),
            (1..=DATA_BYTES_MAX).prop_map(|bytes| Record::Data { bytes }),
            any::<u64>().prop_map(|message| Record::Written { message }),
            any::<u64>().prop_map(|message| Record::Dropped { message }),
            Just(Record::Alive),
            body().prop_map(|reason| Record::Close { reason }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in any_record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(decode(&bytes).unwrap(), record);
        }

        #[test]
        fn what_is_read_is_written_the_same(head in any::<[u8; 8]>(), body in any::<[u8; 128]>()) {
            if let Ok(checked) = Head::decode(head, 128)
                && let Ok(record) = checked.record(&body[..checked.body_bytes()])
            {
                let mut bytes = Vec::new();
                record.encode(&mut bytes);
                prop_assert_eq!(&bytes[..8], &head[..]);
                prop_assert_eq!(&bytes[8..], &body[..checked.body_bytes()]);
            }
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = Vec::new();
        let hello = Hello {
            frame_bytes_max: 1,
            message_bytes_max: 1,
            connection: 0,
            secured: false,
            nonce: [0; 32],
            beside: false,
        };
        Record::Hello(hello).encode(&mut bytes);
        bytes[1] = 9;
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.cause, Cause::Version);
        assert!(error.message.contains("version 9") && error.message.contains("version 1"));
    }
}
