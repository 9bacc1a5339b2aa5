//! The transport over TCP: frames and placed writes on one connection.
//!
//! There is no thread: all happens in the caller's `poll`. Payload goes from registered memory to
//! the socket and from the socket to the window without a buffer between, unless TLS is in use;
//! frames take turns with payload every 512 KiB. With certificates both ends speak TLS 1.3 and
//! prove who they are; `trusted` leaves that out. A data connection proves the secret of its
//! control session in either case before anything else, so that no stranger takes its place.
//!
//! In `trusted` mode `export_secret` derives from two random numbers that crossed the wire in the
//! clear: it keeps connections apart and protects nothing against who reads along.
//!
//! Settings: `congestion` (a name the kernel knows: `cubic`, `bbr`), `buffer_bytes` (fixes the
//! socket's buffers; the kernel adapts them by default), `unsent_bytes` (what the kernel holds
//! before it asks for no more; larger lets frames wait longer, default 524288).
//!
//! Start at [`Tcp`]; `plain.rs` and `tls.rs` move the bytes.

mod door;
mod plain;
mod socket;
mod tls;

use std::time::Instant;

use genie_records::{Course, Driven, Exchange, Reception, Setup, Tally, host_of, nonce};
use genie_transport::transport::{
    Capabilities, Cause, Connection, Facts, Listener, Options, Result, Transport, TransportError,
};

use crate::door::TcpDoor;
use crate::plain::Plain;
use crate::socket::{Socket, Tuning};
use crate::tls::{Tls, client, server};

genie_transport::export_transport!(&Tcp);

const NAME: &str = "tcp";

/// TCP as a transport.
pub struct Tcp;

/// One connection's bytes, with TLS or without.
pub(crate) enum Carrier {
    Plain(Plain),
    Tls(Box<Tls>),
}

impl Transport for Tcp {
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
        Socket::probe(&tuning)?;
        let congestion = tuning.congestion.as_deref().unwrap_or("the kernel's congestion control");
        match (options.trusted, &options.certificates) {
            (true, _) => Ok(format!("TCP with {congestion}, trusted network: no encryption")),
            (false, Some(_)) => {
                let certs = tls::certificates(options)?;
                let identity = certs.identity();
                Ok(format!("TCP with {congestion}, TLS 1.3 as {identity}"))
            }
            (false, None) => Err(tls::no_certificates()),
        }
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        Ok(Box::new(Reception::new(TcpDoor::open(options)?, options, Tally::new(NAME))?))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        let tuning = Tuning::read(options)?;
        let tls = match options.trusted {
            true => None,
            false => Some(client(options, host_of(&options.address))?),
        };
        let socket = Socket::connect(&options.address, &tuning)?;
        let carrier = match tls {
            None => Carrier::Plain(Plain::new(socket)),
            Some(session) => Carrier::Tls(Box::new(Tls::new(socket, session))),
        };
        Ok(Box::new(Driven::new(course(carrier, options, true)?)?))
    }
}

/// A connection over a socket that is connected or about to be.
pub(crate) fn course(
    carrier: Carrier,
    options: &Options,
    initiator: bool,
) -> Result<Course<Carrier>> {
    let setup = Setup {
        transport: NAME,
        options,
        initiator,
        two_lanes: false,
        watch: true,
        sharing: None,
        nonce: nonce()?,
        now: Instant::now(),
    };
    Ok(Course::new(carrier, Exchange::new(setup)))
}

/// The connection is over without a word.
pub(crate) fn ended() -> TransportError {
    TransportError::new(
        Cause::Closed,
        "the peer ended the connection without a goodbye; its process may have ended",
    )
}

impl genie_records::Carrier for Carrier {
    fn event_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket().fd()
    }

    fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        match self {
            Carrier::Plain(plain) => plain.receive(exchange, now),
            Carrier::Tls(tls) => tls.receive(exchange, now),
        }
    }

    fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        match self {
            Carrier::Plain(plain) => plain.send(exchange, now),
            Carrier::Tls(tls) => tls.send(exchange, now),
        }
    }

    fn wants_room(&self, exchange: &Exchange) -> bool {
        let waits = match self {
            Carrier::Plain(_) => false,
            Carrier::Tls(tls) => tls.has_unsent(),
        };
        waits || !self.socket().is_connected() || exchange.wants_to_send()
    }

    /// With TLS it answers.
    fn speaks_first(&self) -> bool {
        matches!(self, Carrier::Plain(_))
    }

    fn finish(&mut self) {
        let said = match self {
            Carrier::Plain(_) => true,
            Carrier::Tls(tls) => tls.say_goodbye(),
        };
        if said {
            self.socket().end_sending();
        }
    }

    fn export_secret(&self, exchange: &Exchange, label: &[u8]) -> Result<[u8; 32]> {
        match self {
            Carrier::Plain(_) => exchange.plain_secret(label),
            Carrier::Tls(tls) => tls.export_secret(label),
        }
    }

    fn peer_identity(&self) -> String {
        match self {
            Carrier::Plain(_) => String::new(),
            Carrier::Tls(tls) => tls.peer_identity(),
        }
    }

    fn peer_address(&self) -> String {
        self.socket().peer().to_string()
    }

    fn peer_ip(&self) -> Option<std::net::IpAddr> {
        Some(self.socket().peer().ip())
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        self.socket().statistics()
    }
}

impl Carrier {
    fn socket(&self) -> &Socket {
        match self {
            Carrier::Plain(plain) => plain.socket(),
            Carrier::Tls(tls) => tls.socket(),
        }
    }

    /// The accepting side.
    pub(crate) fn accepted(
        socket: Socket,
        config: Option<&std::sync::Arc<rustls::ServerConfig>>,
    ) -> Result<Carrier> {
        Ok(match config {
            None => Carrier::Plain(Plain::new(socket)),
            Some(config) => Carrier::Tls(Box::new(Tls::new(socket, server(config)?))),
        })
    }
}
