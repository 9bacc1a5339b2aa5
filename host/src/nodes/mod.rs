//! Which node a session gets: one elsewhere when there are such, else this host's own child.

mod child;
mod moves;
mod places;
mod remote;

use std::sync::Arc;

use genie_engine::session::Way;
use genie_transport::{Link, LinkError};

use places::Place;

pub use child::{ChildNode, NodeSettings, NodeSupervisor, open_pidfd};
pub use moves::{Moves, SOURCES_MAX, Step};
pub use remote::{RemoteNodes, RemoteSettings};

/// The nodes of a host.
pub struct Nodes {
    remote: Option<Arc<RemoteNodes>>,
    /// Takes over when no remote node can be reached, if that is allowed.
    child: NodeSupervisor,
    child_allowed: bool,
}

/// A connection to a node, for one session.
pub struct Reached {
    pub link: Box<dyn Link>,
    pub node: SessionNode,
    pub way: Way,
}

/// The node behind a session.
pub enum SessionNode {
    Child(Arc<ChildNode>),
    /// Counts as a session of the node while it lives.
    Remote(remote::Lease),
}

impl SessionNode {
    /// What became of the node whose link failed, for the program.
    pub fn end(&self, error: &LinkError) -> String {
        match (self, error) {
            (SessionNode::Child(node), LinkError::Closed) => node.end(),
            (SessionNode::Child(node), error) => format!("process {}: {error}", node.pid()),
            (SessionNode::Remote(node), error) => format!("{}: {error}", node.endpoint()),
        }
    }
}

impl Nodes {
    /// `child_allowed` says whether a session may run on this machine when there are remote nodes
    /// and none is reached.
    pub fn new(remote: Option<RemoteNodes>, child: NodeSupervisor, child_allowed: bool) -> Self {
        Nodes { remote: remote.map(Arc::new), child, child_allowed }
    }

    pub fn threads(&self) -> Option<u32> {
        self.child.threads()
    }

    pub fn child(&self) -> &NodeSupervisor {
        &self.child
    }

    pub fn remote(&self) -> Option<&RemoteNodes> {
        self.remote.as_deref()
    }

    /// The moves of weights from other nodes to a session's.
    pub fn moves(&self, node: &SessionNode, identity: &str, device: u32) -> Option<Moves> {
        let (Some(others), SessionNode::Remote(lease)) = (&self.remote, node) else {
            return None;
        };
        let here = Place { node: lease.number(), device };
        Some(Moves::new(others.clone(), identity, here))
    }

    /// A connection to a node. The error is for the user.
    pub fn connect(&self) -> Result<Reached, String> {
        let Some(remote) = &self.remote else {
            return self.connect_child(String::new());
        };
        match remote.connect() {
            Ok(reached) => Ok(reached),
            Err(message) if self.child_allowed => {
                tracing::warn!("a session runs on this machine: {message}");
                self.connect_child(format!(", as {message}"))
            }
            Err(message) => Err(message),
        }
    }

    fn connect_child(&self, why: String) -> Result<Reached, String> {
        let (link, node) = self.child.connect()?;
        let way = Way {
            mode: "local_remote".to_owned(),
            route: format!("a node on this machine (process {}){why}", node.pid()),
            transport: "shm".to_owned(),
        };
        Ok(Reached { link: Box::new(link), node: SessionNode::Child(node), way })
    }
}
