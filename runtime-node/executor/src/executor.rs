//! One device's executor: what all sessions share, and the turn of each.

use std::sync::Arc;

use genie_channel::Progress;
use genie_transport::SharedMemory;
use genie_wire::StorageId;
use genie_wire::control::Counter;
use genie_wire::record::WeightHash;

use crate::ledger::Ledger;
use crate::region::Region;
use crate::session::{Session, Threads};
use crate::weights::Holdings;
use crate::{Backend, Failure, Outbox, SessionError};

/// Threads that one operator may use where the node's owner does not say.
const THREADS_MAX: u32 = 256;

/// Executes the tapes of any number of sessions on one device, one record at a time.
pub struct Executor<B: Backend> {
    pub(crate) backend: B,
    pub(crate) holdings: Holdings<B::Storage>,
    pub(crate) counts: Counts,
    pub(crate) progress: Option<Arc<Progress>>,
    pub(crate) threads_max: u32,
    sessions: u64,
}

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ops: u64,
    pub(crate) op_errors: u64,
    pub(crate) templates: u64,
    pub(crate) script_runs: u64,
    pub(crate) bytes_in: u64,
    pub(crate) upload_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) weight_hits: u64,
    pub(crate) weight_copies: u64,
    pub(crate) weights_shared: u64,
    pub(crate) moved_in: Moved,
    pub(crate) moved_out: Moved,
}

/// Weights that came from other nodes, or went there.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) weights: u64,
    pub(crate) bytes: u64,
}

/// What an executor may hold, in bytes, and use.
#[derive(Debug, Clone, Copy)]
pub struct ExecutorLimits {
    /// Sessions and weights together.
    pub budget_bytes: u64,
    /// The sessions and weights of one client identity.
    pub client_bytes_max: u64,
    /// Weights that are kept while no storage refers to them; above it the least recently used
    /// are dropped.
    pub unheld_bytes_max: u64,
    /// CPU threads that one operator may use, whatever a client asks for: the pool keeps as many as
    /// the most that were used.
    pub threads_max: u32,
}

impl ExecutorLimits {
    /// One budget, and no other limit.
    pub fn of(budget_bytes: u64) -> Self {
        ExecutorLimits {
            budget_bytes,
            client_bytes_max: u64::MAX,
            unheld_bytes_max: u64::MAX,
            threads_max: THREADS_MAX,
        }
    }
}

/// What a session is told about its peer.
#[derive(Debug, Clone, Default)]
pub struct SessionSettings {
    /// Whose weights it may share.
    pub identity: String,
    /// CPU threads one operator uses; 0 leaves the device's setting.
    pub threads: u32,
    /// Whether that holds whatever the tape says.
    pub threads_fixed: bool,
}

impl<B: Backend> Executor<B> {
    /// Sessions and weights together may hold `budget_bytes` of the device.
    pub fn new(backend: B, budget_bytes: u64) -> Self {
        Executor::with_limits(backend, ExecutorLimits::of(budget_bytes))
    }

    pub fn with_limits(backend: B, limits: ExecutorLimits) -> Self {
        Executor {
            backend,
            holdings: Holdings::new(
                Ledger::new(limits.budget_bytes, limits.client_bytes_max),
                limits.unheld_bytes_max,
            ),
            counts: Counts::default(),
            progress: None,
            threads_max: limits.threads_max,
            sessions: 0,
        }
    }

    /// Tells there which operator runs.
    pub fn tell_progress(&mut self, progress: Arc<Progress>) {
        self.progress = Some(progress);
    }

    #[inline]
    pub(crate) fn begins(&mut self, operator: &str) {
        self.counts.ops += 1;
        if let Some(progress) = &self.progress {
            progress.begin(operator);
        }
    }

    pub fn open(&mut self, settings: SessionSettings) -> Result<Session<B>, Failure> {
        let generator = self.backend.generator()?;
        self.sessions += 1;
        let threads =
            Threads { now: settings.threads.min(self.threads_max), fixed: settings.threads_fixed };
        let account = self.holdings.ledger.account(&Arc::from(settings.identity));
        Ok(Session::new(generator, account, threads))
    }

    /// Gives back everything a session holds. Every session that was opened is closed here.
    pub fn close(&mut self, mut session: Session<B>) {
        self.counts.templates -= session.templates_defined();
        self.holdings.ledger.enter(session.account());
        session.clear(&mut self.holdings);
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
        self.holdings.ledger.enter(session.account());
        let start = *position;
        session.enter(self);
        // What is charged and released in this turn is allocated and freed in it, so this bound
        // holds to its end.
        self.backend.limit(self.holdings.ledger.left());
        let done = session.execute(self, tape, position, records_max, outbox);
        self.backend.limit(u64::MAX);
        self.backend.leave();
        self.counts.bytes_in += (*position - start) as u64;
        done
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

    /// Makes a stored weight the content of a storage of the session, or of an id that its tape
    /// passed over. `false` when none is stored for the session's identity, or it does not fit.
    pub fn bind_if_stored(
        &mut self,
        session: &mut Session<B>,
        id: StorageId,
        bytes: u64,
        hash: &WeightHash,
    ) -> Result<bool, SessionError> {
        self.holdings.ledger.enter(session.account());
        session.bind_if_stored(self, id, bytes, hash)
    }

    /// Gives up weights that no storage refers to, for other clients of the device.
    pub fn shed(&mut self, bytes: u64) {
        self.holdings.shed(bytes);
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
        let (counts, holdings) = (&self.counts, &self.holdings);
        let (weight_bytes, used) = (holdings.weight_bytes(), holdings.ledger.used());
        [
            ("node.sessions", self.sessions),
            ("node.storages", holdings.ledger.storages),
            ("node.storage_bytes", used.saturating_sub(weight_bytes)),
            ("node.weights", holdings.weights() as u64),
            ("node.weight_bytes", weight_bytes),
            ("node.weight_bytes_unheld", holdings.unheld_bytes()),
            ("node.weight_hits", counts.weight_hits),
            ("node.weight_copies", counts.weight_copies),
            ("node.weights_shared", counts.weights_shared),
            ("node.weights_evicted", holdings.evicted()),
            ("node.weights_moved_in", counts.moved_in.weights),
            ("node.weight_bytes_moved_in", counts.moved_in.bytes),
            ("node.weights_moved_out", counts.moved_out.weights),
            ("node.weight_bytes_moved_out", counts.moved_out.bytes),
            ("node.budget_bytes", holdings.ledger.budget()),
            ("node.ops_executed", counts.ops),
            ("node.op_errors", counts.op_errors),
            ("node.templates", counts.templates),
            ("node.script_runs", counts.script_runs),
            ("node.bytes_in", counts.bytes_in + counts.upload_bytes),
            ("node.upload_bytes", counts.upload_bytes),
            ("node.read_bytes", counts.read_bytes),
        ]
        .into_iter()
        .map(|(name, value)| Counter { name: name.to_owned(), value })
        .collect()
    }
}
