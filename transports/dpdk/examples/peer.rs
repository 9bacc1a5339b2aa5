//! One of two processes that talk over the transport `dpdk`: for its tests and its measurements.
//!
//! ```text
//! peer listen  --set device=... --set ip=10.0.0.1/24 [--stream SECONDS | --exchange COUNT]
//! peer connect --set device=... --set ip=10.0.0.2/24 --address 10.0.0.1:PORT ...
//! ```
//!
//! With `--plugins DIR` the transport is loaded from there as the host does it: vetted, probed in a
//! child process, called through the C ABI. Otherwise it is linked in. With `--reverse yes` on both
//! the listening end streams. The last line on standard
//! output is a JSON object of what happened.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use genie_dpdk::transport::Dpdk;
use genie_transport::SharedMemory;
use genie_transport::load::{Settings, Transports};
use genie_transport::probe::{ProbeCommand, probe_child_main};
use genie_transport::transport::{
    Cause, Completion, Connection, Memory, MemoryKey, Options, Part, Transport, TransportError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whatever happens, this process ends.
const LIFE: Duration = Duration::from_secs(120);
/// How often an end that is told what to do looks whether it is.
const LOOK: Duration = Duration::from_millis(10);
/// Each end's memory, and window.
const MEMORY_BYTES: u64 = 64 << 20;
const WINDOW: u32 = 1;
/// The first number of a message; they rise.
const FIRST: u64 = 1;

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Default)]
struct Arguments {
    options: Options,
    plugins: Option<String>,
    /// Messages that go there and, changed, back.
    exchange: u64,
    /// Seconds that one end sends for; `told` until its input says so.
    stream: f64,
    told: bool,
    /// The listening end streams, the connecting one takes.
    reverse: bool,
    /// Of a message that is streamed.
    bytes: u64,
    /// Messages on their way at once.
    depth: u64,
    /// Seconds to do nothing in, connected, before the end; for the cost of idling.
    idle: f64,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let role = words.next().unwrap_or_default();
    if role == "probe-child" {
        return probe_child_main(Path::new(&words.next().unwrap_or_default()));
    }
    match read(words).and_then(|arguments| run(&role, &arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer {role}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(words: impl Iterator<Item = String>) -> Result<Arguments, Failure> {
    let mut words = words;
    let mut read = Arguments { bytes: 1 << 20, depth: 8, ..Arguments::default() };
    read.options.trusted = true;
    read.options.connection = 0x6765_6e69_6500_0001;
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} has no value"))?;
        match name.as_str() {
            "--set" => {
                let (name, value) = value.split_once('=').ok_or("--set NAME=VALUE")?;
                read.options.settings.insert(name.to_owned(), value.to_owned());
            }
            "--address" => read.options.address = value,
            "--secret" => {
                let mut secret = [0; 32];
                for (byte, digit) in secret.iter_mut().zip(value.bytes().cycle()) {
                    *byte = digit;
                }
                read.options.secret = Some(secret);
                read.options.trusted = false;
            }
            "--deadline-ms" => read.options.deadline_ms = value.parse()?,
            "--connect-ms" => read.options.connect_ms = value.parse()?,
            "--plugins" => read.plugins = Some(value),
            "--exchange" => read.exchange = value.parse()?,
            "--stream" if value == "told" => read.told = true,
            "--stream" => read.stream = value.parse()?,
            "--reverse" => read.reverse = value == "yes",
            "--bytes" => read.bytes = value.parse()?,
            "--depth" => read.depth = value.parse()?,
            "--idle" => read.idle = value.parse()?,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    Ok(read)
}

fn transport(arguments: &Arguments) -> Result<Arc<dyn Transport>, Failure> {
    let Some(directory) = &arguments.plugins else { return Ok(Arc::new(Dpdk)) };
    let mut settings = Settings::new(ProbeCommand::this_program(&["probe-child"])?);
    settings.options = arguments.options.clone();
    settings.deadline = Duration::from_secs(20);
    let loaded = Transports::load(Path::new(directory), &settings);
    for entry in loaded.list() {
        eprintln!("{:?}", entry.outcome);
    }
    Ok(loaded.find("dpdk").ok_or("the plugin dpdk was not loaded")?.clone())
}

fn run(role: &str, arguments: &Arguments) -> Result<(), Failure> {
    let until = Instant::now() + LIFE;
    let transport = transport(arguments)?;
    if role == "probe" {
        println!("{}", transport.probe(&arguments.options)?);
        return Ok(());
    }
    let connection = match role {
        "listen" => {
            let mut listener = transport.listen(&arguments.options)?;
            println!("listening {}", listener.address());
            std::io::stdout().flush()?;
            loop {
                if let Some(connection) = listener.accept()? {
                    break connection;
                }
                wait(listener.event_fd(), until)?;
            }
        }
        "connect" => transport.connect(&arguments.options)?,
        _ => return Err("listen, connect or probe".into()),
    };
    let mut end = End::new(connection, until)?;
    let wall = Instant::now();
    let cpu = cpu_seconds();
    let streams = (role == "connect") != arguments.reverse;
    match role {
        "connect" if arguments.exchange > 0 => end.ask(arguments.exchange)?,
        _ if arguments.exchange > 0 => end.answer(arguments.exchange)?,
        _ if streams => end.stream(arguments)?,
        _ => end.sink()?,
    }
    let busy = (wall.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    if role == "connect" && arguments.idle > 0.0 {
        end.idle(Duration::from_secs_f64(arguments.idle))?;
    }
    end.report(busy);
    if streams {
        end.connection.close("done");
        end.until_closed()?;
    }
    Ok(())
}

/// What a test says while an end streams: `watch` for trouble from now on, `go on` until messages that
/// are posted from now on have arrived, `end`. The end answers `trouble` and `goes on`.
struct Told {
    lines: Receiver<String>,
    trouble: Option<f64>,
    arrives: Option<u64>,
    ended: bool,
}

impl Told {
    fn new() -> Self {
        let (said, lines) = channel();
        std::thread::spawn(move || {
            let lines = std::io::stdin().lines().map_while(Result::ok);
            lines.for_each(|line| drop(said.send(line)));
        });
        Told { lines, trouble: None, arrives: None, ended: false }
    }

    /// Whether the stream goes on, after so many messages posted and written.
    fn goes_on(&mut self, end: &End, posted: u64, written: u64) -> Result<bool, Failure> {
        match self.lines.try_recv() {
            Ok(line) if line == "watch" => self.trouble = Some(end.trouble()),
            Ok(line) if line == "go on" => self.arrives = Some(posted + 1),
            Ok(_) | Err(TryRecvError::Disconnected) => self.ended = true,
            Err(TryRecvError::Empty) => {}
        }
        if self.trouble.is_some_and(|before| end.trouble() > before) {
            self.trouble = None;
            say("trouble")?;
        }
        if self.arrives.is_some_and(|count| written >= count) {
            self.arrives = None;
            say("goes on")?;
        }
        Ok(!self.ended)
    }
}

fn say(line: &str) -> std::io::Result<()> {
    println!("{line}");
    std::io::stdout().flush()
}

struct End {
    connection: Box<dyn Connection>,
    until: Instant,
    key: MemoryKey,
    memory: Arc<SharedMemory>,
    completions: Vec<Completion>,
    found: BTreeMap<&'static str, f64>,
}

impl End {
    /// Waits until the connection is there; the lower half of the memory is the peer's window.
    fn new(mut connection: Box<dyn Connection>, until: Instant) -> Result<Self, Failure> {
        let (memory, shared) = Memory::allocate(MEMORY_BYTES)?;
        let key = connection.register(memory)?;
        let half = MEMORY_BYTES / 2;
        connection.offer(WINDOW, Part { key, offset: 0, bytes: half })?;
        let (completions, found) = (Vec::new(), BTreeMap::new());
        let mut end = End { connection, until, key, memory: shared, completions, found };
        match end.next()? {
            Completion::Connected => Ok(end),
            other => Err(format!("{other:?} came before Connected").into()),
        }
    }

    fn next(&mut self) -> Result<Completion, TransportError> {
        let none = || TransportError::new(Cause::TimedOut, "nothing came in time".to_owned());
        self.next_before(self.until)?.ok_or_else(none)
    }

    /// None when nothing came before `until`.
    fn next_before(&mut self, until: Instant) -> Result<Option<Completion>, TransportError> {
        loop {
            if !self.completions.is_empty() {
                return Ok(Some(self.completions.remove(0)));
            }
            self.connection.poll(&mut self.completions)?;
            if self.completions.is_empty()
                && !self.connection.arm()?
                && wait(self.connection.event_fd(), until).is_err()
            {
                return Ok(None);
            }
        }
    }

    fn write(&mut self, message: u64, bytes: u64) -> Result<(), TransportError> {
        let part = Part { key: self.key, offset: MEMORY_BYTES / 2, bytes };
        self.connection.write(message, &[part], WINDOW, 0)
    }

    /// Sends tensors and checks what comes back.
    fn ask(&mut self, count: u64) -> Result<(), Failure> {
        for message in FIRST..FIRST + count {
            let bytes = size_of_message(message);
            self.memory.write(MEMORY_BYTES / 2, &pattern(message, bytes))?;
            self.write(message, bytes)?;
            let (mut written, mut placed) = (false, false);
            while !(written && placed) {
                match self.next()? {
                    Completion::Written { message: m } if m == message => written = true,
                    Completion::Placed { message: m, window, offset, bytes: b } => {
                        if (m, window, offset, b) != (message, WINDOW, 0, bytes) {
                            return Err(format!("message {m} came instead of {message}").into());
                        }
                        placed = true;
                        self.check(!message, bytes)?;
                    }
                    other => return Err(format!("{other:?} while message {message}").into()),
                }
            }
        }
        self.found.insert("exchanged", count as f64);
        Ok(())
    }

    /// Checks tensors and sends them back, changed, at once.
    fn answer(&mut self, count: u64) -> Result<(), Failure> {
        let (mut done, mut written) = (0, 0);
        while done < count || written < count {
            let next = match self.next() {
                // The peer has all answers; it need not wait until we know.
                Err(error) if error.cause == Cause::Closed && done == count => break,
                other => other?,
            };
            match next {
                Completion::Placed { message, window, offset, bytes } => {
                    let expect = (FIRST + done, WINDOW, 0, size_of_message(message));
                    if (message, window, offset, bytes) != expect {
                        return Err(format!("message {message} came, not {expect:?}").into());
                    }
                    self.check(message, bytes)?;
                    self.memory.write(MEMORY_BYTES / 2, &pattern(!message, bytes))?;
                    self.write(message, bytes)?;
                    done += 1;
                }
                Completion::Written { .. } => written += 1,
                other => return Err(format!("{other:?} while answering").into()),
            }
        }
        self.found.insert("exchanged", count as f64);
        self.until_closed()
    }

    fn check(&self, seed: u64, bytes: u64) -> Result<(), Failure> {
        let mut seen = vec![0; bytes as usize];
        self.memory.read(0, &mut seen)?;
        if seen != pattern(seed, bytes) {
            return Err(format!("{bytes} bytes arrived, but not those that were sent").into());
        }
        Ok(())
    }

    /// Sends as fast as it goes.
    fn stream(&mut self, arguments: &Arguments) -> Result<(), Failure> {
        let started = Instant::now();
        let seconds = Duration::from_secs_f64(arguments.stream);
        let (mut next, mut written) = (FIRST, 0);
        say("streaming")?;
        let mut told = arguments.told.then(Told::new);
        loop {
            let goes_on = match &mut told {
                Some(told) => told.goes_on(self, next - FIRST, written)?,
                None => started.elapsed() < seconds,
            };
            while goes_on && next - FIRST - written < arguments.depth {
                self.write(next, arguments.bytes)?;
                next += 1;
            }
            if next - FIRST == written {
                break;
            }
            // Who is told what to do looks from time to time.
            let bound = if told.is_some() { Instant::now() + LOOK } else { self.until };
            if let Some(Completion::Written { .. }) = self.next_before(bound)? {
                written += 1;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let bytes = (written * arguments.bytes) as f64;
        self.found.insert("goodput_gbps", bytes * 8.0 / seconds / 1e9);
        self.found.insert("messages", written as f64);
        self.found.insert("payload_bytes", bytes);
        Ok(())
    }

    /// Takes what comes until the peer is done.
    fn sink(&mut self) -> Result<(), Failure> {
        let mut bytes_placed = 0;
        loop {
            match self.next() {
                Ok(Completion::Placed { bytes, .. }) => bytes_placed += bytes,
                Ok(_) => {}
                Err(error) if error.cause == Cause::Closed => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.found.insert("payload_bytes", bytes_placed as f64);
        Ok(())
    }

    fn until_closed(&mut self) -> Result<(), Failure> {
        loop {
            match self.next() {
                Ok(_) => {}
                Err(error) if error.cause == Cause::Closed => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Stays connected and measures what that costs.
    fn idle(&mut self, time: Duration) -> Result<(), Failure> {
        let (before, sleeps) = (cpu_seconds(), self.statistic("thread_sleeps"));
        let until = Instant::now() + time;
        while Instant::now() < until {
            let _ = wait(self.connection.event_fd(), until);
            self.connection.poll(&mut self.completions)?;
        }
        let seconds = time.as_secs_f64();
        self.found.insert("idle_cpu_share", (cpu_seconds() - before) / seconds);
        let sleeps = (self.statistic("thread_sleeps") - sleeps) / seconds;
        self.found.insert("idle_sleeps_per_second", sleeps);
        Ok(())
    }

    fn statistic(&self, name: &str) -> f64 {
        let all = self.connection.statistics();
        all.into_iter().find(|(n, _)| n == name).map_or(0.0, |(_, value)| value as f64)
    }

    /// Packets got lost, or the driver did not take them.
    fn trouble(&self) -> f64 {
        let names = ["packets_lost", "probes", "device_tx_refused", "device_tx_errors"];
        names.iter().map(|name| self.statistic(name)).sum()
    }

    fn report(&mut self, (wall, cpu): (f64, f64)) {
        for name in [
            "packets_sent",
            "packets_lost",
            "zero_copy_packets",
            "copied_packets",
            "attached_now",
            "packets_received",
            "retransmitted",
            "corrupt_dropped",
            "srtt_us",
            "datagram_bytes",
            "device_rx_missed",
            "device_rx_no_mbuf",
            "device_tx_refused",
            "frames_bad_checksum",
            "thread_sleeps",
            "thread_interrupts",
        ] {
            self.found.insert(name, self.statistic(name));
        }
        self.found.insert("wall_s", wall);
        self.found.insert("cpu_s", cpu);
        println!("{}", serde_json::to_string(&self.found).expect("numbers"));
    }
}

/// Of all threads of this process.
fn cpu_seconds() -> f64 {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9
}

fn wait(fd: BorrowedFd<'_>, until: Instant) -> Result<(), Failure> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&left)) {
        Ok(0) => Err("nothing came in time".into()),
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// From one byte to a few megabytes.
fn size_of_message(message: u64) -> u64 {
    let sizes = [1, 1371, 65_536, 100_001, 4 << 20, 777, 1 << 20];
    sizes[(message % sizes.len() as u64) as usize]
}

fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes as usize + 8);
    while out.len() < bytes as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}
