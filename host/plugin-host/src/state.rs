//! What the host keeps with each instance: deadline, quotas, the plugin's name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{ResourceLimiter, StoreContextMut, UpdateDeadline};

use crate::limits::{Limits, STALL_FACTOR, STOP_MARGIN_PERCENT};
use crate::text::clean;

/// How much a plugin's log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
}

/// The reason of a call that ran too long.
#[derive(Debug, thiserror::Error)]
#[error("it ran longer than {} ms", .0.as_millis())]
pub(crate) struct Overrun(pub Duration);

pub(crate) struct State {
    plugin: Arc<str>,
    limits: Arc<Limits>,
    /// Where the guest's clock begins.
    origin: Instant,
    deadline: Deadline,
    lines: u32,
    lines_dropped: u64,
    memory_bytes: usize,
    table_entries: usize,
    /// The guest asked for more memory than it may have.
    pub memory_denied: bool,
}

impl State {
    pub fn new(plugin: Arc<str>, limits: Arc<Limits>) -> State {
        State {
            plugin,
            deadline: Deadline::after(limits.load),
            limits,
            origin: Instant::now(),
            lines: 0,
            lines_dropped: 0,
            memory_bytes: 0,
            table_entries: 0,
            memory_denied: false,
        }
    }

    /// Before each call: a new deadline and a new quota of lines.
    pub fn begin(&mut self, limit: Duration) {
        self.deadline = Deadline::after(limit);
        self.lines = 0;
        self.lines_dropped = 0;
    }

    /// After each call: says how many lines were dropped.
    pub fn end(&mut self) {
        if self.lines_dropped > 0 {
            let (plugin, dropped) = (&*self.plugin, self.lines_dropped);
            tracing::warn!(target: "genie_plugin", plugin, "{dropped} more lines were dropped");
        }
    }

    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    pub fn log(&mut self, level: Level, message: &str) {
        if self.lines >= self.limits.log_lines {
            self.lines_dropped += 1;
            return;
        }
        self.lines += 1;
        let plugin = &*self.plugin;
        let line = clean(message, self.limits.log_line_bytes);
        match level {
            Level::Debug => tracing::debug!(target: "genie_plugin", plugin, "{line}"),
            Level::Info => tracing::info!(target: "genie_plugin", plugin, "{line}"),
            Level::Warn => tracing::warn!(target: "genie_plugin", plugin, "{line}"),
        }
    }

    pub fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }
}

/// Called by the engine when the epoch has moved while a guest runs.
pub(crate) fn on_epoch(context: StoreContextMut<State>) -> wasmtime::Result<UpdateDeadline> {
    match context.data().deadline.passed() {
        None => Ok(UpdateDeadline::Continue(1)),
        Some(limit) => Err(wasmtime::Error::from(Overrun(limit))),
    }
}

struct Deadline {
    limit: Duration,
    cpu_end: Duration,
    wall_end: Instant,
    stalled_at: Instant,
}

impl Deadline {
    fn after(limit: Duration) -> Deadline {
        let cut = limit - limit * STOP_MARGIN_PERCENT / 100;
        Deadline {
            limit,
            cpu_end: thread_cpu() + cut,
            wall_end: Instant::now() + cut,
            stalled_at: Instant::now() + limit * STALL_FACTOR,
        }
    }

    /// The limit that was passed.
    fn passed(&self) -> Option<Duration> {
        let now = Instant::now();
        if now < self.wall_end {
            return None;
        }
        (now >= self.stalled_at || thread_cpu() >= self.cpu_end).then_some(self.limit)
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if total > self.limits.memory_bytes {
            self.memory_denied = true;
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_entries.saturating_add(desired.saturating_sub(current));
        if total > self.limits.table_entries {
            return Ok(false);
        }
        self.table_entries = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.parts
    }

    fn tables(&self) -> usize {
        self.limits.parts
    }

    fn memories(&self) -> usize {
        self.limits.parts
    }
}
