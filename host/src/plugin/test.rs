//! `genie-host plugin test`.

use clap::Args;

use super::settings::Place;

#[derive(Args)]
pub struct TestArgs {
    #[command(flatten)]
    place: Place,
}

pub fn run(args: TestArgs) -> anyhow::Result<()> {
    anyhow::bail!("{}: not here yet", args.place.plugins.display())
}
