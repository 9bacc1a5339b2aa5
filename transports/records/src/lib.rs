//! The records that stream transports exchange, and the state of a connection that speaks them.
//!
//! `tcp`, `quic` and `shm` carry the same records ([`record`]) over one or two ordered streams of
//! bytes. [`Exchange`] is the state of one connection: frames, windows, messages, credit, greeting
//! and proof; it does no I/O and is told the time. A transport supplies a [`Carrier`], which moves
//! bytes; [`Driven`] makes a connection of the two, [`Reception`] a listener, which a [`Guard`] keeps
//! open for friends.
//!
//! The crate opens no socket and starts no thread. Start at [`Exchange`].

mod course;
mod driven;
mod exchange;
pub mod guard;
mod lane;
mod memory;
mod readiness;
mod reception;
pub mod record;
mod settings;
mod sharing;

pub use course::Course;
pub use driven::{Carrier, Driven};
pub use exchange::{CONTROL, DATA, Exchange, Setup};
pub use guard::{Guard, Tally};
pub use lane::{Outgoing, Span};
pub use readiness::io;
pub use reception::{Door, Reception};
pub use settings::{check_settings, host_of, number};
pub use sharing::Sharing;

use genie_transport::transport::{Cause, Result, TransportError};
use ring::rand::SecureRandom;

/// 32 fresh random bytes.
pub fn nonce() -> Result<[u8; 32]> {
    let mut nonce = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut nonce).map_err(|_| {
        TransportError::new(Cause::Io, "the operating system gave no random numbers")
    })?;
    Ok(nonce)
}
