//! The transport `dpdk` as the loader sees it.

use std::collections::VecDeque;
use std::net::{SocketAddrV4, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use genie_bulk::{MILLISECOND, Protection, Role, WindowError, WriteError};
use genie_transport::transport::{
    Capabilities, Cause, Completion, Connection, Facts, Listener, Memory, MemoryKey, Options,
    PARTS_MAX, Part, Result, Transport, TransportError,
};
use rustix::event::{EventfdFlags, eventfd};

use crate::eal::{self, Cost, Eal};
use crate::endpoint::{Endpoints, Number, Waiting};
use crate::error::DpdkError;
use crate::lane::{Lane, Shared, State, ended, next_number, time};
use crate::memories::Prepared;
use crate::settings::{Settings, ZeroCopy};

/// Connections that wait to be accepted.
const ACCEPTED_MAX: usize = 16;

/// The transport `dpdk`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dpdk;

genie_transport::export_transport!(&Dpdk);

impl Transport for Dpdk {
    fn facts(&self) -> Facts {
        Facts {
            name: "dpdk".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            // Of trusted connections on devices that can: docs/dpdk.md says which.
            capabilities: Capabilities::DATA
                .with(Capabilities::NETWORK)
                .with(Capabilities::ZERO_COPY),
        }
    }

    /// Starts DPDK and opens the device, so it belongs in a process of its own (the loader probes
    /// in a child).
    fn probe(&self, options: &Options) -> Result<String> {
        let settings = Settings::read(&options.settings).map_err(refused)?;
        let eal = Eal::start(&settings.eal).map_err(refused)?;
        let device = settings.device.clone();
        let found = eal.run(move |endpoints| {
            let number = endpoints.open(&device)?;
            let text = endpoints.get(number).expect("opened just now").describe();
            endpoints.leave(number);
            Ok(text)
        });
        let found = found.and_then(|found| found).map_err(refused)?;
        let gpus: Vec<String> = crate::gpu::Gpu::all()
            .into_iter()
            .filter_map(|gpu| gpu.facts().ok())
            .map(|facts| facts.name)
            .collect();
        let gpus = if gpus.is_empty() { "no GPU".to_owned() } else { gpus.join(", ") };
        let pages = if settings.eal.hugepages { "hugepages" } else { "no hugepages" };
        Ok(format!("{}, {pages}; {found}; GPUDev: {gpus}", eal::version()))
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        Ok(Box::new(DpdkListener::new(options)?))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        Ok(Box::new(DpdkConnection::connect(options)?))
    }
}

/// What the DPDK thread of this process cost so far, if it runs.
pub fn cost_of_thread() -> Option<Cost> {
    Eal::running()?.cost().ok()
}

/// A user of a device: the device is closed with its last user.
struct Seat {
    eal: &'static Eal,
    endpoint: Number,
    /// The connection whose memory the device may have when it is given up.
    last: Option<Arc<Shared>>,
}

impl Seat {
    /// Opens the device; says how many bytes its datagrams carry.
    fn take(settings: &Settings) -> Result<(Seat, usize)> {
        let eal = Eal::start(&settings.eal).map_err(refused)?;
        let device = settings.device.clone();
        let opened = eal.run(move |endpoints| {
            let number = endpoints.open(&device)?;
            let bytes = endpoints.get(number).map_or(0, |endpoint| endpoint.datagram_bytes());
            Ok((number, bytes))
        });
        let (endpoint, bytes) = opened.and_then(|opened| opened).map_err(refused)?;
        Ok((Seat { eal, endpoint, last: None }, bytes))
    }

    /// Another user of the same device.
    fn share(&self) -> Result<Seat> {
        let endpoint = self.endpoint;
        let joined = self.eal.run(move |endpoints| endpoints.join(endpoint)).map_err(refused)?;
        if !joined {
            return Err(refused(DpdkError::Ended));
        }
        Ok(Seat { eal: self.eal, endpoint, last: None })
    }

    /// The user's datagrams may be sent from where they lie, if the settings do not forbid it.
    fn zero_copy(&self, settings: &Settings, options: &Options) -> Result<bool> {
        if settings.zero_copy != ZeroCopy::Demanded {
            return Ok(settings.zero_copy == ZeroCopy::Auto);
        }
        if !options.trusted {
            return Err(invalid(
                "the setting zero_copy is yes, but sealing writes every byte anew: only a trusted \
                 connection is sent without a copy (zero_copy=auto copies where it must)",
            ));
        }
        let (can, driver) =
            self.run(|endpoint| (endpoint.port().attaches(), endpoint.port().driver().to_owned()))?;
        if !can {
            return Err(invalid(format!(
                "the setting zero_copy is yes, but {driver} cannot send memory of ours without a \
                 copy, or checksum=on has us sum it (zero_copy=auto copies then)"
            )));
        }
        Ok(true)
    }

    fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut crate::endpoint::Endpoint) -> R + Send + 'static,
    ) -> Result<R> {
        let number = self.endpoint;
        let done = self.eal.run(move |endpoints: &mut Endpoints| endpoints.get(number).map(job));
        done.ok().flatten().ok_or_else(|| refused(DpdkError::Ended))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let (endpoint, last) = (self.endpoint, self.last.take());
        // What the device still has is waited for on the thread, not here.
        let _ = self.eal.run(move |endpoints| endpoints.part(endpoint, last, Instant::now()));
    }
}

/// One connection as its caller has it.
struct DpdkConnection {
    shared: Arc<Shared>,
    number: Number,
    seat: Seat,
    peer: SocketAddrV4,
    message_bytes_max: u64,
    datagram_bytes: usize,
}

impl DpdkConnection {
    fn connect(options: &Options) -> Result<Self> {
        let settings = Settings::read(&options.settings).map_err(refused)?;
        let peer = resolve(&options.address)?;
        if peer.ip().is_unspecified() || peer.port() == 0 {
            return Err(invalid(format!("{peer} is not an address to connect to")));
        }
        let (seat, datagram_bytes) = Seat::take(&settings)?;
        let config = bulk_config(options, &settings, Role::Client, datagram_bytes)?;
        let now = Instant::now();
        let bulk = genie_bulk::Connection::new(config, time(now)).map_err(invalid)?;
        let until = now + Duration::from_millis(options.connect_ms);
        let zero_copy = seat.zero_copy(&settings, options)?;
        let connecting = Some((until, options.connect_ms));
        let shared = Shared::new(bulk, connecting, peer.to_string(), zero_copy)
            .map_err(|error| io("make an event descriptor", &error))?;
        let number = next_number();
        let (id, flows, peer_mac) = (options.connection, settings.flows, settings.peer_mac);
        let theirs = shared.clone();
        seat.run(move |endpoint| {
            let next_hop = endpoint.next_hop(*peer.ip())?;
            let mut ports = Vec::new();
            for _ in 0..flows {
                ports.push(endpoint.take_port_beside(&ports)?);
            }
            let lane = Lane::client(theirs, id, &ports, peer, next_hop, peer_mac);
            endpoint.insert(number, lane, now);
            Ok(())
        })?
        .map_err(refused)?;
        let message_bytes_max = options.message_bytes_max;
        Ok(DpdkConnection { shared, number, seat, peer, message_bytes_max, datagram_bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Connection for DpdkConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.shared.event_fd()
    }

    fn arm(&mut self) -> Result<bool> {
        Ok(self.lock().is_ready())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        let made_room = self.lock().poll(&self.shared, completions)?;
        if made_room {
            self.seat.eal.wake();
        }
        Ok(())
    }

    fn send_frame(&mut self, _: u8, _: &[&[u8]], _: Option<BorrowedFd<'_>>) -> Result<()> {
        Err(TransportError::unsupported("dpdk", "frames: it carries placed writes only"))
    }

    fn queued_bytes(&self) -> u64 {
        0
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        let prepared = Prepared::new(memory)?;
        self.lock().memories.register(prepared)
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        let mut state = self.lock();
        state.settle_out();
        state.memories.unregister(key)
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        let mut state = self.lock();
        state.usable()?;
        if state.memories.windows_full() {
            return Err(invalid(format!("window {window}: too many are offered already")));
        }
        let memory = state.memories.window(part)?;
        state.bulk.offer(window, memory).map_err(|error| self.window_error(error))?;
        state.memories.hold_for_window(window, part.key);
        drop(state);
        self.seat.eal.wake();
        Ok(())
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        let mut state = self.lock();
        state.usable()?;
        state.bulk.withdraw(window).map_err(|error| self.window_error(error))?;
        state.memories.release_window(window);
        drop(state);
        self.seat.eal.wake();
        Ok(())
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        if parts.len() > PARTS_MAX {
            let count = parts.len();
            return Err(invalid(format!("a list has {count} parts, {PARTS_MAX} are allowed")));
        }
        let mut state = self.lock();
        state.usable()?;
        let spans: Result<Vec<_>> = parts.iter().map(|part| state.memories.span(*part)).collect();
        let spans = spans?;
        let bytes: u64 = spans.iter().map(|span| span.len() as u64).sum();
        if bytes > self.message_bytes_max {
            let most = self.message_bytes_max;
            return Err(invalid(format!(
                "message {message} has {bytes} bytes, {most} are allowed"
            )));
        }
        state.bulk.write(message, spans, window, offset).map_err(|error| match error {
            WriteError::OutOfCredit { .. } => {
                TransportError::new(Cause::OutOfCredit, format!("dpdk: {error}"))
            }
            WriteError::Closed(reason) => ended(&self.peer.to_string(), &reason),
            other => invalid(other),
        })?;
        state.memories.hold_for_message(message, parts);
        drop(state);
        self.seat.eal.wake();
        Ok(())
    }

    fn export_secret(&self, _: &[u8]) -> Result<[u8; 32]> {
        Err(TransportError::unsupported("dpdk", "secrets of its own: ask the control session"))
    }

    fn peer_identity(&self) -> String {
        // The secret proves that it is the control session's peer, who is known there.
        String::new()
    }

    fn peer_address(&self) -> String {
        self.peer.to_string()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let state = self.lock();
        let bulk = state.bulk.statistics();
        let (zero_copy_packets, copied_packets) = state.copies();
        let attached_now = state.memories.references() as u64;
        drop(state);
        let device = self.seat.run(|endpoint| {
            let refused = endpoint.port().refused;
            (endpoint.port().stats(), endpoint.counters(), refused)
        });
        let (device, counters, refused) = device.unwrap_or_default();
        let cost = self.seat.eal.cost().ok();
        let own = [
            ("zero_copy_packets", zero_copy_packets),
            ("copied_packets", copied_packets),
            ("attached_now", attached_now),
            ("datagram_bytes", self.datagram_bytes as u64),
            // Of the whole device and the whole thread, whoever else uses them.
            ("device_rx_packets", device.rx_packets),
            ("device_tx_packets", device.tx_packets),
            ("device_rx_missed", device.rx_missed),
            ("device_rx_no_mbuf", device.rx_no_mbuf),
            ("device_tx_errors", device.tx_errors),
            ("device_tx_refused", refused),
            ("frames_bad_checksum", counters.bad_checksums),
            ("frames_not_ours", counters.not_ours),
            ("frames_no_connection", counters.no_connection),
            ("thread_cpu_us", cost.map_or(0, |cost| cost.cpu.as_micros() as u64)),
            ("thread_sleeps", cost.map_or(0, |cost| cost.sleeps)),
            ("thread_interrupts", cost.map_or(0, |cost| cost.interrupts)),
        ];
        let all = bulk.entries().into_iter().chain(own);
        all.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn close(&mut self, reason: &str) {
        let mut state = self.lock();
        state.end(reason);
        state.signal(&self.shared);
        drop(state);
        self.seat.eal.wake();
    }
}

impl DpdkConnection {
    fn window_error(&self, error: WindowError) -> TransportError {
        match error {
            WindowError::Closed(reason) => ended(&self.peer.to_string(), &reason),
            other => invalid(other),
        }
    }
}

impl Drop for DpdkConnection {
    fn drop(&mut self) {
        // When this returns the thread touches nothing of the caller's any more; the device may, and
        // what it reads is kept while it does.
        let number = self.number;
        let _ = self.seat.run(move |endpoint| endpoint.remove(number));
        self.seat.last = Some(self.shared.clone());
    }
}

/// What the thread hands to a listener.
struct Arrived {
    number: Number,
    shared: Arc<Shared>,
    peer: SocketAddrV4,
}

/// What a listener and the thread share.
struct Doorway {
    arrived: Mutex<VecDeque<Arrived>>,
    event: OwnedFd,
}

impl Doorway {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arrived>> {
        self.arrived.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn put(&self, arrived: Arrived) {
        let mut queue = self.lock();
        if queue.len() < ACCEPTED_MAX {
            queue.push_back(arrived);
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn take(&self) -> Option<Arrived> {
        let mut queue = self.lock();
        let taken = queue.pop_front();
        if queue.is_empty() {
            let mut counter = [0u8; 8];
            let _ = rustix::io::read(&self.event, &mut counter);
        }
        taken
    }
}

/// Takes exactly the connection of [`Options::connection`] whose peer knows the secret.
struct DpdkListener {
    doorway: Arc<Doorway>,
    address: SocketAddrV4,
    message_bytes_max: u64,
    datagram_bytes: usize,
    seat: Seat,
}

impl DpdkListener {
    fn new(options: &Options) -> Result<Self> {
        let settings = Settings::read(&options.settings).map_err(refused)?;
        if options.accept_max > 1 {
            let many = options.accept_max;
            return Err(invalid(format!("a listener takes one data connection, not {many}")));
        }
        let wanted = port_of(&options.address)?;
        let (seat, datagram_bytes) = Seat::take(&settings)?;
        // Refuses a missing secret now, not when the peer comes.
        bulk_config(options, &settings, Role::Server, datagram_bytes)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| io("make an event descriptor", &error))?;
        let doorway = Arc::new(Doorway { arrived: Mutex::default(), event });
        let zero_copy = seat.zero_copy(&settings, options)?;
        let waiting = waiting(options, &settings, doorway.clone(), zero_copy);
        let address = seat.run(move |endpoint| {
            let port = endpoint.take_port(wanted)?;
            endpoint.listen(port, waiting);
            Ok(endpoint.address(port))
        })?;
        let address = address.map_err(refused)?;
        let message_bytes_max = options.message_bytes_max;
        Ok(DpdkListener { doorway, address, message_bytes_max, datagram_bytes, seat })
    }
}

fn waiting(
    options: &Options,
    settings: &Settings,
    doorway: Arc<Doorway>,
    zero_copy: bool,
) -> Waiting {
    let (of_options, of_settings) = (options.clone(), settings.clone());
    let make = move |peer: SocketAddrV4, bytes: usize| {
        let config = bulk_config(&of_options, &of_settings, Role::Server, bytes).ok()?;
        let flows = config.flows;
        let bulk = genie_bulk::Connection::new(config, time(Instant::now())).ok()?;
        let shared = Shared::new(bulk, None, peer.to_string(), zero_copy).ok()?;
        Some((shared, flows))
    };
    let taken = move |number: Number, shared: &Arc<Shared>, peer: SocketAddrV4| {
        doorway.put(Arrived { number, shared: shared.clone(), peer });
    };
    Waiting::new(options.connection, settings.peer_mac, make, taken)
}

impl Listener for DpdkListener {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.doorway.event.as_fd()
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        let Some(Arrived { number, shared, peer }) = self.doorway.take() else { return Ok(None) };
        let state = shared.lock();
        if !state.is_connected() {
            state.usable()?;
        }
        drop(state);
        let seat = self.seat.share()?;
        let (message_bytes_max, datagram_bytes) = (self.message_bytes_max, self.datagram_bytes);
        Ok(Some(Box::new(DpdkConnection {
            shared,
            number,
            seat,
            peer,
            message_bytes_max,
            datagram_bytes,
        })))
    }
}

impl Drop for DpdkListener {
    fn drop(&mut self) {
        let port = self.address.port();
        // Those that nobody accepted go too.
        let abandoned: Vec<Number> = self.doorway.lock().drain(..).map(|a| a.number).collect();
        let _ = self.seat.run(move |endpoint| {
            endpoint.unlisten(port);
            abandoned.into_iter().for_each(|number| endpoint.remove(number));
        });
    }
}

/// How the bulk protocol is run for a connection with these options.
fn bulk_config(
    options: &Options,
    settings: &Settings,
    role: Role,
    datagram_bytes: usize,
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
    config.flows = settings.flows;
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

/// The port to listen on; an empty address is any. The host must be one, but does not matter: a
/// caller names the address it knows (the kernel's, mostly), and the device has its own.
fn port_of(address: &str) -> Result<u16> {
    if address.is_empty() {
        return Ok(0);
    }
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| invalid(format!("{address:?} is not HOST:PORT: {error}")))?;
    found
        .next()
        .map(|address| address.port())
        .ok_or_else(|| invalid(format!("{address:?} has no address")))
}

/// `HOST:PORT` to an IPv4 address.
fn resolve(address: &str) -> Result<SocketAddrV4> {
    let found = address
        .to_socket_addrs()
        .map_err(|error| invalid(format!("{address:?} is not HOST:PORT: {error}")))?;
    let mut v4 = found.filter_map(|address| match address {
        std::net::SocketAddr::V4(v4) => Some(v4),
        std::net::SocketAddr::V6(_) => None,
    });
    v4.next().ok_or_else(|| invalid(format!("{address:?} has no IPv4 address")))
}

fn invalid(message: impl std::fmt::Display) -> TransportError {
    TransportError::new(Cause::Invalid, format!("dpdk: {message}"))
}

fn io(what: &str, error: &dyn std::fmt::Display) -> TransportError {
    TransportError::new(Cause::Io, format!("dpdk: cannot {what}: {error}"))
}

/// What the device layer refused.
fn refused(error: DpdkError) -> TransportError {
    let cause = match &error {
        DpdkError::Setting { .. } | DpdkError::Missing { .. } | DpdkError::DeviceBusy { .. } => {
            Cause::Invalid
        }
        DpdkError::Version { .. } => Cause::Version,
        DpdkError::Gpu { .. } => Cause::Unsupported,
        _ => Cause::Io,
    };
    TransportError::new(cause, format!("dpdk: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_takes_the_port_whatever_the_host() {
        for (address, port) in [("", 0), ("10.1.2.3:0", 0), ("[::]:4610", 4610), ("0.0.0.0:7", 7)] {
            assert_eq!(port_of(address).unwrap(), port, "{address}");
        }
        assert_eq!(port_of("no address").unwrap_err().cause, Cause::Invalid);
    }

    #[test]
    fn peers_have_ipv4_addresses() {
        assert_eq!(resolve("10.1.2.3:4").unwrap().to_string(), "10.1.2.3:4");
        for wrong in ["", "[::1]:4", "10.1.2.3", "10.1.2.3:70000"] {
            assert_eq!(resolve(wrong).unwrap_err().cause, Cause::Invalid, "{wrong}");
        }
    }
}
