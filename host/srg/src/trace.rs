//! What is noted of a segment while it streams by: enough to build its graph later.

use std::sync::Arc;

use genie_wire::record::StorageId;
use genie_wire::{Template, TemplateId};

/// A storage by its order of first use within a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalStorage(pub u32);

/// A version of a storage within a segment; each write makes the next one. Version 0 is the
/// content before the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u32);

/// The stage of training that a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    /// No stage was marked: inference.
    #[default]
    None,
    Forward,
    Backward,
    Optimizer,
}

impl Stage {
    /// The stage named by a `Stage` mark's symbol.
    pub fn named(text: &str) -> Self {
        match text {
            "forward" => Stage::Forward,
            "backward" => Stage::Backward,
            "optimizer" => Stage::Optimizer,
            _ => Stage::None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Stage::None => "none",
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Optimizer => "optimizer",
        }
    }
}

/// Where a storage's content came from, as the session remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Origin {
    #[default]
    Unknown,
    /// Bound to, or kept as, a stored weight.
    Weight,
    /// Uploaded by the program.
    Upload,
    /// Made by an operator in this stage.
    Op(Stage),
}

/// A noted record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) kind: StepKind,
    /// Where its operands begin in [`Trace::operands`]: inputs first, then new storages.
    pub(crate) operands: u32,
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
    /// Index into the trace's contexts.
    pub(crate) context: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    Op(TemplateId),
    /// A synchronous operator; the index of its template in the trace.
    Run(u32),
    Alloc,
    Resize,
    Upload,
    BindWeight,
    StoreWeight,
    Read,
    Generator,
}

/// Module path, phase and stage shared by consecutive records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// `path\0class` of the innermost module.
    pub module: Option<Arc<str>>,
    pub phase: Option<Arc<str>>,
    pub stage: Stage,
}

/// The notes of one segment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    pub(crate) steps: Vec<Step>,
    pub(crate) operands: Vec<LocalStorage>,
    pub(crate) run_templates: Vec<Arc<Template>>,
    /// The first storage that each synchronous operator may make, by the same index.
    pub(crate) run_first: Vec<StorageId>,
    pub(crate) contexts: Vec<Context>,
    /// The session's id of each local storage, and whether it was made in the segment.
    pub(crate) storages: Vec<(StorageId, bool)>,
}

impl Trace {
    /// Records noted.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Storages that all records together name.
    pub fn operands(&self) -> usize {
        self.operands.len()
    }

    /// The session's storages that the segment touches, by [`LocalStorage`].
    pub fn storages(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.storages.iter().map(|(id, _)| *id)
    }

    /// The session's storages that the segment made.
    pub fn made(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.storages.iter().filter(|(_, made)| *made).map(|(id, _)| *id)
    }

    /// The session's storages that were there before the segment and that it touches.
    pub fn used(&self) -> impl Iterator<Item = StorageId> + '_ {
        self.storages.iter().filter(|(_, made)| !*made).map(|(id, _)| *id)
    }

    /// The session's storage by its [`LocalStorage`] number.
    pub fn storage(&self, local: usize) -> Option<StorageId> {
        self.storages.get(local).map(|(id, _)| *id)
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.steps.shrink_to_fit();
        self.operands.shrink_to_fit();
        self.contexts.shrink_to_fit();
        self.storages.shrink_to_fit();
    }

    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.operands.clear();
        self.run_templates.clear();
        self.run_first.clear();
        self.contexts.clear();
        self.storages.clear();
    }
}
