//! The host's own counters: the sum over its sessions, and facts about the process.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use genie_engine::Counters;
use genie_engine::session::HostCounters;
use rustix::event::{EventfdFlags, eventfd};

use crate::analysis::Analysis;
use crate::mailbox::Mailbox;
use crate::nodes::{Nodes, RemoteNodes};

/// The status' word of a host that was asked to stop.
pub const DRAINING: &str = "draining";

/// What one session tells the rest of the process, now and then.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionReport {
    pub counters: Counters,
    pub live_storages: u64,
    pub live_bytes: u64,
}

/// Between a session's thread and the others: its report, locked for a moment at a time, and its
/// mailbox.
pub struct SessionSlot {
    report: Mutex<SessionReport>,
    pub mailbox: Arc<Mailbox>,
}

impl SessionSlot {
    pub fn new() -> std::io::Result<Arc<Self>> {
        let mailbox = Arc::new(Mailbox::new()?);
        Ok(Arc::new(SessionSlot { report: Mutex::default(), mailbox }))
    }

    pub fn publish(&self, report: SessionReport) {
        *lock(&self.report) = report;
    }
}

#[derive(Default)]
struct Sessions {
    running: BTreeMap<u64, Arc<SessionSlot>>,
    started: u64,
    /// Summed values of ended sessions, by the counter's position.
    ended: Vec<u64>,
    /// Until when sessions may finish, once the host is asked to stop.
    draining: Option<Instant>,
}

/// All sessions' reports.
pub struct Totals {
    sessions: Mutex<Sessions>,
    /// Readable after a session ended.
    an_end: OwnedFd,
    nodes: OnceLock<Weak<Nodes>>,
    analysis: OnceLock<Weak<Analysis>>,
}

impl Totals {
    pub fn new() -> std::io::Result<Self> {
        let an_end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (nodes, analysis) = (OnceLock::new(), OnceLock::new());
        Ok(Totals { sessions: Mutex::default(), an_end, nodes, analysis })
    }

    /// Also reports about the nodes that these are, and about plugins.
    pub fn watch(&self, nodes: &Arc<Nodes>, analysis: &Arc<Analysis>) {
        let _ = self.nodes.set(Arc::downgrade(nodes));
        let _ = self.analysis.set(Arc::downgrade(analysis));
    }

    /// Registers a session unless `max` are running; returns its number, and how many others run.
    pub fn begin(&self, max: usize, slot: &Arc<SessionSlot>) -> Option<(u64, usize)> {
        let mut sessions = lock(&self.sessions);
        let others = sessions.running.len();
        if others >= max {
            return None;
        }
        sessions.started += 1;
        let id = sessions.started;
        sessions.running.insert(id, slot.clone());
        Some((id, others))
    }

    pub fn end(&self, id: u64) {
        let mut sessions = lock(&self.sessions);
        if let Some(slot) = sessions.running.remove(&id) {
            let report = *lock(&slot.report);
            add(&mut sessions.ended, &report.counters);
        }
        drop(sessions);
        // Fails only where it is readable anyway.
        let _ = rustix::io::write(&self.an_end, &1u64.to_ne_bytes());
    }

    /// Readable after a session ended, until [`Totals::clear_end`].
    pub fn end_fd(&self) -> BorrowedFd<'_> {
        self.an_end.as_fd()
    }

    pub fn clear_end(&self) {
        let _ = rustix::io::read(&self.an_end, &mut [0u8; 8]);
    }

    /// Notes, for the status, that sessions may finish until then; returns the number of the
    /// newest, for [`Totals::running`].
    pub fn drain(&self, until: Instant) -> u64 {
        let mut sessions = lock(&self.sessions);
        sessions.draining = Some(until);
        sessions.started
    }

    /// Sessions that run, of those up to this number.
    pub fn running(&self, newest: u64) -> usize {
        lock(&self.sessions).running.range(..=newest).count()
    }

    /// Asks every session to end, for this reason.
    pub fn end_all(&self, reason: &str) {
        for slot in lock(&self.sessions).running.values() {
            slot.mailbox.end(reason);
        }
    }
}

fn add(sums: &mut Vec<u64>, counters: &Counters) {
    let entries = counters.entries();
    sums.resize(entries.len(), 0);
    for (sum, (_, value)) in sums.iter_mut().zip(entries) {
        *sum += value;
    }
}

impl HostCounters for Totals {
    fn entries(&self) -> Vec<(String, u64)> {
        let mut entries = Vec::new();
        let mut push = |name: &str, value: u64| entries.push((name.to_owned(), value));
        let (mut sums, mut storages, mut bytes) = (Vec::new(), 0, 0);
        {
            let sessions = lock(&self.sessions);
            push("sessions", sessions.running.len() as u64);
            push("sessions_total", sessions.started);
            sums.extend_from_slice(&sessions.ended);
            for slot in sessions.running.values() {
                let report = *lock(&slot.report);
                add(&mut sums, &report.counters);
                storages += report.live_storages;
                bytes += report.live_bytes;
            }
        }
        push("live_storages", storages);
        push("live_bytes", bytes);
        let names = Counters::default().entries();
        for ((name, _), sum) in names.iter().zip(sums) {
            // An average over sessions is no sum.
            if *name != "bytes_to_node_per_op" {
                push(name, sum);
            }
        }
        push("resident_bytes", resident_bytes());
        if let Some(nodes) = self.nodes.get().and_then(Weak::upgrade) {
            let facts = nodes.child().facts();
            push("node_pid", facts.pid.into());
            push("node_starts", facts.starts);
            entries.extend(nodes.remote().map(RemoteNodes::entries).unwrap_or_default());
        }
        if let Some(analysis) = self.analysis.get().and_then(Weak::upgrade) {
            entries.extend(analysis.entries());
        }
        entries
    }

    fn words(&self) -> Vec<(String, String)> {
        let nodes = self.nodes.get().and_then(Weak::upgrade);
        let words = nodes.and_then(|nodes| Some(nodes.remote()?.words()));
        let mut words = words.unwrap_or_default();
        if let Some(until) = lock(&self.sessions).draining {
            let left = until.saturating_duration_since(Instant::now()).as_secs();
            let text = format!("takes no new sessions; ends with the last, in {left} s at most");
            words.push((DRAINING.to_owned(), text));
        }
        words
    }
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Reports are plain values: a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
