//! The tape: a sequence of records.
//!
//! Storage ids are assigned in tape order and never reused; a record that makes storages does not
//! name them (they are the next ids), and names its inputs by their distance from the next id, so
//! recent storages cost one byte. [`TapeWriter`] and [`TapeDecoder`] both count.
//!
//! The order of the tape is the order of the program: a reader that executes records one by one
//! computes what the program means.
//!
//! A segment of the tape that is repeated may be defined once as a [script](crate::script): its
//! run is one record, after which the decoder yields the records that it stands for.

use std::sync::Arc;

use crate::WireError;
use crate::limits::{
    GENERATOR_STATE_BYTES_MAX, INLINE_BYTES_MAX, REGION_BYTES_MAX, RUN_RESERVE_MAX,
    SCRIPT_BYTES_MAX, SCRIPT_EXTERNALS_MAX, SCRIPTS_MAX, SETTINGS_BYTES_MAX, STORAGE_BYTES_MAX,
    STRING_BYTES_MAX, SYMBOLS_MAX, TEMPLATE_BYTES_MAX, TEMPLATES_MAX,
};
use crate::script::{Play, Played, Scratch, Script};
use crate::template::Template;
use crate::varint::{Reader, put, put_bytes};

/// A storage of one session. Never reused within the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageId(pub u64);

/// A template of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateId(pub u32);

/// The content hash of a weight: BLAKE3 over its bytes.
pub type WeightHash = [u8; 32];

/// Where a payload lies: `offset` bytes into shared region `region`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpan {
    pub region: u32,
    pub offset: u64,
}

/// What a `Mark` record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkKind {
    /// A module's forward begins; the symbol is `path\0class`.
    ModuleEnter,
    ModuleExit,
    /// `genie.phase(...)` begins; the symbol is its name.
    PhaseEnter,
    PhaseExit,
    /// Records from here on belong to this stage of training: the symbol is `forward`,
    /// `backward` or `optimizer`.
    Stage,
}

/// One record of the tape, borrowed from the bytes or from the decoder's scratch space.
#[derive(Debug, PartialEq)]
pub enum Record<'a> {
    /// Defines the next template. `bytes` is its encoding, as received.
    Define {
        id: TemplateId,
        template: &'a Arc<Template>,
        bytes: &'a [u8],
    },
    /// Runs an operator. Its new storages are `first_new`, `first_new + 1`, ...
    Op {
        id: TemplateId,
        template: &'a Arc<Template>,
        inputs: &'a [StorageId],
        scalars: &'a [u64],
        first_new: StorageId,
    },
    /// Runs an operator whose outputs are not known before. The reply named `token` describes
    /// them; output storages take ids from `first_new` on, at most `reserve` of them.
    Run {
        token: u64,
        template: &'a Arc<Template>,
        inputs: &'a [StorageId],
        scalars: &'a [u64],
        first_new: StorageId,
        reserve: u64,
    },
    /// Drops the program's hold on a storage.
    Free {
        id: StorageId,
    },
    /// Makes a storage of `bytes` uninitialised bytes.
    Alloc {
        id: StorageId,
        bytes: u64,
    },
    Resize {
        id: StorageId,
        bytes: u64,
    },
    /// Copies `len` bytes from a region into a storage at `offset`.
    Upload {
        id: StorageId,
        offset: u64,
        len: u64,
        source: RegionSpan,
    },
    /// Copies the bytes in the record into a storage at `offset`.
    UploadInline {
        id: StorageId,
        offset: u64,
        bytes: &'a [u8],
    },
    /// The whole content of the storage is the stored weight with this hash.
    BindWeight {
        id: StorageId,
        hash: WeightHash,
    },
    /// Keep the whole content of the storage as a weight, if this is its hash (checked by the
    /// node); otherwise nothing happens.
    StoreWeight {
        id: StorageId,
        hash: WeightHash,
    },
    /// Send `len` bytes of a storage from `offset`, inline in the reply or into a region.
    Read {
        token: u64,
        id: StorageId,
        offset: u64,
        len: u64,
        dest: Option<RegionSpan>,
    },
    /// Reply when everything before has been executed.
    Fence {
        token: u64,
    },
    /// Seeds the random generator.
    Seed {
        seed: u64,
    },
    SetGeneratorState {
        state: &'a [u8],
    },
    GetGeneratorState {
        token: u64,
    },
    /// Defines the next symbol.
    Symbol {
        id: u32,
        text: &'a str,
    },
    Mark {
        kind: MarkKind,
        symbol: u32,
    },
    /// Passes over `count` storage ids.
    Skip {
        count: u64,
    },
    /// PyTorch's settings that the operators from here on run under: `threads` CPU threads an
    /// operator, and those settings that are not PyTorch's own (`cpp/settings.h` of the shim).
    /// At the start none is, and the hello has the threads.
    Settings {
        threads: u32,
        settings: &'a [u8],
    },
    /// Forgets every template and every script; the next one defined is number 0 again.
    ForgetTemplates,
    /// Defines the next script. `bytes` is its body.
    DefineScript {
        id: u32,
        script: &'a Arc<Script>,
        bytes: &'a [u8],
    },
    /// Runs a script: the records that follow, until its last, are those of the script.
    RunScript {
        id: u32,
        script: &'a Arc<Script>,
    },
}

pub(crate) mod head {
    pub const DEFINE: u64 = 0;
    pub const FREE: u64 = 1;
    pub const ALLOC: u64 = 2;
    pub const UPLOAD: u64 = 3;
    pub const UPLOAD_INLINE: u64 = 4;
    pub const BIND_WEIGHT: u64 = 5;
    pub const STORE_WEIGHT: u64 = 6;
    pub const READ: u64 = 7;
    pub const FENCE: u64 = 8;
    pub const SEED: u64 = 9;
    pub const SET_GENERATOR_STATE: u64 = 10;
    pub const GET_GENERATOR_STATE: u64 = 11;
    pub const RESIZE: u64 = 12;
    pub const MARK: u64 = 13;
    pub const SYMBOL: u64 = 14;
    pub const RUN: u64 = 15;
    pub const SKIP: u64 = 16;
    // 17 was `ForgetWeight`, before version 3.
    pub const FORGET_TEMPLATES: u64 = 18;
    pub const SETTINGS: u64 = 19;
    pub const DEFINE_SCRIPT: u64 = 24;
    pub const RUN_SCRIPT: u64 = 25;
    /// Heads from here on are operators: head - OP is the template id.
    pub const OP: u64 = 32;
}

/// Appends records to a byte buffer. Not synchronised: its owner holds a lock.
#[derive(Debug, Default)]
pub struct TapeWriter {
    bytes: Vec<u8>,
    next_storage: u64,
    next_template: u32,
    next_symbol: u32,
    next_script: u32,
    records: u64,
}

impl TapeWriter {
    pub fn new() -> Self {
        TapeWriter::default()
    }

    /// A writer of a script's body, whose storages 0 to `externals` are the program's.
    pub fn of_script(externals: u64) -> Self {
        TapeWriter { next_storage: externals, ..TapeWriter::default() }
    }

    /// The records written since the last [`TapeWriter::take`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Empties the buffer after its bytes were sent.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Takes the records out, leaving `replacement` (cleared) as the buffer.
    pub fn take(&mut self, mut replacement: Vec<u8>) -> Vec<u8> {
        replacement.clear();
        std::mem::replace(&mut self.bytes, replacement)
    }

    pub fn next_storage(&self) -> StorageId {
        StorageId(self.next_storage)
    }

    /// Records written so far, those of [`TapeWriter::take`] included.
    pub fn records(&self) -> u64 {
        self.records
    }

    fn head(&mut self, head: u64) {
        self.records += 1;
        put(&mut self.bytes, head);
    }

    fn storage(&mut self, id: StorageId) {
        debug_assert!(id.0 < self.next_storage, "a record names a storage made before it");
        put(&mut self.bytes, self.next_storage - id.0);
    }

    /// `encoded` is a [`Template`] in its wire form.
    pub fn define(&mut self, encoded: &[u8]) -> TemplateId {
        self.head(head::DEFINE);
        put_bytes(&mut self.bytes, encoded);
        let id = TemplateId(self.next_template);
        self.next_template += 1;
        id
    }

    /// Appends an operator and returns the id of its first new storage. Inputs are raw ids so
    /// that the capture's C++ side can hand its array over as it is.
    pub fn op(
        &mut self,
        template: TemplateId,
        inputs: &[u64],
        scalars: &[u64],
        new_storages: u64,
    ) -> StorageId {
        self.head(head::OP + u64::from(template.0));
        self.operands(inputs, scalars);
        self.new_ids(new_storages)
    }

    /// `encoded` is a [`Template`] without outputs.
    pub fn run(
        &mut self,
        token: u64,
        encoded: &[u8],
        inputs: &[u64],
        scalars: &[u64],
        reserve: u64,
    ) -> StorageId {
        self.head(head::RUN);
        put(&mut self.bytes, token);
        put(&mut self.bytes, reserve);
        put_bytes(&mut self.bytes, encoded);
        self.operands(inputs, scalars);
        self.new_ids(reserve)
    }

    fn operands(&mut self, inputs: &[u64], scalars: &[u64]) {
        for id in inputs {
            self.storage(StorageId(*id));
        }
        for word in scalars {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn new_ids(&mut self, count: u64) -> StorageId {
        let first = StorageId(self.next_storage);
        self.next_storage += count;
        first
    }

    pub fn free(&mut self, id: StorageId) {
        self.head(head::FREE);
        self.storage(id);
    }

    pub fn alloc(&mut self, bytes: u64) -> StorageId {
        self.head(head::ALLOC);
        put(&mut self.bytes, bytes);
        self.new_ids(1)
    }

    pub fn resize(&mut self, id: StorageId, bytes: u64) {
        self.head(head::RESIZE);
        self.storage(id);
        put(&mut self.bytes, bytes);
    }

    pub fn upload(&mut self, id: StorageId, offset: u64, len: u64, source: RegionSpan) {
        self.head(head::UPLOAD);
        self.storage(id);
        put(&mut self.bytes, offset);
        put(&mut self.bytes, len);
        put(&mut self.bytes, source.region.into());
        put(&mut self.bytes, source.offset);
    }

    pub fn upload_inline(&mut self, id: StorageId, offset: u64, bytes: &[u8]) {
        self.head(head::UPLOAD_INLINE);
        self.storage(id);
        put(&mut self.bytes, offset);
        put_bytes(&mut self.bytes, bytes);
    }

    pub fn bind_weight(&mut self, id: StorageId, hash: &WeightHash) {
        self.head(head::BIND_WEIGHT);
        self.storage(id);
        self.bytes.extend_from_slice(hash);
    }

    pub fn store_weight(&mut self, id: StorageId, hash: &WeightHash) {
        self.head(head::STORE_WEIGHT);
        self.storage(id);
        self.bytes.extend_from_slice(hash);
    }

    pub fn read(
        &mut self,
        token: u64,
        id: StorageId,
        offset: u64,
        len: u64,
        dest: Option<RegionSpan>,
    ) {
        self.head(head::READ);
        put(&mut self.bytes, token);
        self.storage(id);
        put(&mut self.bytes, offset);
        put(&mut self.bytes, len);
        match dest {
            None => put(&mut self.bytes, 0),
            Some(span) => {
                put(&mut self.bytes, u64::from(span.region) + 1);
                put(&mut self.bytes, span.offset);
            }
        }
    }

    pub fn fence(&mut self, token: u64) {
        self.head(head::FENCE);
        put(&mut self.bytes, token);
    }

    pub fn seed(&mut self, seed: u64) {
        self.head(head::SEED);
        put(&mut self.bytes, seed);
    }

    pub fn set_generator_state(&mut self, state: &[u8]) {
        self.head(head::SET_GENERATOR_STATE);
        put_bytes(&mut self.bytes, state);
    }

    pub fn get_generator_state(&mut self, token: u64) {
        self.head(head::GET_GENERATOR_STATE);
        put(&mut self.bytes, token);
    }

    pub fn symbol(&mut self, text: &str) -> u32 {
        self.head(head::SYMBOL);
        put_bytes(&mut self.bytes, text.as_bytes());
        let id = self.next_symbol;
        self.next_symbol += 1;
        id
    }

    pub fn mark(&mut self, kind: MarkKind, symbol: u32) {
        self.head(head::MARK);
        self.bytes.push(kind as u8);
        put(&mut self.bytes, symbol.into());
    }

    pub fn settings(&mut self, threads: u32, settings: &[u8]) {
        self.head(head::SETTINGS);
        put(&mut self.bytes, threads.into());
        put_bytes(&mut self.bytes, settings);
    }

    pub fn forget_templates(&mut self) {
        self.head(head::FORGET_TEMPLATES);
        self.next_template = 0;
        self.next_script = 0;
    }

    /// `body` was written by a [`TapeWriter::of_script`] with as many externals.
    pub fn define_script(&mut self, externals: u64, body: &[u8]) -> u32 {
        self.head(head::DEFINE_SCRIPT);
        put(&mut self.bytes, externals);
        put_bytes(&mut self.bytes, body);
        let id = self.next_script;
        self.next_script += 1;
        id
    }

    /// Runs a script on these storages, which makes `made` others; returns the id of the first.
    /// `frees` says for each external that the body frees, in order, whether it is freed.
    pub fn run_script(
        &mut self,
        script: u32,
        externals: &[u64],
        frees: &[bool],
        made: u64,
    ) -> StorageId {
        self.head(head::RUN_SCRIPT);
        put(&mut self.bytes, script.into());
        for id in externals {
            self.storage(StorageId(*id));
        }
        for bits in frees.chunks(8) {
            let byte = bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
            self.bytes.push(byte);
        }
        self.new_ids(made)
    }

    pub fn skip(&mut self, count: u64) {
        self.head(head::SKIP);
        put(&mut self.bytes, count);
        self.new_ids(count);
    }
}

/// Decodes a session's tape, frame by frame. Records never straddle frames.
///
/// Invariant: an id it returns is below the number of ids assigned so far; whether the storage
/// is still alive is for the session to check.
#[derive(Debug, Default)]
pub struct TapeDecoder {
    templates: Vec<Arc<Template>>,
    run_template: Option<Arc<Template>>,
    scripts: Vec<Arc<Script>>,
    play: Option<Play>,
    next_storage: u64,
    next_symbol: u32,
    inputs: Vec<StorageId>,
    scalars: Vec<u64>,
}

impl TapeDecoder {
    pub fn new() -> Self {
        TapeDecoder::default()
    }

    pub fn next_storage(&self) -> StorageId {
        StorageId(self.next_storage)
    }

    pub fn template(&self, id: TemplateId) -> Option<&Arc<Template>> {
        self.templates.get(id.0 as usize)
    }

    /// The next record at `*position` in `bytes`, or `None` at the end. After an error the
    /// session cannot continue: its ids no longer agree with its peer's.
    ///
    /// While a script runs its records come, and `*position` stays where the run stands.
    pub fn next<'a>(
        &'a mut self,
        bytes: &'a [u8],
        position: &mut usize,
    ) -> Result<Option<Record<'a>>, WireError> {
        if self.play.is_some() {
            return self.play_on(position).map(Some);
        }
        let rest = bytes.get(*position..).unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader::new(rest);
        let head = reader.varint("record head")?;
        if head == head::RUN_SCRIPT {
            return self.run_script(&mut reader, position).map(Some);
        }
        let record = self.decode(head, &mut reader)?;
        *position += reader.position();
        Ok(Some(record))
    }

    /// Begins to play a script. `*position` passes its run with the script's last record.
    fn run_script<'a>(
        &'a mut self,
        reader: &mut Reader,
        position: &mut usize,
    ) -> Result<Record<'a>, WireError> {
        let id = reader.bounded("script", SCRIPTS_MAX)?;
        let Some(script) = self.scripts.get(id).cloned() else {
            return Err(WireError::NoSuch { what: "script", value: id as u64 });
        };
        let mut externals = Vec::with_capacity(script.externals as usize);
        for _ in 0..script.externals {
            externals.push(self.storage(reader)?);
        }
        let frees = reader.take("freed externals", script.frees.div_ceil(8) as usize)?.to_vec();
        let base = self.new_ids(script.made)?;
        let play = Play::new(script, externals, frees, base, reader.position());
        if play.is_over() {
            *position += play.length;
        } else {
            self.play = Some(play);
        }
        Ok(Record::RunScript { id: id as u32, script: &self.scripts[id] })
    }

    /// The next record of the script that runs.
    fn play_on(&mut self, position: &mut usize) -> Result<Record<'_>, WireError> {
        let play = self.play.as_mut().expect("the caller saw a script that runs");
        let mut scratch = Scratch { inputs: &mut self.inputs, scalars: &mut self.scalars };
        let played = play.next(&self.templates, &mut scratch)?;
        if play.is_over() {
            *position += play.length;
            self.play = None;
        }
        Ok(match played {
            Played::Op { template, first_new } => Record::Op {
                id: TemplateId(template),
                template: &self.templates[template as usize],
                inputs: &self.inputs,
                scalars: &self.scalars,
                first_new,
            },
            Played::Free { id } => Record::Free { id },
            Played::Alloc { id, bytes } => Record::Alloc { id, bytes },
            Played::Mark { kind, symbol } => Record::Mark { kind, symbol },
        })
    }

    /// Whether the next record is one of a script that runs.
    pub fn is_playing(&self) -> bool {
        self.play.is_some()
    }

    fn decode<'a>(
        &'a mut self,
        head: u64,
        reader: &mut Reader<'a>,
    ) -> Result<Record<'a>, WireError> {
        if head >= head::OP {
            return self.decode_op(reader, head - head::OP);
        }
        Ok(match head {
            head::DEFINE => {
                let bytes = reader.bytes("template", TEMPLATE_BYTES_MAX)?;
                limit("templates", self.templates.len() as u64 + 1, TEMPLATES_MAX as u64)?;
                let id = TemplateId(self.templates.len() as u32);
                self.templates.push(Arc::new(Template::decode(bytes)?));
                Record::Define { id, template: &self.templates[id.0 as usize], bytes }
            }
            head::FREE => Record::Free { id: self.storage(reader)? },
            head::ALLOC => {
                let bytes = storage_bytes(reader)?;
                Record::Alloc { id: self.new_ids(1)?, bytes }
            }
            head::RESIZE => {
                Record::Resize { id: self.storage(reader)?, bytes: storage_bytes(reader)? }
            }
            head::UPLOAD => Record::Upload {
                id: self.storage(reader)?,
                offset: storage_bytes(reader)?,
                len: storage_bytes(reader)?,
                source: RegionSpan {
                    region: reader.bounded("region", u32::MAX as usize)? as u32,
                    offset: region_offset(reader)?,
                },
            },
            head::UPLOAD_INLINE => Record::UploadInline {
                id: self.storage(reader)?,
                offset: storage_bytes(reader)?,
                bytes: reader.bytes("inline upload", INLINE_BYTES_MAX)?,
            },
            head::BIND_WEIGHT => {
                Record::BindWeight { id: self.storage(reader)?, hash: hash(reader)? }
            }
            head::STORE_WEIGHT => {
                Record::StoreWeight { id: self.storage(reader)?, hash: hash(reader)? }
            }
            head::READ => {
                let token = reader.varint("token")?;
                let id = self.storage(reader)?;
                let offset = storage_bytes(reader)?;
                let len = storage_bytes(reader)?;
                let dest = match reader.bounded("region", u32::MAX as usize)? {
                    0 => {
                        limit("inline read", len, INLINE_BYTES_MAX as u64)?;
                        None
                    }
                    region => Some(RegionSpan {
                        region: (region - 1) as u32,
                        offset: region_offset(reader)?,
                    }),
                };
                Record::Read { token, id, offset, len, dest }
            }
            head::FENCE => Record::Fence { token: reader.varint("token")? },
            head::SEED => Record::Seed { seed: reader.varint("seed")? },
            head::SET_GENERATOR_STATE => Record::SetGeneratorState {
                state: reader.bytes("generator state", GENERATOR_STATE_BYTES_MAX)?,
            },
            head::GET_GENERATOR_STATE => {
                Record::GetGeneratorState { token: reader.varint("token")? }
            }
            head::SYMBOL => {
                let text = reader.str("symbol", STRING_BYTES_MAX)?;
                limit("symbols", u64::from(self.next_symbol) + 1, SYMBOLS_MAX as u64)?;
                let id = self.next_symbol;
                self.next_symbol += 1;
                Record::Symbol { id, text }
            }
            head::MARK => {
                let (kind, symbol) = mark(reader, self.next_symbol)?;
                Record::Mark { kind, symbol }
            }
            head::RUN => {
                let token = reader.varint("token")?;
                let reserve = reader.varint("reserve")?;
                limit("reserve", reserve, RUN_RESERVE_MAX)?;
                let bytes = reader.bytes("template", TEMPLATE_BYTES_MAX)?;
                let template = Arc::new(Template::decode(bytes)?);
                self.operands(reader, template.slots, template.scalars)?;
                let first_new = self.new_ids(reserve)?;
                Record::Run {
                    token,
                    template: self.run_template.insert(template),
                    inputs: &self.inputs,
                    scalars: &self.scalars,
                    first_new,
                    reserve,
                }
            }
            head::SKIP => {
                let count = reader.varint("skip")?;
                self.new_ids(count)?;
                Record::Skip { count }
            }
            head::SETTINGS => Record::Settings {
                threads: reader.bounded("threads", u32::MAX as usize)? as u32,
                settings: reader.bytes("settings", SETTINGS_BYTES_MAX)?,
            },
            head::FORGET_TEMPLATES => {
                self.templates.clear();
                self.scripts.clear();
                Record::ForgetTemplates
            }
            head::DEFINE_SCRIPT => {
                let externals = reader.bounded("script's externals", SCRIPT_EXTERNALS_MAX)?;
                let bytes = reader.bytes("script", SCRIPT_BYTES_MAX)?;
                limit("scripts", self.scripts.len() as u64 + 1, SCRIPTS_MAX as u64)?;
                let script =
                    Script::decode(externals as u32, bytes, &self.templates, self.next_symbol)?;
                let id = self.scripts.len();
                self.scripts.push(Arc::new(script));
                Record::DefineScript { id: id as u32, script: &self.scripts[id], bytes }
            }
            value => return Err(WireError::Unknown { what: "record", value }),
        })
    }

    fn decode_op<'a>(
        &'a mut self,
        reader: &mut Reader<'a>,
        template: u64,
    ) -> Result<Record<'a>, WireError> {
        let (slots, scalars, new) = match self.templates.get(template as usize) {
            Some(known) => (known.slots, known.scalars, known.new_storages.len() as u64),
            None => return Err(WireError::NoSuch { what: "template", value: template }),
        };
        self.operands(reader, slots, scalars)?;
        let first_new = self.new_ids(new)?;
        Ok(Record::Op {
            id: TemplateId(template as u32),
            template: &self.templates[template as usize],
            inputs: &self.inputs,
            scalars: &self.scalars,
            first_new,
        })
    }

    fn operands(&mut self, reader: &mut Reader, slots: u32, scalars: u32) -> Result<(), WireError> {
        self.inputs.clear();
        self.scalars.clear();
        for _ in 0..slots {
            let id = self.storage(reader)?;
            self.inputs.push(id);
        }
        for _ in 0..scalars {
            self.scalars.push(reader.u64_le("scalar")?);
        }
        Ok(())
    }

    fn storage(&self, reader: &mut Reader) -> Result<StorageId, WireError> {
        storage(reader, self.next_storage)
    }

    fn new_ids(&mut self, count: u64) -> Result<StorageId, WireError> {
        let first = self.next_storage;
        self.next_storage = first
            .checked_add(count)
            .filter(|next| *next <= i64::MAX as u64)
            .ok_or(WireError::TooLarge { what: "skip", value: count, max: i64::MAX as u64 })?;
        Ok(StorageId(first))
    }
}

/// A storage that was made before storage `next`.
pub(crate) fn storage(reader: &mut Reader, next: u64) -> Result<StorageId, WireError> {
    let distance = reader.varint("storage")?;
    match next.checked_sub(distance) {
        Some(id) if distance > 0 => Ok(StorageId(id)),
        _ => Err(WireError::NoSuch { what: "storage at distance", value: distance }),
    }
}

/// What a mark says, and its symbol, one of the first `symbols`.
pub(crate) fn mark(reader: &mut Reader, symbols: u32) -> Result<(MarkKind, u32), WireError> {
    let kind = match reader.u8("mark kind")? {
        0 => MarkKind::ModuleEnter,
        1 => MarkKind::ModuleExit,
        2 => MarkKind::PhaseEnter,
        3 => MarkKind::PhaseExit,
        4 => MarkKind::Stage,
        value => return Err(WireError::Unknown { what: "mark kind", value: value.into() }),
    };
    let symbol = reader.varint("symbol")?;
    if symbol >= u64::from(symbols) {
        return Err(WireError::NoSuch { what: "symbol", value: symbol });
    }
    Ok((kind, symbol as u32))
}

pub(crate) fn storage_bytes(reader: &mut Reader) -> Result<u64, WireError> {
    Ok(reader.bounded("storage bytes", STORAGE_BYTES_MAX as usize)? as u64)
}

fn region_offset(reader: &mut Reader) -> Result<u64, WireError> {
    Ok(reader.bounded("region offset", REGION_BYTES_MAX as usize)? as u64)
}

fn hash(reader: &mut Reader) -> Result<WeightHash, WireError> {
    let bytes = reader.take("weight hash", 32)?;
    Ok(bytes.try_into().expect("take returned 32 bytes"))
}

pub(crate) fn limit(what: &'static str, value: u64, max: u64) -> Result<(), WireError> {
    if value > max { Err(WireError::TooLarge { what, value, max }) } else { Ok(()) }
}
