//! The transport over QUIC: frames and placed writes on two streams of one connection.
//!
//! quinn runs on one thread of the process, named `genie-quic`: it answers, retransmits and keeps
//! connections alive whether or not their users poll. Records and payload pass between a stream
//! and the caller's memory in the caller's `poll`; what waits in between is bounded by QUIC's flow
//! control. Frames have a stream of their own that goes first, so payload never delays them.
//!
//! Both ends prove who they are by certificates. On a `trusted` network the listener shows a
//! certificate of the moment that nobody checks, and asks for none: the connection is still
//! encrypted, but to whom is not known.
//!
//! Settings: `congestion` (`cubic`, the default, or `bbr`), `mtu` (the largest datagram that is
//! tried, in bytes of UDP payload, default 1452; above 6553 datagrams are not sent in batches, which
//! would pass 64 KiB).
//!
//! Start at [`Quic`]; `handshakes.rs` says who gets in, `carrier.rs` moves the bytes.

mod carrier;
mod config;
mod door;
mod handshakes;
mod ids;
mod runtime;
mod wake;

use std::time::Instant;

use genie_records::{Course, Driven, Exchange, Reception, Setup, Tally, nonce};
use genie_transport::transport::{
    Capabilities, Cause, Connection, Facts, Listener, Options, Result, Transport, TransportError,
};

use crate::carrier::Carrier;
use crate::config::Tuning;
use crate::door::QuicDoor;

genie_transport::export_transport!(&Quic);

const NAME: &str = "quic";

/// QUIC as a transport.
pub struct Quic;

impl Transport for Quic {
    fn facts(&self) -> Facts {
        let capabilities = Capabilities::CONTROL.with(Capabilities::DATA);
        Facts {
            name: NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: capabilities.with(Capabilities::NETWORK),
        }
    }

    fn probe(&self, options: &Options) -> Result<String> {
        let tuning = Tuning::read(options)?;
        std::net::UdpSocket::bind(("127.0.0.1", 0)).map_err(|error| {
            TransportError::new(Cause::Io, format!("make a UDP socket: {error}"))
        })?;
        let congestion = tuning.congestion;
        match options.trusted {
            true => Ok(format!("QUIC with {congestion}, trusted network: nobody proves who he is")),
            false => {
                let identity = config::certificates(options)?.identity();
                Ok(format!("QUIC with {congestion}, TLS 1.3 as {identity}"))
            }
        }
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        let tally = Tally::new(NAME);
        let door = QuicDoor::open(options, tally.clone())?;
        Ok(Box::new(Reception::new(door, options, tally)?))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        let course = course(Carrier::connect(options)?, options, true)?;
        Ok(Box::new(Driven::new(course)?))
    }
}

/// A connection over a carrier that is being set up.
pub(crate) fn course(
    carrier: Carrier,
    options: &Options,
    initiator: bool,
) -> Result<Course<Carrier>> {
    let setup = Setup {
        transport: NAME,
        options,
        initiator,
        two_lanes: true,
        // QUIC does it.
        watch: false,
        sharing: None,
        nonce: nonce()?,
        now: Instant::now(),
    };
    Ok(Course::new(carrier, Exchange::new(setup)))
}
