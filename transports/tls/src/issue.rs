//! A small certificate authority: makes itself, hosts' and nodes' certificates. Does no I/O; keys
//! are ECDSA P-256, fresh for each certificate.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;

use crate::error::TlsError;
use crate::identity::{Identity, Role, parse, server_name};

/// How long an authority is good.
pub const AUTHORITY_DAYS: u32 = 3650;
/// The longest life of a certificate.
pub const DAYS_MAX: u32 = AUTHORITY_DAYS;
/// The life of a certificate where none is given.
pub const DAYS_DEFAULT: u32 = 365;
/// Names and addresses that one certificate may carry.
pub const ADDRESSES_MAX: usize = 32;
/// Certificates are good from this long before now, for clocks that are behind.
const EARLIER_S: i64 = 3600;
const DAY_S: i64 = 86_400;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "the authority's file is damaged ({0}); restore it from a backup, or make a new \
             authority with `genie-host certs init` in another directory"
    )]
    Authority(String),
    #[error("the authority expired on {}; replace it with `genie-host certs rotate --ca`",
            crate::date(*not_after_s))]
    AuthorityExpired { not_after_s: i64 },
    #[error("{0} addresses are too many for one certificate; give at most {ADDRESSES_MAX}")]
    TooManyAddresses(usize),
    #[error("a node's certificate must name the address that hosts dial; give `--address`")]
    NoAddress,
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// When a certificate is good, in seconds after 1970.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub from_s: i64,
    pub to_s: i64,
}

impl Validity {
    /// From a little before now, for `days`.
    pub fn days(now_s: i64, days: u32) -> Self {
        Self { from_s: now_s - EARLIER_S, to_s: now_s + i64::from(days) * DAY_S }
    }
}

/// A certificate with its key, both in PEM.
pub struct Issued {
    pub cert_pem: String,
    pub key_pem: String,
    pub not_after_s: i64,
}

/// Signs certificates.
pub struct Authority {
    cert: CertificateDer<'static>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_after_s: i64,
}

impl Authority {
    /// A fresh authority; `name` is only for people.
    pub fn create(name: &str, validity: Validity) -> Result<Self, IssueError> {
        let key = KeyPair::generate()?;
        let mut params = params(validity)?;
        // Two authorities of one name must differ in their subject: chains are found by it.
        let tail: Vec<String> = key.public_key_raw().iter().rev().take(4).map(hex).collect();
        params.distinguished_name =
            common_name(&format!("Genie authority {name} {}", tail.concat()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?.der().clone();
        Ok(Self {
            cert,
            key_pem: key.serialize_pem(),
            not_after_s: validity.to_s,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads [`to_pem`](Self::to_pem).
    pub fn from_pem(pem: &[u8]) -> Result<Self, IssueError> {
        let damaged = |what: &str| IssueError::Authority(what.to_owned());
        let cert =
            CertificateDer::from_pem_slice(pem).map_err(|_| damaged("it has no certificate"))?;
        // The parser's own error is not shown: it could quote the key.
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| damaged("it has no key"))?;
        let key = KeyPair::try_from(&key).map_err(|_| damaged("its key is of no known kind"))?;
        let parsed = parse(&cert).map_err(IssueError::Authority)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(damaged("its key belongs to another certificate"));
        }
        let not_after_s = parsed.validity().not_after.timestamp();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::from_ca_cert_der(&cert, key)?;
        Ok(Self { cert, key_pem, issuer, not_after_s })
    }

    /// Certificate and private key in one text, so that they change together.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.cert_pem(), self.key_pem)
    }

    pub fn cert_pem(&self) -> String {
        to_pem(&self.cert)
    }

    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// Makes a certificate for `identity`; `addresses` are host names and IP addresses. It ends
    /// with the authority at the latest. Nodes' are for both ends of a connection (nodes dial
    /// nodes), hosts' only for the dialling one.
    pub fn issue(
        &self,
        identity: &Identity,
        addresses: &[String],
        validity: Validity,
    ) -> Result<Issued, IssueError> {
        if addresses.len() > ADDRESSES_MAX {
            return Err(IssueError::TooManyAddresses(addresses.len()));
        }
        if identity.role() == Role::Node && addresses.is_empty() {
            return Err(IssueError::NoAddress);
        }
        if validity.from_s + EARLIER_S > self.not_after_s {
            return Err(IssueError::AuthorityExpired { not_after_s: self.not_after_s });
        }
        let to_s = validity.to_s.min(self.not_after_s);
        let mut params = params(Validity { to_s, ..validity })?;
        params.distinguished_name = common_name(&identity.to_string());
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into()?));
        for address in addresses {
            params.subject_alt_names.push(match server_name(address)? {
                ServerName::IpAddress(ip) => SanType::IpAddress(ip.into()),
                _ => SanType::DnsName(address.to_ascii_lowercase().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity.role() {
            Role::Host => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Node => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: to_pem(cert.der()), key_pem: key.serialize_pem(), not_after_s: to_s })
    }
}

/// A certificate in PEM.
pub fn to_pem(cert: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", cert.as_ref()))
}

fn params(validity: Validity) -> Result<CertificateParams, IssueError> {
    let date = |at_s| {
        OffsetDateTime::from_unix_timestamp(at_s).map_err(|_| IssueError::Make(rcgen::Error::Time))
    };
    let mut params = CertificateParams::default();
    params.not_before = date(validity.from_s)?;
    params.not_after = date(validity.to_s)?;
    Ok(params)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn hex(byte: &u8) -> String {
    format!("{byte:02x}")
}
