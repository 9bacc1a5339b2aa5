//! What a worker is born with: its ends of what the gate made for it.

use std::os::fd::OwnedFd;

/// The descriptors that travel with [`crate::message::Fork`].
#[derive(Debug)]
pub struct Ends {
    /// Of a [`crate::Channel`].
    pub channel: OwnedFd,
    /// The page of [`crate::Progress`].
    pub progress: OwnedFd,
    /// The page of [`crate::Borrower`].
    pub lease: OwnedFd,
    /// The socket of [`crate::Borrower`].
    pub lender: OwnedFd,
    /// Of the [`crate::Channel`] over which it asks for shared weights.
    pub shelf: OwnedFd,
}

impl Ends {
    pub fn into_fds(self) -> Vec<OwnedFd> {
        vec![self.channel, self.progress, self.lease, self.lender, self.shelf]
    }

    /// `None` when they are not as many.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Option<Self> {
        let [channel, progress, lease, lender, shelf] = <[OwnedFd; 5]>::try_from(fds).ok()?;
        Some(Ends { channel, progress, lease, lender, shelf })
    }
}
