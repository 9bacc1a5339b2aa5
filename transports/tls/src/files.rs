use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use crate::error::TlsError;
use crate::identity::{Identity, identity, parse};

/// Authorities that are trusted.
pub const CA_FILE: &str = "ca.pem";
/// The chain of this side, its own certificate first.
pub const CERT_FILE: &str = "cert.pem";
/// The private key of this side.
pub const KEY_FILE: &str = "key.pem";

const FILE_BYTES_MAX: u64 = 1 << 20;
pub(crate) const AUTHORITIES_MAX: usize = 16;
pub(crate) const CHAIN_MAX: usize = 8;

/// Where `genie-host certs` keeps a user's certificates: `$XDG_CONFIG_HOME/genie/certs`, else
/// `$HOME/.config/genie/certs`; `None` when neither is set. The caller reads the environment.
pub fn default_dir(xdg_config_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let xdg = xdg_config_home.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let config = xdg.or_else(|| {
        home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".config"))
    })?;
    Some(config.join("genie").join("certs"))
}

/// A certificate directory as read once, checked but not bound to a configuration.
#[derive(Debug)]
pub struct CertFiles {
    pub dir: PathBuf,
    pub authorities: Vec<CertificateDer<'static>>,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub identity: Identity,
    /// When `cert.pem` expires, in seconds after 1970.
    pub not_after_s: i64,
}

impl CertFiles {
    /// Reads and checks the directory: forms, modes, that key and certificate belong
    /// together, and that the certificate is valid at `now`.
    pub fn read(dir: &Path, now: UnixTime) -> Result<Self, TlsError> {
        let ca = dir.join(CA_FILE);
        let cert = dir.join(CERT_FILE);
        not_writable_by_others(dir)?;
        not_writable_by_others(&ca)?;
        let authorities = certificates(&ca, AUTHORITIES_MAX)?;
        let chain = certificates(&cert, CHAIN_MAX)?;
        let key = private_key(&dir.join(KEY_FILE))?;
        let own = chain.first().expect("certificates() refuses an empty file");
        let identity = identity(own)
            .map_err(|error| TlsError::Bad { path: cert.clone(), reason: error.to_string() })?;
        let parsed = parse(own).map_err(|reason| TlsError::Bad { path: cert.clone(), reason })?;
        let (from, to) = validity(&parsed);
        let now_s = now.as_secs() as i64;
        if now_s > to {
            let role = Some(identity.role());
            return Err(TlsError::Expired { path: cert, not_after_s: to, role });
        }
        if now_s < from {
            return Err(TlsError::NotYetValid { path: cert, not_before_s: from });
        }
        Ok(Self { dir: dir.to_owned(), authorities, chain, key, identity, not_after_s: to })
    }

    /// The certificate with its key; refuses a key of another certificate.
    pub(crate) fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let (cert, key) = (self.dir.join(CERT_FILE), self.dir.join(KEY_FILE));
        let signing =
            provider.key_provider.load_private_key(self.key.clone_key()).map_err(|error| {
                TlsError::Bad { path: key.clone(), reason: format!("no key for TLS ({error})") }
            })?;
        let certified = CertifiedKey::new(self.chain.clone(), signing);
        match certified.keys_match() {
            Ok(()) => Ok(certified),
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch { cert, key }),
            Err(error) => Err(TlsError::Bad { path: cert, reason: error.to_string() }),
        }
    }

    /// The authorities that are valid at `now`, and when the first of them expires (seconds after
    /// 1970): rustls looks at no dates of authorities.
    pub(crate) fn roots(&self, now: UnixTime) -> Result<(Arc<RootCertStore>, i64), TlsError> {
        let path = self.dir.join(CA_FILE);
        let bad = |reason: String| TlsError::Bad { path: path.clone(), reason };
        let mut roots = RootCertStore::empty();
        let (mut first, mut expired) = (i64::MAX, None);
        for authority in &self.authorities {
            let parsed = parse(authority).map_err(bad)?;
            let (_, to) = validity(&parsed);
            if !parsed.is_ca() {
                return Err(bad("a certificate in it is no authority's".to_owned()));
            }
            if (now.as_secs() as i64) > to {
                expired = expired.max(Some(to));
                continue;
            }
            first = first.min(to);
            roots.add(authority.clone()).map_err(|error| bad(error.to_string()))?;
        }
        if let (true, Some(not_after_s)) = (roots.is_empty(), expired) {
            return Err(TlsError::Expired { path, not_after_s, role: None });
        }
        Ok((Arc::new(roots), first))
    }
}

fn validity(parsed: &x509_parser::certificate::X509Certificate<'_>) -> (i64, i64) {
    (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
}

/// All certificates of a PEM file: at least one, at most `most`.
pub(crate) fn certificates(
    path: &Path,
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(&open(path)?.1, most)
        .map_err(|reason| TlsError::Bad { path: path.to_owned(), reason })
}

pub(crate) fn certificates_in(
    pem: &[u8],
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for cert in CertificateDer::pem_slice_iter(pem) {
        let cert = cert.map_err(|error| format!("its PEM is damaged ({error:?})"))?;
        parse(&cert)?;
        if found.len() == most {
            return Err(format!("it holds more than {most} certificates"));
        }
        found.push(cert);
    }
    if found.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

/// The private key in a file that only its owner may read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // The parser's own error is not shown: it could quote the key.
    PrivateKeyDer::from_pem_slice(&secret(path)?).map_err(|_| TlsError::Bad {
        path: path.to_owned(),
        reason: "it holds no private key in PEM".to_owned(),
    })
}

/// The bytes of a file that only its owner may read.
pub(crate) fn secret(path: &Path) -> Result<Vec<u8>, TlsError> {
    let (metadata, bytes) = open(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TlsError::KeyPermission { path: path.to_owned(), mode });
    }
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(TlsError::KeyOwner { path: path.to_owned(), owner: metadata.uid(), us });
    }
    Ok(bytes)
}

/// Who can change what is trusted could be anybody's man in the middle.
fn not_writable_by_others(path: &Path) -> Result<(), TlsError> {
    let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(TlsError::WritableByOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

fn failed(path: &Path, source: std::io::Error) -> TlsError {
    match source.kind() {
        ErrorKind::NotFound => TlsError::Missing { path: path.to_owned() },
        _ => TlsError::Read { path: path.to_owned(), source },
    }
}

/// A small regular file and what the kernel says of it, from one descriptor.
fn open(path: &Path) -> Result<(fs::Metadata, Vec<u8>), TlsError> {
    let bad = |reason: &str| TlsError::Bad { path: path.to_owned(), reason: reason.to_owned() };
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .map_err(|error| failed(path, error))?;
    let metadata = file.metadata().map_err(|error| failed(path, error))?;
    if !metadata.is_file() {
        return Err(bad("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(path, error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(bad("it is larger than 1 MiB"));
    }
    Ok((metadata, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_follows_the_environment() {
        let dir = |xdg: Option<&str>, home: Option<&str>| {
            default_dir(xdg.map(Into::into), home.map(Into::into))
        };
        assert_eq!(dir(Some("/x"), Some("/h")).unwrap(), Path::new("/x/genie/certs"));
        assert_eq!(dir(None, Some("/h")).unwrap(), Path::new("/h/.config/genie/certs"));
        assert_eq!(dir(Some("not/absolute"), Some("/h")), dir(None, Some("/h")));
        assert_eq!(dir(None, Some("")), None);
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CA_FILE);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let error = certificates(&path, 1).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(0u8.., 0..2048)) {
            assert!(certificates_in(&bytes, 4).is_err());
        }

        #[test]
        fn garbage_in_pem_is_refused(
            body in "[A-Za-z0-9+/=\n -]{0,400}",
            label in "(CERTIFICATE|PRIVATE KEY|X)",
        ) {
            let text = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
            assert!(certificates_in(text.as_bytes(), 4).is_err());
        }
    }
}
