//! The transport over kernel UDP: Genie's bulk protocol ([`genie_bulk`]) on UDP sockets, with
//! segmentation and receive offload. It carries placed writes and no frames.
//!
//! One listener takes one data connection: the one whose number and secret both ends got from their
//! control session. There is no thread: everything happens in [`Connection::poll`], and the event
//! descriptor (an epoll set of the sockets and a timer) tells when that is due.
//!
//! It never follows a peer to another address: a connection lives and dies with the addresses it
//! began with. An unreachable port or network is not an end by itself; the deadline is.
//!
//! Start reading at [`Udp`], then `connection.rs`; `endpoint.rs` has the system calls.
//!
//! [`Connection::poll`]: genie_transport::transport::Connection::poll

mod connection;
mod endpoint;
mod listener;
mod memories;
mod settings;
mod socket;
mod wake;

use genie_bulk::{MILLISECOND, Protection, Role};
use genie_transport::transport::{
    Capabilities, Cause, Connection, Facts, Listener, Options, Result, Transport, TransportError,
};

use settings::Settings;

pub use settings::{FLOWS_MAX, SETTINGS};

/// The transport `udp`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Udp;

genie_transport::export_transport!(&Udp);

impl Transport for Udp {
    fn facts(&self) -> Facts {
        Facts {
            name: "udp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Capabilities::DATA.with(Capabilities::NETWORK),
        }
    }

    fn probe(&self, options: &Options) -> Result<String> {
        let settings = Settings::read(options)?;
        let local = match options.address.is_empty() {
            true => std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            false => settings::resolve(&options.address)?,
        };
        // The address may be a peer's: only its family matters here.
        let socket = socket::Socket::open(socket::any_of(local), settings.buffer_bytes)
            .map_err(|error| io("open a UDP socket", &error))?;
        Ok(socket.describe())
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        Ok(Box::new(listener::UdpListener::new(options)?))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        Ok(Box::new(connection::UdpConnection::connect(options)?))
    }
}

/// What the operating system refused.
fn io(what: &str, error: &dyn std::fmt::Display) -> TransportError {
    TransportError::new(Cause::Io, format!("udp: cannot {what}: {error}"))
}

fn invalid(message: impl std::fmt::Display) -> TransportError {
    TransportError::new(Cause::Invalid, format!("udp: {message}"))
}

/// How the bulk protocol is run for a connection with these options.
fn bulk_config(
    options: &Options,
    settings: &Settings,
    role: Role,
    datagram_bytes: usize,
    flows: u16,
) -> Result<genie_bulk::Config> {
    let protection = match (options.trusted, options.secret) {
        (true, _) => Protection::Trusted,
        (false, Some(secret)) => Protection::Sealed { secret },
        (false, None) => {
            return Err(invalid(
                "a connection needs the secret of its control session, or the option `trusted`",
            ));
        }
    };
    let mut nonce = [0; 16];
    let filled = rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| io("get random bytes", &errno))?;
    if filled != nonce.len() {
        return Err(io("get random bytes", &"too few came"));
    }
    let mut config = genie_bulk::Config::new(options.connection, role, protection, nonce);
    config.datagram_bytes = datagram_bytes;
    config.flows = flows;
    config.writes_queued = genie_transport::transport::MESSAGES_MAX;
    config.peer_timeout = options.deadline_ms.max(1) * MILLISECOND;
    // A peer that is gone is noticed without anything to send, too.
    config.keepalive = Some((config.peer_timeout / 4).max(MILLISECOND));
    if let Some(rate) = settings.rate_max {
        config.rate_max = rate;
        config.rate_initial = config.rate_initial.min(rate);
    }
    Ok(config)
}
