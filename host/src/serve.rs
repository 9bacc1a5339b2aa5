//! `genie-host serve`: accepts clients, one thread each.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use genie_engine::session::HostCounters;
use genie_engine::{Limits, Session, SessionConfig};
use genie_shm::{Listener, UnixLink};
use genie_transport::Link;
use genie_wire::ErrorCode;
use genie_wire::control::Refusal;
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::address::Address;
use crate::analysis::{Analysis, AnalysisSettings};
use crate::nodes::{NodeSettings, NodeSupervisor, Nodes, RemoteNodes, RemoteSettings, open_pidfd};
use crate::runtime_dir::RuntimeDir;
use crate::session::SessionThread;
use crate::signals::StopSignals;
use crate::totals::Totals;

/// The stack of a session's thread, from which plugins are called when a program asks.
const SESSION_STACK_BYTES: usize = 4 << 20;

/// The name a host gives itself.
pub const SOFTWARE: &str = concat!("genie-host ", env!("CARGO_PKG_VERSION"));

/// What `serve` was told.
pub struct ServeSettings {
    pub listen: Option<Address>,
    pub analysis: AnalysisSettings,
    pub parent_pid: Option<u32>,
    pub sessions_max: usize,
    pub node: NodeSettings,
    /// Nodes elsewhere, and whether sessions may run on this machine when none is reached.
    pub remote: Option<RemoteSettings>,
    pub child_allowed: bool,
    pub runtime_base: Option<OsString>,
    pub spin: Duration,
}

/// Serves until a signal comes or the parent ends.
pub fn run(settings: ServeSettings) -> anyhow::Result<()> {
    let signals = StopSignals::block()?;
    let parent = settings.parent_pid.map(watch_parent).transpose()?;
    let analysis = Analysis::start(settings.analysis).context("start the analysis")?;
    raise_descriptor_limit();
    let dir = RuntimeDir::create(settings.runtime_base)?;
    let address = settings.listen.unwrap_or_else(|| Address::unix(dir.path().join("host.sock")));
    let listener = Listener::bind(address.path()).context("cannot listen for programs")?;
    let child = NodeSupervisor::new(settings.node, dir.path().to_owned());
    let remote = settings.remote.map(RemoteNodes::new);
    let nodes = Arc::new(Nodes::new(remote, child, settings.child_allowed));
    let totals = Arc::new(Totals::default());
    totals.watch(&nodes, &analysis);
    let host = Host {
        nodes: nodes.clone(),
        analysis,
        totals,
        sessions_max: settings.sessions_max,
        spin: settings.spin,
        uid: rustix::process::geteuid().as_raw(),
    };
    if nodes.remote().is_none() {
        start_node_early(nodes.clone());
    }
    announce(&address)?;
    let result = host.accept_until_stopped(&listener, &signals, parent.as_ref());
    drop(listener);
    nodes.child().stop();
    // Session threads end with the process; their clients see the connection close.
    drop(dir);
    result
}

/// The descriptor of the parent; an error when it is gone already.
fn watch_parent(pid: u32) -> anyhow::Result<OwnedFd> {
    open_pidfd(pid).with_context(|| format!("the parent process {pid} cannot be watched"))
}

/// Programs that start a host wait for this line.
fn announce(address: &Address) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready {address}").and_then(|()| stdout.flush()).context("say `ready`")?;
    tracing::info!("serving at {address}; programs join with GENIE_HOST={address}");
    Ok(())
}

/// The first session finds the node started; a failure is told to the session that needs it.
fn start_node_early(nodes: Arc<Nodes>) {
    std::thread::spawn(move || {
        if let Err(message) = nodes.child().connect() {
            tracing::warn!("no node yet: {message}");
        }
    });
}

/// Each session takes three descriptors and one for each region in flight.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("cannot raise the limit of open files: {errno}");
    }
}

struct Host {
    nodes: Arc<Nodes>,
    analysis: Arc<Analysis>,
    totals: Arc<Totals>,
    sessions_max: usize,
    spin: Duration,
    uid: u32,
}

impl Host {
    fn accept_until_stopped(
        &self,
        listener: &Listener,
        signals: &StopSignals,
        parent: Option<&OwnedFd>,
    ) -> anyhow::Result<()> {
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(listener.event_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals.event_fd(), PollFlags::IN),
            ];
            if let Some(parent) = parent {
                fds.push(PollFd::from_borrowed_fd(parent.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait for programs"),
            }
            let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if happened[1] {
                tracing::info!("asked to stop");
                return Ok(());
            }
            if happened.get(2) == Some(&true) {
                tracing::debug!("the parent process ended");
                return Ok(());
            }
            if happened[0] {
                self.accept(listener);
            }
        }
    }

    fn accept(&self, listener: &Listener) {
        match listener.accept() {
            Ok(Some(link)) => self.begin(link),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("cannot accept a program: {error}");
                // Out of descriptors, most likely: the connection stays in the backlog, so give
                // sessions a moment to end instead of asking again at once.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn begin(&self, mut link: UnixLink) {
        let (pid, uid) = link.peer_credentials();
        if uid != self.uid {
            let message = format!(
                "this host belongs to user {}, you are user {uid}; start a host of your own",
                self.uid
            );
            return refuse(&mut link, &message);
        }
        let Some((id, slot)) = self.totals.begin(self.sessions_max) else {
            let message = format!(
                "this host serves {} sessions already; end one, or start it with a larger \
                 --max-sessions",
                self.sessions_max
            );
            return refuse(&mut link, &message);
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

fn refuse(link: &mut UnixLink, message: &str) {
    tracing::warn!("a program is refused: {message}");
    let refusal = Refusal { code: ErrorCode::Runtime as u32, message: message.to_owned() };
    // It fits the socket's buffer; a peer that is gone needs no answer.
    let _ = link.post_send(FrameKind::Refusal, &[&refusal.encode_to_vec()], None);
}
