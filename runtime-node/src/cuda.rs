//! Whether it is worth opening libtorch's CUDA library.

use genie_aten::execute;

/// The number of CUDA devices, or why there is none. Without a driver libtorch's CUDA library is
/// not opened: it would cost some 240 MB of memory for nothing.
pub fn devices() -> Result<u8, String> {
    // SAFETY: the name is NUL-terminated; the driver's library has no constructors that expect
    // anything of its host. It stays open: libtorch opens it again.
    let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) };
    if driver.is_null() {
        return Err("there is no NVIDIA driver (libcuda.so.1 cannot be opened)".to_owned());
    }
    execute::cuda_devices()
}
