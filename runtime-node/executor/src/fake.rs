//! A backend in plain memory, to test the state machine without libtorch.

use genie_transport::{FrozenMemory, SharedMemory};
use genie_wire::{ErrorCode, Template};

use crate::{Backend, Failure};

/// Knows the operators of [`Op`], by the names `fake::add` and so on.
#[derive(Default)]
pub struct Fake {
    /// Hides the bytes, as a device with its own memory does.
    pub(crate) remote: bool,
    /// Which it copies by itself all the same.
    pub(crate) direct: bool,
    pub(crate) threads: std::cell::Cell<u32>,
    pub(crate) clock_ns: std::cell::Cell<u64>,
    pub(crate) settings: std::cell::RefCell<Vec<u8>>,
}

pub struct FakeTemplate {
    op: Op,
    new_storages: Vec<u64>,
    mutated: Vec<u32>,
}

enum Op {
    /// Each byte of each new or mutated storage becomes the sum of the inputs' bytes there and
    /// of the scalars.
    Add,
    /// Draws one byte for each new storage's first byte.
    Random,
    Fail,
    Panic,
}

/// Bytes behind a cell: operators write through `&Storage`, as libtorch does.
pub struct FakeStorage(std::cell::UnsafeCell<Vec<u8>>);

impl FakeStorage {
    fn bytes(&self) -> &[u8] {
        // SAFETY: tests are single-threaded, and no slice is kept across an operator's run.
        unsafe { &*self.0.get() }
    }
}

impl Backend for Fake {
    type Template = FakeTemplate;
    type Storage = FakeStorage;
    type Generator = u64;

    fn template(&self, encoded: &[u8]) -> Result<FakeTemplate, Failure> {
        let template = Template::decode(encoded)
            .map_err(|error| Failure::new(ErrorCode::Protocol, error.to_string()))?;
        let op = match template.op.as_str() {
            "fake::add" => Op::Add,
            "fake::random" => Op::Random,
            "fake::fail" => Op::Fail,
            "fake::panic" => Op::Panic,
            _ => return Err(Failure::new(ErrorCode::NotImplemented, "no such operator")),
        };
        Ok(FakeTemplate { op, new_storages: template.new_storages, mutated: template.mutated })
    }

    fn run(
        &self,
        template: &FakeTemplate,
        inputs: &[&FakeStorage],
        scalars: &[u64],
        generator: &mut u64,
        new: usize,
        outputs: &mut Vec<FakeStorage>,
    ) -> Result<(), Failure> {
        assert_eq!(new, template.new_storages.len());
        match template.op {
            Op::Fail => return Err(Failure::new(ErrorCode::Index, "told to fail")),
            Op::Panic => panic!("told to panic"),
            Op::Random => {
                for bytes in &template.new_storages {
                    *generator = generator.wrapping_mul(5).wrapping_add(3);
                    let mut content = vec![0; *bytes as usize];
                    content.iter_mut().take(1).for_each(|byte| *byte = *generator as u8);
                    outputs.push(FakeStorage(content.into()));
                }
                return Ok(());
            }
            Op::Add => {}
        }
        let sum = |at: usize| {
            let inputs = inputs.iter().map(|input| input.bytes().get(at).copied().unwrap_or(0));
            let scalars = scalars.iter().map(|scalar| *scalar as u8);
            inputs.chain(scalars).fold(0u8, u8::wrapping_add)
        };
        let mutated: Vec<(u32, Vec<u8>)> = template
            .mutated
            .iter()
            .map(|slot| (*slot, (0..inputs[*slot as usize].bytes().len()).map(sum).collect()))
            .collect();
        for bytes in &template.new_storages {
            outputs.push(FakeStorage((0..*bytes as usize).map(sum).collect::<Vec<_>>().into()));
        }
        for (slot, content) in mutated {
            // SAFETY: as in `bytes`; all reads of this run are done.
            unsafe { *inputs[slot as usize].0.get() = content };
        }
        Ok(())
    }

    fn run_dynamic(
        &self,
        template: &FakeTemplate,
        inputs: &[&FakeStorage],
        scalars: &[u64],
        generator: &mut u64,
        reserve: usize,
        outputs: &mut Vec<FakeStorage>,
    ) -> Result<Vec<u8>, Failure> {
        if template.new_storages.len() > reserve {
            return Err(Failure::new(ErrorCode::Runtime, "more outputs than reserved"));
        }
        let new = template.new_storages.len();
        self.run(template, inputs, scalars, generator, new, outputs)?;
        let mut body = Vec::new();
        genie_wire::varint::put(&mut body, new as u64);
        for bytes in &template.new_storages {
            genie_wire::varint::put(&mut body, *bytes);
        }
        body.extend_from_slice(&[0, 0]);
        Ok(body)
    }

    fn allocate(&self, bytes: u64) -> Result<FakeStorage, Failure> {
        if bytes > 1 << 30 {
            return Err(Failure::new(ErrorCode::OutOfMemory, "the allocator refuses"));
        }
        Ok(FakeStorage(vec![0; bytes as usize].into()))
    }

    fn bytes(&self, storage: &FakeStorage) -> u64 {
        storage.bytes().len() as u64
    }

    fn duplicate(&self, storage: &FakeStorage) -> Result<FakeStorage, Failure> {
        Ok(FakeStorage(storage.bytes().to_vec().into()))
    }

    fn adopt(&self, memory: FrozenMemory) -> Option<FakeStorage> {
        (!self.remote).then(|| FakeStorage(memory.as_slice().to_vec().into()))
    }

    fn resize(&self, storage: &mut FakeStorage, bytes: u64) -> Result<(), Failure> {
        storage.0.get_mut().resize(bytes as usize, 0);
        Ok(())
    }

    fn slice<'a>(&self, storage: &'a FakeStorage) -> Option<&'a [u8]> {
        (!self.remote).then(|| storage.bytes())
    }

    fn slice_mut<'a>(&self, storage: &'a mut FakeStorage) -> Option<&'a mut [u8]> {
        (!self.remote).then(|| storage.0.get_mut().as_mut_slice())
    }

    fn copy_in_shared(
        &self,
        storage: &mut FakeStorage,
        offset: u64,
        from: &SharedMemory,
        at: u64,
        len: u64,
    ) -> Option<Result<(), Failure>> {
        let to = &mut storage.0.get_mut()[offset as usize..][..len as usize];
        self.direct.then(|| Ok(from.read(at, to)?))
    }

    fn copy_out_shared(
        &self,
        storage: &FakeStorage,
        offset: u64,
        to: &SharedMemory,
        at: u64,
        len: u64,
    ) -> Option<Result<(), Failure>> {
        let from = &storage.bytes()[offset as usize..][..len as usize];
        self.direct.then(|| Ok(to.write(at, from)?))
    }

    fn copy_in(&self, storage: &mut FakeStorage, offset: u64, from: &[u8]) -> Result<(), Failure> {
        storage.0.get_mut()[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn copy_out(&self, storage: &FakeStorage, offset: u64, to: &mut [u8]) -> Result<(), Failure> {
        to.copy_from_slice(&storage.bytes()[offset as usize..][..to.len()]);
        Ok(())
    }

    fn generator(&self) -> Result<u64, Failure> {
        Ok(67280421310721)
    }

    fn seed(&self, generator: &mut u64, seed: u64) -> Result<(), Failure> {
        *generator = seed;
        Ok(())
    }

    fn generator_state(&self, generator: &mut u64) -> Result<Vec<u8>, Failure> {
        Ok(generator.to_le_bytes().to_vec())
    }

    fn set_generator_state(&self, generator: &mut u64, state: &[u8]) -> Result<(), Failure> {
        let state =
            state.try_into().map_err(|_| Failure::new(ErrorCode::Value, "a state has 8 bytes"))?;
        *generator = u64::from_le_bytes(state);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn clock_ns(&self) -> u64 {
        self.clock_ns.replace(self.clock_ns.get() + 1)
    }

    fn enter(&self, settings: &[u8], threads: u32) -> Result<(), Failure> {
        self.settings.replace(settings.to_vec());
        if threads != 0 {
            self.threads.set(threads);
        }
        if settings == b"unknown" {
            return Err(Failure::new(ErrorCode::NotImplemented, "told to know no such setting"));
        }
        Ok(())
    }

    fn leave(&self) {}
}
