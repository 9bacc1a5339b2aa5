//! `genie-host plugin`: look at plugins, try them on recorded graphs, measure them.

mod bench;
mod inspect;
mod list;
mod scaffold;
mod serve;
mod settings;
pub mod table;
mod test;

use std::process::ExitCode;

use clap::Subcommand;

pub use serve::ServePlugins;
pub use settings::{NO_PLUGINS, Rules, installed_dir};

/// The hidden subcommand that compiles one component in a limited child process.
pub const COMPILE: &str = "plugin-compile";

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Make a crate for a new plugin that builds, tests and loads at once.
    New(scaffold::NewArgs),
    /// Print the plugins of a directory and whether they load.
    List(list::ListArgs),
    /// Print the manifest, version and imports of one plugin.
    Inspect(inspect::InspectArgs),
    /// Run plugins on recorded graphs and print what they say.
    Test(test::TestArgs),
    /// Measure what a call into a plugin costs.
    Bench(bench::BenchArgs),
}

/// Runs one of the commands.
pub fn run(command: PluginCommand) -> anyhow::Result<()> {
    match command {
        PluginCommand::New(args) => scaffold::run(args),
        PluginCommand::List(args) => list::run(args),
        PluginCommand::Inspect(args) => inspect::run(args),
        PluginCommand::Test(args) => test::run(args),
        PluginCommand::Bench(args) => bench::run(args),
    }
}

/// The child that compiles; see [`genie_plugin_host::compile_child_main`].
pub fn compile() -> ExitCode {
    genie_plugin_host::compile_child_main()
}
