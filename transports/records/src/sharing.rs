//! What a transport adds whose two ends share memory.

use std::os::fd::OwnedFd;

use genie_transport::transport::{Memory, Result};

use crate::lane::Span;
use crate::record::Offer;

/// Windows as memory that both ends have mapped: the sender copies, and a record says that it did.
pub trait Sharing: Send {
    /// The descriptor that goes beside the greeting.
    fn greeting(&mut self) -> Result<OwnedFd>;

    /// The peer's, that came beside its greeting.
    fn greeted(&mut self, beside: OwnedFd) -> Result<()>;

    /// Prepares an offer of this memory: the gate that guards it, and the descriptor to pass on.
    fn offer(&mut self, generation: u64, memory: &Memory) -> Result<(u32, OwnedFd)>;

    /// Closes the gate: no copy of the peer's is under way, and none begins, when this returns.
    fn withdraw(&mut self, gate: u32) -> Result<()>;

    /// The peer offered a window.
    fn adopt(&mut self, offer: &Offer, beside: OwnedFd) -> Result<()>;

    /// The peer withdrew it.
    fn forget(&mut self, generation: u64);

    /// Copies to `offset` of a window of the peer's; `false`: it has been withdrawn.
    fn copy(&mut self, generation: u64, offset: u64, from: Span) -> Result<bool>;
}
