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
pub mod template;
pub mod value;
pub mod varint;

pub use error::WireError;
pub use record::{Record, StorageId, TapeDecoder, TapeWriter, TemplateId};
pub use reply::{ErrorCode, Reply};
pub use template::{OutputSpec, Template};
pub use value::{DType, TensorMeta, Value};

/// The version both sides of a hop must share; the hello refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;
