//! What libtorch allocates is counted and bounded, and lies where it lay before.

use std::sync::atomic::{AtomicU64, Ordering};

use genie_aten::execute::{
    Device, Generator, Storage, Template as Bound, borrow_memory, count_memory, enter, init,
    limit_memory, memory_in_use, scrub_memory,
};
use genie_wire::{DType, ErrorCode, OutputSpec, Template, TensorMeta, Value};

const MIB: u64 = 1 << 20;

/// `torch.randn` of so many bytes.
fn draw(bytes: u64) -> Bound {
    let template = Template {
        op: "aten::randn".into(),
        slots: 0,
        scalars: 0,
        mutated: vec![],
        random: true,
        new_storages: vec![bytes],
        args: vec![
            Value::IntList(vec![bytes as i64 / 4]),
            Value::None,
            Value::None,
            Value::Device { accelerator: Some(0) },
            Value::None,
        ],
        outputs: vec![OutputSpec::New {
            index: 0,
            meta: TensorMeta::contiguous(DType::FLOAT32, &[bytes / 4]),
        }],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    Bound::new(&encoded, Device::CPU).unwrap()
}

/// One test: what is in use belongs to the process.
#[test]
fn memory_is_counted_bounded_and_aligned() {
    init().unwrap();
    enter(&[], 1).unwrap();
    let mut uncounted = Storage::new(Device::CPU, MIB).unwrap();
    uncounted.copy_in(0, &[7; 16]).unwrap();
    assert_eq!(memory_in_use(), (0, 0));
    count_memory();
    count_memory();

    let sizes = [1, 4, 63, 64, 65, 4096, MIB, 40 * MIB];
    let before = memory_in_use().0;
    let kept: Vec<Storage> =
        sizes.iter().map(|bytes| Storage::new(Device::CPU, *bytes).unwrap()).collect();
    assert_eq!(memory_in_use().0 - before, sizes.iter().sum::<u64>());
    for storage in &kept {
        assert_eq!(storage.as_slice().unwrap().as_ptr() as usize % 64, 0, "{}", storage.bytes());
    }
    let peak = memory_in_use().1;
    assert!(peak >= before + sizes.iter().sum::<u64>());
    drop(kept);
    assert_eq!(memory_in_use(), (before, peak));
    assert_eq!(Storage::new(Device::CPU, 0).unwrap().as_slice(), Some(&[][..]));

    // What was there before is freed as it always was, and can be grown by the new allocator.
    uncounted.resize(2 * MIB).unwrap();
    assert_eq!(uncounted.as_slice().unwrap()[..16], [7; 16]);
    assert_eq!(memory_in_use().0 - before, 2 * MIB);
    drop(uncounted);
    assert_eq!(memory_in_use().0, before);

    // A bound holds for what an operator takes while it runs; what it has taken comes back.
    let mut generator = Generator::new(Device::CPU).unwrap();
    let (small, large) = (draw(MIB), draw(8 * MIB));
    let state = generator.state().unwrap();
    let now = memory_in_use().0;
    limit_memory(now + 4 * MIB);
    let error = large.run(&[], &[], &mut generator, 1, &mut Vec::new()).unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    assert!(error.message.contains("8388608 bytes were asked for"), "{error}");
    assert_eq!(memory_in_use().0, now);
    let error = Storage::new(Device::CPU, 8 * MIB).err().unwrap();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    small.run(&[], &[], &mut generator, 1, &mut Vec::new()).unwrap();

    // Where nothing is left, the generator still gets its state back: nothing aborts.
    limit_memory(0);
    let error = small.run(&[], &[], &mut generator, 1, &mut Vec::new()).unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    limit_memory(u64::MAX);
    assert_ne!(generator.state().unwrap(), state);
    large.run(&[], &[], &mut generator, 1, &mut Vec::new()).unwrap();

    // More than there is.
    let error = Storage::new(Device::CPU, 1 << 60).err().unwrap();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    let error = Storage::new(Device::CPU, u64::MAX - 7).err().unwrap();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    assert_eq!(memory_in_use().0, now);

    // What is lent bounds too, and more is asked for before anything is refused.
    let lent = || LEASE.load(Ordering::SeqCst);
    LEASE.store(now + MIB, Ordering::SeqCst);
    borrow_memory(&IN_USE, &LEASE, lend_at_most_16_mib);
    assert_eq!((memory_in_use().0, IN_USE.load(Ordering::SeqCst)), (now, now));
    let kept = Storage::new(Device::CPU, MIB).unwrap();
    assert_eq!(lent(), now + MIB, "nothing was asked for");
    large.run(&[], &[], &mut generator, 1, &mut Vec::new()).unwrap();
    assert!(lent() > now + 9 * MIB);
    let error = Storage::new(Device::CPU, 16 * MIB).err().unwrap();
    assert_eq!(error.code, ErrorCode::OutOfMemory as u8, "{error}");
    assert!(error.message.contains("other clients"), "{error}");
    drop(kept);
    assert_eq!(IN_USE.load(Ordering::SeqCst), now);

    // What was freed is seen again, unless that is asked for. Each call has a pattern of its own: what was
    // freed before is not scrubbed.
    let seen_again = |pattern: [u8; 8]| {
        let blocks = || (0..100).map(|_| Storage::new(Device::CPU, 4096).unwrap());
        let mut written: Vec<Storage> = blocks().collect();
        for block in &mut written {
            let (words, _) = block.as_mut_slice().unwrap().as_chunks_mut();
            words.fill(pattern);
        }
        drop(written);
        blocks().filter(|block| block.as_slice().unwrap().as_chunks().0.contains(&pattern)).count()
    };
    assert!(seen_again(*b"readable") > 0);
    scrub_memory();
    assert_eq!(seen_again(*b"scrubbed"), 0);
}

static IN_USE: AtomicU64 = AtomicU64::new(0);
static LEASE: AtomicU64 = AtomicU64::new(0);

extern "C" fn lend_at_most_16_mib(bytes: u64) -> bool {
    let granted = bytes <= 16 * MIB;
    if granted {
        LEASE.store(bytes, Ordering::SeqCst);
    }
    granted
}
