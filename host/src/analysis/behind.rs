//! The thread that loads plugins and recognizes new topologies, behind the sessions' backs.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use genie_engine::NewTopology;
use genie_plugin::Graph;
use genie_plugin_host::{PluginHost, Settings};

use super::known::Annotated;
use super::{Analysis, graph_of, lock, plan};

/// The thread's stack: the guest's, the host's side of a call, and graphs of any size.
const STACK_BYTES: usize = 4 << 20;
/// Sessions come first: this thread yields the processor to them.
const NICE: i32 = 10;

/// Starts the thread. It ends with its analysis.
pub fn start(
    analysis: &Arc<Analysis>,
    plugins: Option<Settings>,
    watch: bool,
    queue: Receiver<NewTopology>,
) -> std::io::Result<()> {
    let weak = Arc::downgrade(analysis);
    std::thread::Builder::new().name("analysis".into()).stack_size(STACK_BYTES).spawn(
        move || {
            let thread = rustix::thread::gettid();
            if let Err(errno) = rustix::process::setpriority_process(Some(thread), NICE) {
                tracing::debug!("the analysis keeps its priority: {errno}");
            }
            if let Some(settings) = plugins {
                let directory = settings.directory.clone();
                let opened = PluginHost::open(settings);
                let opened = opened.inspect_err(|error| {
                    tracing::warn!("no plugins from {}: {error}", directory.display());
                });
                let Some(analysis) = weak.upgrade() else { return };
                analysis.set_plugins(opened.ok().map(Arc::new), watch);
            }
            while let Ok(new) = queue.recv() {
                let Some(analysis) = weak.upgrade() else { return };
                analysis.recognize(new);
                lock(&analysis.known).waiting -= 1;
            }
        },
    )?;
    Ok(())
}

impl Analysis {
    /// Recognizes a topology in its context and remembers what it is.
    fn recognize(&self, new: NewTopology) {
        let Some(plugins) = self.plugins(Duration::ZERO) else { return };
        if lock(&self.known).contains(new.topology) {
            return;
        }
        let started = Instant::now();
        let columns = graph_of(&new.context);
        let (reading, _) = self.read(Some(&plugins), &columns);
        let newest = new.context.segments.last().map_or(0, |noted| noted.trace().len());
        let from = columns.nodes().saturating_sub(newest);
        let mut phases: Vec<(String, u32)> = Vec::new();
        for claim in reading.phases[from..].iter().filter(|claim| !claim.word.is_empty()) {
            match phases.iter_mut().find(|(phase, _)| *phase == claim.word) {
                Some((_, count)) => *count += 1,
                None => phases.push((claim.word.clone(), 1)),
            }
        }
        let policy = match Graph::new(columns) {
            Ok(graph) => plan::choose(&self.policy, Some(&plugins), &graph, &reading, &[]).0.policy,
            Err(_) => String::new(),
        };
        let annotated = Annotated {
            workload: reading.workload.word.clone(),
            confidence: reading.workload.confidence,
            phases,
            policy,
        };
        tracing::debug!("topology {}: {annotated:?}", new.topology);
        let mut known = lock(&self.known);
        known.insert(new.topology, annotated);
        known.us += started.elapsed().as_micros() as u64;
    }
}
