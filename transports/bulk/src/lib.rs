//! Genie's reliable message protocol over datagrams, as a state machine: no sockets, no clock, no
//! threads, no randomness. A carrier (kernel UDP, DPDK, a simulator) moves the datagrams and tells
//! the time.
//!
//! The receiver *offers windows* of memory; the sender *writes* messages to (window, offset). Bytes
//! are placed into the window as they arrive, in any order; each message is told once it is whole.
//! The specification is `docs/reference/bulk.md`.
//!
//! Start reading at [`Connection`]; a carrier's loop looks like this:
//!
//! ```text
//! loop {
//!     for each datagram received            connection.handle(now, flow, datagram)
//!     if poll_timeout() <= now              connection.handle_timeout(now)
//!     while let Some(event) = poll_event()  tell the application
//!     while let Some(t) = poll_transmit(now, buffer, segments_max)
//!                                           send buffer[..t.bytes] on flow t.flow
//!     sleep until a datagram comes or poll_timeout()
//! }
//! ```
//!
//! It never trusts the peer: what arrives is either well formed and within the named limits, or is
//! dropped and counted, or closes the connection with a typed reason.

mod acks;
mod config;
mod congestion;
mod connection;
mod control;
mod error;
mod event;
#[cfg(test)]
mod fuzz;
mod hello;
mod memory;
mod protect;
mod ranges;
mod receive;
mod send;
mod sent;
mod split;
mod wire;

pub use config::{
    Config, DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, MESSAGE_BYTES_MAX, MESSAGES_AHEAD_MAX,
    MICROSECOND, MILLISECOND, PARTS_MAX, Protection, REASON_BYTES_MAX, Role, SECOND, Time, VERSION,
    VERSION_OLDEST, WINDOWS_MAX,
};
pub use connection::Connection;
pub use error::{CloseReason, ConfigError, FailReason, PlaceError, WindowError, WriteError};
pub use event::{Event, Statistics, Transmit};
pub use memory::{Span, WindowMemory};
pub use split::{PIECES_MAX, Piece};
