//! The backend of the product: libtorch on one device.

use genie_aten::AtenError;
use genie_aten::execute::{
    Device, Generator, Storage, Template, count_memory, enter, leave, limit_memory, memory_in_use,
};
use genie_transport::{FrozenMemory, SharedMemory};
use genie_wire::ErrorCode;

use genie_executor::Pinned;
use genie_executor::{Backend, Failure};

/// Runs templates on `device` through the C++ shim.
pub struct Aten {
    device: Device,
    /// Whether the process is a client's, which has settings of its own.
    guest: bool,
}

impl Aten {
    /// In the node's own process, whose memory libtorch then allocates through a count of it.
    /// `genie_aten::execute::init` must have succeeded before.
    pub fn new(device: Device) -> Self {
        count_memory();
        Aten { device, guest: false }
    }

    /// In a process that is not the node's own.
    pub fn guest(device: Device) -> Self {
        Aten { device, guest: true }
    }
}

pub(crate) fn failure(error: AtenError) -> Failure {
    let code = ErrorCode::from_u8(error.code).unwrap_or(ErrorCode::Runtime);
    Failure { code, message: error.message }
}

impl Backend for Aten {
    type Template = Template;
    type Storage = Storage;
    type Generator = Generator;

    fn template(&self, encoded: &[u8]) -> Result<Template, Failure> {
        Template::new(encoded, self.device).map_err(failure)
    }

    fn run(
        &self,
        template: &Template,
        inputs: &[&Storage],
        scalars: &[u64],
        generator: &mut Generator,
        new: usize,
        outputs: &mut Vec<Storage>,
    ) -> Result<(), Failure> {
        template.run(inputs, scalars, generator, new, outputs).map_err(failure)
    }

    fn run_dynamic(
        &self,
        template: &Template,
        inputs: &[&Storage],
        scalars: &[u64],
        generator: &mut Generator,
        reserve: usize,
        outputs: &mut Vec<Storage>,
    ) -> Result<Vec<u8>, Failure> {
        template.run_dynamic(inputs, scalars, generator, reserve, outputs).map_err(failure)
    }

    fn allocate(&self, bytes: u64) -> Result<Storage, Failure> {
        Storage::new(self.device, bytes).map_err(failure)
    }

    fn bytes(&self, storage: &Storage) -> u64 {
        storage.bytes()
    }

    fn duplicate(&self, storage: &Storage) -> Result<Storage, Failure> {
        storage.duplicate().map_err(failure)
    }

    fn adopt(&self, memory: FrozenMemory) -> Option<Storage> {
        if !self.device.is_cpu() {
            return None;
        }
        let (address, bytes) = (memory.address(), memory.bytes());
        // SAFETY: the memory is mapped for its bytes while `memory` lives, which the storage keeps;
        // nobody else in this process knows the address.
        unsafe { Storage::over(address, bytes, Box::new(memory)) }
            .inspect_err(|error| tracing::warn!(error = error.message, "a weight is not shared"))
            .ok()
    }

    fn resize(&self, storage: &mut Storage, bytes: u64) -> Result<(), Failure> {
        storage.resize(bytes).map_err(failure)
    }

    fn slice<'a>(&self, storage: &'a Storage) -> Option<&'a [u8]> {
        storage.as_slice()
    }

    fn slice_mut<'a>(&self, storage: &'a mut Storage) -> Option<&'a mut [u8]> {
        storage.as_mut_slice()
    }

    fn copy_in(&self, storage: &mut Storage, offset: u64, from: &[u8]) -> Result<(), Failure> {
        storage.copy_in(offset, from).map_err(failure)
    }

    fn copy_out(&self, storage: &Storage, offset: u64, to: &mut [u8]) -> Result<(), Failure> {
        storage.copy_out(offset, to).map_err(failure)
    }

    fn pin(&self, memory: &SharedMemory) -> Option<Pinned> {
        let device = self.device.cuda_index()?;
        // SAFETY: a region keeps the mapping until after the guard is dropped.
        let pinned = unsafe { Pinned::new(memory.address(), memory.bytes(), device) };
        pinned
            .inspect_err(
                |why| tracing::warn!(%why, "payloads pass through memory that is not pinned"),
            )
            .ok()
    }

    fn copy_in_shared(
        &self,
        storage: &mut Storage,
        offset: u64,
        from: &SharedMemory,
        at: u64,
        len: u64,
    ) -> Option<Result<(), Failure>> {
        self.device.cuda_index()?;
        Some(from.span(at, len).map_err(Failure::from).and_then(|from| {
            // SAFETY: `span` checked the range, which stays mapped while `from` is borrowed.
            unsafe { storage.copy_in_from(offset, from, len) }.map_err(failure)
        }))
    }

    fn copy_out_shared(
        &self,
        storage: &Storage,
        offset: u64,
        to: &SharedMemory,
        at: u64,
        len: u64,
    ) -> Option<Result<(), Failure>> {
        self.device.cuda_index()?;
        Some(to.span(at, len).map_err(Failure::from).and_then(|to| {
            // SAFETY: as above; other writers of these bytes are peers, in their own processes.
            unsafe { storage.copy_out_to(offset, to, len) }.map_err(failure)
        }))
    }

    fn generator(&self) -> Result<Generator, Failure> {
        Generator::new(self.device).map_err(failure)
    }

    fn seed(&self, generator: &mut Generator, seed: u64) -> Result<(), Failure> {
        generator.seed(seed).map_err(failure)
    }

    fn generator_state(&self, generator: &mut Generator) -> Result<Vec<u8>, Failure> {
        generator.state().map_err(failure)
    }

    fn set_generator_state(&self, generator: &mut Generator, state: &[u8]) -> Result<(), Failure> {
        generator.set_state(state).map_err(failure)
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.device.synchronize().map_err(failure)
    }

    fn clock_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn enter(&self, settings: &[u8], threads: u32) -> Result<(), Failure> {
        enter(settings, threads).map_err(failure)
    }

    /// Of the CPU's memory; the CUDA allocator knows what its device has.
    fn limit(&self, bytes: u64) {
        if self.device.is_cpu() && !self.guest {
            limit_memory(memory_in_use().0.saturating_add(bytes));
        }
    }

    fn leave(&self) {
        if let Err(error) = leave(self.guest) {
            tracing::warn!(error = error.message, "settings of PyTorch could not be set back");
        }
    }
}
