//! Finds transport plugins in a directory, and loads those that are fit for it.
//!
//! Each plugin passes three gates, and a refusal at one is kept with its reason for
//! `genie-host transport list`: its file is vetted ([`crate::vet`]); it is loaded and probed in a
//! child process ([`crate::probe`]), so that one that crashes or hangs takes only the child with
//! it; then it is loaded here, and never unloaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::abi;
use crate::import::Imported;
use crate::probe::{self, ProbeCommand, Probed};
use crate::transport::{Facts, Options, Transport};
use crate::vet::{self, Refusal};

/// Plugins of one directory that are looked at; each is a process while it is probed.
pub const PLUGINS_MAX: usize = 64;
/// Time a plugin has to be loaded and probed in its child process.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// How plugins are tried before they are loaded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program that is the child; see [`probe::probe_child_main`].
    pub probe: ProbeCommand,
    /// What plugins are asked to probe.
    pub options: Options,
    pub deadline: Duration,
}

impl Settings {
    pub fn new(probe: ProbeCommand) -> Self {
        Settings { probe, options: Options::default(), deadline: PROBE_DEADLINE }
    }
}

/// The transports a program can use.
#[derive(Default)]
pub struct Transports {
    found: BTreeMap<String, Arc<dyn Transport>>,
    entries: Vec<Entry>,
}

/// One transport, or one file that is not used and why.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The plugin's file; absent for a transport that is built in.
    pub path: Option<PathBuf>,
    pub outcome: Result<Usable, Refusal>,
}

/// A transport that can be asked for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable {
    pub facts: Facts,
    /// One line: what would be used here, or what is missing. A transport that misses something is
    /// loaded all the same: other options may suit it.
    pub probe: Result<String, String>,
}

impl Transports {
    /// The plugins `*.so` of a directory. Never fails as a whole: what is wrong is an entry.
    pub fn load(directory: &Path, settings: &Settings) -> Self {
        Transports::default().and_load(directory, settings)
    }

    /// Adds a transport that is built into the program. Its name must be new.
    pub fn with(mut self, transport: Arc<dyn Transport>) -> Self {
        let facts = transport.facts();
        let path = PathBuf::from(format!("built-in {}", facts.name));
        let outcome = self.taken(&facts.name, &path).map_or_else(
            || {
                let probe = transport.probe(&Options::default()).map_err(|error| error.message);
                Ok(Usable { facts: facts.clone(), probe })
            },
            Err,
        );
        if outcome.is_ok() {
            self.found.insert(facts.name, transport);
        }
        self.entries.push(Entry { path: None, outcome });
        self
    }

    /// Adds the plugins of a directory. Of two with one name the earlier is kept.
    pub fn and_load(mut self, directory: &Path, settings: &Settings) -> Self {
        let paths = match plugins_of(directory) {
            Ok(paths) => paths,
            Err(refusal) => {
                let path = Some(directory.to_owned());
                self.entries.push(Entry { path, outcome: Err(refusal) });
                return self;
            }
        };
        let allowed = vet::directory(directory).map(drop);
        if let (Err(refusal), []) = (&allowed, &paths[..]) {
            let path = Some(directory.to_owned());
            self.entries.push(Entry { path, outcome: Err(refusal.clone()) });
        }
        // The children run at the same time; what they say is taken in the order of the files.
        let tried: Vec<_> = std::thread::scope(|scope| {
            let vetted = paths.iter().enumerate().map(|(number, path)| {
                allowed.clone()?;
                if number >= PLUGINS_MAX {
                    return Err(Refusal::TooMany { path: path.clone(), limit: PLUGINS_MAX });
                }
                vet::file(path)
            });
            let running: Vec<_> = vetted
                .map(|vetted| {
                    vetted.map(|real| {
                        scope.spawn(move || {
                            probe::in_child(&real, settings).map(|said| (real, said))
                        })
                    })
                })
                .collect();
            let wait = |child: std::thread::ScopedJoinHandle<'_, _>| {
                child.join().expect("the thread that waits for a child does not panic")
            };
            running.into_iter().map(|child| child.and_then(wait)).collect()
        });
        for (path, tried) in paths.into_iter().zip(tried) {
            let outcome = tried.and_then(|(real, said)| self.take(&path, &real, said));
            self.entries.push(Entry { path: Some(path), outcome });
        }
        self
    }

    fn take(&mut self, path: &Path, real: &Path, said: Probed) -> Result<Usable, Refusal> {
        if let Some(refusal) = self.taken(&said.facts.name, path) {
            return Err(refusal);
        }
        let plugin = open(real)?;
        let facts = plugin.facts();
        if facts != said.facts {
            let (stage, what) =
                ("loading it".into(), "gave other facts than the second time".into());
            return Err(Refusal::Failed { path: path.to_owned(), stage, what });
        }
        self.found.insert(facts.name.clone(), Arc::new(plugin));
        Ok(Usable { facts, probe: said.probe })
    }

    fn taken(&self, name: &str, path: &Path) -> Option<Refusal> {
        let mut usable = self
            .entries
            .iter()
            .filter(|entry| entry.outcome.as_ref().is_ok_and(|usable| usable.facts.name == name));
        let first = usable.next()?.path.as_ref();
        let first = first.map_or("this program".into(), |path| path.display().to_string());
        Some(Refusal::Duplicate { path: path.to_owned(), name: name.to_owned(), first })
    }

    pub fn find(&self, name: &str) -> Option<&Arc<dyn Transport>> {
        self.found.get(name)
    }

    /// Everything that was found, what was refused included, in the order it was found.
    pub fn list(&self) -> &[Entry] {
        &self.entries
    }

    /// The transports, by name.
    pub fn usable(&self) -> impl Iterator<Item = (&str, &Arc<dyn Transport>)> {
        self.found.iter().map(|(name, transport)| (name.as_str(), transport))
    }
}

/// The files `*.so` of a directory, by name.
fn plugins_of(directory: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let unreadable = |error: std::io::Error| Refusal::Unreadable {
        path: directory.to_owned(),
        why: error.to_string(),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Loads a plugin into this process, for ever.
pub(crate) fn open(real: &Path) -> Result<Imported, Refusal> {
    open_with(real, |_| ())
}

/// As [`open`]; says which step comes next.
pub(crate) fn open_with(real: &Path, mut step: impl FnMut(&str)) -> Result<Imported, Refusal> {
    let path = real.to_owned();
    step("loading it");
    // SAFETY: loading runs the plugin's constructors. The file was vetted: only root and this user
    // can have written it, and a native plugin is trusted code (docs/reference/transports.md).
    let library = unsafe { libloading::Library::new(real) }
        .map_err(|error| Refusal::NotLoadable { path: path.clone(), why: error.to_string() })?;
    step("its entry");
    // SAFETY: the symbol's type is what the ABI says of it.
    let entry = unsafe { library.get::<abi::Entry>(abi::ENTRY) };
    let entry = *entry.map_err(|_| Refusal::NoEntry { path: path.clone() })?;
    // The table must be valid for ever, and threads of the plugin may outlive any owner of the
    // handle: it is never unloaded, on purpose.
    std::mem::forget(library);
    // SAFETY: the entry has the type of the ABI and the library stays loaded.
    let table = unsafe { entry() };
    step("its table and facts");
    // SAFETY: by the contract of the ABI, the table is null or valid for ever.
    unsafe { Imported::new(table) }.map_err(|why| Refusal::Table { path, why })
}
