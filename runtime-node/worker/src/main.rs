//! `genie-worker`: libtorch, in processes that the node's gate asks for.
//!
//! The process that `genie-node` starts is the **zygote**: it loads libtorch once and opens nothing.
//! Each worker is a fork of it, and serves one client identity on one device
//! (`genie_executor::serve`).

mod cuda;
mod lease;
mod select;
mod work;
mod zygote;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use select::Wanted;
use tracing_subscriber::EnvFilter;

const SOFTWARE: &str = concat!("genie-node ", env!("CARGO_PKG_VERSION"));

/// Runs PyTorch operators for genie-node, which starts it; it is of no use by itself.
///
/// Its standard input is the socket over which the gate speaks to it.
#[derive(Parser)]
#[command(name = "genie-worker", version)]
struct Args {
    /// What to execute on; `auto` takes CUDA when it works and says why when it does not
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceArg,

    /// As how many devices the CPU is served
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    cpu_devices: u32,

    /// Operators to leave to the clients
    #[arg(long, value_name = "OPS", value_delimiter = ',')]
    without: Vec<String>,

    /// What to log to standard error
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArg {
    Cpu,
    Cuda,
    Auto,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let gate = std::io::stdin();
    ensure!(
        socket_type(gate.as_fd()).is_ok_and(|kind| kind == SocketType::SEQPACKET),
        "genie-worker is started by genie-node; run `genie-node --help`"
    );
    let filter = EnvFilter::try_new(&args.log).context("--log")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would complain on the stderr that nobody reads any more, and panic.
        .log_internal_errors(false)
        .init();
    let wanted = match args.device {
        DeviceArg::Cpu => Wanted::Cpu,
        DeviceArg::Cuda => Wanted::Cuda,
        DeviceArg::Auto => Wanted::Auto,
    };
    let gate = gate.as_fd().try_clone_to_owned().context("keep the gate's socket")?;
    // What opens its standard input by accident finds nothing there.
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("close the standard input")?;
    zygote::run(gate, wanted, args.cpu_devices, args.without)
}

/// Which process this is, for `ps` and the like.
fn call_oneself(name: &str) {
    let name = std::ffi::CString::new(OsString::from(name).into_encoded_bytes());
    if let Ok(name) = name {
        // Nothing depends on it.
        let _ = rustix::thread::set_name(&name);
    }
}
