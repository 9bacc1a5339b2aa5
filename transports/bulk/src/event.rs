//! What a connection tells its caller.

use crate::error::{CloseReason, FailReason};

/// Something that happened, from [`crate::Connection::poll_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both ends proved that they know the secret.
    Connected {
        /// The version spoken.
        version: u8,
    },
    /// A message of the peer is wholly in its window. Told exactly once a message.
    Placed {
        /// The peer's message id.
        message: u64,
        /// The window it is in.
        window: u32,
        /// Where in the window it starts.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The peer has every byte of the message; its source memory is the caller's again.
    Written {
        /// The message.
        message: u64,
    },
    /// The message will not be delivered; its source memory is the caller's again.
    Failed {
        /// The message.
        message: u64,
        /// Why.
        reason: FailReason,
    },
    /// After a refused write: there is room again.
    Writable,
    /// The connection ended; the last event.
    Closed(CloseReason),
}

/// What [`crate::Connection::poll_transmit`] put into the caller's buffer: `segments` datagrams one
/// after another, all `segment_bytes` long except the last, which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// The flow (source port) to send them on, below `Config::flows`.
    pub flow: u16,
    /// How many datagrams.
    pub segments: usize,
    /// Length of each but the last.
    pub segment_bytes: usize,
    /// Length of all together.
    pub bytes: usize,
}

/// Counters since the start, and the sender's present view of the path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Datagrams sent.
    pub packets_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Those of them that carried bytes of a message (or the word of an empty one).
    pub data_packets: u64,
    /// Datagrams received whose check held.
    pub packets_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Payload bytes of messages sent for the first time.
    pub payload_sent: u64,
    /// Payload bytes sent again.
    pub payload_resent: u64,
    /// Payload bytes placed.
    pub payload_placed: u64,
    /// Packets declared lost.
    pub packets_lost: u64,
    /// Packets declared lost whose acknowledgement came later.
    pub losses_spurious: u64,
    /// Times the probe timer fired.
    pub probes: u64,
    /// Datagrams ignored because their packet number was received before, or is too old to know.
    pub replays_ignored: u64,
    /// Payload bytes ignored because they were placed before.
    pub duplicate_bytes: u64,
    /// Datagrams dropped because their check failed.
    pub corrupt_dropped: u64,
    /// Datagrams dropped because they are not this connection's, too short, or of an unknown kind.
    pub foreign_dropped: u64,
    /// Datagrams dropped because a limit was reached or their window withdrawn; the peer sends them
    /// again or gives up their message.
    pub limit_dropped: u64,
    /// Messages acknowledged wholly.
    pub messages_written: u64,
    /// Messages placed wholly.
    pub messages_placed: u64,
    /// Smoothed round trip, nanoseconds.
    pub srtt: u64,
    /// Smallest recent round trip, nanoseconds.
    pub rtt_min: u64,
    /// Estimated delivery rate, bytes a second.
    pub delivery_rate: u64,
    /// Present sending rate, bytes a second.
    pub pacing_rate: u64,
    /// Bytes allowed in flight.
    pub window_bytes: u64,
    /// Bytes in flight.
    pub in_flight: u64,
}

impl Statistics {
    /// Names and values, as carriers tell them; times in microseconds.
    pub fn entries(&self) -> [(&'static str, u64); 23] {
        [
            ("packets_sent", self.packets_sent),
            ("bytes_sent", self.bytes_sent),
            ("packets_received", self.packets_received),
            ("bytes_received", self.bytes_received),
            ("payload_sent", self.payload_sent),
            ("payload_placed", self.payload_placed),
            ("retransmitted", self.payload_resent),
            ("packets_lost", self.packets_lost),
            ("losses_spurious", self.losses_spurious),
            ("probes", self.probes),
            ("replays_ignored", self.replays_ignored),
            ("duplicate_bytes", self.duplicate_bytes),
            ("corrupt_dropped", self.corrupt_dropped),
            ("foreign_dropped", self.foreign_dropped),
            ("limit_dropped", self.limit_dropped),
            ("messages_written", self.messages_written),
            ("messages_placed", self.messages_placed),
            ("srtt_us", self.srtt / 1000),
            ("rtt_min_us", self.rtt_min / 1000),
            ("delivery_rate", self.delivery_rate),
            ("pacing_rate", self.pacing_rate),
            ("window_bytes", self.window_bytes),
            ("in_flight", self.in_flight),
        ]
    }
}
