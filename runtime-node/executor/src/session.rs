//! One session: what each record of its tape does.

use std::collections::HashMap;
use std::sync::Arc;

use genie_wire::control::WeightStored;
use genie_wire::frame::FrameKind;
use genie_wire::limits::{
    FRAME_BYTES_MAX, REGIONS_MAX, SCRIPTS_BYTES_MAX, STORAGE_BYTES_MAX, TEMPLATES_BYTES_MAX,
};
use genie_wire::record::{RegionSpan, WeightHash};
use genie_wire::varint::put;
use genie_wire::{ErrorCode, Record, Reply, StorageId, TapeDecoder, Template, TemplateId};
use prost::Message;

use crate::credits::Credits;
use crate::ledger::Account;
use crate::modules::Modules;
use crate::region::{Region, for_chunks};
use crate::storages::{Slot, Storages};
use crate::weights::Holdings;
use crate::{Backend, Executor, Failure, Outbox, SessionError};

/// Templates of `Run` records that are kept bound, and their encoded bytes; when full, all are
/// dropped.
const RUN_TEMPLATES_MAX: usize = 256;
const RUN_TEMPLATES_BYTES_MAX: usize = 4 << 20;
/// Inputs whose references fit on the stack.
const INPUTS_INLINE: usize = 12;

/// One client's program on one device.
///
/// Invariant: a storage that is poisoned keeps the first failure that led to it.
pub struct Session<B: Backend> {
    decoder: TapeDecoder,
    state: State<B>,
}

struct State<B: Backend> {
    storages: Storages<B::Storage>,
    templates: Vec<Result<B::Template, Failure>>,
    template_bytes: u64,
    script_bytes: usize,
    run_templates: HashMap<Vec<u8>, B::Template>,
    run_template_bytes: usize,
    generator: B::Generator,
    /// PyTorch's settings that the program runs under, as the tape told them.
    settings: Vec<u8>,
    threads: Threads,
    /// Why this node cannot run anything under these settings.
    unsettled: Option<Failure>,
    untold: Untold,
    modules: Modules,
    regions: HashMap<u32, Region>,
    credits: Credits,
    account: Account,
    /// Scratch space: the storages an operator made, and an encoded reply.
    made: Vec<B::Storage>,
    encoded: Vec<u8>,
}

/// The first failure since the client was told of one. It is told when the session goes, however it
/// does: the program read nothing that came of it, and ended as if all were well.
#[derive(Default)]
struct Untold(Option<Arc<Failure>>);

impl Drop for Untold {
    fn drop(&mut self) {
        if let Some(failure) = &self.0 {
            tracing::warn!("a program ended and never read a result of what failed: {failure}");
        }
    }
}

/// How many CPU threads an operator of the session uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threads {
    pub(crate) now: u32,
    /// Whether that is so whatever the tape says.
    pub(crate) fixed: bool,
}

/// Why a record did not do what it says.
enum Stop {
    /// The peer broke the protocol.
    Session(SessionError),
    /// An input failed before.
    Inherited(Arc<Failure>),
    /// It failed here.
    Fresh(Failure),
}

impl From<SessionError> for Stop {
    fn from(error: SessionError) -> Self {
        Stop::Session(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Fresh(failure)
    }
}

impl<B: Backend> Session<B> {
    pub(crate) fn new(generator: B::Generator, account: Account, threads: Threads) -> Self {
        let state = State {
            storages: Storages::new(),
            templates: Vec::new(),
            template_bytes: 0,
            script_bytes: 0,
            run_templates: HashMap::new(),
            run_template_bytes: 0,
            generator,
            settings: Vec::new(),
            threads,
            unsettled: None,
            untold: Untold::default(),
            modules: Modules::default(),
            regions: HashMap::new(),
            credits: Credits::default(),
            account,
            made: Vec::new(),
            encoded: Vec::new(),
        };
        Session { decoder: TapeDecoder::new(), state }
    }

    /// Makes the session's settings those that operators run under.
    pub(crate) fn enter(&mut self, node: &mut Executor<B>) {
        self.state.enter(node);
    }

    pub(crate) fn execute(
        &mut self,
        node: &mut Executor<B>,
        tape: &[u8],
        position: &mut usize,
        records_max: usize,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        for _ in 0..records_max {
            match self.decoder.next(tape, position)? {
                Some(record) => self.state.record(record, node, outbox)?,
                None => break,
            }
        }
        Ok(())
    }

    pub(crate) fn add_region(&mut self, region: u32, memory: Region) -> Result<(), SessionError> {
        let regions = &mut self.state.regions;
        if regions.contains_key(&region) {
            return Err(SessionError::RegionTaken { region });
        }
        if regions.len() >= REGIONS_MAX {
            return Err(SessionError::TooMany { what: "regions", max: REGIONS_MAX as u64 });
        }
        regions.insert(region, memory);
        Ok(())
    }

    pub(crate) fn send_credits(&mut self, outbox: &mut dyn Outbox) {
        self.state.credits.send(outbox);
    }

    pub(crate) fn templates_defined(&self) -> u64 {
        self.state.templates.len() as u64
    }

    pub(crate) fn account(&self) -> Account {
        self.state.account
    }

    /// Makes a weight the content of a storage, or of an id that was passed over; whether it is
    /// stored and fits.
    pub(crate) fn bind_if_stored(
        &mut self,
        node: &mut Executor<B>,
        id: StorageId,
        bytes: u64,
        hash: &WeightHash,
    ) -> Result<bool, SessionError> {
        let state = &mut self.state;
        if id >= self.decoder.next_storage() {
            return Err(SessionError::NotAlive { doing: "a question for a weight", id });
        }
        match state.storages.get(id) {
            Some(Slot::Poisoned(_)) => return Ok(false),
            Some(_) if state.storages.bytes(id) != Some(bytes) => return Ok(false),
            _ => {}
        }
        let Some(weight) = node.hold_or_seek(state.account, hash, bytes) else {
            return Ok(false);
        };
        if weight.bytes != bytes {
            node.holdings.release(weight);
            return Ok(false);
        }
        node.counts.weight_hits += 1;
        state.storages.put(id, Slot::Shared(weight), &mut node.holdings)?;
        Ok(true)
    }

    pub(crate) fn clear(&mut self, holdings: &mut Holdings<B::Storage>) {
        self.state.storages.clear(holdings);
    }
}

impl<B: Backend> State<B> {
    fn enter(&mut self, node: &mut Executor<B>) {
        self.unsettled = node.backend.enter(&self.settings, self.threads.now).err();
    }

    fn change_settings(&mut self, settings: &[u8], threads: u32, node: &mut Executor<B>) {
        self.settings.clear();
        self.settings.extend_from_slice(settings);
        if !self.threads.fixed && threads != 0 {
            self.threads.now = threads.min(node.threads_max);
        }
        self.enter(node);
    }

    fn record(
        &mut self,
        record: Record<'_>,
        node: &mut Executor<B>,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        match record {
            Record::Op { id, template, inputs, scalars, first_new } => {
                self.op(id, template, inputs, scalars, first_new, node)
            }
            Record::Free { id } => match self.storages.remove(id, &mut node.holdings) {
                true => Ok(()),
                false => Err(SessionError::NotAlive { doing: "a free", id }),
            },
            Record::Define { template, bytes, .. } => self.define(template, bytes, node),
            Record::Run { token, template, inputs, scalars, first_new, reserve } => {
                let operands = Operands { template, inputs, scalars, first_new };
                self.run(token, operands, reserve, node, outbox)
            }
            Record::Alloc { id, bytes } => {
                self.storages.put(id, Slot::Unallocated { bytes }, &mut node.holdings)
            }
            Record::Resize { id, bytes } => self.write(id, "a resize", node, |state, node| {
                Ok(state.storages.resize(id, bytes, &node.backend, &mut node.holdings)?)
            }),
            Record::Upload { id, offset, len, source } => {
                self.upload(id, offset, len, source, node, outbox)
            }
            Record::UploadInline { id, offset, bytes } => {
                node.counts.upload_bytes += bytes.len() as u64;
                self.write(id, "an upload", node, |state, node| {
                    let storage = state.upload_target(id, offset, bytes.len() as u64, node)?;
                    Ok(node.backend.copy_in(storage, offset, bytes)?)
                })
            }
            Record::BindWeight { id, hash } => {
                self.write(id, "a weight's binding", node, |state, node| {
                    state.bind_weight(id, &hash, node)
                })
            }
            Record::StoreWeight { id, hash } => self.store_weight(id, hash, node, outbox),
            Record::Read { token, id, offset, len, dest } => {
                let read = self.read(token, id, offset, len, dest, node);
                if let (Ok(()), Some(dest)) = (&read, dest) {
                    outbox.payload(dest.region, dest.offset, len);
                }
                self.answer(token, read, outbox)
            }
            Record::Fence { token } => {
                let done = node.backend.synchronize().map(|()| {
                    let at_ns = node.backend.clock_ns();
                    self.encode(token, &Reply::Reached { at_ns })
                });
                self.answer(token, done.map_err(Stop::Fresh), outbox)
            }
            Record::Seed { seed } => {
                let done = node.backend.seed(&mut self.generator, seed);
                tolerate(done, node);
                Ok(())
            }
            Record::SetGeneratorState { state } => {
                let done = node.backend.set_generator_state(&mut self.generator, state);
                tolerate(done, node);
                Ok(())
            }
            Record::GetGeneratorState { token } => {
                let state = node.backend.generator_state(&mut self.generator);
                let read = state.map(|state| self.encode(token, &Reply::Bytes(&state)));
                self.answer(token, read.map_err(Stop::Fresh), outbox)
            }
            Record::Settings { threads, settings } => {
                self.change_settings(settings, threads, node);
                Ok(())
            }
            Record::ForgetTemplates => {
                self.templates.clear();
                self.template_bytes = 0;
                self.script_bytes = 0;
                Ok(())
            }
            Record::Symbol { text, .. } => self.modules.symbol(text),
            Record::Mark { kind, symbol } => {
                self.modules.mark(kind, symbol);
                Ok(())
            }
            Record::Skip { .. } => Ok(()),
            // Its records follow.
            Record::RunScript { .. } => {
                node.counts.script_runs += 1;
                Ok(())
            }
            Record::DefineScript { bytes, .. } => {
                self.script_bytes += bytes.len();
                match self.script_bytes > SCRIPTS_BYTES_MAX {
                    true => Err(SessionError::TooMany {
                        what: "bytes of scripts",
                        max: SCRIPTS_BYTES_MAX as u64,
                    }),
                    false => Ok(()),
                }
            }
        }
    }

    /// An operator this node does not know fails where it is used, not where it is defined.
    fn define(
        &mut self,
        template: &Template,
        bytes: &[u8],
        node: &mut Executor<B>,
    ) -> Result<(), SessionError> {
        self.template_bytes += bytes.len() as u64;
        if self.template_bytes > TEMPLATES_BYTES_MAX as u64 {
            let max = TEMPLATES_BYTES_MAX as u64;
            return Err(SessionError::TooMany { what: "bytes of templates", max });
        }
        let bound = node.backend.template(bytes);
        if let Err(failure) = &bound {
            tracing::debug!(op = template.op, %failure, "an operator cannot be bound");
        }
        self.templates.push(bound);
        node.counts.templates += 1;
        Ok(())
    }

    fn op(
        &mut self,
        id: TemplateId,
        template: &Template,
        inputs: &[StorageId],
        scalars: &[u64],
        first_new: StorageId,
        node: &mut Executor<B>,
    ) -> Result<(), SessionError> {
        node.begins(&template.op);
        let operands = Operands { template, inputs, scalars, first_new };
        match self.try_op(id, &operands, node) {
            Ok(()) => Ok(()),
            Err(stop) => {
                let failure = self.failure(&template.op, stop, node)?;
                self.poison_results(&operands, template.new_storages.len(), &failure, node)
            }
        }
    }

    fn try_op(
        &mut self,
        id: TemplateId,
        operands: &Operands<'_>,
        node: &mut Executor<B>,
    ) -> Result<(), Stop> {
        let new_storages = &operands.template.new_storages;
        self.prepare(operands, node)?;
        if !new_storages.is_empty() {
            let bytes = new_storages.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
            node.holdings.room(bytes)?;
        }
        let bound = match &self.templates[id.0 as usize] {
            Ok(bound) => bound,
            Err(failure) => return Err(failure.clone().into()),
        };
        let (generator, made) = (&mut self.generator, &mut self.made);
        made.clear();
        with_contents(&self.storages, operands.inputs, |contents| {
            let new = new_storages.len();
            running(operands.template, node, |backend| {
                backend.run(bound, contents, operands.scalars, generator, new, made)
            })
        })?;
        self.keep_results(operands, node)?;
        Ok(())
    }

    /// Checks that all inputs exist and are whole, and makes them real and writable as needed.
    fn prepare(&mut self, operands: &Operands<'_>, node: &mut Executor<B>) -> Result<(), Stop> {
        if let Some(failure) = &self.unsettled {
            return Err(failure.clone().into());
        }
        let mut promised = false;
        let mut inherited = None;
        for id in operands.inputs {
            match self.storages.get(*id) {
                Some(Slot::Live { .. } | Slot::Shared(_)) => {}
                Some(Slot::Unallocated { .. }) => promised = true,
                Some(Slot::Poisoned(failure)) => {
                    inherited.get_or_insert_with(|| failure.clone());
                }
                None => {
                    let doing = "an operator";
                    return Err(SessionError::NotAlive { doing, id: *id }.into());
                }
            }
        }
        if let Some(failure) = inherited {
            return Err(Stop::Inherited(failure));
        }
        if promised {
            for id in operands.inputs {
                self.storages.materialize(*id, &node.backend, &mut node.holdings)?;
            }
        }
        for slot in &operands.template.mutated {
            let id = operands.inputs[*slot as usize];
            if let Some(Slot::Shared(_)) = self.storages.get(id) {
                node.counts.weight_copies += 1;
                self.storages.own(id, false, &node.backend, &mut node.holdings)?;
            }
        }
        Ok(())
    }

    /// Registers what an operator made and recounts what it may have resized.
    fn keep_results(
        &mut self,
        operands: &Operands<'_>,
        node: &mut Executor<B>,
    ) -> Result<(), SessionError> {
        for (id, storage) in (operands.first_new.0..).zip(self.made.drain(..)) {
            let slot = Slot::Live { bytes: node.backend.bytes(&storage), storage };
            self.storages.put(StorageId(id), slot, &mut node.holdings)?;
        }
        for slot in &operands.template.mutated {
            let id = operands.inputs[*slot as usize];
            self.storages.recount(id, &node.backend, &mut node.holdings);
        }
        Ok(())
    }

    /// The first `new` new storages and every storage the operator writes.
    fn poison_results(
        &mut self,
        operands: &Operands<'_>,
        new: usize,
        failure: &Arc<Failure>,
        node: &mut Executor<B>,
    ) -> Result<(), SessionError> {
        for id in (operands.first_new.0..).take(new) {
            let slot = Slot::Poisoned(failure.clone());
            self.storages.put(StorageId(id), slot, &mut node.holdings)?;
        }
        for slot in &operands.template.mutated {
            self.poison(operands.inputs[*slot as usize], failure, node)?;
        }
        Ok(())
    }

    fn poison(
        &mut self,
        id: StorageId,
        failure: &Arc<Failure>,
        node: &mut Executor<B>,
    ) -> Result<(), SessionError> {
        if matches!(self.storages.get(id), Some(Slot::Poisoned(_))) {
            return Ok(());
        }
        self.storages.put(id, Slot::Poisoned(failure.clone()), &mut node.holdings)
    }

    /// What the program will be told, with operator and module; only a broken protocol goes on.
    #[cold]
    fn failure(
        &mut self,
        doing: &str,
        stop: Stop,
        node: &mut Executor<B>,
    ) -> Result<Arc<Failure>, SessionError> {
        match stop {
            Stop::Session(error) => Err(error),
            Stop::Inherited(failure) => Ok(failure),
            Stop::Fresh(failure) => {
                node.counts.op_errors += 1;
                let mut message = format!("{doing}: {}", failure.message);
                if let Some(place) = self.modules.describe() {
                    message.push_str(&format!(" ({place})"));
                }
                tracing::debug!(code = ?failure.code, message, "an operation failed");
                let failure = Arc::new(Failure { code: failure.code, message });
                self.untold.0.get_or_insert_with(|| failure.clone());
                Ok(failure)
            }
        }
    }

    fn run(
        &mut self,
        token: u64,
        operands: Operands<'_>,
        reserve: u64,
        node: &mut Executor<B>,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        node.begins(&operands.template.op);
        match self.try_run(token, &operands, reserve as usize, node) {
            Ok(()) => outbox.send(FrameKind::Reply, &self.encoded),
            Err(stop) => {
                // The program gets the error at the call, as in eager mode: what the operator
                // would have written keeps its value.
                let failure = self.failure(&operands.template.op, stop, node)?;
                self.send_failure(token, &failure, outbox);
            }
        }
        Ok(())
    }

    fn try_run(
        &mut self,
        token: u64,
        operands: &Operands<'_>,
        reserve: usize,
        node: &mut Executor<B>,
    ) -> Result<(), Stop> {
        self.prepare(operands, node)?;
        self.encoded.clear();
        operands.template.encode(&mut self.encoded);
        if !self.run_templates.contains_key(&self.encoded) {
            let bytes = self.run_template_bytes + self.encoded.len();
            if self.run_templates.len() >= RUN_TEMPLATES_MAX || bytes > RUN_TEMPLATES_BYTES_MAX {
                self.run_templates.clear();
                self.run_template_bytes = 0;
            }
            let bound = node.backend.template(&self.encoded)?;
            self.run_template_bytes += self.encoded.len();
            self.run_templates.insert(self.encoded.clone(), bound);
        }
        let bound = self.run_templates.get(&self.encoded).expect("inserted above if absent");
        let (generator, made) = (&mut self.generator, &mut self.made);
        made.clear();
        let described = with_contents(&self.storages, operands.inputs, |contents| {
            let scalars = operands.scalars;
            running(operands.template, node, |backend| {
                backend.run_dynamic(bound, contents, scalars, generator, reserve, made)
            })
        })?;
        if let Some(bytes) = made.iter().map(|it| node.backend.bytes(it)).max()
            && bytes > STORAGE_BYTES_MAX
        {
            let message =
                format!("a result of {bytes} bytes; one storage holds at most {STORAGE_BYTES_MAX}");
            self.made.clear();
            return Err(Failure::new(ErrorCode::OutOfMemory, message).into());
        }
        self.encoded.clear();
        put(&mut self.encoded, token);
        self.encoded.push(OUTPUTS_REPLY);
        self.encoded.extend_from_slice(&described);
        if self.encoded.len() > FRAME_BYTES_MAX {
            let message = "the description of its outputs does not fit one frame";
            // Not implemented: the client's CPU does it then.
            self.made.clear();
            return Err(Failure::new(ErrorCode::NotImplemented, message).into());
        }
        self.keep_results(operands, node)?;
        Ok(())
    }

    /// Does something to an existing storage; a failure poisons it.
    fn write(
        &mut self,
        id: StorageId,
        doing: &'static str,
        node: &mut Executor<B>,
        change: impl FnOnce(&mut Self, &mut Executor<B>) -> Result<(), Stop>,
    ) -> Result<(), SessionError> {
        match self.storages.get(id) {
            None => return Err(SessionError::NotAlive { doing, id }),
            Some(Slot::Poisoned(_)) => return Ok(()),
            Some(_) => {}
        }
        match change(self, node) {
            Ok(()) => Ok(()),
            Err(stop) => {
                let failure = self.failure(doing, stop, node)?;
                self.poison(id, &failure, node)
            }
        }
    }

    /// The storage an upload goes to, checked to hold the range and owned by the session.
    fn upload_target<'a>(
        &'a mut self,
        id: StorageId,
        offset: u64,
        len: u64,
        node: &mut Executor<B>,
    ) -> Result<&'a mut B::Storage, Failure> {
        let bytes = self.storages.bytes(id).unwrap_or(0);
        check_range(offset, len, bytes)?;
        self.storages.own(id, len == bytes, &node.backend, &mut node.holdings)
    }

    fn upload(
        &mut self,
        id: StorageId,
        offset: u64,
        len: u64,
        source: RegionSpan,
        node: &mut Executor<B>,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        let RegionSpan { region, offset: from } = source;
        let doing = "an upload";
        // Taken out and put back, so that the rest of the state stays free to use.
        let memory =
            self.regions.remove(&region).ok_or(SessionError::NoRegion { doing, region })?;
        memory.check(from, len).map_err(|source| SessionError::OutsideRegion {
            doing,
            region,
            source,
        })?;
        let done = self.write(id, doing, node, |state, node| {
            let storage = state.upload_target(id, offset, len, node)?;
            Ok(memory.upload(from, len, &node.backend, storage, offset)?)
        });
        node.counts.upload_bytes += len;
        self.credits.add(region, memory.bytes(), len, outbox);
        self.regions.insert(region, memory);
        done
    }

    fn bind_weight(
        &mut self,
        id: StorageId,
        hash: &WeightHash,
        node: &mut Executor<B>,
    ) -> Result<(), Stop> {
        let Some(weight) = node.holdings.hold(self.account, hash) else {
            let message = "the weight is not, or no longer, in the node's store; upload it again";
            return Err(Failure::new(ErrorCode::WeightMissing, message).into());
        };
        let bytes = self.storages.bytes(id).unwrap_or(0);
        if weight.bytes != bytes {
            let message = format!("the weight has {} bytes, its storage {bytes}", weight.bytes);
            node.holdings.release(weight);
            return Err(Failure::new(ErrorCode::Value, message).into());
        }
        node.counts.weight_hits += 1;
        Ok(self.storages.put(id, Slot::Shared(weight), &mut node.holdings)?)
    }

    fn store_weight(
        &mut self,
        id: StorageId,
        hash: WeightHash,
        node: &mut Executor<B>,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        let bytes = self.storages.bytes(id).unwrap_or(0);
        let refused = match self.try_store_weight(id, hash, node) {
            Ok(()) => String::new(),
            Err(Stop::Session(error)) => return Err(error),
            // What cannot be shared stays the session's own, as if it had not been asked for.
            Err(Stop::Inherited(failure)) => failure.message.clone(),
            Err(Stop::Fresh(failure)) => failure.message,
        };
        let stored = WeightStored { hash: hash.to_vec(), bytes, refused };
        outbox.send(FrameKind::WeightStored, &stored.encode_to_vec());
        Ok(())
    }

    fn try_store_weight(
        &mut self,
        id: StorageId,
        hash: WeightHash,
        node: &mut Executor<B>,
    ) -> Result<(), Stop> {
        match self.storages.get(id) {
            None => {
                return Err(SessionError::NotAlive { doing: "storing a weight", id }.into());
            }
            Some(Slot::Poisoned(failure)) => return Err(Stop::Inherited(failure.clone())),
            // Bound or stored before, so its hash was checked then.
            Some(Slot::Shared(weight)) if weight.hash == hash => return Ok(()),
            Some(_) => {}
        }
        let storage = self.storages.own(id, false, &node.backend, &mut node.holdings)?;
        // The program may have written its tensor between the client's two looks at it, one for
        // the hash and one for the bytes.
        if content_hash(&node.backend, storage)? != hash {
            let message = "its content does not have the announced hash";
            return Err(Failure::new(ErrorCode::Value, message).into());
        }
        match node.holdings.hold(self.account, &hash) {
            Some(stored) => self.storages.put(id, Slot::Shared(stored), &mut node.holdings)?,
            None => {
                let shelved =
                    Executor::shelve(&node.backend, &mut node.holdings.shelf, storage, &hash);
                self.storages.share(id, hash, shelved, &mut node.holdings);
            }
        }
        Ok(())
    }

    /// Leaves the encoded reply in `self.encoded`.
    fn read(
        &mut self,
        token: u64,
        id: StorageId,
        offset: u64,
        len: u64,
        dest: Option<RegionSpan>,
        node: &mut Executor<B>,
    ) -> Result<(), Stop> {
        let doing = "a read";
        match self.storages.get(id) {
            None => return Err(SessionError::NotAlive { doing, id }.into()),
            Some(Slot::Poisoned(failure)) => return Err(Stop::Inherited(failure.clone())),
            Some(_) => {}
        }
        let named = |failure: Failure| Failure {
            message: format!("{doing}: {}", failure.message),
            ..failure
        };
        check_range(offset, len, self.storages.bytes(id).unwrap_or(0)).map_err(named)?;
        self.storages.materialize(id, &node.backend, &mut node.holdings).map_err(named)?;
        let content = self.storages.content(id).expect("checked and materialized above");
        node.counts.read_bytes += len;
        match dest {
            None => {
                self.encoded.clear();
                match node.backend.slice(content) {
                    Some(bytes) => {
                        let bytes = &bytes[offset as usize..(offset + len) as usize];
                        Reply::Bytes(bytes).encode(token, &mut self.encoded);
                    }
                    None => {
                        let mut bytes = vec![0; len as usize];
                        node.backend.copy_out(content, offset, &mut bytes).map_err(named)?;
                        Reply::Bytes(&bytes).encode(token, &mut self.encoded);
                    }
                }
            }
            Some(RegionSpan { region, offset: to }) => {
                let memory =
                    self.regions.get(&region).ok_or(SessionError::NoRegion { doing, region })?;
                memory.check(to, len).map_err(|source| SessionError::OutsideRegion {
                    doing,
                    region,
                    source,
                })?;
                memory.download(to, len, &node.backend, content, offset).map_err(named)?;
                self.encode(token, &Reply::Done);
            }
        }
        Ok(())
    }

    fn encode(&mut self, token: u64, reply: &Reply<'_>) {
        self.encoded.clear();
        reply.encode(token, &mut self.encoded);
    }

    /// Sends the encoded reply, or why there is none.
    fn answer(
        &mut self,
        token: u64,
        done: Result<(), Stop>,
        outbox: &mut dyn Outbox,
    ) -> Result<(), SessionError> {
        match done {
            Ok(()) => outbox.send(FrameKind::Reply, &self.encoded),
            Err(Stop::Session(error)) => return Err(error),
            Err(Stop::Inherited(failure)) => self.send_failure(token, &failure, outbox),
            Err(Stop::Fresh(failure)) => self.send_failure(token, &failure, outbox),
        }
        Ok(())
    }

    fn send_failure(&mut self, token: u64, failure: &Failure, outbox: &mut dyn Outbox) {
        self.untold.0 = None;
        self.encode(token, &Reply::Error { code: failure.code, message: &failure.message });
        outbox.send(FrameKind::Reply, &self.encoded);
    }
}

/// The kind byte of `genie_wire::Reply::Outputs`, whose body the backend writes.
const OUTPUTS_REPLY: u8 = 2;

/// What an operator's record names.
struct Operands<'a> {
    template: &'a Template,
    inputs: &'a [StorageId],
    scalars: &'a [u64],
    first_new: StorageId,
}

/// Runs an operator. What it needs beside its results is known when it runs: where that does not
/// fit, weights that nobody holds make room and it runs again, unless it has written or drawn
/// something by then. The error says what to do.
#[inline]
fn running<B: Backend, R>(
    template: &Template,
    node: &mut Executor<B>,
    mut run: impl FnMut(&B) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let mut twice = template.mutated.is_empty() && !template.random;
    loop {
        match run(&node.backend) {
            Err(full) if full.code == ErrorCode::OutOfMemory => {
                if !std::mem::take(&mut twice) || !node.holdings.make_all_room() {
                    return Err(node.holdings.ledger.full_while_running(&full.message));
                }
            }
            done => return done,
        }
    }
}

/// Hands over the inputs' contents, which [`State::prepare`] made sure of.
fn with_contents<S, R>(
    storages: &Storages<S>,
    inputs: &[StorageId],
    call: impl FnOnce(&[&S]) -> R,
) -> R {
    let content = |id: &StorageId| storages.content(*id).expect("prepared inputs are real");
    match inputs {
        [] => call(&[]),
        [first, rest @ ..] if inputs.len() <= INPUTS_INLINE => {
            let mut contents = [content(first); INPUTS_INLINE];
            for (slot, id) in contents[1..].iter_mut().zip(rest) {
                *slot = content(id);
            }
            call(&contents[..inputs.len()])
        }
        _ => call(&inputs.iter().map(content).collect::<Vec<_>>()),
    }
}

/// Seeds and states have no storage to poison: that they were refused is only logged.
fn tolerate<B: Backend>(done: Result<(), Failure>, node: &mut Executor<B>) {
    if let Err(failure) = done {
        node.counts.op_errors += 1;
        tracing::warn!(%failure, "the random generator was not set");
    }
}

fn check_range(offset: u64, len: u64, bytes: u64) -> Result<(), Failure> {
    match offset.checked_add(len) {
        Some(end) if end <= bytes => Ok(()),
        _ => Err(Failure::new(
            ErrorCode::Value,
            format!("bytes {offset}..{offset}+{len} lie outside a storage of {bytes} bytes"),
        )),
    }
}

/// BLAKE3 over the storage's bytes.
fn content_hash<B: Backend>(backend: &B, storage: &B::Storage) -> Result<WeightHash, Failure> {
    if let Some(bytes) = backend.slice(storage) {
        return Ok(*blake3::hash(bytes).as_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    for_chunks(backend.bytes(storage), |at, chunk| {
        backend.copy_out(storage, at, chunk)?;
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(*hasher.finalize().as_bytes())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
