//! `genie-host`: serves programs' sessions and keeps the node they use.
//!
//! The binary does the I/O that `genie-engine` decides on. Everything it is told comes by flags
//! and environment variables, read here. Start reading at [`serve`], then [`session`].

mod address;
mod analysis;
mod certs;
mod client;
mod doctor;
mod graph;
mod locate;
mod mailbox;
mod nodes;
mod plugin;
mod readiness;
mod runtime_dir;
mod serve;
mod session;
mod signals;
mod status;
mod told;
mod totals;
mod transport;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use genie_remote::Endpoint;
use genie_remote::cli::{PROBE, RemoteArgs};
use tracing_subscriber::EnvFilter;

use crate::address::Address;
use crate::nodes::{NodeSettings, RemoteSettings};
use crate::serve::ServeSettings;
use crate::told::told;

/// Sessions served at a time by default.
const SESSIONS_DEFAULT: usize = 64;
/// The most sessions that may be asked for; each has a thread and two connections.
const SESSIONS_MAX: usize = 4096;
/// Seconds that sessions may take to finish when a host is asked to stop, by default.
const DRAIN_S: u32 = 30;
/// The longest spin that `GENIE_SPIN_US` may ask for.
const SPIN_US_MAX: u64 = 1_000;

#[derive(Parser)]
#[command(name = "genie-host", version, about = "Serves programs that use remote_accelerator")]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve sessions (the default).
    Serve(Box<ServeArgs>),
    /// Check the installation and say how to mend what is wrong.
    Doctor {
        /// Print the checks as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Look at plugins, try them on recorded graphs, measure them.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Compile one component, in the child that the host starts for it.
    #[command(name = plugin::COMPILE, hide = true)]
    PluginCompile,
    /// Draw recorded graphs as recognizers see them.
    Graph(Box<graph::GraphArgs>),
    /// Look at transports, and measure them.
    #[command(subcommand)]
    Transport(transport::TransportCommand),
    /// Make, renew and show the certificates that hosts and nodes know each other by.
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Print the counters of a running host.
    Status {
        /// Where the host listens.
        #[arg(long, env = "GENIE_HOST", value_name = "unix:PATH")]
        host: Address,
    },
}

#[derive(Args)]
struct ServeArgs {
    /// Where to listen; a fresh private directory when not given.
    #[arg(long, value_name = "unix:PATH")]
    listen: Option<Address>,
    #[command(flatten)]
    plugins: plugin::ServePlugins,
    /// Exit when this process does.
    #[arg(long, value_name = "PID")]
    parent_pid: Option<u32>,
    /// Bytes of weights that the node keeps while no tensor uses them [default: a quarter of its
    /// memory, at most 8 GiB].
    #[arg(long, value_name = "N", env = "GENIE_WEIGHT_CACHE_BYTES")]
    weight_cache_bytes: Option<u64>,
    /// Seconds that running sessions may still take after SIGTERM, while new ones are refused; a
    /// second SIGTERM, or SIGINT, ends at once [default: 30, or 0 with --parent-pid].
    #[arg(long, value_name = "S", env = "GENIE_DRAIN_S",
          value_parser = clap::value_parser!(u32).range(0..=86_400))]
    drain_s: Option<u32>,
    /// Sessions served at a time.
    #[arg(long, value_name = "N", default_value_t = SESSIONS_DEFAULT,
          value_parser = sessions)]
    max_sessions: usize,
    /// A node elsewhere, such as quic://10.0.0.2:4610; may be given several times. Sessions go to
    /// the one with the fewest.
    #[arg(
        long = "node",
        value_name = "TRANSPORT://ADDRESS",
        env = "GENIE_NODES",
        value_delimiter = ','
    )]
    nodes: Vec<Endpoint>,
    /// Refuse a session when no node elsewhere is reached, instead of running it on this machine.
    #[arg(long, env = "GENIE_NO_LOCAL_NODE",
          value_parser = clap::builder::FalseyValueParser::new())]
    no_local_node: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    node: NodeArgs,
}

impl ServeArgs {
    /// How long running sessions may take when the host is asked to stop.
    fn drain(&self) -> Duration {
        let default = if self.parent_pid.is_some() { 0 } else { DRAIN_S };
        Duration::from_secs(self.drain_s.unwrap_or(default).into())
    }

    /// Nodes elsewhere and the transports to them; none are loaded without such nodes.
    fn remote_settings(&self) -> anyhow::Result<Option<RemoteSettings>> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let mut remote = self.remote.clone();
        let elsewhere = self.nodes.iter().find(|node| !node.is_on_this_machine());
        if let (None, Some(node)) = (&remote.certs, elsewhere) {
            let made = genie_tls::default_dir(
                std::env::var_os("XDG_CONFIG_HOME"),
                std::env::var_os("HOME"),
            );
            remote.certs = made.filter(|dir| dir.is_dir());
            if remote.certs.is_none() {
                anyhow::bail!(
                    "no certificates were given to reach {node}: name their directory by --certs \
                     (GENIE_CERTS); `genie-host certs init` makes them"
                );
            }
        }
        let own = std::env::current_exe().context("find this program")?;
        let transports = remote.load(&own);
        let link = remote.link_settings(&transports, serve::SOFTWARE);
        Ok(Some(RemoteSettings { endpoints: self.nodes.clone(), transports, link }))
    }
}

#[derive(Args)]
struct NodeArgs {
    /// The node's program; otherwise next to this one, then on PATH.
    #[arg(long, env = "GENIE_NODE_BINARY", value_name = "PATH")]
    node_binary: Option<PathBuf>,
    /// CPU threads of the node for every session, instead of as many as each client uses.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// The node's device: `auto`, `cpu` or `cuda`.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Bytes that sessions may allocate on the node.
    #[arg(long, value_name = "N")]
    memory_bytes: Option<u64>,
}

impl NodeArgs {
    fn settings(&self) -> NodeSettings {
        NodeSettings {
            binary: self.node_binary.clone(),
            threads: self.threads,
            device: self.device.clone(),
            memory_bytes: self.memory_bytes,
            weight_cache_bytes: None,
            sessions_max: None,
            drain: Duration::ZERO,
            torch_lib: std::env::var_os("GENIE_TORCH_LIB"),
            library_path: std::env::var_os("LD_LIBRARY_PATH").filter(|path| !path.is_empty()),
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }
}

fn sessions(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(sessions @ 1..=SESSIONS_MAX) => Ok(sessions),
        _ => Err(format!("give a number from 1 to {SESSIONS_MAX}")),
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if let (Some(first), Some(plugin)) = (args.next(), args.next())
        && first == PROBE
    {
        return genie_transport::probe::probe_child_main(plugin.as_ref());
    }
    // SAFETY: this is the only thread as yet.
    unsafe { genie_remote::cli::forget_empty_variables() };
    let cli = Cli::parse();
    if !matches!(cli.command, None | Some(Command::Serve(_))) {
        signals::end_with_reader();
    }
    let serve = match cli.command {
        None => cli.serve,
        Some(Command::Serve(serve)) => *serve,
        Some(Command::Doctor { json, node }) => {
            start_log("error");
            return doctor::run(&node.settings(), runtime_base(), json);
        }
        Some(Command::Plugin(command)) => {
            start_log("warn");
            return report(plugin::run(command));
        }
        Some(Command::PluginCompile) => return plugin::compile(),
        Some(Command::Graph(args)) => {
            start_log("error");
            return report(graph::run(&args));
        }
        Some(Command::Transport(command)) => {
            start_log("warn");
            return report(transport::run(command));
        }
        Some(Command::Certs(command)) => {
            start_log("warn");
            return report(certs::run(command));
        }
        Some(Command::Status { host }) => {
            start_log("error");
            return report(status::run(&host));
        }
    };
    // A host started by a program stays quiet in that program's terminal.
    start_log(if serve.parent_pid.is_some() { "warn" } else { "info" });
    report(spin().and_then(|spin| {
        let remote = serve.remote_settings()?;
        let drain = serve.drain();
        let analysis = serve.plugins.settings()?;
        let parent_pid = serve.parent_pid;
        let served = serve::run(ServeSettings {
            remote,
            child_allowed: !serve.no_local_node,
            listen: serve.listen,
            analysis,
            parent_pid: serve.parent_pid,
            sessions_max: serve.max_sessions,
            drain,
            node: NodeSettings {
                sessions_max: Some(serve.max_sessions),
                weight_cache_bytes: serve.weight_cache_bytes,
                drain,
                ..serve.node.settings()
            },
            runtime_base: runtime_base(),
            spin,
        });
        // The program that waits for `ready` tells its user.
        if let (Err(error), Some(_)) = (&served, parent_pid) {
            println!("failed {}", told(error));
        }
        served
    }))
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("genie-host: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// `GENIE_LOG` takes tracing's filters, for example `genie_host=debug`.
fn start_log(default: &str) {
    let filter = EnvFilter::try_from_env("GENIE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain on the stderr that nobody reads any more, and panic.
        .log_internal_errors(false)
        .init();
}

fn runtime_base() -> Option<OsString> {
    std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty())
}

/// `GENIE_SPIN_US`: how long a session looks for frames before it sleeps.
fn spin() -> anyhow::Result<Duration> {
    let Some(text) = std::env::var_os("GENIE_SPIN_US") else {
        return Ok(Duration::ZERO);
    };
    let us = text.to_str().and_then(|text| text.parse::<u64>().ok());
    match us.filter(|us| *us <= SPIN_US_MAX) {
        Some(us) => Ok(Duration::from_micros(us)),
        None => {
            anyhow::bail!("GENIE_SPIN_US is {text:?}; give microseconds from 0 to {SPIN_US_MAX}")
        }
    }
}
