//! `genie-host plugin list`.

use clap::Args;

use super::settings::Place;

#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: ListArgs) -> anyhow::Result<()> {
    anyhow::bail!("{}: not here yet", args.place.plugins.display())
}
