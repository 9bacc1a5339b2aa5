use std::io;
use std::path::PathBuf;

use crate::date;
use crate::identity::{Identity, Role};

/// What can be wrong with certificates, ours or a peer's; each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("{} is missing; `genie-host certs init` makes a host's certificates, `genie-host certs \
             issue node NAME --address ADDRESS` a node's", path.display())]
    Missing { path: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not usable: {reason}; copy it again or issue it anew with `genie-host certs`",
            path.display())]
    Bad { path: PathBuf, reason: String },
    #[error("{} can be read by others (mode {mode:04o}); run `chmod 600 {}`", path.display(),
            path.display())]
    KeyPermission { path: PathBuf, mode: u32 },
    #[error("{} can be changed by others (mode {mode:04o}); run `chmod go-w {}`", path.display(),
            path.display())]
    WritableByOthers { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, who is not you; run `chown {us} {}`", path.display(),
            path.display())]
    KeyOwner { path: PathBuf, owner: u32, us: u32 },
    #[error("{} does not belong to {}; copy both from one `genie-host certs issue`, or run \
             `genie-host certs rotate`", key.display(), cert.display())]
    KeyMismatch { cert: PathBuf, key: PathBuf },
    #[error("{} expired on {}; {}", path.display(), date(*not_after_s), renew(*role))]
    Expired { path: PathBuf, not_after_s: i64, role: Option<Role> },
    #[error("{} is valid only from {}; set this machine's clock right", path.display(),
            date(*not_before_s))]
    NotYetValid { path: PathBuf, not_before_s: i64 },
    #[error("{} is not signed by an authority in {}; copy all files of one `genie-host certs \
             issue`, or run `genie-host certs rotate`", cert.display(), ca.display())]
    ForeignCert { cert: PathBuf, ca: PathBuf },
    #[error("{} is the certificate of {found}, and a {wanted}'s is needed here; {}",
            path.display(), make(*wanted))]
    OwnRole { path: PathBuf, found: Identity, wanted: Role },
    #[error(
        "the peer is {found}, and only {wanted} may speak here; check the address, or the \
             certificate that the peer uses"
    )]
    WrongRole { found: Identity, wanted: &'static str },
    #[error(
        "a certificate names no Genie identity ({reason}); issue it with `genie-host certs \
             issue`"
    )]
    NoIdentity { reason: String },
    #[error("the peer sent no certificate; give it one with `--certs DIR`")]
    NoPeerCertificate,
    #[error(
        "{name:?} is no name for a host or node; use 1 to 64 of a-z, A-Z, 0-9, `.`, `-` and \
             `_`, with a letter or digit first"
    )]
    Name { name: String },
    #[error("{address:?} is neither a host name nor an IP address")]
    Address { address: String },
    #[error(
        "will not listen on {address} without certificates: others could connect; give \
             `--certs DIR` (`genie-host certs issue node` makes one) or listen on 127.0.0.1"
    )]
    ListenWithoutCerts { address: std::net::IpAddr },
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl TlsError {
    /// The file that is at fault, where one is.
    pub fn path(&self) -> Option<&std::path::Path> {
        use TlsError::*;
        match self {
            Missing { path }
            | Read { path, .. }
            | Bad { path, .. }
            | KeyPermission { path, .. }
            | KeyOwner { path, .. }
            | WritableByOthers { path, .. }
            | Expired { path, .. }
            | NotYetValid { path, .. }
            | OwnRole { path, .. } => Some(path),
            KeyMismatch { key, .. } => Some(key),
            ForeignCert { cert, .. } => Some(cert),
            _ => None,
        }
    }
}

/// How a certificate of this role is renewed; an authority has none.
pub(crate) fn renew(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Host) => "run `genie-host certs rotate`",
        Some(Role::Node) => {
            "run `genie-host certs issue node NAME` where `certs init` was run and copy its files here"
        }
        None => "run `genie-host certs rotate --ca`",
    }
}

fn make(role: Role) -> &'static str {
    match role {
        Role::Host => "`genie-host certs init` or `genie-host certs issue host NAME` makes one",
        Role::Node => "`genie-host certs issue node NAME --address ADDRESS` makes one",
    }
}
