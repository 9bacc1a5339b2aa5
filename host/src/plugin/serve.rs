//! The flags of `genie-host serve` about plugins.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use genie_plugin_host::{Capability, Compiler, Limits, Settings, check_directory};

use super::COMPILE;
use super::settings::{NO_PLUGINS, cache_dir, installed_dir};
use crate::analysis::AnalysisSettings;

/// The policy that is asked by default.
const POLICY_DEFAULT: &str = "balanced";

#[derive(Args)]
pub struct ServePlugins {
    /// The directory that holds one directory for each plugin, or `none`; otherwise the plugins
    /// that were installed with this program.
    #[arg(long, env = "GENIE_PLUGINS", value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Load plugins again when their files change.
    #[arg(long)]
    watch: bool,
    /// The policy that is asked where a graph should run [default: balanced]
    #[arg(long, env = "GENIE_POLICY", value_name = "NAME")]
    policy: Option<String>,
    /// What plugins may have when their manifest asks for it: `clock`.
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    grant: Vec<Capability>,
    /// Milliseconds that one call into a plugin may take.
    #[arg(long, value_name = "MS", default_value_t = 100,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    plugin_call_ms: u64,
    /// Milliseconds that loading one plugin may take: compiling it, the first time.
    #[arg(long, value_name = "MS", default_value_t = 5_000,
          value_parser = clap::value_parser!(u64).range(1..=600_000))]
    plugin_load_ms: u64,
}

impl ServePlugins {
    /// An error when a directory was named and holds no plugins of ours.
    pub fn settings(self) -> anyhow::Result<AnalysisSettings> {
        let directory = match self.plugins {
            Some(none) if none == Path::new(NO_PLUGINS) => None,
            Some(dir) => {
                check_directory(&dir)?;
                Some(dir)
            }
            None => installed_dir(),
        };
        let limits = Limits {
            call: Duration::from_millis(self.plugin_call_ms),
            load: Duration::from_millis(self.plugin_load_ms),
            ..Limits::default()
        };
        let plugins = match directory {
            None => None,
            Some(directory) => Some(Settings {
                directory,
                cache: cache_dir(),
                compiler: compiler()?,
                grants: self.grant,
                limits,
            }),
        };
        let debug = std::env::var_os("GENIE_ANALYZER_DEBUG").is_some_and(|value| value == "1");
        Ok(AnalysisSettings {
            plugins,
            watch: self.watch,
            policy_asked: self.policy.is_some(),
            policy: self.policy.unwrap_or_else(|| POLICY_DEFAULT.to_owned()),
            debug,
        })
    }
}

/// This program compiles components in a child of its own, which is limited.
fn compiler() -> anyhow::Result<Compiler> {
    let program = std::env::current_exe().context(
        "this program does not find itself, so it cannot compile plugins; use --plugins none",
    )?;
    Ok(Compiler::Child(vec![program.into(), COMPILE.into()]))
}

fn capability(text: &str) -> Result<Capability, String> {
    match text {
        "clock" => Ok(Capability::Clock),
        "log" => Ok(Capability::Log),
        other => Err(format!("there is no capability `{other}`; there are `clock` and `log`")),
    }
}
