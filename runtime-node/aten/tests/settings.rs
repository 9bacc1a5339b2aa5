//! PyTorch's settings hold between entering and leaving, and what this torch lacks is refused.

use std::sync::Mutex;

use genie_aten::execute::{Device, Generator, Storage, Template as Bound, enter, init, leave};
use genie_wire::{DType, ErrorCode, OutputSpec, Template, TensorMeta, Value};

/// Settings belong to the process, so these tests take turns.
static PROCESS: Mutex<()> = Mutex::new(());

/// `torch.set_default_dtype(torch.float64)`: setting 1, the zigzag of 7.
const DOUBLE: [u8; 2] = [1, 14];

/// The square root of an integer, declared to be `dtype`.
fn root_is(dtype: DType, bytes: u64) -> Result<(), u8> {
    let template = Template {
        op: "aten::sqrt".into(),
        slots: 1,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![bytes],
        args: vec![Value::Tensor { slot: 0, meta: TensorMeta::contiguous(DType::INT64, &[1]) }],
        outputs: vec![OutputSpec::New { index: 0, meta: TensorMeta::contiguous(dtype, &[1]) }],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let bound = Bound::new(&encoded, Device::CPU).map_err(|error| error.code)?;
    let storage = Storage::new(Device::CPU, 8).unwrap();
    let mut generator = Generator::new(Device::CPU).unwrap();
    bound.run(&[&storage], &[], &mut generator, 1, &mut Vec::new()).map_err(|error| error.code)
}

#[test]
fn the_default_dtype_holds_until_another_enters() {
    let _turn = PROCESS.lock().unwrap();
    init().unwrap();
    for _ in 0..2 {
        enter(&[], 1).unwrap();
        assert_eq!(root_is(DType::FLOAT32, 4), Ok(()));
        enter(&DOUBLE, 1).unwrap();
        assert_eq!(root_is(DType::FLOAT64, 8), Ok(()));
        assert_eq!(root_is(DType::FLOAT32, 4), Err(ErrorCode::TemplateMismatch as u8));
        leave(false).unwrap();
    }
}

#[test]
fn a_guest_leaves_the_process_as_it_was() {
    let _turn = PROCESS.lock().unwrap();
    init().unwrap();
    enter(&[], 1).unwrap();
    leave(false).unwrap();
    enter(&DOUBLE, 2).unwrap();
    enter(&DOUBLE, 3).unwrap();
    leave(true).unwrap();
    assert_eq!(root_is(DType::FLOAT32, 4), Ok(()));
}

#[test]
fn what_this_torch_lacks_is_refused() {
    let _turn = PROCESS.lock().unwrap();
    init().unwrap();
    for (settings, words) in
        [(&[250, 2][..], "setting 250"), (&[1], "truncated"), (&[1, 8], "default dtype")]
    {
        let error = enter(settings, 1).unwrap_err();
        assert!(error.message.contains(words), "{}", error.message);
        leave(false).unwrap();
    }
    enter(&[], 1).unwrap();
    leave(false).unwrap();
}
