//! Options as every stream transport reads them.

use genie_transport::transport::{Cause, Options, Result, TransportError};

/// Refuses settings that a transport does not have.
pub fn check_settings(options: &Options, transport: &str, known: &[&str]) -> Result<()> {
    match options.settings.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "the transport {transport} has no setting {name:?}; it has {}",
            if known.is_empty() { "none".into() } else { known.join(", ") }
        ))),
    }
}

/// A setting that is a number.
pub fn number(options: &Options, name: &str) -> Result<Option<u64>> {
    let parse = |text: &String| {
        text.parse().map_err(|_| invalid(format!("the setting {name}={text} is not a number")))
    };
    options.settings.get(name).map(parse).transpose()
}

/// The host of an address `HOST:PORT`, without brackets.
pub fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn invalid(message: String) -> TransportError {
    TransportError::new(Cause::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        for (address, host) in
            [("node:7", "node"), ("10.0.0.1:7", "10.0.0.1"), ("[::1]:7", "::1"), ("node", "node")]
        {
            assert_eq!(host_of(address), host);
        }
    }
}
