//! The host's own counters: the sum over its sessions, and facts about the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use genie_engine::Counters;
use genie_engine::session::HostCounters;

use crate::analysis::Analysis;
use crate::nodes::{Nodes, RemoteNodes};

/// What one session tells the rest of the process, now and then.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionReport {
    pub counters: Counters,
    pub live_storages: u64,
    pub live_bytes: u64,
}

/// Where a session's thread leaves its report; locked by it for a moment at a time.
#[derive(Debug, Default)]
pub struct SessionSlot {
    report: Mutex<SessionReport>,
}

impl SessionSlot {
    pub fn publish(&self, report: SessionReport) {
        *lock(&self.report) = report;
    }
}

#[derive(Debug, Default)]
struct Sessions {
    running: BTreeMap<u64, Arc<SessionSlot>>,
    started: u64,
    /// Summed values of ended sessions, by the counter's position.
    ended: Vec<u64>,
}

/// All sessions' reports.
#[derive(Default)]
pub struct Totals {
    sessions: Mutex<Sessions>,
    nodes: OnceLock<Weak<Nodes>>,
    analysis: OnceLock<Weak<Analysis>>,
}

impl Totals {
    /// Also reports about the nodes that these are, and about plugins.
    pub fn watch(&self, nodes: &Arc<Nodes>, analysis: &Arc<Analysis>) {
        let _ = self.nodes.set(Arc::downgrade(nodes));
        let _ = self.analysis.set(Arc::downgrade(analysis));
    }

    /// Registers a session unless `max` are running; returns its number and its slot.
    pub fn begin(&self, max: usize) -> Option<(u64, Arc<SessionSlot>)> {
        let mut sessions = lock(&self.sessions);
        if sessions.running.len() >= max {
            return None;
        }
        sessions.started += 1;
        let id = sessions.started;
        let slot = Arc::new(SessionSlot::default());
        sessions.running.insert(id, slot.clone());
        Some((id, slot))
    }

    pub fn end(&self, id: u64) {
        let mut sessions = lock(&self.sessions);
        if let Some(slot) = sessions.running.remove(&id) {
            let report = *lock(&slot.report);
            add(&mut sessions.ended, &report.counters);
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
        nodes.and_then(|nodes| Some(nodes.remote()?.words())).unwrap_or_default()
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
