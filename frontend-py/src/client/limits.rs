//! Every bound of the client, by name.

use std::time::Duration;

/// Bytes of records that wait for company before they are sent.
pub const FLUSH_BYTES: usize = 2 << 10;
/// Operators that wait for company before they are sent.
pub const FLUSH_OPS: u32 = 32;
/// How long records wait for company, once or twice, when no more come.
pub const LINGER: Duration = Duration::from_millis(2);
/// Turns without records after which nobody looks any more until the next record.
pub const LINGER_TURNS: u32 = 10;
/// Bytes of a freed storage that are worth a frame of their own.
pub const FREE_AT_ONCE_BYTES: u64 = 1 << 20;
/// Bytes queued for a host that does not keep up, beyond which capturing waits: at each flush
/// until there is room, a signal comes in or one [`WAIT_SLICE`] has passed.
pub const QUEUE_BYTES_MAX: usize = 256 << 10;
/// How often a wait looks whether a signal came in (a signal to the waiting thread itself ends
/// the slice at once).
pub const WAIT_SLICE: Duration = Duration::from_millis(50);
/// The largest upload that travels inside the tape.
pub const INLINE_UPLOAD_BYTES_MAX: u64 = 4 << 10;
/// The smallest announced weight that is asked for by content, among others.
pub const WEIGHT_BYTES_MIN: u64 = 64;
/// Announced weights are hashed and asked for until they have as many bytes, then uploaded.
pub const ASK_AHEAD_BYTES: u64 = 64 << 20;
/// The smallest upload of other content that may be a weight at its second sight: to send smaller
/// ones again costs less than to hash them and to ask.
pub const SIGHT_BYTES_MIN: u64 = 64 << 10;
/// Uploads that are remembered, to know them at second sight; twice as many at most.
pub const SIGHTS_MAX: usize = 1 << 14;
/// One step of a large transfer; several are in flight.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// Shared memory for uploads, and for downloads, unless configured.
pub const REGION_BYTES_DEFAULT: u64 = 64 << 20;
/// The smallest configurable region.
pub const REGION_BYTES_MIN: u64 = 64 << 10;
/// Steps of a download in flight.
pub const DOWNLOAD_SLOTS: u64 = 4;
/// How long a host may take to answer the hello.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer about the trace (an explanation, a recorded graph).
pub const TRACE_BYTES_MAX: usize = 512 << 20;
