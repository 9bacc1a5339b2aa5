//! A worker: one thread executes the tapes of one identity's sessions on one device.
//!
//! Connections come from the node's gate, over the [`Channel`] that this process began with; their
//! frames are read here. Nothing is handed between threads on the way of a record: the thread that
//! reads a frame runs its operators and writes the answer. Sessions take turns bounded in records
//! and in time, and who has had least goes first.

mod connection;
mod moves;
mod rate;
mod relayed;
mod turns;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_channel::message::{Lightened, SessionEnded, Stop, identity};
use genie_channel::{Channel, ChannelError, Message, Progress};
use genie_shm::UnixLink;
use genie_transport::{Link, LinkError};
use genie_wire::ErrorCode;
use genie_wire::control::{Device, Hello};
use rustix::event::{Timespec, epoll};

use crate::{Backend, Executor, SessionSettings};
use connection::{Connection, Turn};
use moves::Moves;
use rate::Rate;
use relayed::RelayedLink;
use turns::Turns;

/// What a node tells its clients.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name and version of this program.
    pub software: String,
    /// Version of libtorch.
    pub torch: String,
    pub devices: Vec<Device>,
    /// CPU threads for clients that do not say how many.
    pub threads: u32,
    /// The node's process.
    pub pid: u32,
}

/// What a server is made of.
pub struct ServerParts<B: Backend> {
    pub executor: Executor<B>,
    pub facts: NodeFacts,
    /// Schema hashes of the operators the device runs.
    pub ops: Arc<[u64]>,
    /// The number of the device that it serves.
    pub device: u32,
    /// To the gate.
    pub channel: Channel,
    pub progress: Progress,
    /// Bytes of tape and tensors that all sessions together may send in a second.
    pub bytes_per_s: u64,
}

/// Serves the sessions of one identity on one device.
pub struct Server<B: Backend> {
    executor: Executor<B>,
    facts: NodeFacts,
    ops: Arc<[u64]>,
    device: u32,
    epoll: OwnedFd,
    channel: Channel,
    /// What the channel is watched for.
    channel_interest: epoll::EventFlags,
    progress: Arc<Progress>,
    rate: Rate,
    moves: Moves<B>,
    connections: BTreeMap<u64, Connection<B>>,
    turns: Turns,
    next_session: u64,
}

/// The name of the channel in the wait set; the others are the gate's numbers for connections.
const CHANNEL: u64 = 0;
/// Messages of the gate between two turns of the sessions.
const MESSAGES_AT_ONCE: usize = 64;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Why a worker ends before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the gate: {0}")]
    Gate(#[from] ChannelError),
    #[error("wait for events: {0}")]
    Wait(#[from] std::io::Error),
}

impl<B: Backend> Server<B> {
    pub fn new(parts: ServerParts<B>) -> std::io::Result<Self> {
        let ServerParts { mut executor, facts, ops, device, channel, progress, bytes_per_s } =
            parts;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, channel.event_fd(), CHANNEL)?;
        let progress = Arc::new(progress);
        executor.tell_progress(progress.clone());
        Ok(Server {
            executor,
            facts,
            ops,
            device,
            epoll,
            channel,
            channel_interest: epoll::EventFlags::IN,
            progress,
            rate: Rate::new(bytes_per_s),
            moves: Moves::new(),
            connections: BTreeMap::new(),
            turns: Turns::default(),
            next_session: 1,
        })
    }

    /// Serves until the gate says stop, or is gone.
    pub fn run(mut self) -> Result<(), ServeError> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let busy = self.connections.values().any(|connection| connection.runnable)
                || self.moves.is_busy();
            events.clear();
            let timeout = if busy { Some(NOW) } else { self.sleep_max() };
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(std::io::Error::from(errno).into()),
            }
            let mut gate_speaks = false;
            for event in &events {
                match event.data.u64() {
                    CHANNEL => gate_speaks = true,
                    id => self.notice(id, event.flags),
                }
            }
            if gate_speaks && let Some(stop) = self.hear()? {
                self.cut(&stop.why);
                return Ok(());
            }
            self.wake_throttled();
            self.take_turns();
            self.move_weights()?;
            self.watch_channel()?;
        }
    }

    /// Tells everybody why the node leaves them.
    fn cut(&mut self, why: &str) {
        for (_, mut connection) in std::mem::take(&mut self.connections) {
            connection::refuse(connection.link.as_mut(), ErrorCode::NodeLost, why);
            connection.end(&mut self.executor);
        }
    }

    /// How long to wait for events: until a client may send again.
    fn sleep_max(&self) -> Option<Timespec> {
        let throttled = self.connections.values().filter_map(|connection| connection.throttled);
        let wait = throttled.min()?.saturating_duration_since(Instant::now());
        // Rounded up, so that the moment has come when the wait ends.
        Timespec::try_from(wait + Duration::from_micros(50)).ok()
    }

    fn wake_throttled(&mut self) {
        for connection in self.connections.values_mut() {
            if connection.throttled.is_some_and(|until| until <= Instant::now()) {
                connection.runnable = true;
            }
        }
    }

    fn notice(&mut self, id: u64, flags: epoll::EventFlags) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.runnable = true;
            connection.gone |= flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        }
    }

    /// Does what the gate says; returns its order to stop.
    fn hear(&mut self) -> Result<Option<Stop>, ServeError> {
        self.channel.flush()?;
        for _ in 0..MESSAGES_AT_ONCE {
            let Some((message, mut fds)) = self.channel.poll()? else { break };
            match message {
                Message::Session(session) => {
                    let socket = fds.pop().expect("the channel checked that it came");
                    let id = session.connection;
                    if let Err(error) = self.adopt(socket, session) {
                        tracing::warn!(%error, "a connection cannot be served");
                        self.channel
                            .post(Message::SessionEnded(SessionEnded { connection: id }), vec![])?;
                    }
                }
                Message::Stop(stop) => return Ok(Some(stop)),
                Message::Leave(leave) => {
                    let (answer, fds) = self.moves.leave(&leave, &mut self.executor);
                    self.channel.post(answer, fds)?;
                }
                Message::Shed(shed) => {
                    self.executor.shed(shed.bytes);
                    self.channel.post(Message::Lightened(Lightened {}), vec![])?;
                }
                Message::Left(left) => self.moves.left(&left, &mut self.executor),
                Message::Fetched(fetched) => {
                    if let Some(arrival) = self.moves.fetched(fetched, &mut self.executor) {
                        self.arrived(arrival)?;
                    }
                }
                _ => return Err(ChannelError::Malformed("a message for another").into()),
            }
        }
        Ok(None)
    }

    fn adopt(
        &mut self,
        socket: OwnedFd,
        session: genie_channel::message::Session,
    ) -> Result<(), LinkError> {
        let link = UnixLink::over(socket)?;
        let link: Box<dyn Link> = match session.relayed {
            true => Box::new(RelayedLink::new(link, session.peer, session.name)),
            false => Box::new(link),
        };
        let doing = "watch a connection";
        watch(&self.epoll, link.event_fd(), session.connection)
            .map_err(|source| LinkError::Io { doing, source })?;
        self.connections.insert(session.connection, Connection::new(link));
        Ok(())
    }

    fn take_turns(&mut self) {
        let mut runnable: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.runnable)
            .map(|(id, _)| *id)
            .collect();
        // One alone, which is the usual, is not timed.
        let mut last = (self.connections.len() > 1).then(Instant::now);
        self.turns.choose(&mut runnable);
        for id in runnable {
            self.with_connection(id, |connection, host| connection.turn(host));
            if let Some(before) = last {
                let now = Instant::now();
                self.turns.took(id, now - before);
                last = Some(now);
            }
        }
    }

    fn move_weights(&mut self) -> Result<(), ServeError> {
        for copied in self.moves.copy_leaving(&self.executor) {
            self.channel.post(copied, vec![])?;
        }
        for arrival in self.moves.copy_arriving(&mut self.executor) {
            self.arrived(arrival)?;
        }
        Ok(())
    }

    /// Moves end with their connection, so it is there.
    fn arrived(&mut self, arrival: moves::Arrival<B::Storage>) -> Result<(), ServeError> {
        let id = arrival.connection;
        self.with_connection(id, |connection, host| connection.weight_came(arrival, host));
        Ok(())
    }

    /// Lets a connection do something, and draws the consequences.
    fn with_connection(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Connection<B>, &mut Host<'_, B>) -> Turn,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut host = Host {
            executor: &mut self.executor,
            facts: &self.facts,
            ops: &self.ops,
            device: self.device,
            rate: &mut self.rate,
            next_session: &mut self.next_session,
            moves: &mut self.moves,
            channel: &mut self.channel,
            connection: id,
        };
        self.progress.turn(Some(id));
        let turn = act(connection, &mut host);
        self.progress.turn(None);
        match turn {
            Turn::Continue => {
                if let Err(error) = self.set_interest(id) {
                    tracing::warn!(%error, "a connection cannot be watched any more");
                    self.end(id);
                }
            }
            Turn::End => self.end(id),
        }
    }

    fn set_interest(&mut self, id: u64) -> std::io::Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, !connection.paused && connection.throttled.is_none());
        flags.set(epoll::EventFlags::OUT, connection.link.wants_write());
        if flags != connection.interest {
            connection.interest = flags;
            let data = epoll::EventData::new_u64(id);
            epoll::modify(&self.epoll, connection.link.event_fd(), data, flags)?;
        }
        Ok(())
    }

    /// Messages that the gate did not take at once go when it does.
    fn watch_channel(&mut self) -> Result<(), ServeError> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, self.channel.wants_write());
        if flags != self.channel_interest {
            self.channel_interest = flags;
            let data = epoll::EventData::new_u64(CHANNEL);
            epoll::modify(&self.epoll, self.channel.event_fd(), data, flags)
                .map_err(std::io::Error::from)?;
        }
        Ok(())
    }

    fn end(&mut self, id: u64) {
        let mut said: Vec<Message> = self.moves.cancel(id, &mut self.executor);
        self.turns.forget(id);
        if let Some(connection) = self.connections.remove(&id) {
            // Closing the descriptor would do as well, were the gate's not the same connection.
            if let Err(error) = epoll::delete(&self.epoll, connection.link.event_fd()) {
                tracing::debug!(%error, "a connection was not watched");
            }
            connection.end(&mut self.executor);
            said.push(Message::SessionEnded(SessionEnded { connection: id }));
        }
        for message in said {
            // A gate that is gone, or does not listen, is noticed in the next round.
            if let Err(error) = self.channel.post(message, vec![]) {
                tracing::debug!(%error, "the gate is not told of a session's end");
            }
        }
    }
}

/// What a connection's turn may use.
struct Host<'a, B: Backend> {
    executor: &'a mut Executor<B>,
    facts: &'a NodeFacts,
    ops: &'a [u64],
    device: u32,
    rate: &'a mut Rate,
    next_session: &'a mut u64,
    moves: &'a mut Moves<B>,
    channel: &'a mut Channel,
    /// The number of the connection whose turn it is.
    connection: u64,
}

impl<B: Backend> Host<'_, B> {
    fn settings(&self, hello: &Hello, peer: &str) -> SessionSettings {
        let threads = if hello.threads == 0 { self.facts.threads } else { hello.threads };
        let threads_fixed = hello.threads_fixed;
        SessionSettings { identity: identity(peer, &hello.identity), threads, threads_fixed }
    }
}

fn watch(epoll: impl AsFd, source: BorrowedFd<'_>, name: u64) -> std::io::Result<()> {
    let data = epoll::EventData::new_u64(name);
    Ok(epoll::add(epoll, source, data, epoll::EventFlags::IN)?)
}
