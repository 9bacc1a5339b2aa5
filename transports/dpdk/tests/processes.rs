//! Two processes exchange tensors: over vhost and virtio_user, and over af_packet between two
//! network namespaces.
//!
//! The namespaces need root. Without it those tests tell `make test` that they were skipped, unless
//! `GENIE_DPDK_ROOT=1` (as `make test-dpdk` sets for root) demands that they run.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Bound of everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The example `peer`, which cargo builds beside the tests.
fn peer() -> PathBuf {
    target().join("examples/peer")
}

fn target() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST").to_owned()
}

/// A directory with the plugin, as the loader wants it: nobody else can write there.
fn plugins() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let built = target().join("libgenie_dpdk.so");
    // Cargo puts a library that only tests need beside them.
    let built = if built.exists() { built } else { target().join("deps/libgenie_dpdk.so") };
    std::fs::copy(&built, directory.path().join("libgenie_dpdk.so")).expect("the plugin was built");
    directory
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &[String]) -> Running {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        Running(child)
    }

    /// The rest of a line that starts with `word`.
    fn line(&mut self, word: &str) -> String {
        let mut out = BufReader::new(self.0.stdout.as_mut().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        match line.trim().strip_prefix(word) {
            Some(rest) => rest.trim().to_owned(),
            None => {
                let mut errors = String::new();
                let _ = self.0.kill();
                self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("{line:?} instead of {word:?}; it said: {errors}");
            }
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().expect("piped"), "{line}").unwrap();
    }

    fn status(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the peer ends in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) -> Output {
        let status = self.status();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a peer found; it must have ended well.
fn found(output: &Output) -> serde_json::Value {
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {text}{errors}", output.status);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|_| panic!("no result: {text}{errors}"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// One end's command: inside a namespace or not.
fn command(namespace: Option<&str>, role: &str, settings: &[String], more: &str) -> Vec<String> {
    let mut command = match namespace {
        Some(name) => words(&format!("ip netns exec {name}")),
        None => Vec::new(),
    };
    command.push(peer().display().to_string());
    command.push(role.to_owned());
    for setting in settings {
        command.extend(["--set".to_owned(), setting.clone()]);
    }
    command.extend(words(more));
    // What drivers say when their peer leaves first is not what these tests are about.
    command.extend(words("--set eal=--log-level=*:critical"));
    command
}

/// Two ends of a wire.
trait Wire {
    fn end(&self, number: usize) -> (Option<String>, Vec<String>);
}

/// Runs both ends to their end; the connecting one's and the listening one's results.
fn talk(
    wire: &dyn Wire,
    more: &str,
    listener: &str,
    connector: &str,
) -> (serde_json::Value, serde_json::Value) {
    let (namespace, settings) = wire.end(0);
    let words = command(namespace.as_deref(), "listen", &settings, &format!("{more} {listener}"));
    let mut listening = Running::start(&words);
    let address = listening.line("listening");
    let (namespace, settings) = wire.end(1);
    let more = format!("{more} --address {address} {connector}");
    let connecting = Running::start(&command(namespace.as_deref(), "connect", &settings, &more));
    let asked = connecting.end();
    let asked = if asked.status.success() {
        found(&asked)
    } else {
        let _ = listening.0.kill();
        let listener = listening.end();
        panic!(
            "{}\nlistener: {}",
            String::from_utf8_lossy(&asked.stderr),
            String::from_utf8_lossy(&listener.stderr)
        );
    };
    (asked, found(&listening.end()))
}

/// vhost makes the socket, virtio_user connects to it.
struct Vhost {
    directory: TempDir,
    mtu: u16,
}

impl Vhost {
    fn new(mtu: u16) -> Self {
        Vhost { directory: tempfile::tempdir().unwrap(), mtu }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("vhost.sock")
    }
}

impl Wire for Vhost {
    fn end(&self, number: usize) -> (Option<String>, Vec<String>) {
        let socket = self.socket();
        let device = match number {
            0 => format!("net_vhost0,iface={}", socket.display()),
            _ => format!("net_virtio_user0,path={},queue_size=1024", socket.display()),
        };
        let ip = format!("ip=10.78.0.{}/24", number + 1);
        (None, vec![format!("device={device}"), ip, format!("mtu={}", self.mtu)])
    }
}

/// Two namespaces with a veth pair between them; removed at the end.
struct Namespaces {
    names: [String; 2],
    mtu: u16,
}

impl Namespaces {
    /// `None` where that is not permitted and not demanded.
    fn new(mtu: u16) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("genie-dpdk-{}-{number}-{end}", std::process::id());
        let names = [name("a"), name("b")];
        let made = Command::new("ip").args(["netns", "add", &names[0]]).output();
        let failure = match made {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(format!("ip (iproute2) is not there: {error}")),
        };
        if let Some(failure) = failure {
            let demanded = std::env::var_os("GENIE_DPDK_ROOT").is_some();
            assert!(!demanded, "no network namespaces: {failure}");
            skipped(&format!("network namespaces are not permitted here: {failure}"));
            return None;
        }
        let made = Namespaces { names, mtu };
        let [a, b] = &made.names;
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add wire type veth peer name wire netns {b}"));
        for name in [a, b] {
            // No IPv6 chatter, and no address: the transport owns the link.
            run(&format!("ip netns exec {name} sysctl -qw net.ipv6.conf.wire.disable_ipv6=1"));
            ip(&format!("-n {name} link set wire mtu {mtu} up"));
        }
        Some(made)
    }
}

/// Tells `make test`, whose last line names what was skipped and why.
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
    let Some(outcomes) = std::env::var_os("GENIE_OUTCOMES") else { return };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let file = PathBuf::from(outcomes).join(format!("dpdk-{test}-skipped"));
    std::fs::write(file, format!("skipped transports/dpdk::{test}\t{why}\n")).unwrap();
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Wire for Namespaces {
    fn end(&self, number: usize) -> (Option<String>, Vec<String>) {
        let device = "device=net_af_packet0,iface=wire".to_owned();
        let ip = format!("ip=10.79.0.{}/24", number + 1);
        (Some(self.names[number].clone()), vec![device, ip, format!("mtu={}", self.mtu)])
    }
}

fn ip(arguments: &str) {
    run(&format!("ip {arguments}"));
}

fn run(command: &str) -> String {
    let words = words(command);
    let output = Command::new(&words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn tensors_cross_vhost_and_virtio_user_through_the_loaded_plugin() {
    let plugins = plugins();
    let more = format!("--exchange 21 --secret 5eed --plugins {}", plugins.path().display());
    let (asked, answered) = talk(&Vhost::new(1500), &more, "", "");
    assert_eq!((&asked["exchanged"], &answered["exchanged"]), (&21.0.into(), &21.0.into()));
    assert_eq!(asked["datagram_bytes"], 1472.0);
}

#[test]
fn tensors_cross_vhost_and_virtio_user_in_jumbo_frames() {
    let (asked, _) = talk(&Vhost::new(9000), "--exchange 21", "", "");
    assert_eq!((&asked["exchanged"], &asked["datagram_bytes"]), (&21.0.into(), &8972.0.into()));
}

#[test]
fn tensors_cross_af_packet_between_namespaces() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let (asked, answered) = talk(&wire, "--exchange 21 --secret 5eed", "", "");
    assert_eq!((&asked["exchanged"], &answered["exchanged"]), (&21.0.into(), &21.0.into()));
    assert_eq!(asked["datagram_bytes"], 1472.0);
}

#[test]
fn tensors_cross_af_packet_in_jumbo_frames() {
    let Some(wire) = Namespaces::new(9000) else { return };
    let (asked, _) = talk(&wire, "--exchange 21", "", "");
    assert_eq!((&asked["exchanged"], &asked["datagram_bytes"]), (&21.0.into(), &8972.0.into()));
}

/// vhost takes attached memory and copies it into the peer's; virtio_user's peer sees only EAL's
/// memory, so that end copies by itself.
#[test]
fn tensors_cross_vhost_from_where_they_lie() {
    let (asked, answered) = talk(&Vhost::new(9000), "--exchange 21", "--set zero_copy=yes", "");
    assert_eq!((&asked["exchanged"], &answered["exchanged"]), (&21.0.into(), &21.0.into()));
    let count = |end: &serde_json::Value, name: &str| end[name].as_f64().unwrap();
    assert!(count(&answered, "zero_copy_packets") > 1000.0, "{answered}");
    assert_eq!(count(&answered, "attached_now"), 0.0, "{answered}");
    assert_eq!(count(&asked, "zero_copy_packets"), 0.0, "{asked}");
    assert!(count(&asked, "copied_packets") > 1000.0, "{asked}");
}

#[test]
fn tensors_cross_af_packet_from_where_they_lie() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let (asked, answered) = talk(&wire, "--exchange 21 --set zero_copy=yes", "", "");
    assert_eq!((&asked["exchanged"], &answered["exchanged"]), (&21.0.into(), &21.0.into()));
    for end in [&asked, &answered] {
        assert!(end["zero_copy_packets"].as_f64().unwrap() > 1000.0, "{end}");
        assert_eq!(end["attached_now"], 0.0, "{end}");
    }
}

#[test]
fn a_device_that_cannot_is_refused_where_no_copy_is_demanded() {
    let wire = Vhost::new(1500);
    let (_, settings) = wire.end(0);
    let mut listening = Running::start(&command(None, "listen", &settings, "--exchange 1"));
    let address = listening.line("listening");
    let (_, settings) = wire.end(1);
    let more = format!("--address {address} --exchange 1 --set zero_copy=yes");
    let output = Running::start(&command(None, "connect", &settings, &more)).end();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("zero_copy"), "{errors}");
}

#[test]
fn several_flows_use_several_source_ports() {
    let Some(wire) = Namespaces::new(1500) else { return };
    // One rule for each of the first ports that the connecting end takes, counted where they arrive
    // (the kernel sees copies of what af_packet receives).
    let a = &wire.names[0];
    let ports = [65_535, 65_534, 65_533];
    nft(a, "add table ip t");
    nft(a, "add chain ip t c { type filter hook prerouting priority raw ; }");
    for port in ports {
        nft(a, &format!("add rule ip t c udp sport {port} counter"));
    }
    let (asked, _) = talk(&wire, "--exchange 21 --set flows=3", "", "");
    assert_eq!(asked["exchanged"], 21.0);
    let counted = nft(a, "list table ip t");
    for port in ports {
        let rule = counted.lines().find(|line| line.contains(&port.to_string())).unwrap();
        assert!(!rule.contains("packets 0 "), "no packet came from port {port}: {counted}");
    }
}

fn nft(namespace: &str, command: &str) -> String {
    let words = ["netns", "exec", namespace, "nft", command];
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_interface_with_a_smaller_mtu_is_named() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let (namespace, mut settings) = wire.end(0);
    settings.retain(|setting| !setting.starts_with("mtu="));
    settings.push("mtu=9000".to_owned());
    let words = command(namespace.as_deref(), "probe", &settings, "");
    let output = Running::start(&words).end();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("ip link set wire mtu 9000"), "{errors}");
}

/// The example that is to be run on hardware, on the device that has a wire without one.
#[test]
fn attached_memory_is_read_by_the_device_and_given_back() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let command = |end: usize, role: &str, more: &str| {
        let (namespace, settings) = wire.end(end);
        let mut words = command(namespace.as_deref(), role, &settings, more);
        let program = words.iter_mut().find(|word| **word == peer().display().to_string());
        *program.unwrap() = target().join("examples/attached").display().to_string();
        words
    };
    let mut receiving = Running::start(&command(0, "receive", "--count 500"));
    let mac = receiving.line("ready");
    let more = format!("--count 500 --to 10.79.0.1 --set peer_mac={mac}");
    let sent = Running::start(&command(1, "send", &more)).end();
    let said = String::from_utf8_lossy(&sent.stdout).into_owned();
    assert!(sent.status.success(), "{said}{}", String::from_utf8_lossy(&sent.stderr));
    assert!(said.contains("500 sent") && said.contains(" 0 references kept"), "{said}");
    let received = receiving.end();
    let said = String::from_utf8_lossy(&received.stdout);
    assert!(received.status.success() && said.contains("0 damaged"), "{said}");
}

#[test]
fn shaping_holds_for_af_packet() {
    const RATE_MBIT: f64 = 200.0;
    let Some(wire) = Namespaces::new(1500) else { return };
    let b = &wire.names[1];
    run(&format!(
        "ip netns exec {b} tc qdisc add dev wire root tbf rate {RATE_MBIT}mbit burst 64kb limit 256kb"
    ));
    let (asked, _) = talk(&wire, "", "", "--stream 1.5 --bytes 262144");
    let goodput = asked["goodput_gbps"].as_f64().unwrap() * 1000.0;
    assert!(goodput < RATE_MBIT, "{goodput} Mb/s passed a link of {RATE_MBIT} Mb/s");
    let counted = run(&format!("ip netns exec {b} tc -s qdisc show dev wire"));
    let sent: f64 = counted
        .split_whitespace()
        .skip_while(|word| *word != "Sent")
        .nth(1)
        .and_then(|bytes| bytes.parse().ok())
        .expect("tc counts bytes");
    let payload = asked["payload_bytes"].as_f64().unwrap();
    assert!(sent >= payload, "{sent} of {payload} bytes went through the queueing discipline");
}

#[test]
fn the_thread_sleeps_when_nothing_happens() {
    let (asked, _) = talk(&Vhost::new(1500), "", "", "--stream 0.2 --idle 2");
    let share = asked["idle_cpu_share"].as_f64().unwrap();
    // Of one core, all threads of the process together, ten times what a quiet machine shows.
    assert!(share < 0.25, "an idle connection used {:.1} % of a core", share * 100.0);
    assert!(share > 0.0, "the thread looks for packets now and then");
}

#[test]
fn a_device_that_interrupts_lets_the_thread_sleep_for_long() {
    let more = "--set interrupts=yes --exchange 21";
    let (asked, _) = talk(&Vhost::new(1500), more, "", "--idle 2");
    assert_eq!(asked["exchanged"], 21.0);
    let sleeps = asked["idle_sleeps_per_second"].as_f64().unwrap();
    assert!(sleeps < 200.0, "{sleeps} sleeps a second: it does not wait for interrupts");
    assert!(
        asked["thread_interrupts"].as_f64().unwrap() > 0.0,
        "interrupts do not wake the thread"
    );
}

#[test]
fn a_socket_that_a_killed_process_left_is_no_obstacle() {
    let wire = Vhost::new(1500);
    let (_, settings) = wire.end(0);
    let mut killed = Running::start(&command(None, "listen", &settings, "--exchange 1"));
    killed.line("listening");
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    assert!(wire.socket().exists(), "what the test is about");
    let (asked, _) = talk(&wire, "--exchange 3", "", "");
    assert_eq!(asked["exchanged"], 3.0);
    assert!(!wire.socket().exists(), "an orderly end leaves nothing");
}

#[test]
fn nobody_at_an_address_is_told_with_the_reason() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let (namespace, settings) = wire.end(1);
    let more = "--address 10.79.0.77:4000 --connect-ms 300";
    let words = command(namespace.as_deref(), "connect", &settings, more);
    let output = Running::start(&words).end();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("10.79.0.77:4000 within 300 ms") && errors.contains("ARP"), "{errors}");
}

/// Starts both ends of a stream that would go on for long.
fn streaming(wire: &dyn Wire, deadline_ms: u32) -> [Running; 2] {
    let more = format!("--deadline-ms {deadline_ms}");
    let (namespace, settings) = wire.end(0);
    let words = command(namespace.as_deref(), "listen", &settings, &more);
    let mut listening = Running::start(&words);
    let address = listening.line("listening");
    let (namespace, settings) = wire.end(1);
    let more = format!("{more} --address {address} --stream 30");
    let mut connecting =
        Running::start(&command(namespace.as_deref(), "connect", &settings, &more));
    connecting.line("streaming");
    [listening, connecting]
}

#[test]
fn a_killed_peer_is_told_and_takes_nobody_with_it() {
    for killed in [0, 1] {
        let wire = Vhost::new(1500);
        let mut ends = streaming(&wire, 2000);
        ends[killed].0.kill().unwrap();
        let [listening, connecting] = ends;
        let left = if killed == 0 { connecting } else { listening };
        let output = left.end();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "an error, not a crash: {errors}");
        assert!(errors.contains("nothing heard from the peer"), "{errors}");
    }
}

#[test]
fn a_link_that_comes_back_goes_on() {
    let Some(wire) = Namespaces::new(1500) else { return };
    let name = &wire.names[1];
    let (namespace, settings) = wire.end(0);
    let mut listening = Running::start(&command(namespace.as_deref(), "listen", &settings, ""));
    let address = listening.line("listening");
    let (namespace, settings) = wire.end(1);
    let more = format!("--address {address} --stream told");
    let mut connecting =
        Running::start(&command(namespace.as_deref(), "connect", &settings, &more));
    connecting.line("streaming");
    ip(&format!("-n {name} link set wire down"));
    connecting.tell("watch");
    connecting.line("trouble");
    ip(&format!("-n {name} link set wire up"));
    // What was on its way when the link was cut, and one message after it.
    connecting.tell("go on");
    connecting.line("goes on");
    connecting.tell("end");
    let sent = found(&connecting.end());
    let received = found(&listening.end());
    assert_eq!(sent["payload_bytes"], received["payload_bytes"], "all of it arrived");
}

#[test]
fn a_wrong_secret_gets_no_connection() {
    let wire = Vhost::new(1500);
    let (_, settings) = wire.end(0);
    let words = command(None, "listen", &settings, "--exchange 1 --secret ours");
    let mut listening = Running::start(&words);
    let address = listening.line("listening");
    let (_, settings) = wire.end(1);
    let more = format!("--address {address} --exchange 1 --secret theirs --connect-ms 5000");
    let output = Running::start(&command(None, "connect", &settings, &more)).end();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("secret"), "{errors}");
}

fn probe(settings: &[&str]) -> (bool, String) {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let output = Running::start(&command(None, "probe", &settings, "")).end();
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    (output.status.success(), String::from_utf8_lossy(text).trim().to_owned())
}

#[test]
fn a_probe_says_in_one_line_what_is_there_or_missing() {
    let (good, said) = probe(&["device=net_ring", "ip=10.0.0.1/24"]);
    assert!(good, "{said}");
    for part in ["DPDK 2", "no hugepages", "net_ring", "MTU 1500", "no GPU"] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    for (settings, part) in [
        (&[][..], "the setting device is missing"),
        (&["device=net_ring"][..], "the setting ip is missing"),
        (&["device=net_af_packet0,iface=no-such-if", "ip=10.0.0.1/24"][..], "no-such-if"),
        (&["device=net_nonsense0", "ip=10.0.0.1/24"][..], "net_nonsense0"),
        (&["device=0000:7f:1f.7", "ip=10.0.0.1/24"][..], "vfio-pci"),
        (&["device=net_ring", "ip=10.0.0.1/24", "eal=--no-such-flag"][..], "--no-such-flag"),
    ] {
        // (Without the log level that `command` adds in the setting eal.)
        let mut line = vec![peer().display().to_string(), "probe".to_owned()];
        for setting in settings {
            line.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        let output = Running::start(&line).end();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{settings:?} is refused");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.contains(part), "{part} is missing in: {errors}");
    }
}
