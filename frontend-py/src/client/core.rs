//! What a session's lock protects: the tape, the link and the answers waited for.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use genie_transport::{Frame, Link, LinkError};
use genie_wire::control::{HaveAnswer, Refusal, Released, Status, TraceAnswer};
use genie_wire::frame::FrameKind;
use genie_wire::limits::SYMBOLS_MAX;
use genie_wire::record::MarkKind;
use genie_wire::{ErrorCode, Reply, StorageId, TapeWriter, WireError};
use prost::Message;

use crate::client::limits::{FLUSH_BYTES, FLUSH_OPS, QUEUE_BYTES_MAX, TRACE_BYTES_MAX};
use crate::client::linger::Sleeper;
use crate::client::session::Stage;
use crate::client::sights::Sights;
use crate::client::{ClientError, Counters};

/// Regions as the client numbers them.
pub(super) const UPLOAD_REGION: u32 = 0;
pub(super) const DOWNLOAD_REGION: u32 = 1;

/// What came for a token.
#[derive(Debug)]
pub(super) enum Answer {
    /// The body of a `Reply` frame.
    Reply(Vec<u8>),
    /// Which of the weights asked for are there.
    Have(Vec<bool>),
    Status(Status),
    /// The whole answer about the trace, or why there is none.
    Trace(Result<Vec<u8>, String>),
}

/// What an answer that nobody waits for any more still has to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leftover {
    Nothing,
    /// Give a slot of the download region back.
    Slot(u32),
    /// Free the storages that were bound to weights, the first of the question's being this.
    Held {
        first: u64,
    },
    /// Free the storages that a `Run` made from this id on.
    Run {
        first_new: u64,
    },
}

enum Token {
    Awaited,
    Arrived(Answer),
    Abandoned(Leftover),
}

pub(super) struct Core {
    pub tape: TapeWriter,
    pending_ops: u32,
    /// Frames of whole records that the link had no credit for.
    backlog: VecDeque<(FrameKind, Vec<u8>)>,
    /// `None` once the session was shut down.
    link: Option<Box<dyn Link>>,
    /// A descriptor of its own for the link's events, so that a waiting thread's outlives a close.
    pub event: Option<Arc<OwnedFd>>,
    tokens: HashMap<u64, Token>,
    /// What came so far of answers about the trace, by token.
    trace_parts: HashMap<u64, Vec<u8>>,
    next_token: u64,
    /// Upload bytes whose space may be used again, since the session began.
    pub released: u64,
    /// One bit a slot of the download region.
    pub busy_slots: u64,
    symbols: HashMap<Box<str>, u32>,
    pub sights: Sights,
    stage: Stage,
    /// Marks of entering, not written yet: what is left before an operator comes leaves no trace,
    /// so modules that compute elsewhere cost nothing.
    entering: Vec<(MarkKind, u32)>,
    /// Whether a thread polls the link for everyone.
    pub polling: bool,
    pub end: Option<ClientError>,
    pub sleeper: Sleeper,
    pub counters: Counters,
    /// Whom to name when the link ends.
    peer: String,
}

impl Core {
    pub fn new(link: Box<dyn Link>, event: OwnedFd, peer: String) -> Self {
        Core {
            tape: TapeWriter::new(),
            pending_ops: 0,
            backlog: VecDeque::new(),
            link: Some(link),
            event: Some(Arc::new(event)),
            tokens: HashMap::new(),
            trace_parts: HashMap::new(),
            next_token: 1,
            released: 0,
            busy_slots: 0,
            symbols: HashMap::new(),
            sights: Sights::default(),
            stage: Stage::Forward,
            entering: Vec::new(),
            polling: false,
            end: None,
            sleeper: Sleeper::default(),
            counters: Counters::default(),
            peer,
        }
    }

    /// Fails once the session is over.
    pub fn live(&self) -> Result<(), ClientError> {
        self.end.clone().map_or(Ok(()), Err)
    }

    /// Ends the session; the first reason stays.
    pub fn fail(&mut self, why: ClientError) {
        if self.end.is_none() {
            self.end = Some(why);
            self.tape.clear();
            self.backlog.clear();
        }
    }

    fn fail_link(&mut self, error: &LinkError) {
        let why = match error {
            LinkError::Closed => ClientError::lost(format!(
                "the host ({}) closed the connection or ended",
                self.peer
            )),
            error => {
                ClientError::lost(format!("the link to the host ({}) failed: {error}", self.peer))
            }
        };
        self.fail(why);
    }

    // The tape.

    pub fn op(
        &mut self,
        stage: Stage,
        template: u32,
        inputs: &[u64],
        scalars: &[u64],
        new: u64,
    ) -> u64 {
        if stage != self.stage || !self.entering.is_empty() {
            self.write_context(stage);
        }
        self.counters.ops += 1;
        self.pending_ops += 1;
        self.tape.op(genie_wire::TemplateId(template), inputs, scalars, new).0
    }

    /// Writes what changed around the program since the last operator.
    pub fn write_context(&mut self, stage: Stage) {
        for (kind, symbol) in std::mem::take(&mut self.entering) {
            self.tape.mark(kind, symbol);
            self.counters.marks += 1;
        }
        if stage != self.stage {
            self.stage = stage;
            if let Some(symbol) = self.symbol(stage.name()) {
                self.tape.mark(MarkKind::Stage, symbol);
                self.counters.marks += 1;
            }
        }
    }

    /// Notes a mark; a session that used up its symbols goes on without new ones.
    pub fn mark(&mut self, kind: MarkKind, text: &str) {
        let Some(symbol) = self.symbol(text) else { return };
        let entered_by = match kind {
            MarkKind::ModuleExit => MarkKind::ModuleEnter,
            MarkKind::PhaseExit => MarkKind::PhaseEnter,
            _ => return self.entering.push((kind, symbol)),
        };
        if self.entering.last() == Some(&(entered_by, symbol)) {
            self.entering.pop();
            return;
        }
        self.write_context(self.stage);
        self.tape.mark(kind, symbol);
        self.counters.marks += 1;
    }

    fn symbol(&mut self, text: &str) -> Option<u32> {
        if let Some(symbol) = self.symbols.get(text) {
            return Some(*symbol);
        }
        if self.symbols.len() >= SYMBOLS_MAX {
            return None;
        }
        let symbol = self.tape.symbol(text);
        self.symbols.insert(text.into(), symbol);
        Some(symbol)
    }

    /// Whether enough is pending for a frame.
    pub fn is_due(&self) -> bool {
        self.pending_ops >= FLUSH_OPS || self.tape.bytes().len() >= FLUSH_BYTES
    }

    /// Whether the host is so far behind that capturing should wait.
    pub fn is_congested(&self) -> bool {
        self.end.is_none()
            && (!self.backlog.is_empty()
                || self.link.as_ref().is_some_and(|link| link.queued_bytes() > QUEUE_BYTES_MAX))
    }

    // The link.

    /// Sends the pending records as far as the host takes them; never waits.
    pub fn send_tape(&mut self) {
        self.pending_ops = 0;
        if self.tape.bytes().is_empty() {
            return;
        }
        if self.end.is_some() {
            self.tape.clear();
            return;
        }
        self.counters.frames += 1;
        self.counters.tape_bytes += self.tape.bytes().len() as u64;
        if self.backlog.is_empty() {
            let Some(link) = &mut self.link else { return };
            match link.post_send(FrameKind::Tape, &[self.tape.bytes()], None) {
                Ok(()) => return self.tape.clear(),
                Err(LinkError::OutOfCredit { .. }) => {}
                Err(error) => return self.fail_link(&error),
            }
        }
        self.backlog.push_back((FrameKind::Tape, self.tape.take(Vec::new())));
    }

    /// Sends a control message behind the records before it.
    pub fn send_control(&mut self, kind: FrameKind, message: &impl Message) {
        self.send_tape();
        if self.end.is_none() {
            self.backlog.push_back((kind, message.encode_to_vec()));
            self.send_backlog();
        }
    }

    fn send_backlog(&mut self) {
        while let Some((kind, body)) = self.backlog.front() {
            let Some(link) = &mut self.link else { return };
            match link.post_send(*kind, &[body], None) {
                Ok(()) => drop(self.backlog.pop_front()),
                Err(LinkError::OutOfCredit { .. }) => return,
                Err(error) => return self.fail_link(&error),
            }
        }
    }

    pub fn wants_write(&self) -> bool {
        !self.backlog.is_empty() || self.link.as_ref().is_some_and(|link| link.wants_write())
    }

    /// Sends what is queued and takes in what arrived; never waits.
    pub fn pump(&mut self) {
        if self.end.is_some() {
            return;
        }
        self.push();
        while self.end.is_none() {
            let Some(link) = &mut self.link else { return };
            match link.poll() {
                Ok(Some(frame)) => {
                    if let Err(error) = self.accept(frame) {
                        self.fail(error);
                    }
                }
                Ok(None) => return,
                Err(error) => self.fail_link(&error),
            }
        }
    }

    /// Sends what is queued, as far as the host takes it.
    pub fn push(&mut self) {
        let Some(link) = &mut self.link else { return };
        if self.end.is_none() && link.wants_write() {
            // A host that is gone is reported by the receiving half, after its last words.
            match link.flush() {
                Ok(()) | Err(LinkError::OutOfCredit { .. } | LinkError::Closed) => {}
                Err(error) => return self.fail_link(&error),
            }
        }
        if self.end.is_none() {
            self.send_backlog();
        }
    }

    fn accept(&mut self, frame: Frame) -> Result<(), ClientError> {
        let malformed = |error: WireError| {
            ClientError::protocol(format!("the host sent a malformed message: {error}"))
        };
        let decode = |error: prost::DecodeError| malformed(error.into());
        match frame.kind {
            FrameKind::Reply => {
                let token = genie_wire::varint::Reader::new(&frame.body)
                    .varint("token")
                    .map_err(malformed)?;
                self.arrive(token, Answer::Reply(frame.body))
            }
            FrameKind::HaveAnswer => {
                let answer = HaveAnswer::decode(&*frame.body).map_err(decode)?;
                self.arrive(answer.token, Answer::Have(answer.found))
            }
            FrameKind::Status => {
                let status = Status::decode(&*frame.body).map_err(decode)?;
                self.arrive(status.token, Answer::Status(status))
            }
            FrameKind::TraceAnswer => {
                let answer = TraceAnswer::decode(&*frame.body).map_err(decode)?;
                self.trace_part(answer)
            }
            FrameKind::Released => {
                let released = Released::decode(&*frame.body).map_err(decode)?;
                if released.region == UPLOAD_REGION {
                    self.released += released.bytes;
                }
                Ok(())
            }
            FrameKind::Refusal => {
                let refusal = Refusal::decode(&*frame.body).map_err(decode)?;
                Err(self.refused(&refusal))
            }
            kind => Err(ClientError::protocol(format!("the host sent a {kind:?} frame"))),
        }
    }

    fn refused(&self, refusal: &Refusal) -> ClientError {
        let why = format!("the host ({}) ended the session: {}", self.peer, refusal.message);
        match ErrorCode::from_u8(refusal.code as u8) {
            Some(code) if code != ErrorCode::NodeLost => ClientError::new(code, why),
            _ => ClientError::lost(why),
        }
    }

    pub fn link_fd(&self) -> RawFd {
        self.link.as_ref().map_or(-1, |link| link.event_fd().as_raw_fd())
    }

    /// Closes the link; the session is over.
    pub fn drop_link(&mut self) {
        self.link = None;
    }

    /// An upload found its content on the node.
    pub fn count_bound(&mut self, bytes: u64) {
        self.counters.weights_bound += 1;
        self.counters.weight_bytes_saved += bytes;
    }

    // Tokens.

    /// A new token, to be waited for or abandoned.
    pub fn open_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.tokens.insert(token, Token::Awaited);
        token
    }

    /// Collects the parts of an answer about the trace.
    fn trace_part(&mut self, answer: TraceAnswer) -> Result<(), ClientError> {
        let (token, last) = (answer.token, answer.last);
        if !self.tokens.contains_key(&token) {
            let text = format!("the host answered token {token}, which nobody waits for");
            return Err(ClientError::protocol(text));
        }
        let parts = self.trace_parts.entry(token).or_default();
        parts.extend_from_slice(&answer.part);
        if parts.len() > TRACE_BYTES_MAX {
            let text = format!("the host's answer has more than {TRACE_BYTES_MAX} bytes");
            return Err(ClientError::protocol(text));
        }
        if !last {
            return Ok(());
        }
        let bytes = self.trace_parts.remove(&token).unwrap_or_default();
        let refused = !answer.refused.is_empty();
        let answer = if refused { Err(answer.refused) } else { Ok(bytes) };
        self.arrive(token, Answer::Trace(answer))
    }

    fn arrive(&mut self, token: u64, answer: Answer) -> Result<(), ClientError> {
        match self.tokens.get_mut(&token) {
            Some(entry @ Token::Awaited) => *entry = Token::Arrived(answer),
            Some(Token::Abandoned(leftover)) => {
                let leftover = *leftover;
                self.tokens.remove(&token);
                self.settle(leftover, &answer);
            }
            Some(Token::Arrived(_)) | None => {
                let text = format!("the host answered token {token}, which nobody waits for");
                return Err(ClientError::protocol(text));
            }
        }
        Ok(())
    }

    /// The answer, if it is there; takes it.
    pub fn take_answer(&mut self, token: u64) -> Option<Answer> {
        if !matches!(self.tokens.get(&token)?, Token::Arrived(_)) {
            return None;
        }
        match self.tokens.remove(&token)? {
            Token::Arrived(answer) => Some(answer),
            _ => None,
        }
    }

    /// Whether an answer is expected or waits to be taken.
    pub fn is_open(&self, token: u64) -> bool {
        self.tokens.contains_key(&token)
    }

    pub fn has_arrived(&self, token: u64) -> bool {
        matches!(self.tokens.get(&token), Some(Token::Arrived(_)) | None)
    }

    /// Nobody waits for the token any more; its late answer is dropped.
    pub fn abandon(&mut self, token: u64, leftover: Leftover) {
        match self.take_answer(token) {
            Some(answer) => self.settle(leftover, &answer),
            None => {
                if let Some(entry) = self.tokens.get_mut(&token) {
                    *entry = Token::Abandoned(leftover);
                }
            }
        }
    }

    fn settle(&mut self, leftover: Leftover, answer: &Answer) {
        match leftover {
            Leftover::Nothing => {}
            Leftover::Slot(slot) => self.busy_slots &= !(1 << slot),
            Leftover::Held { first } => {
                let Answer::Have(found) = answer else { return };
                for (id, _) in (first..).zip(found).filter(|(_, found)| **found) {
                    self.tape.free(StorageId(id));
                }
            }
            Leftover::Run { first_new } => {
                let Answer::Reply(body) = answer else { return };
                let Ok((_, Reply::Outputs { storage_bytes, .. })) = Reply::decode(body) else {
                    return;
                };
                for id in (first_new..).take(storage_bytes.len()) {
                    self.tape.free(StorageId(id));
                }
            }
        }
    }
}
