//! CUDA: whether there is any, without touching it in a process that forks.

use std::time::Duration;

use genie_aten::execute::{self, Device};
use genie_channel::message::{Loaded, Unusable};
use genie_channel::{Channel, Message};
use genie_wire::control;

/// How long a driver may take to tell of its devices.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of CUDA devices, or why there is none; from now on this process uses CUDA. Without a
/// driver libtorch's CUDA library is not opened: it would cost some 240 MB of memory for nothing.
pub fn devices() -> Result<u8, String> {
    if !has_driver() {
        return Err("there is no NVIDIA driver (libcuda.so.1 cannot be opened)".to_owned());
    }
    execute::cuda_devices()
}

fn has_driver() -> bool {
    // SAFETY: the name is NUL-terminated; the driver's library has no constructors that expect
    // anything of its host. It stays open: libtorch opens it again.
    !unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) }.is_null()
}

/// What [`devices`] finds, and the devices, found by a process of its own: CUDA does not survive a
/// fork.
pub fn probe(without: &[String]) -> Result<Loaded, String> {
    if !has_driver() {
        return Err("there is no NVIDIA driver (libcuda.so.1 cannot be opened)".to_owned());
    }
    let (mut channel, other) = Channel::pair().map_err(|error| error.to_string())?;
    // SAFETY: this process has one thread as yet, so the child may do whatever it could.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(std::io::Error::last_os_error().to_string()),
        0 => {
            let mut channel = Channel::over(other);
            let found =
                found(without).unwrap_or_else(|reason| Message::Unusable(Unusable { reason }));
            let said = channel.post(found, vec![]);
            // SAFETY: what the process holds goes back to the kernel.
            unsafe { libc::_exit(said.is_err().into()) }
        }
        pid => pid,
    };
    drop(other);
    let answer = channel.wait(Some(PROBE_TIMEOUT));
    // SAFETY: the process is this one's child and was not waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    match answer {
        Ok(Some((Message::Loaded(loaded), _))) => Ok(loaded),
        Ok(Some((Message::Unusable(unusable), _))) => Err(unusable.reason),
        Ok(_) => Err(format!("the driver did not answer within {} s", PROBE_TIMEOUT.as_secs())),
        Err(error) => Err(format!("asking the driver ended the process that asked: {error}")),
    }
}

fn found(without: &[String]) -> Result<Message, String> {
    let count = devices()?;
    let devices = (0..count).map(Device::cuda).map(|device| control::Device {
        kind: "cuda".to_owned(),
        name: device.name(),
        memory_bytes: device.memory_bytes(),
    });
    let ops = Device::cuda(0).ops(without).len() as u64;
    Ok(Message::Loaded(Loaded { devices: devices.collect(), ops, ..Loaded::default() }))
}
