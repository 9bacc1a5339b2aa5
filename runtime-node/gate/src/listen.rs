//! Opening the ways into this node.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use genie_gate::Door;
use genie_remote::Endpoint;
use genie_remote::cli::RemoteArgs;
use genie_remote::endpoint::control_transport;
use genie_transport::load::Transports;
use genie_transport::transport::{Capabilities, Options};

/// One `--listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix(PathBuf),
    Transport(Endpoint),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.is_empty() {
                return Ok(Listen::Unix(path.into()));
            }
        } else if let Ok(endpoint) = text.parse() {
            return Ok(Listen::Transport(endpoint));
        }
        Err("expected unix:PATH, or TRANSPORT://ADDRESS such as quic://0.0.0.0:4610".to_owned())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Transport(endpoint) => endpoint.fmt(f),
        }
    }
}

/// What a link may ask of this node, and who it is.
pub struct LinkLimits {
    pub region_bytes_max: u64,
    pub software: String,
}

/// Opens all ways in; returns them with their real addresses.
pub fn open(
    listens: &[Listen],
    remote: &RemoteArgs,
    limits: LinkLimits,
) -> anyhow::Result<(Vec<Door>, Vec<String>)> {
    let needs_transports = listens.iter().any(|listen| matches!(listen, Listen::Transport(_)));
    let transports = match needs_transports {
        true => remote.load(&std::env::current_exe().context("find this program")?),
        false => Transports::default(),
    };
    let instance = instance()?;
    let (mut doors, mut addresses) = (Vec::new(), Vec::new());
    for listen in listens {
        match listen {
            Listen::Unix(path) => {
                let listener = genie_shm::Listener::bind(path)?;
                addresses.push(format!("unix:{}", listener.path().display()));
                doors.push(Door::Unix(listener));
            }
            Listen::Transport(Endpoint { transport: name, address }) => {
                let (door, address) =
                    open_transport(name, address, remote, &transports, &limits, instance)
                        .with_context(|| format!("cannot listen at {listen}"))?;
                addresses.push(format!("{name}://{address}"));
                doors.push(door);
            }
        }
    }
    Ok((doors, addresses))
}

fn open_transport(
    name: &str,
    address: &str,
    remote: &RemoteArgs,
    transports: &Transports,
    limits: &LinkLimits,
    instance: u64,
) -> anyhow::Result<(Door, String)> {
    let transport = control_transport(name, transports).map_err(|reason| anyhow!(reason))?;
    let network = transport.facts().capabilities.has(Capabilities::NETWORK);
    let ip = if network { Some(ip_of(address)?) } else { None };
    if let Some(ip) = ip {
        genie_tls::may_listen(ip, remote.certs.is_some())?;
    }
    let mut settings = remote.link_settings(transports, &limits.software);
    settings.region_bytes_max = limits.region_bytes_max;
    settings.instance = instance;
    settings.data_address = ip.map(|ip| SocketAddr::new(ip, 0).to_string()).unwrap_or_default();
    let options = Options {
        address: address.to_owned(),
        certificates: remote.certs.clone(),
        // Without certificates it listens on this machine alone.
        trusted: remote.certs.is_none(),
        deadline_ms: settings.deadline_ms,
        message_bytes_max: limits.region_bytes_max,
        settings: settings.transport_settings.get(name).cloned().unwrap_or_default(),
        ..Options::default()
    };
    let listener = transport.listen(&options)?;
    let real = listener.address();
    let settings = Arc::new(settings);
    Ok((Door::Remote { listener, transport, settings }, real))
}

fn ip_of(address: &str) -> anyhow::Result<IpAddr> {
    let address: SocketAddr = address.parse().with_context(|| {
        format!("{address:?} is no IP address with a port, such as 0.0.0.0:4610 or [::]:4610")
    })?;
    Ok(address.ip())
}

/// A number of this start of the node.
fn instance() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("choose a number for this start")?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed_alike() {
        for text in ["unix:/a/b", "quic://0.0.0.0:4610", "shm:///run/genie.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for wrong in ["", "unix:", "/a", "quic:", "quic://", "://a"] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }
}
