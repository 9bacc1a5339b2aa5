//! What a record costs in the executor: on a device that does nothing (decoding, the storage
//! table, the ledger), and on libtorch with tensors of one element.
//!
//! `cargo run --release -p genie-worker --example record_overhead`

use std::time::Instant;

use genie_executor::{Backend, Executor, Failure, SentFrames, SessionSettings};
use genie_wire::{DType, OutputSpec, TapeWriter, Template, TensorMeta, Value};

const OPS: usize = 200_000;
const ROUNDS: usize = 7;

fn main() {
    report("a device that does nothing", Nothing);
    {
        genie_aten::execute::init().expect("libtorch starts");
        genie_aten::execute::enter(&[], 1).expect("PyTorch's own settings");
        let device = genie_aten::execute::Device::CPU;
        direct("the shim alone, 1 element", device);
        report("libtorch, 1 element", genie_worker::aten::Aten::new(device));
        direct("the shim alone, 1 element, its memory counted", device);
    }
}

/// `y = x + x; x is freed; x = y`, over and over.
fn report<B: Backend>(what: &str, backend: B) {
    let mut node = Executor::new(backend, 1 << 30);
    let mut session = node.open(SessionSettings::default()).expect("a session opens");
    let mut tape = TapeWriter::new();
    let mut sent = SentFrames::default();
    let add = tape.define(&add());
    let mut x = tape.alloc(4);
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        for _ in 0..OPS {
            let y = tape.op(add, &[x.0, x.0], &[], 1);
            tape.free(x);
            x = y;
        }
        let bytes = tape.take(Vec::new());
        let start = Instant::now();
        node.execute(&mut session, &bytes, &mut 0, usize::MAX, &mut sent).expect("it executes");
        best = best.min(start.elapsed().as_nanos() as f64 / OPS as f64);
    }
    println!("{what}: {best:.0} ns for an operator and a free");
    node.close(session);
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

/// The same through the shim alone.
fn direct(what: &str, device: genie_aten::execute::Device) {
    use genie_aten::execute::{Generator, Storage, Template};
    let template = Template::new(&add(), device).expect("it binds");
    let mut generator = Generator::new(device).expect("a generator");
    let mut x = Storage::new(device, 4).expect("four bytes");
    let (mut made, mut best) = (Vec::new(), f64::MAX);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..OPS {
            template.run(&[&x, &x], &[], &mut generator, 1, &mut made).expect("it runs");
            x = made.pop().expect("one output");
        }
        best = best.min(start.elapsed().as_nanos() as f64 / OPS as f64);
    }
    println!("{what}: {best:.0} ns");
}

/// Storages are their sizes.
struct Nothing;

impl Backend for Nothing {
    type Template = ();
    type Storage = u64;
    type Generator = ();

    fn template(&self, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn run(
        &self,
        _: &(),
        inputs: &[&u64],
        _: &[u64],
        _: &mut (),
        new: usize,
        outputs: &mut Vec<u64>,
    ) -> Result<(), Failure> {
        outputs.extend((0..new).map(|_| *inputs[0]));
        Ok(())
    }

    fn run_dynamic(
        &self,
        _: &(),
        _: &[&u64],
        _: &[u64],
        _: &mut (),
        _: usize,
        _: &mut Vec<u64>,
    ) -> Result<Vec<u8>, Failure> {
        Ok(vec![0, 0, 0])
    }

    fn allocate(&self, bytes: u64) -> Result<u64, Failure> {
        Ok(bytes)
    }

    fn bytes(&self, storage: &u64) -> u64 {
        *storage
    }

    fn duplicate(&self, storage: &u64) -> Result<u64, Failure> {
        Ok(*storage)
    }

    fn resize(&self, storage: &mut u64, bytes: u64) -> Result<(), Failure> {
        *storage = bytes;
        Ok(())
    }

    fn slice<'a>(&self, _: &'a u64) -> Option<&'a [u8]> {
        None
    }

    fn slice_mut<'a>(&self, _: &'a mut u64) -> Option<&'a mut [u8]> {
        None
    }

    fn copy_in(&self, _: &mut u64, _: u64, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn copy_out(&self, _: &u64, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn generator(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn seed(&self, _: &mut (), _: u64) -> Result<(), Failure> {
        Ok(())
    }

    fn generator_state(&self, _: &mut ()) -> Result<Vec<u8>, Failure> {
        Ok(Vec::new())
    }

    fn set_generator_state(&self, _: &mut (), _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn clock_ns(&self) -> u64 {
        0
    }

    fn enter(&self, _: &[u8], _: u32) -> Result<(), Failure> {
        Ok(())
    }

    fn leave(&self) {}
}
