//! The threads that load plugins, answer questions and recognize new topologies, behind the
//! sessions' backs.

use std::sync::Arc;
use std::time::Instant;

use genie_analyzer::components::Parted;
use genie_engine::NewTopology;
use genie_plugin_host::{PluginHost, Settings};

use super::known::Annotated;
use super::queue::{Job, Question, Queue};
use super::{Analysis, graph_of, lock, plan};

/// A thread's stack: the guest's, the host's side of a call, and graphs of any size.
const STACK_BYTES: usize = 4 << 20;
/// Sessions come first: these threads yield the processor to them.
const NICE: i32 = 10;

/// Starts the threads. They end with their analysis.
pub fn start(
    analysis: &Arc<Analysis>,
    plugins: Option<Settings>,
    watch: bool,
    queue: Arc<Queue>,
) -> std::io::Result<()> {
    if let Some(settings) = plugins {
        let weak = Arc::downgrade(analysis);
        thread("plugin-load", move || {
            let directory = settings.directory.clone();
            let opened = PluginHost::open(settings);
            let opened = opened.inspect_err(|error| {
                tracing::warn!("no plugins from {}: {error}", directory.display());
            });
            if let Some(analysis) = weak.upgrade() {
                analysis.set_plugins(opened.ok().map(Arc::new), watch);
            }
        })?;
    }
    let weak = Arc::downgrade(analysis);
    thread("analysis", move || {
        while let Some(job) = queue.next() {
            let Some(analysis) = weak.upgrade() else { return };
            match job {
                Job::Answer(question) => analysis.answer(question),
                Job::Recognize(new) => {
                    analysis.recognize(new);
                    lock(&analysis.known).waiting -= 1;
                }
            }
        }
    })
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let thread = rustix::thread::gettid();
        if let Err(errno) = rustix::process::setpriority_process(Some(thread), NICE) {
            tracing::debug!("the analysis keeps its priority: {errno}");
        }
        work();
    })?;
    Ok(())
}

impl Analysis {
    /// Answers a question, unless its session has ended meanwhile.
    fn answer(&self, question: Question) {
        let Question { token, question, snapshot, devices, from } = question;
        if from.strong_count() == 0 {
            return;
        }
        let answer = self.told(question, &snapshot, &devices);
        if let Some(mailbox) = from.upgrade() {
            mailbox.answer(token, answer);
        }
    }

    /// Recognizes a topology in its context and remembers what it is.
    fn recognize(&self, new: NewTopology) {
        let Some(plugins) = self.plugins() else { return };
        if lock(&self.known).contains(new.topology) {
            return;
        }
        let started = Instant::now();
        let columns = graph_of(&new.context);
        let (Parted { graph, reading, .. }, _) = self.read(Some(&plugins), columns);
        let newest = new.context.segments.last().map_or(0, |noted| noted.trace().len());
        let from = graph.len().saturating_sub(newest);
        let mut phases: Vec<(String, u32)> = Vec::new();
        for claim in reading.phases[from..].iter().filter(|claim| !claim.word.is_empty()) {
            match phases.iter_mut().find(|(phase, _)| *phase == claim.word) {
                Some((_, count)) => *count += 1,
                None => phases.push((claim.word.clone(), 1)),
            }
        }
        let cluster = plan::cluster(&graph, &[]);
        let (plan, _) = plan::choose(&self.policy, Some(&plugins), &graph, &reading, &cluster);
        let policy = plan.policy;
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
