//! One stream of large messages between two processes, for measuring a link without a host:
//!
//! `stream --listen ADDRESS:PORT [NAME=VALUE ..]` prints `ready ADDRESS:PORT`, then
//! `stream --connect ADDRESS:PORT --seconds 3 [NAME=VALUE ..]` prints one JSON object.
//!
//! `trusted=1` turns encryption off, `trace=1` prints the sender's view of the path each 20 ms; other names are settings of the transport. The secret is known
//! to everybody: not for anything but measuring.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use genie_transport::transport::{
    Cause, Completion, Connection, Listener, Memory, Options, Part, Transport,
};
use genie_udp::Udp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};

const MESSAGE_BYTES: u64 = 1 << 20;
const MESSAGES_AHEAD: u64 = 32;
const TRACE_EVERY: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let mut options = Options { connection: 1, secret: Some([9; 32]), ..Options::default() };
    let mut seconds = 3.0;
    let (mut listens, mut trace) = (false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => (options.address, listens) = (value()?, true),
            "--connect" => options.address = value()?,
            "--seconds" => seconds = value()?.parse()?,
            "trusted=1" => options.trusted = true,
            "trace=1" => trace = true,
            other => {
                let (name, value) = other.split_once('=').context("settings are NAME=VALUE")?;
                options.settings.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    if listens {
        receive(&options)
    } else {
        send(&options, Duration::from_secs_f64(seconds), trace)
    }
}

/// Sleeps until a poll is due, then polls.
fn step(connection: &mut dyn Connection, told: &mut Vec<Completion>) -> anyhow::Result<()> {
    if !connection.arm()? {
        poll(&mut [PollFd::from_borrowed_fd(connection.event_fd(), PollFlags::IN)], None)?;
    }
    Ok(connection.poll(told)?)
}

fn receive(options: &Options) -> anyhow::Result<()> {
    let mut listener = Udp.listen(options)?;
    println!("ready {}", listener.address());
    let mut connection = accept(&mut *listener)?;
    let (memory, _shared) = Memory::allocate(MESSAGE_BYTES * MESSAGES_AHEAD)?;
    let key = connection.register(memory)?;
    connection.offer(1, Part { key, offset: 0, bytes: MESSAGE_BYTES * MESSAGES_AHEAD })?;
    let mut told = Vec::new();
    loop {
        if step(&mut *connection, &mut told).is_err() {
            eprintln!("{:?}", connection.statistics());
            return Ok(());
        }
        told.clear();
    }
}

fn accept(listener: &mut dyn Listener) -> anyhow::Result<Box<dyn Connection>> {
    loop {
        poll(&mut [PollFd::from_borrowed_fd(listener.event_fd(), PollFlags::IN)], None)?;
        if let Some(connection) = listener.accept()? {
            return Ok(connection);
        }
    }
}

fn print_view(connection: &dyn Connection, at: Duration) {
    const SHOWN: [&str; 9] = [
        "srtt_us",
        "rtt_min_us",
        "delivery_rate",
        "pacing_rate",
        "window_bytes",
        "in_flight",
        "packets_sent",
        "packets_lost",
        "probes",
    ];
    let shown = connection.statistics().into_iter().filter(|(name, _)| SHOWN.contains(&&**name));
    let shown: Vec<_> = shown.map(|(name, value)| format!("{name} {value}")).collect();
    eprintln!("{:.3} {}", at.as_secs_f64(), shown.join(" "));
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn send(options: &Options, window: Duration, trace: bool) -> anyhow::Result<()> {
    let mut connection = Udp.connect(options)?;
    let (memory, _shared) = Memory::allocate(MESSAGE_BYTES)?;
    let key = connection.register(memory)?;
    let part = Part { key, offset: 0, bytes: MESSAGE_BYTES };
    let (mut told, mut begun, mut written, mut traced) = (Vec::new(), 0, 0, 0);
    let started = Instant::now();
    // When and after how many messages the window began, and the newest of it.
    let (mut first, mut last) = (None, None);
    while started.elapsed() < WARM_UP + window {
        while begun < written + MESSAGES_AHEAD {
            let offset = begun % MESSAGES_AHEAD * MESSAGE_BYTES;
            match connection.write(begun + 1, &[part], 1, offset) {
                Ok(()) => begun += 1,
                Err(error) if error.cause == Cause::OutOfCredit => break,
                Err(error) => return Err(error.into()),
            }
        }
        step(&mut *connection, &mut told)?;
        if trace && started.elapsed() >= TRACE_EVERY * traced {
            traced += 1;
            print_view(&*connection, started.elapsed());
        }
        for told in told.drain(..) {
            if matches!(told, Completion::Written { .. }) {
                written += 1;
                let now = (Instant::now(), written, cpu_seconds());
                if started.elapsed() >= WARM_UP {
                    first.get_or_insert(now);
                    last = Some(now);
                }
            }
        }
    }
    let (Some((from, before, cpu)), Some((to, after, cpu_after))) = (first, last) else {
        bail!("no message was written in the window");
    };
    let seconds = (to - from).as_secs_f64();
    if after == before {
        bail!("only one message was written in the window");
    }
    let bytes = (after - before) * MESSAGE_BYTES;
    let goodput = bytes as f64 * 8.0 / seconds;
    let cpu = (cpu_after - cpu) / bytes as f64 * 1e9;
    let counters: Vec<_> = connection
        .statistics()
        .into_iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    let counters = counters.join(", ");
    println!(
        "{{\"goodput_bits_per_s\": {goodput:.0}, \"sender_cpu_s_per_gb\": {cpu:.3}, {counters}}}"
    );
    Ok(())
}
