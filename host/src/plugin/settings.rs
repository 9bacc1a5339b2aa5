//! Where the commands find plugins and the cache.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

#[derive(Args, Clone)]
pub struct Place {
    /// The directory that holds one directory for each plugin.
    #[arg(long, value_name = "DIR", default_value = "plugins")]
    pub plugins: PathBuf,
}

/// Where compiled plugins are kept: `$XDG_CACHE_HOME/genie/plugins`, or below `~/.cache`.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|path: &OsString| !path.is_empty());
    let base = set("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("genie/plugins"))
}
