//! Between an exchange and the two streams of a QUIC connection. quinn's futures are polled by the
//! caller itself, with a waker that rings the connection's bell.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use genie_records::{CONTROL, DATA, Exchange, host_of};
use genie_tls::Identity;
use genie_transport::transport::{Cause, Options, Result, TransportError};
use quinn::rustls::pki_types::CertificateDer;
use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, VarInt, WriteError,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::config::{self, Judge, Tuning};
use crate::runtime;
use crate::wake::Bell;

/// What secrets for callers, and the binding of a proof, are derived under.
const SECRET_LABEL: &[u8] = b"EXPORTER-genie-secret-v1";
const BINDING_LABEL: &[u8] = b"EXPORTER-genie-binding-v1";
/// Payload copied at a time on its way to the stream.
const STAGE_BYTES: usize = 128 << 10;
/// Bytes moved in one call, each way, before the caller gets its turn.
const BUDGET_BYTES: usize = 4 << 20;
/// Frames go before payload.
const CONTROL_PRIORITY: i32 = 1;
/// How long the last words of a dropped connection may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// The alert of TLS for a peer that speaks no protocol of ours.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Both streams of a connection: [`CONTROL`] and [`DATA`].
struct Streams {
    connection: Connection,
    send: [SendStream; 2],
    receive: [RecvStream; 2],
}

enum State {
    Connecting(JoinHandle<Result<Streams>>),
    Live(Box<Streams>),
    /// It ended while connecting.
    Ended,
}

pub(crate) struct Carrier {
    bell: Arc<Bell>,
    runtime: Handle,
    peer: SocketAddr,
    trusted: bool,
    state: State,
    identity: Option<Identity>,
    /// Payload that left the exchange and waits for the stream.
    staged: Bytes,
    /// A budget ended, not the work.
    more: bool,
}

impl Carrier {
    /// Begins to connect.
    pub fn connect(options: &Options) -> Result<Carrier> {
        let tuning = Tuning::read(options)?;
        let peer = config::resolve(&options.address)?;
        let name = options.peer_name.as_deref().unwrap_or(host_of(&options.address));
        if !options.trusted {
            genie_tls::server_name(name).map_err(config::refused)?;
        }
        // Nobody looks at the name on a trusted network; an address always makes one.
        let name = if options.trusted { "genie".to_owned() } else { name.to_owned() };
        let (config, judge) = config::client(options, tuning.transport())?;
        let runtime = runtime::handle()?;
        let _inside = runtime.enter();
        let any: SocketAddr = match peer.is_ipv4() {
            true => ([0, 0, 0, 0], 0).into(),
            false => ([0u16; 8], 0).into(),
        };
        let io = |error: &dyn std::fmt::Display| {
            TransportError::new(Cause::Io, format!("connect to {peer}: {error}"))
        };
        let endpoint = Endpoint::client(any).map_err(|error| io(&error))?;
        let connecting = endpoint.connect_with(config, peer, &name).map_err(|error| io(&error))?;
        let setup = async move {
            let connection = connecting.await.map_err(|error| refused(error, &judge))?;
            let (send, receive) =
                connection.accept_bi().await.map_err(|error| lost(error, false))?;
            let (data_send, data_receive) =
                connection.accept_bi().await.map_err(|error| lost(error, false))?;
            Ok(Streams { connection, send: [send, data_send], receive: [receive, data_receive] })
        };
        Carrier::over(runtime.clone(), peer, options.trusted, setup)
    }

    /// A peer's handshake is done.
    pub fn accept(runtime: Handle, connection: Connection, trusted: bool) -> Result<Carrier> {
        let peer = connection.remote_address();
        let setup = async move {
            let (send, receive) = connection.open_bi().await.map_err(|error| lost(error, false))?;
            let (data_send, data_receive) =
                connection.open_bi().await.map_err(|error| lost(error, false))?;
            Ok(Streams { connection, send: [send, data_send], receive: [receive, data_receive] })
        };
        Carrier::over(runtime, peer, trusted, setup)
    }

    fn over(
        runtime: Handle,
        peer: SocketAddr,
        trusted: bool,
        setup: impl Future<Output = Result<Streams>> + Send + 'static,
    ) -> Result<Carrier> {
        let bell = Bell::new()?;
        let state = State::Connecting(runtime.spawn(setup));
        // The first poll leaves the waker.
        bell.ring();
        let (identity, staged) = (None, Bytes::new());
        Ok(Carrier { bell, runtime, peer, trusted, state, identity, staged, more: false })
    }

    /// Whether both streams are there; greets when they have just come.
    fn set_up(&mut self, exchange: &mut Exchange, now: Instant) -> Result<bool> {
        let State::Connecting(task) = &mut self.state else {
            return Ok(matches!(self.state, State::Live(_)));
        };
        let Poll::Ready(joined) = poll_once(task, &self.bell.waker()) else {
            return Ok(false);
        };
        self.state = State::Ended;
        let streams = joined.map_err(|error| {
            TransportError::new(Cause::Internal, format!("the thread genie-quic failed: {error}"))
        })??;
        if !self.trusted {
            let chain = streams.connection.peer_identity();
            let chain = chain.and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
            let chain = chain.as_deref().map(Vec::as_slice);
            self.identity = Some(genie_tls::peer_identity(chain).map_err(config::refused)?);
        }
        // Fails only on a stream that has ended, which writing to it tells.
        let _ = streams.send[CONTROL].set_priority(CONTROL_PRIORITY);
        let binding = export(&streams.connection, BINDING_LABEL, &[])?;
        exchange.greet(binding.to_vec(), now)?;
        self.state = State::Live(Box::new(streams));
        Ok(true)
    }

    /// Payload and its records, copied: quinn keeps what it sends until the peer has it.
    fn stage(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        let mut stage = Vec::new();
        while stage.len() < STAGE_BYTES {
            let room = STAGE_BYTES - stage.len();
            let outgoing = exchange.outgoing(DATA)?;
            if outgoing.bytes() == 0 {
                break;
            }
            if stage.is_empty() {
                stage.reserve_exact(outgoing.bytes().min(STAGE_BYTES));
            }
            let before = stage.len();
            let records = outgoing.records.len().min(room);
            stage.extend_from_slice(&outgoing.records[..records]);
            for span in outgoing.payload {
                let bytes = span.bytes.min(STAGE_BYTES - stage.len());
                // SAFETY: the span lies in registered memory that the exchange keeps alive; room
                // for the bytes is made, and all up to the new length is written.
                unsafe {
                    stage.reserve(bytes);
                    let to = stage.as_mut_ptr().add(stage.len());
                    std::ptr::copy_nonoverlapping(span.address, to, bytes);
                    stage.set_len(stage.len() + bytes);
                }
            }
            let taken = stage.len() - before;
            exchange.advance(DATA, taken, now);
        }
        self.staged = Bytes::from(stage);
        Ok(())
    }
}

/// Polls a future that may be dropped when it is not ready; it wakes `waker` later all the same.
fn poll_once<F: Future>(future: F, waker: &Waker) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(waker))
}

fn export(connection: &Connection, label: &[u8], context: &[u8]) -> Result<[u8; 32]> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, label, context)
        .map_err(|_| TransportError::new(Cause::Invalid, "the session gives no secret"))?;
    Ok(secret)
}

impl genie_records::Carrier for Carrier {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd()
    }

    fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        self.bell.clear();
        self.more = false;
        if !self.set_up(exchange, now)? {
            return Ok(());
        }
        let State::Live(streams) = &mut self.state else { return Ok(()) };
        let waker = self.bell.waker();
        let mut budget = BUDGET_BYTES;
        for lane in [CONTROL, DATA] {
            loop {
                if budget == 0 || exchange.is_full() {
                    self.more = true;
                    return Ok(());
                }
                let chunk = poll_once(streams.receive[lane].read_chunk(budget, true), &waker);
                match chunk {
                    Poll::Pending => break,
                    Poll::Ready(Ok(Some(chunk))) => {
                        budget -= chunk.bytes.len();
                        exchange.feed(lane, &chunk.bytes, now)?;
                    }
                    Poll::Ready(Ok(None)) if lane == DATA => break,
                    Poll::Ready(Ok(None)) => return Err(ended()),
                    Poll::Ready(Err(ReadError::ConnectionLost(error))) => {
                        return Err(lost(error, exchange.is_open()));
                    }
                    Poll::Ready(Err(_)) => return Err(ended()),
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        let waker = self.bell.waker();
        let mut budget = BUDGET_BYTES;
        while let State::Live(streams) = &mut self.state {
            let records = exchange.outgoing(CONTROL)?.records;
            if records.is_empty() {
                break;
            }
            match poll_once(streams.send[CONTROL].write(records), &waker) {
                Poll::Pending => break,
                Poll::Ready(Ok(sent)) => exchange.advance(CONTROL, sent, now),
                Poll::Ready(Err(error)) => return Err(broken(error, exchange.is_open())),
            }
        }
        loop {
            if self.staged.is_empty() && matches!(self.state, State::Live(_)) {
                self.stage(exchange, now)?;
            }
            let State::Live(streams) = &mut self.state else { return Ok(()) };
            if self.staged.is_empty() {
                return Ok(());
            }
            if budget == 0 {
                self.more = true;
                return Ok(());
            }
            let before = self.staged.len();
            let write = streams.send[DATA].write_chunks(std::slice::from_mut(&mut self.staged));
            match poll_once(write, &waker) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(_)) => budget = budget.saturating_sub(before - self.staged.len()),
                Poll::Ready(Err(error)) => return Err(broken(error, exchange.is_open())),
            }
        }
    }

    /// An eventfd always has room: the waker tells when a stream has.
    fn wants_room(&self, _exchange: &Exchange) -> bool {
        false
    }

    fn has_more(&self) -> bool {
        self.more
    }

    fn finish(&mut self) {
        if let State::Live(streams) = &mut self.state {
            // Fails only where it was finished before.
            let _ = streams.send[CONTROL].finish();
        }
    }

    fn export_secret(&self, _exchange: &Exchange, label: &[u8]) -> Result<[u8; 32]> {
        match &self.state {
            State::Live(streams) => export(&streams.connection, SECRET_LABEL, label),
            _ => Err(TransportError::new(
                Cause::Invalid,
                "the connection is not set up: it has no secret yet",
            )),
        }
    }

    fn peer_identity(&self) -> String {
        let text = |identity: &Identity| format!("{}/{}", identity.role(), identity.name());
        self.identity.as_ref().map(text).unwrap_or_default()
    }

    fn peer_address(&self) -> String {
        self.peer.to_string()
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        Some(self.peer.ip())
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let State::Live(streams) = &self.state else { return Vec::new() };
        let stats = streams.connection.stats();
        vec![
            ("srtt_us".into(), stats.path.rtt.as_micros() as u64),
            ("window_bytes".into(), stats.path.cwnd),
            ("datagram_bytes".into(), stats.path.current_mtu.into()),
            ("packets_sent".into(), stats.path.sent_packets),
            ("packets_lost".into(), stats.path.lost_packets),
            ("datagrams_sent".into(), stats.udp_tx.datagrams),
            ("datagrams_received".into(), stats.udp_rx.datagrams),
        ]
    }
}

impl Drop for Carrier {
    /// The last records, such as a reason, still go out; payload does not.
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Connecting(task) => task.abort(),
            State::Live(streams) => {
                let Streams { connection, send: [mut control, mut data], .. } = *streams;
                let _ = data.reset(VarInt::from_u32(0));
                let _ = control.finish();
                self.runtime.spawn(async move {
                    let _ = tokio::time::timeout(FAREWELL, control.stopped()).await;
                    connection.close(VarInt::from_u32(0), b"");
                });
            }
            State::Ended => {}
        }
    }
}

fn ended() -> TransportError {
    TransportError::new(
        Cause::Closed,
        "the peer ended the connection without a goodbye; its process may have ended",
    )
}

fn broken(error: WriteError, open: bool) -> TransportError {
    match error {
        WriteError::ConnectionLost(error) => lost(error, open),
        _ => ended(),
    }
}

/// Why a handshake failed. Of what this end has against the peer, quinn keeps the text of rustls.
pub(crate) fn refused(error: ConnectionError, judge: &Judge) -> TransportError {
    if let ConnectionError::TransportError(told) = &error
        && let Some(certs) = judge
        && let Some(words) = certs.explain(&told.reason)
    {
        return TransportError::new(Cause::Refused, words);
    }
    lost(error, false)
}

/// Why a connection ended, in the words of this repository.
fn lost(error: ConnectionError, open: bool) -> TransportError {
    let alert = |code: u64| (0x100..0x200).contains(&code).then_some(code as u8);
    let early = if open { Cause::Protocol } else { Cause::Refused };
    match error {
        ConnectionError::TimedOut => TransportError::new(
            Cause::TimedOut,
            "no sign of life from the peer within the deadline",
        ),
        ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed => ended(),
        ConnectionError::VersionMismatch => TransportError::new(
            Cause::Version,
            "the peer speaks no version of QUIC that this end speaks (version 1); check that the \
             address is a Genie node's",
        ),
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code.into()) {
            Some(NO_APPLICATION_PROTOCOL) => other_protocol(),
            Some(alert) => TransportError::new(early, genie_tls::describe_alert(alert)),
            None if !open => TransportError::new(
                Cause::Refused,
                format!("the peer does not take the connection ({})", close.error_code),
            ),
            None => ended(),
        },
        ConnectionError::TransportError(error) => match alert(error.code.into()) {
            Some(NO_APPLICATION_PROTOCOL) => other_protocol(),
            Some(_) => TransportError::new(early, format!("the peer is refused: {}", error.reason)),
            None => TransportError::new(Cause::Protocol, format!("QUIC failed: {error}")),
        },
        ConnectionError::CidsExhausted => {
            TransportError::new(Cause::Internal, "QUIC ran out of connection ids")
        }
    }
}

fn other_protocol() -> TransportError {
    TransportError::new(
        Cause::Version,
        "the peer speaks another version of Genie's protocol, this end speaks genie/1; install the \
         same release on both",
    )
}
