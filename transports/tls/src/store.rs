//! The directory where `genie-host certs` keeps an authority, a host's certificate and a record
//! of what it issued.
//!
//! Beside `ca.pem`, `cert.pem` and `key.pem` it holds `ca-key.pem` (the authority, certificate and
//! key in one file) and `issued/ROLE-NAME/`. Each file is replaced whole: written beside, synced,
//! renamed. One process at a time works here. The clock is given by the caller.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::error::TlsError;
use crate::files::{
    AUTHORITIES_MAX, CA_FILE, CERT_FILE, CHAIN_MAX, KEY_FILE, certificates, secret,
};
use crate::identity::{Identity, Role, identity, parse};
use crate::issue::{AUTHORITY_DAYS, Authority, IssueError, Validity, to_pem};

/// The authority, certificate and key.
pub const AUTHORITY_FILE: &str = "ca-key.pem";
/// What was issued to others.
pub const ISSUED_DIR: &str = "issued";
/// Certificates that expire within this time deserve a warning.
pub const WARN_DAYS: i64 = 30;
const LOCK_FILE: &str = ".lock";
const DAY_S: i64 = 86_400;
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Why the directory could not be worked on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{}: {source}", path.display())]
    Issue { path: PathBuf, source: IssueError },
    #[error("{} is there already; `genie-host certs show --dir {}` shows it, `certs rotate` renews \
             it, `certs init --dir OTHER` makes another authority", path.display(),
            path.parent().unwrap_or(path).display())]
    Exists { path: PathBuf },
    #[error("{} has no authority; run `genie-host certs init`, or give the `--dir` where you did",
            dir.display())]
    NotInitialized { dir: PathBuf },
    #[error("another `genie-host certs` is at work in {}; wait for it", dir.display())]
    Busy { dir: PathBuf },
    #[error("{} is the certificate of {found}; give another `--out` than for {wanted}",
            path.display())]
    Occupied { path: PathBuf, found: String, wanted: Identity },
    #[error("{identity} is this host's own certificate; `genie-host certs rotate` renews it")]
    Own { identity: Identity },
    #[error("{}: a change of the authority is under way; when each machine has its new files, run \
             `genie-host certs rotate --finish`", dir.display())]
    Rotating { dir: PathBuf },
    #[error("{}: no change of the authority is under way; `genie-host certs rotate --ca` begins \
             one", dir.display())]
    NotRotating { dir: PathBuf },
    #[error("{} still comes from the old authority; issue it again and copy it, or remove its \
             directory if that machine is gone, then run `rotate --finish` again",
            path.display())]
    OldAuthority { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What was issued, and where its files are.
#[derive(Debug)]
pub struct IssuedTo {
    pub identity: Identity,
    pub addresses: Vec<String>,
    pub dir: PathBuf,
    pub not_after_s: i64,
}

/// An opened directory; others are locked out while this lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    now_s: i64,
    _lock: File,
}

impl Store {
    /// Makes an authority and the certificate of host `name`. Changes nothing that is there.
    pub fn init(dir: &Path, name: &str, days: u32, now_s: i64) -> Result<IssuedTo, StoreError> {
        let own = Identity::new(Role::Host, name)?;
        make_dir(dir)?;
        let store = Self::lock(dir, now_s)?;
        for file in [AUTHORITY_FILE, CA_FILE, CERT_FILE, KEY_FILE] {
            let path = dir.join(file);
            if path.symlink_metadata().is_ok() {
                return Err(StoreError::Exists { path });
            }
        }
        let authority = store.made(Authority::create(name, store.validity(AUTHORITY_DAYS)))?;
        let issued = store.made(authority.issue(&own, &[], store.validity(days)))?;
        // The authority last: without it, a half-made directory is no store, and says so.
        write(
            dir,
            &[
                (CA_FILE, &authority.cert_pem(), PUBLIC),
                (KEY_FILE, &issued.key_pem, SECRET),
                (CERT_FILE, &issued.cert_pem, PUBLIC),
                (AUTHORITY_FILE, &authority.to_pem(), SECRET),
            ],
        )?;
        Ok(IssuedTo {
            identity: own,
            addresses: Vec::new(),
            dir: dir.to_owned(),
            not_after_s: issued.not_after_s,
        })
    }

    /// Opens a directory that [`init`](Self::init) made.
    pub fn open(dir: &Path, now_s: i64) -> Result<Self, StoreError> {
        if !dir.join(AUTHORITY_FILE).is_file() {
            return Err(StoreError::NotInitialized { dir: dir.to_owned() });
        }
        Self::lock(dir, now_s)
    }

    fn lock(dir: &Path, now_s: i64) -> Result<Self, StoreError> {
        let path = dir.join(LOCK_FILE);
        let failed = |source| StoreError::Write { path: path.clone(), source };
        let lock = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), now_s, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Busy { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The host whose directory this is.
    pub fn own(&self) -> Result<Identity, StoreError> {
        Ok(leaf(&self.dir.join(CERT_FILE))?.0)
    }

    /// Issues or renews a certificate, into `out` or `issued/ROLE-NAME`. Without `addresses`, a
    /// renewed one keeps those that it has.
    pub fn issue(
        &self,
        to: &Identity,
        addresses: &[String],
        days: u32,
        out: Option<&Path>,
    ) -> Result<IssuedTo, StoreError> {
        if *to == self.own()? {
            return Err(StoreError::Own { identity: to.clone() });
        }
        let record = self.record(to);
        let addresses = match leaf(&record.join(CERT_FILE)) {
            Ok((_, old)) if addresses.is_empty() => old,
            _ => addresses.to_vec(),
        };
        let out = out.unwrap_or(&record);
        let there = out.join(CERT_FILE);
        if there.symlink_metadata().is_ok() {
            let found = leaf(&there).map(|(found, _)| found.to_string());
            let found = found.unwrap_or_else(|_| "someone else".to_owned());
            if found != to.to_string() || out.join(AUTHORITY_FILE).exists() {
                return Err(StoreError::Occupied { path: there, found, wanted: to.clone() });
            }
        }
        let authority = self.authority()?;
        let issued = self.made(authority.issue(to, &addresses, self.validity(days)))?;
        make_dir(&self.dir.join(ISSUED_DIR))?;
        make_dir(&record)?;
        make_dir(out)?;
        write(
            out,
            &[
                (CA_FILE, &bundle(&self.trusted()?), PUBLIC),
                (KEY_FILE, &issued.key_pem, SECRET),
                (CERT_FILE, &issued.cert_pem, PUBLIC),
            ],
        )?;
        if out != record {
            write(&record, &[(CERT_FILE, &issued.cert_pem, PUBLIC)])?;
        }
        let not_after_s = issued.not_after_s;
        Ok(IssuedTo { identity: to.clone(), addresses, dir: out.to_owned(), not_after_s })
    }

    /// A new certificate for this host from the same authority. A running host takes it at its
    /// next connection; nothing needs to be copied.
    pub fn rotate(&self, days: u32) -> Result<IssuedTo, StoreError> {
        if self.rotating()? {
            return Err(StoreError::Rotating { dir: self.dir.clone() });
        }
        self.renew_own(&self.authority()?, days)
    }

    /// Begins a change of the authority: all trust the old and the new one, and what was issued is
    /// issued again by the new one. Our own certificate stays the old one's until
    /// [`finish`](Self::finish): machines that lack the new files must still take us.
    pub fn rotate_authority(&self, days: u32) -> Result<Vec<IssuedTo>, StoreError> {
        if self.rotating()? {
            return Err(StoreError::Rotating { dir: self.dir.clone() });
        }
        let old = self.authority()?;
        let own = self.own()?;
        let new = self.made(Authority::create(own.name(), self.validity(AUTHORITY_DAYS)))?;
        let both = bundle(&[new.cert().clone(), old.cert().clone()]);
        // Stopped between the two files, the old authority goes on, and `finish` drops the other.
        write(&self.dir, &[(CA_FILE, &both, PUBLIC)])?;
        write(&self.dir, &[(AUTHORITY_FILE, &new.to_pem(), SECRET)])?;
        let issued = self.issued()?.into_iter();
        issued.map(|(to, addresses)| self.issue(&to, &addresses, days, None)).collect()
    }

    /// Ends a change of the authority: our certificate comes from the new one, and the old one is
    /// trusted no more, here and in what was issued.
    pub fn finish(&self, days: u32) -> Result<IssuedTo, StoreError> {
        if !self.rotating()? {
            return Err(StoreError::NotRotating { dir: self.dir.clone() });
        }
        let authority = self.authority()?;
        let issued = self.issued()?;
        for (to, _) in &issued {
            let path = self.record(to).join(CERT_FILE);
            let cert = &certificates(&path, CHAIN_MAX)?[0];
            if !signed_by(cert, authority.cert()) {
                return Err(StoreError::OldAuthority { path });
            }
        }
        let renewed = self.renew_own(&authority, days)?;
        write(&self.dir, &[(CA_FILE, &authority.cert_pem(), PUBLIC)])?;
        for (to, _) in &issued {
            write(&self.record(to), &[(CA_FILE, &authority.cert_pem(), PUBLIC)])?;
        }
        Ok(renewed)
    }

    /// Whether a change of the authority is under way.
    pub fn rotating(&self) -> Result<bool, StoreError> {
        let active = self.authority()?;
        Ok(self.trusted()?.iter().any(|cert| cert != active.cert()))
    }

    /// What was issued to others, by name.
    pub fn issued(&self) -> Result<Vec<(Identity, Vec<String>)>, StoreError> {
        issued_dirs(&self.dir).into_iter().map(|dir| Ok(leaf(&dir.join(CERT_FILE))?)).collect()
    }

    fn renew_own(&self, authority: &Authority, days: u32) -> Result<IssuedTo, StoreError> {
        let own = self.own()?;
        let issued = self.made(authority.issue(&own, &[], self.validity(days)))?;
        write(
            &self.dir,
            &[(KEY_FILE, &issued.key_pem, SECRET), (CERT_FILE, &issued.cert_pem, PUBLIC)],
        )?;
        let not_after_s = issued.not_after_s;
        Ok(IssuedTo { identity: own, addresses: Vec::new(), dir: self.dir.clone(), not_after_s })
    }

    fn authority(&self) -> Result<Authority, StoreError> {
        self.made(Authority::from_pem(&secret(&self.dir.join(AUTHORITY_FILE))?))
    }

    fn trusted(&self) -> Result<Vec<CertificateDer<'static>>, StoreError> {
        Ok(certificates(&self.dir.join(CA_FILE), AUTHORITIES_MAX)?)
    }

    fn record(&self, to: &Identity) -> PathBuf {
        self.dir.join(ISSUED_DIR).join(format!("{}-{}", to.role(), to.name()))
    }

    fn validity(&self, days: u32) -> Validity {
        Validity::days(self.now_s, days)
    }

    fn made<T>(&self, result: Result<T, IssueError>) -> Result<T, StoreError> {
        result.map_err(|source| StoreError::Issue { path: self.dir.join(AUTHORITY_FILE), source })
    }
}

/// A certificate as `genie-host certs show` tells it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: PathBuf,
    /// `None` for an authority.
    pub identity: Option<Identity>,
    pub subject: String,
    pub issuer: String,
    /// Host names and IP addresses.
    pub addresses: Vec<String>,
    pub not_before_s: i64,
    pub not_after_s: i64,
}

impl Entry {
    /// Whole days until it expires; negative when it has.
    pub fn days_left(&self, now_s: i64) -> i64 {
        (self.not_after_s - now_s).div_euclid(DAY_S)
    }

    fn of(path: &Path, cert: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let bad = |reason| TlsError::Bad { path: path.to_owned(), reason };
        let parsed = parse(cert).map_err(bad)?;
        let identity = match parsed.is_ca() {
            true => None,
            false => Some(identity(cert).map_err(|error| bad(error.to_string()))?),
        };
        Ok(Self {
            path: path.to_owned(),
            identity,
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            addresses: addresses(cert),
            not_before_s: parsed.validity().not_before.timestamp(),
            not_after_s: parsed.validity().not_after.timestamp(),
        })
    }
}

/// All certificates of a directory, a store's or one that was issued; an entry that cannot be read
/// says why.
pub fn show(dir: &Path) -> Vec<Result<Entry, TlsError>> {
    let file = |path: PathBuf, first: usize| match certificates(&path, AUTHORITIES_MAX) {
        Ok(certs) => certs.iter().take(first).map(|cert| Entry::of(&path, cert)).collect(),
        Err(error) => vec![Err(error)],
    };
    let mut entries = file(dir.join(CA_FILE), AUTHORITIES_MAX);
    entries.extend(file(dir.join(CERT_FILE), 1));
    for issued in issued_dirs(dir) {
        entries.extend(file(issued.join(CERT_FILE), 1));
    }
    entries
}

fn issued_dirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(ISSUED_DIR)).into_iter().flatten().flatten();
    let mut dirs: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.join(CERT_FILE).exists()).collect();
    dirs.sort();
    dirs
}

/// Whose certificate a file holds, and its addresses; its dates do not matter here.
fn leaf(path: &Path) -> Result<(Identity, Vec<String>), TlsError> {
    let cert = &certificates(path, CHAIN_MAX)?[0];
    let who = identity(cert)
        .map_err(|error| TlsError::Bad { path: path.to_owned(), reason: error.to_string() })?;
    Ok((who, addresses(cert)))
}

fn addresses(cert: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = parse(cert) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// By name, not by signature: which of our own authorities a certificate came from.
fn signed_by(cert: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    match (parse(cert), parse(authority)) {
        (Ok(cert), Ok(authority)) => cert.issuer().as_raw() == authority.subject().as_raw(),
        _ => false,
    }
}

fn bundle(certs: &[CertificateDer<'_>]) -> String {
    certs.iter().map(to_pem).collect()
}

/// Makes a private directory with its parents; one that is there stays as it is.
fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::Write { path: dir.to_owned(), source })
}

/// Replaces files whole and makes that last: all are written and synced before the first is named.
fn write(dir: &Path, files: &[(&str, &str, u32)]) -> Result<(), StoreError> {
    let failed = |file: &str| {
        let path = dir.join(file);
        move |source| StoreError::Write { path, source }
    };
    let mut written = Vec::new();
    for (name, text, mode) in files {
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(*mode))
            .tempfile_in(dir)
            .map_err(failed(name))?;
        file.write_all(text.as_bytes()).map_err(failed(name))?;
        file.as_file().sync_all().map_err(failed(name))?;
        written.push((name, file));
    }
    for (name, file) in written {
        file.persist(dir.join(name)).map_err(|error| failed(name)(error.error))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(""))
}
