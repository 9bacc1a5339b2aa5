//! Prints the cost of hashing one record, in nanoseconds: `cargo run --release --example hash_cost`.

use std::time::Instant;

use genie_srg::SegmentHasher;
use genie_wire::record::StorageId;
use genie_wire::template::OutputSpec;
use genie_wire::{DType, Template, TemplateId, TensorMeta, Value};

fn main() {
    let meta = TensorMeta::contiguous(DType::FLOAT32, &[64, 64]);
    let add = Template {
        op: "aten::add.Tensor".to_owned(),
        slots: 2,
        scalars: 1,
        mutated: vec![],
        random: false,
        new_storages: vec![meta.bytes()],
        args: vec![
            Value::Tensor { slot: 0, meta: meta.clone() },
            Value::Tensor { slot: 1, meta: meta.clone() },
            Value::VaryingDouble { scalar: 0 },
        ],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    };
    let mut hasher = SegmentHasher::new();
    hasher.define(&add);
    let (segments, records) = (2000u64, 500u64);
    let start = Instant::now();
    let mut next = 2;
    for _ in 0..segments {
        hasher.begin();
        for _ in 0..records {
            let inputs = [StorageId(next - 1), StorageId(next - 2)];
            hasher.op(TemplateId(0), &inputs, StorageId(next), 1);
            next += 1;
        }
        std::hint::black_box(hasher.finish());
    }
    let ns = start.elapsed().as_nanos() as f64 / (segments * records) as f64;
    println!("{ns:.1} ns a record");
}
