//! `genie-host plugin list`.

use clap::Args;
use genie_plugin_host::{PluginState, PluginStatus};

use super::settings::Place;
use super::table;

#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: ListArgs) -> anyhow::Result<()> {
    let host = args.place.open()?;
    let plugins = host.plugins();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plugins)?);
        return Ok(());
    }
    if plugins.is_empty() {
        println!(
            "no plugins in {}: no directory there holds a plugin.toml",
            args.place.directory()?.display()
        );
        return Ok(());
    }
    let header = ["NAME", "VERSION", "KINDS", "WIT", "STATE", "SUMMARY OR REASON"];
    table::print(&header, &plugins.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(plugin: &PluginStatus) -> Vec<String> {
    let (state, why) = state(&plugin.state);
    let why = if why.is_empty() { &plugin.summary } else { why };
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        plugin.name.clone(),
        or_dash(&plugin.version),
        or_dash(&kinds(plugin)),
        or_dash(&plugin.wit),
        state.to_owned(),
        why.to_owned(),
    ]
}

/// A state as a word, and its reason.
pub fn state(state: &PluginState) -> (&'static str, &str) {
    match state {
        PluginState::Ready => ("ready", ""),
        PluginState::Refused(why) => ("refused", why),
        PluginState::Disabled(why) => ("disabled", why),
    }
}

pub fn kinds(plugin: &PluginStatus) -> String {
    let kinds: Vec<&str> = plugin.kinds.iter().map(|kind| kind.as_str()).collect();
    kinds.join(", ")
}
