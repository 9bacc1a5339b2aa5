//! Where a node is reached, as people write it: `quic://10.0.0.2:4610`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// A transport that carries control, and an address in its form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub transport: String,
    pub address: String,
}

impl Endpoint {
    /// Whether the address cannot be another machine's: a loopback address or a path.
    pub fn is_on_this_machine(&self) -> bool {
        let address = self.address.parse::<SocketAddr>();
        self.address.starts_with('/')
            || address.is_ok_and(|address| address.ip().to_canonical().is_loopback())
    }
}

/// The transport of this name, for a control connection; or what is wrong and what to do.
#[cfg(feature = "cli")]
pub fn control_transport(
    name: &str,
    transports: &genie_transport::load::Transports,
) -> Result<std::sync::Arc<dyn genie_transport::transport::Transport>, String> {
    use genie_transport::transport::Capabilities;
    let Some(transport) = transports.find(name) else {
        let known: Vec<&str> = transports.usable().map(|(name, _)| name).collect();
        return Err(format!(
            "there is no transport {name:?} (there are: {}); see `genie-host transport list`, or \
             name the directory of the plugins by --transports",
            known.join(", ")
        ));
    };
    match transport.facts().capabilities.has(Capabilities::CONTROL) {
        true => Ok(transport.clone()),
        false => Err(format!("the transport {name} carries tensors only; use quic://ADDRESS:PORT")),
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once("://") {
            Some((transport, address)) if !transport.is_empty() && !address.is_empty() => {
                Ok(Endpoint { transport: transport.to_owned(), address: address.to_owned() })
            }
            _ => Err(format!(
                "{text:?} is no address of a node; write TRANSPORT://ADDRESS, such as \
                 quic://10.0.0.2:4610"
            )),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_paths_are_this_machine() {
        let here = |text: &str| text.parse::<Endpoint>().unwrap().is_on_this_machine();
        assert!(here("quic://127.0.0.1:1") && here("tcp://[::1]:1") && here("shm:///run/a"));
        assert!(!here("quic://10.0.0.1:1") && !here("quic://localhost:1"));
    }

    #[test]
    fn endpoints_are_read_and_printed_alike() {
        for text in ["quic://0.0.0.0:4610", "shm:///run/genie.sock"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for wrong in ["", "quic:", "quic://", "://a", "10.0.0.1:4610"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
