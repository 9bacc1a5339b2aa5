//! `genie-host plugin inspect`.

use clap::Args;

use super::settings::Place;

#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    anyhow::bail!("{}: not here yet", args.place.plugins.display())
}
