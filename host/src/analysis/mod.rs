//! What sessions ran, recognized behind their backs: new topologies, and what a program asks.
//!
//! Plugins are loaded and called on threads of their own, so sessions go on while they compile and
//! run; the answer to a question comes to the session's mailbox. A topology
//! is recognized once, at its first occurrence; a steady loop calls no plugin.

mod behind;
mod known;
mod plan;
mod queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_analyzer::components::{self, Parted};
use genie_analyzer::explanation::PluginTold;
use genie_analyzer::merge::{Reading, Said, merge};
use genie_analyzer::{Explanation, StorageFacts, columns};
use genie_engine::{NewTopology, Snapshot};
use genie_plugin::recorded::Recorded;
use genie_plugin::{Annotations, Columns};
use genie_plugin_host::{Call, Kind, PluginHost, PluginState, Settings, WATCH_EVERY, Watch};
use genie_srg::{Origin, Window};
use genie_wire::control::{Device, TraceQuestion};

use crate::analysis::known::Known;
use crate::analysis::queue::Queue;
use crate::serve::SOFTWARE;

pub use queue::Question;

/// What the analysis is told.
pub struct AnalysisSettings {
    /// None: no plugins, every window is `unknown`.
    pub plugins: Option<Settings>,
    /// Load plugins again when their files change.
    pub watch: bool,
    /// The policy that is asked first, and whether somebody chose it.
    pub policy: String,
    pub policy_asked: bool,
    /// Log every match.
    pub debug: bool,
}

/// The recognizers of this host and what they found.
pub struct Analysis {
    policy: String,
    policy_asked: bool,
    debug: bool,
    loading: Mutex<Loading>,
    known: Mutex<Known>,
    queue: Arc<Queue>,
}

enum Loading {
    Waiting,
    Without,
    Ready { plugins: Arc<PluginHost>, _watch: Option<Watch> },
}

impl Analysis {
    /// Starts loading the plugins, and the thread that calls them.
    pub fn start(settings: AnalysisSettings) -> std::io::Result<Arc<Analysis>> {
        let AnalysisSettings { plugins, watch, policy, policy_asked, debug } = settings;
        let queue = Arc::new(Queue::new(plugins.is_some()));
        let loading = match plugins {
            Some(_) => Loading::Waiting,
            None => Loading::Without,
        };
        let analysis = Arc::new(Analysis {
            policy,
            policy_asked,
            debug,
            loading: Mutex::new(loading),
            known: Mutex::default(),
            queue: queue.clone(),
        });
        behind::start(&analysis, plugins, watch, queue)?;
        Ok(analysis)
    }

    /// Whether new topologies are worth recognizing.
    pub fn is_on(&self) -> bool {
        !matches!(*lock(&self.loading), Loading::Without)
    }

    /// Has a new topology recognized, some time.
    pub fn begin(&self, new: NewTopology) {
        {
            let mut known = lock(&self.known);
            if known.contains(new.topology) {
                known.hits += 1;
                return;
            }
            known.waiting += 1;
        }
        if !self.queue.learn(new) {
            let mut known = lock(&self.known);
            known.waiting -= 1;
            known.dropped += 1;
        }
    }

    /// Has a question answered, some time; the error is the answer when too many wait.
    pub fn ask(&self, question: Question) -> Result<(), String> {
        self.queue.ask(question)
    }

    /// The answer to a question about what a session ran on `devices`.
    fn told(
        &self,
        question: TraceQuestion,
        snapshot: &Snapshot,
        devices: &[Device],
    ) -> Result<Vec<u8>, String> {
        match question {
            TraceQuestion::Reset => Ok(Vec::new()),
            TraceQuestion::Graph => {
                let recorded = Recorded::new(graph_of(snapshot), SOFTWARE, snapshot.truncated);
                Ok(recorded.to_json().into_bytes())
            }
            TraceQuestion::Explain => {
                self.explain(snapshot, devices).map(|told| told.to_json().into_bytes())
            }
        }
    }

    fn explain(&self, snapshot: &Snapshot, devices: &[Device]) -> Result<Explanation, String> {
        let columns = graph_of(snapshot);
        let plugins = self.plugins();
        columns.check().map_err(|error| error.to_string())?;
        let (parted, told) = self.read(plugins.as_deref(), columns);
        let cluster = plan::cluster(&parted.graph, devices);
        let device = cluster.devices.first();
        let mut explanation = Explanation::of(&parted, snapshot.truncated, device);
        explanation.plugins = told;
        explanation.why = self.reasons(plugins.as_deref());
        let (plan, notes) = plan::choose(
            &self.policy,
            plugins.as_deref(),
            &parted.graph,
            &parted.reading,
            &cluster,
        );
        explanation.plan = Some(plan);
        explanation.why.extend(notes);
        Ok(explanation)
    }

    /// Asks every recognizer about every model.
    fn read(&self, plugins: Option<&PluginHost>, columns: Columns) -> Read {
        let mut told: Vec<PluginTold> = Vec::new();
        let parted = components::read(columns, |columns| {
            let calls = plugins.map(|plugins| plugins.recognize(columns)).unwrap_or_default();
            let mut said = Vec::new();
            for call in calls {
                tell(&mut told, &call);
                if let Ok(notes) = call.result {
                    said.push(Said { plugin: call.plugin, notes });
                }
            }
            merge(columns, &said)
        });
        if self.debug {
            log(&parted.reading);
        }
        (parted, told)
    }

    /// Why somebody who expects more may get less.
    fn reasons(&self, plugins: Option<&PluginHost>) -> Vec<String> {
        let Some(plugins) = plugins else {
            return vec![match *lock(&self.loading) {
                Loading::Waiting => "the plugins are still being loaded; ask again".to_owned(),
                _ => "this host has no plugins: start it with --plugins DIR".to_owned(),
            }];
        };
        let mut reasons = Vec::new();
        for plugin in plugins.plugins() {
            match plugin.state {
                PluginState::Ready => {}
                PluginState::Refused(why) => {
                    reasons.push(format!("plugin {} was refused: {why}", plugin.name));
                }
                PluginState::Disabled(why) => {
                    reasons.push(format!("plugin {} is disabled: {why}", plugin.name));
                }
            }
        }
        reasons
    }

    /// The plugins, once they are loaded.
    fn plugins(&self) -> Option<Arc<PluginHost>> {
        match &*lock(&self.loading) {
            Loading::Ready { plugins, .. } => Some(plugins.clone()),
            Loading::Waiting | Loading::Without => None,
        }
    }

    fn set_plugins(&self, plugins: Option<Arc<PluginHost>>, watch: bool) {
        let loading = match plugins {
            None => Loading::Without,
            Some(plugins) => {
                self.look_for_policy(&plugins);
                let _watch = watch.then(|| Watch::start(plugins.clone(), WATCH_EVERY, |_| {}));
                let _watch = _watch.and_then(|watch| {
                    watch.inspect_err(|why| tracing::warn!("plugins are not watched: {why}")).ok()
                });
                Loading::Ready { plugins, _watch }
            }
        };
        *lock(&self.loading) = loading;
        self.queue.loaded();
    }

    /// Says so, once, when the policy that was asked for is not among the plugins.
    fn look_for_policy(&self, plugins: &PluginHost) {
        let policies = plugins.plugins().into_iter();
        let policies = policies.filter(|plugin| plugin.kinds.contains(&Kind::Policy));
        let names: Vec<String> = policies.map(|plugin| plugin.name).collect();
        if self.policy_asked && !names.contains(&self.policy) {
            tracing::warn!(
                "there is no policy `{}` (--policy, GENIE_POLICY): the built-in plan runs; \
                 there are: {}",
                self.policy,
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            );
        }
    }

    /// Counters for `genie-host status` and `genie.stats()`.
    pub fn entries(&self) -> Vec<(String, u64)> {
        let questions = self.queue.questions() as u64;
        let mut entries = vec![("analysis.questions".to_owned(), questions)];
        {
            let known = lock(&self.known);
            entries.push(("analysis.topologies".to_owned(), known.len() as u64));
            entries.push(("analysis.waiting".to_owned(), known.waiting));
            entries.push(("analysis.hits".to_owned(), known.hits));
            entries.push(("analysis.dropped".to_owned(), known.dropped));
            entries.push(("analysis.us".to_owned(), known.us));
        }
        if let Some(plugins) = self.plugins() {
            let statuses = plugins.plugins();
            let ready = statuses.iter().filter(|status| status.state == PluginState::Ready).count();
            entries.push(("plugins.ready".to_owned(), ready as u64));
            entries.push(("plugins.not_ready".to_owned(), (statuses.len() - ready) as u64));
            let sum = |value: fn(&genie_plugin_host::PluginStatus) -> u64| -> u64 {
                statuses.iter().map(value).sum()
            };
            entries.push(("plugins.calls".to_owned(), sum(|status| status.calls)));
            entries.push(("plugins.errors".to_owned(), sum(|status| status.errors)));
            entries.push(("plugins.us".to_owned(), sum(|status| status.total_us)));
            for status in statuses {
                entries.push((format!("plugin.{}.calls", status.name), status.calls));
                entries.push((format!("plugin.{}.us", status.name), status.total_us));
            }
        }
        entries
    }
}

impl Drop for Analysis {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// What recognizers say of each model and of all, and how each of them fared.
type Read = (Parted, Vec<PluginTold>);

/// Counts a call; of several of one plugin the first that went wrong is told.
fn tell(told: &mut Vec<PluginTold>, call: &Call<Annotations>) {
    let us = call.took.as_micros() as u64;
    let outcome = call.result.as_ref().map_or_else(ToString::to_string, |_| "ok".into());
    match told.iter_mut().find(|each| each.name == call.plugin) {
        Some(known) => {
            known.us += us;
            if known.outcome == "ok" {
                known.outcome = outcome;
            }
        }
        None => {
            let (name, version) = (call.plugin.clone(), call.version.clone());
            told.push(PluginTold { name, version, outcome, us });
        }
    }
}

/// The columns of everything in the snapshot.
fn graph_of(snapshot: &Snapshot) -> Columns {
    let known = |id: genie_wire::StorageId| snapshot.storages.get(&id.0);
    let origin = |id| known(id).map_or(Origin::Unknown, |storage| storage.origin);
    let window = Window::build(&snapshot.segments, origin);
    columns(&window, &snapshot.times, |id| {
        known(id).map(|storage| StorageFacts {
            bytes: storage.bytes,
            origin: storage.origin,
            alive: storage.alive,
        })
    })
}

fn log(reading: &Reading) {
    let workload = &reading.workload;
    tracing::info!("workload {} ({:.2}, {})", workload.word, workload.confidence, workload.by);
    for kept in &reading.matches {
        tracing::info!(
            "match {} by {}: phase {:?}, modality {:?}, confidence {:.2}, {} nodes",
            kept.pattern,
            kept.by,
            kept.phase,
            kept.modality,
            kept.confidence,
            kept.nodes.len()
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
