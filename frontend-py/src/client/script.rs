//! Scripts: what one thread appends while a compiled graph runs, noted to be repeated by one record.
//!
//! Invariant: a script's run appends what was appended while it was noted, on other storages. What
//! cannot be repeated so (a read, an upload into a storage of the program, a draw from another
//! generator) makes the notes useless, and the graph runs operator by operator.

use std::collections::{HashMap, HashSet};
use std::thread::ThreadId;

use genie_wire::limits::{SCRIPT_BYTES_MAX, SCRIPT_EXTERNALS_MAX, SCRIPT_STEPS_MAX};
use genie_wire::record::MarkKind;
use genie_wire::{StorageId, TapeWriter, TemplateId};

/// One record, its storages as the session numbers them.
#[derive(Debug)]
enum Step {
    Op { template: TemplateId, inputs: Vec<u64>, scalars: Vec<u64>, first_new: u64, new: u64 },
    Alloc { id: u64, bytes: u64 },
    Free { id: u64 },
    Mark { kind: MarkKind, symbol: u32 },
}

/// Notes what one thread appends.
#[derive(Debug)]
pub(super) struct Recorder {
    thread: ThreadId,
    externals: Vec<u64>,
    steps: Vec<Step>,
    /// Storages made since the notes began that are alive, and their bytes.
    alive: HashMap<u64, u64>,
    /// Storages whose content was uploaded since the notes began, before any operator saw them.
    constants: Vec<u64>,
    used: HashSet<u64>,
    live_bytes: u64,
    peak_bytes: u64,
    refused: Option<&'static str>,
    /// Records on the tape that these notes account for, from the first on.
    pub(super) accounted: u64,
}

/// A segment that was noted, to be defined when it is run.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) externals: u64,
    pub(super) body: Vec<u8>,
    pub(super) made: u64,
    /// Of those, how many live on.
    pub(super) lasting: u64,
    pub(super) steps: u32,
    pub(super) ops: u64,
    /// Externals that the body frees, in order.
    pub(super) frees: Vec<u32>,
    /// Bytes that the storages made inside have at most at one time.
    pub(super) peak_bytes: u64,
    /// Its number on the tape, once it is defined there.
    pub(super) defined: Option<u32>,
}

/// What became of notes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Noted {
    /// For [`crate::client::Session::run_script`].
    pub handle: u64,
    /// Bytes that its definition takes.
    pub bytes: u64,
    /// Storages that every run names behind those of the program.
    pub constants: Vec<u64>,
    /// For each output, its number among the storages that a run makes; none for an external.
    pub outputs: Vec<Option<u64>>,
    /// Externals that the script frees, in order.
    pub frees: Vec<u32>,
}

impl Recorder {
    /// `records` is how many the tape has had so far.
    pub(super) fn new(thread: ThreadId, externals: &[u64], records: u64) -> Self {
        Recorder {
            thread,
            externals: externals.to_vec(),
            steps: Vec::new(),
            alive: HashMap::new(),
            constants: Vec::new(),
            used: HashSet::new(),
            live_bytes: 0,
            peak_bytes: 0,
            refused: (externals.len() > SCRIPT_EXTERNALS_MAX).then_some("it has too many inputs"),
            accounted: records,
        }
    }

    pub(super) fn is_of(&self, thread: ThreadId) -> bool {
        self.thread == thread
    }

    fn step(&mut self, step: Step) {
        if self.steps.len() < SCRIPT_STEPS_MAX {
            self.steps.push(step);
        } else {
            self.refused = Some("it has too many operators");
        }
    }

    fn make(&mut self, id: u64, bytes: u64) {
        self.alive.insert(id, bytes);
        self.live_bytes = self.live_bytes.saturating_add(bytes);
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
    }

    pub(super) fn op(
        &mut self,
        template: TemplateId,
        inputs: &[u64],
        scalars: &[u64],
        first_new: u64,
        new: u64,
    ) {
        self.used.extend(inputs);
        for id in first_new..first_new + new {
            self.make(id, 0);
        }
        let (inputs, scalars) = (inputs.to_vec(), scalars.to_vec());
        self.step(Step::Op { template, inputs, scalars, first_new, new });
    }

    pub(super) fn alloc(&mut self, id: u64, bytes: u64) {
        self.make(id, bytes);
        self.step(Step::Alloc { id, bytes });
    }

    /// A storage that nobody has seen yet might as well have been made with these bytes (`arange`
    /// makes an empty one first).
    pub(super) fn resize(&mut self, id: u64, bytes: u64) {
        let of_it = |step: &&mut Step| matches!(step, Step::Alloc { id: made, .. } if *made == id);
        match self.steps.iter_mut().rev().find(of_it) {
            Some(Step::Alloc { bytes: made, .. }) if !self.used.contains(&id) => *made = bytes,
            _ => return self.refused = Some("it resizes a storage"),
        }
        let before = self.alive.get(&id).copied().unwrap_or(0);
        self.live_bytes = self.live_bytes.saturating_sub(before);
        self.make(id, bytes);
    }

    /// The bytes of a storage that an operator made.
    pub(super) fn weigh(&mut self, id: u64, bytes: u64) {
        if let Some(0) = self.alive.get(&id) {
            self.make(id, bytes);
        }
    }

    pub(super) fn free(&mut self, id: u64) {
        if let Some(bytes) = self.alive.remove(&id) {
            self.live_bytes = self.live_bytes.saturating_sub(bytes);
        } else if !self.externals.contains(&id) {
            // A storage of the program that happens to be dropped now.
            return;
        }
        self.step(Step::Free { id });
    }

    pub(super) fn mark(&mut self, kind: MarkKind, symbol: u32) {
        self.step(Step::Mark { kind, symbol });
    }

    /// `len` bytes from the start of a storage are uploaded.
    pub(super) fn upload(&mut self, id: u64, whole: bool) {
        if whole && self.alive.contains_key(&id) && !self.used.contains(&id) {
            if !self.constants.contains(&id) {
                self.constants.push(id);
            }
        } else {
            self.refused = Some("it changes a storage from the client");
        }
    }

    /// The script, when the tape has had `records` by now and these storages are all that lives
    /// on; otherwise why there is none.
    pub(super) fn finish(
        mut self,
        records: u64,
        outputs: &[u64],
    ) -> Result<(Script, Noted), &'static str> {
        if self.accounted != records {
            return Err("something else than operators was recorded");
        }
        if let Some(why) = self.refused {
            return Err(why);
        }
        self.externals.extend_from_slice(&self.constants);
        for id in &self.constants {
            self.alive.remove(id);
            if outputs.contains(id) {
                return Err("it returns a constant");
            }
        }
        if self.alive.keys().any(|id| !outputs.contains(id)) {
            return Err("a tensor inside outlives it");
        }
        let mut locals: HashMap<u64, u64> = self.externals.iter().copied().zip(0..).collect();
        let externals = self.externals.len() as u64;
        let mut tape = TapeWriter::of_script(externals);
        let mut frees = Vec::new();
        let (mut ops, mut inputs) = (0, Vec::new());
        for step in &self.steps {
            match step {
                Step::Op { template, inputs: ids, scalars, first_new, new } => {
                    inputs.clear();
                    for id in ids {
                        inputs.push(*locals.get(id).ok_or("it uses a tensor that is no input")?);
                    }
                    let first = tape.op(*template, &inputs, scalars, *new);
                    locals.extend((0..*new).map(|index| (first_new + index, first.0 + index)));
                    ops += 1;
                }
                Step::Alloc { id, .. } if self.constants.contains(id) => {}
                Step::Alloc { id, bytes } => {
                    locals.insert(*id, tape.alloc(*bytes).0);
                }
                Step::Free { id } => {
                    let local = *locals.get(id).ok_or("it frees a tensor that is no input")?;
                    if local < externals {
                        frees.push(local as u32);
                    }
                    tape.free(StorageId(local));
                }
                Step::Mark { kind, symbol } => tape.mark(*kind, *symbol),
            }
        }
        if tape.bytes().len() > SCRIPT_BYTES_MAX {
            return Err("its definition is too large");
        }
        let made = tape.next_storage().0 - externals;
        let lasting = self.alive.len() as u64;
        let local = |id: &u64| locals.get(id).copied().ok_or("it returns a tensor of others");
        let outputs = outputs.iter().map(|id| Ok(local(id)?.checked_sub(externals)));
        let noted = Noted {
            handle: 0,
            bytes: tape.bytes().len() as u64,
            outputs: outputs.collect::<Result<_, &str>>()?,
            frees: frees.clone(),
            constants: self.constants,
        };
        let script = Script {
            externals,
            body: tape.bytes().to_vec(),
            made,
            lasting,
            steps: self.steps.len() as u32,
            ops,
            frees,
            peak_bytes: self.peak_bytes,
            defined: None,
        };
        Ok((script, noted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(externals: &[u64]) -> Recorder {
        Recorder::new(std::thread::current().id(), externals, 0)
    }

    #[test]
    fn storages_are_numbered_anew_and_outputs_found_again() {
        let mut notes = recorder(&[70, 71]);
        notes.alloc(80, 64);
        notes.upload(80, true);
        notes.op(TemplateId(3), &[70, 80], &[], 81, 2);
        notes.free(81);
        notes.free(9);
        notes.free(71);
        let (script, noted) = notes.finish(0, &[82, 70]).unwrap();
        assert_eq!((script.externals, script.made, script.frees), (3, 2, vec![1]));
        assert_eq!(noted.constants, [80]);
        assert_eq!(noted.outputs, [Some(1), None]);
        let mut expected = TapeWriter::of_script(3);
        expected.op(TemplateId(3), &[0, 2], &[], 2);
        expected.free(StorageId(3));
        expected.free(StorageId(1));
        assert_eq!(script.body, expected.bytes());
    }

    #[test]
    fn a_storage_resized_before_its_first_use_is_made_so() {
        let mut notes = recorder(&[]);
        notes.alloc(7, 0);
        notes.resize(7, 40);
        notes.op(TemplateId(0), &[7], &[], 8, 0);
        let (script, _) = notes.finish(0, &[7]).unwrap();
        let mut expected = TapeWriter::of_script(0);
        let made = expected.alloc(40);
        expected.op(TemplateId(0), &[made.0], &[], 0);
        assert_eq!((script.body.as_slice(), script.peak_bytes), (expected.bytes(), 40));
    }

    #[test]
    fn what_cannot_be_repeated_is_refused() {
        let refused = |notes: Recorder, records, outputs: &[u64]| {
            notes.finish(records, outputs).expect_err("cannot be repeated")
        };
        let mut notes = recorder(&[1]);
        notes.upload(1, true);
        assert!(refused(notes, 0, &[]).contains("from the client"));
        let mut notes = recorder(&[1]);
        notes.op(TemplateId(0), &[2], &[], 5, 1);
        assert!(refused(notes, 0, &[5]).contains("no input"));
        let mut notes = recorder(&[1]);
        notes.op(TemplateId(0), &[1], &[], 5, 1);
        assert!(refused(notes, 0, &[]).contains("outlives"));
        let mut notes = recorder(&[1]);
        notes.alloc(5, 8);
        notes.op(TemplateId(0), &[5], &[], 6, 0);
        notes.resize(5, 16);
        assert!(refused(notes, 0, &[]).contains("resizes"));
        let mut notes = recorder(&[1]);
        notes.alloc(5, 8);
        notes.upload(5, true);
        assert!(refused(notes, 0, &[5]).contains("constant"));
        assert!(refused(recorder(&[1]), 1, &[]).contains("something else"));
        assert!(refused(recorder(&[1]), 0, &[4]).contains("of others"));
    }
}
