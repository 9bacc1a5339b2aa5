//! Foreign memory made known to DPDK and to a device, so that the device may read it where it lies.

use dpdk_sys as sys;

use crate::error::{DpdkError, Result, reason};
use crate::port::Port;

/// A registration; given up when dropped.
///
/// Software devices need none. A device on the PCI bus may only reach memory that was mapped for it
/// in the IOMMU, and its driver may want to know the memory's pages.
#[derive(Debug)]
pub struct External {
    address: *mut u8,
    bytes: usize,
    /// The port whose device the memory is mapped for.
    mapped_for: Option<u16>,
}

// SAFETY: an address and a number. DPDK's calls for foreign memory take locks of their own.
unsafe impl Send for External {}
// SAFETY: as above; nothing is read or written through a shared reference.
unsafe impl Sync for External {}

impl External {
    /// Registers `bytes` bytes at `address`, both multiples of `page`.
    ///
    /// # Safety
    /// The memory must be valid while the registration and every packet attached to it live, and
    /// the port must stay open as long. It need not be accessible to the processor.
    pub unsafe fn register(
        port: &Port,
        address: *mut u8,
        bytes: usize,
        page: usize,
    ) -> Result<External> {
        // SAFETY: as the caller vouches.
        unsafe { External::register_for(port.id(), address, bytes, page) }
    }

    /// The same, for a port by its number.
    ///
    /// # Safety
    /// As [`External::register`].
    pub unsafe fn register_for(
        port: u16,
        address: *mut u8,
        bytes: usize,
        page: usize,
    ) -> Result<External> {
        let failed = |step, code| DpdkError::Memory {
            address: address as usize,
            bytes,
            step,
            reason: reason(code),
        };
        // SAFETY: DPDK notes the range and does not touch it; the caller vouches for it.
        let code = unsafe { sys::genie_extmem_register(address.cast(), bytes, page) };
        if code != 0 {
            return Err(failed("registered with DPDK (is it a whole number of pages?)", code));
        }
        let mut external = External { address, bytes, mapped_for: None };
        // SAFETY: as above; the device may read the memory from now on.
        match unsafe { sys::genie_dma_map(port, address.cast(), bytes) } {
            0 => external.mapped_for = Some(port),
            // No DMA there. (Most software devices answer 0 instead, and do nothing.)
            code if code == -rustix::io::Errno::NOTSUP.raw_os_error() => {}
            code => return Err(failed("mapped for the device (IOMMU)", code)),
        }
        Ok(external)
    }
}

impl Drop for External {
    fn drop(&mut self) {
        // SAFETY: registered by `register`, given up once; by its contract no packet uses it.
        unsafe {
            if let Some(port) = self.mapped_for {
                sys::genie_dma_unmap(port, self.address.cast(), self.bytes);
            }
            sys::genie_extmem_unregister(self.address.cast(), self.bytes);
        }
    }
}
