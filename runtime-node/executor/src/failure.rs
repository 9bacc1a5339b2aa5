//! What can go wrong, by whom it concerns: one operator's result, or the whole session.

use genie_transport::MemoryError;
use genie_wire::{ErrorCode, StorageId, WireError};

/// An error of an operator or an allocation: it poisons storages and is raised at their read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
}

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Failure::new(ErrorCode::Runtime, error.to_string())
    }
}

/// The peer broke the protocol; its session ends.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{doing} names storage {}, which was never made or already freed", .id.0)]
    NotAlive { doing: &'static str, id: StorageId },
    #[error("{doing} names region {region}, which was never registered")]
    NoRegion { doing: &'static str, region: u32 },
    #[error("region {region} is registered already")]
    RegionTaken { region: u32 },
    #[error("{doing} in region {region}: {source}")]
    OutsideRegion { doing: &'static str, region: u32, source: MemoryError },
    #[error("the session's {what} exceed the limit of {max}")]
    TooMany { what: &'static str, max: u64 },
}
