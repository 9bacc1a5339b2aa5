//! `genie-node`: serves the devices of this machine to Genie hosts.
//!
//! The main thread supervises: it waits for signals, the parent's death and the end of a server.
//! One thread per device serves sessions (see `genie_node::serve`).

mod cuda;
mod listen;
mod signals;
mod supervise;

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::{Parser, ValueEnum};
use genie_aten::execute::{self, Device};
use genie_node::aten::Aten;
use genie_node::select::{Selected, Wanted, select};
use genie_node::serve::{
    Door, Mailbox, NodeFacts, Order, QuotaLimits, Quotas, Server, ServerParts,
};
use genie_node::{Executor, ExecutorLimits, memory};
use genie_remote::LinkSettings;
use genie_remote::cli::{PROBE, RemoteArgs};
use genie_wire::control;
use tracing_subscriber::EnvFilter;

use listen::{LinkLimits, Listen};
use signals::Signal;
use supervise::{Event, ServingFlag, Supervisor};

/// Bytes of regions of one session by default: two of 64 MiB, and as much to spare.
const CLIENT_MESSAGE_BYTES: u64 = 256 << 20;
/// Seconds that sessions may take to finish when a node is asked to stop, by default.
const DRAIN_S: u32 = 30;
/// Weights that a node keeps at most, by default, while no tensor uses them.
const WEIGHT_CACHE_BYTES: u64 = 8 << 30;

const SOFTWARE: &str = concat!("genie-node ", env!("CARGO_PKG_VERSION"));

/// Executes PyTorch operators for Genie hosts, on libtorch and without Python.
///
/// Prints one line, `ready ADDRESS...`, once every device serves. On SIGTERM it takes no new
/// sessions and ends with the last that runs (see --drain-s), on SIGINT, or when the process given
/// by --parent-pid ends, at once; it removes its socket.
#[derive(Parser)]
#[command(name = "genie-node", version)]
struct Args {
    /// Where to listen: `unix:PATH` for hosts of this user on this machine, `quic://ADDRESS:PORT`
    /// (or another transport that carries control) for hosts elsewhere; may be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<Listen>,

    #[command(flatten)]
    remote: RemoteArgs,

    #[command(flatten)]
    clients: ClientArgs,

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

    /// Seconds that running sessions may still take after SIGTERM, while new ones are refused; a
    /// second SIGTERM, or SIGINT, ends at once [default: 30, or 0 with --parent-pid]
    #[arg(long, value_name = "S", env = "GENIE_DRAIN_S",
          value_parser = clap::value_parser!(u32).range(0..=86_400))]
    drain_s: Option<u32>,

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

/// What one client (one identity: the host's certificate and its user) may use of this node.
#[derive(clap::Args)]
struct ClientArgs {
    /// Bytes that the sessions and weights of one client may hold on each device [default: all]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    client_memory_bytes: Option<u64>,

    /// Sessions of one client at a time [default: as many as --max-sessions]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    client_sessions: Option<u32>,

    /// Bytes of the regions that one session moves tensors through, and so of the largest message
    #[arg(long, value_name = "BYTES", default_value_t = CLIENT_MESSAGE_BYTES,
          value_parser = clap::value_parser!(u64).range(1 << 16..))]
    client_message_bytes: u64,

    /// Bytes that one client may send in a second [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 10..))]
    client_bytes_per_s: Option<u64>,

    /// Bytes of weights kept on each device while no tensor uses them; above it the least recently
    /// used are dropped [default: a quarter of its memory, at most 8 GiB]
    #[arg(long, value_name = "BYTES")]
    weight_cache_bytes: Option<u64>,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(plugin) = probed_plugin() {
        return Ok(genie_transport::probe::probe_child_main(&plugin));
    }
    // SAFETY: this is the only thread as yet.
    unsafe { genie_remote::cli::forget_empty_variables() };
    serve(Args::parse()).map(|()| ExitCode::SUCCESS)
}

fn serve(args: Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).context("--log (GENIE_LOG)")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain on the stderr that nobody reads any more, and panic.
        .log_internal_errors(false)
        .init();

    // Before any thread exists, so that all of them leave signals to the supervisor.
    let supervisor = Supervisor::new(args.parent_pid)?;
    genie_remote::cli::raise_descriptor_limit();
    execute::init().map_err(|error| anyhow!("libtorch cannot be used: {error}"))?;
    execute::tell_warnings(|warning| tracing::debug!("PyTorch warns: {warning}"));
    let devices = devices(args.device)?;
    let budgets: Vec<u64> = devices.iter().map(|device| budget(&args, *device)).collect();
    let facts = Arc::new(facts(&args, &devices, &budgets));

    let (doors, addresses) = listen::open(&args.listen, &args.remote, link_limits(&args))?;
    let links = doors.iter().find_map(Door::links).cloned();
    let mut doors = Some(doors);
    let quotas = Arc::new(Quotas::new(quota_limits(&args)));
    let mailboxes: Arc<[Mailbox]> =
        devices.iter().map(|_| Mailbox::new()).collect::<Result<_, _>>()?;
    let mut servers = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let server = ServerThread {
            device: *device,
            without: args.without.clone(),
            limits: limits(&args, budgets[index]),
            quotas: quotas.clone(),
            facts: facts.clone(),
            mailboxes: mailboxes.clone(),
            index,
            doors: doors.take().unwrap_or_default(),
            links: links.clone(),
        };
        let (ended, serving) = (supervisor.ended_flag(), supervisor.serving_flag());
        let thread = std::thread::Builder::new()
            .name(format!("genie-device-{index}"))
            .spawn(move || ended.after(|| server.run(serving)))
            .context("start a device's thread")?;
        servers.push(thread);
    }

    let (mut serving, mut ended) = (0, 0);
    let mut draining = None;
    let why = loop {
        match supervisor.wait(draining)? {
            Some(Event::Serving(more)) => {
                serving += more;
                if serving == servers.len() as u64 {
                    println!("ready {}", addresses.join(" "));
                    std::io::stdout().flush().context("say that the node is ready")?;
                }
            }
            Some(Event::Signal(Signal::Drain)) if draining.is_none() => {
                let drain = drain(&args);
                draining = Some(Instant::now() + drain);
                let s = drain.as_secs();
                tracing::info!("asked to stop: sessions may finish within {s} s");
                let why = format!(
                    "it was asked to stop (SIGTERM) and takes no new sessions; it ends within \
                     {s} s. Use another node, or this one once it was started again"
                );
                mailboxes.iter().for_each(|mailbox| mailbox.order(Order::Drain(why.clone())));
            }
            Some(Event::Signal(Signal::Drain)) => {
                break "it was asked twice to stop (SIGTERM)".to_owned();
            }
            Some(Event::Signal(Signal::AtOnce(signal))) => {
                break format!("it was stopped by {signal}");
            }
            Some(Event::Parent) => {
                break "the process that started it ended (--parent-pid)".to_owned();
            }
            Some(Event::Ended(_)) if draining.is_none() => {
                supervisor.wait_for(&servers);
                return Err(failed(servers));
            }
            Some(Event::Ended(more)) => {
                ended += more;
                if ended == servers.len() as u64 {
                    break "its last session ended".to_owned();
                }
            }
            None => {
                break format!(
                    "it was asked to stop (SIGTERM), and {} s later the session still ran \
                     (--drain-s gives longer)",
                    drain(&args).as_secs()
                );
            }
        }
    };
    tracing::info!("the node ends: {why}");
    let order = Order::Stop(format!("the node ends: {why}"));
    mailboxes.iter().for_each(|mailbox| mailbox.order(order.clone()));
    // A server in the middle of a long operator cannot be waited for: the process ends with it.
    if !supervisor.wait_for(&servers) {
        // Nobody waits for its result: sessions have ended, or were told that they are cut.
        tracing::info!("an operator is still running; it is cut off");
        listen::remove_sockets(&args.listen);
        std::process::exit(0);
    }
    for server in servers {
        server.join().map_err(|_| anyhow!("a device's thread panicked"))??;
    }
    // libtorch's own threads and destructors are not waited for.
    std::process::exit(0)
}

/// Why a server ended by itself.
fn failed(servers: Vec<JoinHandle<anyhow::Result<()>>>) -> anyhow::Error {
    for server in servers.into_iter().filter(JoinHandle::is_finished) {
        match server.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.context("a device cannot be served"),
            Err(_) => return anyhow!("a device's thread panicked"),
        }
    }
    anyhow!("a device's server ended by itself")
}

/// How long running sessions may take when the node is asked to stop.
fn drain(args: &Args) -> Duration {
    let default = if args.parent_pid.is_some() { 0 } else { DRAIN_S };
    Duration::from_secs(args.drain_s.unwrap_or(default).into())
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

/// The plugin to probe, when this process was started for that.
fn probed_plugin() -> Option<PathBuf> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    first.filter(|first| first == OsStr::new(PROBE)).and(args.next()).map(PathBuf::from)
}

fn link_limits(args: &Args) -> LinkLimits {
    LinkLimits {
        region_bytes_max: args.clients.client_message_bytes,
        software: SOFTWARE.to_owned(),
    }
}

fn quota_limits(args: &Args) -> QuotaLimits {
    QuotaLimits {
        sessions_max: args.clients.client_sessions.unwrap_or(u32::MAX),
        bytes_per_s: args.clients.client_bytes_per_s.unwrap_or(u64::MAX),
    }
}

fn limits(args: &Args, budget_bytes: u64) -> ExecutorLimits {
    let default = WEIGHT_CACHE_BYTES.min(budget_bytes / 4);
    ExecutorLimits {
        budget_bytes,
        client_bytes_max: args.clients.client_memory_bytes.unwrap_or(u64::MAX),
        unheld_bytes_max: args.clients.weight_cache_bytes.unwrap_or(default),
        ..ExecutorLimits::of(budget_bytes)
    }
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
        software: SOFTWARE.to_owned(),
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
    limits: ExecutorLimits,
    quotas: Arc<Quotas>,
    facts: Arc<NodeFacts>,
    mailboxes: Arc<[Mailbox]>,
    index: usize,
    doors: Vec<Door>,
    links: Option<Arc<LinkSettings>>,
}

impl ServerThread {
    fn run(self, serving: ServingFlag) -> anyhow::Result<()> {
        let executor = Executor::with_limits(Aten::new(self.device), self.limits);
        let ops = self.device.ops(&self.without);
        tracing::info!(device = self.index, ops = ops.len(), "a device is served");
        let server = Server::new(ServerParts {
            executor,
            facts: self.facts,
            ops,
            mailboxes: self.mailboxes,
            device: self.index,
            doors: self.doors,
            quotas: self.quotas,
            links: self.links,
        });
        let server = server.context("prepare to serve")?;
        serving.raise();
        server.run().context("serve")
    }
}
