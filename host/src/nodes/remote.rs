//! Nodes elsewhere: reached over a transport that carries control, each session by itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_engine::session::Way;
use genie_remote::endpoint::control_transport;
use genie_remote::message::{LINK_VERSION_MOVES, Welcome};
use genie_remote::{Endpoint, LinkSettings, RemoteLink, Role};
use genie_transport::load::Transports;
use genie_transport::transport::{Options, Transport};
use genie_transport::{Frame, Link, LinkWay};
use genie_wire::control::Refusal;
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::moves::{Others, Source};
use super::places::Places;
use super::{Reached, SessionNode};

/// How long a node may take from the first packet until payloads have a connection, each data
/// transport that does not work included.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the control connection may take of it.
const CONNECT_MS: u64 = 5_000;
/// How long a node that was not reached is asked last.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// Where the nodes are, and how to reach them.
pub struct RemoteSettings {
    pub endpoints: Vec<Endpoint>,
    pub transports: Transports,
    pub link: LinkSettings,
}

/// All nodes elsewhere.
pub struct RemoteNodes {
    nodes: Vec<Arc<RemoteNode>>,
    link: Arc<LinkSettings>,
    /// Of links over which no tensors go.
    bare_link: Arc<LinkSettings>,
    places: Places,
    moves: MoveCounts,
}

/// Weights that moved from node to node.
#[derive(Default)]
struct MoveCounts {
    weights: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

/// Data transports between nodes: those that a host's secret keys, or that prove certificates.
const BETWEEN_NODES: [&str; 4] = ["dpdk", "udp", "tcp", "quic"];

/// One node elsewhere.
pub struct RemoteNode {
    /// Its place among the nodes.
    number: usize,
    endpoint: Endpoint,
    /// Or why there is no transport for it.
    transport: Result<Arc<dyn Transport>, String>,
    sessions: AtomicUsize,
    failed: Mutex<Option<Instant>>,
    /// What it last said of itself.
    welcome: Mutex<Option<Welcome>>,
}

/// A session's hold on a node.
pub struct Lease(Arc<RemoteNode>);

impl Lease {
    fn new(node: &Arc<RemoteNode>) -> Self {
        node.sessions.fetch_add(1, Ordering::Relaxed);
        Lease(node.clone())
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    pub fn number(&self) -> usize {
        self.0.number
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RemoteNodes {
    pub fn new(settings: RemoteSettings) -> Self {
        let RemoteSettings { endpoints, transports, link } = settings;
        let node = |(number, endpoint): (usize, Endpoint)| {
            let transport = control_transport(&endpoint.transport, &transports);
            let (sessions, failed) = (AtomicUsize::new(0), Mutex::new(None));
            let welcome = Mutex::new(None);
            Arc::new(RemoteNode { number, endpoint, transport, sessions, failed, welcome })
        };
        RemoteNodes {
            nodes: endpoints.into_iter().enumerate().map(node).collect(),
            bare_link: Arc::new(LinkSettings { transports: Vec::new(), ..link.clone() }),
            link: Arc::new(link),
            places: Places::default(),
            moves: MoveCounts::default(),
        }
    }

    /// A connection to the node with the fewest sessions; nodes that were not reached lately come
    /// last. The error names each node and why.
    pub fn connect(&self) -> Result<Reached, String> {
        let mut nodes: Vec<(bool, usize, &Arc<RemoteNode>)> = self
            .nodes
            .iter()
            .map(|node| (node.is_avoided(), node.sessions.load(Ordering::Relaxed), node))
            .collect();
        nodes.sort_by_key(|(avoided, sessions, _)| (*avoided, *sessions));
        let mut reasons = Vec::new();
        for (_, _, node) in nodes {
            let lease = Lease::new(node);
            match node.connect(&self.link) {
                Ok(link) => {
                    *lock(&node.failed) = None;
                    *lock(&node.welcome) = link.welcome().cloned();
                    let way = way(&link);
                    tracing::info!("a session runs over {}", way.route);
                    let node = SessionNode::Remote(lease);
                    return Ok(Reached { link: Box::new(link), node, way });
                }
                Err(reason) => {
                    *lock(&node.failed) = Some(Instant::now());
                    reasons.push(format!("{} is not reached: {reason}", node.endpoint));
                }
            }
        }
        Err(reasons.join("; "))
    }

    /// Counters for the status.
    pub fn entries(&self) -> Vec<(String, u64)> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("weights_moved".to_owned(), value(&self.moves.weights)),
            ("weight_bytes_moved".to_owned(), value(&self.moves.bytes)),
            ("weight_moves_failed".to_owned(), value(&self.moves.failed)),
        ]
    }

    /// Facts for the status: each node and its sessions.
    pub fn words(&self) -> Vec<(String, String)> {
        let word = |(index, node): (usize, &Arc<RemoteNode>)| {
            let sessions = node.sessions.load(Ordering::Relaxed);
            let state = if node.is_avoided() { ", not reached lately" } else { "" };
            let value = format!("{}: {sessions} sessions{state}", node.endpoint);
            (format!("node.{index}"), value)
        };
        self.nodes.iter().enumerate().map(word).collect()
    }
}

impl Others for RemoteNodes {
    fn places(&self) -> &Places {
        &self.places
    }

    fn reach(&self, node: usize) -> Result<Box<dyn Source>, String> {
        let node = self.nodes.get(node).ok_or("there is no such node")?;
        Ok(Box::new(node.begin(&self.bare_link)?))
    }

    fn transport(&self, from: usize, to: usize) -> Option<String> {
        let names = |node: usize| {
            let welcome = lock(&self.nodes.get(node)?.welcome).clone()?;
            (welcome.version >= LINK_VERSION_MOVES).then_some(welcome.transports)
        };
        let giving = names(from)?;
        let both = |name: &String| BETWEEN_NODES.contains(&name.as_str()) && giving.contains(name);
        names(to)?.into_iter().find(both)
    }

    fn name(&self, node: usize) -> String {
        self.nodes.get(node).map(|node| node.endpoint.to_string()).unwrap_or_default()
    }

    fn count(&self, moved: Option<u64>) {
        match moved {
            Some(bytes) => {
                self.moves.weights.fetch_add(1, Ordering::Relaxed);
                self.moves.bytes.fetch_add(bytes, Ordering::Relaxed)
            }
            None => self.moves.failed.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// How a link goes, for the session.
fn way(link: &RemoteLink) -> Way {
    let way = link.way().expect("a remote link knows its way");
    let LinkWay { mode, route, transport } = way;
    Way { mode, route, transport }
}

impl RemoteNode {
    fn is_avoided(&self) -> bool {
        lock(&self.failed).is_some_and(|failed| failed.elapsed() < AVOIDED_FOR)
    }

    fn connect(&self, settings: &Arc<LinkSettings>) -> Result<RemoteLink, String> {
        let mut link = self.begin(settings)?;
        establish(&mut link)?;
        Ok(link)
    }

    /// A link that is not ready yet.
    fn begin(&self, settings: &Arc<LinkSettings>) -> Result<RemoteLink, String> {
        let transport = self.transport.as_ref().map_err(Clone::clone)?;
        let options = Options {
            address: self.endpoint.address.clone(),
            certificates: settings.certificates.clone(),
            // Without certificates only this machine is reached; `main` saw to that.
            trusted: settings.certificates.is_none(),
            deadline_ms: settings.deadline_ms,
            connect_ms: CONNECT_MS,
            settings: settings
                .transport_settings
                .get(&self.endpoint.transport)
                .cloned()
                .unwrap_or_default(),
            ..Options::default()
        };
        let control = transport.connect(&options).map_err(|error| error.message)?;
        RemoteLink::new(Role::Host, control, transport.as_ref(), settings.clone())
            .map_err(|error| error.to_string())
    }
}

/// Waits until the node answered and payloads have a connection.
fn establish(link: &mut RemoteLink) -> Result<(), String> {
    let deadline = Instant::now() + ESTABLISH_TIMEOUT;
    loop {
        match link.poll() {
            Ok(None) => {}
            Ok(Some(frame)) => return Err(unasked(&frame)),
            Err(error) => return Err(error.to_string()),
        }
        if link.is_ready() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no answer within {} s", ESTABLISH_TIMEOUT.as_secs()));
        }
        let left = Timespec::try_from(left).expect("the timeout is small");
        match poll(&mut [PollFd::new(link, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(format!("cannot wait for it: {errno}")),
        }
    }
}

/// Why a node that speaks before it is spoken to gives no session: it says so itself.
fn unasked(frame: &Frame) -> String {
    match (frame.kind, Refusal::decode(&frame.body[..])) {
        (FrameKind::Refusal, Ok(refusal)) => format!("it refuses: {}", refusal.message),
        (kind, _) => format!("it sent {kind:?} before the hello"),
    }
}

/// What is locked are plain values: a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
