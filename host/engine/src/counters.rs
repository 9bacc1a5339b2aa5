//! What a session counts.

/// Monotonic counts of one session; the host adds them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub frames_from_client: u64,
    pub bytes_from_client: u64,
    pub bytes_to_client: u64,
    /// Frame bytes sent to the node, payloads in shared memory not counted.
    pub bytes_to_node: u64,
    pub bytes_from_node: u64,
    pub records: u64,
    pub ops: u64,
    /// Ops whose outputs were not known before they ran.
    pub synchronous_ops: u64,
    pub templates: u64,
    pub template_bytes: u64,
    pub scripts: u64,
    pub script_bytes: u64,
    /// Scripts run; the operators that they stand for are among `ops`, their records are not
    /// among `records`.
    pub script_runs: u64,
    pub reads: u64,
    /// Payload bytes that reads asked for.
    pub read_bytes: u64,
    pub uploads: u64,
    /// Payload bytes uploaded, inline or through a region.
    pub upload_bytes: u64,
    /// Replies to tokens: each is one round trip the program waited for.
    pub round_trips: u64,
    /// Segments seen before with the same sizes.
    pub segments_known: u64,
    /// Segments whose topology was seen before with other sizes.
    pub segments_new_sizes: u64,
    pub segments_new: u64,
    /// Questions about a weight that was already there.
    pub weight_hits: u64,
    pub weight_misses: u64,
    /// Bytes that did not have to be uploaded again.
    pub weight_bytes_saved: u64,
    pub weights_stored: u64,
    pub weights_refused: u64,
}

impl Counters {
    /// Names and values, in order; the names are part of the status protocol.
    pub fn entries(&self) -> [(&'static str, u64); 28] {
        [
            ("frames_from_client", self.frames_from_client),
            ("bytes_from_client", self.bytes_from_client),
            ("bytes_to_client", self.bytes_to_client),
            ("bytes_to_node", self.bytes_to_node),
            ("bytes_from_node", self.bytes_from_node),
            ("records", self.records),
            ("ops", self.ops),
            ("synchronous_ops", self.synchronous_ops),
            ("templates", self.templates),
            ("template_bytes", self.template_bytes),
            ("scripts", self.scripts),
            ("script_bytes", self.script_bytes),
            ("script_runs", self.script_runs),
            ("reads", self.reads),
            ("read_bytes", self.read_bytes),
            ("uploads", self.uploads),
            ("upload_bytes", self.upload_bytes),
            ("round_trips", self.round_trips),
            ("segments_known", self.segments_known),
            ("segments_new_sizes", self.segments_new_sizes),
            ("segments_new", self.segments_new),
            ("weight_hits", self.weight_hits),
            ("weight_misses", self.weight_misses),
            ("weight_bytes_saved", self.weight_bytes_saved),
            ("weights_stored", self.weights_stored),
            ("weights_refused", self.weights_refused),
            // Kept last: derived, for people.
            ("segments", self.segments_known + self.segments_new_sizes + self.segments_new),
            ("bytes_to_node_per_op", self.bytes_to_node / self.ops.max(1)),
        ]
    }
}
