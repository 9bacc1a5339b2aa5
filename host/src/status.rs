//! `genie-host status`: the counters of a running host, and of its node when one runs.

use std::io::Write;

use anyhow::Context;
use genie_wire::control::Status;

use crate::address::Address;
use crate::client::Client;
use crate::told::told;
use crate::totals::DRAINING;

pub fn run(host: &Address) -> anyhow::Result<()> {
    let mut status = ask(host, false)?;
    let draining = status.words.iter().any(|word| word.name == format!("host.{DRAINING}"));
    let own = status.counters.iter().any(|c| c.name == "host.node_pid" && c.value > 0);
    let elsewhere = status.words.iter().any(|word| word.name.starts_with("host.node."));
    if !draining && (own || elsewhere) {
        // Only a session reaches a node; it lasts as long as the question. A host that is full takes
        // none, not even for this.
        match ask(host, true) {
            Ok(with_node) => status = with_node,
            Err(error) => eprintln!("genie-host: the node was not asked: {}", told(&error)),
        }
    }
    let mut out = std::io::stdout().lock();
    for word in status.words.iter().filter(|word| !word.value.is_empty()) {
        writeln!(out, "{:<24} {}", word.name, word.value).context("print the status")?;
    }
    for counter in status.counters.iter().filter(|c| !c.name.starts_with("host.session.")) {
        writeln!(out, "{:<40} {:>16}", counter.name, counter.value).context("print the status")?;
    }
    Ok(())
}

fn ask(host: &Address, with_session: bool) -> anyhow::Result<Status> {
    let link = genie_shm::connect(host.path()).with_context(|| {
        format!("no host answers at {host}; start one with `genie-host serve --listen {host}`")
    })?;
    let mut client = Client::new(link);
    if with_session {
        client.hello()?;
    }
    client.status()
}
