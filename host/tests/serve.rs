//! The host as a process, with a node that only keeps bytes.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use common::{Host, ended, eventually, fake_node, host_binary, run, watch};
use genie_transport::{Link, SharedMemory};
use genie_wire::control::Hello;
use genie_wire::frame::FrameKind;
use genie_wire::record::{RegionSpan, StorageId};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn bytes_go_to_the_node_and_back_inline_and_through_shared_memory() {
    let host = Host::start();
    let mut client = host.client();
    assert!(client.welcome.software.contains("genie-host"), "{:?}", client.welcome);
    let x = client.tape.alloc(4);
    client.tape.upload_inline(x, 0, b"abcd");
    client.tape.read(1, x, 1, 2, None);
    client.flush();
    assert_eq!(client.reply().unwrap(), b"bc");
    let memory = SharedMemory::create(1 << 20).unwrap();
    client.region(0, &memory);
    memory.write(100, b"efgh").unwrap();
    client.tape.upload(x, 0, 4, RegionSpan { region: 0, offset: 100 });
    client.tape.read(2, x, 0, 4, Some(RegionSpan { region: 0, offset: 500 }));
    client.flush();
    client.wait(FrameKind::Released).unwrap();
    client.reply().unwrap();
    let mut back = [0; 4];
    memory.read(500, &mut back).unwrap();
    assert_eq!(&back, b"efgh");
}

#[test]
fn the_socket_is_private_and_goes_with_the_host() {
    let mut host = Host::start();
    let metadata = std::fs::metadata(&host.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let dir = host.socket.parent().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    let node = watch(host.client().welcome.node_pid).unwrap();
    host.signal(Signal::TERM);
    assert!(host.wait().success());
    assert!(ended(&node), "the node ends with its host");
    assert!(!dir.exists(), "no socket is left behind");
}

#[test]
fn sessions_are_isolated_and_a_malformed_one_ends_alone() {
    let host = Host::start();
    let (mut one, mut other, mut spoilt) = (host.client(), host.client(), host.client());
    let secret = one.tape.alloc(4);
    one.tape.upload_inline(secret, 0, b"mine");
    one.flush();
    other.tape.skip(10);
    other.tape.read(1, secret, 0, 4, None);
    other.flush();
    assert!(other.reply().unwrap_err().contains("not alive"));
    spoilt.send(FrameKind::Tape, &[0xff; 40]);
    assert!(spoilt.reply().unwrap_err().contains("malformed"));
    assert!(spoilt.next().is_err(), "its connection ends");
    let mut raw = host.stranger();
    raw.send(FrameKind::Tape, b"");
    assert!(raw.reply().unwrap_err().contains("before the hello"));
    let mut huge = std::os::unix::net::UnixStream::connect(&host.socket).unwrap();
    std::io::Write::write_all(&mut huge, &[0xff; 16]).unwrap();
    let mut end = Vec::new();
    let _ = std::io::Read::read_to_end(&mut huge, &mut end);
    one.tape.read(1, secret, 0, 4, None);
    one.flush();
    assert_eq!(one.reply().unwrap(), b"mine");
}

#[test]
fn a_killed_node_is_told_at_once_and_a_new_session_gets_a_new_one() {
    let host = Host::start();
    let (mut waiting, mut idle) = (host.client(), host.client());
    let node = waiting.welcome.node_pid;
    let x = waiting.tape.alloc(4);
    waiting.tape.upload_inline(x, 0, b"abcd");
    waiting.tape.fence(1);
    waiting.flush();
    waiting.reply().unwrap();
    let start = std::time::Instant::now();
    kill(node);
    waiting.tape.read(2, x, 0, 4, None);
    waiting.flush();
    let error = waiting.reply().unwrap_err();
    assert!(error.contains("NodeLost") && error.contains("signal 9"), "{error}");
    idle.tape.fence(1);
    idle.flush();
    assert!(idle.reply().unwrap_err().contains("NodeLost"));
    assert!(start.elapsed() < common::AT_ONCE);
    let mut again = host.client();
    assert_ne!(again.welcome.node_pid, node);
    again.tape.fence(1);
    again.flush();
    again.reply().unwrap();
    waiting.tape.fence(9);
    waiting.flush();
    assert!(waiting.reply().unwrap_err().contains("NodeLost"), "the old session stays lost");
}

#[test]
fn a_session_is_freed_when_its_client_goes() {
    let host = Host::start();
    let mut watcher = host.client();
    assert_eq!(watcher.counter("host.sessions"), 1);
    let mut client = host.client();
    client.tape.alloc(100);
    client.tape.fence(1);
    client.flush();
    client.reply().unwrap();
    assert_eq!(watcher.counter("host.sessions"), 2);
    drop(client);
    eventually("the session's end", || watcher.counter("host.sessions") == 1);
    assert_eq!(watcher.counter("host.sessions_total"), 2);
}

#[test]
fn a_weight_is_uploaded_once_for_all_clients() {
    let host = Host::start();
    let mut one = host.client();
    let hash = [7; 32];
    let x = one.tape.alloc(4);
    assert!(!one.have(x, 4, hash));
    one.tape.upload_inline(x, 0, b"wght");
    one.tape.store_weight(x, &hash);
    let same = one.tape.alloc(4);
    assert!(one.have(same, 4, hash), "the node answers in order");
    drop(one);
    let mut other = host.client();
    let y = other.tape.alloc(4);
    assert!(other.have(y, 4, hash));
    other.tape.read(1, y, 0, 4, None);
    other.flush();
    assert_eq!(other.reply().unwrap(), b"wght");
    assert_eq!(other.counter("host.session.upload_bytes"), 0);
}

#[test]
fn the_node_is_told_how_much_it_may_keep() {
    let dir = tempfile::tempdir().unwrap();
    let (told, script) = (dir.path().join("told"), dir.path().join("node"));
    let text = format!("#!/bin/sh\necho \"$@\" > {}\nexit 1\n", told.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(host_binary());
    command.arg("--node-binary").arg(&script).args(["--weight-cache-bytes", "10"]);
    let (status, ..) = run(&mut command);
    assert!(!status.success(), "this node does not serve");
    let told = std::fs::read_to_string(&told).unwrap();
    assert!(told.contains("--weight-cache-bytes 10"), "{told}");
}

#[test]
fn many_sessions_stream_at_once() {
    let host = Host::start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = host.client();
                let x = client.tape.alloc(32 << 10);
                client.flush();
                let reads = 500;
                for token in 0..reads {
                    client.tape.upload_inline(x, 0, &[token as u8; 32 << 10]);
                    client.tape.read(token, x, 0, 32 << 10, None);
                    client.flush();
                }
                for token in 0..reads {
                    assert_eq!(client.reply().unwrap()[0], token as u8);
                }
            });
        }
    });
}

#[test]
fn sessions_are_capped_with_a_clear_refusal() {
    let host = Host::start_with(&fake_node(), &["--max-sessions", "2"], &[]);
    let (mut one, _other) = (host.client(), host.client());
    let mut third = host.stranger();
    third.send(FrameKind::Hello, &Hello::default().encode_to_vec());
    let error = third.reply().unwrap_err();
    assert!(error.contains("--max-sessions"), "{error}");
    // Whoever looks after a full host is told how it is.
    let address = format!("unix:{}", host.socket.display());
    let (status, out, err) = run(Command::new(host_binary()).args(["status", "--host", &address]));
    assert!(status.success() && out.contains("host.sessions "), "{out}{err}");
    assert!(err.contains("the node was not asked") && err.contains("--max-sessions"), "{err}");
    // Those who say nothing are few; whoever was heard above has left.
    drop(third);
    eventually("two sessions are left", || one.counter("host.sessions") == 2);
    let mut silent: Vec<_> = (0..17).map(|_| host.stranger()).collect();
    let error = silent.last_mut().unwrap().reply().unwrap_err();
    assert!(error.contains("--max-sessions"), "{error}");
}

#[test]
fn a_policy_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(host_binary());
    command.args(["serve", "--policy", "balancd", "--plugins"]).arg(dir.path());
    command.arg("--node-binary").arg(fake_node()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut lines = stderr.lines().map_while(Result::ok);
    let said = lines.find(|line| line.contains("no policy `balancd`"));
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    child.wait().unwrap();
    assert!(said.is_some_and(|line| line.contains("--policy") && line.contains("there are: none")));
}

/// A host that says `ready` has a node: what keeps it from one is told instead, to whoever waits.
#[test]
fn a_host_without_a_node_is_not_ready_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let lonely = dir.path().join("genie-host");
    std::fs::copy(host_binary(), &lonely).unwrap();
    let mut command = Command::new(lonely);
    command.env("PATH", "/nowhere").env_remove("GENIE_NODE_BINARY");
    let (status, out, err) = run(&mut command);
    assert!(!status.success() && !out.contains("ready"), "{out}");
    assert!(err.contains("/nowhere") && err.contains("GENIE_NODE_BINARY"), "{err}");

    let mut broken = Command::new(host_binary());
    broken.arg("--node-binary").arg(fake_node()).env("FAKE_NODE", "broken");
    let (status, out, err) = run(&mut broken);
    assert!(!status.success() && out.is_empty(), "{out}");
    assert!(err.contains("libtorch_fake.so") && err.contains("127"), "{err}");

    // A program reads the reason where it waits for `ready`.
    broken.args(["--parent-pid", &std::process::id().to_string()]);
    let (_, out, _) = run(&mut broken);
    assert!(out.starts_with("failed ") && out.contains("libtorch_fake.so"), "{out}");
}

#[test]
fn the_host_ends_with_its_parent_and_takes_the_node_along() {
    let mut parent = Command::new("sleep").arg("3600").spawn().unwrap();
    let pid = parent.id().to_string();
    let mut host = Host::start_with(&fake_node(), &["--parent-pid", &pid], &[]);
    let dir = host.socket.parent().unwrap().to_owned();
    let node = watch(host.client().welcome.node_pid).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(host.wait().success());
    assert!(ended(&node));
    assert!(!dir.exists());
}

#[test]
fn the_node_ends_when_the_host_is_killed() {
    let mut host = Host::start();
    let node = watch(host.client().welcome.node_pid).unwrap();
    host.signal(Signal::KILL);
    host.wait();
    assert!(ended(&node));
    let dir = host.socket.parent().unwrap();
    assert!(dir.exists(), "a killed host cannot remove it");
    let _next = Host::start();
    assert!(!dir.exists(), "the next host does");
}

#[test]
fn a_stopping_host_ends_although_a_node_never_gets_ready() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(host_binary());
        command.arg("--node-binary").arg(fake_node()).env("FAKE_NODE", "mute");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // From here on nobody reads its log, which is no reason to fail.
        let said = stderr.lines().map_while(Result::ok).any(|line| line.contains("is mute"));
        assert!(said, "the node starts");
        kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
        assert!(ended(&watch(child.id()).unwrap()) && child.wait().unwrap().success());
    }
}

/// Once, stopping while the node was just getting ready waited for ever.
#[test]
fn a_host_that_is_stopped_at_once_ends() {
    for _ in 0..20 {
        let mut host = Host::start();
        host.signal(Signal::TERM);
        assert!(host.wait().success());
        assert!(!host.socket.exists());
    }
}

#[test]
fn plugins_are_checked_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let refused = run(Command::new(host_binary()).arg("--plugins").arg(dir.path()));
    assert!(!refused.0.success() && refused.2.contains("chmod go-w"), "{refused:?}");
    let missing = run(Command::new(host_binary()).args(["serve", "--plugins", "/none"]));
    assert!(!missing.0.success() && missing.2.contains("/none"), "{missing:?}");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("llm.wasm"), b"").unwrap();
    let host = Host::start_with(&fake_node(), &["--plugins", dir.path().to_str().unwrap()], &[]);
    host.client();
}

#[test]
fn status_prints_counters_of_host_and_node() {
    let host = Host::start();
    let mut client = host.client();
    client.tape.fence(1);
    client.flush();
    client.reply().unwrap();
    let address = format!("unix:{}", host.socket.display());
    let (status, out, err) = run(Command::new(host_binary()).args(["status", "--host", &address]));
    assert!(status.success(), "{err}");
    for name in ["host.sessions ", "host.node_pid", "host.round_trips", "node.storages"] {
        assert!(out.contains(name), "{name} is not in:\n{out}");
    }
    let (status, _, err) =
        run(Command::new(host_binary()).args(["status", "--host", "unix:/none/genie.sock"]));
    assert!(!status.success() && err.contains("no host answers"), "{err}");
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    // The fake node adds wrongly; everything before that is fine.
    let (status, out, _) =
        run(Command::new(host_binary()).arg("doctor").arg("--node-binary").arg(fake_node()));
    assert!(!status.success());
    assert!(out.contains("ok       node starts"), "{out}");
    assert!(out.contains("PROBLEM  node computes") && out.contains("to mend it"), "{out}");
    let (status, out, _) =
        run(Command::new(host_binary()).args(["doctor", "--json", "--node-binary", "/none"]));
    assert!(!status.success());
    assert!(out.contains("\"ok\": false") && out.contains("GENIE_NODE_BINARY"), "{out}");
}

/// Nothing in a session has a timer, so idling cannot end it; what could is looked at directly.
#[test]
fn an_idle_session_takes_no_time_and_goes_on() {
    let host = Host::start();
    let mut client = host.client();
    let x = client.tape.alloc(4);
    client.tape.fence(1);
    client.flush();
    client.reply().unwrap();
    assert!(!client.link.wants_write());
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    let mut pause = Command::new("sleep").arg("1").stdin(Stdio::null()).spawn().unwrap();
    pause.wait().unwrap();
    assert!(ticks() - before <= 5, "an idle host sleeps");
    client.tape.read(2, x, 0, 4, None);
    client.flush();
    assert_eq!(client.reply().unwrap(), [0; 4]);
    client.tape.free(StorageId(x.0));
    client.flush();
}

/// What a newcomer is told by a host that was just asked to stop.
fn refused(host: &Host) -> String {
    let mut said = None;
    eventually("the refusal of a new session", || {
        let mut client = host.stranger();
        let hello = genie_wire::control::Hello {
            protocol: genie_wire::PROTOCOL_VERSION,
            ..Default::default()
        };
        client.send(FrameKind::Hello, &prost::Message::encode_to_vec(&hello));
        said = client.wait(FrameKind::Welcome).err();
        said.is_some()
    });
    said.unwrap()
}

#[test]
fn a_stopping_host_lets_sessions_finish_and_takes_no_new_ones() {
    let mut host = Host::start_with(&fake_node(), &["--drain-s", "1000"], &[]);
    let mut client = host.client();
    let node = watch(client.welcome.node_pid).unwrap();
    host.signal(Signal::TERM);
    let said = refused(&host);
    assert!(said.contains("takes no new sessions") && said.contains("GENIE_HOST"), "{said}");
    client.tape.fence(1);
    client.flush();
    client.reply().expect("the old session goes on");
    let address = format!("unix:{}", host.socket.display());
    let (status, out, err) = run(Command::new(host_binary()).args(["status", "--host", &address]));
    assert!(status.success() && out.contains("host.draining"), "{out}{err}");
    drop(client);
    assert!(host.wait().success());
    assert!(ended(&node), "the node ends with its host");
}

#[test]
fn a_session_that_outlasts_the_drain_is_told_why_it_ends() {
    let mut host = Host::start_with(&fake_node(), &["--drain-s", "1"], &[]);
    let mut client = host.client();
    host.signal(Signal::TERM);
    let said = client.wait(FrameKind::Reply).unwrap_err();
    assert!(said.contains("the host ends") && said.contains("--drain-s"), "{said}");
    assert!(host.wait().success());
}

#[test]
fn a_second_signal_ends_a_drain() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut host = Host::start_with(&fake_node(), &["--drain-s", "1000"], &[]);
        let mut client = host.client();
        host.signal(Signal::TERM);
        refused(&host);
        host.signal(signal);
        let said = client.wait(FrameKind::Reply).unwrap_err();
        assert!(said.contains("the host ends"), "{said}");
        assert!(host.wait().success());
    }
}

/// A program that ends leaves records behind and asks its host to stop: nothing of that is worth a
/// word, however the processes' ends fall together.
#[test]
fn an_orderly_end_prints_nothing() {
    for _ in 0..20 {
        let mut command = Command::new(host_binary());
        let pid = std::process::id().to_string();
        command.arg("--node-binary").arg(fake_node()).args(["--parent-pid", &pid]);
        let mut host = Host::spawn_with(command.stderr(Stdio::piped()));
        let mut client = host.client();
        for _ in 0..100 {
            let storage = client.tape.alloc(100);
            client.tape.free(storage);
        }
        client.flush();
        drop(client);
        host.signal(Signal::TERM);
        assert!(host.wait().success());
        let mut said = String::new();
        host.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}
