//! Where a segment's operators run.

use genie_srg::Srg;

/// One of the nodes that sessions can use; there is one for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlannedNode(pub u32);

/// The placement of one topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which policy made it.
    pub policy: &'static str,
    /// The node of each graph node, by its index.
    pub placement: Vec<PlannedNode>,
}

/// The policy that is always there.
pub const ONE_NODE: &str = "one-node";

impl Plan {
    /// Everything on the first node.
    pub fn one_node(srg: &Srg) -> Plan {
        Plan { policy: ONE_NODE, placement: vec![PlannedNode(0); srg.graph.node_count()] }
    }
}
