//! What host and node are told about transports, alike on both command lines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use genie_transport::load::{Settings, Transports};
use genie_transport::probe::ProbeCommand;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::LinkSettings;
use crate::choose::preferred;

/// The hidden first argument by which a program probes one plugin and ends.
pub const PROBE: &str = "probe-transport";
/// Where plugins lie, from the directory of the program.
const BESIDE: &str = "../share/genie/transports";

/// Makes empty variables of ours unset ones, which is what `GENIE_CERTS=` says in a shell; clap would
/// take them for values.
///
/// # Safety
/// Only while no other thread runs.
pub unsafe fn forget_empty_variables() {
    for (name, value) in std::env::vars_os() {
        if value.is_empty() && name.as_encoded_bytes().starts_with(b"GENIE_") {
            // SAFETY: nobody else reads the environment meanwhile, says the caller.
            unsafe { std::env::remove_var(&name) };
        }
    }
}

/// Lets this process open as many files as it may: a connection takes up to 13 descriptors (sockets,
/// event descriptors, the memory of both ends), and the soft limit is often 1024.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("cannot raise the limit of open files: {errno}");
    }
}

/// Transports, certificates and how patient to be.
#[derive(Debug, Clone, clap::Args)]
pub struct RemoteArgs {
    /// The directory of transport plugins (*.so) [default: share/genie/transports beside bin]
    #[arg(long, value_name = "DIR", env = "GENIE_TRANSPORTS")]
    pub transports: Option<PathBuf>,

    /// The directory with ca.pem, cert.pem and key.pem, as `genie-host certs` makes them. Without
    /// certificates only this machine is reached, and reaches us
    #[arg(long, value_name = "DIR", env = "GENIE_CERTS")]
    pub certs: Option<PathBuf>,

    /// Tensors are not encrypted. For networks where nobody else listens; give it on both sides.
    /// Certificates are asked for all the same
    #[arg(long, env = "GENIE_TRUSTED_NETWORK",
          value_parser = clap::builder::FalseyValueParser::new())]
    pub trusted_network: bool,

    /// Transports that tensors may take, the preferred first [default: dpdk,udp,tcp,quic, as far
    /// as both sides have them]
    #[arg(long, value_name = "NAMES", env = "GENIE_DATA", value_delimiter = ',')]
    pub data: Vec<String>,

    /// Ports on which the node listens for tensors [default: any]
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    pub data_ports: Option<String>,

    /// Seconds without a sign of life after which the other side counts as lost
    #[arg(long, value_name = "S", env = "GENIE_DEADLINE_S", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub deadline_s: u32,

    /// A setting of one transport, such as udp.flows=4 (in the variable with semicolons between)
    #[arg(long = "set", value_name = "TRANSPORT.KEY=VALUE", value_parser = setting,
          env = "GENIE_TRANSPORT_SETTINGS", value_delimiter = ';')]
    pub settings: Vec<(String, String, String)>,
}

fn ports(text: &str) -> Result<String, String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?)));
    match range {
        Some((first, last)) if first > 0 && first <= last => Ok(text.to_owned()),
        _ => Err("give a range of ports, such as 4700-4799".to_owned()),
    }
}

fn setting(text: &str) -> Result<(String, String, String), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        let (transport, key) = name.split_once('.')?;
        let whole = !transport.is_empty() && !key.is_empty();
        whole.then(|| (transport.to_owned(), key.to_owned(), value.to_owned()))
    });
    parsed.ok_or_else(|| "expected TRANSPORT.KEY=VALUE, such as udp.flows=4".to_owned())
}

impl RemoteArgs {
    /// Loads the plugins. `own` is this program; it is started again to probe each plugin, with
    /// [`PROBE`] as its first argument.
    pub fn load(&self, own: &Path) -> Transports {
        let beside = || own.parent().unwrap_or(Path::new(".")).join(BESIDE);
        let directory = self.transports.clone().unwrap_or_else(beside);
        let probe = ProbeCommand { program: own.to_owned(), args: vec![PROBE.into()] };
        let mut settings = Settings::new(probe);
        settings.options.certificates = self.certs.clone();
        settings.options.trusted = self.certs.is_none();
        let transports = Transports::load(&directory, &settings);
        for entry in transports.list() {
            match &entry.outcome {
                Ok(usable) => {
                    tracing::debug!("the transport {} is loaded", usable.facts.name);
                }
                Err(refusal) => tracing::warn!("a transport is not used: {refusal}"),
            }
        }
        transports
    }

    /// Settings of links by these transports.
    pub fn link_settings(&self, transports: &Transports, software: &str) -> LinkSettings {
        let mut transport_settings: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (transport, key, value) in &self.settings {
            let settings = transport_settings.entry(transport.clone()).or_default();
            settings.insert(key.clone(), value.clone());
        }
        // `udp,` names one.
        let wanted: Vec<String> =
            self.data.iter().filter(|name| !name.is_empty()).cloned().collect();
        // One that misses something may still work with settings that the probe did not have.
        let missing: Vec<&str> = transports
            .list()
            .iter()
            .filter_map(|entry| entry.outcome.as_ref().ok())
            .filter(|usable| usable.probe.is_err())
            .map(|usable| usable.facts.name.as_str())
            .filter(|name| !transport_settings.contains_key(*name))
            .collect();
        let usable = transports.usable().filter(|(name, _)| !missing.contains(name));
        let data = preferred(usable.map(|(_, transport)| transport), &wanted);
        for name in wanted.iter().filter(|name| data.iter().all(|one| one.facts().name != **name)) {
            tracing::warn!(
                "--data (GENIE_DATA) names {name}, not used: {}",
                why_not(transports, name)
            );
        }
        if let Some(ports) = &self.data_ports {
            for transport in &data {
                let settings = transport_settings.entry(transport.facts().name).or_default();
                settings.entry("ports".to_owned()).or_insert_with(|| ports.clone());
            }
        }
        LinkSettings {
            software: software.to_owned(),
            transports: data,
            trusted: self.trusted_network || self.certs.is_none(),
            certificates: self.certs.clone(),
            deadline_ms: u64::from(self.deadline_s) * 1000,
            data_address: String::new(),
            transport_settings,
            region_bytes_max: 0,
            instance: 0,
        }
    }
}

/// Why a transport carries no tensors here.
fn why_not(transports: &Transports, name: &str) -> String {
    let mut usable = transports.list().iter().filter_map(|entry| entry.outcome.as_ref().ok());
    match usable.find(|usable| usable.facts.name == name).map(|usable| &usable.probe) {
        None => "no plugin of this name is loaded (`genie-host transport list`)".to_owned(),
        Some(Err(missing)) => missing.clone(),
        Some(Ok(_)) => "it does not carry tensors over a network".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_that_is_not_there_is_named_with_the_way_to_find_out() {
        let why = why_not(&Transports::default(), "carrier-pigeon");
        assert!(why.contains("transport list"), "{why}");
    }

    #[test]
    fn settings_and_ports_are_read() {
        assert_eq!(setting("udp.flows=4").unwrap(), ("udp".into(), "flows".into(), "4".into()));
        assert_eq!(setting("dpdk.eal=-m=1").unwrap().2, "-m=1");
        for wrong in ["udp", "udp.flows", "udp=4", ".a=1", "a.=1"] {
            assert!(setting(wrong).is_err(), "{wrong}");
        }
        assert!(ports("4700-4799").is_ok());
        for wrong in ["", "1", "0-3", "5-4", "1-70000"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
