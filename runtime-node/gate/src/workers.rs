//! The workers, as the gate knows them.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use genie_channel::message::{Ended, Fork, Forked, Limits};
use genie_channel::{Channel, Ends, Lender, Watched};
use rustix::event::epoll::EventFlags;

use crate::groups::Group;

/// Makes the processes that workers are.
pub trait Nursery {
    /// Readable when [`Nursery::poll`] has something; it may be another after each poll.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Starts a worker.
    fn start(&mut self, fork: Fork, ends: Ends) -> Result<(), String>;

    /// Ends a worker at once, if it still runs.
    fn end(&mut self, worker: u64);

    /// What became of workers.
    fn poll(&mut self) -> Option<Told>;

    /// When to call [`Nursery::poll`] although nothing was readable.
    fn due(&self) -> Option<Instant> {
        None
    }
}

/// What a [`Nursery`] tells.
#[derive(Debug)]
pub enum Told {
    Forked(Forked),
    Ended(Ended),
    /// All workers are gone with the process that made them; the next start makes another.
    Lost(String),
}

/// What every worker may use.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerLimits(pub Limits);

pub(crate) struct Worker {
    pub(crate) channel: Channel,
    pub(crate) interest: EventFlags,
    pub(crate) watched: Watched,
    /// What bounds its process.
    pub(crate) group: Group,
    /// What it may take of its device's memory.
    pub(crate) lender: Lender,
    /// For the weights that it shares with others.
    pub(crate) shelf: Channel,
    /// Whose it is, and for which device.
    pub(crate) key: (String, u32),
    pub(crate) pid: u32,
    pub(crate) sessions: BTreeSet<u64>,
    /// Since when it has had no session.
    pub(crate) idle_since: Option<Instant>,
    /// It was asked to end, or its channel ended: no session goes there any more. When to bury it
    /// without a word of how it ended.
    pub(crate) ending: Option<Instant>,
    /// It ended because it was asked to.
    pub(crate) asked: bool,
    /// The operator that it was seen to run, by their number, and since when.
    pub(crate) running: Option<(u64, Instant)>,
    /// The gate ended it, for its operator took too long: the flag that says so.
    pub(crate) overdue: Option<&'static str>,
}

impl Worker {
    /// How it ended, for people.
    pub(crate) fn describe(&self, ended: &Ended) -> String {
        let full = (ended.signal == libc::SIGKILL as u32 && self.group.was_full())
            .then_some("it took more memory than the client's control group has");
        describe(ended, &self.watched.look().operator, self.overdue.or(full))
    }
}

fn describe(ended: &Ended, operator: &str, why: Option<&'static str>) -> String {
    let how = match (ended.signal, why) {
        (_, Some(why)) => format!("was ended ({why})"),
        (0, None) if ended.status == 0 => "ended by itself".to_owned(),
        (0, None) => format!("ended with status {}", ended.status),
        (9, None) => "was killed (SIGKILL; the machine may be out of memory)".to_owned(),
        (signal, None) => format!("ended by {}", signal_name(signal)),
    };
    match operator {
        "" => how,
        operator => format!("{how} while it ran {operator}"),
    }
}

fn signal_name(signal: u32) -> String {
    let name = match signal as i32 {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
