//! One TUN device that the test bed has made.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::ioctl::{Setter, opcode};

const NAME_BYTES_MAX: usize = 15;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

/// Linux's `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

/// Whole IP packets in and out, never blocking.
pub struct Tun {
    file: File,
}

impl Tun {
    /// Takes the existing device `name` of this network namespace.
    pub fn attach(name: &str) -> Result<Self> {
        ensure!(
            (1..=NAME_BYTES_MAX).contains(&name.len()),
            "`{name}` is no device name (1 to {NAME_BYTES_MAX} bytes)"
        );
        let file = File::options().read(true).write(true).open("/dev/net/tun");
        let file = file.context("/dev/net/tun: is the tun module there, and are we root?")?;
        let mut request =
            InterfaceRequest { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, unused: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF reads a `struct ifreq` (40 bytes), which `InterfaceRequest` spells out; its
        // opcode is declared over an int for historical reasons.
        unsafe {
            const TUNSETIFF: u32 = opcode::write::<i32>(b'T', 202);
            rustix::ioctl::ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request))
        }
        .with_context(|| format!("attaching to {name}: does it exist, with nobody else on it?"))?;
        rustix::io::ioctl_fionbio(&file, true).context("non-blocking TUN")?;
        Ok(Self { file })
    }

    /// The next packet's length, or none at the moment.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match rustix::io::read(&self.file, buffer) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("reading from TUN"),
        }
    }

    /// True if the kernel took the packet.
    pub fn write(&self, packet: &[u8]) -> bool {
        rustix::io::write(&self.file, packet).is_ok()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
