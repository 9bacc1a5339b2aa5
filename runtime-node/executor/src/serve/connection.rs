//! One connection: its greeting, its frames, its turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use genie_transport::{Frame, Link, LinkError};
use genie_wire::control::{
    Counter, Have, HaveAnswer, Hello, Refusal, Region, Status, StatusRequest, WeightFetch, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::limits::{STRING_BYTES_MAX, WANTED_MAX};
use genie_wire::record::WeightHash;
use genie_wire::{ErrorCode, PROTOCOL_OLDEST, PROTOCOL_VERSION, StorageId, common_version};
use prost::Message;
use rustix::event::epoll;
use rustix::net::{Shutdown, shutdown};

use super::Host;
use super::moves::Arrival;
use crate::{Backend, Executor, Outbox, Session, memory};

/// How long one session may keep the others waiting, operators in progress aside.
const TURN: Duration = Duration::from_millis(5);
/// Records between two looks at the clock and at the peer's appetite; fewer while they are slow.
const RECORDS_AT_ONCE: usize = 32;
/// Unread answers after which a session waits until its peer reads.
const UNREAD_BYTES_MAX: usize = 1 << 20;

pub(super) struct Connection<B: Backend> {
    pub(super) link: Box<dyn Link>,
    stage: Stage<B>,
    /// Has something to do besides waiting for its descriptor.
    pub(super) runnable: bool,
    /// Its peer does not read answers, so it gets no more turns for now.
    pub(super) paused: bool,
    /// Its client sent more than its share: it is not read before this moment.
    pub(super) throttled: Option<Instant>,
    /// Its peer hung up.
    pub(super) gone: bool,
    /// What its descriptor is watched for.
    pub(super) interest: epoll::EventFlags,
}

enum Stage<B: Backend> {
    /// Connected; its hello is the first that comes.
    Greeting,
    Open(Box<Open<B>>),
}

struct Open<B: Backend> {
    session: Session<B>,
    number: u64,
    /// A tape frame in progress and how far it was executed.
    tape: Option<(Vec<u8>, usize)>,
    /// Records to execute before the next look at the clock.
    records_at_once: usize,
}

/// How a turn ended.
pub(super) enum Turn {
    Continue,
    End,
}

/// Why a connection ends.
enum End {
    /// The peer is gone.
    Closed,
    Refused(ErrorCode, String),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        match error.is_refusable() {
            true => End::Refused(ErrorCode::Protocol, error.to_string()),
            false => End::Closed,
        }
    }
}

impl<B: Backend> Connection<B> {
    pub(super) fn new(link: Box<dyn Link>) -> Self {
        Connection {
            link,
            stage: Stage::Greeting,
            runnable: true,
            paused: false,
            throttled: None,
            gone: false,
            interest: epoll::EventFlags::IN,
        }
    }

    /// Gives back what the session holds, and hangs up.
    pub(super) fn end(self, executor: &mut Executor<B>) {
        if let Stage::Open(open) = self.stage {
            tracing::info!(session = open.number, "a session ended");
            let closed = catch_unwind(AssertUnwindSafe(|| executor.close(open.session)));
            if closed.is_err() {
                tracing::error!("a session could not be closed cleanly");
            }
        }
        // The gate has the connection too: closing the descriptor would not end it.
        if let Err(error) = shutdown(self.link.event_fd(), Shutdown::Both) {
            tracing::debug!(%error, "a connection had ended");
        }
    }

    /// Does what can be done now. A panic ends this session and no other.
    pub(super) fn turn(&mut self, host: &mut Host<'_, B>) -> Turn {
        if self.gone {
            return Turn::End;
        }
        self.guarded(|connection| connection.work(host))
    }

    /// A weight that the session asked another node for is there, or does not come.
    pub(super) fn weight_came(
        &mut self,
        arrival: Arrival<B::Storage>,
        host: &mut Host<'_, B>,
    ) -> Turn {
        let (token, storage) = (arrival.token, StorageId(arrival.storage));
        self.guarded(|connection| {
            let Stage::Open(open) = &mut connection.stage else {
                return Ok(());
            };
            let stored = arrival.weight.and_then(|weight| {
                let stored = host.executor.arrived(&mut open.session, weight, storage);
                stored.map_err(|failure| failure.message)
            });
            let now = Instant::now();
            let moved = stored.as_ref().copied().unwrap_or(0);
            if let Some(wait) = host.rate.take(moved, now) {
                connection.throttled = Some(now + wait);
            }
            connection.answer_fetch(token, stored)
        })
    }

    fn answer_fetch(&mut self, token: u64, stored: Result<u64, String>) -> Result<(), End> {
        if let Err(reason) = &stored {
            tracing::warn!("a weight does not come from another node: {reason}");
        }
        let answer = HaveAnswer { token, found: vec![stored.is_ok()] };
        Ok(self.link.post_send(FrameKind::HaveAnswer, &[&answer.encode_to_vec()], None)?)
    }

    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> Result<(), End>) -> Turn {
        let ended = catch_unwind(AssertUnwindSafe(|| act(self)));
        let end = match ended {
            Ok(Ok(())) => return Turn::Continue,
            Ok(Err(end)) => end,
            Err(panic) => {
                let what = panic_text(&*panic);
                tracing::error!(what, "a session's turn panicked");
                End::Refused(ErrorCode::Runtime, format!("the node failed inside: {what}"))
            }
        };
        match end {
            End::Closed => Turn::End,
            End::Refused(code, message) => {
                tracing::warn!(peer = self.link.peer(), message, "a session is refused");
                refuse(self.link.as_mut(), code, &message);
                Turn::End
            }
        }
    }

    fn work(&mut self, host: &mut Host<'_, B>) -> Result<(), End> {
        if self.link.wants_write() {
            self.link.flush()?;
        }
        let mut now = Instant::now();
        let deadline = now + TURN;
        loop {
            self.paused = self.link.queued_bytes() > UNREAD_BYTES_MAX;
            if self.paused && self.link.needs_drive() {
                // It may make room itself, and nobody else would tell.
                self.link.drive()?;
                self.paused = self.link.queued_bytes() > UNREAD_BYTES_MAX;
            }
            self.runnable = !self.paused;
            if self.paused {
                return Ok(());
            }
            if self.throttled.is_some_and(|until| now < until) {
                self.runnable = false;
                return Ok(self.link.drive()?);
            }
            self.throttled = None;
            if let Stage::Open(open) = &mut self.stage
                && let Some((tape, position)) = &mut open.tape
            {
                let mut outbox = LinkOutbox { link: self.link.as_mut(), failed: None };
                let before = host.executor.bytes_in();
                let done = host.executor.execute(
                    &mut open.session,
                    tape,
                    position,
                    open.records_at_once,
                    &mut outbox,
                );
                outbox.finish()?;
                let sent = host.executor.bytes_in() - before;
                if let Some(wait) = host.rate.take(sent, now) {
                    self.throttled = Some(now + wait);
                }
                done.map_err(|error| End::Refused(ErrorCode::Protocol, error.to_string()))?;
                if *position == tape.len() {
                    open.tape = None;
                }
                let before = std::mem::replace(&mut now, Instant::now());
                open.records_at_once = match now - before > TURN / 4 {
                    true => (open.records_at_once / 4).max(1),
                    false => (open.records_at_once * 2).min(RECORDS_AT_ONCE),
                };
                if now >= deadline {
                    return Ok(());
                }
                continue;
            }
            match self.link.poll()? {
                Some(frame) => self.frame(frame, host)?,
                None => {
                    if let Stage::Open(open) = &mut self.stage {
                        let mut outbox = LinkOutbox { link: self.link.as_mut(), failed: None };
                        host.executor.idle(&mut open.session, &mut outbox);
                        outbox.finish()?;
                    }
                    self.runnable = false;
                    return Ok(());
                }
            }
        }
    }

    fn frame(&mut self, frame: Frame, host: &mut Host<'_, B>) -> Result<(), End> {
        let open = match (&mut self.stage, frame.kind) {
            (Stage::Greeting, FrameKind::Hello) => {
                let hello = Hello::decode(&frame.body[..]).map_err(malformed)?;
                return self.greet(hello, host);
            }
            (Stage::Open(open), kind) if kind != FrameKind::Hello => open,
            (_, kind) => {
                let message = format!("a connection begins with one hello; {kind:?} came instead");
                return Err(End::Refused(ErrorCode::Protocol, message));
            }
        };
        match frame.kind {
            FrameKind::Tape => open.tape = Some((frame.body, 0)),
            FrameKind::Region => {
                let region = Region::decode(&frame.body[..]).map_err(malformed)?;
                let memory = frame.memory.expect("links give every region its memory");
                host.executor
                    .add_region(&mut open.session, region.id, memory)
                    .map_err(|error| End::Refused(ErrorCode::Protocol, error.to_string()))?;
            }
            FrameKind::StatusRequest => {
                let request = StatusRequest::decode(&frame.body[..]).map_err(malformed)?;
                let mut counters = host.executor.counters();
                let value = memory::resident_bytes();
                counters.push(Counter { name: "node.resident_bytes".to_owned(), value });
                let status = Status { token: request.token, counters, words: vec![] };
                self.link.post_send(FrameKind::Status, &[&status.encode_to_vec()], None)?;
            }
            FrameKind::Have => {
                let have = Have::decode(&frame.body[..]).map_err(malformed)?;
                let refused = |error: String| End::Refused(ErrorCode::Protocol, error);
                if have.wanted.len() > WANTED_MAX {
                    return Err(refused(format!("{} weights at once", have.wanted.len())));
                }
                let mut found = Vec::with_capacity(have.wanted.len());
                for wanted in &have.wanted {
                    let hash = WeightHash::try_from(&wanted.hash[..]).map_err(|_| {
                        refused("a weight's hash does not have 32 bytes".to_owned())
                    })?;
                    let id = StorageId(wanted.storage);
                    let bound =
                        host.executor.bind_if_stored(&mut open.session, id, wanted.bytes, &hash);
                    found.push(bound.map_err(|error| refused(error.to_string()))?);
                }
                let answer = HaveAnswer { token: have.token, found };
                self.link.post_send(FrameKind::HaveAnswer, &[&answer.encode_to_vec()], None)?;
            }
            FrameKind::WeightFetch => {
                let fetch = WeightFetch::decode(&frame.body[..]).map_err(malformed)?;
                let connection = host.connection;
                let begun = host.moves.fetch(&fetch, connection, &open.session, host.executor);
                match begun {
                    Ok((ask, fds)) => host.channel.post(ask, fds).map_err(|_| End::Closed)?,
                    Err(reason) => self.answer_fetch(fetch.token, Err(reason))?,
                }
            }
            kind => {
                let message = format!("a node does not take {kind:?} frames");
                return Err(End::Refused(ErrorCode::Protocol, message));
            }
        }
        Ok(())
    }

    fn greet(&mut self, hello: Hello, host: &mut Host<'_, B>) -> Result<(), End> {
        let facts = host.facts;
        let refuse = |code, message| Err(End::Refused(code, message));
        let Some(protocol) = common_version(hello.protocol) else {
            let message = format!(
                "this node ({}) speaks protocols {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}, the \
                 client ({}) speaks {}; install the same version of Genie on both sides",
                facts.software, hello.software, hello.protocol
            );
            return refuse(ErrorCode::Protocol, message);
        };
        if hello.identity.len() > STRING_BYTES_MAX {
            return refuse(ErrorCode::Protocol, "the client's identity is too long".to_owned());
        }
        if hello.device != host.device {
            let message = format!("this is device {}, not {}", host.device, hello.device);
            return refuse(ErrorCode::Value, message);
        }
        let settings = host.settings(&hello, &self.link.peer_identity());
        let session = match host.executor.open(settings) {
            Ok(session) => session,
            Err(failure) => return refuse(failure.code, failure.message),
        };
        let number = *host.next_session;
        *host.next_session += 1;
        tracing::info!(
            session = number,
            client = hello.software,
            pid = hello.pid,
            torch = hello.torch,
            "a session began"
        );
        self.stage = Stage::Open(Box::new(Open {
            session,
            number,
            tape: None,
            records_at_once: RECORDS_AT_ONCE,
        }));
        let welcome = Welcome {
            protocol,
            software: facts.software.clone(),
            torch: facts.torch.clone(),
            devices: facts.devices.clone(),
            ops: host.ops.to_vec(),
            session: number,
            pid: facts.pid,
            scripts: true,
            ..Welcome::default()
        };
        Ok(self.link.post_send(FrameKind::Welcome, &[&welcome.encode_to_vec()], None)?)
    }
}

/// Sends a session's answers at once.
struct LinkOutbox<'a> {
    link: &'a mut dyn Link,
    failed: Option<LinkError>,
}

impl Outbox for LinkOutbox<'_> {
    fn send(&mut self, kind: FrameKind, body: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.link.post_send(kind, &[body], None).err();
        }
    }

    fn payload(&mut self, region: u32, offset: u64, bytes: u64) {
        if self.failed.is_none() {
            self.failed = self.link.post_payload(region, offset, bytes).err();
        }
    }
}

impl LinkOutbox<'_> {
    fn finish(self) -> Result<(), End> {
        match self.failed {
            None => Ok(()),
            Some(error @ LinkError::OutOfCredit { .. }) => {
                Err(End::Refused(ErrorCode::Protocol, format!("answers are not read: {error}")))
            }
            Some(error) => Err(error.into()),
        }
    }
}

/// Tells the peer why it is left, if it still listens.
pub(super) fn refuse(link: &mut dyn Link, code: ErrorCode, message: &str) {
    let refusal = Refusal { code: code as u32, message: message.to_owned() };
    if let Err(error) = link.post_send(FrameKind::Refusal, &[&refusal.encode_to_vec()], None) {
        tracing::debug!(%error, "the peer does not take its refusal");
    }
}

fn malformed(error: prost::DecodeError) -> End {
    let message = genie_wire::WireError::from(error).to_string();
    End::Refused(ErrorCode::Protocol, message)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "panic",
    }
}
