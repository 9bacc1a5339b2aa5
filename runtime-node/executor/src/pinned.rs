//! Host memory that a GPU reads and writes directly, without the driver's own copy between.

use std::ffi::{CStr, c_int, c_uint, c_void};

/// `cudaHostRegisterPortable`: pinned for every device of this process.
const PORTABLE: c_uint = 1;

/// What of the CUDA runtime pins memory, as its headers declare it.
#[derive(Clone, Copy)]
struct Runtime {
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    register: unsafe extern "C" fn(*mut c_void, usize, c_uint) -> c_int,
    unregister: unsafe extern "C" fn(*mut c_void) -> c_int,
    /// Also forgets the error: PyTorch would take it for its next kernel's.
    last_error: unsafe extern "C" fn() -> c_int,
}

impl Runtime {
    /// The runtime that libtorch's CUDA library brought along, if it is loaded.
    fn loaded() -> Option<Self> {
        fn symbol(name: &CStr) -> Option<*mut c_void> {
            // SAFETY: looks a symbol up by a terminated name.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        }
        let set_device = symbol(c"cudaSetDevice")?;
        let register = symbol(c"cudaHostRegister")?;
        let unregister = symbol(c"cudaHostUnregister")?;
        let last_error = symbol(c"cudaGetLastError")?;
        // SAFETY: these are the declarations of cuda_runtime_api.h, the same since CUDA 4.
        unsafe {
            Some(Runtime {
                set_device: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> c_int>(
                    set_device,
                ),
                register: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, usize, c_uint) -> c_int,
                >(register),
                unregister: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void) -> c_int,
                >(unregister),
                last_error: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(
                    last_error,
                ),
            })
        }
    }
}

/// A range that is pinned while this lives.
pub struct Pinned {
    address: *mut c_void,
    runtime: Runtime,
}

// SAFETY: the address is only given back to the runtime, which takes it from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; nothing is done with a shared one.
unsafe impl Sync for Pinned {}

/// Memory stays as it is: slower, not wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPinned {
    #[error("the CUDA runtime is not loaded")]
    NoRuntime,
    #[error("{call} failed with CUDA error {code} for {bytes} bytes")]
    Refused { call: &'static str, code: c_int, bytes: u64 },
}

impl Pinned {
    /// Pins `bytes` bytes at `address`, from a thread that uses CUDA device `device`.
    ///
    /// # Safety
    /// The range must be mapped, and stay so until this is dropped.
    pub unsafe fn new(address: *mut u8, bytes: u64, device: u8) -> Result<Self, NotPinned> {
        let runtime = Runtime::loaded().ok_or(NotPinned::NoRuntime)?;
        // SAFETY: the caller's promise.
        unsafe { Pinned::with(runtime, address, bytes, device) }
    }

    /// # Safety
    /// As `new`; `runtime` must behave as CUDA's.
    unsafe fn with(
        runtime: Runtime,
        address: *mut u8,
        bytes: u64,
        device: u8,
    ) -> Result<Self, NotPinned> {
        let address: *mut c_void = address.cast();
        let check = |call, code| match code {
            0 => Ok(()),
            code => {
                // SAFETY: may be called at any time.
                unsafe { (runtime.last_error)() };
                Err(NotPinned::Refused { call, code, bytes })
            }
        };
        // Otherwise the first device would get a context, and lose memory, for nothing.
        // SAFETY: may be called at any time; the executor does so before its own work.
        check("cudaSetDevice", unsafe { (runtime.set_device)(device.into()) })?;
        // SAFETY: the range is mapped, says the caller.
        check("cudaHostRegister", unsafe {
            (runtime.register)(address, bytes as usize, PORTABLE)
        })?;
        Ok(Pinned { address, runtime })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: `address` was registered by `with`, and is still mapped, says its caller. An
        // error here is an earlier one of the device's; there is nobody to tell.
        unsafe {
            if (self.runtime.unregister)(self.address) != 0 {
                (self.runtime.last_error)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn called(what: String) {
        CALLS.with(|calls| calls.borrow_mut().push(what));
    }

    unsafe extern "C" fn set_device(device: c_int) -> c_int {
        called(format!("device {device}"));
        0
    }
    unsafe extern "C" fn register(address: *mut c_void, bytes: usize, flags: c_uint) -> c_int {
        called(format!("pin {} {bytes} {flags}", address as usize));
        0
    }
    unsafe extern "C" fn refuse(_: *mut c_void, _: usize, _: c_uint) -> c_int {
        2
    }
    unsafe extern "C" fn unregister(address: *mut c_void) -> c_int {
        called(format!("unpin {}", address as usize));
        0
    }
    unsafe extern "C" fn last_error() -> c_int {
        called("forget".into());
        0
    }

    const FAKE: Runtime = Runtime { set_device, register, unregister, last_error };

    #[test]
    fn a_range_is_pinned_on_its_device_and_released() {
        let mut memory = [0u8; 64];
        let address = memory.as_mut_ptr();
        // SAFETY: the array outlives the guard.
        let pinned = unsafe { Pinned::with(FAKE, address, 64, 3) }.ok();
        assert!(pinned.is_some());
        drop(pinned);
        let at = address as usize;
        let expected = ["device 3".to_owned(), format!("pin {at} 64 1"), format!("unpin {at}")];
        assert_eq!(CALLS.take(), expected);
    }

    #[test]
    fn a_refusal_is_told_and_leaves_no_error_for_pytorch() {
        let mut memory = [0u8; 64];
        let runtime = Runtime { register: refuse, ..FAKE };
        // SAFETY: as above.
        let refused = unsafe { Pinned::with(runtime, memory.as_mut_ptr(), 64, 0) }.err();
        let expected = NotPinned::Refused { call: "cudaHostRegister", code: 2, bytes: 64 };
        assert_eq!(refused, Some(expected));
        assert_eq!(CALLS.take(), ["device 0", "forget"]);
    }
}
