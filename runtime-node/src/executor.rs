//! One device's executor: what all sessions share, and the turn of each.

use std::sync::Arc;

use genie_transport::SharedMemory;
use genie_wire::control::Counter;
use genie_wire::record::WeightHash;

use crate::ledger::Ledger;
use crate::region::Region;
use crate::session::Session;
use crate::weights::Weights;
use crate::{Backend, Failure, Outbox, SessionError};

/// Threads a client may ask one operator to use.
const THREADS_MAX: u32 = 256;

/// Executes the tapes of any number of sessions on one device, one record at a time.
pub struct Executor<B: Backend> {
    pub(crate) backend: B,
    pub(crate) ledger: Ledger,
    pub(crate) weights: Weights<B::Storage>,
    pub(crate) counts: Counts,
    sessions: u64,
    /// What the backend was last told; 0 before.
    threads: u32,
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ops: u64,
    pub(crate) op_errors: u64,
    pub(crate) templates: u64,
    pub(crate) bytes_in: u64,
    pub(crate) upload_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) weight_hits: u64,
    pub(crate) weight_copies: u64,
    pub(crate) moved_in: Moved,
    pub(crate) moved_out: Moved,
}

/// Weights that came from other nodes, or went there.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) weights: u64,
    pub(crate) bytes: u64,
}

/// What an executor may hold, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ExecutorLimits {
    /// Sessions and weights together.
    pub budget_bytes: u64,
    /// The sessions and weights of one client identity.
    pub client_bytes_max: u64,
    /// Weights that are kept for later sessions; above it the least recently used are dropped.
    pub weight_bytes_max: u64,
}

impl ExecutorLimits {
    /// One budget, and no other limit.
    pub fn of(budget_bytes: u64) -> Self {
        ExecutorLimits { budget_bytes, client_bytes_max: u64::MAX, weight_bytes_max: u64::MAX }
    }
}

/// What a session is told about its peer.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// Whose weights it may share.
    pub identity: String,
    /// CPU threads one operator uses; 0 leaves the device's setting.
    pub threads: u32,
}

impl<B: Backend> Executor<B> {
    /// Sessions and weights together may hold `budget_bytes` of the device.
    pub fn new(backend: B, budget_bytes: u64) -> Self {
        Executor::with_limits(backend, ExecutorLimits::of(budget_bytes))
    }

    pub fn with_limits(backend: B, limits: ExecutorLimits) -> Self {
        Executor {
            backend,
            ledger: Ledger::new(limits.budget_bytes, limits.client_bytes_max),
            weights: Weights::new(limits.weight_bytes_max),
            counts: Counts::default(),
            sessions: 0,
            threads: 0,
        }
    }

    pub fn open(&mut self, settings: SessionSettings) -> Result<Session<B>, Failure> {
        let generator = self.backend.generator()?;
        self.sessions += 1;
        let threads = settings.threads.min(THREADS_MAX);
        let identity = Arc::from(settings.identity);
        let account = self.ledger.account(&identity);
        Ok(Session::new(generator, identity, account, threads))
    }

    /// Gives back everything a session holds. Every session that was opened is closed here.
    pub fn close(&mut self, mut session: Session<B>) {
        self.counts.templates -= session.templates_defined();
        self.ledger.enter(session.account());
        session.clear(&mut self.ledger);
        self.sessions -= 1;
    }

    /// Executes at most `records_max` records of `tape` from `*position` on. The answers go to
    /// `outbox`. After an error the session must be closed.
    pub fn execute(
        &mut self,
        session: &mut Session<B>,
        tape: &[u8],
        position: &mut usize,
        records_max: usize,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        if session.threads != self.threads && session.threads != 0 {
            self.threads = session.threads;
            self.backend.set_threads(session.threads);
        }
        self.ledger.enter(session.account());
        let start = *position;
        let done = session.execute(self, tape, position, records_max, outbox);
        self.counts.bytes_in += (*position - start) as u64;
        done
    }

    /// Reads the rest of the tape of a session whose peer is gone, without executing operators:
    /// only weights that it forgets are forgotten.
    pub fn wind_up(
        &mut self,
        session: &mut Session<B>,
        tape: &[u8],
        position: &mut usize,
    ) -> Result<(), SessionError> {
        self.ledger.enter(session.account());
        session.wind_up(self, tape, position)
    }

    /// Tells the peer what it may not know yet; call when a session has nothing more to do now.
    pub fn idle(&mut self, session: &mut Session<B>, outbox: &mut dyn Outbox) {
        session.send_credits(outbox);
    }

    /// Registers memory that uploads and reads of the session may name.
    pub fn add_region(
        &mut self,
        session: &mut Session<B>,
        region: u32,
        memory: SharedMemory,
    ) -> Result<(), SessionError> {
        session.add_region(region, Region::new(memory, &self.backend))
    }

    /// Whether a weight is stored for the session's identity, and its bytes; if so the session
    /// keeps it.
    pub fn hold_weight(
        &mut self,
        session: &mut Session<B>,
        hash: &WeightHash,
    ) -> Result<Option<u64>, SessionError> {
        session.hold_weight(self, hash)
    }

    /// Bytes of tape and uploads so far.
    pub fn bytes_in(&self) -> u64 {
        self.counts.bytes_in + self.counts.upload_bytes
    }

    pub fn sessions(&self) -> u64 {
        self.sessions
    }

    /// Counters by name, `node.` before each.
    pub fn counters(&self) -> Vec<Counter> {
        let counts = &self.counts;
        [
            ("node.sessions", self.sessions),
            ("node.storages", self.ledger.storages),
            ("node.storage_bytes", self.ledger.used().saturating_sub(self.weights.bytes())),
            ("node.weights", self.weights.len() as u64),
            ("node.weight_bytes", self.weights.bytes()),
            ("node.weight_hits", counts.weight_hits),
            ("node.weight_copies", counts.weight_copies),
            ("node.weights_evicted", self.weights.evicted()),
            ("node.weights_moved_in", counts.moved_in.weights),
            ("node.weight_bytes_moved_in", counts.moved_in.bytes),
            ("node.weights_moved_out", counts.moved_out.weights),
            ("node.weight_bytes_moved_out", counts.moved_out.bytes),
            ("node.budget_bytes", self.ledger.budget()),
            ("node.ops_executed", counts.ops),
            ("node.op_errors", counts.op_errors),
            ("node.templates", counts.templates),
            ("node.bytes_in", counts.bytes_in + counts.upload_bytes),
            ("node.upload_bytes", counts.upload_bytes),
            ("node.read_bytes", counts.read_bytes),
        ]
        .into_iter()
        .map(|(name, value)| Counter { name: name.to_owned(), value })
        .collect()
    }
}
