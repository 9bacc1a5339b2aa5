//! What both ends of a link are told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use genie_transport::transport::{Options, Transport};

/// Milliseconds a data connection may take to come up before the next transport is tried.
const DATA_CONNECT_MS: u64 = 3_000;

/// What both ends are told.
#[derive(Clone)]
pub struct LinkSettings {
    /// Name and version of this program.
    pub software: String,
    /// Data transports to use, the strongest first.
    pub transports: Vec<Arc<dyn Transport>>,
    /// Tensors are not encrypted, here and at the peer.
    pub trusted: bool,
    pub certificates: Option<PathBuf>,
    /// The peer may be silent for so long.
    pub deadline_ms: u64,
    /// Where the node listens for data connections: an IP address and port 0.
    pub data_address: String,
    /// Settings of each transport, by its name.
    pub transport_settings: BTreeMap<String, BTreeMap<String, String>>,
    /// Bytes that the node keeps as copies of one link's regions.
    pub region_bytes_max: u64,
    /// The node's number since it started.
    pub instance: u64,
}

impl LinkSettings {
    /// How to listen or connect for the data connection of this number and secret.
    pub fn data_options(
        &self,
        transport: &str,
        address: &str,
        connection: u64,
        secret: [u8; 32],
    ) -> Options {
        Options {
            address: address.to_owned(),
            certificates: self.certificates.clone(),
            trusted: self.trusted,
            connection,
            secret: Some(secret),
            deadline_ms: self.deadline_ms,
            connect_ms: DATA_CONNECT_MS,
            accept_max: 1,
            settings: self.transport_settings.get(transport).cloned().unwrap_or_default(),
            ..Options::default()
        }
    }

    /// The data transport of this name.
    pub fn transport(&self, name: &str) -> Option<&Arc<dyn Transport>> {
        self.transports.iter().find(|transport| transport.facts().name == name)
    }
}
