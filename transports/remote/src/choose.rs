//! Which data transport is preferred.

use std::sync::Arc;

use genie_transport::transport::{Capabilities, Transport};

/// Known names, the strongest first.
const ORDER: [&str; 4] = ["dpdk", "udp", "tcp", "quic"];

/// The data transports among these that may be used, the strongest first: those that move bytes by
/// remote DMA, then the known ones in their order, then others by name. With `wanted` only those,
/// in that order.
pub fn preferred<'a>(
    transports: impl Iterator<Item = &'a Arc<dyn Transport>>,
    wanted: &[String],
) -> Vec<Arc<dyn Transport>> {
    let mut found: Vec<_> = transports
        .filter_map(|transport| {
            let facts = transport.facts();
            let network = Capabilities::DATA.with(Capabilities::NETWORK);
            let rank = rank(&facts.name, facts.capabilities, wanted)?;
            facts.capabilities.has(network).then(|| ((rank, facts.name), transport.clone()))
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found.into_iter().map(|(_, transport)| transport).collect()
}

fn rank(name: &str, capabilities: Capabilities, wanted: &[String]) -> Option<usize> {
    if !wanted.is_empty() {
        return wanted.iter().position(|wanted| wanted == name);
    }
    if capabilities.has(Capabilities::RDMA) {
        return Some(0);
    }
    Some(1 + ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len()))
}

/// The mode of a session whose payloads go over this transport. Who encrypts by the processor copies,
/// so zero copy needs a trusted network.
pub fn mode(data: &dyn Transport, trusted: bool) -> &'static str {
    let capabilities = data.facts().capabilities;
    let by_device = capabilities.has(Capabilities::RDMA);
    match by_device || trusted && capabilities.has(Capabilities::ZERO_COPY) {
        true => "remote_zero_copy",
        false => "remote",
    }
}
