//! Clusters, plans, edits and hints: what policies, rewriters and hint givers see and give.

/// The number of the program itself in links.
pub const PROGRAM: u32 = u32::MAX;

/// A place that runs operators.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Device {
    pub name: String,
    /// The node it is part of.
    pub node: String,
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    pub flops_per_s: u64,
    pub memory_bytes_per_s: u64,
}

/// What a connection with the program is taken for where no link tells: shared memory on one
/// machine.
pub const PROGRAM_BYTES_PER_S: u64 = 4_000_000_000;
pub const PROGRAM_RTT_US: u32 = 200;

/// A connection between two devices, or with the program ([`PROGRAM`]).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Link {
    pub from: u32,
    pub to: u32,
    pub bytes_per_s: u64,
    pub rtt_us: u32,
}

/// Devices, links and what is where already.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Cluster {
    pub devices: Vec<Device>,
    pub links: Vec<Link>,
    /// (storage, device): content that is there already.
    pub resident: Vec<(u32, u32)>,
}

impl Cluster {
    /// The link between two places, in either direction.
    pub fn link(&self, a: u32, b: u32) -> Option<&Link> {
        self.links
            .iter()
            .find(|link| (link.from, link.to) == (a, b) || (link.from, link.to) == (b, a))
    }

    /// The way from one place to another: over a link or within a node, else through the program
    /// in two steps. `None` where one of them does not exist.
    pub fn route(&self, from: u32, to: u32) -> Option<Vec<Link>> {
        if let Some(link) = self.step(from, to) {
            return Some(vec![link]);
        }
        if from == PROGRAM || to == PROGRAM {
            return None;
        }
        Some(vec![self.step(from, PROGRAM)?, self.step(PROGRAM, to)?])
    }

    fn step(&self, from: u32, to: u32) -> Option<Link> {
        let device = |number: u32| self.devices.get(number as usize);
        if let Some(link) = self.link(from, to) {
            return Some(Link { from, to, ..*link });
        }
        if from == PROGRAM || to == PROGRAM {
            device(if from == PROGRAM { to } else { from })?;
            return Some(Link {
                from,
                to,
                bytes_per_s: PROGRAM_BYTES_PER_S,
                rtt_us: PROGRAM_RTT_US,
            });
        }
        let (a, b) = (device(from)?, device(to)?);
        // Devices of one node reach each other through its memory.
        let bytes_per_s = a.memory_bytes_per_s.min(b.memory_bytes_per_s);
        (a.node == b.node).then_some(Link { from, to, bytes_per_s, rtt_us: 0 })
    }
}

/// What should become of a storage on a device.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Directive {
    /// `pin`, `keep`, `spill`, `prefetch`, `evict`, `replicate`, `recompute`.
    pub kind: String,
    pub storage: u32,
    pub device: u32,
    pub why: String,
}

/// Nodes that run on one device.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Region {
    pub nodes: Vec<u32>,
    pub device: u32,
    /// Regions with the same number above 0 are stages of one pipeline.
    pub pipeline: u32,
}

/// A proposal for where a graph runs. Every node is in exactly one region.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    pub regions: Vec<Region>,
    pub directives: Vec<Directive>,
    /// Values in the order they should be sent, most critical first.
    pub transfer_order: Vec<u32>,
    pub why: String,
}

/// Edits that are exact by construction; the host checks each one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub enum Edit {
    /// No result of the node is used.
    DropDead { node: u32 },
    /// The second computes what the first did.
    MergeCommon { kept: u32, dropped: u32 },
    /// Compute the node again for this consumer instead of keeping or moving its result.
    Recompute { node: u32, consumer: u32 },
    /// Run the node earlier; no dependency is crossed.
    MoveBefore { node: u32, before: u32 },
}

/// What was measured on a link, by its number in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    pub link: u32,
    pub rtt_us: u32,
    pub bytes_per_s: u64,
    pub queued_bytes: u64,
}

/// Advice for the executor about a link: `window-bytes`, `chunk-bytes`, `compress`, `streams`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hint {
    pub link: u32,
    pub key: String,
    pub value: f64,
}

/// How a plugin introduces itself.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Info {
    pub name: String,
    pub version: String,
    pub summary: String,
    /// Patterns, policies or hints it can produce.
    pub provides: Vec<String>,
}

impl Info {
    pub fn new(name: &str, version: &str, summary: &str, provides: &[&str]) -> Info {
        Info {
            name: name.to_owned(),
            version: version.to_owned(),
            summary: summary.to_owned(),
            provides: provides.iter().map(|&word| word.to_owned()).collect(),
        }
    }
}
