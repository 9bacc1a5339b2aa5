//! The host with the real node, where it was built (`cargo build -p genie-node`) and finds its
//! libtorch. Without it these tests say so and pass; the end-to-end tests cover the same ground.

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{AT_ONCE, Client, Host, ended, host_binary, run, watch};
use genie_wire::template::OutputSpec;
use genie_wire::{DType, StorageId, Template, TensorMeta, Value};
use rustix::process::{Pid, Signal, kill_process};

/// The node next to the host, if it can run.
fn real_node() -> Option<PathBuf> {
    let node = host_binary().with_file_name("genie-node");
    let runs = Command::new(&node)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !runs {
        let why = format!("{} is not built or lacks its libtorch", node.display());
        // `make test` builds it first.
        assert!(std::env::var_os("GENIE_OUTCOMES").is_none(), "{why}");
        eprintln!("skipped: {why}");
    }
    runs.then_some(node)
}

fn addition(sizes: &[u64]) -> Vec<u8> {
    let meta = TensorMeta::contiguous(DType::FLOAT32, sizes);
    let mut bytes = Vec::new();
    Template {
        op: "aten::add.Tensor".to_owned(),
        slots: 2,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![meta.bytes()],
        args: vec![
            Value::Tensor { slot: 0, meta: meta.clone() },
            Value::Tensor { slot: 1, meta: meta.clone() },
            Value::Int(1),
        ],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    }
    .encode(&mut bytes);
    bytes
}

fn upload(client: &mut Client, values: &[f32]) -> StorageId {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let id = client.tape.alloc(bytes.len() as u64);
    client.tape.upload_inline(id, 0, &bytes);
    id
}

fn read(client: &mut Client, token: u64, id: StorageId, len: u64) -> Result<Vec<f32>, String> {
    client.tape.read(token, id, 0, len, None);
    client.flush();
    let bytes = client.reply()?;
    let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
    Ok(bytes.chunks_exact(4).map(value).collect())
}

#[test]
fn a_chain_of_additions_is_computed_and_its_segments_are_known_again() {
    let Some(node) = real_node() else { return };
    let host = Host::start_with(&node, &["--device", "cpu"], &[]);
    let mut client = host.client();
    assert!(!client.welcome.ops.is_empty());
    let template = client.tape.define(&addition(&[2]));
    for round in 0..5 {
        let one = upload(&mut client, &[1.0, 2.0]);
        let mut sum = upload(&mut client, &[0.0, 0.0]);
        for _ in 0..100 {
            let next = client.tape.op(template, &[sum.0, one.0], &[], 1);
            client.tape.free(sum);
            sum = next;
        }
        assert_eq!(read(&mut client, round, sum, 8).unwrap(), [100.0, 200.0]);
        client.tape.free(sum);
        client.tape.free(one);
    }
    assert_eq!(client.counter("host.session.segments_new"), 1);
    assert_eq!(client.counter("host.session.segments_known"), 4);
    assert!(client.counter("host.session.bytes_to_node_per_op") <= 48);
}

#[test]
fn a_killed_node_is_node_lost_at_once_and_is_started_again() {
    let Some(node) = real_node() else { return };
    let host = Host::start_with(&node, &["--device", "cpu"], &[]);
    let mut client = host.client();
    let x = upload(&mut client, &[1.0]);
    assert_eq!(read(&mut client, 1, x, 4).unwrap(), [1.0]);
    let pid = client.welcome.node_pid;
    let start = Instant::now();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    let error = read(&mut client, 2, x, 4).unwrap_err();
    assert!(error.contains("NodeLost"), "{error}");
    assert!(start.elapsed() < AT_ONCE);
    let mut again = host.client();
    let y = upload(&mut again, &[3.0]);
    assert_eq!(read(&mut again, 1, y, 4).unwrap(), [3.0]);
}

#[test]
fn stopping_the_host_stops_the_node_and_removes_the_sockets() {
    let Some(node) = real_node() else { return };
    let mut host = Host::start_with(&node, &["--device", "cpu"], &[]);
    let node = watch(host.client().welcome.node_pid).unwrap();
    let dir = host.socket.parent().unwrap().to_owned();
    host.signal(Signal::INT);
    assert!(host.wait().success());
    assert!(ended(&node));
    assert!(!dir.exists());
}

#[test]
fn the_doctor_finds_a_good_installation_good() {
    let Some(node) = real_node() else { return };
    let (status, out, err) =
        run(Command::new(host_binary()).arg("doctor").arg("--node-binary").arg(node));
    assert!(status.success(), "{out}{err}");
    assert!(out.contains("ok       node computes"), "{out}");
}
