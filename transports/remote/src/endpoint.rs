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
