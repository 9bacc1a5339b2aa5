//! Answers to records that carry a token.

use crate::WireError;
use crate::limits::{FRAME_BYTES_MAX, OUTPUTS_MAX};
use crate::template::OutputSpec;
use crate::varint::{Reader, put, put_bytes};

/// Which exception an error becomes in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ErrorCode {
    /// The operator raised `RuntimeError`, or a cause without a class of its own.
    Runtime = 1,
    OutOfMemory = 2,
    NodeLost = 3,
    Index = 4,
    Value = 5,
    Type = 6,
    NotImplemented = 7,
    Linalg = 8,
    /// The client's inferred outputs differ from what the node computed.
    TemplateMismatch = 9,
    /// A peer broke the protocol; the session ended.
    Protocol = 10,
    /// A weight is not, or no longer, in the node's store.
    WeightMissing = 11,
    /// No session is taken now: the peer is stopping, or full. Peers of before take it for
    /// [`ErrorCode::Runtime`].
    Unavailable = 12,
}

impl ErrorCode {
    pub fn from_u8(value: u8) -> Option<Self> {
        use ErrorCode::*;
        [
            Runtime,
            OutOfMemory,
            NodeLost,
            Index,
            Value,
            Type,
            NotImplemented,
            Linalg,
            TemplateMismatch,
            Protocol,
            WeightMissing,
            Unavailable,
        ]
        .into_iter()
        .find(|code| *code as u8 == value)
    }
}

/// The body of a `Reply` frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply<'a> {
    /// A read landed in its region, or a fence was reached.
    Done,
    /// A fence was reached, at this time of the node's own clock. Readers that do not know of it
    /// take it for `Done`, which nodes that do not know of it send.
    Reached {
        at_ns: u64,
    },
    /// The bytes of an inline read, or a generator's state.
    Bytes(&'a [u8]),
    /// What a `Run` record made. `New { index }` counts from the record's first reserved id;
    /// `storage_bytes[index]` is the size of that storage. `scalars` holds the non-tensor
    /// returns (encoded values), in order.
    Outputs {
        storage_bytes: Vec<u64>,
        outputs: Vec<OutputSpec>,
        scalars: &'a [u8],
    },
    Error {
        code: ErrorCode,
        message: &'a str,
    },
}

impl<'a> Reply<'a> {
    pub fn encode(&self, token: u64, out: &mut Vec<u8>) {
        put(out, token);
        match self {
            Reply::Done => out.push(0),
            Reply::Reached { at_ns } => {
                out.push(0);
                put(out, *at_ns);
            }
            Reply::Bytes(bytes) => {
                out.push(1);
                put_bytes(out, bytes);
            }
            Reply::Outputs { storage_bytes, outputs, scalars } => {
                out.push(2);
                put(out, storage_bytes.len() as u64);
                for bytes in storage_bytes {
                    put(out, *bytes);
                }
                put(out, outputs.len() as u64);
                for output in outputs {
                    output.encode(out);
                }
                put_bytes(out, scalars);
            }
            Reply::Error { code, message } => {
                out.push(3);
                out.push(*code as u8);
                put_bytes(out, message.as_bytes());
            }
        }
    }

    /// Returns the token and the reply.
    pub fn decode(bytes: &'a [u8]) -> Result<(u64, Self), WireError> {
        let mut reader = Reader::new(bytes);
        let token = reader.varint("token")?;
        let reply = match reader.u8("reply kind")? {
            0 if reader.is_empty() => Reply::Done,
            0 => Reply::Reached { at_ns: reader.varint("time of a fence")? },
            1 => Reply::Bytes(reader.bytes("reply payload", FRAME_BYTES_MAX)?),
            2 => {
                let storages = reader.bounded("new storages", OUTPUTS_MAX)?;
                let storage_bytes = (0..storages)
                    .map(|_| reader.varint("storage bytes"))
                    .collect::<Result<_, _>>()?;
                let outputs = reader.bounded("outputs", OUTPUTS_MAX)?;
                let outputs = (0..outputs)
                    .map(|_| OutputSpec::decode(&mut reader))
                    .collect::<Result<_, _>>()?;
                let scalars = reader.bytes("scalar returns", FRAME_BYTES_MAX)?;
                Reply::Outputs { storage_bytes, outputs, scalars }
            }
            3 => {
                let code = reader.u8("error code")?;
                let code = ErrorCode::from_u8(code)
                    .ok_or(WireError::Unknown { what: "error code", value: code.into() })?;
                Reply::Error { code, message: reader.str("error message", FRAME_BYTES_MAX)? }
            }
            value => return Err(WireError::Unknown { what: "reply kind", value: value.into() }),
        };
        Ok((token, reply))
    }
}
