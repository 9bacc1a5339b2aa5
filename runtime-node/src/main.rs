//! `genie-node`: serves the devices of this machine to Genie hosts.
//!
//! The main thread supervises: it waits for signals, the parent's death and the end of a server.
//! One thread per device serves sessions (see `genie_node::serve`).

mod cuda;
mod signals;
mod supervise;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::{Parser, ValueEnum};
use genie_aten::execute::{self, Device};
use genie_node::aten::Aten;
use genie_node::select::{Selected, Wanted, select};
use genie_node::serve::{Mailbox, NodeFacts, Server};
use genie_node::{Executor, memory};
use genie_shm::Listener;
use genie_wire::control;
use tracing_subscriber::EnvFilter;

use supervise::{Ended, Supervisor};

/// Executes PyTorch operators for Genie hosts, on libtorch and without Python.
///
/// Prints one line, `ready unix:PATH`, when it can be connected to. Ends on SIGTERM or SIGINT,
/// or when the process given by --parent-pid ends, and removes its socket.
#[derive(Parser)]
#[command(name = "genie-node", version)]
struct Args {
    /// Where to listen: `unix:` and the path of a socket to create (mode 0600)
    #[arg(long, value_name = "unix:PATH", value_parser = socket_path)]
    listen: PathBuf,

    /// End when this process ends
    #[arg(long, value_name = "PID")]
    parent_pid: Option<i32>,

    /// CPU threads one operator may use for clients that do not say how many [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Option<u32>,

    /// Bytes that sessions and weights may hold on each device [default: 80 % of the memory that
    /// this process may use, or of the GPU's]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    memory_bytes: Option<u64>,

    /// What to execute on; `auto` takes CUDA when it works and says why when it does not
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceArg,

    /// Connections each device serves at a time
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_sessions: u32,

    /// Operators to leave to the clients, as if this node had none of them: `aten::tanh`, or one
    /// overload, `aten::add.Tensor`
    #[arg(long, value_name = "OPS", env = "GENIE_NODE_WITHOUT", value_delimiter = ',')]
    without: Vec<String>,

    /// What to log to standard error: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "FILTER", env = "GENIE_LOG", default_value = "warn")]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
    Auto,
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("expected unix:PATH, such as unix:/run/user/1000/genie/node.sock".to_owned()),
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log).context("--log (GENIE_LOG)")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();

    // Before any thread exists, so that all of them leave signals to the supervisor.
    let supervisor = Supervisor::new(args.parent_pid)?;
    execute::init().map_err(|error| anyhow!("libtorch cannot be used: {error}"))?;
    let devices = devices(args.device)?;
    let budgets: Vec<u64> = devices.iter().map(|device| budget(&args, *device)).collect();
    let facts = Arc::new(facts(&args, &devices, &budgets));

    let listener = Listener::bind(&args.listen)?;
    let path = listener.path().to_owned();
    let mut listener = Some(listener);
    let mailboxes: Arc<[Mailbox]> =
        devices.iter().map(|_| Mailbox::new()).collect::<Result<_, _>>()?;
    let mut servers = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let server = ServerThread {
            device: *device,
            without: args.without.clone(),
            budget_bytes: budgets[index],
            facts: facts.clone(),
            mailboxes: mailboxes.clone(),
            index,
            listener: listener.take(),
        };
        let ended = supervisor.ended_flag()?;
        let thread = std::thread::Builder::new()
            .name(format!("genie-device-{index}"))
            .spawn(move || ended.after(|| server.run()))
            .context("start a device's thread")?;
        servers.push(thread);
    }

    println!("ready unix:{}", path.display());
    std::io::stdout().flush().context("say that the node is ready")?;
    let reason = supervisor.wait()?;
    tracing::info!(?reason, "the node ends");
    for mailbox in mailboxes.iter() {
        mailbox.stop();
    }
    // A server in the middle of a long operator cannot be waited for: the process ends with it.
    let all_ended = supervisor.wait_for(&servers);
    if !all_ended {
        tracing::warn!("an operator is still running; it is cut off");
        let _ = std::fs::remove_file(&path);
        std::process::exit(reason.exit_code());
    }
    for server in servers {
        server.join().map_err(|_| anyhow!("a device's thread panicked"))??;
    }
    match reason {
        Ended::Server => Err(anyhow!("a device's server ended by itself")),
        // libtorch's own threads and destructors are not waited for.
        _ => std::process::exit(reason.exit_code()),
    }
}

fn devices(wanted: DeviceArg) -> anyhow::Result<Vec<Device>> {
    let wanted = match wanted {
        DeviceArg::Cpu => Wanted::Cpu,
        DeviceArg::Cuda => Wanted::Cuda,
        DeviceArg::Auto => Wanted::Auto,
    };
    Ok(match select(wanted, cuda::devices)? {
        Selected::Cuda { count } => (0..count).map(Device::cuda).collect(),
        Selected::Cpu { reason } => {
            if let Some(reason) = reason {
                tracing::info!(reason, "executing on the CPU: no CUDA device can be used");
            }
            vec![Device::CPU]
        }
    })
}

fn budget(args: &Args, device: Device) -> u64 {
    args.memory_bytes.unwrap_or_else(|| match device.memory_bytes() {
        0 => memory::default_budget_bytes(),
        bytes => memory::share(bytes),
    })
}

fn facts(args: &Args, devices: &[Device], budgets: &[u64]) -> NodeFacts {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    NodeFacts {
        software: concat!("genie-node ", env!("CARGO_PKG_VERSION")).to_owned(),
        torch: execute::torch_version(),
        devices: devices
            .iter()
            .zip(budgets)
            .map(|(device, budget)| control::Device {
                kind: if device.is_cpu() { "cpu" } else { "cuda" }.to_owned(),
                name: device.name(),
                memory_bytes: *budget,
            })
            .collect(),
        sessions_max: args.max_sessions as usize,
        threads: args.threads.unwrap_or(cores),
    }
}

/// What a device's thread needs; libtorch's objects are made on the thread that uses them.
struct ServerThread {
    device: Device,
    without: Vec<String>,
    budget_bytes: u64,
    facts: Arc<NodeFacts>,
    mailboxes: Arc<[Mailbox]>,
    index: usize,
    listener: Option<Listener>,
}

impl ServerThread {
    fn run(self) -> anyhow::Result<()> {
        let executor = Executor::new(Aten::new(self.device), self.budget_bytes);
        let ops = self.device.ops(&self.without);
        tracing::info!(device = self.index, ops = ops.len(), "a device is served");
        let server =
            Server::new(executor, self.facts, ops, self.mailboxes, self.index, self.listener)
                .context("prepare to serve")?;
        server.run().context("serve")
    }
}
