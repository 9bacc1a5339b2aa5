//! How long a read of one scalar takes at a running node, beside a bare ping-pong of as many
//! bytes between two threads over the same kind of socket.
//!
//! `genie-node --listen unix:/tmp/node.sock & cargo run --release -p genie-node --example
//! round_trip /tmp/node.sock`

use std::time::Instant;

use genie_shm::{UnixLink, connect};
use genie_transport::Link;
use genie_wire::control::Hello;
use genie_wire::frame::FrameKind;
use genie_wire::{DType, OutputSpec, PROTOCOL_VERSION, TapeWriter, Template, TensorMeta, Value};
use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};

const ROUNDS: usize = 20_000;

fn main() {
    let path = std::env::args().nth(1).expect("the path of a node's socket");
    let (mut one, mut other) = UnixLink::pair().expect("a pair");
    std::thread::spawn(move || {
        loop {
            let body = receive(&mut other);
            other.post_send(FrameKind::Reply, &[&body], None).expect("sent");
        }
    });
    let ping = median(|| {
        one.post_send(FrameKind::Tape, &[&[0; 16]], None).expect("sent");
        receive(&mut one);
    });

    let mut node = connect(path).expect("the node listens");
    let hello = Hello { protocol: PROTOCOL_VERSION, threads: 1, ..Hello::default() };
    node.post_send(FrameKind::Hello, &[&hello.encode_to_vec()], None).expect("sent");
    receive(&mut node);
    let mut tape = TapeWriter::new();
    let mut x = tape.alloc(4);
    tape.upload_inline(x, 0, &1f32.to_le_bytes());
    let add = tape.define(&add());
    let read = median(|| {
        let y = tape.op(add, &[x.0, x.0], &[], 1);
        tape.free(x);
        x = y;
        tape.read(1, x, 0, 4, None);
        node.post_send(FrameKind::Tape, &[tape.bytes()], None).expect("sent");
        tape.clear();
        receive(&mut node);
    });
    println!("bare ping-pong {ping:.1} us, one operator and its read {read:.1} us (medians)");
}

fn receive(link: &mut UnixLink) -> Vec<u8> {
    loop {
        match link.poll() {
            Ok(Some(frame)) => return frame.body,
            Ok(None) => {
                poll(&mut [PollFd::new(&*link, PollFlags::IN)], None).expect("poll works");
            }
            Err(_) => std::process::exit(0),
        }
    }
}

/// Microseconds.
fn median(mut round: impl FnMut()) -> f64 {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed().as_nanos() as f64 / 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn add() -> Vec<u8> {
    let meta = || TensorMeta::contiguous(DType::FLOAT32, &[1]);
    let tensor = |slot| Value::Tensor { slot, meta: meta() };
    let template = Template {
        op: "aten::add.Tensor".to_owned(),
        slots: 2,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![4],
        args: vec![tensor(0), tensor(1), Value::Int(1)],
        outputs: vec![OutputSpec::New { index: 0, meta: meta() }],
    };
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}
