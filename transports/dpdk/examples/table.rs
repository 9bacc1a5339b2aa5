//! Measures the throughput table of docs/dpdk.md: each path beside kernel TCP, in turns, best of
//! the rounds. Needs root (network namespaces) and iproute2.
//!
//! ```text
//! cargo build --release --examples && cargo run --release --example table [SECONDS [ROUNDS]]
//! ... --example table zero-copy [SECONDS [ROUNDS]]     the rows with and without copies only
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Bytes of one message, and of one write to TCP.
const MESSAGE_BYTES: usize = 1 << 20;

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("tcp-listen") => return tcp_listen(),
        Some("tcp-connect") => return tcp_connect(&words[1], words[2].parse().unwrap()),
        _ => {}
    }
    let only_zero_copy = words.first().is_some_and(|word| word == "zero-copy");
    words.drain(..usize::from(only_zero_copy));
    let seconds: f64 = words.first().map_or(3.0, |word| word.parse().expect("seconds"));
    let rounds: usize = words.get(1).map_or(3, |word| word.parse().expect("a number of rounds"));
    zero_copy(seconds, rounds);
    if only_zero_copy {
        return;
    }
    println!("| path | MTU | protection | goodput | CPU s/GB, both ends | beside it: kernel TCP |");
    println!("|---|---|---|---|---|---|");
    for (name, mtu, secret) in [
        ("af_packet over veth", 1500, false),
        ("af_packet over veth", 1500, true),
        ("af_packet over veth", 9000, false),
        ("af_packet over veth", 9000, true),
        ("vhost <-> virtio_user", 1500, false),
        ("vhost <-> virtio_user", 1500, true),
        ("vhost <-> virtio_user", 9000, false),
        ("vhost <-> virtio_user", 9000, true),
    ] {
        let wire = Namespaces::new(mtu);
        let (mut best, mut tcp_best) = ((0.0, 0.0), (0.0, 0.0));
        for _ in 0..rounds {
            let ours = if name.starts_with("af_packet") {
                stream(&wire.af_packet(), mtu, secret, seconds)
            } else {
                stream(&vhost(), mtu, secret, seconds)
            };
            let tcp = wire.tcp(seconds);
            best = if ours.0 > best.0 { ours } else { best };
            tcp_best = if tcp.0 > tcp_best.0 { tcp } else { tcp_best };
        }
        let protection = if secret { "AES-128-GCM" } else { "CRC (trusted)" };
        println!(
            "| {name} | {mtu} | {protection} | {:.2} Gb/s | {:.2} | {:.2} Gb/s, {:.2} s/GB |",
            best.0, best.1, tcp_best.0, tcp_best.1
        );
    }
}

/// The same path with and without copies, in turns: each way's median, and the median of the ratios
/// of neighbours. vhost's end sends (virtio_user cannot do without copies).
fn zero_copy(seconds: f64, rounds: usize) {
    println!(
        "| vhost sends, MTU | checksum | copied | from where it lies | ratio of goodput | of CPU |"
    );
    println!("|---|---|---|---|---|---|");
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    for (mtu, checksum) in [(1500, "off"), (9000, "off"), (1500, "auto"), (9000, "auto")] {
        let mut found = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            // Each is the first as often as the other.
            for on in [round % 2 == 0, round % 2 == 1] {
                let mut ends = vhost();
                let zero_copy = format!("zero_copy={}", if on { "yes" } else { "no" });
                ends[0].1.push(zero_copy);
                ends.iter_mut().for_each(|end| end.1.push(format!("checksum={checksum}")));
                found[usize::from(on)].push(stream_from(&ends, 0, mtu, false, seconds));
            }
        }
        let [off, on] = &found;
        let of = |way: &[(f64, f64)], what: fn(&(f64, f64)) -> f64| {
            median(way.iter().map(what).collect())
        };
        let ratio = |what: fn(&(f64, f64)) -> f64| {
            median(on.iter().zip(off).map(|(on, off)| what(on) / what(off)).collect())
        };
        println!(
            "| {mtu} | {checksum} | {:.2} Gb/s, {:.2} s/GB | {:.2} Gb/s, {:.2} s/GB | {:.2} | {:.2} |",
            of(off, |it| it.0),
            of(off, |it| it.1),
            of(on, |it| it.0),
            of(on, |it| it.1),
            ratio(|it| it.0),
            ratio(|it| it.1),
        );
    }
    println!();
}

/// The commands of two ends, up to the role.
type Ends = [(Vec<String>, Vec<String>); 2];

fn vhost() -> Ends {
    let socket = std::env::temp_dir().join(format!("genie-dpdk-{}.sock", std::process::id()));
    let end = |device: String, ip: &str| {
        (Vec::new(), vec![format!("device={device}"), format!("ip={ip}/24")])
    };
    [
        end(format!("net_vhost0,iface={}", socket.display()), "10.78.0.1"),
        end(format!("net_virtio_user0,path={},queue_size=1024", socket.display()), "10.78.0.2"),
    ]
}

/// Goodput in Gb/s, and CPU seconds of both processes for each GB.
fn stream(ends: &Ends, mtu: u16, secret: bool, seconds: f64) -> (f64, f64) {
    stream_from(ends, 1, mtu, secret, seconds)
}

/// The same, sent by the end of that number; end 0 listens.
fn stream_from(ends: &Ends, from: usize, mtu: u16, secret: bool, seconds: f64) -> (f64, f64) {
    let peer = std::env::current_exe().unwrap().parent().unwrap().join("peer");
    let command = |end: usize, role: &str, more: &str| {
        let (prefix, settings) = &ends[end];
        let mut words = prefix.clone();
        words.extend([peer.display().to_string(), role.to_owned()]);
        let quiet = "eal=--log-level=*:critical".to_owned();
        for setting in settings.iter().cloned().chain([format!("mtu={mtu}"), quiet]) {
            words.extend(["--set".to_owned(), setting]);
        }
        let secret = if secret { " --secret 5eed" } else { "" };
        words.extend(format!("{more}{secret}").split_whitespace().map(str::to_owned));
        words
    };
    let mut of_stream = format!("--stream {seconds} --bytes {MESSAGE_BYTES} --depth 16");
    if from == 0 {
        of_stream.push_str(" --reverse yes");
    }
    let mut listening = Running::start(&command(0, "listen", &of_stream));
    let address = listening.line("listening");
    let connecting =
        Running::start(&command(1, "connect", &format!("--address {address} {of_stream}")));
    let mut results = [listening, connecting].map(Running::result);
    results.swap(0, from);
    let [sent, received] = results;
    let gigabytes = sent["payload_bytes"].as_f64().unwrap() / 1e9;
    let cpu = sent["cpu_s"].as_f64().unwrap() + received["cpu_s"].as_f64().unwrap();
    (sent["goodput_gbps"].as_f64().unwrap(), cpu / gigabytes)
}

struct Running(Child);

impl Running {
    fn start(words: &[String]) -> Running {
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo build --release --examples comes first");
        Running(child)
    }

    fn line(&mut self, word: &str) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().strip_prefix(word).expect("the peer starts well").trim().to_owned()
    }

    fn result(mut self) -> Value {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success(), "a peer failed: {text}");
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a result")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two namespaces with a veth pair; the kernel's addresses are of another network than ours.
struct Namespaces([String; 2]);

impl Namespaces {
    fn new(mtu: u16) -> Self {
        let name = |end| format!("genie-dpdk-{}-{end}", std::process::id());
        let made = Namespaces([name("a"), name("b")]);
        let [a, b] = &made.0;
        run(&format!("ip netns add {a}"));
        run(&format!("ip netns add {b}"));
        run(&format!("ip -n {a} link add wire type veth peer name wire netns {b}"));
        for (name, last) in [(a, 1), (b, 2)] {
            run(&format!("ip -n {name} addr add 10.80.0.{last}/24 dev wire"));
            run(&format!("ip -n {name} link set wire mtu {mtu} up"));
        }
        made
    }

    fn af_packet(&self) -> Ends {
        let end = |number: usize| {
            let prefix = format!("ip netns exec {}", self.0[number]);
            let prefix = prefix.split_whitespace().map(str::to_owned).collect();
            let device = "device=net_af_packet0,iface=wire".to_owned();
            (prefix, vec![device, format!("ip=10.79.0.{}/24", number + 1)])
        };
        [end(0), end(1)]
    }

    fn tcp(&self, seconds: f64) -> (f64, f64) {
        let own = std::env::current_exe().unwrap().display().to_string();
        let command = |end: usize, role: &str| {
            let words = format!("ip netns exec {} {own} {role}", self.0[end]);
            words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut listening = Running::start(&command(0, "tcp-listen"));
        let port = listening.line("listening");
        let role = format!("tcp-connect 10.80.0.1:{port} {seconds}");
        let sent = Running::start(&command(1, &role)).result();
        let received = listening.result();
        let gigabytes = sent["bytes"].as_f64().unwrap() / 1e9;
        let cpu = sent["cpu_s"].as_f64().unwrap() + received["cpu_s"].as_f64().unwrap();
        let goodput =
            received["bytes"].as_f64().unwrap() * 8e-9 / sent["seconds"].as_f64().unwrap();
        (goodput, cpu / gigabytes)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let done = Command::new(words[0]).args(&words[1..]).status().expect("iproute2 is installed");
    assert!(done.success(), "{command} (are you root?)");
}

fn tcp_listen() {
    let listener = TcpListener::bind("10.80.0.1:0").unwrap();
    println!("listening {}", listener.local_addr().unwrap().port());
    std::io::stdout().flush().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; MESSAGE_BYTES];
    let (mut bytes, cpu) = (0u64, cpu_seconds());
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            count => bytes += count as u64,
        }
    }
    stream.write_all(b"!").unwrap();
    println!("{}", serde_json::json!({"bytes": bytes, "cpu_s": cpu_seconds() - cpu}));
}

fn tcp_connect(address: &str, seconds: f64) {
    let mut stream = TcpStream::connect(address).unwrap();
    let message = vec![7; MESSAGE_BYTES];
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let mut bytes = 0u64;
    while started.elapsed() < Duration::from_secs_f64(seconds) {
        stream.write_all(&message).unwrap();
        bytes += message.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The peer has everything once it answers.
    stream.read_exact(&mut [0]).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let found =
        serde_json::json!({"bytes": bytes, "seconds": seconds, "cpu_s": cpu_seconds() - cpu});
    println!("{found}");
}

fn cpu_seconds() -> f64 {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9
}
