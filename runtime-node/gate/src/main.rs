//! `genie-node`: serves the devices of this machine to Genie hosts.
//!
//! This process is the gate (see `genie_gate`): one thread that has the links, and no libtorch.
//! Operators run in `genie-worker`, a process for each client identity and device.

mod doctor;
mod listen;
mod signals;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use genie_channel::message::Limits;
use genie_gate::{
    Door, Gate, GateParts, Groups, NodeFacts, QuotaLimits, Quotas, WEIGHT_MAX, Why, WorkerLimits,
    Zygote, ZygoteSettings, memory,
};
use genie_remote::cli::{PROBE, RemoteArgs};
use genie_tls::{Identity, Role};
use genie_wire::control::Device;
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing_subscriber::EnvFilter;

use listen::{LinkLimits, Listen};
use signals::{EndingSignals, Signal};

/// Bytes of regions of one session by default: two of 64 MiB, and as much to spare.
const CLIENT_MESSAGE_BYTES: u64 = 256 << 20;
/// Seconds that sessions may take to finish when a node is asked to stop, by default.
const DRAIN_S: u32 = 30;
/// Weights that are kept at most, by default, while no tensor uses them.
const WEIGHT_CACHE_BYTES: u64 = 8 << 30;
/// Seconds that a client's worker is kept without a session, by default.
const LINGER_S: u32 = 600;
/// Seconds that an operator may run after its client left, by default.
const OPERATOR_S: u32 = 10;
/// CPU threads of one operator at most, by default, whatever a client says: as many as its own
/// PyTorch uses, so that sums agree, but for a client that makes them up.
const THREADS_MAX: u32 = 256;
/// How long the workers may take to end when the node does.
const GRACE: Duration = Duration::from_secs(2);

/// Memory of a worker beside its tensors: libtorch's own, what operators take past its allocator,
/// and a thread's stack as it is reserved.
const WORKER_BYTES: u64 = 512 << 20;
const STACK_BYTES: u64 = 8 << 20;

const SOFTWARE: &str = concat!("genie-node ", env!("CARGO_PKG_VERSION"));

/// Executes PyTorch operators for Genie hosts, on libtorch and without Python.
///
/// Prints one line, `ready ADDRESS...`, once every device serves. On SIGTERM it takes no new
/// sessions and ends with the last that runs (see --drain-s), on SIGINT, or when the process given
/// by --parent-pid ends, at once; it removes its socket.
#[derive(Parser)]
#[command(
    name = "genie-node",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

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

    /// CPU threads one operator may use, whatever its client says [default: as many as the client's
    /// PyTorch uses; all cores for clients that do not say]
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

    /// Serve the CPU as so many devices, each with its part of the memory: to measure what a machine
    /// with several costs. Programs use the first as yet
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    cpu_devices: u32,

    /// Sessions each device serves at a time
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_sessions: u32,

    /// Operators to leave to the clients, as if this node had none of them: `aten::tanh`, or one
    /// overload, `aten::add.Tensor`
    #[arg(long, value_name = "OPS", env = "GENIE_NODE_WITHOUT", value_delimiter = ',')]
    without: Vec<String>,

    /// Seconds that an operator may go on after its client left; then its worker is ended
    #[arg(long, value_name = "S", default_value_t = OPERATOR_S)]
    operator_s: u32,

    /// Seconds that a client's worker is kept without a session, with the weights that it has
    #[arg(long, value_name = "S", default_value_t = LINGER_S)]
    linger_s: u32,

    /// Let workers do what this user may: to debug them, or for a device whose driver needs more than
    /// their sandbox gives
    #[arg(long)]
    no_sandbox: bool,

    /// The program that runs operators [default: genie-worker beside this one]
    #[arg(long, value_name = "PATH", env = "GENIE_WORKER_BINARY")]
    worker_binary: Option<PathBuf>,

    /// What to log to standard error: error, warn, info, debug, or a tracing filter
    #[arg(long, value_name = "FILTER", env = "GENIE_LOG", default_value = "warn")]
    log: String,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Tell what a node would have here: libtorch, devices, and what closes its workers in
    Doctor,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
    Auto,
}

/// What one client (one identity: the host's certificate) may use of this node.
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

    /// Bytes that one client may send to each device in a second [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 10..))]
    client_bytes_per_s: Option<u64>,

    /// Seconds that one operator of a client may take; then its process is ended, and its sessions are
    /// told [default: no limit]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    client_operator_s: Option<u32>,

    /// Clients that share weights: names of their certificates, as `genie-host certs show` tells them
    /// there; may be given several times. Who is not named shares with nobody. On a CPU the weights
    /// lie in memory once; each client still counts them as its own
    #[arg(long, value_name = "NAME,NAME", value_parser = sharing)]
    share_weights: Vec<Sharing>,

    /// How much of the processor a client gets where others want it too, beside clients that have 1; by
    /// the name of its certificate. Needs control groups (`genie-node doctor`); may be given several
    /// times
    #[arg(long, value_name = "NAME=N", value_parser = weight)]
    client_weight: Vec<(String, u32)>,

    /// Zero the memory of tensors when they are freed, so that a client's later sessions do not see
    /// what its earlier ones had; other clients never do (CPU only)
    #[arg(long)]
    scrub: bool,

    /// Bytes of weights kept on each device while no tensor uses them; above it the least recently
    /// used are dropped [default: a quarter of its memory, at most 8 GiB]
    #[arg(long, value_name = "BYTES")]
    weight_cache_bytes: Option<u64>,
}

/// What links say of the clients that share weights.
#[derive(Clone)]
struct Sharing(BTreeSet<String>);

/// What links say of a client whose certificate has this name.
fn identity(name: &str) -> Result<String, String> {
    match Identity::new(Role::Host, name.trim()) {
        Ok(identity) => Ok(format!("{}/{}", identity.role(), identity.name())),
        Err(error) => Err(error.to_string()),
    }
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = text.split_once('=').ok_or("say NAME=N")?;
    match weight.trim().parse() {
        Ok(weight @ 1..=WEIGHT_MAX) => Ok((identity(name)?, weight)),
        _ => Err(format!("the weight of {name} is a number from 1 to {WEIGHT_MAX}")),
    }
}

fn sharing(names: &str) -> Result<Sharing, String> {
    let identities: BTreeSet<String> = names.split(',').map(identity).collect::<Result<_, _>>()?;
    match identities.len() {
        0 | 1 => Err("name two clients or more, with commas between".to_owned()),
        _ => Ok(Sharing(identities)),
    }
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(plugin) = probed_plugin() {
        return Ok(genie_transport::probe::probe_child_main(&plugin));
    }
    // SAFETY: this is the only thread as yet.
    unsafe { genie_remote::cli::forget_empty_variables() };
    let args = Args::parse();
    match args.command {
        Some(Command::Doctor) => doctor::examine(zygote(&args)?),
        None => serve(args).map(|()| ExitCode::SUCCESS),
    }
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

    // Before any other process exists, so that all of them leave signals to this one.
    let signals = EndingSignals::block()?;
    let parent = args.parent_pid.map(parent).transpose()?;
    genie_remote::cli::raise_descriptor_limit();
    // A host's own node is one user's, on the user's machine.
    let groups = if parent.is_some() { Groups::default() } else { Groups::take() };
    for what in &groups.missing {
        tracing::info!("workers are not in control groups: {what}");
    }
    let weights: BTreeMap<String, u32> = args.clients.client_weight.iter().cloned().collect();
    if !weights.is_empty() && !groups.are_there().1 {
        let why = groups.missing.join("; ");
        tracing::warn!("--client-weight has no effect: no control group for the processor ({why})");
    }
    let (doors, addresses) = listen::open(&args.listen, &args.remote, link_limits(&args))?;
    let (zygote, loaded) = Zygote::start(zygote(&args)?)?;
    if !loaded.no_cuda.is_empty() {
        let reason = &loaded.no_cuda;
        tracing::info!(reason, "executing on the CPU: no CUDA device can be used");
    }
    tracing::info!(
        torch = loaded.torch,
        devices = loaded.devices.len(),
        ops = loaded.ops,
        "libtorch is loaded"
    );
    let devices: Vec<Device> =
        loaded.devices.into_iter().map(|device| with_budget(&args, device)).collect();
    let limits = devices.iter().map(|device| limits(&args, device)).collect();
    let facts = NodeFacts {
        software: SOFTWARE.to_owned(),
        devices,
        sessions_max: args.max_sessions as usize,
    };
    let sessions_max = args.clients.client_sessions.unwrap_or(u32::MAX);
    let sharing = args.clients.share_weights.iter().map(|one| one.0.clone()).collect();
    let client_operator_max = args.clients.client_operator_s.map(|s| Duration::from_secs(s.into()));
    let links = doors.iter().find_map(Door::links).cloned();
    let mut gate = Gate::new(GateParts {
        facts,
        doors,
        quotas: Quotas::new(QuotaLimits { sessions_max }),
        limits,
        nursery: Box::new(zygote),
        linger: Duration::from_secs(args.linger_s.into()),
        operator_max: Duration::from_secs(args.operator_s.into()),
        client_operator_max,
        sharing,
        groups,
        weights,
        session_bytes: args.clients.client_message_bytes,
        links,
        interrupt: Some(either(signals.as_fd(), parent.as_ref())?),
    })
    .context("wait for events")?;
    println!("ready {}", addresses.join(" "));
    std::io::stdout().flush().context("say that the node is ready")?;

    let mut draining = None;
    let why = loop {
        match gate.run(draining)? {
            Why::Drained => break "its last session ended".to_owned(),
            Why::Due => {
                break format!(
                    "it was asked to stop (SIGTERM), and {} s later the session still ran \
                     (--drain-s gives longer)",
                    drain(&args).as_secs()
                );
            }
            Why::Interrupted => {}
        }
        if parent.as_ref().is_some_and(has_ended) {
            break "the process that started it ended (--parent-pid)".to_owned();
        }
        match signals.next() {
            Some(Signal::Drain) if draining.is_none() => {
                let drain = drain(&args);
                draining = Some(Instant::now() + drain);
                let s = drain.as_secs();
                tracing::info!("asked to stop: sessions may finish within {s} s");
                gate.drain(format!(
                    "it was asked to stop (SIGTERM) and takes no new sessions; it ends within \
                     {s} s. Use another node, or this one once it was started again"
                ));
            }
            Some(Signal::Drain) => break "it was asked twice to stop (SIGTERM)".to_owned(),
            Some(Signal::AtOnce(signal)) => break format!("it was stopped by {signal}"),
            None => {}
        }
    };
    tracing::info!("the node ends: {why}");
    gate.cut(&format!("the node ends: {why}"), GRACE);
    Ok(())
}

/// Readable when one of the two is.
fn either(
    signals: std::os::fd::BorrowedFd<'_>,
    parent: Option<&OwnedFd>,
) -> anyhow::Result<OwnedFd> {
    let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&both, signals, data, epoll::EventFlags::IN).context("wait for signals")?;
    if let Some(parent) = parent {
        epoll::add(&both, parent, data, epoll::EventFlags::IN).context("watch the parent")?;
    }
    Ok(both)
}

/// A descriptor that becomes readable when the process ends.
fn parent(pid: i32) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).context("--parent-pid must be positive")?;
    pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("watch the parent process {pid} (--parent-pid); did it end?"))
}

fn has_ended(parent: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(parent, PollFlags::IN)], Some(&now)) == Ok(1)
}

fn zygote(args: &Args) -> anyhow::Result<ZygoteSettings> {
    let own = std::env::current_exe().context("find this program")?;
    let binary = args.worker_binary.clone().unwrap_or_else(|| own.with_file_name("genie-worker"));
    let device = args.device.to_possible_value().expect("no value is hidden");
    let mut arguments: Vec<OsString> =
        vec!["--device".into(), device.get_name().into(), "--log".into(), args.log.clone().into()];
    if args.cpu_devices > 1 {
        arguments.extend(["--cpu-devices".into(), args.cpu_devices.to_string().into()]);
    }
    if !args.without.is_empty() {
        arguments.extend(["--without".into(), args.without.join(",").into()]);
    }
    Ok(ZygoteSettings { binary, arguments })
}

/// How long running sessions may take when the node is asked to stop.
fn drain(args: &Args) -> Duration {
    let default = if args.parent_pid.is_some() { 0 } else { DRAIN_S };
    Duration::from_secs(args.drain_s.unwrap_or(default).into())
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

/// What each worker of a device may use.
fn limits(args: &Args, device: &Device) -> WorkerLimits {
    let clients = &args.clients;
    let memory_bytes = clients.client_memory_bytes.unwrap_or(u64::MAX).min(device.memory_bytes);
    let unheld = WEIGHT_CACHE_BYTES.min(memory_bytes / 4);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let threads_max = args.threads.unwrap_or(THREADS_MAX);
    let beside = memory_bytes / 4 + WORKER_BYTES + u64::from(threads_max) * STACK_BYTES;
    WorkerLimits(Limits {
        memory_bytes,
        // A GPU's driver takes of the machine's memory what it wants.
        own_bytes: if device.kind == "cuda" { 0 } else { memory_bytes.saturating_add(beside) },
        unheld_bytes: clients.weight_cache_bytes.unwrap_or(unheld),
        bytes_per_s: clients.client_bytes_per_s.unwrap_or(u64::MAX),
        threads: args.threads.unwrap_or(cores),
        threads_max,
        sandbox: !args.no_sandbox,
        shares: false,
        scrub: clients.scrub,
    })
}

/// With the bytes that sessions and weights may hold on it.
fn with_budget(args: &Args, device: Device) -> Device {
    let memory_bytes = args.memory_bytes.unwrap_or_else(|| match device.memory_bytes {
        0 => memory::default_budget_bytes() / u64::from(args.cpu_devices),
        bytes => memory::share(bytes),
    });
    Device { memory_bytes, ..device }
}
