//! Follows a session's segments: hash them, know them again, build and plan the new ones.

use std::sync::Arc;

use genie_srg::hash::SegmentHashes;
use genie_srg::{Hash128, Lookup, Noted, Origin, SegmentHasher, Segments, Srg, Window};
use genie_wire::record::{MarkKind, StorageId};
use genie_wire::template::OutputSpec;
use genie_wire::{Template, TemplateId};

use crate::history::{History, Snapshot};
use crate::storages::{Storage, Storages};
use crate::{Counters, Plan};

/// New segments that may wait for their graphs; further ones stay unknown until they recur.
const PENDING_MAX: usize = 4;
/// A stage mark ends a segment of at least this many records, so that the windows of a training
/// loop without reads fall on its steps.
const STAGE_RECORDS_MIN: usize = 64;

/// A topology that was met for the first time, with what came before it.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTopology {
    pub topology: Hash128,
    pub context: Snapshot,
}

/// The segments of one session.
#[derive(Debug, Default)]
pub struct Segmenter {
    pub(crate) hasher: SegmentHasher,
    templates: Vec<Arc<Template>>,
    known: Segments<Plan>,
    pending: Vec<Arc<Noted>>,
    history: History,
    last: Option<SegmentHashes>,
}

impl Segmenter {
    pub(crate) fn new() -> Self {
        let mut segmenter = Segmenter::default();
        segmenter.hasher.begin();
        segmenter
    }

    pub(crate) fn define(&mut self, template: &Arc<Template>) {
        self.hasher.define(template);
        self.templates.push(template.clone());
    }

    /// Ends the segment if it has records: the program reads, or a bound was reached.
    pub(crate) fn end_segment(&mut self, counters: &mut Counters) {
        if self.hasher.records() == 0 {
            return;
        }
        let hashes = self.hasher.finish();
        self.last = Some(hashes);
        let is_new = match self.known.look_up(hashes) {
            Lookup::Known => {
                counters.segments_known += 1;
                false
            }
            Lookup::NewSizes => {
                counters.segments_new_sizes += 1;
                false
            }
            Lookup::NewTopology => {
                counters.segments_new += 1;
                let waits = |other: &Arc<Noted>| other.hashes.topology == hashes.topology;
                self.pending.len() < PENDING_MAX && !self.pending.iter().any(waits)
            }
        };
        let kept = self.history.has_room();
        if is_new || kept {
            let trace = self.hasher.take_trace();
            let template = |id: TemplateId| self.templates.get(id.0 as usize).cloned();
            let noted = Arc::new(Noted::new(trace, hashes, template));
            if is_new {
                self.pending.push(noted.clone());
            }
            if kept {
                self.history.note(noted);
            }
        }
        if !kept {
            self.history.truncate();
        }
        self.hasher.begin();
    }

    pub(crate) fn forget_templates(&mut self, counters: &mut Counters) {
        self.end_segment(counters);
        self.templates.clear();
        self.hasher.forget_templates();
    }

    #[inline]
    pub(crate) fn end_if_full(&mut self, counters: &mut Counters) {
        if self.hasher.is_full() {
            self.end_segment(counters);
        }
    }

    /// A mark of the program. A new stage ends the segment.
    pub(crate) fn mark(&mut self, kind: MarkKind, symbol: u32, counters: &mut Counters) {
        if kind == MarkKind::Stage && self.hasher.records() >= STAGE_RECORDS_MIN {
            self.end_segment(counters);
        }
        self.hasher.mark(kind, symbol);
    }

    /// A synchronous operator answered what it made.
    pub(crate) fn run_made(&mut self, first: StorageId, bytes: &[u64], outputs: &[OutputSpec]) {
        self.history.run_made(first, bytes, outputs);
    }

    pub(crate) fn freed(&mut self, id: StorageId, storage: Storage) {
        self.history.freed(id, storage);
    }

    /// Builds and plans the new segments. Work that can wait until frames are forwarded. With
    /// `analyze` it tells what is new, with what came before it.
    pub(crate) fn settle(&mut self, storages: &Storages, analyze: bool) -> Vec<NewTopology> {
        let mut new = Vec::new();
        for noted in std::mem::take(&mut self.pending) {
            let origin =
                |id| storages.get(id).map_or(Origin::Unknown, |storage: &Storage| storage.origin);
            let window = Window::build(std::slice::from_ref(&noted), origin);
            let srg = Arc::new(Srg { hashes: noted.hashes, ..window.srg });
            let plan = Plan::one_node(&srg);
            self.known.insert(srg, plan);
            if analyze {
                let context = self.history.context_of(&noted, storages);
                new.push(NewTopology { topology: noted.hashes.topology, context });
            }
        }
        new
    }

    /// Forgets what ran so far; the next record begins a new history.
    pub(crate) fn reset_history(&mut self, counters: &mut Counters) {
        self.end_segment(counters);
        self.history.reset();
    }

    /// What ran since the history was reset.
    pub(crate) fn snapshot(&mut self, storages: &Storages, counters: &mut Counters) -> Snapshot {
        self.end_segment(counters);
        self.history.snapshot(storages)
    }

    /// Graph and plan of the segment that ended last, if they are remembered.
    pub fn last(&self) -> Option<(&Arc<Srg>, &Plan)> {
        self.known.get(self.last?.topology)
    }

    /// Topologies remembered.
    pub fn topologies(&self) -> usize {
        self.known.len()
    }
}
