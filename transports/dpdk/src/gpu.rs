//! GPUs as DPDK sees them (GPUDev): memory of a GPU, its mapping for the processor, and host
//! memory that a GPU may reach.
//!
//! A GPU appears here when a GPUDev driver found one. Debian's DPDK carries no such driver; for
//! CUDA, `librte_gpu_cuda.so` is built from DPDK's sources and given with `eal = -d PATH`
//! (docs/dpdk.md). DPDK itself refuses drivers in a world-writable directory.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use dpdk_sys as sys;

use crate::error::{DpdkError, Result, last_reason};

/// A GPU, by GPUDev's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu(i16);

/// What GPUDev says about a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    pub name: String,
    pub total_bytes: u64,
    pub page_bytes: u64,
}

impl Gpu {
    /// All GPUs that drivers found. None before EAL was started.
    pub fn all() -> Vec<Gpu> {
        let mut found = Vec::new();
        let mut last = -1;
        loop {
            // SAFETY: accepts any number; -1 says that there are no more.
            last = unsafe { sys::genie_gpu_next(last) };
            if last < 0 {
                return found;
            }
            found.push(Gpu(last));
        }
    }

    /// The GPU of this number, if there is one.
    pub fn by_number(number: i32) -> Option<Gpu> {
        Gpu::all().into_iter().find(|gpu| i32::from(gpu.0) == number)
    }

    pub fn number(self) -> i16 {
        self.0
    }

    pub fn facts(self) -> Result<GpuFacts> {
        let mut info = sys::GpuInfo { name: [0; 64], total_memory: 0, page_size: 0, numa_node: -1 };
        // SAFETY: `info` is a valid place for the answer.
        let failed = unsafe { sys::genie_gpu_info(self.0, &mut info) };
        self.check(failed, "read its facts")?;
        // SAFETY: the shim ends the name with a zero within its 64 bytes.
        let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
        Ok(GpuFacts {
            name: name.to_string_lossy().into_owned(),
            total_bytes: info.total_memory,
            page_bytes: info.page_size,
        })
    }

    /// Memory of the GPU, `bytes` bytes at a multiple of `align`.
    pub fn allocate(self, bytes: usize, align: u32) -> Result<GpuMemory> {
        // SAFETY: plain numbers; null is handled.
        let address = unsafe { sys::rte_gpu_mem_alloc(self.0, bytes, align) };
        if address.is_null() {
            return Err(self.failed("allocate its memory", last_reason()));
        }
        Ok(GpuMemory { gpu: self, address: address.cast(), bytes })
    }

    /// Waits until the GPU sees what devices wrote before.
    pub fn write_barrier(self) -> Result<()> {
        // SAFETY: takes a number.
        let failed = unsafe { sys::rte_gpu_wmb(self.0) };
        self.check(failed, "order writes to it")
    }

    /// Maps memory of this GPU, that somebody else allocated, for the processor.
    ///
    /// # Safety
    /// `address` must be `bytes` bytes of this GPU's memory, valid while the mapping lives.
    pub unsafe fn map_foreign(self, address: *mut u8, bytes: usize) -> Result<ForeignMapping> {
        // SAFETY: the caller vouches for the memory; null is handled.
        let mapped = unsafe { sys::rte_gpu_mem_cpu_map(self.0, bytes, address.cast()) };
        if mapped.is_null() {
            return Err(self.failed("map its memory for the processor", last_reason()));
        }
        Ok(ForeignMapping { gpu: self, device: address, address: mapped.cast(), bytes })
    }

    /// Lets this GPU reach host memory.
    ///
    /// # Safety
    /// The memory must be valid while the registration lives.
    pub unsafe fn register_host(self, address: *mut u8, bytes: usize) -> Result<HostRegistration> {
        // SAFETY: the caller vouches for the memory.
        let failed = unsafe { sys::rte_gpu_mem_register(self.0, bytes, address.cast()) };
        self.check(failed, "register host memory with it")?;
        Ok(HostRegistration { gpu: self, address })
    }

    fn check(self, failed: i32, step: &'static str) -> Result<()> {
        if failed == 0 { Ok(()) } else { Err(self.failed(step, crate::error::reason(failed))) }
    }

    fn failed(self, step: &'static str, reason: String) -> DpdkError {
        DpdkError::Gpu { gpu: self.0, step, reason }
    }
}

/// Memory of a GPU that GPUDev allocated; freed when dropped. Its address is a device pointer: the
/// processor may not touch it.
#[derive(Debug)]
pub struct GpuMemory {
    gpu: Gpu,
    address: *mut u8,
    bytes: usize,
}

impl GpuMemory {
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    /// Maps it for the processor.
    pub fn map(self: &Arc<Self>) -> Result<GpuMapping> {
        // SAFETY: the memory is ours and is kept alive by the reference beside the mapping.
        let mapping = unsafe { self.gpu.map_foreign(self.address, self.bytes) }?;
        Ok(GpuMapping { mapping, _memory: self.clone() })
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `Gpu::allocate`, freed once.
        unsafe { sys::rte_gpu_mem_free(self.gpu.0, self.address.cast::<c_void>()) };
    }
}

// SAFETY: an address and a number; GPUDev's calls on them may come from any thread.
unsafe impl Send for GpuMemory {}
// SAFETY: as above; `&GpuMemory` gives access to no bytes.
unsafe impl Sync for GpuMemory {}

/// Our own GPU memory as the processor sees it.
#[derive(Debug)]
pub struct GpuMapping {
    mapping: ForeignMapping,
    _memory: Arc<GpuMemory>,
}

impl GpuMapping {
    pub fn address(&self) -> *mut u8 {
        self.mapping.address
    }
}

/// Somebody's GPU memory as the processor sees it; unmapped when dropped.
#[derive(Debug)]
pub struct ForeignMapping {
    gpu: Gpu,
    device: *mut u8,
    address: *mut u8,
    bytes: usize,
}

impl ForeignMapping {
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for ForeignMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `Gpu::map_foreign`, unmapped once; takes the device's address.
        unsafe { sys::rte_gpu_mem_cpu_unmap(self.gpu.0, self.device.cast()) };
    }
}

// SAFETY: addresses and a number; GPUDev's calls on them may come from any thread.
unsafe impl Send for ForeignMapping {}
// SAFETY: as above; bytes are reached through raw pointers only.
unsafe impl Sync for ForeignMapping {}

/// Host memory that a GPU may reach; given up when dropped.
#[derive(Debug)]
pub struct HostRegistration {
    gpu: Gpu,
    address: *mut u8,
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        // SAFETY: registered by `Gpu::register_host`, given up once.
        unsafe { sys::rte_gpu_mem_unregister(self.gpu.0, self.address.cast()) };
    }
}

// SAFETY: an address and a number; GPUDev's calls on them may come from any thread.
unsafe impl Send for HostRegistration {}
// SAFETY: as above.
unsafe impl Sync for HostRegistration {}

/// The fake GPU of the tests (feature `fake-gpu`).
#[cfg(feature = "fake-gpu")]
pub mod fake {
    use std::ffi::CString;

    use super::{DpdkError, Gpu, Result, sys};

    pub use sys::FakeGpuCounts;

    /// Adds one to GPUDev; EAL must have been started.
    pub fn add(name: &str) -> Result<Gpu> {
        let name = CString::new(name).expect("tests give names without zeros");
        // SAFETY: a terminated name.
        let number = unsafe { sys::genie_fake_gpu_add(name.as_ptr()) };
        if number < 0 {
            let reason = crate::error::reason(number);
            return Err(DpdkError::Gpu { gpu: -1, step: "add a fake GPU", reason });
        }
        Ok(Gpu(number as i16))
    }

    /// What all fake GPUs were asked to do, so far.
    pub fn counts() -> FakeGpuCounts {
        let mut counts = FakeGpuCounts::default();
        // SAFETY: a valid place for the answer.
        unsafe { sys::genie_fake_gpu_counts(&mut counts) };
        counts
    }
}
