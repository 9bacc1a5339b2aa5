//! When a host may say that it is ready: once its own node serves.
//!
//! Nodes elsewhere come and go, and a host in front of them outlives that: it is ready as soon as
//! it listens, and tells each session which node it gets, or why none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, eventfd};

use crate::nodes::Nodes;

/// The host's first node, which is started behind its back: meanwhile it can be stopped.
pub struct Readiness {
    told: Arc<Told>,
}

struct Told {
    event: OwnedFd,
    /// Whether the node serves, or why not.
    result: Mutex<Option<Result<(), String>>>,
}

impl Readiness {
    pub fn begin(nodes: Arc<Nodes>) -> anyhow::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context("make an event descriptor")?;
        let told = Arc::new(Told { event, result: Mutex::new(None) });
        if nodes.remote().is_some() {
            told.tell(Ok(()));
            return Ok(Readiness { told });
        }
        let teller = told.clone();
        std::thread::Builder::new()
            .name("first-node".to_owned())
            .spawn(move || teller.tell(nodes.child().connect().map(drop)))
            .context("start a thread")?;
        Ok(Readiness { told })
    }

    /// Readable when [`Readiness::look`] has something to tell.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.told.event.as_fd()
    }

    /// Whether the host has become ready just now; an error says why it cannot.
    pub fn look(&self) -> anyhow::Result<bool> {
        let _ = rustix::io::read(&self.told.event, &mut [0u8; 8]);
        let result = self.told.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.transpose().map(|serves| serves.is_some()).map_err(|why| anyhow!(why))
    }
}

impl Told {
    fn tell(&self, result: Result<(), String>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}
