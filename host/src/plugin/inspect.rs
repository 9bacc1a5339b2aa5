//! `genie-host plugin inspect`.

use anyhow::Context;
use clap::Args;

use super::list::{kinds, state};
use super::settings::Place;

#[derive(Args)]
pub struct InspectArgs {
    /// A plugin's directory, its manifest, or its name in --plugins.
    plugin: String,
    #[command(flatten)]
    place: Place,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let (host, names) = args.place.open_one(&args.plugin)?;
    let plugins = host.plugins().into_iter().filter(|plugin| names.contains(&plugin.name));
    for plugin in plugins {
        let shape = host.shape(&plugin.name);
        let text = std::fs::read_to_string(&plugin.manifest).unwrap_or_default();
        if args.json {
            let shape = shape.as_ref();
            let value = serde_json::json!({
                "plugin": plugin,
                "manifest_text": text,
                "imports": shape.map(|shape| &shape.imports),
                "exports": shape.map(|shape| &shape.exports),
            });
            println!("{}", serde_json::to_string_pretty(&value).context("print")?);
            continue;
        }
        let (state, why) = state(&plugin.state);
        println!("{} {}", plugin.name, plugin.version);
        let line = |name: &str, text: &str| {
            if !text.is_empty() {
                println!("  {name:<12} {text}");
            }
        };
        line("summary", &plugin.summary);
        line("kinds", &kinds(&plugin));
        line("state", state);
        line("reason", why);
        line("manifest", &plugin.manifest.display().to_string());
        if let Some(shape) = shape {
            line("interface", &format!("genie:plugin@{}", shape.wit));
            line("imports", &shape.imports.join(", "));
            line("exports", &shape.exports.join(", "));
            line("provides", &plugin.provides.join(", "));
            let how = if plugin.cached { "read from the cache" } else { "compiled" };
            line(
                "loading",
                &format!("{how} in {} us, started in {} us", plugin.compile_us, plugin.start_us),
            );
            line("memory", &format!("{} KiB", plugin.memory_bytes >> 10));
        }
        println!("  manifest's text:");
        for text in text.lines() {
            println!("    {text}");
        }
    }
    Ok(())
}
