//! Follows a session's segments: hash them, know them again, build and plan the new ones.

use std::sync::Arc;

use genie_srg::hash::SegmentHashes;
use genie_srg::{Lookup, Origin, SegmentHasher, Segments, Srg, Trace};
use genie_wire::record::StorageId;
use genie_wire::{Template, TemplateId};

use crate::{Counters, Plan};

/// New segments that may wait for their graphs; further ones stay unknown until they recur.
const PENDING_MAX: usize = 4;
/// A stage mark ends a segment of at least this many records, so that the windows of a training
/// loop without reads fall on its steps.
const STAGE_RECORDS_MIN: usize = 64;

/// The segments of one session.
#[derive(Debug, Default)]
pub struct Segmenter {
    pub(crate) hasher: SegmentHasher,
    known: Segments<Plan>,
    pending: Vec<(Trace, SegmentHashes)>,
    last: Option<SegmentHashes>,
}

impl Segmenter {
    pub(crate) fn new() -> Self {
        let mut segmenter = Segmenter::default();
        segmenter.hasher.begin();
        segmenter
    }

    /// Ends the segment if it has records: the program reads, or a bound was reached.
    pub(crate) fn end_segment(&mut self, counters: &mut Counters) {
        if self.hasher.records() == 0 {
            return;
        }
        let hashes = self.hasher.finish();
        self.last = Some(hashes);
        match self.known.look_up(hashes) {
            Lookup::Known => counters.segments_known += 1,
            Lookup::NewSizes => counters.segments_new_sizes += 1,
            Lookup::NewTopology => {
                counters.segments_new += 1;
                let waits = |(_, other): &(Trace, SegmentHashes)| other.topology == hashes.topology;
                if self.pending.len() < PENDING_MAX && !self.pending.iter().any(waits) {
                    self.pending.push((self.hasher.take_trace(), hashes));
                }
            }
        }
        self.hasher.begin();
    }

    /// The segments that wait to be built name templates that are going: the next occurrence of
    /// their topology builds them.
    pub(crate) fn forget_templates(&mut self, counters: &mut Counters) {
        self.end_segment(counters);
        self.pending.clear();
        self.hasher.forget_templates();
    }

    #[inline]
    pub(crate) fn end_if_full(&mut self, counters: &mut Counters) {
        if self.hasher.is_full() {
            self.end_segment(counters);
        }
    }

    pub(crate) fn stage_begins(&mut self, counters: &mut Counters) {
        if self.hasher.records() >= STAGE_RECORDS_MIN {
            self.end_segment(counters);
        }
    }

    /// Builds and plans the new segments. Work that can wait until frames are forwarded.
    pub(crate) fn settle(
        &mut self,
        template: impl Fn(TemplateId) -> Option<Arc<Template>>,
        origin: impl Fn(StorageId) -> Origin,
    ) {
        for (trace, hashes) in self.pending.drain(..) {
            let srg = Arc::new(Srg::build(&trace, hashes, &template, &origin));
            let plan = Plan::one_node(&srg);
            self.known.insert(srg, plan);
        }
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
