//! `genie-host transport bench`: what a transport carries between two machines.
//!
//! One side listens, the other connects, sends and prints. Round trips of small messages are made
//! in turns with the same over plain TCP, so that both meet the same noise; then large messages
//! flow for some seconds, and the receiver's clock and count make the rate. [`side`] has the plain
//! TCP connection beside the one that is measured, [`wire`] drives the latter, [`serve`] and
//! [`measure`] are the two sides.

mod measure;
mod serve;
mod side;
mod wire;

use std::path::PathBuf;

use clap::Args;
use genie_transport::transport::{Options, Transport};

use super::place::{Place, Tuning};

/// Large messages under way, and the most that may be asked for.
const IN_FLIGHT: u64 = 4;
/// Bytes that one side registers for large messages.
const REGISTERED_BYTES_MAX: u64 = 4 << 30;

/// Bytes a second of a transport, its round trip, and the processor time it takes.
///
/// On one machine: `genie-host transport bench udp --listen 10.0.0.2:0`, which prints `ready
/// ADDRESS`. On the other: `genie-host transport bench udp --connect ADDRESS`. Without --trusted
/// and --certs, traffic is encrypted with certificates and secrets made for this run, which
/// protect nothing: the listening side hands them out over plain TCP.
#[derive(Args)]
pub struct BenchArgs {
    /// The transport's name, as `genie-host transport list` prints it.
    name: String,
    /// Serve measurements here (HOST:PORT, port 0 for any) until interrupted.
    #[arg(
        long,
        value_name = "ADDRESS",
        required_unless_present = "connect",
        conflicts_with = "connect"
    )]
    listen: Option<String>,
    /// Measure against what the listening side printed behind `ready`.
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<String>,
    /// Seconds of large messages, after a warm-up of one.
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Bytes of each large message.
    #[arg(long, value_name = "N", default_value_t = 8 << 20,
          value_parser = clap::value_parser!(u64).range(16..=1 << 30))]
    message_bytes: u64,
    /// Large messages under way at a time.
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT,
          value_parser = clap::value_parser!(u64).range(1..=64))]
    in_flight: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// No encryption, as on a network where nobody else is. Give it on both sides.
    #[arg(long, conflicts_with_all = ["certs"])]
    trusted: bool,
    /// The directory with ca.pem, cert.pem and key.pem of this side.
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// The secret of a data connection, 64 hexadecimal digits, the same on both sides; otherwise
    /// one is made for this run and sent over plain TCP.
    #[arg(long, value_name = "HEX", value_parser = side::secret)]
    secret: Option<Secret>,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    place: Place,
}

/// 32 bytes.
pub type Secret = [u8; 32];

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds from 0.1 to 3600".into()),
    }
}

impl BenchArgs {
    fn options(&self) -> Options {
        Options {
            trusted: self.trusted,
            certificates: self.certs.clone(),
            secret: self.secret,
            settings: self.tuning.settings(),
            ..Options::default()
        }
    }

    /// Encrypted with what this run makes itself.
    fn throw_away(&self) -> bool {
        !self.trusted && self.certs.is_none()
    }
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.message_bytes.saturating_mul(args.in_flight) <= REGISTERED_BYTES_MAX,
        "--message-bytes times --in-flight is more than {REGISTERED_BYTES_MAX} bytes"
    );
    let transport = args.place.load_one(&args.name, args.options())?;
    let transport: &dyn Transport = transport.as_ref();
    let data = genie_transport::transport::Capabilities::DATA;
    anyhow::ensure!(
        transport.facts().capabilities.has(data),
        "the transport {} carries no payload, there is nothing to measure",
        args.name
    );
    match (&args.listen, &args.connect) {
        (Some(address), _) => serve::run(&args, transport, address),
        (None, Some(address)) => measure::run(&args, transport, address),
        (None, None) => anyhow::bail!("give --listen or --connect"),
    }
}
