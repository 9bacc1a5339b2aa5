//! The formats that cross a process boundary: the tape (records of captured operations), the
//! frames that carry it, and the control messages around it.
//!
//! Both hops speak the same language: front end to host, and host to node. This crate never does
//! I/O, never reads a clock and never trusts a byte: every decoder returns a typed [`WireError`]
//! and every length is checked against a named limit in [`limits`].
//!
//! Start reading at [`record`]: a tape is a sequence of records.

pub mod control;
mod error;
pub mod frame;
pub mod limits;
pub mod record;
pub mod reply;
pub mod script;
pub mod template;
pub mod value;
pub mod varint;

pub use error::WireError;
pub use record::{Record, StorageId, TapeDecoder, TapeWriter, TemplateId};
pub use reply::{ErrorCode, Reply};
pub use template::{OutputSpec, Template};
pub use value::{DType, TensorMeta, Value};

/// The newest version of the protocol that this build speaks. The lower one of both sides of a hop
/// is used.
pub const PROTOCOL_VERSION: u32 = 3;
/// Since this version a question for weights names many, and the storages they are for.
pub const PROTOCOL_WANTED: u32 = 3;
/// The oldest version it speaks. Version 1 had no words in a status, and its welcome did not say
/// how the host reaches the node; version 2 had no records of settings.
pub const PROTOCOL_OLDEST: u32 = 1;
/// The first version whose tape may hold [`Record::Settings`].
pub const PROTOCOL_SETTINGS: u32 = 3;

/// The version to speak with a peer whose hello names `theirs`; `None` when there is none.
pub fn common_version(theirs: u32) -> Option<u32> {
    (theirs >= PROTOCOL_OLDEST).then(|| theirs.min(PROTOCOL_VERSION))
}
