//! The C++ codec and genie_wire's agree, and the C++ decoder refuses what is not a template.

use genie_aten::execute::{Device, Generator, Storage, Template as Bound, init};
use genie_wire::{DType, ErrorCode, OutputSpec, Template, TensorMeta, Value};
use proptest::prelude::*;

fn encoded(template: &Template) -> Vec<u8> {
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}

/// `aten::add.Tensor` of a float32 vector and a Python number, both varying.
fn add(elements: u64) -> Template {
    let meta = TensorMeta::contiguous(DType::FLOAT32, &[elements]);
    Template {
        op: "aten::add.Tensor".into(),
        slots: 1,
        scalars: 2,
        mutated: vec![],
        random: false,
        new_storages: vec![elements * 4],
        args: vec![
            Value::Tensor { slot: 0, meta: meta.clone() },
            Value::ScalarTensor { scalar: 0, dtype: DType::FLOAT64, wrapped: true },
            Value::VaryingDouble { scalar: 1 },
        ],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    }
}

fn run(template: &[u8], input: &[f32], scalars: &[u64]) -> Result<Vec<f32>, u8> {
    let bound = Bound::new(template, Device::CPU).map_err(|error| error.code)?;
    let mut storage = Storage::new(Device::CPU, input.len() as u64 * 4).unwrap();
    let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
    storage.copy_in(0, &bytes).unwrap();
    let mut generator = Generator::new(Device::CPU).unwrap();
    let mut outputs = Vec::new();
    bound.run(&[&storage], scalars, &mut generator, 1, &mut outputs).map_err(|error| error.code)?;
    let result = outputs[0].as_slice().unwrap();
    Ok(result.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
}

#[test]
fn a_template_of_rust_runs_in_cpp() {
    init().unwrap();
    let words = [10.0f64.to_bits(), 2.0f64.to_bits()];
    assert_eq!(run(&encoded(&add(3)), &[1.0, 2.0, 3.0], &words), Ok(vec![21.0, 22.0, 23.0]));
}

#[test]
fn an_unknown_operator_is_named() {
    let mut template = add(3);
    template.op = "aten::no_such_operator".into();
    let error = Bound::new(&encoded(&template), Device::CPU).err().unwrap();
    assert_eq!(error.code, ErrorCode::NotImplemented as u8);
    assert!(error.message.contains("no_such_operator"));
}

#[test]
fn a_tensor_beyond_its_storage_is_refused() {
    init().unwrap();
    let words = [0, 1.0f64.to_bits()];
    assert_eq!(run(&encoded(&add(1 << 40)), &[1.0; 4], &words), Err(ErrorCode::Protocol as u8));
}

#[test]
fn a_written_slot_must_be_declared() {
    let mut template = add(3);
    template.op = "aten::add_.Tensor".into();
    let error = Bound::new(&encoded(&template), Device::CPU).err().unwrap();
    assert_eq!(error.code, ErrorCode::Protocol as u8);
    template.mutated = vec![0];
    assert!(Bound::new(&encoded(&template), Device::CPU).is_ok());
}

#[test]
fn what_the_client_inferred_is_checked() {
    init().unwrap();
    let mut template = add(3);
    template.outputs =
        vec![OutputSpec::New { index: 0, meta: TensorMeta::contiguous(DType::FLOAT32, &[4]) }];
    template.new_storages = vec![16];
    let words = [0, 1.0f64.to_bits()];
    assert_eq!(run(&encoded(&template), &[1.0; 3], &words), Err(ErrorCode::TemplateMismatch as u8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_are_refused_or_bound(bytes: Vec<u8>) {
        let _ = Bound::new(&bytes, Device::CPU);
    }

    /// Mutants of a real template: whatever is accepted by both decoders also runs, or fails with
    /// an error.
    #[test]
    fn mutants_are_refused_or_run(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        truncate: bool,
    ) {
        let mut bytes = encoded(&add(3));
        // The operator's name stays: another operator may do anything it is asked to.
        let start = 1 + "aten::add.Tensor".len();
        for (at, value) in changes {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = value;
        }
        if truncate {
            bytes.truncate(start + cut.index(bytes.len() - start));
        }
        // The session's decoder comes first, as on the node.
        if let Ok(template) = Template::decode(&bytes)
            && template.slots == 1 && template.scalars <= 2 && template.new_storages.len() == 1
            && template.new_storages[0] < 1 << 20
            && template.outputs.iter().filter_map(|o| o.meta()).all(|m| m.bytes() < 1 << 20)
        {
            let _ = run(&bytes, &[1.0; 3], &[0, 1.0f64.to_bits()]);
        }
    }
}
