//! `genie-host plugin bench`.

use clap::Args;

use super::settings::Place;

#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    anyhow::bail!("{}: not here yet", args.place.plugins.display())
}
