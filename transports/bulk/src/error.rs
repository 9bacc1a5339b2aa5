//! Why a call was refused and why a connection ended.

use crate::config::{
    DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, MESSAGE_BYTES_MAX, MESSAGES_AHEAD_MAX, PARTS_MAX,
    VERSION, VERSION_OLDEST, WINDOWS_MAX,
};

/// A configuration that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The version range is empty or outside what this crate speaks.
    #[error("versions {oldest}..={newest} are not within {VERSION_OLDEST}..={VERSION}")]
    Versions {
        /// The oldest asked for.
        oldest: u8,
        /// The newest asked for.
        newest: u8,
    },
    /// The datagram size is out of range.
    #[error("datagrams of {given} bytes: give {DATAGRAM_BYTES_MIN} to {DATAGRAM_BYTES_MAX}")]
    DatagramBytes {
        /// The size asked for.
        given: usize,
    },
    /// The number of messages granted is out of range.
    #[error("{given} messages ahead: give 1 to {MESSAGES_AHEAD_MAX}")]
    MessagesAhead {
        /// The number asked for.
        given: u32,
    },
    /// The nonce is not random.
    #[error("a nonce of zeros: give 16 fresh random bytes")]
    Nonce,
    /// Flows or a rate are zero.
    #[error("flows, rate_initial and rate_max must not be zero")]
    Zero,
}

/// Why a write was not taken. Nothing of it was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Too many writes wait already; an [`crate::Event::Writable`] follows.
    #[error("{queued} writes wait already: write again after the event Writable")]
    OutOfCredit {
        /// How many wait.
        queued: usize,
    },
    /// The message is longer than the protocol allows.
    #[error("message {message} has {bytes} bytes, the most is {MESSAGE_BYTES_MAX}: split it")]
    TooLong {
        /// The message.
        message: u64,
        /// Its length.
        bytes: u64,
    },
    /// The scatter list is too long.
    #[error("message {message} has {parts} parts, the most is {PARTS_MAX}: join some")]
    TooManyParts {
        /// The message.
        message: u64,
        /// The parts given.
        parts: usize,
    },
    /// Message ids rise.
    #[error("message {message} after {last}: message ids must rise")]
    NotRising {
        /// The id given.
        message: u64,
        /// The last id taken.
        last: u64,
    },
    /// The write does not fit the window that the peer offered (known only if it was offered already).
    #[error("message {message} ends at {end} in window {window}, which has {window_bytes} bytes")]
    OutsideWindow {
        /// The message.
        message: u64,
        /// The window.
        window: u32,
        /// Where the message would end.
        end: u64,
        /// The window's size.
        window_bytes: u64,
    },
    /// The connection is closed.
    #[error("the connection is closed: {0}")]
    Closed(CloseReason),
}

/// Why a window was not offered or withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The id is in use.
    #[error("window {window} is offered already: withdraw it first")]
    Offered {
        /// The window.
        window: u32,
    },
    /// No such window is offered.
    #[error("window {window} is not offered")]
    NotOffered {
        /// The window.
        window: u32,
    },
    /// Too many windows.
    #[error("{WINDOWS_MAX} windows are offered already: withdraw some first")]
    TooMany,
    /// The connection is closed.
    #[error("the connection is closed: {0}")]
    Closed(CloseReason),
}

/// A window's memory could not take bytes (a device that went away).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(pub String);

/// Why a message was given up by its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    /// The peer withdrew the window before the last byte was acknowledged, and speaks version 1 of the
    /// protocol, in which messages cannot begin anew. Bytes may have been placed.
    #[error("the peer withdrew the window")]
    Withdrawn,
    /// The write waited for its window, and does not fit the one that came.
    #[error("the message does not fit the window that the peer offered")]
    OutsideWindow,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This end called `close`.
    #[error("closed here with code {code}: {reason}")]
    Here {
        /// The application's code.
        code: u32,
        /// The application's words.
        reason: String,
    },
    /// The peer's application closed.
    #[error("closed by the peer with code {code}: {reason}")]
    Peer {
        /// The peer's code.
        code: u32,
        /// The peer's words.
        reason: String,
    },
    /// The peer's protocol engine gave up.
    #[error("the peer gave up: {reason}")]
    PeerFailed {
        /// The peer's words.
        reason: String,
    },
    /// Nothing was heard in time.
    #[error("nothing heard from the peer for {waited_ms} ms while waiting for it")]
    TimedOut {
        /// How long it was waited.
        waited_ms: u64,
    },
    /// No version in common.
    #[error(
        "no version in common: here {}..={}, the peer {}..={}: upgrade the older end",
        ours.0, ours.1, theirs.0, theirs.1
    )]
    Version {
        /// This end's oldest and newest.
        ours: (u8, u8),
        /// The peer's oldest and newest.
        theirs: (u8, u8),
    },
    /// The peer proved to be a new instance under the same connection id.
    #[error("the peer restarted: make a new connection")]
    PeerRestarted,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {what}")]
    Protocol {
        /// The rule broken.
        what: &'static str,
    },
    /// A window's memory refused bytes.
    #[error("window {window} could not take bytes: {error}")]
    Placement {
        /// The window.
        window: u32,
        /// What its memory said.
        error: PlaceError,
    },
    /// Too many packets failed authentication for the keys to stay safe.
    #[error("{failed} packets failed authentication: make a new connection with a new secret")]
    Forgeries {
        /// How many.
        failed: u64,
    },
    /// Packet numbers are used up.
    #[error("packet numbers are used up: make a new connection")]
    Exhausted,
}
