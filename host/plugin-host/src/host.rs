//! The plugins of one directory.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use genie_plugin::{Annotations, Cluster, Columns, Edit, Hint, Plan, Sample};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::cache::{Cache, Key};
use crate::check;
use crate::compile::{Compiler, compile};
use crate::component::{Prepared, Running, Shape};
use crate::directory::{DirectoryError, check_directory};
use crate::discover::{self, Source, Stamps};
use crate::engine::{self, Ticker};
use crate::limits::{Limits, MESSAGE_BYTES_MAX};
use crate::manifest::{Capability, Kind};
use crate::plugin::{Call, CallError, Loaded, PluginStatus, Slot};
use crate::text::clean;

/// What a plugin host is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Holds one directory for each plugin, or is the directory of one.
    pub directory: PathBuf,
    /// Where compiled plugins are kept; none: they are compiled at each start.
    pub cache: Option<PathBuf>,
    pub compiler: Compiler,
    /// What plugins may have when they ask for it; [`Capability::Log`] goes without saying.
    pub grants: Vec<Capability>,
    pub limits: Limits,
}

/// Why there is no plugin host. One bad plugin is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("cannot start the sandbox for plugins: {0}")]
    Engine(String),
}

/// What a new look at the directory changed, by names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rescan {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    /// Names with reasons; also among the added and changed.
    pub refused: Vec<(String, String)>,
}

/// The plugins of a directory, ready to be called from several threads. A calling thread needs
/// a stack of [`Limits::stack_bytes`] and [`crate::limits::STACK_RESERVE_BYTES`].
pub struct PluginHost {
    settings: Settings,
    limits: Arc<Limits>,
    engine: Engine,
    compatibility: [u8; 32],
    cache: Option<Cache>,
    ticker: Ticker,
    /// Sorted by name.
    slots: RwLock<Vec<Arc<Slot>>>,
    /// One look at the directory at a time.
    scanning: Mutex<()>,
}

impl PluginHost {
    /// Loads what the directory holds. A plugin that cannot be loaded is refused with a reason.
    pub fn open(settings: Settings) -> Result<PluginHost, OpenError> {
        check_directory(&settings.directory)?;
        let failed = |error: String| OpenError::Engine(error);
        let engine =
            engine::engine(settings.limits.stack_bytes).map_err(|e| failed(format!("{e:#}")))?;
        let ticker = Ticker::start(engine.clone()).map_err(|error| failed(error.to_string()))?;
        let cache = settings.cache.as_deref().and_then(|dir| {
            Cache::open(dir)
                .inspect_err(|why| tracing::info!("plugins are compiled at each start: {why}"))
                .ok()
        });
        let host = PluginHost {
            limits: Arc::new(settings.limits.clone()),
            compatibility: engine::compatibility(&engine),
            engine,
            cache,
            ticker,
            slots: RwLock::default(),
            scanning: Mutex::default(),
            settings,
        };
        host.rescan();
        Ok(host)
    }

    /// Looks at the directory again and loads what has changed; the rest goes on undisturbed.
    pub fn rescan(&self) -> Rescan {
        let _scanning = self.scanning.lock().unwrap_or_else(|error| error.into_inner());
        let before = self.slots();
        let mut compiled = HashMap::new();
        let mut rescan = Rescan::default();
        let mut after: Vec<Arc<Slot>> = Vec::new();
        // A directory that others have begun to write to holds no plugins of ours.
        let manifests = match check_directory(&self.settings.directory) {
            Ok(()) => discover::manifests(&self.settings.directory),
            Err(error) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        };
        for path in manifests {
            let known = before.iter().find(|slot| slot.manifest_path == path);
            let mut slot = self.look(&path, known, &after, &mut compiled);
            // Refused as before, for the same reason.
            let is_as_before = |known: &&Arc<Slot>| {
                (&known.name, &known.component_path) == (&slot.name, &slot.component_path)
                    && known.loaded.is_err()
                    && known.loaded.as_ref().err() == slot.loaded.as_ref().err()
            };
            if let Some(known) = known.filter(is_as_before) {
                slot = known.clone();
            }
            match known {
                Some(known) if Arc::ptr_eq(known, &slot) => {}
                Some(_) => rescan.changed.push(slot.name.clone()),
                None => rescan.added.push(slot.name.clone()),
            }
            if known.is_none_or(|known| !Arc::ptr_eq(known, &slot)) {
                announce(&slot, known, &mut rescan);
            }
            after.push(slot);
        }
        for slot in &before {
            if !after.iter().any(|other| other.manifest_path == slot.manifest_path) {
                tracing::info!("plugin {} is gone", slot.name);
                rescan.removed.push(slot.name.clone());
            }
        }
        after.sort_by(|a, b| (&a.name, &a.manifest_path).cmp(&(&b.name, &b.manifest_path)));
        *self.slots.write().unwrap_or_else(|error| error.into_inner()) = after;
        rescan
    }

    /// A number that changes when the directory's plugins do; it only looks at the files' times
    /// and sizes.
    pub fn fingerprint(&self) -> u64 {
        let slots = self.slots();
        let mut hasher = DefaultHasher::new();
        for path in discover::manifests(&self.settings.directory) {
            let known = slots.iter().find(|slot| slot.manifest_path == path);
            let component = known.and_then(|slot| slot.component_path.as_deref());
            (&path, Stamps::now(&path, component)).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Asks every recognizer, in the order of their names.
    pub fn recognize(&self, graph: &Columns) -> Vec<Call<Annotations>> {
        self.each(Kind::Recognizer, |slot| self.recognize_by(slot, graph))
    }

    /// Asks one recognizer; `None` where none of that name is ready.
    pub fn recognize_with(&self, name: &str, graph: &Columns) -> Option<Call<Annotations>> {
        self.recognize_by(&*self.find(Kind::Recognizer, name)?, graph)
    }

    fn recognize_by(&self, slot: &Slot, graph: &Columns) -> Option<Call<Annotations>> {
        self.call(slot, Some(graph), |running, limit| {
            let answer = running.recognize(limit, graph).map_err(|f| self.error(f))?;
            check::annotations(self.said(answer)?, graph).map_err(CallError::Illegal)
        })
    }

    /// Asks the policy of that name; `None` where it is not ready.
    pub fn schedule(
        &self,
        policy: &str,
        graph: &Columns,
        notes: &Annotations,
        now: &Cluster,
    ) -> Option<Call<Plan>> {
        let slot = self.find(Kind::Policy, policy)?;
        self.call(&slot, Some(graph), |running, limit| {
            let answer = running.schedule(limit, graph, notes, now).map_err(|f| self.error(f))?;
            check::plan(self.said(answer)?, graph, now).map_err(CallError::Illegal)
        })
    }

    /// Asks every rewriter, in the order of their names.
    pub fn rewrite(&self, graph: &Columns, notes: &Annotations) -> Vec<Call<Vec<Edit>>> {
        self.each(Kind::Rewrite, |slot| {
            self.call(slot, Some(graph), |running, limit| {
                let answer = running.rewrite(limit, graph, notes).map_err(|f| self.error(f))?;
                check::edits(self.said(answer)?, graph).map_err(CallError::Illegal)
            })
        })
    }

    /// Asks everyone who gives hints, in the order of their names.
    pub fn adapt(
        &self,
        now: &Cluster,
        samples: &[Sample],
        current: &[Hint],
    ) -> Vec<Call<Vec<Hint>>> {
        self.each(Kind::Hints, |slot| {
            self.call(slot, None, |running, limit| {
                let answer = running.adapt(limit, now, samples, current);
                let answer = answer.map_err(|failure| self.error(failure))?;
                check::hints(self.said(answer)?, now).map_err(CallError::Illegal)
            })
        })
    }

    /// Counts a failure that the host found in what a plugin gave, such as an illegal plan.
    pub fn strike(&self, plugin: &str, why: &str) {
        if let Some(slot) = self.slots().iter().find(|slot| slot.name == plugin) {
            slot.strike(why, &self.limits);
        }
    }

    /// All plugins, also those that are refused or disabled.
    pub fn plugins(&self) -> Vec<PluginStatus> {
        self.slots().iter().map(|slot| slot.status()).collect()
    }

    /// The names of the policies that are ready.
    pub fn policies(&self) -> Vec<String> {
        let slots = self.slots();
        let ready = slots.iter().filter(|slot| is_ready(slot, Kind::Policy));
        ready.map(|slot| slot.name.clone()).collect()
    }

    /// What the component of a plugin imports and exports.
    pub fn shape(&self, plugin: &str) -> Option<Shape> {
        let slots = self.slots();
        let slot = slots.iter().find(|slot| slot.name == plugin)?;
        slot.loaded.as_ref().ok().map(|loaded| loaded.shape.clone())
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(|error| error.into_inner()).clone()
    }

    fn find(&self, kind: Kind, name: &str) -> Option<Arc<Slot>> {
        self.slots().into_iter().find(|slot| slot.name == name && is_ready(slot, kind))
    }

    fn each<T>(&self, kind: Kind, call: impl Fn(&Slot) -> Option<Call<T>>) -> Vec<Call<T>> {
        let slots = self.slots();
        slots.iter().filter(|slot| is_ready(slot, kind)).filter_map(|slot| call(slot)).collect()
    }

    fn call<T>(
        &self,
        slot: &Slot,
        graph: Option<&Columns>,
        call: impl FnOnce(&mut Running, Duration) -> Result<T, CallError>,
    ) -> Option<Call<T>> {
        let _ticking = self.ticker.running();
        slot.call(&self.limits, |running| {
            let bytes = graph.map_or(0, bytes);
            let memory_bytes = self.limits.memory_bytes;
            // Columns and what a plugin makes of them have to fit its memory.
            if bytes > memory_bytes / 4 {
                return Err(CallError::GraphTooLarge { bytes, memory_bytes });
            }
            call(running, self.limits.call_on(graph.map_or(0, Columns::nodes)))
        })
    }

    fn error(&self, failure: crate::component::Failure) -> CallError {
        CallError::of(failure, &self.limits)
    }

    fn said<T>(&self, answer: Result<T, String>) -> Result<T, CallError> {
        answer.map_err(|why| CallError::Said(clean(&why, MESSAGE_BYTES_MAX)))
    }

    /// The plugin of a manifest: the known one if nothing changed, else loaded anew.
    fn look(
        &self,
        path: &Path,
        known: Option<&Arc<Slot>>,
        others: &[Arc<Slot>],
        compiled: &mut HashMap<[u8; 32], Component>,
    ) -> Arc<Slot> {
        if let Some(known) = known {
            let now = Stamps::now(path, known.component_path.as_deref());
            let is_same = *known.stamps.lock().unwrap_or_else(|e| e.into_inner()) == now;
            let is_free = !others.iter().any(|other| other.name == known.name);
            if is_same && is_free && known.digest.is_some() {
                return known.clone();
            }
        }
        let (manifest, text) = match discover::read_manifest(path) {
            Ok(read) => read,
            Err(why) => return Arc::new(Slot::refused(path, why)),
        };
        let component_path = path.parent().map(|dir| dir.join(&manifest.component));
        let stamps = Stamps::now(path, component_path.as_deref());
        let mut slot = Slot::refused(path, String::new());
        slot.name = manifest.name.clone();
        slot.version = manifest.version.clone();
        slot.summary = manifest.summary.clone();
        slot.kinds = manifest.kinds.clone();
        slot.component_path = component_path;
        slot.stamps = Mutex::new(stamps.clone());
        if let Some(other) = others.iter().find(|other| other.name == slot.name) {
            let other = other.manifest_path.display();
            slot.loaded = Err(format!("{other} has the same name; rename one of them"));
            return Arc::new(slot);
        }
        let source = match discover::read_component(path, manifest, &text, &self.limits) {
            Ok(source) => source,
            Err(why) => {
                slot.loaded = Err(why);
                return Arc::new(slot);
            }
        };
        let is_same = |known: &&Arc<Slot>| known.digest == Some(source.digest);
        if let Some(known) = known.filter(is_same).filter(|known| known.is_enabled()) {
            *known.stamps.lock().unwrap_or_else(|e| e.into_inner()) = stamps;
            return known.clone();
        }
        slot.digest = Some(source.digest);
        match self.load(&source, compiled) {
            Ok((loaded, instance)) => {
                slot.loaded = Ok(loaded);
                slot.keep(instance);
            }
            Err(why) => slot.loaded = Err(why),
        }
        Arc::new(slot)
    }

    fn load(
        &self,
        source: &Source,
        compiled: &mut HashMap<[u8; 32], Component>,
    ) -> Result<(Loaded, Running), String> {
        let begin = Instant::now();
        let key = Key::new(&source.component, &self.compatibility);
        let (component, cached) = match compiled.get(&key.0) {
            Some(component) => (component.clone(), true),
            None => self.component(&key, &source.component)?,
        };
        compiled.insert(key.0, component.clone());
        let compile = begin.elapsed();
        let shape = Shape::of(&self.engine, &component);
        let (manifest, grants) = (&source.manifest, &self.settings.grants);
        let prepared =
            Prepared::new(&self.engine, &component, manifest, grants, self.limits.clone())?;
        let begin = Instant::now();
        let _ticking = self.ticker.running();
        let limit = self.limits.start();
        let failed =
            |failure| format!("it does not start: {}", CallError::of(failure, &self.limits));
        let mut instance = prepared.start(limit).map_err(failed)?;
        let start = begin.elapsed();
        let mut info = instance.describe(limit).map_err(failed)?;
        info.provides.truncate(PROVIDES_MAX);
        for word in &mut info.provides {
            *word = clean(word, MESSAGE_BYTES_MAX);
        }
        Ok((Loaded { prepared, shape, info, compile, start, cached }, instance))
    }

    fn component(&self, key: &Key, component: &[u8]) -> Result<(Component, bool), String> {
        if let Some(artifact) = self.cache.as_ref().and_then(|cache| cache.get(key)) {
            // SAFETY: the cache gives only what this program compiled and sealed, for an engine
            // of these settings.
            if let Ok(component) = unsafe { Component::deserialize(&self.engine, &artifact) } {
                return Ok((component, true));
            }
        }
        let artifact = compile(&self.settings.compiler, component, &self.limits)?;
        if let Some(Err(error)) = self.cache.as_ref().map(|cache| cache.put(key, &artifact)) {
            tracing::debug!("a compiled plugin is not kept: {error}");
        }
        // SAFETY: the artifact comes from this program's own compiler a moment ago, through
        // memory that nobody else has.
        let component = unsafe { Component::deserialize(&self.engine, &artifact) };
        component.map(|component| (component, false)).map_err(|error| format!("{error:#}"))
    }
}

/// Words of what a plugin says it provides that are kept.
const PROVIDES_MAX: usize = 256;

fn is_ready(slot: &Slot, kind: Kind) -> bool {
    slot.kinds.contains(&kind) && slot.is_enabled()
}

/// One line for what was loaded or refused.
fn announce(slot: &Slot, before: Option<&Arc<Slot>>, rescan: &mut Rescan) {
    let name = &slot.name;
    match &slot.loaded {
        Ok(loaded) => {
            let kinds: Vec<&str> = slot.kinds.iter().map(|kind| kind.as_str()).collect();
            tracing::info!(
                "plugin {name} {} is loaded ({}, {} ms)",
                slot.version,
                kinds.join(", "),
                (loaded.compile + loaded.start).as_millis()
            );
        }
        Err(why) => {
            rescan.refused.push((name.clone(), why.clone()));
            let is_known = before.is_some_and(|before| before.loaded.as_ref().err() == Some(why));
            if !is_known {
                tracing::warn!("plugin {name} is refused: {why}");
            }
        }
    }
}

/// The bytes of a graph's columns.
fn bytes(c: &Columns) -> usize {
    let words = [
        &c.symbol_ends,
        &c.op,
        &c.module,
        &c.class,
        &c.mark,
        &c.model,
        &c.segment,
        &c.input_ends,
        &c.input_value,
        &c.input_geometry,
        &c.output_ends,
        &c.output_value,
        &c.output_geometry,
        &c.arg_ends,
        &c.value_storage,
        &c.value_producer,
        &c.geometry_ends,
    ];
    let longs =
        [&c.flops, &c.bytes, &c.input_offset, &c.output_offset, &c.arg_bits, &c.storage_bytes];
    c.blob.len()
        + words.iter().map(|column| column.len() * 4).sum::<usize>()
        + longs.iter().map(|column| column.len() * 8).sum::<usize>()
        + (c.sizes.len() + c.strides.len()) * 8
        + c.stage.len()
        + c.value_edge.len()
        + c.arg_kind.len()
        + c.storage_origin.len()
        + c.storage_alive.len()
        + c.geometry_dtype.len()
        + c.extra.iter().map(|(name, column)| name.len() + column.len() * 8).sum::<usize>()
}
