//! Why a session is ended.

use genie_wire::{ErrorCode, PROTOCOL_OLDEST, PROTOCOL_VERSION, WireError};

/// A client broke the protocol or a limit; its session ends with a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the tape is malformed: {0}")]
    Wire(#[from] WireError),
    #[error("storage {0} is not alive in this session")]
    StorageNotAlive(u64),
    #[error("shared region {0} was not registered by this session")]
    NoSuchRegion(u32),
    #[error("shared region {0} is registered already")]
    RegionTaken(u32),
    #[error("bytes {offset}..{offset}+{len} lie outside shared region {region}")]
    OutsideRegion { region: u32, offset: u64, len: u64 },
    #[error("token {0} already waits for its reply")]
    TokenTaken(u64),
    #[error("{what} would reach {value}, the limit of a session is {max}")]
    Limit { what: &'static str, value: u64, max: u64 },
    #[error("a frame of kind {kind} is not expected {state}")]
    UnexpectedFrame { kind: &'static str, state: &'static str },
    #[error(
        "the client speaks protocol {client}, this host speaks {PROTOCOL_OLDEST} to \
         {PROTOCOL_VERSION}; install the same version of genie on both sides"
    )]
    Protocol { client: u32 },
}

impl SessionError {
    /// The code that travels in the refusal.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Protocol
    }
}
