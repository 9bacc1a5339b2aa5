//! Sessions that run: the turns of those whose frames pass through here, and how they end.

use std::os::fd::OwnedFd;
use std::time::Instant;

use genie_transport::{Link, LinkError};
use genie_wire::ErrorCode;
use genie_wire::control::Refusal;
use genie_wire::frame::FrameKind;
use prost::Message as _;
use rustix::event::epoll;

use super::{Gate, HOST, LINGER, RELAYED};
use crate::relay::{Relay, RelayEnd};
use crate::sessions::{Session, Way, last_word};

/// How many times as long an operator may go on whose worker serves other sessions too: they wait for
/// it, and would be lost with it.
const SHARED_PATIENCE: u32 = 6;

impl Gate {
    pub(super) fn take_turns(&mut self) {
        let runnable: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, session)| matches!(&session.way, Way::Relayed(relay) if relay.runnable))
            .map(|(id, _)| *id)
            .collect();
        for id in runnable {
            let Some(Session { way: Way::Relayed(relay), .. }) = self.sessions.get_mut(&id) else {
                continue;
            };
            match relay.turn() {
                Ok(()) => {
                    if let Err(error) = set_interests(&self.epoll, id, relay) {
                        tracing::warn!(%error, "a connection cannot be watched any more");
                        self.end(id);
                    }
                }
                Err(RelayEnd::Host(error)) if error.is_refusable() => {
                    self.refuse_session(id, ErrorCode::Protocol, &error.to_string());
                }
                Err(RelayEnd::Host(_)) => self.end(id),
                Err(RelayEnd::Worker(LinkError::Closed)) => self.worker_hung_up(id),
                Err(RelayEnd::Worker(error)) => {
                    self.refuse_session(id, ErrorCode::Runtime, &error.to_string());
                }
            }
        }
    }

    /// Nothing more comes from the worker, whose last words were passed on. It is alive if it says
    /// that the session ended; else one hears how it died.
    fn worker_hung_up(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Way::Relayed(relay) = &mut session.way {
            let _ = epoll::delete(&self.epoll, relay.worker_fd());
        }
        if session.ended || !self.workers.contains_key(&session.worker) {
            self.part(id);
        }
    }

    /// The session ended in peace.
    pub(super) fn part(&mut self, id: u64) {
        if let Some(Way::Relayed(relay)) = self.remove(id).map(|session| session.way) {
            self.close(relay.into_host(), "the session ended");
        }
    }

    pub(super) fn refuse_session(&mut self, id: u64, code: ErrorCode, message: &str) {
        match self.remove(id).map(|session| session.way) {
            Some(Way::Direct(socket)) => {
                if !self.ends {
                    tracing::warn!(message, "a session is ended");
                }
                last_word(&socket, code, message);
            }
            Some(Way::Relayed(relay)) => {
                let host = relay.into_host();
                if !self.ends {
                    tracing::warn!(peer = host.peer(), message, "a session is ended");
                }
                self.leave(host, &Refusal { code: code as u32, message: message.to_owned() });
            }
            None => {}
        }
    }

    /// The client left.
    pub(super) fn end(&mut self, id: u64) {
        let Some(session) = self.remove(id) else { return };
        // Nobody waits for what its worker may compute for it.
        if let Some(worker) = self.workers.get(&session.worker) {
            let doing = worker.watched.look();
            if doing.connection == Some(id) {
                let shared = if worker.sessions.is_empty() { 1 } else { SHARED_PATIENCE };
                let until = Instant::now() + self.operator_max * shared;
                self.forsaken.push((session.worker, doing.begun, until));
            }
        }
        if let Way::Relayed(relay) = session.way {
            self.close(relay.into_host(), "the session ended");
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        match &session.way {
            Way::Direct(socket) => drop(epoll::delete(&self.epoll, socket)),
            Way::Relayed(relay) => {
                let _ = epoll::delete(&self.epoll, relay.host.event_fd());
                let _ = epoll::delete(&self.epoll, relay.worker_fd());
            }
        }
        if let Some(worker) = self.workers.get_mut(&session.worker) {
            worker.sessions.remove(&id);
            if worker.sessions.is_empty() {
                worker.idle_since = Some(Instant::now());
            }
        }
        self.reopen_doors();
        Some(session)
    }

    /// There is a descriptor again.
    pub(super) fn reopen_doors(&mut self) {
        let now = Instant::now();
        for shut in self.entrances.iter_mut().filter_map(|entrance| entrance.shut_until.as_mut()) {
            *shut = now;
        }
    }

    /// Says a last word over a link, and sees that it arrives.
    pub(super) fn leave(&mut self, mut link: Box<dyn Link>, words: &Refusal) {
        if let Err(error) = link.post_send(FrameKind::Refusal, &[&words.encode_to_vec()], None) {
            tracing::debug!(%error, "the peer does not take its refusal");
        }
        self.close(link, &words.message);
    }

    /// Ends a link in order, and sees that what was posted arrives.
    pub(super) fn close(&mut self, mut link: Box<dyn Link>, why: &str) {
        if link.close(why) {
            self.lingering.push((link, Instant::now() + LINGER));
        }
    }

    pub(super) fn drive_lingering(&mut self) {
        self.lingering.retain_mut(|(link, until)| {
            Instant::now() < *until && link.drive().is_ok() && link.poll().is_ok()
        });
    }
}

fn set_interests(epoll: &OwnedFd, id: u64, relay: &mut Relay) -> std::io::Result<()> {
    let (host, worker) = relay.interests();
    if host != relay.host_interest {
        relay.host_interest = host;
        let data = epoll::EventData::new_u64(HOST | id);
        epoll::modify(epoll, relay.host.event_fd(), data, host)?;
    }
    if worker != relay.worker_interest && !relay.has_parted() {
        relay.worker_interest = worker;
        let data = epoll::EventData::new_u64(RELAYED | id);
        epoll::modify(epoll, relay.worker_fd(), data, worker)?;
    }
    Ok(())
}
