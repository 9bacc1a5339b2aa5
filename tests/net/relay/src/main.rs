//! The delay and the faults of the network test bed (`tests/net/bed.py`): reads IP packets from TUN
//! devices, holds each for its lane's delay, spoils the ones it is told to, and writes the rest back to
//! be routed on.
//!
//!     genie-test-relay forward=TUN back=TUN
//!
//! Commands come on stdin, one a line, and each is answered by one line (`command.rs`). It ends when
//! stdin does. It never opens a socket and knows nothing of what the packets carry. Start reading at
//! `relay`.

mod command;
mod fault;
mod lane;
mod packet;
mod tun;

use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lane::Lane;
use crate::tun::Tun;

/// How late the kernel may wake us beyond the timer we set.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::new(1_000).expect("not zero");
/// Where packets keep coming, the relay looks for them this often: a wake-up for each costs more than the
/// packet. It adds up to this much to a delay.
const LOOK_EVERY: Duration = Duration::from_micros(25);
/// Longest command line; a longer one is a mistake.
const COMMAND_BYTES_MAX: usize = 4096;

fn main() -> Result<()> {
    let lanes = std::env::args().skip(1).map(|argument| {
        let Some((name, device)) = argument.split_once('=') else {
            bail!("`{argument}` is no lane; write NAME=TUN_DEVICE, such as back=tb0");
        };
        Ok(Lane::new(name, Tun::attach(device)?))
    });
    let mut lanes = lanes.collect::<Result<Vec<_>>>()?;
    if lanes.is_empty() {
        bail!("no lane to relay; write NAME=TUN_DEVICE, such as back=tb0");
    }
    rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS)).context("timer slack")?;
    answer("ready")?;
    relay(&mut lanes)
}

/// Runs until stdin ends.
fn relay(lanes: &mut [Lane]) -> Result<()> {
    let stdin = std::io::stdin();
    rustix::io::ioctl_fionbio(&stdin, true).context("non-blocking stdin")?;
    let mut typed = Vec::new();
    let mut flowing = false;
    loop {
        for lane in lanes.iter_mut() {
            lane.release(Instant::now());
        }
        let typing = wait(&stdin, lanes, flowing)?;
        let now = Instant::now();
        let mut read = 0;
        for lane in lanes.iter_mut() {
            read += lane.take_in(now)?;
        }
        flowing = read > 0;
        if typing && !read_commands(&mut typed)? {
            return Ok(());
        }
        while let Some(end) = typed.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = typed.drain(..=end).collect();
            answer(&command::obey(lanes, &String::from_utf8_lossy(&line), Instant::now()))?;
        }
    }
}

/// Sleeps until a packet is due, a packet or a command comes; true if there are commands to read. While
/// packets are `flowing` it sleeps for `LOOK_EVERY` instead of until the next one.
fn wait(stdin: &std::io::Stdin, lanes: &[Lane], flowing: bool) -> Result<bool> {
    let due = lanes.iter().filter_map(Lane::next_due).min();
    let rest = due.map(|due| due.saturating_duration_since(Instant::now()));
    let rest =
        if flowing { Some(rest.map_or(LOOK_EVERY, |rest| rest.min(LOOK_EVERY))) } else { rest };
    let timeout = rest.map(|rest| Timespec {
        tv_sec: i64::try_from(rest.as_secs()).expect("a delay"),
        tv_nsec: rest.subsec_nanos().into(),
    });
    let mut watched = vec![PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
    if !flowing {
        let devices =
            lanes.iter().map(|lane| PollFd::from_borrowed_fd(lane.device(), PollFlags::IN));
        watched.extend(devices);
    }
    match poll(&mut watched, timeout.as_ref()) {
        Ok(_) => Ok(!watched[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("waiting for packets"),
    }
}

/// Adds what stdin has; false at its end.
fn read_commands(typed: &mut Vec<u8>) -> Result<bool> {
    let mut chunk = [0; 1024];
    match std::io::stdin().lock().read(&mut chunk) {
        Ok(0) => return Ok(false),
        Ok(n) => typed.extend_from_slice(&chunk[..n]),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error).context("reading commands"),
    }
    if typed.len() > COMMAND_BYTES_MAX {
        bail!("a command of more than {COMMAND_BYTES_MAX} bytes; end each with a newline");
    }
    Ok(true)
}

fn answer(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("answering on stdout")
}
