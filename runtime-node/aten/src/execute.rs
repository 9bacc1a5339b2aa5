//! Running templates on libtorch (the node's half of the shim).
//!
//! Objects belong to the thread that drives their device; none is `Sync`.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::{AtenError, GenieError};

/// Where a template runs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    kind: u8,
    index: u8,
}

impl Device {
    pub const CPU: Device = Device { kind: 0, index: 0 };

    pub fn cuda(index: u8) -> Self {
        Device { kind: 1, index }
    }

    pub fn is_cpu(self) -> bool {
        self.kind == 0
    }

    /// The number of a CUDA device.
    pub fn cuda_index(self) -> Option<u8> {
        (self.kind == 1).then_some(self.index)
    }

    /// The name of the device's model, as its driver tells it.
    pub fn name(self) -> String {
        let mut name = [0u8; 256];
        // SAFETY: `name` has the length passed with it; C++ terminates what it writes.
        unsafe { genie_execute_device_name(self, name.as_mut_ptr().cast(), name.len()) };
        CStr::from_bytes_until_nul(&name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Bytes of the device's memory; 0 for the CPU, whose budget is the caller's choice.
    pub fn memory_bytes(self) -> u64 {
        // SAFETY: takes a plain value.
        unsafe { genie_execute_device_memory(self) }
    }

    /// Waits until everything given to the device is done.
    pub fn synchronize(self) -> Result<(), AtenError> {
        // SAFETY: `check` passes a valid error.
        AtenError::check(|error| unsafe { genie_execute_synchronize(self, error) })
    }

    /// Schema hashes of the operators the device runs. Those named in `without` (`aten::tanh` stands
    /// for all its overloads, `aten::tanh.out` for one) are left to the clients from now on: they
    /// are not among these, and [`Template::new`] refuses them too.
    pub fn ops(self, without: &[String]) -> Vec<u64> {
        withhold(without);
        let mut ops = Vec::new();
        self.for_each_op(|op| {
            if op.why_not.is_empty() {
                ops.push(op.schema_hash);
            }
        });
        ops
    }

    /// Names of all operators that PyTorch knows, and why this device does not run them.
    pub fn reviewed(self) -> Vec<(String, Option<String>)> {
        let mut ops = Vec::new();
        self.for_each_op(|op| {
            let why_not = (!op.why_not.is_empty()).then(|| op.why_not.to_owned());
            ops.push((op.name.to_owned(), why_not));
        });
        ops
    }

    fn for_each_op<F: FnMut(Operator<'_>)>(self, mut each: F) {
        extern "C" fn visit<F: FnMut(Operator<'_>)>(
            context: *mut c_void,
            name: *const c_char,
            schema_hash: u64,
            why_not: *const c_char,
        ) {
            // SAFETY: `context` is `each` below, borrowed for the duration of the call, and both
            // strings are terminated and kept by C++ until this function returns.
            let (each, name, why_not) = unsafe {
                (&mut *context.cast::<F>(), CStr::from_ptr(name), CStr::from_ptr(why_not))
            };
            let (name, why_not) = (name.to_string_lossy(), why_not.to_string_lossy());
            each(Operator { name: &name, schema_hash, why_not: &why_not });
        }
        // SAFETY: `visit` is only called during this call, with the context passed here.
        unsafe { genie_execute_ops(self, visit::<F>, (&raw mut each).cast()) };
    }
}

/// What C++ tells of an operator.
struct Operator<'a> {
    name: &'a str,
    schema_hash: u64,
    /// Empty when it runs.
    why_not: &'a str,
}

/// Leaves operators to the clients, on all devices of this process.
fn withhold(names: &[String]) {
    // A name with a NUL is no operator's.
    for name in names.iter().filter_map(|name| CString::new(name.as_str()).ok()) {
        // SAFETY: C++ copies the terminated string.
        unsafe { genie_execute_withhold(name.as_ptr()) };
    }
}

/// Prepares libtorch. Call once per process, before anything else here.
pub fn init() -> Result<(), AtenError> {
    // SAFETY: `check` passes a valid error.
    AtenError::check(|error| unsafe { genie_execute_init(error) })
}

/// Counts the CPU memory that libtorch allocates from now on, for [`limit_memory`] and
/// [`memory_in_use`]. In the node's own process alone: its allocator stays in place.
pub fn count_memory() {
    // SAFETY: takes nothing; C++ does it once.
    unsafe { genie_execute_count_memory() }
}

/// Refuses what libtorch allocates beyond `bytes` in use as out of memory, until it is called again.
pub fn limit_memory(bytes: u64) {
    // SAFETY: takes a plain value.
    unsafe { genie_execute_limit_memory(bytes) }
}

/// Counts in `in_use` what libtorch has allocated, from now on, and lets it have no more than `lease`
/// unless `more`, asked for so many bytes in all, says that the lease was raised. Other processes see
/// both words. After [`count_memory`], before other threads allocate.
pub fn borrow_memory(
    in_use: &'static AtomicU64,
    lease: &'static AtomicU64,
    more: extern "C" fn(u64) -> bool,
) {
    // SAFETY: the words last as long as the process, and C++ takes them for the atomics that they
    // are.
    unsafe { genie_execute_borrow_memory(in_use.as_ptr(), lease.as_ptr(), more) }
}

/// Zeroes memory from now on when libtorch gives it back. After [`count_memory`].
pub fn scrub_memory() {
    // SAFETY: takes nothing.
    unsafe { genie_execute_scrub_memory() }
}

/// Bytes that libtorch has allocated since [`count_memory`] and not freed, now and at most.
pub fn memory_in_use() -> (u64, u64) {
    let (mut now, mut peak) = (0, 0);
    // SAFETY: both places are valid for the call.
    unsafe { genie_execute_memory_in_use(&mut now, &mut peak) };
    (now, peak)
}

static TELL: OnceLock<fn(&str)> = OnceLock::new();

/// Gives PyTorch's warnings about operators to `tell`, instead of stderr: of threads that [`enter`] from
/// now on. The first call counts.
pub fn tell_warnings(tell: fn(&str)) {
    extern "C" fn told(message: *const c_char) {
        // SAFETY: C++ passes a terminated string that it keeps until this function returns.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        if let Some(tell) = TELL.get() {
            tell(&message);
        }
    }
    let _ = TELL.set(tell);
    // SAFETY: `told` may be called from any thread, at any time.
    unsafe { genie_execute_tell_warnings(told) }
}

/// Makes these the settings of the process and of this thread: PyTorch's own but for those that are
/// encoded, and the number of threads one operator may use on the CPU (0: as it is); until the
/// thread enters again, or [`leave`]s, which it does also after a failure. Waits while other
/// threads run under other settings.
pub fn enter(settings: &[u8], threads: u32) -> Result<(), AtenError> {
    // SAFETY: the slice is valid for its length and `check` passes a valid error.
    AtenError::check(|error| unsafe {
        genie_execute_enter(settings.as_ptr(), settings.len(), threads, error)
    })
}

/// Lets others set what they need. `restore`: the process is somebody else's; it gets back what it
/// had before.
pub fn leave(restore: bool) -> Result<(), AtenError> {
    // SAFETY: a plain value, and `check` passes a valid error.
    AtenError::check(|error| unsafe { genie_execute_leave(restore.into(), error) })
}

/// The number of CUDA devices, or why there is none.
pub fn cuda_devices() -> Result<u8, String> {
    let mut reason = GenieError::empty();
    // SAFETY: `reason` is valid for the call.
    match unsafe { genie_execute_cuda_devices(&mut reason) } {
        0 => Err(reason.text()),
        count => Ok(count.min(255) as u8),
    }
}

/// The version of the libtorch in use.
pub fn torch_version() -> String {
    // SAFETY: C++ returns a static, terminated string.
    unsafe { CStr::from_ptr(genie_execute_torch_version()) }.to_string_lossy().into_owned()
}

macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $free:ident) => {
        #[repr(C)]
        struct $raw {
            _opaque: [u8; 0],
        }

        $(#[$doc])*
        pub struct $name(NonNull<$raw>);

        // SAFETY: the object has no thread affinity; the owner uses it from one thread at a time.
        unsafe impl Send for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the matching constructor and is freed once.
                unsafe { $free(self.0.as_ptr()) }
            }
        }

        impl $name {
            fn make(call: impl FnOnce(*mut *mut $raw, *mut GenieError) -> i32)
                -> Result<Self, AtenError> {
                let mut pointer = std::ptr::null_mut();
                AtenError::check(|error| call(&mut pointer, error))?;
                Ok($name(NonNull::new(pointer).expect("C++ returns an object with code 0")))
            }
        }
    };
}

owned!(
    /// A template bound to a device: operator resolved, arguments decoded.
    Template,
    RawTemplate,
    genie_template_free
);
owned!(
    /// A reference to bytes on a device.
    Storage,
    RawStorage,
    genie_storage_free
);
owned!(
    /// The state of one session's random generator.
    Generator,
    RawGenerator,
    genie_generator_free
);

impl Template {
    /// Binds an encoded `genie_wire::Template` to `device`.
    pub fn new(encoded: &[u8], device: Device) -> Result<Self, AtenError> {
        // SAFETY: the slice is valid for the call; C++ copies what it keeps.
        Template::make(|out, error| unsafe {
            genie_template_new(encoded.as_ptr(), encoded.len(), device, out, error)
        })
    }

    /// Runs the template; pushes its new storages to `outputs`.
    ///
    /// `inputs` must hold one storage per slot, `scalars` the template's words, and `new` must be
    /// the template's number of new storages: the caller checked them when it decoded the record.
    pub fn run(
        &self,
        inputs: &[&Storage],
        scalars: &[u64],
        generator: &mut Generator,
        new: usize,
        outputs: &mut Vec<Storage>,
    ) -> Result<(), AtenError> {
        let mut made = [std::ptr::null_mut(); INLINE_OUTPUTS];
        let mut many;
        let made: &mut [*mut RawStorage] = if new <= INLINE_OUTPUTS {
            &mut made[..new]
        } else {
            many = vec![std::ptr::null_mut(); new];
            &mut many
        };
        // SAFETY: `&Storage` has the layout of a non-null `RawStorage` pointer behind one
        // reference, so the inputs are copied into a pointer array first; all slices outlive the
        // call, and C++ writes exactly `new` pointers on success and none on failure.
        AtenError::check(|error| unsafe {
            with_pointers(inputs, |pointers| {
                genie_template_run(
                    self.0.as_ptr(),
                    pointers,
                    scalars.as_ptr(),
                    generator.0.as_ptr(),
                    made.as_mut_ptr(),
                    error,
                )
            })
        })?;
        outputs.extend(made.iter().map(|pointer| {
            Storage(NonNull::new(*pointer).expect("C++ fills every output with code 0"))
        }));
        Ok(())
    }

    /// Runs a template without declared outputs. Returns the encoded description of what it made
    /// (the body of `genie_wire::Reply::Outputs`) and pushes the storages, at most `reserve`.
    pub fn run_dynamic(
        &self,
        inputs: &[&Storage],
        scalars: &[u64],
        generator: &mut Generator,
        reserve: usize,
        outputs: &mut Vec<Storage>,
    ) -> Result<Vec<u8>, AtenError> {
        extern "C" fn write(context: *mut c_void, bytes: *const u8, len: usize) {
            // SAFETY: `context` is the vector below; `bytes` is valid for `len` during the call.
            unsafe {
                (*context.cast::<Vec<u8>>())
                    .extend_from_slice(std::slice::from_raw_parts(bytes, len));
            }
        }
        let mut made = vec![std::ptr::null_mut(); reserve];
        let mut count = 0u64;
        let mut body: Vec<u8> = Vec::new();
        // SAFETY: as in `run`; C++ writes `count <= reserve` pointers.
        AtenError::check(|error| unsafe {
            with_pointers(inputs, |pointers| {
                genie_template_run_dynamic(
                    self.0.as_ptr(),
                    pointers,
                    scalars.as_ptr(),
                    generator.0.as_ptr(),
                    made.as_mut_ptr(),
                    reserve as u64,
                    &mut count,
                    write,
                    (&raw mut body).cast(),
                    error,
                )
            })
        })?;
        outputs.extend(made[..count as usize].iter().map(|pointer| {
            Storage(NonNull::new(*pointer).expect("C++ fills the outputs it counts"))
        }));
        Ok(body)
    }
}

const INLINE_OUTPUTS: usize = 4;
const INLINE_INPUTS: usize = 12;

/// Hands the storages over as an array of pointers.
fn with_pointers<R>(storages: &[&Storage], call: impl FnOnce(*const *mut RawStorage) -> R) -> R {
    if storages.len() <= INLINE_INPUTS {
        let mut pointers = [std::ptr::null_mut(); INLINE_INPUTS];
        for (pointer, storage) in pointers.iter_mut().zip(storages) {
            *pointer = storage.0.as_ptr();
        }
        call(pointers.as_ptr())
    } else {
        let pointers: Vec<_> = storages.iter().map(|storage| storage.0.as_ptr()).collect();
        call(pointers.as_ptr())
    }
}

impl Storage {
    /// Allocates uninitialised bytes; an allocation that does not fit is an out-of-memory error.
    pub fn new(device: Device, bytes: u64) -> Result<Self, AtenError> {
        // SAFETY: `make` passes valid out pointers.
        Storage::make(|out, error| unsafe { genie_storage_new(device, bytes, out, error) })
    }

    /// A CPU storage over memory that is there already; `owner` is dropped when nothing uses it any
    /// more. It does not grow.
    ///
    /// # Safety
    /// The memory is readable and writable for `bytes` bytes, and nobody else's, while `owner` lives.
    pub unsafe fn over<T: Send + 'static>(
        address: *mut u8,
        bytes: u64,
        owner: Box<T>,
    ) -> Result<Self, AtenError> {
        extern "C" fn let_go<T>(owner: *mut c_void) {
            // SAFETY: the pointer that `over` gave to C++, which calls this once.
            drop(unsafe { Box::from_raw(owner.cast::<T>()) });
        }
        let owner: *mut c_void = Box::into_raw(owner).cast();
        // SAFETY: the caller's promise; C++ takes the owner, whether or not it makes a storage.
        Storage::make(|out, error| unsafe {
            genie_storage_over(address.cast(), bytes, owner, let_go::<T>, out, error)
        })
    }

    pub fn bytes(&self) -> u64 {
        // SAFETY: the pointer is valid while `self` lives.
        unsafe { genie_storage_bytes(self.0.as_ptr()) }
    }

    /// Copies host memory in. The range must lie inside the storage; C++ checks it.
    pub fn copy_in(&mut self, offset: u64, from: &[u8]) -> Result<(), AtenError> {
        // SAFETY: the source slice is valid for its length.
        unsafe { self.copy_in_from(offset, from.as_ptr(), from.len() as u64) }
    }

    /// Copies `len` bytes of host memory in, which others may change meanwhile.
    ///
    /// # Safety
    /// `from` must be mapped for `len` bytes.
    pub unsafe fn copy_in_from(
        &mut self,
        offset: u64,
        from: *const u8,
        len: u64,
    ) -> Result<(), AtenError> {
        // SAFETY: the caller's promise; C++ waits until the device has read it.
        AtenError::check(|error| unsafe {
            genie_storage_copy_in(self.0.as_ptr(), offset, from.cast(), len, error)
        })
    }

    /// Copies out to host memory. The range must lie inside the storage; C++ checks it.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) -> Result<(), AtenError> {
        // SAFETY: the destination slice is valid for its length.
        unsafe { self.copy_out_to(offset, to.as_mut_ptr(), to.len() as u64) }
    }

    /// Copies `len` bytes out to host memory, which others may read meanwhile.
    ///
    /// # Safety
    /// `to` must be mapped for `len` bytes, and no reference to them be held.
    pub unsafe fn copy_out_to(&self, offset: u64, to: *mut u8, len: u64) -> Result<(), AtenError> {
        // SAFETY: the caller's promise; C++ waits until the device has written it.
        AtenError::check(|error| unsafe {
            genie_storage_copy_out(self.0.as_ptr(), offset, to.cast(), len, error)
        })
    }

    /// The bytes of a CPU storage; `None` on other devices.
    pub fn as_slice(&self) -> Option<&[u8]> {
        // SAFETY: a CPU storage's data pointer is valid for its bytes while the storage lives,
        // and nothing writes to it while `self` is borrowed (operators take `&Storage` on the
        // same thread, after this borrow ends).
        unsafe {
            let data = genie_storage_data(self.0.as_ptr());
            match self.bytes() {
                0 => Some(&[]),
                bytes if !data.is_null() => Some(std::slice::from_raw_parts(data, bytes as usize)),
                _ => None,
            }
        }
    }

    /// The bytes of a CPU storage, to write; `None` on other devices.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        // SAFETY: as in `as_slice`; `self` is borrowed mutably and the storage belongs to it alone
        // (the executor never makes two owners of one storage).
        unsafe {
            let data = genie_storage_data(self.0.as_ptr());
            match self.bytes() {
                0 => Some(&mut []),
                bytes if !data.is_null() => {
                    Some(std::slice::from_raw_parts_mut(data, bytes as usize))
                }
                _ => None,
            }
        }
    }

    /// A new storage with the same bytes.
    pub fn duplicate(&self) -> Result<Self, AtenError> {
        // SAFETY: `make` passes valid out pointers.
        Storage::make(|out, error| unsafe { genie_storage_clone(self.0.as_ptr(), out, error) })
    }

    /// Changes the size, keeping the bytes that fit.
    pub fn resize(&mut self, bytes: u64) -> Result<(), AtenError> {
        // SAFETY: the pointer is valid while `self` lives.
        AtenError::check(|error| unsafe { genie_storage_resize(self.0.as_ptr(), bytes, error) })
    }
}

impl Generator {
    pub fn new(device: Device) -> Result<Self, AtenError> {
        // SAFETY: `make` passes valid out pointers.
        Generator::make(|out, error| unsafe { genie_generator_new(device, out, error) })
    }

    pub fn seed(&mut self, seed: u64) -> Result<(), AtenError> {
        // SAFETY: the pointer is valid while `self` lives.
        AtenError::check(|error| unsafe { genie_generator_seed(self.0.as_ptr(), seed, error) })
    }

    pub fn state(&mut self) -> Result<Vec<u8>, AtenError> {
        let mut state = vec![0u8; GENERATOR_STATE_BYTES_MAX];
        let mut len = state.len();
        // SAFETY: `state` has the capacity that `len` says.
        AtenError::check(|error| unsafe {
            genie_generator_state(self.0.as_ptr(), state.as_mut_ptr(), &mut len, error)
        })?;
        state.truncate(len);
        Ok(state)
    }

    pub fn set_state(&mut self, state: &[u8]) -> Result<(), AtenError> {
        // SAFETY: the slice is valid for its length.
        AtenError::check(|error| unsafe {
            genie_generator_set_state(self.0.as_ptr(), state.as_ptr(), state.len(), error)
        })
    }
}

/// The capacity that `Generator::state` offers C++.
const GENERATOR_STATE_BYTES_MAX: usize = 16 << 10;

unsafe extern "C" {
    fn genie_execute_init(error: *mut GenieError) -> i32;
    fn genie_execute_count_memory();
    fn genie_execute_limit_memory(bytes: u64);
    fn genie_execute_scrub_memory();
    fn genie_execute_borrow_memory(
        in_use: *mut u64,
        lease: *const u64,
        more: extern "C" fn(u64) -> bool,
    );
    fn genie_execute_memory_in_use(now: *mut u64, peak: *mut u64);
    fn genie_execute_tell_warnings(tell: extern "C" fn(*const c_char));
    fn genie_execute_enter(
        settings: *const u8,
        len: usize,
        threads: u32,
        error: *mut GenieError,
    ) -> i32;
    fn genie_execute_leave(restore: u8, error: *mut GenieError) -> i32;
    fn genie_execute_cuda_devices(reason: *mut GenieError) -> u32;
    fn genie_execute_device_memory(device: Device) -> u64;
    fn genie_execute_device_name(device: Device, out: *mut c_char, out_bytes: usize);
    fn genie_execute_torch_version() -> *const c_char;
    fn genie_execute_ops(
        device: Device,
        visit: extern "C" fn(*mut c_void, *const c_char, u64, *const c_char),
        context: *mut c_void,
    );
    fn genie_execute_withhold(name: *const c_char);
    fn genie_execute_synchronize(device: Device, error: *mut GenieError) -> i32;
    fn genie_template_new(
        bytes: *const u8,
        len: usize,
        device: Device,
        out: *mut *mut RawTemplate,
        error: *mut GenieError,
    ) -> i32;
    fn genie_template_free(template: *mut RawTemplate);
    fn genie_template_run(
        template: *mut RawTemplate,
        inputs: *const *mut RawStorage,
        scalars: *const u64,
        generator: *mut RawGenerator,
        outputs: *mut *mut RawStorage,
        error: *mut GenieError,
    ) -> i32;
    fn genie_template_run_dynamic(
        template: *mut RawTemplate,
        inputs: *const *mut RawStorage,
        scalars: *const u64,
        generator: *mut RawGenerator,
        outputs: *mut *mut RawStorage,
        reserve: u64,
        n_outputs: *mut u64,
        write: extern "C" fn(*mut c_void, *const u8, usize),
        context: *mut c_void,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_over(
        data: *mut c_void,
        bytes: u64,
        owner: *mut c_void,
        let_go: extern "C" fn(*mut c_void),
        out: *mut *mut RawStorage,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_new(
        device: Device,
        bytes: u64,
        out: *mut *mut RawStorage,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_free(storage: *mut RawStorage);
    fn genie_storage_bytes(storage: *const RawStorage) -> u64;
    fn genie_storage_data(storage: *mut RawStorage) -> *mut u8;
    fn genie_storage_copy_in(
        storage: *mut RawStorage,
        offset: u64,
        from: *const c_void,
        len: u64,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_copy_out(
        storage: *const RawStorage,
        offset: u64,
        to: *mut c_void,
        len: u64,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_clone(
        storage: *const RawStorage,
        out: *mut *mut RawStorage,
        error: *mut GenieError,
    ) -> i32;
    fn genie_storage_resize(storage: *mut RawStorage, bytes: u64, error: *mut GenieError) -> i32;
    fn genie_generator_new(
        device: Device,
        out: *mut *mut RawGenerator,
        error: *mut GenieError,
    ) -> i32;
    fn genie_generator_free(generator: *mut RawGenerator);
    fn genie_generator_seed(generator: *mut RawGenerator, seed: u64, error: *mut GenieError)
    -> i32;
    fn genie_generator_state(
        generator: *mut RawGenerator,
        out: *mut u8,
        len: *mut usize,
        error: *mut GenieError,
    ) -> i32;
    fn genie_generator_set_state(
        generator: *mut RawGenerator,
        state: *const u8,
        len: usize,
        error: *mut GenieError,
    ) -> i32;
}
