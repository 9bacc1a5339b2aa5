//! `genie-host serve`: accepts clients, one thread each.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use genie_engine::session::HostCounters;
use genie_engine::{Limits, Session, SessionConfig};
use genie_shm::{Listener, UnixLink};
use genie_transport::Link;
use genie_wire::ErrorCode;
use genie_wire::control::Refusal;
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::address::Address;
use crate::analysis::{Analysis, AnalysisSettings};
use crate::nodes::{NodeSettings, NodeSupervisor, Nodes, RemoteNodes, RemoteSettings, open_pidfd};
use crate::readiness::Readiness;
use crate::runtime_dir::RuntimeDir;
use crate::session::SessionThread;
use crate::signals::{Stop, StopSignals};
use crate::told::told;
use crate::totals::{SessionSlot, Totals};

/// The stack of a session's thread; building graphs of new segments takes most of it.
const SESSION_STACK_BYTES: usize = 4 << 20;
/// How long sessions may take to say farewell when the host ends.
const SESSIONS_END_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections to a full host that are still heard: a hello is refused, a status is told.
const QUESTIONS_MAX: usize = 16;

/// The name a host gives itself.
pub const SOFTWARE: &str = concat!("genie-host ", env!("CARGO_PKG_VERSION"));

/// What `serve` was told.
pub struct ServeSettings {
    pub listen: Option<Address>,
    pub analysis: AnalysisSettings,
    pub parent_pid: Option<u32>,
    pub sessions_max: usize,
    /// How long running sessions may take after SIGTERM.
    pub drain: Duration,
    pub node: NodeSettings,
    /// Nodes elsewhere, and whether sessions may run on this machine when none is reached.
    pub remote: Option<RemoteSettings>,
    pub child_allowed: bool,
    pub runtime_base: Option<OsString>,
    pub spin: Duration,
}

/// Serves until a signal comes or the parent ends. Running sessions end before their node does, so
/// that none of them takes an orderly end for a loss.
pub fn run(settings: ServeSettings) -> anyhow::Result<()> {
    let signals = StopSignals::block()?;
    let parent = settings.parent_pid.map(watch_parent).transpose()?;
    let analysis = Analysis::start(settings.analysis).context("start the analysis")?;
    genie_remote::cli::raise_descriptor_limit();
    let dir = RuntimeDir::create(settings.runtime_base)?;
    let address = settings.listen.unwrap_or_else(|| Address::unix(dir.path().join("host.sock")));
    let listener = Listener::bind(address.path()).context("cannot listen for programs")?;
    let child = NodeSupervisor::new(settings.node, dir.path().to_owned());
    let remote = settings.remote.map(RemoteNodes::new);
    let nodes = Arc::new(Nodes::new(remote, child, settings.child_allowed));
    let totals = Arc::new(Totals::new().context("make an event descriptor")?);
    totals.watch(&nodes, &analysis);
    let readiness = Readiness::begin(nodes.clone())?;
    let host = Host {
        nodes: nodes.clone(),
        analysis,
        totals,
        address,
        sessions_max: settings.sessions_max,
        spin: settings.spin,
        drain: settings.drain,
        uid: rustix::process::geteuid().as_raw(),
        accept_fails: Cell::new(false),
    };
    let result = host.serve(&listener, &signals, parent.as_ref(), &readiness);
    drop(listener);
    let reason =
        result.as_ref().map_or_else(|error| format!("it failed: {}", told(error)), Clone::clone);
    host.end_sessions(&reason);
    nodes.child().stop();
    drop(dir);
    result.map(drop)
}

/// The descriptor of the parent; an error when it is gone already.
fn watch_parent(pid: u32) -> anyhow::Result<OwnedFd> {
    open_pidfd(pid).with_context(|| format!("the parent process {pid} cannot be watched"))
}

/// Programs that start a host wait for this line: sessions find a node from now on.
fn announce(address: &Address) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready {address}").and_then(|()| stdout.flush()).context("say `ready`")?;
    tracing::info!("serving at {address}; programs join with GENIE_HOST={address}");
    Ok(())
}

struct Host {
    nodes: Arc<Nodes>,
    analysis: Arc<Analysis>,
    totals: Arc<Totals>,
    address: Address,
    sessions_max: usize,
    spin: Duration,
    /// How long sessions may take when the host is asked to stop.
    drain: Duration,
    uid: u32,
    /// One failure is told, and then none until a program came in.
    accept_fails: Cell<bool>,
}

/// A host that was asked to stop.
struct Draining {
    until: Instant,
    /// The number of the newest session that may finish.
    newest: u64,
}

impl Host {
    /// Serves until it is time to end; returns why.
    fn serve(
        &self,
        listener: &Listener,
        signals: &StopSignals,
        parent: Option<&OwnedFd>,
        readiness: &Readiness,
    ) -> anyhow::Result<String> {
        let mut draining: Option<Draining> = None;
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(listener.event_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals.event_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.totals.end_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(readiness.event_fd(), PollFlags::IN),
            ];
            if let Some(parent) = parent {
                fds.push(PollFd::from_borrowed_fd(parent.as_fd(), PollFlags::IN));
            }
            let left = draining
                .as_ref()
                .map(|draining| draining.until.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait for programs"),
            }
            let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened[1]
                && let Some(stop) = signals.next()
            {
                match stop {
                    Stop::Drain if draining.is_none() => draining = Some(self.begin_drain()),
                    Stop::Drain => return Ok("it was asked twice to stop (SIGTERM)".to_owned()),
                    Stop::AtOnce(signal) => return Ok(format!("it was stopped by {signal}")),
                }
            }
            if happened.get(4) == Some(&true) {
                return Ok("the process that started it ended (--parent-pid)".to_owned());
            }
            if happened[3] && readiness.look()? {
                announce(&self.address)?;
            }
            if happened[2] {
                self.totals.clear_end();
            }
            if let Some(Draining { until, newest }) = &draining {
                if self.totals.running(*newest) == 0 {
                    return Ok("it was asked to stop (SIGTERM)".to_owned());
                }
                if Instant::now() >= *until {
                    return Ok(format!(
                        "it was asked to stop (SIGTERM), and {} s later the session still ran \
                         (--drain-s gives longer)",
                        self.drain.as_secs()
                    ));
                }
            }
            if happened[0] {
                self.accept(listener, draining.as_ref());
            }
        }
    }

    fn begin_drain(&self) -> Draining {
        let until = Instant::now() + self.drain;
        let newest = self.totals.drain(until);
        tracing::info!(
            "asked to stop: new sessions are refused, {} that run may finish within {} s; a second \
             SIGTERM, or SIGINT, ends them at once",
            self.totals.running(newest),
            self.drain.as_secs()
        );
        Draining { until, newest }
    }

    /// Tells every session that the host ends, and waits until all have ended, within bounds.
    fn end_sessions(&self, reason: &str) {
        tracing::info!("the host ends: {reason}");
        self.totals.end_all(&format!("the host ends: {reason}"));
        let deadline = Instant::now() + SESSIONS_END_TIMEOUT;
        while self.totals.running(u64::MAX) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else { return };
            let fd = PollFd::from_borrowed_fd(self.totals.end_fd(), PollFlags::IN);
            match poll(&mut [fd], Some(&timeout)) {
                // A session's thread that waits for a node to start ends with the node.
                Ok(0) => return,
                Ok(_) => self.totals.clear_end(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn accept(&self, listener: &Listener, draining: Option<&Draining>) {
        match listener.accept() {
            Ok(Some(link)) => {
                self.accept_fails.set(false);
                self.begin(link, draining);
            }
            Ok(None) => {}
            Err(error) => {
                if !self.accept_fails.replace(true) {
                    tracing::warn!("cannot accept a program: {error}");
                }
                // Out of descriptors, most likely: the connection stays in the backlog, so give
                // sessions a moment to end instead of asking again at once.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn begin(&self, mut link: UnixLink, draining: Option<&Draining>) {
        let (pid, uid) = link.peer_credentials();
        if uid != self.uid {
            let message = format!(
                "this host belongs to user {}, you are user {uid}; start a host of your own",
                self.uid
            );
            return refuse(&mut link, &message);
        }
        let slot = match SessionSlot::new() {
            Ok(slot) => slot,
            Err(error) => return refuse(&mut link, &format!("no session can begin: {error}")),
        };
        let full = || {
            format!(
                "this host serves {} sessions already; end one, or start it with a larger \
                 --max-sessions",
                self.sessions_max
            )
        };
        let begun = self.totals.begin(self.sessions_max + QUESTIONS_MAX, &slot);
        let Some((id, others)) = begun else { return refuse(&mut link, &full()) };
        let turned_away = match draining {
            Some(draining) => Some(turned_away(draining)),
            None => (others >= self.sessions_max).then(full),
        };
        tracing::debug!("session {id}: process {pid}");
        let config = SessionConfig {
            id,
            identity: uid.to_string(),
            software: SOFTWARE.to_owned(),
            pid: std::process::id(),
            limits: Limits::default(),
            host: self.totals.clone() as Arc<dyn HostCounters>,
            analyze: self.analysis.is_on(),
            turned_away,
        };
        let thread = SessionThread {
            client: link,
            session: Session::new(config),
            nodes: self.nodes.clone(),
            analysis: self.analysis.clone(),
            slot,
            spin: self.spin,
        };
        let totals = self.totals.clone();
        let started = std::thread::Builder::new()
            .name(format!("session-{id}"))
            .stack_size(SESSION_STACK_BYTES)
            .spawn(move || {
                let _ended = EndOnDrop { totals, id };
                thread.run();
                tracing::debug!("session {id} ended");
            });
        if let Err(error) = started {
            tracing::warn!("cannot start a thread for a session: {error}");
            self.totals.end(id);
        }
    }
}

/// Unregisters a session also when its thread panics, which ends only that session.
struct EndOnDrop {
    totals: Arc<Totals>,
    id: u64,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.totals.end(self.id);
    }
}

/// What new programs are told by a host that was asked to stop.
fn turned_away(draining: &Draining) -> String {
    let left = draining.until.saturating_duration_since(Instant::now()).as_secs();
    format!(
        "it was asked to stop and takes no new sessions; it ends within {left} s. Join another \
         host by GENIE_HOST, or this one once it was started again"
    )
}

fn refuse(link: &mut UnixLink, message: &str) {
    tracing::warn!("a program is refused: {message}");
    let refusal = Refusal { code: ErrorCode::Unavailable as u32, message: message.to_owned() };
    // It fits the socket's buffer; a peer that is gone needs no answer.
    let _ = link.post_send(FrameKind::Refusal, &[&refusal.encode_to_vec()], None);
}
