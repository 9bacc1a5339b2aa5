//! `genie-host transport list` and `probe`.

use clap::Args;
use genie_transport::load::{Entry, Usable};
use genie_transport::transport::Options;
use serde_json::{Value, json};

use super::place::{Place, Tuning};
use crate::plugin::table;

/// Where Linux lists RDMA devices.
const RDMA_DEVICES: &str = "/sys/class/infiniband";

#[derive(Args)]
pub struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct ProbeArgs {
    /// The transport's name, as `list` prints it.
    name: String,
    /// Probe as for a network where nobody else is: without encryption.
    #[arg(long)]
    trusted: bool,
    /// The directory with ca.pem, cert.pem and key.pem.
    #[arg(long, value_name = "DIR", env = "GENIE_CERTS")]
    certs: Option<std::path::PathBuf>,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    place: Place,
}

pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let transports = args.place.load(Options::default())?;
    let rdma = rdma_devices();
    if args.json {
        let entries: Vec<Value> = transports.list().iter().map(entry_json).collect();
        let directory = args.place.directory()?;
        println!(
            "{}",
            json!({"directory": directory, "transports": entries, "rdma_devices": rdma})
        );
        return Ok(());
    }
    let usable: Vec<(&Entry, &Usable)> = transports
        .list()
        .iter()
        .filter_map(|entry| Some((entry, entry.outcome.as_ref().ok()?)))
        .collect();
    if usable.is_empty() {
        println!("no transport in {}", args.place.directory()?.display());
    } else {
        let rows: Vec<Vec<String>> = usable.iter().map(|(_, usable)| row(usable)).collect();
        table::print(&["NAME", "VERSION", "CAN", "HERE"], &rows);
    }
    for refusal in transports.list().iter().filter_map(|entry| entry.outcome.as_ref().err()) {
        println!("refused: {refusal}");
    }
    println!("RDMA: {}", rdma_line(&rdma));
    Ok(())
}

fn row(usable: &Usable) -> Vec<String> {
    let here = match &usable.probe {
        Ok(line) => line.clone(),
        Err(missing) => format!("unusable: {missing}"),
    };
    let facts = &usable.facts;
    vec![facts.name.clone(), facts.version.clone(), facts.capabilities.names().join(","), here]
}

fn entry_json(entry: &Entry) -> Value {
    match &entry.outcome {
        Ok(usable) => json!({
            "path": entry.path,
            "name": usable.facts.name,
            "version": usable.facts.version,
            "capabilities": usable.facts.capabilities.names(),
            "usable": usable.probe.is_ok(),
            "probe": usable.probe.as_ref().unwrap_or_else(|missing| missing),
        }),
        Err(refusal) => json!({"path": entry.path, "refused": refusal.to_string()}),
    }
}

/// Names of the RDMA devices of this machine.
fn rdma_devices() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(RDMA_DEVICES) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn rdma_line(devices: &[String]) -> String {
    match devices {
        [] => format!("no device here ({RDMA_DEVICES} is empty); Genie ships no RDMA transport"),
        devices => format!(
            "{} here; Genie ships no RDMA transport, a plugin that has one would be preferred \
             (docs/reference/transports.md)",
            devices.join(", ")
        ),
    }
}

pub fn probe(args: &ProbeArgs) -> anyhow::Result<()> {
    let options = Options {
        trusted: args.trusted,
        certificates: args.certs.clone(),
        settings: args.tuning.settings(),
        ..Options::default()
    };
    let transport = args.place.load_one(&args.name, options.clone())?;
    println!("{}", genie_transport::probe::one_line(&transport.probe(&options)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rdma_is_told_either_way() {
        assert!(rdma_line(&[]).contains("no device here"));
        assert!(rdma_line(&["mlx5_0".into()]).starts_with("mlx5_0 here"));
    }
}
