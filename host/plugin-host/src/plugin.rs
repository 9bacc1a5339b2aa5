//! One plugin of a host: loaded or refused, its instance, its strikes and figures.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use genie_plugin::Info;
use serde::Serialize;

use crate::component::{Failure, Prepared, Running, Shape};
use crate::discover::Stamps;
use crate::limits::{Limits, MESSAGE_BYTES_MAX, STRIKES_FADE_CALLS};
use crate::manifest::Kind;
use crate::text::clean;

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("it ran longer than {} ms", .0.as_millis())]
    Overrun(Duration),
    #[error("it wanted more than {} MiB of memory", .0 >> 20)]
    Memory(usize),
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("what it gave is illegal: {0}")]
    Illegal(String),
    #[error("it says: {0}")]
    Said(String),
    #[error("the graph has {bytes} bytes, too many for a plugin's memory of {memory_bytes}")]
    GraphTooLarge { bytes: usize, memory_bytes: usize },
}

impl CallError {
    /// Whether the plugin is to blame.
    pub fn is_strike(&self) -> bool {
        !matches!(self, CallError::Said(_) | CallError::GraphTooLarge { .. })
    }

    pub(crate) fn of(failure: Failure, limits: &Limits) -> CallError {
        match failure {
            Failure::Overrun(overrun) => CallError::Overrun(overrun.0),
            Failure::Memory => CallError::Memory(limits.memory_bytes),
            Failure::Trap(why) => CallError::Trap(clean(&why, MESSAGE_BYTES_MAX)),
            Failure::Said(why) => CallError::Said(clean(&why, MESSAGE_BYTES_MAX)),
        }
    }
}

/// What one plugin answered.
#[derive(Debug, Clone)]
pub struct Call<T> {
    pub plugin: String,
    pub version: String,
    pub took: Duration,
    pub result: Result<T, CallError>,
}

/// Whether a plugin is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "why")]
pub enum PluginState {
    Ready,
    /// It was never loaded.
    Refused(String),
    /// It had its strikes; it is loaded anew when its files change.
    Disabled(String),
}

/// A plugin and its figures.
#[derive(Debug, Clone, Serialize)]
pub struct PluginStatus {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub kinds: Vec<Kind>,
    #[serde(flatten)]
    pub state: PluginState,
    pub manifest: PathBuf,
    /// The interface it was built for, such as `0.3.0`.
    pub wit: String,
    pub provides: Vec<String>,
    pub calls: u64,
    pub errors: u64,
    pub strikes: u32,
    pub total_us: u64,
    pub last_us: u64,
    /// What loading took: compiling or reading compiled code, and starting an instance.
    pub compile_us: u64,
    pub start_us: u64,
    /// Whether the compiled code came from the cache.
    pub cached: bool,
    /// Linear memory of its instance now.
    pub memory_bytes: usize,
}

/// A plugin that passed all checks.
pub(crate) struct Loaded {
    pub prepared: Prepared,
    pub shape: Shape,
    pub info: Info,
    pub compile: Duration,
    pub start: Duration,
    pub cached: bool,
}

pub(crate) struct Slot {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub kinds: Vec<Kind>,
    pub manifest_path: PathBuf,
    pub component_path: Option<PathBuf>,
    /// Of the files when they were read.
    pub stamps: Mutex<Stamps>,
    pub digest: Option<[u8; 32]>,
    pub loaded: Result<Loaded, String>,
    /// Locked during a call, so that calls come one at a time.
    instance: Mutex<Option<Running>>,
    /// Locked for moments only: whoever asks how a plugin does waits for no call.
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    strikes: u32,
    good_calls: u32,
    disabled: Option<String>,
    calls: u64,
    errors: u64,
    total: Duration,
    last: Duration,
    /// Of the instance that waits for the next call.
    memory_bytes: usize,
}

impl Slot {
    /// A plugin of which nothing but its manifest's path is known to be right.
    pub fn refused(manifest_path: &Path, why: String) -> Slot {
        let dir = manifest_path.parent().and_then(Path::file_name).unwrap_or_default();
        Slot {
            name: clean(&dir.to_string_lossy(), MESSAGE_BYTES_MAX),
            version: String::new(),
            summary: String::new(),
            kinds: vec![],
            manifest_path: manifest_path.to_owned(),
            component_path: None,
            stamps: Mutex::new(Stamps::now(manifest_path, None)),
            digest: None,
            loaded: Err(why),
            instance: Mutex::default(),
            figures: Mutex::default(),
        }
    }

    /// The instance that was made to try the plugin serves the first call.
    pub fn keep(&self, instance: Running) {
        self.figures().memory_bytes = instance.memory_bytes();
        *self.instance() = Some(instance);
    }

    pub fn is_enabled(&self) -> bool {
        self.loaded.is_ok() && self.figures().disabled.is_none()
    }

    fn instance(&self) -> MutexGuard<'_, Option<Running>> {
        self.instance.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Not to be held while an instance is called, or its lock waited for.
    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// Makes one call and keeps count. `None` where the plugin is refused or disabled.
    pub fn call<T>(
        &self,
        limits: &Limits,
        call: impl FnOnce(&mut Running) -> Result<T, CallError>,
    ) -> Option<Call<T>> {
        let loaded = self.loaded.as_ref().ok()?;
        let mut kept = self.instance();
        // Looked at now: the call before may have been the last.
        if self.figures().disabled.is_some() {
            *kept = None;
            return None;
        }
        let begin = Instant::now();
        let instance = match kept.take() {
            Some(instance) => Ok(instance),
            None => {
                // Usually far below a call's limit; what starts slowly gets what it took before.
                let limit = limits.call.max(loaded.start * 3);
                loaded.prepared.start(limit).map_err(|failure| CallError::of(failure, limits))
            }
        };
        let result = instance.and_then(|mut instance| {
            let result = call(&mut instance);
            let is_sound =
                matches!(result, Ok(_) | Err(CallError::Said(_) | CallError::GraphTooLarge { .. }));
            // A trap leaves an instance in an unknown state; illegal answers are suspicious too.
            if is_sound && instance.memory_bytes() <= limits.memory_kept_bytes {
                *kept = Some(instance);
            }
            result
        });
        let took = begin.elapsed();
        let mut figures = self.figures();
        figures.memory_bytes = kept.as_ref().map_or(0, Running::memory_bytes);
        figures.calls += 1;
        figures.total += took;
        figures.last = took;
        match &result {
            Ok(_) => {
                figures.good_calls += 1;
                if figures.good_calls >= STRIKES_FADE_CALLS {
                    figures.good_calls = 0;
                    figures.strikes = figures.strikes.saturating_sub(1);
                }
            }
            Err(error) => {
                figures.errors += 1;
                tracing::debug!("plugin {}: {error}", self.name);
                if error.is_strike() {
                    figures.strike(&self.name, &error.to_string(), limits);
                }
                if figures.disabled.is_some() {
                    *kept = None;
                    figures.memory_bytes = 0;
                }
            }
        }
        let (plugin, version) = (self.name.clone(), self.version.clone());
        Some(Call { plugin, version, took, result })
    }

    /// Counts a failure that was found after the call.
    pub fn strike(&self, why: &str, limits: &Limits) {
        let mut figures = self.figures();
        figures.errors += 1;
        figures.strike(&self.name, &clean(why, MESSAGE_BYTES_MAX), limits);
        let disabled = figures.disabled.is_some();
        drop(figures);
        if disabled {
            *self.instance() = None;
            self.figures().memory_bytes = 0;
        }
    }

    pub fn status(&self) -> PluginStatus {
        let figures = self.figures();
        let loaded = self.loaded.as_ref().ok();
        let us = |duration: Duration| duration.as_micros() as u64;
        PluginStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            summary: self.summary.clone(),
            kinds: self.kinds.clone(),
            state: match (&self.loaded, &figures.disabled) {
                (Err(why), _) => PluginState::Refused(why.clone()),
                (Ok(_), Some(why)) => PluginState::Disabled(why.clone()),
                (Ok(_), None) => PluginState::Ready,
            },
            manifest: self.manifest_path.clone(),
            wit: loaded.map(|loaded| loaded.shape.wit.clone()).unwrap_or_default(),
            provides: loaded.map(|loaded| loaded.info.provides.clone()).unwrap_or_default(),
            calls: figures.calls,
            errors: figures.errors,
            strikes: figures.strikes,
            total_us: us(figures.total),
            last_us: us(figures.last),
            compile_us: loaded.map_or(0, |loaded| us(loaded.compile)),
            start_us: loaded.map_or(0, |loaded| us(loaded.start)),
            cached: loaded.is_some_and(|loaded| loaded.cached),
            memory_bytes: figures.memory_bytes,
        }
    }
}

impl Figures {
    fn strike(&mut self, name: &str, why: &str, limits: &Limits) {
        self.good_calls = 0;
        self.strikes += 1;
        if self.strikes < limits.strikes || self.disabled.is_some() {
            return;
        }
        tracing::warn!(
            "plugin {name} is disabled after {} failures, the last: {why}; Genie goes on \
             without it until its files change",
            self.strikes
        );
        self.disabled = Some(why.to_owned());
    }
}
