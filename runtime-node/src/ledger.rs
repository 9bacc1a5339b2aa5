//! Bytes in use against the node's budget.

use genie_wire::ErrorCode;

use crate::Failure;

/// Counts the bytes of one device that sessions and the weight store hold.
#[derive(Debug)]
pub(crate) struct Ledger {
    used: u64,
    budget: u64,
    /// Storages of all sessions.
    pub(crate) storages: u64,
}

impl Ledger {
    pub(crate) fn new(budget: u64) -> Self {
        Ledger { used: 0, budget, storages: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether `bytes` more fit; the error says what to do.
    #[inline]
    pub(crate) fn check(&self, bytes: u64) -> Result<(), Failure> {
        if bytes > self.budget.saturating_sub(self.used) { Err(self.full(bytes)) } else { Ok(()) }
    }

    #[cold]
    fn full(&self, bytes: u64) -> Failure {
        Failure::new(
            ErrorCode::OutOfMemory,
            format!(
                "out of memory on the node: {bytes} bytes were asked for, {} of its {} bytes are \
                 in use; free tensors, use a smaller batch, or give genie-node more with \
                 --memory-bytes",
                self.used, self.budget
            ),
        )
    }

    /// Counts bytes that exist, whether or not they fit.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "no more is released than was charged");
        self.used = self.used.saturating_sub(bytes);
    }
}
