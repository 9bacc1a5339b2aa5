//! Reading a client's tape: every record is checked before the node sees it.
//!
//! What is checked here: ids are alive, regions are the session's own and ranges lie inside,
//! tokens are free, counts and bytes stay within limits. What an operator does with its arguments,
//! and which weights there are, is the node's to check.

use genie_srg::Origin;
use genie_wire::limits::{FRAME_STEPS_MAX, SYMBOLS_MAX};
use genie_wire::record::{RegionSpan, StorageId};
use genie_wire::{Record, TapeDecoder};

use crate::regions::Regions;
use crate::segmenter::{NewTopology, Segmenter};
use crate::storages::Storages;
use crate::tokens::{Awaited, Tokens};
use crate::{Counters, SessionError};

/// Bytes that definitions of one kind may take in a session, and what they took so far.
#[derive(Debug)]
pub(crate) struct DefinitionBytes {
    what: &'static str,
    used: u64,
    max: u64,
}

impl DefinitionBytes {
    pub(crate) fn new(what: &'static str, max: u64) -> Self {
        DefinitionBytes { what, used: 0, max }
    }

    fn add(&mut self, bytes: usize) -> Result<(), SessionError> {
        self.used += bytes as u64;
        if self.used > self.max {
            let (what, value, max) = (self.what, self.used, self.max);
            return Err(SessionError::Limit { what, value, max });
        }
        Ok(())
    }
}

/// Everything a session knows from its tape.
#[derive(Debug)]
pub(crate) struct TapeState {
    pub(crate) decoder: TapeDecoder,
    pub(crate) storages: Storages,
    pub(crate) regions: Regions,
    pub(crate) tokens: Tokens,
    pub(crate) segmenter: Segmenter,
    /// `StoreWeight` records that the node has not answered yet.
    pub(crate) storing: u64,
    pub(crate) templates: DefinitionBytes,
    pub(crate) scripts: DefinitionBytes,
    pub(crate) symbols: DefinitionBytes,
    /// Uploads through regions in the frame that was read last.
    pub(crate) payloads: Vec<(RegionSpan, u64)>,
}

impl TapeState {
    /// Reads a frame of whole records. What a script stands for is read as if it stood there.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        counters: &mut Counters,
    ) -> Result<(), SessionError> {
        let mut position = 0;
        let TapeState { decoder, .. } = self;
        // The decoder lends its scratch space to the record, so it is taken apart from the rest.
        let mut rest = Rest {
            storages: &mut self.storages,
            regions: &mut self.regions,
            tokens: &mut self.tokens,
            segmenter: &mut self.segmenter,
            storing: &mut self.storing,
            templates: &mut self.templates,
            scripts: &mut self.scripts,
            symbols: &mut self.symbols,
            payloads: &mut self.payloads,
            counters,
            steps: 0,
        };
        rest.payloads.clear();
        loop {
            let of_script = decoder.is_playing();
            let Some(record) = decoder.next(bytes, &mut position)? else { break };
            rest.counters.records += u64::from(!of_script);
            rest.record(record)?;
        }
        Ok(())
    }

    /// Builds the graphs of new segments; see [`Segmenter::settle`].
    pub(crate) fn settle(&mut self, analyze: bool) -> Vec<NewTopology> {
        self.segmenter.settle(&self.storages, analyze)
    }
}

struct Rest<'a> {
    storages: &'a mut Storages,
    regions: &'a mut Regions,
    tokens: &'a mut Tokens,
    segmenter: &'a mut Segmenter,
    storing: &'a mut u64,
    templates: &'a mut DefinitionBytes,
    scripts: &'a mut DefinitionBytes,
    symbols: &'a mut DefinitionBytes,
    payloads: &'a mut Vec<(RegionSpan, u64)>,
    counters: &'a mut Counters,
    /// Records that scripts of this frame stand for.
    steps: usize,
}

impl Rest<'_> {
    fn record(&mut self, record: Record) -> Result<(), SessionError> {
        match record {
            Record::Op { id, template, inputs, first_new, .. } => {
                self.counters.ops += 1;
                inputs.iter().try_for_each(|input| self.storages.check(*input))?;
                let origin = Origin::Op(self.segmenter.hasher.stage());
                for (index, bytes) in template.new_storages.iter().enumerate() {
                    self.storages.make(StorageId(first_new.0 + index as u64), *bytes, origin)?;
                }
                let new = template.new_storages.len();
                self.segmenter.hasher.op(id, inputs, first_new, new);
            }
            Record::Free { id } => {
                let storage = self.storages.free(id)?;
                self.segmenter.freed(id, storage);
                return Ok(());
            }
            Record::Define { template, bytes, .. } => {
                self.counters.templates += 1;
                self.counters.template_bytes += bytes.len() as u64;
                self.templates.add(bytes.len())?;
                self.segmenter.define(template);
                return Ok(());
            }
            Record::Run { token, template, inputs, first_new, reserve, .. } => {
                self.counters.ops += 1;
                self.counters.synchronous_ops += 1;
                inputs.iter().try_for_each(|input| self.storages.check(*input))?;
                self.tokens.add(token, Awaited::Run { first_new, reserve })?;
                self.segmenter.hasher.run(template, inputs, first_new);
                self.segmenter.end_segment(self.counters);
            }
            Record::Alloc { id, bytes } => {
                self.storages.make(id, bytes, Origin::Unknown)?;
                self.segmenter.hasher.alloc(id, bytes);
            }
            Record::Resize { id, bytes } => {
                self.storages.resize(id, bytes)?;
                self.segmenter.hasher.resize(id, bytes);
            }
            Record::Upload { id, len, source, .. } => {
                self.regions.check(source, len)?;
                self.regions.uploaded(source.region, len);
                self.payloads.push((source, len));
                self.upload(id, len)?;
            }
            Record::UploadInline { id, bytes, .. } => self.upload(id, bytes.len() as u64)?,
            Record::BindWeight { id, .. } => {
                self.storages.set_origin(id, Origin::Weight)?;
                self.segmenter.hasher.bind_weight(id);
            }
            Record::StoreWeight { id, .. } => {
                self.storages.set_origin(id, Origin::Weight)?;
                *self.storing += 1;
                self.segmenter.hasher.store_weight(id);
            }
            Record::Read { token, id, len, dest, .. } => {
                self.storages.check(id)?;
                if let Some(dest) = dest {
                    self.regions.check(dest, len)?;
                }
                self.counters.reads += 1;
                self.counters.read_bytes += len;
                self.tokens.add(token, Awaited::Plain)?;
                self.segmenter.hasher.read(id, len);
                self.segmenter.end_segment(self.counters);
            }
            Record::Fence { token } => {
                self.tokens.add(token, Awaited::Plain)?;
                self.segmenter.end_segment(self.counters);
            }
            Record::Seed { .. } | Record::SetGeneratorState { .. } => {
                self.segmenter.hasher.generator();
            }
            Record::GetGeneratorState { token } => {
                self.tokens.add(token, Awaited::Plain)?;
                self.segmenter.hasher.generator();
                self.segmenter.end_segment(self.counters);
            }
            Record::Settings { .. } => return Ok(()),
            Record::ForgetTemplates => {
                self.templates.used = 0;
                self.scripts.used = 0;
                self.segmenter.forget_templates(self.counters);
                return Ok(());
            }
            Record::Symbol { id, text } => {
                debug_assert!((id as usize) < SYMBOLS_MAX, "the decoder checks the number");
                self.symbols.add(text.len())?;
                self.segmenter.hasher.symbol(text);
                return Ok(());
            }
            Record::Mark { kind, symbol } => {
                self.segmenter.mark(kind, symbol, self.counters);
                return Ok(());
            }
            Record::Skip { .. } => return Ok(()),
            Record::DefineScript { bytes, .. } => {
                self.counters.scripts += 1;
                self.counters.script_bytes += bytes.len() as u64;
                self.scripts.add(bytes.len())?;
                return Ok(());
            }
            Record::RunScript { script, .. } => {
                self.counters.script_runs += 1;
                self.steps += script.steps as usize;
                if self.steps > FRAME_STEPS_MAX {
                    let (value, max) = (self.steps as u64, FRAME_STEPS_MAX as u64);
                    let what = "records of scripts in one frame";
                    return Err(SessionError::Limit { what, value, max });
                }
                return Ok(());
            }
        }
        self.segmenter.end_if_full(self.counters);
        Ok(())
    }

    fn upload(&mut self, id: StorageId, len: u64) -> Result<(), SessionError> {
        self.counters.uploads += 1;
        self.counters.upload_bytes += len;
        self.storages.set_origin(id, Origin::Upload)?;
        self.segmenter.hasher.upload(id, len);
        Ok(())
    }
}
