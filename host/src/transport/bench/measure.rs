//! The connecting side: measures, and prints.

use std::io::IsTerminal;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use genie_transport::transport::{Capabilities, Completion, Options, Transport};
use serde_json::{Value, json};

use super::BenchArgs;
use super::serve::{DIRECT, direct_options};
use super::side::{self, Echo, NAME};
use super::wire::{
    BULK, Block, REPLIES, REPORT, REPORT_BYTES, REQUESTS, Request, SMALL, STEP, Wire, cpu_seconds,
};

/// Large messages before the measured ones.
const WARM_UP: Duration = Duration::from_secs(1);
/// Round trips of one transport before it is the other's turn, the blocks that are made at least,
/// and the time after which there are enough.
const BLOCK: usize = 50;
const BLOCKS_MIN: usize = 3;
const BLOCKS_MAX: usize = 100;
const ROUNDS_TIME: Duration = Duration::from_millis(1_500);

pub fn run(args: &BenchArgs, transport: &dyn Transport, address: &str) -> anyhow::Result<()> {
    let mut options = args.options();
    let mut kept = None;
    let mut echo = None;
    let mut progress = Progress::new(args.json);
    if let Some(direct) = address.strip_prefix(DIRECT) {
        options = Options { address: direct.to_owned(), ..direct_options(transport, &options) };
    } else {
        let mut stream = TcpStream::connect(address).with_context(|| {
            format!("connect to {address}; give what `--listen` printed behind `ready`")
        })?;
        side::say(&mut stream, &json!({"transport": args.name, "trusted": args.trusted}))?;
        let said = side::hear(&stream)?;
        options.address = said["address"].as_str().context("no address was sent")?.to_owned();
        options.connection = said["connection"].as_u64().unwrap_or_default();
        if let Some(text) = said["secret"].as_str() {
            options.secret = Some(side::secret(text).map_err(anyhow::Error::msg)?);
        }
        if args.throw_away() {
            let dir = side::keep(&said["certificates"])?;
            options.certificates = Some(dir.path().to_owned());
            options.peer_name = Some(NAME.to_owned());
            kept = Some(dir);
        }
        echo = Some(Echo::new(stream)?);
    }
    progress.say("connecting");
    let mut bench = Bench::connect(transport, &options)?;
    progress.say("round trips");
    let rounds = bench.rounds(echo.as_mut())?;
    let rate = bench.rate(args, &mut progress)?;
    progress.done();
    drop(kept);
    let facts = transport.facts();
    let leaves = facts.capabilities.has(Capabilities::NETWORK);
    let protection = match (args.trusted, &args.certs) {
        _ if !leaves => "none: it does not leave this machine",
        (true, _) => "none (--trusted)",
        (false, Some(_)) => "certificates of --certs",
        (false, None) => "keys made for this run",
    };
    let result = json!({
        "transport": facts.name,
        "version": facts.version,
        "address": options.address,
        "protection": protection,
        "message_bytes": args.message_bytes,
        "in_flight": args.in_flight,
        "seconds": rate["seconds"],
        "goodput_bits_per_s": rate["goodput_bits_per_s"],
        "bytes": rate["bytes"],
        "messages": rate["messages"],
        "cpu_s_per_gb": rate["cpu_s_per_gb"],
        "round_trip_us": rounds.ours.json(),
        "tcp_round_trip_us": rounds.tcp.as_ref().map(Times::json),
        "round_trip_ratio": rounds.tcp.as_ref().map(|tcp| rounds.ours.median / tcp.median),
        "statistics": rate["statistics"],
    });
    match args.json {
        true => println!("{result}"),
        false => print(&result),
    }
    Ok(())
}

/// Median and 99th percentile, microseconds.
struct Times {
    median: f64,
    p99: f64,
    rounds: usize,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        let at = |part: usize| all[(all.len() - 1) * part / 100].as_secs_f64() * 1e6;
        Times { median: at(50), p99: at(99), rounds: all.len() }
    }

    fn json(&self) -> Value {
        json!({"median": self.median, "p99": self.p99, "rounds": self.rounds})
    }
}

struct Rounds {
    ours: Times,
    tcp: Option<Times>,
}

struct Bench {
    wire: Wire<'static>,
    request: Block,
    _replies: Block,
    report: Block,
}

impl Bench {
    fn connect(transport: &dyn Transport, options: &Options) -> anyhow::Result<Self> {
        let connection = transport
            .connect(options)
            .with_context(|| format!("connect to {}", options.address))?;
        let mut wire = Wire::new(connection, None);
        wire.connected().with_context(|| format!("connect to {}", options.address))?;
        let (request, replies) = (wire.block(SMALL)?, wire.block(SMALL)?);
        let report = wire.block(REPORT_BYTES)?;
        wire.connection.offer(REPLIES, replies.whole())?;
        wire.connection.offer(REPORT, report.whole())?;
        Ok(Bench { wire, request, _replies: replies, report })
    }

    /// Sends a request that is in place already, and waits for the reply. Returns the bytes of the
    /// report, if one came before it.
    fn exchange(&mut self) -> anyhow::Result<u64> {
        self.wire.post(self.request.whole(), REQUESTS, 0)?.context("no credit for a request")?;
        let mut report = 0;
        loop {
            match self.wire.expect("the reply")? {
                Completion::Placed { window: REPLIES, .. } => return Ok(report),
                Completion::Placed { window: REPORT, bytes, .. } => report = bytes,
                _ => {}
            }
        }
    }

    /// A request other than the last one. The former is written: its reply came.
    fn ask(&mut self, request: Request) -> anyhow::Result<u64> {
        self.request.put(0, &request.encode())?;
        self.exchange()
    }

    /// Round trips, in turns with those over plain TCP.
    fn rounds(&mut self, mut echo: Option<&mut Echo>) -> anyhow::Result<Rounds> {
        self.ask(Request::Echo)?;
        let (mut ours, mut tcp) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        for block in 0..BLOCKS_MAX {
            if block > BLOCKS_MIN && begin.elapsed() > ROUNDS_TIME {
                break;
            }
            for _ in 0..BLOCK {
                let begin = Instant::now();
                self.exchange()?;
                ours.push(begin.elapsed());
            }
            if let Some(echo) = &mut echo {
                echo.rounds(BLOCK, &mut tcp)?;
            }
            if block == 0 {
                // Caches and the first loss estimates settle in the first block.
                ours.clear();
                tcp.clear();
            }
        }
        let tcp = (!tcp.is_empty()).then(|| Times::of(tcp));
        Ok(Rounds { ours: Times::of(ours), tcp })
    }

    /// Large messages: first those that warm up, then the measured ones.
    fn rate(&mut self, args: &BenchArgs, progress: &mut Progress) -> anyhow::Result<Value> {
        let (slots, bytes) = (args.in_flight, args.message_bytes);
        let source = self.wire.block(slots * bytes)?;
        self.ask(Request::Begin { in_flight: slots, bytes })?;
        self.flow(&source, args, WARM_UP, &mut |_, _| {})?;
        self.ask(Request::Mark)?;
        let cpu = cpu_seconds();
        let time = Duration::from_secs_f64(args.seconds);
        self.flow(&source, args, time, &mut |at, written| progress.rate(at, written))?;
        let cpu = cpu_seconds() - cpu;
        let len = self.ask(Request::Report)?;
        anyhow::ensure!(len > 0 && len <= REPORT_BYTES, "the other side sent no report");
        let mut text = vec![0; len as usize];
        self.report.memory.read(0, &mut text).context("the report")?;
        let report: Value = serde_json::from_slice(&text).context("the report")?;
        let number = |name: &str| report[name].as_f64().with_context(|| format!("no {name}"));
        let (received, seconds) = (number("bytes")?, number("seconds")?);
        let damaged = number("damaged")?;
        anyhow::ensure!(damaged == 0.0, "{damaged} messages arrived damaged");
        anyhow::ensure!(received > 0.0 && seconds > 0.0, "nothing was measured");
        let ours: serde_json::Map<_, _> =
            self.wire.connection.statistics().into_iter().map(|(k, v)| (k, v.into())).collect();
        let result = json!({
            "seconds": seconds,
            "bytes": report["bytes"],
            "messages": report["messages"],
            "goodput_bits_per_s": received * 8.0 / seconds,
            "cpu_s_per_gb": {
                "sender": cpu / (received / 1e9),
                "receiver": number("cpu_s")? / (received / 1e9),
            },
            "statistics": {"sender": ours, "receiver": report["statistics"]},
        });
        self.wire.connection.close("the measurement is done");
        // The end is told as an error, which is what is waited for.
        while let Ok(Some(_)) = self.wire.next(Instant::now() + STEP) {}
        Ok(result)
    }

    /// Sends for a time, then until all is written.
    fn flow(
        &mut self,
        source: &Block,
        args: &BenchArgs,
        time: Duration,
        told: &mut dyn FnMut(Duration, u64),
    ) -> anyhow::Result<()> {
        let bytes = args.message_bytes;
        let begin = Instant::now();
        let mut free: Vec<u64> = (0..args.in_flight).collect();
        let mut busy = std::collections::HashMap::new();
        let mut written = 0;
        loop {
            let more = begin.elapsed() < time;
            while let (true, Some(slot)) = (more, free.last().copied()) {
                let number = self.wire.next_message().to_le_bytes();
                source.put(slot * bytes, &number)?;
                source.put((slot + 1) * bytes - 8, &number)?;
                let part = source.part(slot * bytes, bytes);
                let Some(message) = self.wire.post(part, BULK, slot * bytes)? else { break };
                free.pop();
                busy.insert(message, slot);
            }
            if !more && busy.is_empty() {
                return Ok(());
            }
            if let Completion::Written { message } = self.wire.expect("a large message")?
                && let Some(slot) = busy.remove(&message)
            {
                free.push(slot);
                written += bytes;
                told(begin.elapsed(), written);
            }
        }
    }
}

/// What is going on, on a terminal.
struct Progress {
    shown: bool,
    last: Duration,
}

impl Progress {
    fn new(json: bool) -> Self {
        Progress { shown: !json && std::io::stderr().is_terminal(), last: Duration::ZERO }
    }

    fn say(&self, what: &str) {
        if self.shown {
            eprint!("\r\x1b[K{what}");
        }
    }

    fn rate(&mut self, at: Duration, written: u64) {
        if at.saturating_sub(self.last) >= Duration::from_millis(250) {
            self.last = at;
            let seconds = at.as_secs_f64();
            let rate = written as f64 * 8.0 / seconds / 1e6;
            self.say(&format!("{seconds:.1} s, {rate:.0} Mb/s (Ctrl-C ends it)"));
        }
    }

    fn done(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

fn print(result: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let us = |value: &Value| {
        let (median, p99) = (number(&value["median"]), number(&value["p99"]));
        format!("median {median:.1} us, 99 % within {p99:.1} us")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, version) = (text(&result["transport"]), text(&result["version"]));
    println!("{name} {version}, {}", text(&result["address"]));
    println!("protection   {}", text(&result["protection"]));
    println!(
        "goodput      {:.1} Mb/s at the receiver, {:.2} s, {} messages of {} bytes",
        number(&result["goodput_bits_per_s"]) / 1e6,
        number(&result["seconds"]),
        result["messages"],
        result["message_bytes"]
    );
    let cpu = &result["cpu_s_per_gb"];
    println!(
        "processor    {:.3} s/GB sending, {:.3} s/GB receiving",
        number(&cpu["sender"]),
        number(&cpu["receiver"])
    );
    println!("round trip   {}, of {SMALL} bytes", us(&result["round_trip_us"]));
    match result["round_trip_ratio"].as_f64() {
        Some(ratio) => {
            println!("plain TCP    {}: ratio {ratio:.2}", us(&result["tcp_round_trip_us"]));
        }
        None => println!("plain TCP    not compared: the listening address is not the kernel's"),
    }
    for (side, counters) in result["statistics"].as_object().into_iter().flatten() {
        let counters = counters.as_object().into_iter().flatten();
        let line: Vec<String> = counters.map(|(name, value)| format!("{name} {value}")).collect();
        println!("{side:<12} {}", line.join(", "));
    }
}
