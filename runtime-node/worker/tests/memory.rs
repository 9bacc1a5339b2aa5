//! A session may not take more than its node has, in temporaries and results of unknown size either.

use std::sync::{Mutex, MutexGuard};

use genie_aten::execute::{Device, init, memory_in_use};
use genie_executor::{Executor, ExecutorLimits, SentFrames, Session, SessionSettings};
use genie_wire::frame::FrameKind;
use genie_wire::{
    DType, ErrorCode, OutputSpec, Reply, StorageId, TapeWriter, Template, TensorMeta, Value,
};
use genie_worker::aten::Aten;

const MIB: u64 = 1 << 20;

/// The memory is the process's: the tests take turns.
static PROCESS: Mutex<()> = Mutex::new(());

struct Bench {
    node: Executor<Aten>,
    session: Option<Session<Aten>>,
    tape: TapeWriter,
    sent: SentFrames,
    in_use_before: u64,
    _turn: MutexGuard<'static, ()>,
}

fn bench(limits: ExecutorLimits) -> Bench {
    let turn = PROCESS.lock().unwrap_or_else(|broken| broken.into_inner());
    init().unwrap();
    let mut node = Executor::with_limits(Aten::new(Device::CPU), limits);
    let in_use_before = memory_in_use().0;
    let settings = SessionSettings { identity: "me".into(), threads: 1, threads_fixed: true };
    let session = Some(node.open(settings).unwrap());
    let (tape, sent) = (TapeWriter::new(), SentFrames::default());
    Bench { node, session, tape, sent, in_use_before, _turn: turn }
}

impl Bench {
    fn flush(&mut self) {
        let tape = self.tape.take(Vec::new());
        let session = self.session.as_mut().unwrap();
        self.node.execute(session, &tape, &mut 0, usize::MAX, &mut self.sent).unwrap();
    }

    /// The error that the last record of the tape is answered with.
    fn answer(&mut self) -> Result<(), (ErrorCode, String)> {
        self.flush();
        let (kind, body) = self.sent.0.pop_back().expect("an answer");
        assert_eq!(kind, FrameKind::Reply);
        match Reply::decode(&body).unwrap().1 {
            Reply::Error { code, message } => Err((code, message.to_owned())),
            _ => Ok(()),
        }
    }

    /// The first byte of a storage.
    fn read(&mut self, id: u64) -> Result<(), (ErrorCode, String)> {
        self.tape.read(1, StorageId(id), 0, 1, None);
        self.answer()
    }

    /// A tensor of ones; its storage.
    fn ones(&mut self, dtype: DType, item: u64, elements: u64) -> u64 {
        let id = self.tape.alloc(elements * item);
        let meta = TensorMeta::contiguous(dtype, &[elements]);
        let args = vec![Value::Tensor { slot: 0, meta: meta.clone() }, Value::Int(1)];
        let outputs = vec![OutputSpec::Alias { slot: 0, meta }];
        let fill =
            self.tape.define(&encoded("aten::fill_.Scalar", 1, vec![0], vec![], args, outputs));
        self.tape.op(fill, &[id.0], &[], 0);
        id.0
    }

    /// `x.nonzero()`, as a client asks that does not know how many there are.
    fn nonzero(&mut self, x: u64, elements: u64) -> Result<(), (ErrorCode, String)> {
        let meta = TensorMeta::contiguous(DType::UINT8, &[elements]);
        let args = vec![Value::Tensor { slot: 0, meta }];
        let template = encoded("aten::nonzero", 1, vec![], vec![], args, vec![]);
        self.tape.run(2, &template, &[x], &[], 1);
        self.answer()
    }

    fn close(&mut self) {
        let session = self.session.take().unwrap();
        self.node.close(session);
        assert_eq!(self.counter("node.storage_bytes"), 0);
        assert_eq!(memory_in_use().0 - self.in_use_before, self.counter("node.weight_bytes"));
    }

    fn counter(&self, name: &str) -> u64 {
        self.node.counters().iter().find(|counter| counter.name == name).unwrap().value
    }
}

fn encoded(
    op: &str,
    slots: u32,
    mutated: Vec<u32>,
    new_storages: Vec<u64>,
    args: Vec<Value>,
    outputs: Vec<OutputSpec>,
) -> Vec<u8> {
    let template = Template {
        op: op.to_owned(),
        slots,
        scalars: 0,
        mutated,
        random: false,
        new_storages,
        args,
        outputs,
    };
    let mut bytes = Vec::new();
    template.encode(&mut bytes);
    bytes
}

#[test]
fn a_result_of_unknown_size_is_bounded() {
    let mut bench = bench(ExecutorLimits::of(64 * MIB));
    let many = bench.ones(DType::UINT8, 1, 16 * MIB);
    let few = bench.ones(DType::UINT8, 1, MIB);
    bench.read(many).unwrap();
    let before = memory_in_use().0;
    let (code, message) = bench.nonzero(many, 16 * MIB).unwrap_err();
    assert_eq!(code, ErrorCode::OutOfMemory);
    for words in ["aten::nonzero", "134217728 bytes were asked for", "--memory-bytes"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(memory_in_use().0, before);
    // The session goes on.
    bench.nonzero(few, MIB).unwrap();
    assert_eq!(bench.counter("node.storage_bytes"), memory_in_use().0 - bench.in_use_before);
    bench.close();
}

#[test]
fn temporaries_are_bounded() {
    // A product of every other column and row: libtorch copies such an argument first.
    const N: u64 = 1024;
    let product = |budget: u64| {
        let mut bench = bench(ExecutorLimits::of(budget));
        let x = bench.ones(DType::FLOAT32, 4, 4 * N * N);
        let every_other = TensorMeta {
            dtype: DType::FLOAT32,
            offset: 0,
            sizes: vec![N, N],
            strides: vec![2 * N, 2],
        };
        let args = (0..2).map(|_| Value::Tensor { slot: 0, meta: every_other.clone() }).collect();
        let meta = TensorMeta::contiguous(DType::FLOAT32, &[N, N]);
        let outputs = vec![OutputSpec::New { index: 0, meta }];
        let mm = bench.tape.define(&encoded("aten::mm", 1, vec![], vec![4 * N * N], args, outputs));
        let y = bench.tape.op(mm, &[x], &[], 1);
        let read = bench.read(y.0);
        // It poisons its result alone.
        bench.read(x).unwrap();
        bench.close();
        read
    };
    product(64 * MIB).unwrap();
    // Room for the arguments and the result.
    let (code, message) = product(21 * MIB).unwrap_err();
    assert_eq!(code, ErrorCode::OutOfMemory);
    assert!(message.contains("while the operator ran, 4194304 bytes"), "{message}");
}

#[test]
fn a_share_bounds_its_client_in_its_own_words() {
    let limits = ExecutorLimits { client_bytes_max: 32 * MIB, ..ExecutorLimits::of(1 << 30) };
    let mut bench = bench(limits);
    let x = bench.ones(DType::UINT8, 1, 8 * MIB);
    let (code, message) = bench.nonzero(x, 8 * MIB).unwrap_err();
    assert_eq!(code, ErrorCode::OutOfMemory);
    assert!(message.contains("--client-memory-bytes") && message.contains("\"me\""), "{message}");
    bench.close();
}

#[test]
fn weights_that_nobody_holds_make_room_for_what_an_operator_needs() {
    let limits = ExecutorLimits { unheld_bytes_max: 32 * MIB, ..ExecutorLimits::of(64 * MIB) };
    let mut bench = bench(limits);
    let weight = bench.ones(DType::UINT8, 1, 24 * MIB);
    let hash = blake3::hash(&vec![1; 24 * MIB as usize]);
    bench.tape.store_weight(StorageId(weight), hash.as_bytes());
    bench.tape.free(StorageId(weight));
    let x = bench.ones(DType::UINT8, 1, 5 * MIB);
    bench.flush();
    assert_eq!(bench.counter("node.weight_bytes_unheld"), 24 * MIB);
    // 40 MiB, beside 5 that are held and 24 that nobody holds.
    bench.nonzero(x, 5 * MIB).unwrap();
    assert_eq!(bench.counter("node.weights_evicted"), 1);
    bench.close();
}
