use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use crate::error::TlsError;
use crate::files::{CA_FILE, CERT_FILE, CertFiles, KEY_FILE};
use crate::identity::Identity;
use crate::verify::Checks;

/// Files that changed so lately, or could not be used, are read again after this time: their next
/// change may leave the same stamp.
const AGAIN: Duration = Duration::from_secs(1);
/// A change within this time of the reading counts as late.
const LATE: Duration = Duration::from_secs(2);

/// Hears once of each new trouble with the files of a running process.
pub type Warn = Box<dyn Fn(&TlsError) + Send + Sync>;

/// The certificates in a directory, read again when its files change.
///
/// Each new handshake looks at the three files (three `stat` calls). When they changed and are
/// good, it uses the new ones; when they are not, it keeps the old ones and warns once. Finished
/// connections go on with what they have.
pub struct ReloadingCerts {
    dir: PathBuf,
    clock: Arc<dyn TimeProvider>,
    warn: Warn,
    provider: Arc<CryptoProvider>,
    state: Mutex<State>,
    /// What was last held against a peer: in the words of rustls, and in ours.
    refusal: Mutex<Option<(String, String)>>,
}

struct State {
    now: Arc<Snapshot>,
    stamps: Stamps,
    /// Read again then, even with the same stamps.
    again: Option<Instant>,
    /// The trouble that was last told.
    told: Option<String>,
}

/// One good reading of the files.
pub(crate) struct Snapshot {
    pub identity: Identity,
    pub certified: Arc<CertifiedKey>,
    pub servers: Arc<dyn ServerCertVerifier>,
    pub clients: Arc<dyn ClientCertVerifier>,
    not_after_s: i64,
    /// When the first authority expires and must be left out.
    authorities_until_s: i64,
}

impl ReloadingCerts {
    /// Reads `dir`, by the system's clock; warnings go to `tracing`.
    pub fn load(dir: impl Into<PathBuf>) -> Result<Arc<Self>, TlsError> {
        let warn: Warn = Box::new(|error| {
            tracing::warn!("{error}; the certificates read before stay in use");
        });
        Self::load_with(dir, Arc::new(DefaultTimeProvider), warn)
    }

    /// As [`load`](Self::load), with the clock and the listener for warnings given: a plugin's
    /// `tracing` reaches nobody.
    pub fn load_with(
        dir: impl Into<PathBuf>,
        clock: Arc<dyn TimeProvider>,
        warn: Warn,
    ) -> Result<Arc<Self>, TlsError> {
        let dir = dir.into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let stamps = Stamps::of(&dir);
        let now = Arc::new(Snapshot::read(&dir, time(&*clock), &provider)?);
        let again = stamps.late().then(|| Instant::now() + AGAIN);
        let state = Mutex::new(State { now, stamps, again, told: None });
        let refusal = Mutex::default();
        Ok(Arc::new(Self { dir, clock, warn, provider, state, refusal }))
    }

    /// Who this side is.
    pub fn identity(&self) -> Identity {
        self.current().identity.clone()
    }

    /// When this side's certificate expires, in seconds after 1970.
    pub fn not_after_s(&self) -> i64 {
        self.current().not_after_s
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// In plain words what these certificates last held against a peer, if rustls calls it `text`.
    /// For libraries that pass on an error's text and not the error.
    pub fn explain(&self, text: &str) -> Option<String> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.as_ref().filter(|(rustls, _)| rustls == text).map(|(_, words)| words.clone())
    }

    pub(crate) fn remember(&self, refusal: &rustls::Error) {
        let told = (refusal.to_string(), crate::describe(refusal));
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub(crate) fn clock(&self) -> Arc<dyn TimeProvider> {
        self.clock.clone()
    }

    /// The newest good reading, after a look at the files.
    pub(crate) fn current(&self) -> Arc<Snapshot> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = time(&*self.clock);
        let stamps = Stamps::of(&self.dir);
        let due = state.again.is_some_and(|again| Instant::now() >= again);
        let authority_expired = now.as_secs() as i64 > state.now.authorities_until_s;
        if stamps == state.stamps && !due && !authority_expired {
            self.tell_expiry(&mut state, now);
            return state.now.clone();
        }
        let wanted = state.now.identity.role();
        let fresh = Snapshot::read(&self.dir, now, &self.provider).and_then(|fresh| {
            if fresh.identity.role() == wanted {
                return Ok(fresh);
            }
            let path = self.dir.join(CERT_FILE);
            Err(TlsError::OwnRole { path, found: fresh.identity, wanted })
        });
        match fresh {
            Ok(fresh) => {
                state.again = stamps.late().then(|| Instant::now() + AGAIN);
                state.now = Arc::new(fresh);
                state.told = None;
            }
            Err(error) => {
                state.again = Some(Instant::now() + AGAIN);
                self.tell(&mut state, &error);
            }
        }
        state.stamps = stamps;
        state.now.clone()
    }

    fn tell_expiry(&self, state: &mut State, now: UnixTime) {
        let not_after_s = state.now.not_after_s;
        if now.as_secs() as i64 > not_after_s && state.told.is_none() {
            let role = Some(state.now.identity.role());
            let path = self.dir.join(CERT_FILE);
            self.tell(state, &TlsError::Expired { path, not_after_s, role });
        }
    }

    fn tell(&self, state: &mut State, error: &TlsError) {
        let text = error.to_string();
        if state.told.as_deref() != Some(&*text) {
            (self.warn)(error);
            state.told = Some(text);
        }
    }
}

impl fmt::Debug for ReloadingCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingCerts").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Snapshot {
    fn read(dir: &Path, now: UnixTime, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let files = CertFiles::read(dir, now)?;
        let certified = Arc::new(files.certified(provider)?);
        let (roots, authorities_until_s) = files.roots(now)?;
        let checks = Checks::new(roots, provider, dir)?;
        checks.own(&files, now)?;
        Ok(Self {
            certified,
            servers: checks.servers,
            clients: checks.clients,
            not_after_s: files.not_after_s,
            identity: files.identity,
            authorities_until_s,
        })
    }
}

/// A clock that does not tell the time is taken as far in the future: nothing is valid then.
fn time(clock: &dyn TimeProvider) -> UnixTime {
    clock.current_time().unwrap_or(UnixTime::since_unix_epoch(Duration::from_secs(u32::MAX.into())))
}

/// What `stat` says of a directory's files; it changes when they do.
#[derive(PartialEq, Eq)]
struct Stamps([Option<Stamp>; 3]);

#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamps {
    fn of(dir: &Path) -> Self {
        Self([CA_FILE, CERT_FILE, KEY_FILE].map(|file| {
            let meta = std::fs::metadata(dir.join(file)).ok()?;
            Some(Stamp {
                device: meta.dev(),
                inode: meta.ino(),
                bytes: meta.size(),
                mode: meta.mode(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            })
        }))
    }

    /// Whether a file changed so shortly before now that its next change may look the same.
    fn late(&self) -> bool {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |at| at.as_secs() as i64);
        self.0.iter().flatten().any(|stamp| stamp.changed.0 + LATE.as_secs() as i64 >= now)
    }
}
