//! Serving sessions: one thread waits for connections of one device and executes their tapes.
//!
//! Nothing is handed between threads on the way of a record: the thread that reads a frame runs
//! its operators and writes the answer. Sessions take turns bounded in records and in time.

mod connection;
mod mailbox;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use genie_shm::{Listener, UnixLink};
use genie_transport::{Link, LinkError};
use genie_wire::control::{Device, Hello};
use rustix::event::{Timespec, epoll};

use crate::{Backend, Executor, SessionSettings};
use connection::{Connection, Turn};
pub use mailbox::Mailbox;

/// What a node tells its clients, the same for all of its devices.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Name and version of this program.
    pub software: String,
    /// Version of libtorch.
    pub torch: String,
    pub devices: Vec<Device>,
    /// Connections each device serves at a time.
    pub sessions_max: usize,
    /// CPU threads for clients that do not say how many.
    pub threads: u32,
}

/// Serves one device of a node.
pub struct Server<B: Backend> {
    executor: Executor<B>,
    facts: Arc<NodeFacts>,
    /// Schema hashes of the operators the device runs.
    ops: Vec<u64>,
    epoll: OwnedFd,
    listener: Option<Listener>,
    /// Whether the listener is watched: not while descriptors have run out.
    accepting: bool,
    /// One per device, in order; `mailboxes[device]` is this server's own.
    mailboxes: Arc<[Mailbox]>,
    device: usize,
    connections: BTreeMap<u64, Connection<B>>,
    next_connection: u64,
    next_session: u64,
}

/// Names of descriptors in the wait set; connections count up from `CONNECTION`.
const MAILBOX: u64 = 0;
const LISTENER: u64 = 1;
const CONNECTION: u64 = 2;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl<B: Backend> Server<B> {
    /// `listener` belongs to the server of device 0, which passes connections on to the others.
    pub fn new(
        executor: Executor<B>,
        facts: Arc<NodeFacts>,
        ops: Vec<u64>,
        mailboxes: Arc<[Mailbox]>,
        device: usize,
        listener: Option<Listener>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, mailboxes[device].event_fd(), MAILBOX)?;
        if let Some(listener) = &listener {
            watch(&epoll, listener.event_fd(), LISTENER)?;
        }
        Ok(Server {
            executor,
            facts,
            ops,
            epoll,
            accepting: listener.is_some(),
            listener,
            mailboxes,
            device,
            connections: BTreeMap::new(),
            next_connection: CONNECTION,
            next_session: 1,
        })
    }

    /// Serves until the mailbox says stop. Removes the socket's file at the end.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let busy = self.connections.values().any(|connection| connection.runnable);
            events.clear();
            let timeout = busy.then_some(&NOW);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                self.notice(event.data.u64(), event.flags)?;
            }
            if self.mailboxes[self.device].stopped() {
                return Ok(());
            }
            self.take_turns()?;
        }
    }

    fn notice(&mut self, source: u64, flags: epoll::EventFlags) -> std::io::Result<()> {
        match source {
            MAILBOX => {
                for (link, hello) in self.mailboxes[self.device].take() {
                    self.adopt(link, Some(hello))?;
                }
            }
            LISTENER => self.accept()?,
            id => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.runnable = true;
                    connection.gone |=
                        flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> std::io::Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let mut accepted = Vec::new();
        loop {
            match listener.accept() {
                Ok(Some(link)) => accepted.push(link),
                Ok(None) => break,
                // Out of descriptors, most likely: wait until a connection ends.
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted now");
                    epoll::delete(&self.epoll, listener.event_fd())?;
                    self.accepting = false;
                    break;
                }
            }
        }
        accepted.into_iter().try_for_each(|link| self.adopt(link, None))
    }

    fn adopt(&mut self, mut link: UnixLink, hello: Option<Hello>) -> std::io::Result<()> {
        let max = self.facts.sessions_max;
        if self.connections.len() >= max {
            tracing::warn!(max, "a connection is refused");
            let message = format!(
                "the node serves {max} connections already; close one, or start it with a larger \
                 --max-sessions"
            );
            connection::refuse(&mut link, genie_wire::ErrorCode::Runtime, &message);
            return Ok(());
        }
        let id = self.next_connection;
        self.next_connection += 1;
        watch(&self.epoll, link.event_fd(), id)?;
        self.connections.insert(id, Connection::new(link, hello));
        Ok(())
    }

    fn take_turns(&mut self) -> std::io::Result<()> {
        let runnable: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.runnable)
            .map(|(id, _)| *id)
            .collect();
        for id in runnable {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let mut host = Host {
                executor: &mut self.executor,
                facts: &self.facts,
                ops: &self.ops,
                device: self.device,
                next_session: &mut self.next_session,
            };
            match connection.turn(&mut host) {
                Turn::Continue => self.set_interest(id)?,
                Turn::End => self.end(id)?,
                Turn::Handover(hello) => {
                    let device = hello.device as usize;
                    let connection = self.remove(id)?.expect("it just had its turn");
                    self.mailboxes[device].deliver(connection.into_link(), hello);
                }
            }
        }
        Ok(())
    }

    fn set_interest(&mut self, id: u64) -> std::io::Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, !connection.paused);
        flags.set(epoll::EventFlags::OUT, connection.link.wants_write());
        if flags != connection.interest {
            connection.interest = flags;
            let data = epoll::EventData::new_u64(id);
            epoll::modify(&self.epoll, connection.link.event_fd(), data, flags)?;
        }
        Ok(())
    }

    fn remove(&mut self, id: u64) -> std::io::Result<Option<Connection<B>>> {
        let Some(connection) = self.connections.remove(&id) else {
            return Ok(None);
        };
        epoll::delete(&self.epoll, connection.link.event_fd())?;
        Ok(Some(connection))
    }

    fn end(&mut self, id: u64) -> std::io::Result<()> {
        if let Some(connection) = self.remove(id)? {
            connection.end(&mut self.executor);
        }
        if !self.accepting
            && let Some(listener) = &self.listener
        {
            watch(&self.epoll, listener.event_fd(), LISTENER)?;
            self.accepting = true;
        }
        Ok(())
    }
}

/// What a connection's turn may use.
struct Host<'a, B: Backend> {
    executor: &'a mut Executor<B>,
    facts: &'a NodeFacts,
    ops: &'a [u64],
    device: usize,
    next_session: &'a mut u64,
}

impl<B: Backend> Host<'_, B> {
    fn settings(&self, hello: &Hello) -> SessionSettings {
        let threads = if hello.threads == 0 { self.facts.threads } else { hello.threads };
        SessionSettings { identity: hello.identity.clone(), threads }
    }
}

fn watch(epoll: impl AsFd, source: BorrowedFd<'_>, name: u64) -> std::io::Result<()> {
    let data = epoll::EventData::new_u64(name);
    Ok(epoll::add(epoll, source, data, epoll::EventFlags::IN)?)
}

/// Whether a link's error is the peer's fault and worth telling it.
fn is_refusable(error: &LinkError) -> bool {
    matches!(error, LinkError::Wire(_) | LinkError::Memory(_))
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
