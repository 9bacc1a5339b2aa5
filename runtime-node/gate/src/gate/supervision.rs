//! Workers: their start, what they say, and their end.

use std::os::fd::OwnedFd;
use std::time::Instant;

use genie_channel::message::Fork;
use genie_channel::{Channel, Ends, Lender, Message, Watched};
use genie_wire::ErrorCode;
use genie_wire::control::WeightFetch;
use prost::Message as _;
use rustix::event::epoll::{self, EventFlags};

use super::{Gate, LENDER, MESSAGES_AT_ONCE, NURSERY, OBITUARY_MAX, SHELF, WORKER, watch};
use crate::sessions::{Session, Way};
use crate::workers::{Told, Worker};

/// Workers of a node, all identities and devices together.
const WORKERS_MAX: usize = 512;

impl Gate {
    /// The worker of an identity on a device, if there is one.
    pub(super) fn worker_of(&self, key: &(String, u32)) -> Option<u64> {
        let there = |worker: &Worker| worker.key == *key && worker.ending.is_none();
        self.workers.iter().find(|(_, worker)| there(worker)).map(|(id, _)| *id)
    }

    /// The worker of an identity on a device, which is started if there is none.
    pub(super) fn worker(&mut self, identity: String, device: u32) -> Result<u64, String> {
        let key = (identity, device);
        if let Some(id) = self.worker_of(&key) {
            return Ok(id);
        }
        if self.workers.len() >= WORKERS_MAX {
            return Err(format!("the node has {WORKERS_MAX} workers already"));
        }
        let failed = |error: &dyn std::fmt::Display| format!("a worker cannot be started: {error}");
        let (channel, other) = Channel::pair().map_err(|error| failed(&error))?;
        let (watched, progress) = Watched::new().map_err(|error| failed(&error))?;
        let (lender, lease, its_lender) = Lender::new().map_err(|error| failed(&error))?;
        let id = self.number();
        let (shelf, its_shelf) = Channel::pair().map_err(|error| failed(&error))?;
        let interest = EventFlags::IN;
        watch(&self.epoll, channel.event_fd(), WORKER | id, interest)
            .and_then(|()| watch(&self.epoll, lender.event_fd(), LENDER | id, interest))
            .and_then(|()| watch(&self.epoll, shelf.event_fd(), SHELF | id, interest))
            .map_err(|error| failed(&error))?;
        let mut limits = self.limits[device as usize].0.clone();
        // A GPU's worker has no memory that another could map.
        limits.shares = self.shelf.group(&key.0).is_some()
            && self.facts.devices[device as usize].kind != "cuda";
        let weight = self.weights.get(&key.0).copied().unwrap_or(1);
        let bytes = self.group_bytes(device, 1);
        let group = self
            .groups
            .make(id, bytes, weight)
            .map_err(|error| format!("a worker cannot be started: its control group: {error}"))?;
        let fork = Fork {
            worker: id,
            device,
            limits: Some(limits),
            devices: self.facts.devices.clone(),
            node_pid: std::process::id(),
            groups: group.doors(),
        };
        let ends = Ends { channel: other, progress, lease, lender: its_lender, shelf: its_shelf };
        let started = self.nursery.start(fork, ends);
        self.watch_nursery();
        self.nursery_speaks = true;
        started?;
        let worker = Worker {
            channel,
            interest,
            watched,
            group,
            lender,
            shelf,
            key,
            pid: 0,
            sessions: Default::default(),
            idle_since: Some(Instant::now()),
            ending: None,
            asked: false,
            running: None,
            overdue: None,
        };
        self.workers.insert(id, worker);
        self.lend_first(id);
        Ok(id)
    }

    /// What all of a worker may take, and what lies in its sessions' regions.
    pub(super) fn group_bytes(&self, device: u32, sessions: usize) -> u64 {
        match self.limits[device as usize].0.own_bytes {
            0 => u64::MAX,
            own => own.saturating_add(self.session_bytes.saturating_mul(sessions as u64)),
        }
    }

    /// `false` when the worker is gone.
    pub(super) fn post(&mut self, id: u64, message: Message, fds: Vec<OwnedFd>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        match worker.channel.post(message, fds) {
            Ok(()) => {
                self.watch_worker(id);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "a worker does not hear");
                false
            }
        }
    }

    pub(super) fn hear_worker(&mut self, id: u64) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let heard = worker.channel.flush().and_then(|()| worker.channel.poll());
            let (said, mut fds) = match heard {
                Ok(Some(said)) => said,
                Ok(None) => break,
                Err(error) => {
                    if !matches!(error, genie_channel::ChannelError::Closed) {
                        tracing::warn!(pid = worker.pid, %error, "a worker is ended");
                        self.nursery.end(id);
                    }
                    return self.channel_ended(id);
                }
            };
            match said {
                Message::SessionEnded(ended) => {
                    let connection = ended.connection;
                    if let Some(session) = self.sessions.get_mut(&connection)
                        && session.worker == id
                    {
                        session.ended = true;
                        // A relayed one goes when its last words were passed on.
                        let is_done = match &session.way {
                            Way::Direct(_) => true,
                            Way::Relayed(relay) => relay.has_parted(),
                        };
                        if is_done {
                            self.part(connection);
                        }
                    }
                }
                Message::Leaving(leaving) => {
                    let fd = fds.pop().expect("the channel checked that it came");
                    self.moves.leaving(id, leaving.id, leaving.bytes, fd, &self.epoll);
                }
                Message::Copied(copied) => self.moves.copied(id, copied.id, copied.bytes),
                Message::NotLeaving(not) => {
                    self.moves.not_leaving(id, not.id, not.reason, &self.epoll);
                }
                Message::Fetch(wanted) => {
                    let fd = fds.pop().expect("the channel checked that it came");
                    match WeightFetch::decode(&wanted.fetch[..]) {
                        Ok(fetch) => self.moves.fetch(id, wanted.id, &fetch, fd, &self.epoll),
                        Err(_) => self.nursery.end(id),
                    }
                }
                Message::Lightened(_) => self.memory_came(id),
                Message::Unfetch(unfetch) => self.moves.unfetch(id, unfetch.id, &self.epoll),
                Message::Confined(confined) => {
                    let missing = confined.missing.join("; ");
                    if confined.is_weak && !std::mem::replace(&mut self.told_weak, true) {
                        tracing::warn!(
                            "workers are not closed in: the kernel lacks {missing}. Serve only \
                             clients that you would let run programs on this machine"
                        );
                    } else if confined.wanted && !missing.is_empty() {
                        tracing::info!(
                            "a worker is closed in, but for what the kernel lacks: {missing}"
                        );
                    }
                }
                _ => self.nursery.end(id),
            }
        }
        self.watch_worker(id);
    }

    /// Messages that a worker did not take at once go when it does.
    fn watch_worker(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, worker.channel.wants_write());
        if flags != worker.interest {
            worker.interest = flags;
            let data = epoll::EventData::new_u64(WORKER | id);
            let _ = epoll::modify(&self.epoll, worker.channel.event_fd(), data, flags);
        }
    }

    /// Nothing comes from a worker any more; how it ended is told soon.
    fn channel_ended(&mut self, id: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let _ = epoll::delete(&self.epoll, worker.channel.event_fd());
        worker.ending.get_or_insert(Instant::now() + OBITUARY_MAX);
    }

    pub(super) fn hear_nursery(&mut self) {
        while let Some(told) = self.nursery.poll() {
            match told {
                Told::Forked(forked) if forked.failed.is_empty() => {
                    if let Some(worker) = self.workers.get_mut(&forked.worker) {
                        worker.pid = forked.pid;
                    }
                }
                Told::Forked(forked) => {
                    self.bury(
                        forked.worker,
                        &format!("it could not be started: {}", forked.failed),
                    );
                }
                Told::Ended(ended) => {
                    let Some(worker) = self.workers.get(&ended.worker) else { continue };
                    let how = worker.describe(&ended);
                    self.bury(ended.worker, &how);
                }
                Told::Lost(why) => {
                    tracing::error!("all workers are lost: {why}");
                    let all: Vec<u64> = self.workers.keys().copied().collect();
                    all.into_iter().for_each(|id| self.bury(id, &why));
                }
            }
        }
        self.watch_nursery();
    }

    /// A worker is dead: its sessions are told, and nobody else notices.
    pub(super) fn bury(&mut self, id: u64, how: &str) {
        // What it said before, its sessions' last words among it, is heard first.
        self.hear_worker(id);
        let Some(worker) = self.workers.remove(&id) else { return };
        let _ = epoll::delete(&self.epoll, worker.channel.event_fd());
        let _ = epoll::delete(&self.epoll, worker.lender.event_fd());
        let _ = epoll::delete(&self.epoll, worker.shelf.event_fd());
        self.shelf.leave_all(id);
        self.forsaken.retain(|(forsaken, _, _)| *forsaken != id);
        self.waiting.retain(|one| !one.is_of(id));
        self.memory_came(id);
        self.moves.worker_gone(id, &self.epoll);
        let sessions = worker.sessions.len();
        // Its own end, or one that was asked for while nobody used it, is no news.
        if !self.ends && (!worker.asked || sessions > 0) {
            tracing::warn!(pid = worker.pid, sessions, "a worker is gone: {how}");
        }
        let turn = worker.watched.look().connection;
        for session in worker.sessions {
            let whose = match turn {
                Some(turn) if turn != session => "another session of this client ran that, ",
                _ => "",
            };
            let message = format!(
                "the process that ran this session's operators on the node {how}; its tensors are \
                 lost, {whose}sessions of other clients are not touched"
            );
            if let Some(Session { way: Way::Relayed(relay), .. }) = self.sessions.get_mut(&session)
            {
                // What it said before is passed on.
                relay.worker_speaks = true;
                let _ = relay.turn();
            }
            self.refuse_session(session, ErrorCode::NodeLost, &message);
        }
    }

    pub(super) fn watch_nursery(&mut self) {
        // It may be another descriptor under the same number: what fails is watched already.
        let Some(fd) = self.nursery.event_fd() else { return };
        if let Err(error) = watch(&self.epoll, fd, NURSERY, EventFlags::IN)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, "the workers' ends cannot be watched");
        }
    }
}
