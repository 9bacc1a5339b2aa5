//! Hashing a segment as its records stream by.
//!
//! Two hashes: *exact* covers sizes, *topology* does not (see [`crate::digest`]). Both are
//! independent of the session's ids: storages count by their order of first use in the segment,
//! templates by their content, symbols by their text.

use std::sync::Arc;

use genie_wire::record::{MarkKind, StorageId};
use genie_wire::{Template, TemplateId};

use crate::mix::{Hash128, Mixer};
use crate::trace::{Context, LocalStorage, Stage, Step, StepKind, Trace};
use crate::{IdMap, TemplateDigest};

/// Records of one segment before it ends without a read.
pub const SEGMENT_RECORDS_MAX: usize = 4096;
/// Operands of one segment before it ends without a read.
pub const SEGMENT_OPERANDS_MAX: usize = 1 << 18;
/// Modules and phases that may be entered at once; deeper ones are not tracked.
pub const MARK_DEPTH_MAX: usize = 1 << 10;

/// The hashes of a finished segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHashes {
    pub exact: Hash128,
    pub topology: Hash128,
    /// Records in the segment.
    pub records: usize,
}

/// Hashes and notes one session's segments, one after another.
#[derive(Debug)]
pub struct SegmentHasher {
    digests: Vec<(u64, u64)>,
    symbols: Vec<(Arc<str>, u64)>,
    locals: IdMap<u64, u32>,
    exact: Mixer,
    topology: Mixer,
    /// Wiring, record kinds and marks: part of both hashes.
    common: Mixer,
    trace: Trace,
    modules: Vec<u32>,
    phases: Vec<u32>,
    /// Marks beyond [`MARK_DEPTH_MAX`], by (modules, phases), so that exits pair with enters.
    untracked: (usize, usize),
    stage: Stage,
    context_is_new: bool,
}

impl Default for SegmentHasher {
    fn default() -> Self {
        SegmentHasher::new()
    }
}

impl SegmentHasher {
    pub fn new() -> Self {
        SegmentHasher {
            digests: Vec::new(),
            symbols: Vec::new(),
            locals: IdMap::default(),
            exact: Mixer::new(),
            topology: Mixer::new(),
            common: Mixer::new(),
            trace: Trace::default(),
            modules: Vec::new(),
            phases: Vec::new(),
            untracked: (0, 0),
            stage: Stage::None,
            context_is_new: true,
        }
    }

    /// Takes note of the session's next template. `Invariant:` called in the order of ids.
    pub fn define(&mut self, template: &Template) {
        let digest = TemplateDigest::of(template);
        self.digests.push((digest.exact.0 as u64, digest.topology.0 as u64));
    }

    /// Forgets every template. Only between segments: a trace names templates by id.
    pub fn forget_templates(&mut self) {
        debug_assert_eq!(self.records(), 0, "a segment ends before its templates are forgotten");
        self.digests.clear();
    }

    /// Takes note of the session's next symbol.
    pub fn symbol(&mut self, text: &str) {
        let mut mixer = Mixer::new();
        mixer.bytes(text.as_bytes());
        self.symbols.push((Arc::from(text), mixer.finish().0 as u64));
    }

    /// An operator of a template that was defined: its input storages, and `new` storages from
    /// `first_new` on.
    #[inline]
    pub fn op(&mut self, id: TemplateId, inputs: &[StorageId], first_new: StorageId, new: usize) {
        let (exact, topology) = self.digests[id.0 as usize];
        self.exact.word(exact);
        self.topology.word(topology);
        self.step(StepKind::Op(id), inputs, first_new, new);
    }

    /// A synchronous operator, which may make storages from `first_new` on. They take part in the
    /// wiring only where they are used later.
    pub fn run(&mut self, template: &Arc<Template>, inputs: &[StorageId], first_new: StorageId) {
        let digest = TemplateDigest::of(template);
        self.exact.word(digest.exact.0 as u64);
        self.topology.word(digest.topology.0 as u64);
        let index = self.trace.run_templates.len() as u32;
        self.trace.run_templates.push(template.clone());
        self.trace.run_first.push(first_new);
        self.step(StepKind::Run(index), inputs, StorageId(0), 0);
    }

    pub fn alloc(&mut self, id: StorageId, bytes: u64) {
        self.bytes(bytes);
        self.step(StepKind::Alloc, &[], id, 1);
    }

    pub fn resize(&mut self, id: StorageId, bytes: u64) {
        self.bytes(bytes);
        self.step(StepKind::Resize, &[id], StorageId(0), 0);
    }

    pub fn upload(&mut self, id: StorageId, len: u64) {
        self.bytes(len);
        self.step(StepKind::Upload, &[id], StorageId(0), 0);
    }

    pub fn bind_weight(&mut self, id: StorageId) {
        self.step(StepKind::BindWeight, &[id], StorageId(0), 0);
    }

    pub fn store_weight(&mut self, id: StorageId) {
        self.step(StepKind::StoreWeight, &[id], StorageId(0), 0);
    }

    pub fn read(&mut self, id: StorageId, len: u64) {
        self.bytes(len);
        self.step(StepKind::Read, &[id], StorageId(0), 0);
    }

    /// The random generator is set, seeded or read.
    pub fn generator(&mut self) {
        self.step(StepKind::Generator, &[], StorageId(0), 0);
    }

    /// A mark; `symbol` exists (the tape decoder checked it).
    pub fn mark(&mut self, kind: MarkKind, symbol: u32) {
        let Some((text, hash)) = self.symbols.get(symbol as usize) else {
            return;
        };
        match kind {
            MarkKind::ModuleEnter => enter(&mut self.modules, &mut self.untracked.0, symbol),
            MarkKind::ModuleExit => exit(&mut self.modules, &mut self.untracked.0),
            MarkKind::PhaseEnter => enter(&mut self.phases, &mut self.untracked.1, symbol),
            MarkKind::PhaseExit => exit(&mut self.phases, &mut self.untracked.1),
            MarkKind::Stage => self.stage = Stage::named(text),
        }
        self.common.word(0x100 + kind as u64);
        self.common.word(*hash);
        self.context_is_new = true;
    }

    /// Whether the segment reached a bound and must be finished.
    pub fn is_full(&self) -> bool {
        self.trace.steps.len() >= SEGMENT_RECORDS_MAX
            || self.trace.operands.len() >= SEGMENT_OPERANDS_MAX
    }

    /// Records of the segment so far.
    pub fn records(&self) -> usize {
        self.trace.len()
    }

    /// The hashes of the segment, which ends here. Its notes stay until [`SegmentHasher::begin`].
    pub fn finish(&mut self) -> SegmentHashes {
        let common = self.common.finish();
        self.exact.hash(common);
        self.topology.hash(common);
        SegmentHashes {
            exact: self.exact.finish(),
            topology: self.topology.finish(),
            records: self.trace.len(),
        }
    }

    /// The notes of the finished segment.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Takes the notes of the finished segment, to build its graph.
    pub fn take_trace(&mut self) -> Trace {
        std::mem::take(&mut self.trace)
    }

    /// Begins the next segment, in the modules, phase and stage that are current.
    pub fn begin(&mut self) {
        self.trace.clear();
        self.locals.clear();
        self.exact = Mixer::new();
        self.topology = Mixer::new();
        self.common = Mixer::new();
        self.common.word(self.stage as u64);
        for stack in [&self.modules, &self.phases] {
            let top = stack.last().map_or(0, |symbol| self.symbols[*symbol as usize].1);
            self.common.word(top);
        }
        self.context_is_new = true;
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    fn bytes(&mut self, bytes: u64) {
        self.exact.word(bytes);
        self.topology.word(bytes.min(1));
    }

    #[inline]
    fn step(&mut self, kind: StepKind, inputs: &[StorageId], first_new: StorageId, new: usize) {
        if self.context_is_new {
            self.note_context();
        }
        let operands = self.trace.operands.len() as u32;
        // Kind and counts in one word; the operator itself is in the other two mixers.
        self.common.word(kind.code() << 32 | (inputs.len() as u64) << 16 | new as u64);
        for id in inputs {
            let local = self.local(*id, false);
            self.common.word(local.0.into());
            self.trace.operands.push(local);
        }
        for index in 0..new as u64 {
            // New storages take the next numbers: the count alone is their wiring.
            let local = self.local(StorageId(first_new.0 + index), true);
            self.trace.operands.push(local);
        }
        self.trace.steps.push(Step {
            kind,
            operands,
            inputs: inputs.len() as u32,
            outputs: new as u32,
            context: self.trace.contexts.len() as u32 - 1,
        });
    }

    #[inline]
    fn local(&mut self, id: StorageId, made: bool) -> LocalStorage {
        let next = self.trace.storages.len() as u32;
        let local = *self.locals.entry(id.0).or_insert(next);
        if local == next {
            self.trace.storages.push((id, made));
        }
        LocalStorage(local)
    }

    fn note_context(&mut self) {
        let text = |symbol: &u32| self.symbols[*symbol as usize].0.clone();
        self.trace.contexts.push(Context {
            module: self.modules.last().map(text),
            phase: self.phases.last().map(text),
            stage: self.stage,
        });
        self.context_is_new = false;
    }
}

fn enter(stack: &mut Vec<u32>, untracked: &mut usize, symbol: u32) {
    if stack.len() < MARK_DEPTH_MAX {
        stack.push(symbol);
    } else {
        *untracked += 1;
    }
}

fn exit(stack: &mut Vec<u32>, untracked: &mut usize) {
    if *untracked > 0 {
        *untracked -= 1;
    } else {
        stack.pop();
    }
}

impl StepKind {
    fn code(self) -> u64 {
        match self {
            StepKind::Op(_) => 1,
            StepKind::Run(_) => 2,
            StepKind::Alloc => 3,
            StepKind::Resize => 4,
            StepKind::Upload => 5,
            StepKind::BindWeight => 6,
            StepKind::StoreWeight => 7,
            StepKind::Read => 8,
            StepKind::Generator => 9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{binary, in_place, unary};
    use proptest::prelude::*;

    /// One op of a random program: template, inputs as "how many storages ago".
    type Program = Vec<(usize, Vec<usize>)>;

    fn templates(rows: u64) -> Vec<Arc<Template>> {
        vec![
            unary("aten::relu", &[rows, 16]),
            unary("aten::neg", &[rows, 16]),
            binary("aten::add.Tensor", &[rows, 16]),
            in_place("aten::relu_", &[rows, 16]),
        ]
    }

    /// Runs a program with its template ids in `order`, its storage ids `base` upwards, `stride`
    /// apart.
    fn hashes(
        program: &Program,
        order: &[usize],
        rows: u64,
        base: u64,
        stride: u64,
    ) -> SegmentHashes {
        let templates = templates(rows);
        let mut hasher = SegmentHasher::new();
        for index in order {
            hasher.define(&templates[*index]);
        }
        let mut made = vec![StorageId(base)];
        hasher.begin();
        for (template, inputs) in program {
            let id = order.iter().position(|index| index == template).unwrap();
            let template = &templates[*template];
            let inputs: Vec<StorageId> = (0..template.slots as usize)
                .map(|slot| made[made.len() - 1 - inputs[slot] % made.len()])
                .collect();
            let first_new = StorageId(base + stride * made.len() as u64);
            let new = template.new_storages.len();
            hasher.op(TemplateId(id as u32), &inputs, first_new, new);
            if new > 0 {
                made.push(first_new);
            }
        }
        hasher.finish()
    }

    fn program() -> impl Strategy<Value = Program> {
        prop::collection::vec((0..4usize, prop::collection::vec(0..6usize, 2)), 1..40)
    }

    proptest! {
        #[test]
        fn renumbering_does_not_change_hashes(
            program in program(), base in 0..1_000_000u64, stride in 1..9u64,
        ) {
            let plain = hashes(&program, &[0, 1, 2, 3], 8, 0, 1);
            prop_assert_eq!(plain, hashes(&program, &[3, 1, 0, 2], 8, base, stride));
        }

        #[test]
        fn a_size_changes_exact_but_not_topology(program in program(), rows in 17..99u64) {
            let (short, long) =
                (hashes(&program, &[0, 1, 2, 3], 8, 0, 1), hashes(&program, &[0, 1, 2, 3], rows, 0, 1));
            prop_assert_ne!(short.exact, long.exact);
            prop_assert_eq!(short.topology, long.topology);
        }

        #[test]
        fn wiring_and_operators_change_both(program in program(), at: prop::sample::Index) {
            let before = hashes(&program, &[0, 1, 2, 3], 8, 0, 1);
            let mut other = program.clone();
            let op = &mut other[at.index(program.len())];
            op.0 = (op.0 + 1) % 4;
            let after = hashes(&other, &[0, 1, 2, 3], 8, 0, 1);
            prop_assert_ne!(before.exact, after.exact);
            prop_assert_ne!(before.topology, after.topology);
        }
    }

    #[test]
    fn different_wiring_changes_both() {
        let chain = vec![(0, vec![0, 0]), (0, vec![0, 0])];
        let fork = vec![(0, vec![0, 0]), (0, vec![1, 0])];
        let (chain, fork) =
            (hashes(&chain, &[0, 1, 2, 3], 8, 0, 1), hashes(&fork, &[0, 1, 2, 3], 8, 0, 1));
        assert_ne!(chain.exact, fork.exact);
        assert_ne!(chain.topology, fork.topology);
    }

    #[test]
    fn a_segment_repeats_after_begin() {
        let template = unary("aten::relu", &[4]);
        let mut hasher = SegmentHasher::new();
        hasher.define(&template);
        let mut of = |first: u64| {
            hasher.begin();
            hasher.op(TemplateId(0), &[StorageId(first)], StorageId(first + 1), 1);
            hasher.read(StorageId(first + 1), 16);
            hasher.finish()
        };
        assert_eq!(of(1), of(700));
    }

    #[test]
    fn modules_and_stages_are_part_of_both_hashes() {
        let template = unary("aten::relu", &[4]);
        let of = |marks: &[(MarkKind, &str)]| {
            let mut hasher = SegmentHasher::new();
            hasher.define(&template);
            hasher.begin();
            for (index, (kind, text)) in marks.iter().enumerate() {
                hasher.symbol(text);
                hasher.mark(*kind, index as u32);
            }
            hasher.op(TemplateId(0), &[StorageId(1)], StorageId(2), 1);
            hasher.finish().topology
        };
        let module = of(&[(MarkKind::ModuleEnter, "layers.0\0Linear")]);
        assert_ne!(module, of(&[]));
        assert_ne!(module, of(&[(MarkKind::ModuleEnter, "layers.1\0Linear")]));
        assert_ne!(of(&[(MarkKind::Stage, "backward")]), of(&[(MarkKind::Stage, "optimizer")]));
    }

    #[test]
    fn marks_nest_within_their_bound() {
        let mut hasher = SegmentHasher::new();
        hasher.symbol("a\0A");
        for _ in 0..MARK_DEPTH_MAX * 2 {
            hasher.mark(MarkKind::ModuleEnter, 0);
        }
        for _ in 0..MARK_DEPTH_MAX * 2 {
            hasher.mark(MarkKind::ModuleExit, 0);
        }
        assert!(hasher.modules.is_empty());
        hasher.mark(MarkKind::ModuleExit, 0);
        assert!(hasher.modules.is_empty());
    }
}
