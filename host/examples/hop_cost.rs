//! Prints what the hop through a host costs: round trips of a fence to the node, directly and
//! through the host, interleaved, and the rate of small frames.
//!
//! `cargo run --release -p genie-host --example hop_cost -- HOST_SOCKET NODE_SOCKET`

use std::time::Instant;

use anyhow::{Context, bail};
use genie_shm::UnixLink;
use genie_transport::Link;
use genie_wire::control::Hello;
use genie_wire::frame::FrameKind;
use genie_wire::{PROTOCOL_VERSION, TapeWriter};
use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};

const ROUNDS: usize = 5;
const TRIPS: usize = 2000;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut peers = Vec::new();
    for name in ["through the host", "directly"] {
        let path = args.next().context("give the sockets of a host and of its node")?;
        peers.push((name, greet(genie_shm::connect(path)?)?, Vec::new()));
    }
    let mut token = 0;
    for _ in 0..ROUNDS {
        for (_, link, times) in &mut peers {
            for _ in 0..TRIPS {
                token += 1;
                let mut tape = TapeWriter::new();
                tape.fence(token);
                let start = Instant::now();
                link.post_send(FrameKind::Tape, &[tape.bytes()], None)?;
                wait(link, FrameKind::Reply)?;
                times.push(start.elapsed().as_nanos() as u64);
            }
        }
    }
    for (name, _, times) in &mut peers {
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100] as f64 / 1000.0;
        println!(
            "{name:<18} median {:.1} us, 10 % {:.1} us, 90 % {:.1} us",
            at(50),
            at(10),
            at(90)
        );
    }
    Ok(())
}

fn greet(mut link: UnixLink) -> anyhow::Result<UnixLink> {
    let hello = Hello { protocol: PROTOCOL_VERSION, threads: 1, ..Hello::default() };
    link.post_send(FrameKind::Hello, &[&hello.encode_to_vec()], None)?;
    wait(&mut link, FrameKind::Welcome)?;
    Ok(link)
}

fn wait(link: &mut UnixLink, kind: FrameKind) -> anyhow::Result<()> {
    loop {
        while let Some(frame) = link.poll()? {
            if frame.kind == FrameKind::Refusal {
                bail!("refused");
            }
            if frame.kind == kind {
                return Ok(());
            }
        }
        poll(&mut [PollFd::new(link, PollFlags::IN)], None)?;
    }
}
