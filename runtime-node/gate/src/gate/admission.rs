//! Who comes in: connections that said nothing yet, and what becomes of them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use genie_channel::{Message, message};
use genie_shm::UnixLink;
use genie_transport::{Link, LinkError};
use genie_wire::control::{Hello, Refusal};
use genie_wire::frame::FrameKind;
use genie_wire::limits::STRING_BYTES_MAX;
use genie_wire::{ErrorCode, PROTOCOL_OLDEST, PROTOCOL_VERSION, common_version};
use prost::Message as _;
use rustix::event::epoll::{self, EventFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{DOOR, Gate, HELLO_MAX, HOST, NEWCOMER, RELAYED, watch};
use crate::newcomers::{First, Newcomer, Who};
use crate::relay::Relay;
use crate::sessions::{Session, Way};

/// How long a door that fails is left alone. A connection that ends opens it at once.
const SHUT_FOR: Duration = Duration::from_millis(100);
/// Failures of single peers in one look at a door; more of them are the door's own.
const FAILURES_MAX: usize = 128;
/// Connections that did not say yet what they want; one more, and the oldest is left.
const NEWCOMERS_MAX: usize = 256;

impl Gate {
    pub(super) fn accept(&mut self, index: usize) {
        let Some(entrance) = self.entrances.get_mut(index) else { return };
        let (mut accepted, mut failures) = (Vec::new(), 0);
        loop {
            let error = match entrance.door.accept() {
                Ok(Some(arrived)) => {
                    accepted.push(arrived);
                    entrance.told = false;
                    continue;
                }
                Ok(None) => break,
                Err(error) => error,
            };
            failures += 1;
            // Of a stranger, perhaps: it concerns one connection, and the next may be a friend's.
            let is_ones = matches!(error, LinkError::Transport(_) | LinkError::Stranger { .. });
            let fails = !is_ones || failures > FAILURES_MAX;
            if !std::mem::replace(&mut entrance.told, true) {
                tracing::warn!(%error, "a connection is not accepted");
            }
            if fails {
                // Out of descriptors, most likely: wait until some are free.
                entrance.shut_until = Some(Instant::now() + SHUT_FOR);
                if let Err(error) = epoll::delete(&self.epoll, entrance.door.event_fd()) {
                    tracing::debug!(%error, "a door that fails stays watched");
                }
                break;
            }
        }
        for arrived in accepted {
            if self.newcomers.len() >= NEWCOMERS_MAX
                && let Some((id, _)) = self.newcomers.iter().min_by_key(|(_, one)| one.until)
            {
                let id = *id;
                let why = format!("it said no hello, and {NEWCOMERS_MAX} others wait; try again");
                self.refuse_newcomer(id, ErrorCode::Unavailable, why);
            }
            let newcomer = Newcomer::new(arrived, Instant::now() + HELLO_MAX);
            let id = self.number();
            match watch(&self.epoll, newcomer.event_fd(), NEWCOMER | id, newcomer.interest) {
                Ok(()) => {
                    self.newcomers.insert(id, newcomer);
                    self.greet(id);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be watched");
                    let message = format!("the node cannot take one more connection: {error}");
                    if let Ok(link) = newcomer.into_link() {
                        self.leave(link, &Refusal { code: ErrorCode::Unavailable as u32, message });
                    }
                }
            }
        }
    }

    /// Watches doors again whose time has come.
    pub(super) fn open_doors(&mut self) {
        let now = Instant::now();
        for (index, entrance) in self.entrances.iter_mut().enumerate() {
            if entrance.shut_until.is_some_and(|until| until <= now) {
                let name = DOOR | index as u64;
                let watched = watch(&self.epoll, entrance.door.event_fd(), name, EventFlags::IN);
                entrance.shut_until = match watched {
                    Ok(()) => None,
                    // It is watched still.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
                    Err(_) => Some(now + SHUT_FOR),
                };
            }
        }
    }

    /// Looks whether a newcomer said what it wants.
    pub(super) fn greet(&mut self, id: u64) {
        let Some(newcomer) = self.newcomers.get_mut(&id) else { return };
        let wants = newcomer.first();
        match wants {
            Ok(Some(first)) => self.admit(id, first),
            Ok(None) => {
                // A link may have something to say of its own.
                if let Who::Elsewhere(link) = &newcomer.who {
                    let mut flags = EventFlags::IN;
                    flags.set(EventFlags::OUT, link.wants_write());
                    if flags != newcomer.interest {
                        newcomer.interest = flags;
                        let data = epoll::EventData::new_u64(NEWCOMER | id);
                        let _ = epoll::modify(&self.epoll, link.event_fd(), data, flags);
                    }
                }
            }
            Err(error) if error.is_refusable() => {
                self.refuse_newcomer(id, ErrorCode::Protocol, error.to_string());
            }
            Err(_) => drop(self.take_newcomer(id)),
        }
    }

    pub(super) fn take_newcomer(&mut self, id: u64) -> Option<Newcomer> {
        let newcomer = self.newcomers.remove(&id)?;
        let _ = epoll::delete(&self.epoll, newcomer.event_fd());
        self.reopen_doors();
        Some(newcomer)
    }

    pub(super) fn refuse_newcomer(&mut self, id: u64, code: ErrorCode, message: String) {
        let Some(newcomer) = self.take_newcomer(id) else { return };
        tracing::warn!(peer = newcomer.peer(), message, "a connection is refused");
        if let Ok(link) = newcomer.into_link() {
            self.leave(link, &Refusal { code: code as u32, message });
        }
    }

    fn admit(&mut self, id: u64, first: First) {
        let admitted = match first {
            First::Hello(hello) => self.admit_session(id, hello),
            First::Serve(serve) => self.admit_serving(id, serve),
        };
        if let Err((code, message)) = admitted {
            self.refuse_newcomer(id, code, message);
        }
    }

    fn admit_session(&mut self, id: u64, hello: Hello) -> Result<(), (ErrorCode, String)> {
        if let Some(why) = &self.turned_away {
            return Err((ErrorCode::Unavailable, why.clone()));
        }
        let facts = &self.facts;
        if common_version(hello.protocol).is_none() {
            let message = format!(
                "this node ({}) speaks protocols {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}, the \
                 client ({}) speaks {}; install the same version of Genie on both sides",
                facts.software, hello.software, hello.protocol
            );
            return Err((ErrorCode::Protocol, message));
        }
        if hello.identity.len() > STRING_BYTES_MAX {
            return Err((ErrorCode::Protocol, "the client's identity is too long".to_owned()));
        }
        let (device, count) = (hello.device, facts.devices.len());
        if device as usize >= count {
            let message = format!(
                "device {device} does not exist, the node has {count} (0 to {})",
                count.saturating_sub(1)
            );
            return Err((ErrorCode::Value, message));
        }
        let max = facts.sessions_max;
        if self.sessions.values().filter(|session| session.device == device).count() >= max {
            let message = format!(
                "the node serves {max} connections already; close one, or start it with a larger \
                 --max-sessions"
            );
            return Err((ErrorCode::Unavailable, message));
        }
        let identity = match &self.newcomers[&id].who {
            Who::Here(_) => String::new(),
            Who::Elsewhere(link) => link.peer_identity(),
        };
        let admission =
            self.quotas.admit(&identity).map_err(|message| (ErrorCode::Runtime, message))?;
        let worker = self.worker(identity, device).map_err(|m| (ErrorCode::Unavailable, m))?;
        let newcomer = self.take_newcomer(id).expect("it was just there");
        let name = newcomer.peer();
        let (way, socket, peer, relayed) = match newcomer.who {
            Who::Here(socket) => {
                let passed = socket
                    .try_clone()
                    .map_err(|error| (ErrorCode::Unavailable, format!("keep a socket: {error}")))?;
                (Way::Direct(socket), passed, String::new(), false)
            }
            Who::Elsewhere(link) => {
                let peer = link.peer_identity();
                let pair = relay(link, &hello);
                let (relay, passed) = pair.map_err(|error| (ErrorCode::Unavailable, error))?;
                (Way::Relayed(Box::new(relay)), passed, peer, true)
            }
        };
        let session = message::Session { connection: id, peer, relayed, name };
        let posted = self.post(worker, Message::Session(session), vec![socket]);
        let session = Session { worker, device, way, ended: false, _admission: admission };
        let watched = match &session.way {
            // Its end is told whatever is asked for.
            Way::Direct(socket) => {
                watch(&self.epoll, socket.as_fd(), HOST | id, EventFlags::empty())
            }
            Way::Relayed(relay) => {
                watch(&self.epoll, relay.host.event_fd(), HOST | id, relay.host_interest).and_then(
                    |()| watch(&self.epoll, relay.worker_fd(), RELAYED | id, relay.worker_interest),
                )
            }
        };
        self.sessions.insert(id, session);
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.sessions.insert(id);
            worker.idle_since = None;
        }
        if let Some(worker) = self.workers.get(&worker) {
            let bytes = self.group_bytes(device, worker.sessions.len());
            if let Err(error) = worker.group.bound(bytes) {
                tracing::debug!(%error, "a worker's control group keeps its bound");
            }
        }
        let failed = watched.err().map(|error| error.to_string());
        if let Some(reason) = failed.or_else(|| (!posted).then(|| "its worker is gone".to_owned()))
        {
            self.refuse_session(id, ErrorCode::Unavailable, &reason);
        }
        Ok(())
    }
}

/// A relay, and the socket for its worker, to whom the hello is passed on.
fn relay(host: Box<dyn Link>, hello: &Hello) -> Result<(Relay, OwnedFd), String> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let failed = |error: &dyn std::fmt::Display| format!("a session cannot be passed on: {error}");
    let (mine, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed(&error))?;
    let link = UnixLink::over(mine).map_err(|error| failed(&error))?;
    let mut relay = Relay::new(host, link);
    relay.begin(FrameKind::Hello, &hello.encode_to_vec()).map_err(|error| failed(&error))?;
    Ok((relay, its))
}
