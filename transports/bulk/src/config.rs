//! What a connection is told when it is made, and the limits it keeps.

/// Nanoseconds on the caller's monotonic clock. Only differences matter.
pub type Time = u64;

/// One microsecond in [`Time`].
pub const MICROSECOND: Time = 1_000;
/// One millisecond in [`Time`].
pub const MILLISECOND: Time = 1_000_000;
/// One second in [`Time`].
pub const SECOND: Time = 1_000_000_000;

/// `a * b / c`, at most `u64::MAX`: without a division of 128 bits where it can be (a small message
/// would pay for several).
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product / c,
        None => (u128::from(a) * u128::from(b) / u128::from(c)).try_into().unwrap_or(u64::MAX),
    }
}

/// The newest protocol version this crate speaks.
pub const VERSION: u8 = 2;
/// The oldest protocol version this crate still speaks.
pub const VERSION_OLDEST: u8 = 1;
/// From this version on, an acknowledgement may ride behind a message's last byte.
pub(crate) const VERSION_RIDING_ACKS: u8 = 2;
/// From this version on, messages that meet a withdrawn window return to their sender, and wait for the next offer.
pub(crate) const VERSION_RETURNS: u8 = 2;

/// The longest message.
pub const MESSAGE_BYTES_MAX: u64 = 1 << 32;
/// The most spans in one write.
pub const PARTS_MAX: usize = 256;
/// The smallest datagram a connection may be configured with.
pub const DATAGRAM_BYTES_MIN: usize = 512;
/// The largest datagram a connection may be configured with: what UDP over IPv4 carries.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// The most windows an end offers at once.
pub const WINDOWS_MAX: usize = 65_536;
/// The most messages a receiver may grant, whatever it announces.
pub const MESSAGES_AHEAD_MAX: u32 = 65_536;
/// The longest reason that travels with a close.
pub const REASON_BYTES_MAX: usize = 256;

/// Which end of the connection this is: the client speaks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends the first hello, and repeats it.
    Client,
    /// Answers hellos.
    Server,
}

/// How packets are protected. Both ends must be configured the same.
#[derive(Clone)]
pub enum Protection {
    /// AES-128-GCM under keys derived from a secret that both ends got from the control session.
    Sealed {
        /// 32 bytes that only the two ends know, never used for another connection.
        secret: [u8; 32],
    },
    /// No encryption and no authentication: a CRC finds damage, not attackers. For networks in which
    /// everybody who can send a datagram is trusted.
    Trusted,
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sealed { .. } => "Sealed",
            Self::Trusted => "Trusted",
        })
    }
}

/// Everything a connection is told at its start. [`Config::new`] fills in what most links want.
#[derive(Clone, Debug)]
pub struct Config {
    /// The connection's name on the wire: the same at both ends, unique among an endpoint's connections.
    pub connection_id: u64,
    /// Which end this is.
    pub role: Role,
    /// Sealed or trusted.
    pub protection: Protection,
    /// 16 fresh random bytes: they make this instance's keys its own, so a restarted peer with the
    /// same secret neither repeats a nonce nor is taken for its predecessor.
    pub nonce: [u8; 16],
    /// The oldest and the newest version to speak.
    pub versions: (u8, u8),
    /// The largest datagram payload the path carries: 1472 for IPv4 on Ethernet, 8972 with jumbo frames.
    pub datagram_bytes: usize,
    /// How many flows (UDP source ports) the carrier has: they spread over equal-cost paths.
    pub flows: u16,
    /// Sending rate before the first measurement, in bytes a second.
    pub rate_initial: u64,
    /// Sending rate never exceeded, in bytes a second.
    pub rate_max: u64,
    /// How many messages the peer may have started whose `Placed` was not polled yet
    /// (at most [`MESSAGES_AHEAD_MAX`]).
    pub messages_ahead: u32,
    /// How many writes may wait for an acknowledgement or a window before [`crate::WriteError::OutOfCredit`].
    pub writes_queued: usize,
    /// With something unacknowledged and nothing heard from the peer for this long, the connection closes.
    pub peer_timeout: Time,
    /// Ask for a sign of life after this long without one (`None`: an idle connection is never checked).
    pub keepalive: Option<Time>,
}

impl Config {
    /// A configuration for Ethernet with one flow, a first rate of 1 Gb/s and no upper rate.
    pub fn new(connection_id: u64, role: Role, protection: Protection, nonce: [u8; 16]) -> Self {
        Self {
            connection_id,
            role,
            protection,
            nonce,
            versions: (VERSION_OLDEST, VERSION),
            datagram_bytes: 1472,
            flows: 1,
            rate_initial: 125_000_000,
            rate_max: u64::MAX,
            messages_ahead: 4096,
            writes_queued: 16_384,
            peer_timeout: 30 * SECOND,
            keepalive: Some(10 * SECOND),
        }
    }

    pub(crate) fn check(&self) -> Result<(), crate::ConfigError> {
        use crate::ConfigError;
        let (oldest, newest) = self.versions;
        if oldest > newest || oldest < VERSION_OLDEST || newest > VERSION {
            return Err(ConfigError::Versions { oldest, newest });
        }
        if !(DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&self.datagram_bytes) {
            return Err(ConfigError::DatagramBytes { given: self.datagram_bytes });
        }
        if self.nonce == [0; 16] {
            return Err(ConfigError::Nonce);
        }
        if self.flows == 0 || self.rate_initial == 0 || self.rate_max == 0 {
            return Err(ConfigError::Zero);
        }
        if self.messages_ahead == 0 || self.messages_ahead > MESSAGES_AHEAD_MAX {
            return Err(ConfigError::MessagesAhead { given: self.messages_ahead });
        }
        Ok(())
    }
}
