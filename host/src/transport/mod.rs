//! `genie-host transport`: which transports there are, what they need, how fast they are.

mod bench;
mod list;
mod place;

use clap::Subcommand;

#[derive(Subcommand)]
pub enum TransportCommand {
    /// Print the transports of a directory, what each can do, and why others are refused.
    List(list::ListArgs),
    /// Ask one transport what it would use on this machine.
    Probe(list::ProbeArgs),
    /// Measure one transport between two machines, beside plain TCP.
    Bench(bench::BenchArgs),
}

/// Runs one of the commands.
pub fn run(command: TransportCommand) -> anyhow::Result<()> {
    match command {
        TransportCommand::List(args) => list::list(&args),
        TransportCommand::Probe(args) => list::probe(&args),
        TransportCommand::Bench(args) => bench::run(args),
    }
}
