//! Clusters that do not exist, for tests of policies.

use crate::plan::PROGRAM;
use crate::{Cluster, Device, Link};

/// Devices of one simulated node.
const DEVICES_PER_NODE: u32 = 4;
const MEMORY_BYTES: u64 = 80 << 30;
const FLOPS_PER_S: u64 = 200_000_000_000_000;
const MEMORY_BYTES_PER_S: u64 = 2_000_000_000_000;
/// Between devices of one node, between nodes, and to the program: bytes per second and round
/// trip in microseconds.
const WITHIN: (u64, u32) = (250_000_000_000, 10);
const BETWEEN: (u64, u32) = (12_500_000_000, 50);
const TO_PROGRAM: (u64, u32) = (1_250_000_000, 500);

/// So many equal accelerators, four to a node, all linked with each other and with the program.
pub fn simulated_cluster(devices: u32) -> Cluster {
    let device = |index: u32| {
        let node = index / DEVICES_PER_NODE;
        Device {
            name: format!("node{node}/{}", index % DEVICES_PER_NODE),
            node: format!("node{node}"),
            memory_bytes: MEMORY_BYTES,
            memory_free_bytes: MEMORY_BYTES,
            flops_per_s: FLOPS_PER_S,
            memory_bytes_per_s: MEMORY_BYTES_PER_S,
        }
    };
    let link = |from, to, (bytes_per_s, rtt_us)| Link { from, to, bytes_per_s, rtt_us };
    let mut cluster = Cluster { devices: (0..devices).map(device).collect(), ..Cluster::default() };
    for to in 0..devices {
        cluster.links.push(link(PROGRAM, to, TO_PROGRAM));
        for from in 0..to {
            let same = from / DEVICES_PER_NODE == to / DEVICES_PER_NODE;
            cluster.links.push(link(from, to, if same { WITHIN } else { BETWEEN }));
        }
    }
    cluster
}

/// The same cluster with so much memory free on each device.
pub fn with_free_memory(mut cluster: Cluster, bytes: u64) -> Cluster {
    for device in &mut cluster.devices {
        device.memory_free_bytes = bytes.min(device.memory_bytes);
    }
    cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_linked_once() {
        for devices in [1, 2, 4, 8] {
            let cluster = simulated_cluster(devices);
            assert_eq!(cluster.links.len() as u32, devices * (devices - 1) / 2 + devices);
            assert!((0..devices).all(|device| cluster.link(device, PROGRAM).is_some()));
        }
        let cluster = simulated_cluster(8);
        let rate = |a, b| cluster.link(a, b).unwrap().bytes_per_s;
        assert!(rate(0, 3) > rate(3, 4));
        assert_eq!(with_free_memory(cluster, 5).devices[7].memory_free_bytes, 5);
    }
}
