//! Scripts: segments of the tape in local numbering.
//!
//! A script's body is a tape of its own: operators, frees, allocations and marks. Its storages 0 to
//! `externals` are those that a run names; the others count up as they are made. A run is one
//! record. It takes as many storage ids as the script makes storages, whether they live on or not,
//! and yields the body's records with the run's ids in place of the local ones: whoever reads the
//! tape sees what it would have seen without scripts.
//!
//! An external that the body frees is freed where the run says so: only the program knows whether
//! it still holds it.

use std::sync::Arc;

use crate::WireError;
use crate::limits::SCRIPT_STEPS_MAX;
use crate::record::{MarkKind, StorageId, head, limit, mark, storage, storage_bytes};
use crate::template::Template;
use crate::varint::Reader;

/// A script that was defined.
///
/// Invariant: its body decodes, and names templates, symbols and storages that exist.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    /// Storages that a run names.
    pub externals: u32,
    /// Storages that a run makes.
    pub made: u64,
    /// Records that a run stands for.
    pub steps: u32,
    /// Externals that the body frees.
    pub(crate) frees: u32,
    body: Box<[u8]>,
}

/// Where a step's operands go.
pub(crate) struct Scratch<'a> {
    pub(crate) inputs: &'a mut Vec<StorageId>,
    pub(crate) scalars: &'a mut Vec<u64>,
}

/// One record of a body, its storages in local numbering (an operator's inputs are in the scratch
/// space).
enum Step {
    Op { template: u32, new: u64 },
    Free { local: u64 },
    Alloc { bytes: u64 },
    Mark { kind: MarkKind, symbol: u32 },
}

impl Script {
    pub(crate) fn decode(
        externals: u32,
        body: &[u8],
        templates: &[Arc<Template>],
        symbols: u32,
    ) -> Result<Self, WireError> {
        let (mut inputs, mut scalars) = (Vec::new(), Vec::new());
        let mut scratch = Scratch { inputs: &mut inputs, scalars: &mut scalars };
        let mut reader = Reader::new(body);
        let mut next = u64::from(externals);
        let (mut steps, mut frees) = (0, 0);
        while !reader.is_empty() {
            limit("records of a script", steps as u64 + 1, SCRIPT_STEPS_MAX as u64)?;
            steps += 1;
            match read(&mut reader, next, templates, symbols, &mut scratch)? {
                Step::Op { new, .. } => next += new,
                Step::Alloc { .. } => next += 1,
                Step::Free { local } => frees += u32::from(local < externals.into()),
                Step::Mark { .. } => {}
            }
        }
        let made = next - u64::from(externals);
        Ok(Script { externals, made, steps, frees, body: body.into() })
    }
}

/// Reads a step when storages below `next` exist.
fn read(
    reader: &mut Reader,
    next: u64,
    templates: &[Arc<Template>],
    symbols: u32,
    scratch: &mut Scratch,
) -> Result<Step, WireError> {
    let head = reader.varint("record head")?;
    if let Some(template) = head.checked_sub(head::OP) {
        let Some(known) = templates.get(template as usize) else {
            return Err(WireError::NoSuch { what: "template", value: template });
        };
        scratch.inputs.clear();
        scratch.scalars.clear();
        for _ in 0..known.slots {
            scratch.inputs.push(storage(reader, next)?);
        }
        for _ in 0..known.scalars {
            scratch.scalars.push(reader.u64_le("scalar")?);
        }
        let new = known.new_storages.len() as u64;
        return Ok(Step::Op { template: template as u32, new });
    }
    Ok(match head {
        head::FREE => Step::Free { local: storage(reader, next)?.0 },
        head::ALLOC => Step::Alloc { bytes: storage_bytes(reader)? },
        head::MARK => {
            let (kind, symbol) = mark(reader, symbols)?;
            Step::Mark { kind, symbol }
        }
        value => return Err(WireError::Unknown { what: "record of a script", value }),
    })
}

/// A script in the middle of a run.
#[derive(Debug)]
pub(crate) struct Play {
    script: Arc<Script>,
    externals: Vec<StorageId>,
    /// One bit for each external that the body frees.
    frees: Vec<u8>,
    frees_seen: usize,
    base: StorageId,
    next: u64,
    at: usize,
    /// Bytes of the record that runs it.
    pub(crate) length: usize,
}

/// A record of a run. An operator's inputs and scalars are in the scratch space.
pub(crate) enum Played {
    Op { template: u32, first_new: StorageId },
    Free { id: StorageId },
    Alloc { id: StorageId, bytes: u64 },
    Mark { kind: MarkKind, symbol: u32 },
}

impl Play {
    /// The storages it makes are `base` and the following.
    pub(crate) fn new(
        script: Arc<Script>,
        externals: Vec<StorageId>,
        frees: Vec<u8>,
        base: StorageId,
        length: usize,
    ) -> Self {
        let next = u64::from(script.externals);
        let mut play = Play { script, externals, frees, frees_seen: 0, base, next, at: 0, length };
        play.pass_what_stays();
        play
    }

    pub(crate) fn is_over(&self) -> bool {
        self.at >= self.script.body.len()
    }

    /// The next record of a run that is not over.
    pub(crate) fn next(
        &mut self,
        templates: &[Arc<Template>],
        scratch: &mut Scratch,
    ) -> Result<Played, WireError> {
        let mut reader = Reader::new(&self.script.body[self.at..]);
        let step = read(&mut reader, self.next, templates, u32::MAX, scratch)?;
        self.at += reader.position();
        let played = match step {
            Step::Op { template, new } => {
                for input in scratch.inputs.iter_mut() {
                    *input = self.id(input.0);
                }
                Played::Op { template, first_new: self.make(new) }
            }
            Step::Free { local } => Played::Free { id: self.id(local) },
            Step::Alloc { bytes } => Played::Alloc { id: self.make(1), bytes },
            Step::Mark { kind, symbol } => Played::Mark { kind, symbol },
        };
        self.pass_what_stays();
        Ok(played)
    }

    /// Passes over frees of externals that this run does not free.
    fn pass_what_stays(&mut self) {
        while let Some(length) = self.free_of_external() {
            let bit = self.frees_seen;
            if self.frees.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1) {
                self.frees_seen += 1;
                return;
            }
            self.frees_seen += 1;
            self.at += length;
        }
    }

    /// The length of the next record, if it frees an external.
    fn free_of_external(&self) -> Option<usize> {
        let mut reader = Reader::new(&self.script.body[self.at..]);
        let head = reader.varint("record head").ok()?;
        let local = (head == head::FREE).then(|| storage(&mut reader, self.next).ok())??;
        (local.0 < self.externals.len() as u64).then(|| reader.position())
    }

    fn id(&self, local: u64) -> StorageId {
        match self.externals.get(local as usize) {
            Some(id) => *id,
            None => StorageId(self.base.0 + local - self.externals.len() as u64),
        }
    }

    fn make(&mut self, count: u64) -> StorageId {
        let first = self.id(self.next);
        self.next += count;
        first
    }
}
