//! An operator that changes the size of what it writes is refused: the program's tensor would not follow.

use genie_aten::execute::{Device, Generator, Storage, Template as Bound, enter, init};
use genie_wire::{DType, OutputSpec, Template, TensorMeta, Value};

const CHANNELS: usize = 3;

/// PyTorch's observer of a weight by channel, whose `running_min` and `running_max` have `observed`
/// elements: it makes them as many as there are channels, and returns neither.
fn observe(observed: usize) -> Result<(), String> {
    let (many, one) = ([CHANNELS as u64, 2], [1]);
    let tensor = |slot, dtype, sizes: &[u64]| Value::Tensor {
        slot,
        meta: TensorMeta::contiguous(dtype, sizes),
    };
    let seen = [observed as u64];
    let channels = [CHANNELS as u64];
    let template = Template {
        op: "aten::_fused_moving_avg_obs_fq_helper".into(),
        slots: 7,
        scalars: 0,
        mutated: vec![3, 4, 5, 6],
        random: false,
        new_storages: vec![4 * many.iter().product::<u64>(), many.iter().product()],
        args: vec![
            tensor(0, DType::FLOAT32, &many),
            tensor(1, DType::INT64, &one),
            tensor(2, DType::INT64, &one),
            tensor(3, DType::FLOAT32, &seen),
            tensor(4, DType::FLOAT32, &seen),
            tensor(5, DType::FLOAT32, &channels),
            tensor(6, DType(3), &channels),
            Value::Double(0.01),
            Value::Int(-128),
            Value::Int(127),
            Value::Int(0),
            Value::Bool(true),
            Value::Bool(false),
        ],
        outputs: vec![
            OutputSpec::New { index: 0, meta: TensorMeta::contiguous(DType::FLOAT32, &many) },
            OutputSpec::New { index: 1, meta: TensorMeta::contiguous(DType::BOOL, &many) },
        ],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let bound = Bound::new(&encoded, Device::CPU).map_err(|error| error.message)?;
    let made = |bytes: usize| {
        let mut storage = Storage::new(Device::CPU, bytes as u64).unwrap();
        storage.copy_in(0, &vec![0; bytes]).unwrap();
        storage
    };
    let mut inputs: Vec<Storage> =
        [8 * CHANNELS, 8, 8, 4 * observed, 4 * observed, 4 * CHANNELS, 4 * CHANNELS]
            .map(made)
            .into();
    // Observing is on.
    inputs[1].copy_in(0, &1i64.to_ne_bytes()).unwrap();
    let inputs: Vec<&Storage> = inputs.iter().collect();
    let mut generator = Generator::new(Device::CPU).unwrap();
    bound.run(&inputs, &[], &mut generator, 2, &mut Vec::new()).map_err(|error| error.message)
}

#[test]
fn what_is_written_keeps_its_size_or_the_record_fails() {
    init().unwrap();
    enter(&[], 1).unwrap();
    observe(CHANNELS).unwrap();
    let error = observe(0).unwrap_err();
    assert!(error.contains("running_min") && error.contains("from [0] to [3]"), "{error}");
}
