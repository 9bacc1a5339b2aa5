//! The process that has libtorch loaded and forks the workers.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use genie_channel::message::{Fork, Kill, Loaded};
use genie_channel::{Channel, Ends, Message};

use crate::workers::{Nursery, Told};

/// How long libtorch may take to load; disks are slow at first.
const LOAD_MAX: Duration = Duration::from_secs(120);
/// How long it is waited for the end of a zygote that is asked to end.
const END_MAX: Duration = Duration::from_secs(2);

/// How to start the zygote.
#[derive(Debug, Clone)]
pub struct ZygoteSettings {
    pub binary: PathBuf,
    pub arguments: Vec<OsString>,
}

/// A [`Nursery`] of processes.
pub struct Zygote {
    settings: ZygoteSettings,
    running: Option<Running>,
}

struct Running {
    child: Child,
    channel: Channel,
    /// When it must have loaded libtorch, while it has not.
    loads_until: Option<Instant>,
}

impl Zygote {
    /// Starts the process and waits until libtorch is loaded.
    pub fn start(settings: ZygoteSettings) -> anyhow::Result<(Self, Loaded)> {
        let (running, loaded) = load(&settings)?;
        Ok((Zygote { settings, running: Some(running) }, loaded))
    }

    /// What is posted before libtorch is loaded waits in its channel.
    fn running(&mut self) -> Result<&mut Running, String> {
        if self.running.is_none() {
            self.running = Some(spawn(&self.settings).map_err(|error| format!("{error:#}"))?);
        }
        Ok(self.running.as_mut().expect("it was just started"))
    }

    /// All workers are gone.
    fn lose(&mut self, why: impl std::fmt::Display) -> Option<Told> {
        let mut running = self.running.take()?;
        let _ = running.child.kill();
        let status = running.child.wait().map(|status| status.to_string()).unwrap_or_default();
        Some(Told::Lost(format!("ended with the process that made it ({why}; {status})")))
    }
}

fn spawn(settings: &ZygoteSettings) -> anyhow::Result<Running> {
    let (channel, other) = Channel::pair()?;
    let child = Command::new(&settings.binary)
        .args(&settings.arguments)
        .stdin(Stdio::from(other))
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}, which runs PyTorch's operators; it belongs beside genie-node \
                 (`make build`), or is named by --worker-binary",
                settings.binary.display()
            )
        })?;
    Ok(Running { child, channel, loads_until: Some(Instant::now() + LOAD_MAX) })
}

/// Starts the process and waits until libtorch is loaded.
fn load(settings: &ZygoteSettings) -> anyhow::Result<(Running, Loaded)> {
    let mut running = spawn(settings)?;
    match running.channel.wait(Some(LOAD_MAX)) {
        Ok(Some((Message::Loaded(loaded), _))) => {
            running.loads_until = None;
            Ok((running, loaded))
        }
        Ok(Some((Message::Unusable(unusable), _))) => bail!("{}", unusable.reason),
        Ok(Some(_)) => bail!("{} is of another version", settings.binary.display()),
        Ok(None) => bail!("libtorch was not loaded within {} s", LOAD_MAX.as_secs()),
        Err(error) => {
            let status = running.child.wait().map(|status| status.to_string());
            let status = status.unwrap_or_else(|error| error.to_string());
            bail!("{} ended ({status}): {error}", settings.binary.display())
        }
    }
}

impl Nursery for Zygote {
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.channel.event_fd())
    }

    fn start(&mut self, fork: Fork, ends: Ends) -> Result<(), String> {
        let running = self.running()?;
        let posted = running.channel.post(Message::Fork(fork), ends.into_fds());
        posted.map_err(|error| format!("the process that starts workers: {error}"))
    }

    fn end(&mut self, worker: u64) {
        if let Some(running) = &mut self.running
            && let Err(error) = running.channel.post(Message::Kill(Kill { worker }), vec![])
        {
            tracing::warn!(%error, "a worker cannot be ended");
        }
    }

    fn poll(&mut self) -> Option<Told> {
        let running = self.running.as_mut()?;
        match running.channel.flush().and_then(|()| running.channel.poll()) {
            Ok(Some((Message::Forked(forked), _))) => Some(Told::Forked(forked)),
            Ok(Some((Message::Ended(ended), _))) => Some(Told::Ended(ended)),
            Ok(Some((Message::Loaded(_), _))) => {
                running.loads_until = None;
                None
            }
            Ok(Some((Message::Unusable(unusable), _))) => self.lose(unusable.reason),
            Ok(Some(_)) => None,
            Ok(None) if running.loads_until.is_some_and(|until| until <= Instant::now()) => {
                self.lose(format!("libtorch was not loaded within {} s", LOAD_MAX.as_secs()))
            }
            Ok(None) => None,
            Err(error) => self.lose(error),
        }
    }

    fn due(&self) -> Option<Instant> {
        self.running.as_ref()?.loads_until
    }
}

impl Drop for Running {
    /// It ends when its channel does, and its workers with it.
    fn drop(&mut self) {
        self.channel.close();
        let until = Instant::now() + END_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
