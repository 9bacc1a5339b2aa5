//! What a plugin may use.

use std::time::Duration;

/// The limits of one plugin host; each has a default that suits a program in front of a person.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The time of one call on a graph of up to [`NODES_A_CALL`] nodes, after which it is stopped; a larger
    /// graph has it once more for each as many nodes begun. It counts the processor time of the
    /// calling thread, so that a busy machine strikes no innocent plugin; wall time counts with
    /// [`STALL_FACTOR`].
    pub call: Duration,
    /// The time for loading one plugin: to compile it, and to start it.
    pub load: Duration,
    /// Address space of the process that compiles.
    pub compile_memory_bytes: u64,
    /// The largest component file.
    pub component_bytes: u64,
    /// Linear memory of one instance, all its memories together.
    pub memory_bytes: usize,
    /// An instance that has grown beyond this is not kept for the next call.
    pub memory_kept_bytes: usize,
    /// Entries of one instance's tables together.
    pub table_entries: usize,
    /// Core instances, memories and tables of one instance, each.
    pub parts: usize,
    /// Stack of the guest. The calling thread needs [`STACK_RESERVE_BYTES`] more.
    pub stack_bytes: usize,
    /// Bytes that one call may hand to the host.
    pub output_bytes: usize,
    /// Log lines of one call; the rest is counted.
    pub log_lines: u32,
    /// Bytes of one log line; the rest is cut.
    pub log_line_bytes: usize,
    /// Failures after which a plugin is disabled.
    pub strikes: u32,
}

/// Nodes of a graph for each of which, begun, a call has [`Limits::call`].
pub const NODES_A_CALL: usize = 1 << 12;
/// A call's wall time may be this often its limit. A guest cannot wait for anything, so what takes long
/// without processor time is a busy machine: the threads that call plugins yield to sessions, and were
/// seen to stand still for half a second. It is a bound all the same.
pub const STALL_FACTOR: u32 = 100;
/// A call is cut this much before its limit, so that it has ended, and its memory is given back,
/// when the limit comes.
pub const STOP_MARGIN_PERCENT: u32 = 20;
/// Stack that a thread needs beyond the guest's, for the host's side of a call.
pub const STACK_RESERVE_BYTES: usize = 256 << 10;
/// Calls in a row without failure after which a strike is forgotten: what fails once in so many costs less than
/// it gives. A host of many programs meets large graphs on a busy machine now and then, and keeps its plugins.
pub const STRIKES_FADE_CALLS: u32 = 32;
/// Plugins of one directory.
pub const PLUGINS_MAX: usize = 256;
/// The largest manifest.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 10;
/// The largest compiled component.
pub const ARTIFACT_BYTES_MAX: u64 = 512 << 20;
/// Bytes and files of the compile cache; the oldest go first.
pub const CACHE_BYTES_MAX: u64 = 2 << 30;
pub const CACHE_FILES_MAX: usize = 512;
/// Bytes of a plugin's own words in an error.
pub const MESSAGE_BYTES_MAX: usize = 512;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            call: Duration::from_millis(100),
            load: Duration::from_secs(5),
            compile_memory_bytes: 2 << 30,
            component_bytes: 32 << 20,
            memory_bytes: 256 << 20,
            memory_kept_bytes: 8 << 20,
            table_entries: 1 << 20,
            parts: 256,
            stack_bytes: 512 << 10,
            output_bytes: 32 << 20,
            log_lines: 16,
            log_line_bytes: 1 << 10,
            strikes: 3,
        }
    }
}

impl Limits {
    /// The time of a call on a graph of so many nodes.
    pub fn call_on(&self, nodes: usize) -> Duration {
        let begun = nodes.div_ceil(NODES_A_CALL).max(1);
        self.call.saturating_mul(u32::try_from(begun).unwrap_or(u32::MAX))
    }

    /// The part of [`Limits::load`] for compiling.
    pub fn compile(&self) -> Duration {
        self.load - self.start()
    }

    /// The part of [`Limits::load`] for starting an instance.
    pub fn start(&self) -> Duration {
        self.load / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_graph_has_more_time() {
        let limits = Limits::default();
        for (nodes, times) in [(0, 1), (4096, 1), (4097, 2), (16_384, 4)] {
            assert_eq!(limits.call_on(nodes), limits.call * times, "{nodes} nodes");
        }
    }
}
