//! Closes a worker in: no files, no network, no other processes.
//!
//! A worker computes for a client that the node does not trust, with millions of lines of C++ that
//! were not written against attackers. What the worker's process cannot do, whoever takes it over
//! cannot do either. Each layer stands alone, so that a kernel that lacks one still has the others:
//!
//! 1. `limits`: no core file, a bound on descriptors and on memory of its own;
//! 2. `network`: an empty network namespace, where the node may make one;
//! 3. `privileges`: no capabilities, nothing to gain by an `exec`, closed to debuggers;
//! 4. `landlock`: no file, no TCP, no signal and no abstract socket of others;
//! 5. `seccomp`: only the system calls in the tables of `calls`.
//!
//! Descriptors that are open when the sandbox is entered, or that are passed in later, work as
//! before: they are the worker's only way out. Close what it must not have before [`Sandbox::enter`],
//! and let libraries read what they read once, such as `/proc/cpuinfo`.

mod calls;
mod fork;
mod landlock;
mod limits;
mod network;
mod privileges;
mod report;
mod seccomp;

use std::io;
use std::path::PathBuf;

pub use limits::OPEN_FILES;
pub use report::Report;

/// What a worker's device needs of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Nothing: no file at all.
    #[default]
    Cpu,
    /// NVIDIA's device files and what the driver reads. Written after its documentation; **not
    /// verified on hardware**. Files' contents are kept closed by Landlock alone, as seccomp sees no
    /// paths; names, sizes and times of all files are visible.
    Cuda {
        /// Directories of libraries that are loaded late, beside the system's.
        libraries: Vec<PathBuf>,
    },
}

/// The walls of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub profile: Profile,
    /// How much the process's own memory may grow: what is allocated, and stacks of threads; not what
    /// it shares with others, which only a control group bounds.
    pub own_bytes: Option<u64>,
}

/// Why a sandbox was not entered. What a kernel lacks is no error: [`Report::missing`] tells it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a sandbox closes in the calling thread, and this process has {0}")]
    Threads(u64),
    #[error("the table of system calls makes no filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("try the sandbox in a child process: {0}")]
    Probe(#[source] io::Error),
}

impl Sandbox {
    /// For a worker that computes on the CPU.
    pub fn cpu() -> Self {
        Self::default()
    }

    /// For a worker with an NVIDIA device; see [`Profile::Cuda`].
    pub fn cuda(libraries: Vec<PathBuf>) -> Self {
        Self { profile: Profile::Cuda { libraries }, own_bytes: None }
    }

    /// Closes this process in, for good. To be called right after the fork, before the first thread
    /// is started: other threads would stay outside.
    pub fn enter(&self) -> Result<Report, Error> {
        let mut report = Report::default();
        match threads() {
            Ok(1) => {}
            Ok(more) => return Err(Error::Threads(more)),
            Err(error) => report.lacks(format!("count of threads: {error}")),
        }
        let filters = seccomp::Filters::new(&self.profile)?;
        // In this order: a namespace needs a capability, Landlock's rules open files, and system
        // calls are closed last.
        limits::set(self.own_bytes, &mut report);
        network::leave(&mut report);
        privileges::give_up(&mut report);
        landlock::restrict(&self.profile, &mut report);
        filters.install(&mut report);
        Ok(report)
    }

    /// What [`Sandbox::enter`] would report here, found out in a child process.
    pub fn probe(&self) -> Result<Report, Error> {
        let answer = fork::ask_child(|| match self.enter() {
            Ok(report) => report.to_lines(),
            Err(error) => {
                Report { missing: vec![error.to_string()], ..Default::default() }.to_lines()
            }
        });
        Ok(Report::from_lines(&answer.map_err(Error::Probe)?))
    }
}

/// How many threads this process has: a directory each, and each a link of the one above.
fn threads() -> io::Result<u64> {
    let links = rustix::fs::stat("/proc/self/task")?.st_nlink;
    #[allow(clippy::unnecessary_cast, reason = "other widths on other architectures")]
    Ok((links as u64).saturating_sub(2))
}
