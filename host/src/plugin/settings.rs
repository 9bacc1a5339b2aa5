//! Where the commands find plugins and the cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use genie_plugin_host::{Capability, Compiler, Limits, PluginHost, Settings};

/// Instead of a directory: no plugins.
pub const NO_PLUGINS: &str = "none";

/// What can be granted to plugins that ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Grant {
    /// Time since some fixed moment.
    Clock,
}

/// Where plugins are, and what they may do.
#[derive(Args, Clone)]
pub struct Place {
    /// The directory that holds one directory for each plugin, or that of one plugin; otherwise the
    /// plugins that were installed with this program.
    #[arg(long, env = "GENIE_PLUGINS", value_name = "DIR")]
    plugins: Option<PathBuf>,
    #[command(flatten)]
    pub rules: Rules,
}

/// What plugins may do.
#[derive(Args, Clone)]
pub struct Rules {
    /// Grant a capability to plugins whose manifests ask for it.
    #[arg(long = "grant", value_name = "CAPABILITY")]
    pub grants: Vec<Grant>,
    /// Milliseconds that one call into a plugin may take.
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub plugin_call_ms: u64,
    /// Milliseconds that loading one plugin may take.
    #[arg(long, value_name = "MS", default_value_t = 5_000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub plugin_load_ms: u64,
}

impl Rules {
    /// Settings for the plugins of a directory. Compiled code goes to the user's cache.
    pub fn settings(&self, directory: &Path) -> anyhow::Result<Settings> {
        Ok(Settings {
            directory: directory.to_owned(),
            cache: cache_dir(),
            compiler: compiler()?,
            grants: self.grants.iter().map(|Grant::Clock| Capability::Clock).collect(),
            limits: Limits {
                call: Duration::from_millis(self.plugin_call_ms),
                load: Duration::from_millis(self.plugin_load_ms),
                ..Limits::default()
            },
        })
    }
}

impl Place {
    pub fn open(&self) -> anyhow::Result<PluginHost> {
        self.open_at(&self.directory()?)
    }

    /// The directory that is meant.
    pub fn directory(&self) -> anyhow::Result<PathBuf> {
        let asked = self.plugins.clone().filter(|dir| dir != Path::new(NO_PLUGINS));
        match (asked, &self.plugins) {
            (Some(dir), _) => Ok(dir),
            (None, None) => installed_dir().context(
                "no plugins are installed with this program; name their directory by --plugins",
            ),
            (None, Some(_)) => anyhow::bail!("`--plugins none` leaves no plugin to look at"),
        }
    }

    fn open_at(&self, directory: &Path) -> anyhow::Result<PluginHost> {
        Ok(PluginHost::open(self.rules.settings(directory)?)?)
    }

    /// The plugins that are meant by a plugin's directory, a manifest's path or a name in
    /// `--plugins`; and their names.
    pub fn open_one(&self, which: &str) -> anyhow::Result<(PluginHost, Vec<String>)> {
        let path = Path::new(which);
        let names = |host: &PluginHost, keep: &dyn Fn(&Path, &str) -> bool| -> Vec<String> {
            let plugins = host.plugins().into_iter();
            plugins.filter(|p| keep(&p.manifest, &p.name)).map(|p| p.name).collect()
        };
        if path.is_dir() && (which.contains('/') || which == "." || has_manifest(path)) {
            let host = self.open_at(path)?;
            let found = names(&host, &|manifest, _| manifest.parent() == Some(path));
            let found = if found.is_empty() { names(&host, &|_, _| true) } else { found };
            anyhow::ensure!(!found.is_empty(), "{which} holds no plugin.toml");
            return Ok((host, found));
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let host = self.open_at(dir.unwrap_or(Path::new(".")))?;
            let found = names(&host, &|manifest, _| manifest.file_name() == path.file_name());
            anyhow::ensure!(!found.is_empty(), "{which} is no plugin's manifest");
            return Ok((host, found));
        }
        let host = self.open()?;
        let found = names(&host, &|_, name| name == which);
        anyhow::ensure!(
            !found.is_empty(),
            "no plugin {which} in {}; name another directory by --plugins, or give the plugin's \
             own directory",
            self.directory()?.display()
        );
        Ok((host, found))
    }
}

fn has_manifest(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name == "plugin.toml" || name.ends_with(".plugin.toml"))
    })
}

/// Where compiled plugins are kept: `$XDG_CACHE_HOME/genie/plugins`, or below `~/.cache`.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|path: &OsString| !path.is_empty());
    let base = set("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("genie/plugins"))
}

/// This program compiles, in a child process.
pub fn compiler() -> anyhow::Result<Compiler> {
    let own = std::env::current_exe().context("cannot find this program to compile plugins")?;
    Ok(Compiler::Child(vec![own.into(), super::COMPILE.into()]))
}

/// The plugins that were installed with this program: `plugins` beside it, or
/// `../share/genie/plugins`.
pub fn installed_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let beside = program.parent()?;
    let places = [beside.join("plugins"), beside.join("../share/genie/plugins")];
    places.into_iter().find(|place| place.is_dir())
}
