//! Waits for one connection.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use genie_bulk::Role;
use genie_transport::transport::{Connection, Listener, Options, Result, TransportError};

use crate::connection::{UdpConnection, ended};
use crate::endpoint::{Arrival, Endpoint};
use crate::settings::{Settings, resolve};
use crate::socket::{Socket, datagram_bytes};
use crate::wake::{Wake, now};
use crate::{bulk_config, invalid, io};

/// Polls of one accept, at most.
const ROUNDS_MAX: usize = 16;

/// Takes exactly the connection of [`Options::connection`] whose peer knows the secret.
///
/// Invariant: nobody else gets more than the answer to a hello, and that only for naming the
/// connection.
pub(crate) struct UdpListener {
    options: Options,
    settings: Settings,
    address: SocketAddr,
    state: State,
}

enum State {
    Waiting {
        endpoint: Box<Endpoint>,
        candidate: Option<Box<genie_bulk::Connection>>,
    },
    /// The connection was taken; the descriptor stays, and is never readable again.
    Taken(Wake),
}

impl UdpListener {
    pub fn new(options: &Options) -> Result<Self> {
        let settings = Settings::read(options)?;
        if options.accept_max > 1 {
            let many = options.accept_max;
            return Err(invalid(format!("a listener takes one data connection, not {many}")));
        }
        let wanted = resolve(&options.address)?;
        // Refuses a missing secret now, not when the peer comes.
        bulk_config(options, &settings, Role::Server, genie_bulk::DATAGRAM_BYTES_MIN, 1)?;
        let socket = bind(wanted, &settings)?;
        let address = socket.local().map_err(|error| io("ask for a socket's address", &error))?;
        let endpoint = Endpoint::listening(socket).map_err(|error| io("watch a socket", &error))?;
        let state = State::Waiting { endpoint: Box::new(endpoint), candidate: None };
        Ok(UdpListener { options: options.clone(), settings, address, state })
    }
}

/// The address as it is, or the first free port of the range.
fn bind(wanted: SocketAddr, settings: &Settings) -> Result<Socket> {
    let open = |address| Socket::open(address, settings.buffer_bytes);
    let (first, last) = match (wanted.port(), settings.ports) {
        (0, Some(range)) => range,
        _ => return open(wanted).map_err(|error| io(&format!("listen on {wanted}"), &error)),
    };
    let mut ports = (first..=last).map(|port| SocketAddr::new(wanted.ip(), port));
    let taken = || {
        let what = format!("listen on a port of {first}-{last} of {}", wanted.ip());
        io(&what, &"all are taken")
    };
    ports.find_map(|address| open(address).ok()).ok_or_else(taken)
}

/// A protocol end for a peer that named our connection.
fn candidate(
    options: &Options,
    settings: &Settings,
    peer: SocketAddr,
) -> Result<Box<genie_bulk::Connection>> {
    let bytes = datagram_bytes(peer, settings.mtu)
        .map_err(|error| io(&format!("find a route to {peer}"), &error))?;
    let config = bulk_config(options, settings, Role::Server, bytes, settings.flows())?;
    Ok(Box::new(genie_bulk::Connection::new(config, now()).map_err(invalid)?))
}

impl Listener for UdpListener {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        match &self.state {
            State::Waiting { endpoint, .. } => endpoint.wake().fd(),
            State::Taken(wake) => wake.fd(),
        }
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        for _ in 0..ROUNDS_MAX {
            let State::Waiting { endpoint, candidate } = &mut self.state else { return Ok(None) };
            let more = look(endpoint, candidate, &self.options, &self.settings)?;
            let Some(bulk) = candidate else { break };
            if bulk.is_connected() {
                return self.hand_over().map(Some);
            }
            if let Some(error) = refused(bulk, endpoint)? {
                *candidate = None;
                return Err(error);
            }
            let more = more | endpoint.transmit(bulk, now())?;
            if !endpoint.wake_at(bulk.poll_timeout(), now())? && !more {
                break;
            }
        }
        Ok(None)
    }
}

/// Gives what arrived to the candidate, making one for the first that names our connection.
fn look(
    endpoint: &mut Endpoint,
    candidate: &mut Option<Box<genie_bulk::Connection>>,
    options: &Options,
    settings: &Settings,
) -> Result<bool> {
    let mut failure = None;
    let more = endpoint.receive(|routes, arrival| {
        let Arrival { route, stride, bytes, at } = arrival;
        for datagram in bytes.chunks_mut(stride) {
            if genie_bulk::Connection::id_of(datagram) != Some(options.connection) {
                continue;
            }
            let proved = |bulk: &genie_bulk::Connection| bulk.statistics().packets_received > 0;
            // Who has proved nothing gives way to who comes next.
            let stranger = routes.first().is_none_or(|first| first.to != route.to);
            if stranger && !candidate.as_deref().is_some_and(proved) {
                match self::candidate(options, settings, route.to) {
                    Ok(new) => *candidate = Some(new),
                    Err(error) => failure = Some(error),
                }
                routes.set_first(route);
            }
            if let Some(bulk) = candidate {
                let stride = datagram.len();
                routes.feed(bulk, Arrival { route, stride, bytes: datagram, at });
            }
        }
    })?;
    if let Some(bulk) = candidate
        && bulk.poll_timeout().is_some_and(|at| at <= now())
    {
        bulk.handle_timeout(now());
    }
    failure.map_or(Ok(more), Err)
}

/// Why a candidate cannot become a connection, after telling it.
fn refused(
    bulk: &mut genie_bulk::Connection,
    endpoint: &mut Endpoint,
) -> Result<Option<TransportError>> {
    let Some(reason) = bulk.closed().cloned() else { return Ok(None) };
    endpoint.transmit(bulk, now())?;
    let peer = endpoint.routes.first().map(|route| route.to.to_string()).unwrap_or_default();
    Ok(Some(ended(&peer, &reason)))
}

impl UdpListener {
    fn hand_over(&mut self) -> Result<Box<dyn Connection>> {
        let State::Waiting { endpoint, .. } = &mut self.state else {
            return Err(invalid("the connection was taken already"));
        };
        let wake = endpoint.renew_wake().map_err(|error| io("watch a socket", &error))?;
        let State::Waiting { endpoint, candidate: Some(bulk) } =
            std::mem::replace(&mut self.state, State::Taken(wake))
        else {
            return Err(invalid("the connection was taken already"));
        };
        let peer = endpoint.routes.first().map(|route| route.to.to_string()).unwrap_or_default();
        Ok(Box::new(UdpConnection::accepted(*endpoint, *bulk, peer, &self.options)?))
    }
}
