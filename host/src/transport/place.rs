//! Where the commands find transports, and how they are told to behave.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use genie_transport::load::{Settings, Transports};
use genie_transport::probe::ProbeCommand;
use genie_transport::transport::{Options, Transport};

/// Where plugins lie, from the directory of this program.
const BESIDE: &str = "../share/genie/transports";

/// Where transports are.
#[derive(Args, Clone)]
pub struct Place {
    /// The directory of transport plugins (*.so) [default: share/genie/transports beside bin]
    #[arg(long, value_name = "DIR", env = "GENIE_TRANSPORTS")]
    pub transports: Option<PathBuf>,
}

/// Settings of the transport itself.
#[derive(Args, Clone)]
pub struct Tuning {
    /// A setting of this transport, such as flows=4.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as flows=4".to_owned()),
    }
}

impl Tuning {
    pub fn settings(&self) -> BTreeMap<String, String> {
        self.settings.iter().cloned().collect()
    }
}

impl Place {
    pub fn directory(&self) -> anyhow::Result<PathBuf> {
        if let Some(directory) = &self.transports {
            return Ok(directory.clone());
        }
        let own = std::env::current_exe().context("cannot find this program's directory")?;
        let beside = own.parent().context("this program lies in no directory")?;
        Ok(beside.join(BESIDE))
    }

    /// Loads every transport that is fit for it.
    pub fn load(&self, options: Options) -> anyhow::Result<Transports> {
        let probe = ProbeCommand::this_program(&[genie_remote::cli::PROBE])
            .context("cannot find this program to probe plugins")?;
        let settings = Settings { options, ..Settings::new(probe) };
        Ok(Transports::load(&self.directory()?, &settings))
    }

    /// The transport of this name, or why it cannot be had.
    pub fn load_one(&self, name: &str, options: Options) -> anyhow::Result<Arc<dyn Transport>> {
        let transports = self.load(options)?;
        if let Some(transport) = transports.find(name) {
            return Ok(transport.clone());
        }
        let have: Vec<&str> = transports.usable().map(|(name, _)| name).collect();
        let have = match have.is_empty() {
            true => "there is none".to_owned(),
            false => format!("there are: {}", have.join(", ")),
        };
        let refused: String = transports
            .list()
            .iter()
            .filter_map(|entry| entry.outcome.as_ref().err())
            .map(|refusal| format!("\n  {refusal}"))
            .collect();
        anyhow::bail!(
            "no transport {name} in {}; {have}; name another directory by --transports{refused}",
            self.directory()?.display()
        )
    }
}
