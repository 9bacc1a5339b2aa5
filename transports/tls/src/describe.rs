use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use crate::date;

/// A failed handshake in plain words, with the next step; fits after "NAME: ".
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(cause) => certificate(cause),
        Error::AlertReceived(alert) => describe_alert(u8::from(*alert)),
        Error::NoCertificatesPresented => {
            "the peer sent no certificate; give it one with `--certs DIR`".to_owned()
        }
        Error::NoApplicationProtocol => other_protocol(),
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13)
        | Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired) => {
            "the peer speaks no TLS 1.3; check that the address is a Genie node's".to_owned()
        }
        Error::InvalidMessage(_) => {
            "the peer does not speak TLS; check the address, and that both sides use certificates"
                .to_owned()
        }
        Error::FailedToGetCurrentTime => {
            "this machine's clock cannot be read; certificates need it".to_owned()
        }
        Error::InvalidCertRevocationList(_) | Error::General(_) => format!("TLS failed: {error}"),
        other => format!("TLS failed: {other}; compare the versions of Genie on both sides"),
    }
}

/// An alert of TLS by its number, as QUIC's close codes 0x100-0x1ff carry it (subtract 0x100): what
/// the peer has against us.
pub fn describe_alert(alert: u8) -> String {
    let text = match AlertDescription::from(alert) {
        AlertDescription::UnknownCA => {
            "the peer does not know the authority that issued our certificate; copy ca.pem to it, \
             or issue ours again (`genie-host certs show` tells which authority is in use)"
        }
        AlertDescription::CertificateExpired => {
            "the peer says that our certificate has expired or is not valid yet; run `genie-host \
             certs rotate` (host) or issue the node's again, and compare the clocks"
        }
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "the peer does not take certificates of our role; a node takes those that `genie-host \
             certs init` or `issue host` makes, and a host connects only to those of `issue node`"
        }
        AlertDescription::CertificateRequired => {
            "the peer wants a certificate and we have none; give `--certs DIR`"
        }
        AlertDescription::BadCertificate => {
            "the peer does not take our certificate: it does not name the address that was \
             dialled, or is damaged; issue it again with `--address` as the host dials it"
        }
        AlertDescription::CertificateRevoked => "the peer has revoked our certificate",
        AlertDescription::UnsupportedCertificate => {
            "our certificate is not meant for this side; hosts and nodes need their own, see \
             `genie-host certs issue`"
        }
        AlertDescription::DecryptError => {
            "the peer could not check our signature; key.pem and cert.pem may not belong together"
        }
        AlertDescription::NoApplicationProtocol => return other_protocol(),
        AlertDescription::ProtocolVersion => {
            "the peer refuses TLS 1.3; check that the address is a Genie node's"
        }
        other => return format!("the peer ended the handshake ({other:?}, alert {alert})"),
    };
    text.to_owned()
}

fn other_protocol() -> String {
    "the peer speaks another protocol or version of Genie; compare the versions on both sides"
        .to_owned()
}

fn certificate(cause: &CertificateError) -> String {
    let expired = "issue it again: `genie-host certs rotate` for a host's, `genie-host certs issue \
                   node NAME` for a node's";
    match cause {
        CertificateError::Expired => format!("the peer's certificate has expired; {expired}"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the peer's certificate expired on {}; {expired}", at(*not_after))
        }
        CertificateError::NotValidYet => {
            "the peer's certificate is not valid yet; compare the clocks of both machines"
                .to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the peer's certificate is valid only from {}, and this machine's clock says {}; \
             compare the clocks of both machines",
            at(*not_before),
            at(*time)
        ),
        CertificateError::UnknownIssuer => {
            "the peer's certificate is not from an authority in our ca.pem; issue it with the same \
             `genie-host certs`, or copy the new ca.pem here"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "the peer's certificate has a bad signature: it is damaged, or from an authority that \
             only looks like ours"
                .to_owned()
        }
        CertificateError::NotValidForName => {
            "the peer's certificate does not name the address that was dialled; issue it again \
             with `--address` as you dial it"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let dialled = match expected {
                ServerName::DnsName(name) => name.as_ref().to_owned(),
                ServerName::IpAddress(ip) => std::net::IpAddr::from(*ip).to_string(),
                other => format!("{other:?}"),
            };
            let named = match presented.is_empty() {
                true => "no address".to_owned(),
                false => presented.join(", "),
            };
            format!(
                "the peer's certificate names {named} and not {dialled}, which was dialled; issue \
                 it again with `--address {dialled}`, or dial an address that it names"
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the peer's certificate is not meant for its side; hosts and nodes need their own, see \
             `genie-host certs issue`"
                .to_owned()
        }
        CertificateError::Other(error) => error.to_string(),
        CertificateError::Revoked => "the peer's certificate is revoked".to_owned(),
        other => format!("the peer's certificate is refused ({other}); issue it again"),
    }
}

fn at(time: UnixTime) -> String {
    date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
