//! What the executor needs of a device.

use genie_transport::{FrozenMemory, SharedMemory};

use crate::Failure;
pub use crate::pinned::Pinned;

/// A device that runs templates over storages. libtorch in the product, plain memory in tests.
///
/// Sizes and ranges are in bytes. Every object belongs to the backend that made it.
pub trait Backend {
    type Template;
    type Storage;
    type Generator;

    /// Binds an encoded template: resolves its operator and decodes its arguments.
    fn template(&self, encoded: &[u8]) -> Result<Self::Template, Failure>;

    /// Runs a template and pushes its `new` storages, all of them or none.
    fn run(
        &self,
        template: &Self::Template,
        inputs: &[&Self::Storage],
        scalars: &[u64],
        generator: &mut Self::Generator,
        new: usize,
        outputs: &mut Vec<Self::Storage>,
    ) -> Result<(), Failure>;

    /// Runs a template whose outputs are not known before; returns their description (the body of
    /// `genie_wire::Reply::Outputs`) and pushes at most `reserve` storages.
    fn run_dynamic(
        &self,
        template: &Self::Template,
        inputs: &[&Self::Storage],
        scalars: &[u64],
        generator: &mut Self::Generator,
        reserve: usize,
        outputs: &mut Vec<Self::Storage>,
    ) -> Result<Vec<u8>, Failure>;

    /// Uninitialised bytes; does not fit is `OutOfMemory`.
    fn allocate(&self, bytes: u64) -> Result<Self::Storage, Failure>;
    fn bytes(&self, storage: &Self::Storage) -> u64;
    fn duplicate(&self, storage: &Self::Storage) -> Result<Self::Storage, Failure>;
    /// A storage over memory that other processes read and none can change; it is never written
    /// where others see it. `None` where the device has memory of its own.
    fn adopt(&self, _memory: FrozenMemory) -> Option<Self::Storage> {
        None
    }
    fn resize(&self, storage: &mut Self::Storage, bytes: u64) -> Result<(), Failure>;

    /// The storage's bytes when the host can reach them directly.
    fn slice<'a>(&self, storage: &'a Self::Storage) -> Option<&'a [u8]>;
    fn slice_mut<'a>(&self, storage: &'a mut Self::Storage) -> Option<&'a mut [u8]>;
    /// The range was checked to lie inside the storage.
    fn copy_in(&self, storage: &mut Self::Storage, offset: u64, from: &[u8])
    -> Result<(), Failure>;
    /// The range was checked to lie inside the storage.
    fn copy_out(&self, storage: &Self::Storage, offset: u64, to: &mut [u8]) -> Result<(), Failure>;

    /// Pins memory that copies come from and go to, if the device gains by that.
    fn pin(&self, _memory: &SharedMemory) -> Option<Pinned> {
        None
    }

    /// Copies from memory that a peer may change meanwhile, if the device reads it by itself. The
    /// ranges were checked.
    fn copy_in_shared(
        &self,
        _storage: &mut Self::Storage,
        _offset: u64,
        _from: &SharedMemory,
        _at: u64,
        _len: u64,
    ) -> Option<Result<(), Failure>> {
        None
    }

    /// Copies to memory that a peer may read meanwhile, if the device writes it by itself. The
    /// ranges were checked.
    fn copy_out_shared(
        &self,
        _storage: &Self::Storage,
        _offset: u64,
        _to: &SharedMemory,
        _at: u64,
        _len: u64,
    ) -> Option<Result<(), Failure>> {
        None
    }

    /// A generator in the state PyTorch's default one starts in.
    fn generator(&self) -> Result<Self::Generator, Failure>;
    fn seed(&self, generator: &mut Self::Generator, seed: u64) -> Result<(), Failure>;
    fn generator_state(&self, generator: &mut Self::Generator) -> Result<Vec<u8>, Failure>;
    fn set_generator_state(
        &self,
        generator: &mut Self::Generator,
        state: &[u8],
    ) -> Result<(), Failure>;

    /// Waits for everything given to the device.
    fn synchronize(&self) -> Result<(), Failure>;
    /// The time on a clock that only goes forward, to measure what the device takes.
    fn clock_ns(&self) -> u64;
    /// Makes these PyTorch's settings (`genie_wire::Record::Settings`) and number of CPU threads an
    /// operator uses (0: as it is), for what this thread runs until it enters again, or leaves. It
    /// leaves after a failure too.
    fn enter(&self, settings: &[u8], threads: u32) -> Result<(), Failure>;
    fn leave(&self);
    /// Refuses as `OutOfMemory` what is taken from now on beyond `bytes` more than what is in use,
    /// whoever takes it: results, copies, and what an operator needs while it runs. `u64::MAX`
    /// refuses nothing. A device that cannot tell refuses when it is full.
    fn limit(&self, _bytes: u64) {}
}
