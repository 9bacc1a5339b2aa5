use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::TlsError;

const NAME_BYTES_MAX: usize = 64;
const SCHEME: &str = "genie://";

/// What the holder of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Opens sessions on nodes.
    Host,
    /// Runs operators for hosts.
    Node,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Host => "host",
            Role::Node => "node",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who holds a certificate: displays as `genie-host/NAME` or `genie-node/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    role: Role,
    name: String,
}

impl Identity {
    /// Refuses names that could be mistaken for something else in a path, a URI or a log.
    pub fn new(role: Role, name: &str) -> Result<Self, TlsError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let good = name.len() <= NAME_BYTES_MAX
            && name.chars().all(plain)
            && name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !good {
            return Err(TlsError::Name { name: name.to_owned() });
        }
        Ok(Self { role, name: name.to_owned() })
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// As a certificate carries it: `genie://host/NAME`.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = TlsError;

    /// Reads [`Identity::uri`].
    fn from_str(uri: &str) -> Result<Self, TlsError> {
        let unknown = || TlsError::NoIdentity {
            reason: format!("{uri:?} is neither genie://host/NAME nor genie://node/NAME"),
        };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(unknown)?;
        match rest.split_once('/').ok_or_else(unknown)? {
            ("host", name) => Self::new(Role::Host, name),
            ("node", name) => Self::new(Role::Node, name),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "genie-{}/{}", self.role, self.name)
    }
}

/// Who a certificate says its holder is. Does not check the certificate: TLS has done that.
///
/// Exactly one Genie URI must be there, so that nobody has two identities to choose from.
pub fn identity(cert: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    let none = |reason: &str| TlsError::NoIdentity { reason: reason.to_owned() };
    let parsed = parse(cert).map_err(|reason| TlsError::NoIdentity { reason })?;
    let names = match parsed.subject_alternative_name() {
        Ok(Some(names)) => &names.value.general_names,
        Ok(None) => return Err(none("it has no alternative names")),
        Err(_) => return Err(none("its alternative names cannot be read")),
    };
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse(),
        (None, _) => Err(none("it has no genie:// URI")),
        (Some(_), Some(_)) => Err(none("it has several genie:// URIs")),
    }
}

/// Who the peer of a finished handshake is, from `peer_certificates()` of rustls or quinn.
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Result<Identity, TlsError> {
    identity(chain.and_then(<[_]>::first).ok_or(TlsError::NoPeerCertificate)?)
}

/// A dialled address (host name, IPv4, IPv6 with or without brackets; no port) as TLS checks it.
pub fn server_name(address: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(address).parse::<IpAddr>() {
        return Ok(ServerName::from(ip));
    }
    ServerName::try_from(address.to_owned())
        .map_err(|_| TlsError::Address { address: address.to_owned() })
}

/// The whole of `cert` as X.509.
pub(crate) fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    match X509Certificate::from_der(cert) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err("bytes follow the certificate".to_owned()),
        Err(_) => Err("it is no X.509 certificate".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "gpu-1", "rack.3_left", "9", &"x".repeat(64)] {
            let one = Identity::new(Role::Node, good).unwrap();
            assert_eq!(one.uri().parse::<Identity>().unwrap(), one);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(65)] {
            let error = Identity::new(Role::Host, bad).unwrap_err();
            assert!(matches!(error, TlsError::Name { .. }), "{bad:?}");
        }
    }

    #[test]
    fn uris_have_one_of_two_roles() {
        assert_eq!("genie://host/me".parse::<Identity>().unwrap().to_string(), "genie-host/me");
        for bad in ["genie://admin/me", "genie://host", "http://host/me", "genie://host/a/b"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn dialled_addresses() {
        for (text, ip) in [("10.0.0.1", true), ("[fd00::1]", true), ("fd00::1", true)] {
            assert_eq!(matches!(server_name(text), Ok(ServerName::IpAddress(_))), ip, "{text}");
        }
        assert!(matches!(server_name("gpu.example"), Ok(ServerName::DnsName(_))));
        for bad in ["", "a b", "x:1", "[x]"] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_has_no_identity(bytes in proptest::collection::vec(0u8.., 0..512)) {
            assert!(identity(&CertificateDer::from(bytes)).is_err());
        }
    }
}
