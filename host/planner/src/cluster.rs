//! The cluster that is real today, and simulated ones.

use genie_plugin::plan::PROGRAM;
use genie_plugin::{Cluster, Device, Link};

/// A cluster of one device: what executes today.
pub fn one_device(device: Device, program: Link) -> Cluster {
    Cluster {
        devices: vec![device],
        links: vec![Link { from: PROGRAM, to: 0, ..program }],
        resident: vec![],
    }
}

/// A simulated cluster: these devices, each linked with the program and with every other.
pub fn full_mesh(devices: Vec<Device>, between: Link, program: Link) -> Cluster {
    let count = devices.len() as u32;
    let mut links: Vec<Link> = (0..count).map(|to| Link { from: PROGRAM, to, ..program }).collect();
    for from in 0..count {
        links.extend((from + 1..count).map(|to| Link { from, to, ..between }));
    }
    Cluster { devices, links, resident: vec![] }
}

/// A device like a data-centre GPU of 40 GB: 100 TFLOP/s in half precision as models reach it,
/// 1.5 TB/s.
pub fn gpu(name: &str) -> Device {
    Device {
        name: name.to_owned(),
        node: name.to_owned(),
        memory_bytes: 40 << 30,
        memory_free_bytes: 40 << 30,
        flops_per_s: 100_000_000_000_000,
        memory_bytes_per_s: 1_500_000_000_000,
    }
}

/// A device like a server's CPU with 512 GB: 2 TFLOP/s, 200 GB/s.
pub fn memory_server(name: &str) -> Device {
    Device {
        name: name.to_owned(),
        node: name.to_owned(),
        memory_bytes: 512 << 30,
        memory_free_bytes: 512 << 30,
        flops_per_s: 2_000_000_000_000,
        memory_bytes_per_s: 200_000_000_000,
    }
}

/// A link by its rate in gigabits a second and its round trip.
pub fn network(gigabits_per_s: u64, rtt_us: u32) -> Link {
    Link { from: 0, to: 0, bytes_per_s: gigabits_per_s * 125_000_000, rtt_us }
}

#[cfg(test)]
mod tests {
    use genie_plugin::plan::PROGRAM_BYTES_PER_S;

    use super::*;

    #[test]
    fn a_way_is_direct_or_through_the_program() {
        let mut cluster =
            full_mesh(vec![gpu("a"), gpu("b"), gpu("c")], network(100, 10), network(10, 100));
        assert_eq!(cluster.route(2, 0).unwrap().len(), 1);
        cluster.links.retain(|link| link.from == PROGRAM);
        let hops = cluster.route(2, 0).unwrap();
        assert_eq!(
            hops.iter().map(|hop| (hop.from, hop.to)).collect::<Vec<_>>(),
            [(2, PROGRAM), (PROGRAM, 0)]
        );
        cluster.devices[2].node = "a".into();
        assert_eq!(cluster.route(2, 0).unwrap()[0].rtt_us, 0);
        cluster.links.clear();
        assert_eq!(cluster.route(PROGRAM, 1).unwrap()[0].bytes_per_s, PROGRAM_BYTES_PER_S);
        assert_eq!(cluster.route(9, 1), None);
        assert_eq!(cluster.route(PROGRAM, 9), None);
    }
}
