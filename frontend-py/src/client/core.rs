//! What a session's lock protects: the tape, the link and the answers waited for.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use genie_transport::{Frame, Link, LinkError};
use genie_wire::control::{HaveAnswer, Refusal, Released, Status, TraceAnswer};
use genie_wire::frame::FrameKind;
use genie_wire::limits::{
    STATUS_WAITING_MAX, STORAGES_MAX, STRING_BYTES_MAX, SYMBOLS_BYTES_MAX, SYMBOLS_MAX, TOKENS_MAX,
};
use genie_wire::record::MarkKind;
use genie_wire::{ErrorCode, Reply, StorageId, TapeWriter, WireError};
use prost::Message;

use crate::client::limits::{FLUSH_BYTES, FLUSH_OPS, QUEUE_BYTES_MAX, TRACE_BYTES_MAX};
use crate::client::linger::Sleeper;
use crate::client::marks::{Marks, this_thread};
use crate::client::script::{Noted, Recorder, Script};
use crate::client::session::{Settings, Stage};
use crate::client::sights::Sights;
use crate::client::{ClientError, Counters};

/// Regions as the client numbers them.
pub(super) const UPLOAD_REGION: u32 = 0;
pub(super) const DOWNLOAD_REGION: u32 = 1;

/// Instead of a storage's id: the session holds as many storages as it may.
pub const NO_ROOM: u64 = u64::MAX;

/// Bytes, and symbols, kept for the names of stages when a program's own use up the rest.
const STAGE_SYMBOLS_BYTES: usize = 32;

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
    /// Free the storages that a `Run` made from this id on, of those reserved for it.
    Run {
        first_new: u64,
        reserve: u64,
    },
}

enum Token {
    Awaited,
    Arrived(Answer),
    Abandoned(Leftover),
}

/// An answer about the trace, in parts.
#[derive(Default)]
struct TraceParts {
    bytes: Vec<u8>,
    too_long: bool,
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
    /// Tokens whose answers have not come, abandoned ones included, and those for a status of them.
    unanswered: usize,
    statuses_unanswered: usize,
    /// What came so far of answers about the trace, by token.
    trace_parts: HashMap<u64, TraceParts>,
    next_token: u64,
    /// Storages alive or reserved, as the host counts them.
    storages: u64,
    pub(super) storages_max: u64,
    /// The last fence, and the frames sent with it.
    last_fence: Option<(u64, u64)>,
    /// Upload bytes whose space may be used again, since the session began.
    pub released: u64,
    /// One bit a slot of the download region.
    pub busy_slots: u64,
    symbols: HashMap<Box<str>, u32>,
    symbol_bytes: usize,
    pub sights: Sights,
    stage: Stage,
    /// Hash and threads of the settings that the next operator would run under.
    settings: (u64, u32),
    /// Whether the other end takes records of settings.
    carries_settings: bool,
    /// Modules and phases that threads are in.
    marks: Marks,
    /// Notes that threads take, and what came of earlier ones, by handle.
    recorders: Vec<Recorder>,
    scripts: HashMap<u64, Script>,
    next_script: u64,
    /// Whether a thread polls the link for everyone.
    pub polling: bool,
    pub end: Option<ClientError>,
    pub sleeper: Sleeper,
    pub counters: Counters,
    /// Whom to name when the link ends.
    peer: String,
}

impl Core {
    /// The hello said `threads`; the welcome, whether the tape may hold settings.
    pub fn new(
        link: Box<dyn Link>,
        event: OwnedFd,
        peer: String,
        threads: u32,
        carries_settings: bool,
    ) -> Self {
        Core {
            tape: TapeWriter::new(),
            pending_ops: 0,
            backlog: VecDeque::new(),
            link: Some(link),
            event: Some(Arc::new(event)),
            tokens: HashMap::new(),
            unanswered: 0,
            statuses_unanswered: 0,
            trace_parts: HashMap::new(),
            next_token: 1,
            storages: 0,
            storages_max: STORAGES_MAX as u64,
            last_fence: None,
            released: 0,
            busy_slots: 0,
            symbols: HashMap::new(),
            symbol_bytes: 0,
            sights: Sights::default(),
            stage: Stage::Forward,
            settings: (0, threads),
            carries_settings,
            marks: Marks::default(),
            recorders: Vec::new(),
            scripts: HashMap::new(),
            next_script: 1,
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
            // Its thread ends.
            self.sleeper.wake();
        }
    }

    /// Gives back what the tables and buffers of a session that is over have grown to.
    pub fn shrink(&mut self) {
        self.tape.take(Vec::new());
        self.backlog = VecDeque::new();
        self.trace_parts = HashMap::new();
        self.symbols = HashMap::new();
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

    /// A send failed. What a host that closed the connection said last lies there unread.
    fn send_failed(&mut self, error: &LinkError) {
        let mut looked = false;
        while self.end.is_none() {
            match (error, &mut self.link) {
                (LinkError::Closed, Some(link)) => match link.poll() {
                    Ok(Some(frame)) => {
                        if let Err(error) = self.accept(frame) {
                            self.fail(error);
                        }
                    }
                    // A link may say so once without a look at its socket.
                    Ok(None) if !looked => looked = true,
                    Ok(None) | Err(_) => self.fail_link(error),
                },
                _ => self.fail_link(error),
            }
        }
    }

    // The tape.

    /// Counts storages that a record makes; `false` when the session may not hold so many.
    pub fn reserve_storages(&mut self, new: u64) -> bool {
        let fits = self.storages + new <= self.storages_max;
        if fits {
            self.storages += new;
        }
        fits
    }

    /// Takes storages off the count that were reserved and not made.
    pub fn unreserve_storages(&mut self, count: u64) {
        self.storages = self.storages.saturating_sub(count);
    }

    pub fn alloc(&mut self, bytes: u64) -> u64 {
        if !self.reserve_storages(1) {
            return NO_ROOM;
        }
        let id = self.tape.alloc(bytes).0;
        self.note(|notes| notes.alloc(id, bytes));
        id
    }

    pub fn free(&mut self, id: StorageId) {
        self.unreserve_storages(1);
        self.tape.free(id);
        self.note(|notes| notes.free(id.0));
    }

    /// The id of the first new storage, or [`NO_ROOM`].
    pub fn op(
        &mut self,
        stage: Stage,
        settings: Settings<'_>,
        template: u32,
        inputs: &[u64],
        scalars: &[u64],
        new: u64,
    ) -> u64 {
        if new > 0 && !self.reserve_storages(new) {
            return NO_ROOM;
        }
        if stage != self.stage
            || settings.key() != self.settings
            || self.marks.differ(this_thread(), stage)
        {
            self.write_context(stage, settings);
        }
        self.counters.ops += 1;
        self.pending_ops += 1;
        let template = genie_wire::TemplateId(template);
        let first = self.tape.op(template, inputs, scalars, new).0;
        if !self.recorders.is_empty() {
            self.note(|notes| notes.op(template, inputs, scalars, first, new));
        }
        first
    }

    pub fn resize(&mut self, id: u64, bytes: u64) {
        self.tape.resize(StorageId(id), bytes);
        self.note(|notes| notes.resize(id, bytes));
    }

    pub fn define(&mut self, encoded: &[u8]) -> u32 {
        let id = self.tape.define(encoded).0;
        self.note(|_| {});
        id
    }

    pub fn write_mark(&mut self, kind: MarkKind, symbol: u32) {
        self.tape.mark(kind, symbol);
        self.counters.marks += 1;
        self.note(|notes| notes.mark(kind, symbol));
    }

    // Scripts.

    /// A record was appended: whoever takes notes knows of it, and the thread's own notes keep it.
    fn note(&mut self, keep: impl FnOnce(&mut Recorder)) {
        if self.recorders.is_empty() {
            return;
        }
        for notes in &mut self.recorders {
            notes.accounted += 1;
        }
        self.with_notes(keep);
    }

    fn with_notes(&mut self, keep: impl FnOnce(&mut Recorder)) {
        let thread = std::thread::current().id();
        if let Some(notes) = self.recorders.iter_mut().find(|notes| notes.is_of(thread)) {
            keep(notes);
        }
    }

    /// The bytes of a storage that was made.
    pub fn weigh(&mut self, id: u64, bytes: u64) {
        if !self.recorders.is_empty() {
            self.with_notes(|notes| notes.weigh(id, bytes));
        }
    }

    /// A record of an upload was appended, which writes all or part of a storage.
    pub fn note_upload(&mut self, id: u64, whole: bool) {
        self.note(|notes| notes.upload(id, whole));
    }

    /// A storage got its content without a record.
    pub fn note_bound(&mut self, id: u64) {
        self.with_notes(|notes| notes.upload(id, true));
    }

    /// Begins to note what this thread appends; false while it does so already.
    pub fn begin_script(
        &mut self,
        stage: Stage,
        settings: Settings<'_>,
        externals: &[u64],
    ) -> bool {
        let thread = std::thread::current().id();
        if self.end.is_some() || self.recorders.iter().any(|notes| notes.is_of(thread)) {
            return false;
        }
        self.write_context(stage, settings);
        self.recorders.push(Recorder::new(thread, externals, self.tape.records()));
        true
    }

    /// Ends this thread's notes; `outputs` are the storages that live on.
    pub fn end_script(&mut self, outputs: &[u64]) -> Result<Noted, &'static str> {
        let thread = std::thread::current().id();
        let found = self.recorders.iter().position(|notes| notes.is_of(thread));
        let notes = self.recorders.swap_remove(found.ok_or("nothing was noted")?);
        if self.marks.differ(this_thread(), self.stage) {
            return Err("a module is entered and not left");
        }
        let (script, noted) = notes.finish(self.tape.records(), outputs)?;
        let handle = self.next_script;
        self.next_script += 1;
        self.scripts.insert(handle, script);
        Ok(Noted { handle, ..noted })
    }

    pub fn is_recording(&self) -> bool {
        !self.recorders.is_empty()
    }

    /// Ends this thread's notes, which are of no use.
    pub fn abandon_script(&mut self) {
        let thread = std::thread::current().id();
        self.recorders.retain(|notes| !notes.is_of(thread));
    }

    pub fn drop_script(&mut self, handle: u64) {
        self.scripts.remove(&handle);
    }

    /// Runs a script, which is defined at its first run. `frees` as in [`TapeWriter::run_script`].
    /// Returns the id of the first storage it makes and the bytes it takes meanwhile.
    pub fn run_script(
        &mut self,
        stage: Stage,
        settings: Settings<'_>,
        handle: u64,
        externals: &[u64],
        frees: &[bool],
    ) -> Option<(u64, u64)> {
        let script = self.scripts.get(&handle)?;
        if script.externals != externals.len() as u64 || script.frees.len() != frees.len() {
            return None;
        }
        let (made, inside) = (script.made, script.made - script.lasting);
        if !self.reserve_storages(made) {
            return None;
        }
        if stage != self.stage
            || settings.key() != self.settings
            || self.marks.differ(this_thread(), stage)
        {
            self.write_context(stage, settings);
        }
        self.unreserve_storages(inside + frees.iter().filter(|free| **free).count() as u64);
        let script = self.scripts.get_mut(&handle)?;
        let number = match script.defined {
            Some(number) => number,
            None => {
                self.counters.scripts += 1;
                let body = std::mem::take(&mut script.body);
                *script.defined.insert(self.tape.define_script(script.externals, &body))
            }
        };
        let first = self.tape.run_script(number, externals, frees, script.made);
        self.counters.script_runs += 1;
        self.counters.ops += script.ops;
        self.pending_ops = self.pending_ops.saturating_add(script.steps);
        Some((first.0, script.peak_bytes))
    }

    pub fn forget_templates(&mut self) {
        self.tape.forget_templates();
        self.scripts.clear();
    }

    /// Writes what changed around the program since the last operator.
    pub fn write_context(&mut self, stage: Stage, settings: Settings<'_>) {
        if settings.key() != self.settings {
            self.settings = settings.key();
            if self.carries_settings {
                self.tape.settings(settings.threads, settings.bytes);
            }
        }
        self.write_marks(stage);
    }

    fn write_marks(&mut self, stage: Stage) {
        let mut marks = std::mem::take(&mut self.marks);
        marks.write(this_thread(), stage, |(kind, symbol)| self.write_mark(kind, symbol));
        self.marks = marks;
        if stage != self.stage {
            self.stage = stage;
            if let Some(symbol) = self.symbol(stage.name(), 0) {
                self.write_mark(MarkKind::Stage, symbol);
            }
        }
    }

    /// Notes a mark; a session that used up its symbols goes on without new ones.
    pub fn mark(&mut self, kind: MarkKind, text: &str) {
        // A name is for people: its beginning will do.
        let text = &text[..text.floor_char_boundary(STRING_BYTES_MAX)];
        let Some(symbol) = self.symbol(text, STAGE_SYMBOLS_BYTES) else { return };
        match kind {
            MarkKind::ModuleExit | MarkKind::PhaseExit => {
                if let Some((kind, symbol)) = self.marks.leave(this_thread(), (kind, symbol)) {
                    self.write_mark(kind, symbol);
                }
            }
            _ => self.marks.enter(this_thread(), (kind, symbol)),
        }
    }

    /// `spare` bytes, and as many symbols, are left for others.
    fn symbol(&mut self, text: &str, spare: usize) -> Option<u32> {
        if let Some(symbol) = self.symbols.get(text) {
            return Some(*symbol);
        }
        if self.symbols.len() + spare >= SYMBOLS_MAX
            || self.symbol_bytes + text.len() + spare > SYMBOLS_BYTES_MAX
        {
            return None;
        }
        self.symbol_bytes += text.len();
        let symbol = self.tape.symbol(text);
        self.note(|_| {});
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
                Err(error) => return self.send_failed(&error),
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
                Err(error) => return self.send_failed(&error),
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
                self.statuses_unanswered = self.statuses_unanswered.saturating_sub(1);
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

    /// Whether the host takes another question: it bounds those without an answer.
    pub fn may_ask(&self) -> bool {
        self.unanswered < TOKENS_MAX
    }

    pub fn may_ask_for_status(&self) -> bool {
        self.may_ask() && self.statuses_unanswered < STATUS_WAITING_MAX
    }

    /// A new token, to be waited for or abandoned. Only when [`Core::may_ask`] says so.
    pub fn open_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.unanswered += 1;
        self.tokens.insert(token, Token::Awaited);
        token
    }

    /// As [`Core::open_token`], when [`Core::may_ask_for_status`] says so.
    pub fn open_status_token(&mut self) -> u64 {
        self.statuses_unanswered += 1;
        self.open_token()
    }

    /// Puts a fence behind everything so far.
    pub fn fence(&mut self) -> u64 {
        let token = self.open_token();
        self.tape.fence(token);
        self.send_tape();
        self.last_fence = Some((token, self.counters.frames));
        token
    }

    /// Whether everything so far is known to have been done; asks the node when nobody did since.
    pub fn is_idle(&mut self) -> bool {
        let now = self.tape.bytes().is_empty().then_some(self.counters.frames);
        let token = match self.last_fence {
            Some((token, frames)) if now == Some(frames) => token,
            _ if !self.may_ask() => return false,
            _ => {
                let token = self.fence();
                self.abandon(token, Leftover::Nothing);
                self.pump();
                token
            }
        };
        self.has_arrived(token)
    }

    /// Collects the parts of an answer about the trace.
    fn trace_part(&mut self, answer: TraceAnswer) -> Result<(), ClientError> {
        let (token, last) = (answer.token, answer.last);
        if !self.tokens.contains_key(&token) {
            let text = format!("the host answered token {token}, which nobody waits for");
            return Err(ClientError::protocol(text));
        }
        let parts = self.trace_parts.entry(token).or_default();
        if parts.bytes.len() + answer.part.len() > TRACE_BYTES_MAX {
            *parts = TraceParts { bytes: Vec::new(), too_long: true };
        }
        if !parts.too_long {
            parts.bytes.extend_from_slice(&answer.part);
        }
        if !last {
            return Ok(());
        }
        let TraceParts { bytes, too_long } = self.trace_parts.remove(&token).unwrap_or_default();
        let answer = match (answer.refused, too_long) {
            (_, true) => Err(format!(
                "the answer has more than {TRACE_BYTES_MAX} bytes; call genie.reset_trace() and \
                 trace less of the program"
            )),
            (refused, false) if !refused.is_empty() => Err(refused),
            _ => Ok(bytes),
        };
        self.arrive(token, Answer::Trace(answer))
    }

    fn arrive(&mut self, token: u64, answer: Answer) -> Result<(), ClientError> {
        match self.tokens.get_mut(&token) {
            Some(entry @ Token::Awaited) => {
                self.unanswered -= 1;
                *entry = Token::Arrived(answer);
            }
            Some(Token::Abandoned(leftover)) => {
                let leftover = *leftover;
                self.unanswered -= 1;
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

    /// The body of a reply, if it is there; leaves it there. Empty for a token that is not open.
    pub fn reply_of(&self, token: u64) -> Option<Vec<u8>> {
        match self.tokens.get(&token) {
            Some(Token::Arrived(Answer::Reply(body))) => Some(body.clone()),
            Some(Token::Awaited) => None,
            _ => Some(Vec::new()),
        }
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
                for (id, found) in (first..).zip(found) {
                    match found {
                        true => self.free(StorageId(id)),
                        false => self.unreserve_storages(1),
                    }
                }
            }
            Leftover::Run { first_new, reserve } => {
                let made = match answer {
                    Answer::Reply(body) => made_by_run(body),
                    _ => 0,
                };
                self.unreserve_storages(reserve.saturating_sub(made));
                for id in (first_new..).take(made as usize) {
                    self.free(StorageId(id));
                }
            }
        }
    }
}

/// How many storages the `Run` answered by this reply made.
pub(super) fn made_by_run(body: &[u8]) -> u64 {
    match Reply::decode(body) {
        Ok((_, Reply::Outputs { storage_bytes, .. })) => storage_bytes.len() as u64,
        _ => 0,
    }
}
