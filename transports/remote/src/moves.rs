//! Moves of weights from node to node: what host and nodes must agree on.

use std::time::Duration;

/// The largest weight that moves; clients upload larger ones.
pub const MOVE_BYTES_MAX: u64 = 1 << 30;
/// Until the first byte of a move: both nodes asked, and connected.
const SETUP: Duration = Duration::from_secs(10);
/// A move that is slower than this is given up; a 1 Gb/s link carries fifteen times as much.
const BYTES_PER_S_MIN: u64 = 8 << 20;

/// How long a move of so many bytes may take.
pub fn deadline(bytes: u64) -> Duration {
    SETUP + Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_S_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_weights_have_longer() {
        assert_eq!(deadline(0), SETUP);
        assert_eq!(deadline(80 << 20), SETUP + Duration::from_secs(10));
        assert!(deadline(u64::MAX) > deadline(MOVE_BYTES_MAX));
    }
}
