//! The link itself.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use genie_transport::transport::{
    Capabilities, Cause, Completion, Connection, Transport, TransportError,
};
use genie_transport::{Frame, Link, LinkError, LinkWay, SharedMemory};
use genie_wire::WireError;
use genie_wire::control::Region;
use genie_wire::frame::FrameKind;
use genie_wire::limits::REGIONS_MAX;
use prost::Message;

use crate::LinkSettings;
use crate::data::{Path, Regions, Watch, note};
use crate::message::{
    self, AFTER_BYTES, Hello, LINK_VERSION, LINK_VERSION_OLDEST, TEXT_BYTES_MAX, Welcome,
};
use crate::payloads::{Arrivals, Posted};

mod agree;

/// Bytes of frames that wait for their payloads before the control connection is no longer read.
const HELD_BYTES_MAX: usize = 4 << 20;
/// Payloads the peer does not have yet, above which the link counts as full.
const PAYLOADS_WAITING_MAX: usize = 2048;
/// Ranges of payloads that may have arrived behind one that has not.
const GAPS_MAX: usize = 4096;
/// Parts of a frame that are sent without being joined first.
const PARTS_INLINE: usize = 7;
/// Looks at the connections before a poll gives up its turn.
const ROUNDS_MAX: usize = 8;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It speaks first and chooses the data transport.
    Host,
    Node,
}

/// A [`Link`] to a process elsewhere.
pub struct RemoteLink {
    role: Role,
    settings: Arc<LinkSettings>,
    control: Box<dyn Connection>,
    control_name: String,
    watch: Watch,
    /// The control connection is not read until held frames are delivered.
    control_paused: bool,
    path: Path,
    /// The transport of `path`, or the one being tried.
    data_name: String,
    attempt: u32,
    /// Transports not tried yet, the strongest first.
    candidates: VecDeque<String>,
    /// Why the one tried last did not work.
    not: Option<(String, String)>,
    /// The last transport that was given up for a simpler one, and why.
    downgraded: Option<(String, String)>,
    regions: Regions,
    posted: Posted,
    arrivals: Arrivals,
    held: VecDeque<(u64, Frame)>,
    held_bytes: usize,
    welcome: Option<Welcome>,
    ended: Option<TransportError>,
    /// The control connection failed: nothing more can be said over it.
    control_lost: bool,
    /// The last words are on their way.
    closing: bool,
    completions: Vec<Completion>,
}

impl RemoteLink {
    /// Wraps a control connection that was just begun or accepted. `control_name` is its
    /// transport, `shares` whether that passes memory.
    pub fn new(
        role: Role,
        control: Box<dyn Connection>,
        transport: &dyn Transport,
        settings: Arc<LinkSettings>,
    ) -> Result<Self, LinkError> {
        let watch = Watch::new().map_err(io("make a descriptor to wait for"))?;
        watch.add(control.event_fd()).map_err(io("watch a connection"))?;
        let facts = transport.facts();
        let shares = facts.capabilities.has(Capabilities::SHARES_MEMORY);
        Ok(RemoteLink {
            role,
            settings,
            control,
            control_name: facts.name,
            watch,
            control_paused: false,
            path: if shares { Path::Shared } else { Path::None },
            data_name: String::new(),
            attempt: 0,
            candidates: VecDeque::new(),
            not: None,
            downgraded: None,
            regions: Regions::default(),
            posted: Posted::default(),
            arrivals: Arrivals::default(),
            held: VecDeque::new(),
            held_bytes: 0,
            welcome: None,
            ended: None,
            control_lost: false,
            closing: false,
            completions: Vec::new(),
        })
    }

    /// What the node said, once it did (on the host's end).
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Whether the peer answered and payloads have a way.
    pub fn is_ready(&self) -> bool {
        let open = matches!(self.path, Path::Open(_) | Path::OverControl | Path::Shared);
        open && self.welcome.is_some()
    }

    /// An address that the peer told, as others reach it: an unspecified IP stands for the peer's.
    pub fn resolve(&self, address: &str) -> String {
        resolve(address, &self.control.peer_address())
    }

    /// The transport of payloads, while they have a way.
    fn data_transport(&self) -> &str {
        match &self.path {
            Path::Open(_) => &self.data_name,
            Path::OverControl | Path::Shared => &self.control_name,
            _ => "",
        }
    }

    fn mode(&self) -> &'static str {
        match (&self.path, self.transport()) {
            (Path::Shared, _) => "local_remote",
            (Path::Open(_), Some(transport)) => {
                crate::choose::mode(transport.as_ref(), self.settings.trusted)
            }
            _ => "remote",
        }
    }

    /// Looks at the connections until nothing more happens.
    fn progress(&mut self) -> Result<(), TransportError> {
        if self.closing {
            // Only what is queued still matters.
            return self.control.poll(&mut Vec::new());
        }
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            if !self.control_paused {
                moved |= self.progress_control()?;
            }
            moved |= self.progress_data()?;
            self.write_payloads()?;
            if moved {
                continue;
            }
            let control = !self.control_paused && self.control.arm()?;
            let data = match &mut self.path {
                // Its failure is found by the next poll.
                Path::Open(data) | Path::Connecting(data) => data.arm().unwrap_or(true),
                _ => false,
            };
            if !control && !data {
                return Ok(());
            }
        }
        Ok(())
    }

    fn progress_control(&mut self) -> Result<bool, TransportError> {
        let mut completions = std::mem::take(&mut self.completions);
        let polled = self.control.poll(&mut completions);
        self.control_lost |= polled.is_err();
        let moved = !completions.is_empty();
        for completion in completions.drain(..) {
            match note(completion, &mut self.posted, &mut self.arrivals) {
                Some(Completion::Connected) => self.control_connected()?,
                Some(Completion::Frame { kind, body, memory }) => match kind {
                    64..=127 => self.message(kind, &body)?,
                    _ => self.frame(kind, body, memory)?,
                },
                _ => {}
            }
        }
        self.completions = completions;
        if self.arrivals.gaps() > GAPS_MAX {
            return Err(protocol("the peer leaves out payloads without end".to_owned()));
        }
        polled.map(|()| moved)
    }

    fn control_connected(&mut self) -> Result<(), TransportError> {
        if self.role == Role::Node {
            return Ok(());
        }
        let software = self.settings.software.clone();
        let hello = Hello { version: LINK_VERSION, oldest: LINK_VERSION_OLDEST, software };
        self.send(message::HELLO, &hello)
    }

    fn send(&mut self, kind: u8, message: &impl Message) -> Result<(), TransportError> {
        self.control.send_frame(kind, &[&message.encode_to_vec()], None)
    }

    fn progress_data(&mut self) -> Result<bool, TransportError> {
        let mut completions = std::mem::take(&mut self.completions);
        let polled = match &mut self.path {
            Path::Listening(listener) => match listener.accept() {
                Ok(None) => Ok(()),
                Ok(Some(data)) => return self.accepted(data).map(|()| true),
                // Some stranger's; the right one may still come.
                Err(error) => {
                    tracing::debug!("a data connection is not accepted: {error}");
                    Ok(())
                }
            },
            Path::Open(data) | Path::Connecting(data) => data.poll(&mut completions),
            _ => Ok(()),
        };
        let moved = !completions.is_empty();
        let mut connected = false;
        for completion in completions.drain(..) {
            let other = note(completion, &mut self.posted, &mut self.arrivals);
            connected |= matches!(other, Some(Completion::Connected));
        }
        self.completions = completions;
        if connected {
            self.connected()?;
        }
        match polled {
            Ok(()) => Ok(moved),
            Err(error) => self.data_failed(error).map(|()| true),
        }
    }

    fn write_payloads(&mut self) -> Result<(), TransportError> {
        let written = match &mut self.path {
            Path::Open(data) => self.regions.write_all(data.as_mut(), &mut self.posted),
            Path::OverControl => {
                return self.regions.write_all(self.control.as_mut(), &mut self.posted);
            }
            _ => return Ok(()),
        };
        written.or_else(|error| self.data_failed(error))
    }

    /// A frame of the product arrived; it is held until its payloads are there.
    fn frame(
        &mut self,
        kind: u8,
        body: Vec<u8>,
        memory: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), TransportError> {
        let kind = FrameKind::from_u8(kind)
            .ok_or_else(|| protocol(format!("the peer sent a frame of the unknown kind {kind}")))?;
        let Some((after, rest)) = body.split_first_chunk::<AFTER_BYTES>() else {
            return Err(protocol("the peer sent a frame that is cut off".to_owned()));
        };
        let after = u64::from_le_bytes(*after);
        let body = rest.to_vec();
        let memory = match kind {
            FrameKind::Region => self.region(&body, memory)?,
            _ => None,
        };
        self.held_bytes += body.len();
        self.held.push_back((after, Frame { kind, body, memory }));
        self.pause_control(self.held_bytes > HELD_BYTES_MAX);
        Ok(())
    }

    /// The memory of a region that the peer announced: the peer's own, or a copy's.
    fn region(
        &mut self,
        body: &[u8],
        memory: Option<std::os::fd::OwnedFd>,
    ) -> Result<Option<SharedMemory>, TransportError> {
        let region = Region::decode(body).map_err(|error| protocol(error.to_string()))?;
        let refused = |error: genie_transport::MemoryError| protocol(error.to_string());
        match (&self.path, memory) {
            (Path::Shared, Some(fd)) => {
                SharedMemory::adopt(fd, region.bytes).map(Some).map_err(refused)
            }
            (Path::Shared, None) => Err(protocol("a region came without its memory".to_owned())),
            (_, _) if self.role == Role::Host => Ok(None),
            _ => {
                let max = self.settings.region_bytes_max;
                let bytes = self.regions.bytes().saturating_add(region.bytes);
                if self.regions.len() >= REGIONS_MAX || bytes > max {
                    return Err(protocol(format!(
                        "shared regions of {bytes} bytes would exceed what this node keeps for one \
                         session ({REGIONS_MAX} regions, {max} bytes); use smaller regions \
                         (GENIE_UPLOAD_BYTES, GENIE_DOWNLOAD_BYTES)"
                    )));
                }
                let memory = SharedMemory::create(region.bytes).map_err(refused)?;
                self.keep(region.id, memory.try_clone().map_err(refused)?)?;
                Ok(Some(memory))
            }
        }
    }

    /// Registers a region's memory with the data connection, now or when there is one.
    fn keep(&mut self, region: u32, memory: SharedMemory) -> Result<(), TransportError> {
        self.regions.insert(region, Arc::new(memory));
        let offered = match &mut self.path {
            Path::Open(data) => self.regions.offer_all(data.as_mut()),
            Path::OverControl => return self.regions.offer_all(self.control.as_mut()),
            _ => return Ok(()),
        };
        offered.or_else(|error| self.data_failed(error))
    }

    fn pause_control(&mut self, pause: bool) {
        if pause == self.control_paused {
            return;
        }
        self.control_paused = pause;
        match pause {
            true => self.watch.remove(self.control.event_fd()),
            // It was watched before, so there is room for it.
            false => drop(self.watch.add(self.control.event_fd())),
        }
    }

    fn take_held(&mut self) -> Option<Frame> {
        let (after, _) = self.held.front()?;
        if *after > self.arrivals.through() {
            return None;
        }
        let (_, frame) = self.held.pop_front()?;
        self.held_bytes -= frame.body.len();
        self.pause_control(self.held_bytes > HELD_BYTES_MAX);
        Some(frame)
    }
}

impl Link for RemoteLink {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.watch.event_fd()
    }

    /// The connections watch for room themselves.
    fn wants_write(&self) -> bool {
        false
    }

    fn queued_bytes(&self) -> usize {
        let queued = self.control.queued_bytes() as usize;
        match self.posted.waiting() > PAYLOADS_WAITING_MAX {
            true => queued.max(genie_transport::SEND_QUEUE_BYTES_MAX),
            false => queued,
        }
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        let shares = matches!(self.path, Path::Shared);
        if let Some(memory) = memory
            && !shares
            && let Some(region) = parts.first().and_then(|body| Region::decode(*body).ok())
        {
            self.keep(region.id, memory.try_clone()?).map_err(LinkError::from_transport)?;
        }
        let after = self.posted.last().to_le_bytes();
        let descriptor = memory.filter(|_| shares).map(SharedMemory::fd);
        let sent = match parts.len() <= PARTS_INLINE {
            true => {
                let mut all: [&[u8]; PARTS_INLINE + 1] = [&[]; PARTS_INLINE + 1];
                all[0] = &after;
                all[1..=parts.len()].copy_from_slice(parts);
                self.control.send_frame(kind as u8, &all[..=parts.len()], descriptor)
            }
            false => self.control.send_frame(kind as u8, &[&after, &parts.concat()], descriptor),
        };
        sent.map_err(|error| match error.cause {
            Cause::OutOfCredit => {
                LinkError::OutOfCredit { queued: self.control.queued_bytes() as usize }
            }
            _ => LinkError::from_transport(error),
        })
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.drive()
    }

    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        if let Some(frame) = self.take_held() {
            return Ok(Some(frame));
        }
        if self.ended.is_none() {
            self.ended = self.progress().err();
        }
        match (self.take_held(), &self.ended) {
            (Some(frame), _) => Ok(Some(frame)),
            (None, Some(error)) => Err(LinkError::from_transport(error.clone())),
            (None, None) => Ok(None),
        }
    }

    fn post_payload(&mut self, region: u32, offset: u64, bytes: u64) -> Result<(), LinkError> {
        if matches!(self.path, Path::Shared) {
            return Ok(());
        }
        self.posted.post(region, offset, bytes);
        self.write_payloads().map_err(LinkError::from_transport)
    }

    fn needs_drive(&self) -> bool {
        true
    }

    fn way(&self) -> Option<LinkWay> {
        let peer = self.control.peer_address();
        let mut route = format!("{}://{peer}", self.control_name);
        if !matches!(self.path, Path::Shared) {
            route.push_str(&format!(", tensors over {}", self.data_transport()));
            let could = |transport: &Arc<dyn Transport>| {
                transport.facts().capabilities.has(Capabilities::ZERO_COPY)
            };
            if self.mode() == "remote" && self.transport().as_ref().is_some_and(could) {
                route.push_str(", encrypted and so copied once (--trusted-network sends without)");
            }
        }
        if let Some((name, reason)) = &self.downgraded {
            route.push_str(&format!(" (not over {name}: {reason})"));
        }
        let transport = self.data_transport().to_owned();
        Some(LinkWay { mode: self.mode().to_owned(), route, transport })
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        let named = |prefix: &str, counters: Vec<(String, u64)>| {
            let name = |(name, value)| (format!("{prefix}.{name}"), value);
            counters.into_iter().map(name).collect::<Vec<_>>()
        };
        let mut all = named("control", self.control.statistics());
        if let Path::Open(data) = &self.path {
            all.extend(named("data", data.statistics()));
        }
        all
    }

    /// It changes when a way is asked for, and again when payloads have it.
    fn changes(&self) -> u32 {
        let open = matches!(self.path, Path::Open(_) | Path::OverControl | Path::Shared);
        2 * self.attempt + u32::from(open)
    }

    fn drive(&mut self) -> Result<(), LinkError> {
        if self.ended.is_none() {
            // What it finds is told by the next poll, after the frames that came before.
            self.ended = self.progress().err();
        }
        Ok(())
    }

    fn peer_identity(&self) -> String {
        self.control.peer_identity()
    }

    fn close(&mut self, reason: &str) -> bool {
        self.control.close(reason);
        self.closing = !self.control_lost;
        if self.closing {
            // The end that this side has seen, the peer has still to be told.
            self.ended = None;
        }
        self.closing
    }

    fn peer(&self) -> String {
        let identity = self.control.peer_identity();
        match identity.is_empty() {
            true => self.control.peer_address(),
            false => format!("{identity} ({})", self.control.peer_address()),
        }
    }
}

impl AsFd for RemoteLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_fd()
    }
}

/// The address to connect to: an unspecified IP stands for the peer's.
fn resolve(address: &str, peer: &str) -> String {
    let Some((host, port)) = address.rsplit_once(':') else {
        return address.to_owned();
    };
    match (host, peer.rsplit_once(':')) {
        ("0.0.0.0" | "[::]" | "", Some((peer_host, _))) => format!("{peer_host}:{port}"),
        _ => address.to_owned(),
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, TransportError> {
    M::decode(body).map_err(|error| protocol(WireError::from(error).to_string()))
}

fn protocol(message: String) -> TransportError {
    TransportError::new(Cause::Protocol, message)
}

/// A peer's words, bounded.
fn shortened(text: impl Into<String>) -> String {
    let mut text = text.into();
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn io(doing: &'static str) -> impl Fn(std::io::Error) -> LinkError {
    move |source| LinkError::Io { doing, source }
}

fn watching(error: std::io::Error) -> TransportError {
    TransportError::new(Cause::Io, format!("cannot watch a connection: {error}"))
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn an_unspecified_address_is_the_peers() {
        assert_eq!(resolve("0.0.0.0:7", "10.0.0.2:4610"), "10.0.0.2:7");
        assert_eq!(resolve("[::]:7", "[fe80::1]:4610"), "[fe80::1]:7");
        assert_eq!(resolve("10.1.1.1:7", "10.0.0.2:4610"), "10.1.1.1:7");
        assert_eq!(resolve("02:00@10.1.1.1", "10.0.0.2:4610"), "02:00@10.1.1.1");
    }
}
