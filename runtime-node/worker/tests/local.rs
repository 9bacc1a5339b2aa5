//! `local` mode: the executor without sockets.

use genie_transport::SharedMemory;
use genie_wire::frame::FrameKind;
use genie_wire::record::RegionSpan;
use genie_wire::{DType, OutputSpec, Reply, TapeWriter, Template, TensorMeta, Value};
use genie_worker::local::LocalNode;

#[test]
fn a_tape_is_executed_in_this_process() {
    let mut node = LocalNode::new(1 << 20, 1 << 20).unwrap();
    assert!(node.ops().len() > 1000);
    let memory = SharedMemory::create(4096).unwrap();
    let theirs = SharedMemory::adopt(memory.fd().try_clone_to_owned().unwrap(), 4096).unwrap();
    node.add_region(0, theirs).unwrap();
    memory.write(0, &(-2.5f32).to_le_bytes()).unwrap();

    let meta = TensorMeta::contiguous(DType::FLOAT32, &[1]);
    let template = Template {
        op: "aten::abs".to_owned(),
        slots: 1,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![4],
        args: vec![Value::Tensor { slot: 0, meta: meta.clone() }],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let mut tape = TapeWriter::new();
    let x = tape.alloc(4);
    tape.upload(x, 0, 4, RegionSpan { region: 0, offset: 0 });
    let abs = tape.define(&encoded);
    let y = tape.op(abs, &[x.0], &[], 1);
    tape.read(1, y, 0, 4, None);
    node.feed(tape.bytes()).unwrap();

    let frames: Vec<_> = std::iter::from_fn(|| node.next_frame()).collect();
    assert_eq!(frames[0].0, FrameKind::Reply);
    assert_eq!(Reply::decode(&frames[0].1), Ok((1, Reply::Bytes(&2.5f32.to_le_bytes()))));
    assert_eq!(frames[1].0, FrameKind::Released);
    assert!(node.counters().iter().any(|c| c.name == "node.ops_executed" && c.value == 1));
    // Garbage is an error, not a panic.
    assert!(node.feed(&[0xff; 20]).is_err());
}
