//! A session and everything the program may ask of it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_wire::control::{Status, StatusRequest, TraceQuestion, TraceRequest, Welcome};
use genie_wire::frame::FrameKind;
use genie_wire::limits::GENERATOR_STATE_BYTES_MAX;
use genie_wire::record::MarkKind;
use genie_wire::{ErrorCode, PROTOCOL_SETTINGS, Reply, StorageId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::core::{Answer, Core, Leftover, made_by_run};
use crate::client::counters::Memory;
use crate::client::limits::{FREE_AT_ONCE_BYTES, WAIT_SLICE};
use crate::client::transfer::{Download, UploadRing};
use crate::client::{ClientError, Counters, Hooks, MemoryUse, Noted, Pause};

/// Which part of a training step records belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    #[default]
    Forward,
    Backward,
    Optimizer,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Optimizer => "optimizer",
        }
    }
}

/// PyTorch's settings that an operator is captured under.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings<'a> {
    /// Of `bytes`; 0 for none.
    pub hash: u64,
    /// CPU threads an operator uses.
    pub threads: u32,
    /// Those that are not PyTorch's own, as [`genie_wire::Record::Settings`] has them.
    pub bytes: &'a [u8],
}

impl Settings<'_> {
    pub(super) fn key(&self) -> (u64, u32) {
        (self.hash, self.threads)
    }
}

/// One session. Every method may be called from any thread, with or without the interpreter.
pub struct Session {
    /// Tells it from every other of this process.
    pub(super) serial: u64,
    pub(super) hooks: &'static Hooks,
    core: Mutex<Core>,
    /// Signalled when answers, credits or an end came in.
    changed: Condvar,
    live: AtomicBool,
    /// Whether a thread takes notes for a script.
    recording: AtomicBool,
    pub(super) upload: Mutex<UploadRing>,
    pub(super) download: Mutex<Download>,
    memory: Memory,
    welcome: Welcome,
    /// The node's operators, by schema hash, sorted; shared with sessions that found the same.
    ops: Arc<[u64]>,
}

impl Session {
    pub(super) fn assemble(
        core: Core,
        mut welcome: Welcome,
        upload: UploadRing,
        download: Download,
        hooks: &'static Hooks,
    ) -> Self {
        let mut ops = std::mem::take(&mut welcome.ops);
        ops.sort_unstable();
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Session {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            ops: shared(ops),
            hooks,
            core: Mutex::new(core),
            changed: Condvar::new(),
            live: AtomicBool::new(true),
            recording: AtomicBool::new(false),
            upload: Mutex::new(upload),
            download: Mutex::new(download),
            memory: Memory::default(),
            welcome,
        }
    }

    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    pub fn node_has_op(&self, schema_hash: u64) -> bool {
        self.ops.binary_search(&schema_hash).is_ok()
    }

    /// Operators that the node runs.
    pub fn op_count(&self) -> usize {
        self.ops.len()
    }

    /// Whether the session can still be used, as far as is known without asking.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Whether host and node take settings other than PyTorch's own.
    pub fn carries_settings(&self) -> bool {
        self.welcome.protocol >= PROTOCOL_SETTINGS
    }

    /// Why the session is over, if it is.
    pub fn end(&self) -> Option<ClientError> {
        self.lock().end.clone()
    }

    /// Descriptors of the link, for a forked child to close; -1 for none.
    pub fn descriptors(&self) -> [RawFd; 2] {
        let core = self.lock();
        [core.link_fd(), core.event.as_ref().map_or(-1, |event| event.as_raw_fd())]
    }

    pub fn counters(&self) -> Counters {
        let core = self.lock();
        Counters { records: core.tape.records(), ..core.counters }
    }

    pub fn memory(&self) -> MemoryUse {
        self.memory.read()
    }

    pub fn reset_peak_memory(&self) {
        self.memory.reset_peak();
    }

    pub fn reset_accumulated_memory(&self) {
        self.memory.reset_accumulated();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // Nothing under the lock can panic halfway through a record except by a bug here.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread polls the link.
    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        self.lock().polling
    }

    // Records. None waits for an answer.

    pub fn define(&self, encoded: &[u8]) -> u32 {
        self.append(|core| core.define(encoded))
    }

    /// Forgets every template and script, here and on the node.
    pub fn forget_templates(&self) {
        self.append(Core::forget_templates);
    }

    /// Appends an operator; returns the id of its first new storage, or `NO_ROOM`.
    #[inline]
    pub fn op(
        &self,
        stage: Stage,
        settings: Settings<'_>,
        template: u32,
        inputs: &[u64],
        scalars: &[u64],
        new: u64,
    ) -> u64 {
        self.append(|core| core.op(stage, settings, template, inputs, scalars, new))
    }

    /// Appends a storage; returns its id, or `NO_ROOM`.
    pub fn alloc(&self, bytes: u64) -> u64 {
        self.append(|core| core.alloc(bytes))
    }

    pub fn resize(&self, id: u64, old_bytes: u64, new_bytes: u64) {
        self.memory.resize(old_bytes, new_bytes);
        self.append(|core| core.resize(id, new_bytes));
    }

    pub fn note_new(&self, id: u64, bytes: u64) {
        self.memory.add(bytes);
        if self.recording.load(Ordering::Relaxed) {
            self.lock().weigh(id, bytes);
        }
    }

    // Scripts.

    /// Begins to note what this thread appends, on these storages of the program. False when host
    /// and node know no scripts, or while the thread does so already.
    pub fn begin_script(&self, stage: Stage, settings: Settings<'_>, externals: &[u64]) -> bool {
        let began = self.welcome.scripts && self.lock().begin_script(stage, settings, externals);
        if began {
            self.recording.store(true, Ordering::Relaxed);
        }
        began
    }

    /// Ends the notes; `outputs` are the storages that live on. An error says why they make no
    /// script.
    pub fn end_script(&self, outputs: &[u64]) -> Result<Noted, &'static str> {
        let mut core = self.lock();
        let noted = core.end_script(outputs);
        self.recording.store(core.is_recording(), Ordering::Relaxed);
        noted
    }

    /// Ends the notes without a script.
    pub fn abandon_script(&self) {
        let mut core = self.lock();
        core.abandon_script();
        self.recording.store(core.is_recording(), Ordering::Relaxed);
    }

    /// The script is not run any more.
    pub fn drop_script(&self, handle: u64) {
        self.lock().drop_script(handle);
    }

    /// Runs a script; returns the id of the first storage it makes, or none if it was forgotten.
    pub fn run_script(
        &self,
        stage: Stage,
        settings: Settings<'_>,
        handle: u64,
        externals: &[u64],
        frees: &[bool],
    ) -> Option<u64> {
        let run = |core: &mut Core| core.run_script(stage, settings, handle, externals, frees);
        let (first, peak_bytes) = self.append(run)?;
        self.memory.touch(peak_bytes);
        Some(first)
    }

    /// Drops a storage. Never waits: called from destructors.
    pub fn free(&self, id: u64, bytes: u64) {
        self.memory.remove(bytes);
        let mut core = self.lock();
        if core.end.is_none() {
            core.free(StorageId(id));
            core.sleeper.wake();
            if core.is_due() || bytes >= FREE_AT_ONCE_BYTES {
                core.send_tape();
            }
        }
    }

    pub fn seed(&self, seed: u64) {
        self.append(|core| core.tape.seed(seed));
    }

    pub fn set_generator_state(&self, state: &[u8]) -> Result<(), ClientError> {
        if state.len() > GENERATOR_STATE_BYTES_MAX {
            let text = format!(
                "a generator state of {} bytes is not one of this device (at most {} bytes)",
                state.len(),
                GENERATOR_STATE_BYTES_MAX
            );
            return Err(ClientError::new(ErrorCode::Runtime, text));
        }
        self.append(|core| core.tape.set_generator_state(state));
        self.lock().live()
    }

    pub fn mark(&self, kind: MarkKind, text: &str) {
        self.append(|core| {
            if core.end.is_none() {
                core.mark(kind, text);
            }
        });
    }

    /// Sends what is pending; never waits.
    pub fn flush(&self) {
        self.lock().send_tape();
    }

    /// Appends a record and sends the pending ones when they are due. Waits a bounded time for a
    /// host that is far behind.
    #[inline]
    fn append<T>(&self, record: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.lock();
        let result = record(&mut core);
        core.sleeper.wake();
        if core.is_due() {
            core.send_tape();
            if core.is_congested() {
                self.wait_for_room(core);
            } else if core.end.is_some() {
                self.live.store(false, Ordering::Release);
            }
        }
        result
    }

    #[cold]
    fn wait_for_room(&self, mut core: MutexGuard<'_, Core>) {
        core.counters.stalls += 1;
        drop(core);
        let mut pause = Pause::brief(self.hooks);
        // Giving up early lets the queue grow by one flush; a lost session is for reads to report.
        let _ = self.wait(&mut pause, None, |core| (!core.is_congested()).then_some(()));
    }

    // Questions.

    /// Waits until everything before has been executed.
    pub fn synchronize(&self) -> Result<(), ClientError> {
        let token = self.fence()?;
        let waited = self.wait_fence(token);
        self.drop_fence(token);
        waited.map(drop)
    }

    /// Puts a fence on the tape, for [`Session::is_reached`] and [`Session::wait_fence`], until
    /// [`Session::drop_fence`]. Waits while very many have not been reached.
    pub fn fence(&self) -> Result<u64, ClientError> {
        match self.lock_to_ask(Core::may_ask, None) {
            Ok(mut core) => Ok(core.fence()),
            Err(error) if error.is_interrupt() => Err(error),
            // When the session is over, the wait for the fence says so.
            Err(_) => Ok(self.lock().fence()),
        }
    }

    /// The lock, once the host takes another question; the session is alive then.
    pub(super) fn lock_to_ask(
        &self,
        may_ask: fn(&Core) -> bool,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'_, Core>, ClientError> {
        loop {
            let core = self.lock();
            core.live()?;
            if may_ask(&core) {
                return Ok(core);
            }
            drop(core);
            let mut pause = Pause::new(self.hooks);
            self.wait(&mut pause, deadline, |core| may_ask(core).then_some(()))?;
        }
    }

    /// Whether the device reached a fence (or the session is over).
    pub fn is_reached(&self, token: u64) -> bool {
        let mut core = self.lock();
        core.pump();
        core.has_arrived(token) || core.end.is_some()
    }

    /// Waits for a fence, as often and by as many threads as like. The node's clock in
    /// nanoseconds when it was reached, if the node tells.
    pub fn wait_fence(&self, token: u64) -> Result<Option<u64>, ClientError> {
        let mut pause = Pause::new(self.hooks);
        self.lock().counters.round_trips += 1;
        let body = self.wait(&mut pause, None, |core| core.reply_of(token))?;
        if body.is_empty() {
            return Ok(None);
        }
        match check_reply(&body).map_err(|error| self.noting_loss(error))? {
            Reply::Done => Ok(None),
            Reply::Reached { at_ns } => Ok(Some(at_ns)),
            other => Err(unexpected(&other)),
        }
    }

    pub fn drop_fence(&self, token: u64) {
        self.lock().abandon(token, Leftover::Nothing);
    }

    /// Whether the device has done everything asked of it (or the session is over). Never waits:
    /// the first question after new work asks the node, later ones look for the answer.
    pub fn is_idle(&self) -> bool {
        let mut core = self.lock();
        core.pump();
        core.end.is_some() || core.is_idle()
    }

    pub fn generator_state(&self) -> Result<Vec<u8>, ClientError> {
        let token = {
            let mut core = self.lock_to_ask(Core::may_ask, None)?;
            let token = core.open_token();
            core.tape.get_generator_state(token);
            core.send_tape();
            token
        };
        self.reply(token, Leftover::Nothing, |reply| match reply {
            Reply::Bytes(bytes) => Some(bytes.to_vec()),
            _ => None,
        })
    }

    /// Runs an operator whose outputs are not known before; `use_outputs` gets the first
    /// id of its storages and the body of [`Reply::Outputs`] without token and kind.
    pub fn run(
        &self,
        stage: Stage,
        settings: Settings<'_>,
        encoded: &[u8],
        inputs: &[u64],
        scalars: &[u64],
        reserve: u64,
        use_outputs: impl FnOnce(u64, &[u8]),
    ) -> Result<(), ClientError> {
        let (token, first_new) = {
            let mut core = self.lock_to_ask(Core::may_ask, None)?;
            if !core.reserve_storages(reserve) {
                let text = "the session holds as many storages as it may: free tensors that are \
                            not used any more";
                return Err(ClientError::new(ErrorCode::OutOfMemory, text));
            }
            core.write_context(stage, settings);
            let token = core.open_token();
            let first_new = core.tape.run(token, encoded, inputs, scalars, reserve).0;
            core.counters.runs += 1;
            core.send_tape();
            (token, first_new)
        };
        let body = self.reply_body(token, Leftover::Run { first_new, reserve })?;
        self.lock().unreserve_storages(reserve.saturating_sub(made_by_run(&body)));
        match check_reply(&body).map_err(|error| self.noting_loss(error))? {
            Reply::Outputs { .. } => {
                use_outputs(first_new, after_token_and_kind(&body));
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Counters and facts of the host and the node.
    pub fn status(&self, timeout: Duration) -> Result<Status, ClientError> {
        let deadline = Some(Instant::now() + timeout);
        let token = {
            let mut core = self.lock_to_ask(Core::may_ask_for_status, deadline)?;
            let token = core.open_status_token();
            core.send_control(FrameKind::StatusRequest, &StatusRequest { token });
            token
        };
        match self.answer(token, Leftover::Nothing, deadline)? {
            Answer::Status(status) => Ok(status),
            _ => Err(ClientError::protocol("the host answered a status request with a reply")),
        }
    }

    /// Asks the host about what the session ran; see [`TraceQuestion`] for the answers.
    pub fn trace(
        &self,
        question: TraceQuestion,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let deadline = Some(Instant::now() + timeout);
        let token = {
            let mut core = self.lock_to_ask(Core::may_ask, deadline)?;
            core.send_tape();
            let token = core.open_token();
            let request = TraceRequest { token, question: question as i32 };
            core.send_control(FrameKind::TraceRequest, &request);
            token
        };
        match self.answer(token, Leftover::Nothing, deadline)? {
            Answer::Trace(answer) => {
                answer.map_err(|why| ClientError::new(ErrorCode::Runtime, why))
            }
            _ => Err(ClientError::protocol("the host answered a question with a reply")),
        }
    }

    /// Ends the session: sends what is pending, then closes the link. Waits for nobody.
    ///
    /// What stays of it is small: threads in the middle of a call may still look at it, so it is never
    /// freed, and a program may have many after each other.
    pub fn close(&self) {
        let mut core = self.lock();
        core.send_tape();
        core.pump();
        core.fail(ClientError::lost("the session was shut down"));
        // The link stays until the process ends or the socket is shut down for good: another
        // thread may be polling it.
        if let Some(event) = core.event.take() {
            let _ = rustix::net::shutdown(&event, rustix::net::Shutdown::Both);
        }
        core.drop_link();
        core.shrink();
        drop(core);
        self.live.store(false, Ordering::Release);
        self.changed.notify_all();
        let mut pause = Pause::new(self.hooks);
        pause.enter();
        lock(&self.upload).close();
        lock(&self.download).close();
    }

    // Waiting.

    /// Waits for a reply and picks what it must be.
    pub(super) fn reply<T>(
        &self,
        token: u64,
        leftover: Leftover,
        pick: impl FnOnce(&Reply) -> Option<T>,
    ) -> Result<T, ClientError> {
        let body = self.reply_body(token, leftover)?;
        let reply = check_reply(&body).map_err(|error| self.noting_loss(error))?;
        pick(&reply).ok_or_else(|| unexpected(&reply))
    }

    fn reply_body(&self, token: u64, leftover: Leftover) -> Result<Vec<u8>, ClientError> {
        self.lock().counters.round_trips += 1;
        match self.answer(token, leftover, None)? {
            Answer::Reply(body) => Ok(body),
            _ => Err(ClientError::protocol("the host answered a record with a control message")),
        }
    }

    /// A reply that says that the node is gone ends the session, like a closed link.
    pub(super) fn noting_loss(&self, error: ClientError) -> ClientError {
        if error.code == ErrorCode::NodeLost as u8 {
            self.lock().fail(error.clone());
            self.live.store(false, Ordering::Release);
            self.changed.notify_all();
        }
        error
    }

    pub(super) fn answer(
        &self,
        token: u64,
        leftover: Leftover,
        deadline: Option<Instant>,
    ) -> Result<Answer, ClientError> {
        let mut pause = Pause::new(self.hooks);
        self.answer_paused(token, leftover, deadline, &mut pause)
    }

    pub(super) fn answer_paused(
        &self,
        token: u64,
        leftover: Leftover,
        deadline: Option<Instant>,
        pause: &mut Pause,
    ) -> Result<Answer, ClientError> {
        let answer = self.wait(pause, deadline, |core| core.take_answer(token));
        if answer.is_err() {
            self.lock().abandon(token, leftover);
        }
        answer
    }

    /// Waits until `ready` returns something, the session ends, a signal handler raises or the
    /// deadline passes (a `Runtime` error). One waiting thread polls the link for all.
    pub(super) fn wait<T>(
        &self,
        pause: &mut Pause,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut Core) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut core = self.lock();
        core.pump();
        if let Some(result) = ready(&mut core) {
            return Ok(result);
        }
        drop(core);
        pause.enter();
        let mut core = self.lock();
        loop {
            if let Some(result) = ready(&mut core) {
                return Ok(result);
            }
            if let Some(end) = &core.end {
                self.live.store(false, Ordering::Release);
                return Err(end.clone());
            }
            let slice = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => {
                    return Err(ClientError::new(
                        ErrorCode::Runtime,
                        "the host did not answer in time",
                    ));
                }
                Some(left) => left.min(WAIT_SLICE),
                None => WAIT_SLICE,
            };
            let look_for_signals;
            (core, look_for_signals) = if core.polling {
                self.wait_for_poller(core, slice)
            } else {
                self.poll_for_all(core, slice)
            };
            if look_for_signals {
                drop(core);
                pause.check()?;
                core = self.lock();
            }
        }
    }

    /// Waits while another thread polls. Returns whether it is time to look for signals.
    fn wait_for_poller<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        slice: Duration,
    ) -> (MutexGuard<'a, Core>, bool) {
        // The poller may look for input only: what this thread queued must leave all the same.
        core.push();
        let (core, timeout) =
            self.changed.wait_timeout(core, slice).unwrap_or_else(PoisonError::into_inner);
        (core, timeout.timed_out())
    }

    fn poll_for_all<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        slice: Duration,
    ) -> (MutexGuard<'a, Core>, bool) {
        let Some(event) = core.event.clone() else {
            return (core, true);
        };
        let write = if core.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
        core.polling = true;
        drop(core);
        let timeout = Timespec { tv_sec: 0, tv_nsec: slice.as_nanos() as i64 };
        let polled = poll(&mut [PollFd::new(&*event, PollFlags::IN | write)], Some(&timeout));
        let mut core = self.lock();
        core.polling = false;
        core.pump();
        self.changed.notify_all();
        // Nothing came, or a signal did.
        (core, !matches!(polled, Ok(1..)))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decodes a reply; an error reply becomes the error it carries.
/// The list of operators that the last session found, if this is the same: a closed session keeps it.
fn shared(ops: Vec<u64>) -> Arc<[u64]> {
    static LAST: Mutex<Option<Arc<[u64]>>> = Mutex::new(None);
    let mut last = lock(&LAST);
    match &*last {
        Some(known) if **known == *ops => known.clone(),
        _ => last.insert(ops.into()).clone(),
    }
}

fn check_reply(body: &[u8]) -> Result<Reply<'_>, ClientError> {
    match Reply::decode(body) {
        Ok((_, Reply::Error { code: ErrorCode::NodeLost, message })) => {
            Err(ClientError::lost(message.trim_end_matches('.')))
        }
        Ok((_, Reply::Error { code, message })) => Err(ClientError::new(code, message)),
        Ok((_, reply)) => Ok(reply),
        Err(error) => {
            Err(ClientError::protocol(format!("the host sent a malformed reply: {error}")))
        }
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    let kind = match reply {
        Reply::Done | Reply::Reached { .. } => "an acknowledgement",
        Reply::Bytes(_) => "bytes of another length",
        Reply::Outputs { .. } => "outputs",
        Reply::Error { .. } => "an error",
    };
    ClientError::protocol(format!("the host answered with {kind}, which does not fit the question"))
}

/// The rest of a decoded `Outputs` reply.
fn after_token_and_kind(body: &[u8]) -> &[u8] {
    let token_bytes = body.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    &body[token_bytes + 1..]
}

/// Checks the answer to a step of a download.
pub(super) fn done(body: &[u8]) -> Result<(), ClientError> {
    match check_reply(body)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}
