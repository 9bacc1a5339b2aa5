//! With TLS 1.3, by rustls: bytes pass a private buffer on their way, as encryption needs one.

use std::io::{BufRead, IoSlice, Write};
use std::sync::Arc;
use std::time::Instant;

use genie_records::{CONTROL, Exchange, host_of};
use genie_tls::{Accept, Identity, ReloadingCerts};
use genie_transport::transport::{Cause, Options, Result, TransportError};
use rustls::{ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::socket::Socket;

/// The protocol named in the handshake.
const ALPN: &[u8] = b"genie/1";
/// What secrets for callers, and the binding of a proof, are derived under.
const SECRET_LABEL: &[u8] = b"EXPORTER-genie-secret-v1";
const BINDING_LABEL: &[u8] = b"EXPORTER-genie-binding-v1";
/// Bytes read at a time, and encrypted at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes moved in one call, each way, before the caller gets its turn.
const BUDGET_BYTES: usize = 2 << 20;

pub(crate) fn no_certificates() -> TransportError {
    TransportError::new(
        Cause::Invalid,
        "there are no certificates: name their directory (`genie-host certs init` makes one), or \
         say that the network is trusted",
    )
}

/// The certificates of the options, which follow their files.
pub(crate) fn certificates(options: &Options) -> Result<Arc<ReloadingCerts>> {
    let dir = options.certificates.as_deref().ok_or_else(no_certificates)?;
    let clock = Arc::new(rustls::time_provider::DefaultTimeProvider);
    // A plugin's `tracing` reaches nobody.
    let warn = Box::new(|error: &_| eprintln!("genie-tcp: {error}; the old ones stay in use"));
    ReloadingCerts::load_with(dir, clock, warn).map_err(refused)
}

fn refused(error: genie_tls::TlsError) -> TransportError {
    TransportError::new(Cause::Refused, error.to_string())
}

/// Nodes may bring data of other nodes; control is for hosts.
pub(crate) fn server_config(options: &Options) -> Result<Arc<ServerConfig>> {
    let accept = if options.secret.is_some() { Accept::HostsAndNodes } else { Accept::Hosts };
    let config = certificates(options)?.server_config(accept, &[ALPN]).map_err(refused)?;
    Ok(Arc::new(config))
}

pub(crate) fn server(config: &Arc<ServerConfig>) -> Result<Connection> {
    ServerConnection::new(config.clone()).map(Connection::from).map_err(|error| failed(&error))
}

pub(crate) fn client(options: &Options, host: &str) -> Result<Connection> {
    let config = certificates(options)?.client_config(&[ALPN]).map_err(refused)?;
    let name = options.peer_name.as_deref().unwrap_or(host_of(host));
    let name = genie_tls::server_name(name).map_err(refused)?;
    ClientConnection::new(Arc::new(config), name)
        .map(Connection::from)
        .map_err(|error| failed(&error))
}

fn failed(error: &rustls::Error) -> TransportError {
    TransportError::new(Cause::Refused, genie_tls::describe(error))
}

pub(crate) struct Tls {
    socket: Socket,
    session: Connection,
    /// Made when the peer says something.
    buffer: Vec<u8>,
    /// Payload on its way to be encrypted.
    staging: Vec<u8>,
    identity: Option<Identity>,
    greeted: bool,
    said_goodbye: bool,
}

impl Tls {
    pub fn new(socket: Socket, mut session: Connection) -> Self {
        // What is encrypted at a time is bounded here.
        session.set_buffer_limit(None);
        let (buffer, staging, identity) = (Vec::new(), Vec::new(), None);
        Tls { socket, session, buffer, staging, identity, greeted: false, said_goodbye: false }
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    pub fn has_unsent(&self) -> bool {
        self.session.wants_write()
    }

    /// Ends the session; `false` while some of it waits for room.
    pub fn say_goodbye(&mut self) -> bool {
        if !self.said_goodbye {
            self.said_goodbye = true;
            self.session.send_close_notify();
        }
        // Where nothing can be sent any more, the end of the connection says the same.
        self.flush().unwrap_or(true)
    }

    pub fn peer_identity(&self) -> String {
        let text = |identity: &Identity| format!("{}/{}", identity.role(), identity.name());
        self.identity.as_ref().map(text).unwrap_or_default()
    }

    pub fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        self.export(SECRET_LABEL, label)
    }

    fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32]> {
        self.session.export_keying_material([0; 32], label, Some(context)).map_err(|error| {
            TransportError::new(Cause::Invalid, format!("derive a secret: {error}"))
        })
    }

    pub fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        if !self.socket.check_connected()? {
            return Ok(());
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_BYTES];
        }
        let mut budget = BUDGET_BYTES;
        while budget > 0 && !exchange.is_full() {
            let read = self.socket.read(None, &mut self.buffer)?;
            if read == 0 {
                break;
            }
            let taken = self.take(read, exchange, now);
            if taken.is_err() {
                // The peer gets to know why: TLS has an alert for it.
                let _ = self.flush();
            }
            taken?;
            if read < self.buffer.len() {
                break;
            }
            budget = budget.saturating_sub(read);
        }
        Ok(())
    }

    fn take(&mut self, read: usize, exchange: &mut Exchange, now: Instant) -> Result<()> {
        let mut bytes = &self.buffer[..read];
        while !bytes.is_empty() {
            let processed = self
                .session
                .read_tls(&mut bytes)
                .map_err(|error| rustls::Error::General(error.to_string()))
                .and_then(|_| self.session.process_new_packets());
            if let Err(error) = processed {
                return Err(match exchange.is_open() {
                    false => failed(&error),
                    true => TransportError::new(Cause::Protocol, genie_tls::describe(&error)),
                });
            }
            if !self.greeted && !self.session.is_handshaking() {
                let chain = self.session.peer_certificates();
                self.identity = Some(genie_tls::peer_identity(chain).map_err(refused)?);
                self.greeted = true;
                exchange.greet(self.export(BINDING_LABEL, &[])?.to_vec(), now)?;
            }
            let mut reader = self.session.reader();
            // An end of the stream shows at the socket too.
            while let Ok(plain) = reader.fill_buf() {
                let count = plain.len();
                if count == 0 {
                    break;
                }
                exchange.feed(CONTROL, plain, now)?;
                reader.consume(count);
            }
        }
        Ok(())
    }

    pub fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        if !self.socket.is_connected() {
            return Ok(());
        }
        let mut budget = BUDGET_BYTES;
        loop {
            if !self.flush()? || !self.greeted || budget == 0 {
                return Ok(());
            }
            // What one flush takes, from as many small records as there are.
            let mut taken = 0;
            while taken < BUFFER_BYTES {
                let room = BUFFER_BYTES - taken;
                let outgoing = exchange.outgoing(CONTROL)?;
                self.staging.clear();
                let records = outgoing.records.len().min(room);
                self.staging.extend_from_slice(&outgoing.records[..records]);
                for span in outgoing.payload {
                    let bytes = span.bytes.min(room - self.staging.len());
                    // SAFETY: the span lies in registered memory that the exchange keeps alive;
                    // room for the bytes is made, and all up to the new length is written.
                    unsafe {
                        self.staging.reserve(bytes);
                        let to = self.staging.as_mut_ptr().add(self.staging.len());
                        std::ptr::copy_nonoverlapping(span.address, to, bytes);
                        self.staging.set_len(self.staging.len() + bytes);
                    }
                }
                if self.staging.is_empty() {
                    break;
                }
                self.session
                    .writer()
                    .write_all(&self.staging)
                    .map_err(|error| TransportError::new(Cause::Io, format!("encrypt: {error}")))?;
                taken += self.staging.len();
                exchange.advance(CONTROL, self.staging.len(), now);
            }
            if taken == 0 {
                return Ok(());
            }
            budget = budget.saturating_sub(taken);
        }
    }

    /// Sends what is encrypted; `false` when the socket takes no more now.
    fn flush(&mut self) -> Result<bool> {
        let mut to = ToSocket { socket: &self.socket, failure: None };
        while self.session.wants_write() {
            match self.session.write_tls(&mut to) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => {
                    let other = || TransportError::new(Cause::Io, error.to_string());
                    return Err(to.failure.take().unwrap_or_else(other));
                }
            }
        }
        Ok(true)
    }
}

/// The socket as rustls writes to it.
struct ToSocket<'a> {
    socket: &'a Socket,
    failure: Option<TransportError>,
}

impl Write for ToSocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        match self.socket.write_slices(slices) {
            Ok(0) => Err(std::io::ErrorKind::WouldBlock.into()),
            Ok(sent) => Ok(sent),
            Err(failure) => {
                self.failure = Some(failure);
                Err(std::io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
