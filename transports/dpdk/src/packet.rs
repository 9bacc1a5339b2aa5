//! Packets (chains of mbufs), the pools they come from, and leases of foreign memory that packets
//! are attached to.
//!
//! A [`Lease`] is how memory of somebody else travels in packets without being copied: each
//! attached packet holds one reference, the lease another. When the last goes, the callback runs,
//! once; until then the memory is the device's and must not be reused.

use std::any::Any;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_sys as sys;

use crate::error::{DpdkError, Result, last_reason};

/// Bytes that DPDK keeps free before the data of a packet (`RTE_PKTMBUF_HEADROOM`).
pub const HEADROOM: u16 = 128;

/// Buffers that a pool keeps at hand for the DPDK thread, beside the ring that all threads share.
const CACHE: u32 = 256;

/// A pool of packet buffers.
#[derive(Debug)]
pub struct Pool {
    raw: NonNull<sys::Mempool>,
    count: u32,
    /// Memory that the buffers lie in, for pools over foreign memory.
    _memory: Option<Arc<dyn Any + Send + Sync>>,
}

impl Pool {
    /// `count` buffers of `room` bytes, headroom not counted. `room` 0: for attaching only.
    pub fn new(name: &str, count: u32, room: u16) -> Result<Pool> {
        let data_room = room.checked_add(HEADROOM).ok_or(DpdkError::Setting {
            name: "mtu",
            value: room.to_string(),
            expected: "frames of at most 65,407 bytes",
        })?;
        let name_c = pool_name(name);
        let cache = CACHE.min(count / 2);
        // SAFETY: a terminated name and plain numbers; null is handled below.
        let raw = unsafe { sys::genie_pool_create(name_c.as_ptr(), count, cache, data_room) };
        Pool::made(raw, name, count, None)
    }

    /// `count` buffers of `element` bytes (headroom included) that lie in `memory`.
    ///
    /// # Safety
    /// `address` must be valid for `bytes` bytes while `memory` lives, and nobody may hold Rust
    /// references to it. The bytes need not be accessible to the processor.
    pub unsafe fn over(
        name: &str,
        count: u32,
        element: u16,
        address: *mut u8,
        bytes: usize,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Result<Pool> {
        if bytes < count as usize * usize::from(element) {
            return Err(DpdkError::NoMemory {
                what: format!("the pool {name}"),
                reason: format!("{bytes} bytes hold fewer than {count} buffers of {element}"),
            });
        }
        let name_c = pool_name(name);
        // SAFETY: DPDK only computes addresses within the memory here; the caller vouches for it,
        // and `memory` is kept beside the pool.
        let raw = unsafe {
            sys::genie_pool_create_external(
                name_c.as_ptr(),
                count,
                address.cast(),
                address as u64,
                bytes,
                element,
            )
        };
        Pool::made(raw, name, count, Some(memory))
    }

    fn made(
        raw: *mut sys::Mempool,
        name: &str,
        count: u32,
        memory: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Pool> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Pool { raw, count, _memory: memory }),
            None => Err(DpdkError::NoMemory {
                what: format!("the pool {name} of {count} buffers"),
                reason: last_reason(),
            }),
        }
    }

    /// Buffers that nobody uses now.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as `self`.
        unsafe { sys::genie_pool_available(self.raw.as_ptr()) }
    }

    /// Buffers in all.
    pub fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn raw(&self) -> *mut sys::Mempool {
        self.raw.as_ptr()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.available() == self.count {
            // SAFETY: every buffer is back, so no packet points into the pool; it is not used after.
            unsafe { sys::rte_mempool_free(self.raw.as_ptr()) };
        } else if let Some(memory) = self._memory.take() {
            // Some device still holds buffers: the pool is left to the process, with its memory.
            std::mem::forget(memory);
        }
    }
}

fn pool_name(name: &str) -> CString {
    // DPDK allows 25 bytes, and wants names unique in the process.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let short: String = name.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    CString::new(format!("gn_{short}_{number}")).expect("letters and digits only")
}

/// A packet that is ours: dropping it gives its buffers back and its references up.
///
/// Used by the DPDK thread alone, like everything that touches a port.
#[derive(Debug)]
pub struct Packet {
    head: NonNull<sys::Mbuf>,
    /// Not `Send`: pools are used without locks.
    _thread: PhantomData<*const ()>,
}

/// One piece of a packet's data.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub address: *const u8,
    pub bytes: usize,
    /// Lies in foreign memory: others may change it, and the processor perhaps cannot read it.
    pub external: bool,
}

impl Packet {
    /// An empty packet, or `None` when the pool is empty.
    pub fn new(pool: &Pool) -> Option<Packet> {
        // SAFETY: the pool is alive; null means empty.
        let raw = unsafe { sys::genie_mbuf_alloc(pool.raw()) };
        NonNull::new(raw).map(|head| Packet { head, _thread: PhantomData })
    }

    /// A packet whose data is `bytes` bytes of leased memory; `pool` gives the descriptor only.
    ///
    /// The packet's reference is taken here and given up when the packet is freed, here or by a
    /// driver.
    pub fn attached(pool: &Pool, lease: &Lease, offset: usize, bytes: u16) -> Option<Packet> {
        let mut packet = Packet::new(pool)?;
        packet.attach(lease, offset, bytes);
        Some(packet)
    }

    /// Makes leased memory the data of an empty packet that is attached to nothing yet.
    pub fn attach(&mut self, lease: &Lease, offset: usize, bytes: u16) {
        assert!(
            offset <= lease.bytes && usize::from(bytes) <= lease.bytes - offset,
            "a packet is attached within its lease"
        );
        assert!(self.segments().all(|it| it.bytes == 0 && !it.external), "attached once, empty");
        let address = lease.address.wrapping_add(offset);
        // SAFETY: the packet is fresh and ours. The memory and the shared info stay until the last
        // reference goes (`Lease`), and this takes one. The I/O address equals the virtual address:
        // EAL is started with --iova-mode=va.
        unsafe {
            sys::genie_mbuf_attach(
                self.head.as_ptr(),
                address.cast(),
                address as u64,
                bytes,
                lease.shared(),
            );
        }
    }

    /// Takes over a packet that a driver gave out.
    ///
    /// # Safety
    /// `raw` must be a valid chain that nobody else owns.
    pub(crate) unsafe fn from_raw(raw: *mut sys::Mbuf) -> Packet {
        let head = NonNull::new(raw).expect("drivers give out no null packets");
        Packet { head, _thread: PhantomData }
    }

    /// Gives the packet to a driver.
    pub(crate) fn into_raw(self) -> *mut sys::Mbuf {
        ManuallyDrop::new(self).head.as_ptr()
    }

    /// Bytes in all segments.
    pub fn bytes(&self) -> usize {
        // SAFETY: the packet is ours.
        unsafe { sys::genie_mbuf_packet_len(self.head.as_ptr()) as usize }
    }

    /// Adds `bytes` bytes at the end, in the last segment's own room; `None` without room.
    pub fn append(&mut self, bytes: u16) -> Option<&mut [u8]> {
        // SAFETY: the packet is ours. DPDK never gives tailroom in attached memory here, because
        // `attached` makes the whole leased range data. The pool's memory was zeroed when it was
        // mapped, so the bytes are initialised; the slice borrows the packet mutably.
        unsafe {
            let at = sys::genie_mbuf_append(self.head.as_ptr(), bytes);
            (!at.is_null()).then(|| std::slice::from_raw_parts_mut(at, usize::from(bytes)))
        }
    }

    /// Cuts `bytes` bytes off the end of the last segment.
    pub fn trim(&mut self, bytes: u16) {
        // SAFETY: the packet is ours; -1 (too short) leaves it as it was.
        let cut = unsafe { sys::genie_mbuf_trim(self.head.as_ptr(), bytes) };
        assert_eq!(cut, 0, "no more is cut off than was appended");
    }

    /// Puts `tail` behind this packet's data.
    pub fn chain(&mut self, tail: Packet) -> std::result::Result<(), Packet> {
        // SAFETY: both packets are ours and different; on success the chain owns the tail.
        unsafe {
            if sys::genie_mbuf_chain(self.head.as_ptr(), tail.head.as_ptr()) == 0 {
                let _ = tail.into_raw();
                Ok(())
            } else {
                Err(tail)
            }
        }
    }

    /// The pieces of the data, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let mut next = self.head.as_ptr();
        std::iter::from_fn(move || {
            if next.is_null() {
                return None;
            }
            // SAFETY: `next` is a segment of this packet's chain, which lives while it is borrowed.
            unsafe {
                let segment = Segment {
                    address: sys::genie_mbuf_data(next),
                    bytes: usize::from(sys::genie_mbuf_data_len(next)),
                    external: sys::genie_mbuf_is_external(next) != 0,
                };
                next = sys::genie_mbuf_next(next);
                Some(segment)
            }
        })
    }

    /// Whether the data is one piece of this packet's own memory.
    pub fn is_contiguous(&self) -> bool {
        let first = self.segments().next();
        first.is_some_and(|first| !first.external && first.bytes == self.bytes())
    }

    /// The whole data, when it [is contiguous](Packet::is_contiguous).
    pub fn contiguous(&mut self) -> Option<&mut [u8]> {
        let bytes = self.bytes();
        let first = self.segments().next().filter(|_| self.is_contiguous())?;
        // SAFETY: one segment holds all data and lies in the pool's memory, which only this packet
        // uses; the slice borrows the packet mutably.
        Some(unsafe { std::slice::from_raw_parts_mut(first.address.cast_mut(), bytes) })
    }

    /// Copies the data to `to`, cleared first. Every segment must be readable by the processor.
    pub fn copy_to(&self, to: &mut Vec<u8>) {
        to.clear();
        to.reserve(self.bytes());
        for segment in self.segments() {
            let at = to.len();
            // SAFETY: the room was reserved; the source is `bytes` long and not part of the vector.
            // Bytes that others change meanwhile are copied as found: no reference is made to them.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    segment.address,
                    to.as_mut_ptr().add(at),
                    segment.bytes,
                );
                to.set_len(at + segment.bytes);
            }
        }
    }

    /// Lets the device fill in checksums.
    pub fn offload_checksums(&mut self, offloads: u64) {
        // SAFETY: the packet is ours; this sets fields of its first segment.
        unsafe { sys::genie_mbuf_offload_checksums(self.head.as_ptr(), offloads) };
    }

    /// What the device found about the UDP checksum: good, bad, or did not look.
    pub fn device_checksum(&self) -> Option<bool> {
        // SAFETY: the packet is ours.
        match unsafe { sys::genie_mbuf_rx_checksum(self.head.as_ptr()) } {
            0 => None,
            found => Some(found > 0),
        }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: the packet is ours and not used after.
        unsafe { sys::genie_mbuf_free(self.head.as_ptr()) };
    }
}

/// Foreign memory that packets may be attached to. See the module's text.
pub struct Lease {
    address: *mut u8,
    bytes: usize,
    /// From `Box::into_raw`; freed by `freed` when the last reference goes.
    state: NonNull<LeaseState>,
}

// SAFETY: what it keeps is `Send`. References are counted atomically while there is more than one;
// the first is added by the thread that has the lease, and with one left there is nobody else.
unsafe impl Send for Lease {}

struct LeaseState {
    shared: sys::SharedInfo,
    on_free: Option<Box<dyn FnOnce() + Send>>,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Lease {
    /// Leases `bytes` bytes at `address`; `on_free` runs once, when the lease and every packet
    /// attached to it are gone, on the thread that frees the last.
    ///
    /// # Safety
    /// The memory must be valid while `owner` lives, and nobody may hold Rust references to it.
    /// It need not be accessible to the processor.
    pub unsafe fn new(
        address: *mut u8,
        bytes: usize,
        owner: Arc<dyn Any + Send + Sync>,
        on_free: impl FnOnce() + Send + 'static,
    ) -> Lease {
        let state = Box::new(LeaseState {
            shared: sys::SharedInfo::default(),
            on_free: Some(Box::new(on_free)),
            _owner: owner,
        });
        let state = NonNull::from(Box::leak(state));
        // SAFETY: the state is ours and stays at its address until `freed` takes it back.
        unsafe {
            sys::genie_shared_init(&raw mut (*state.as_ptr()).shared, freed, state.as_ptr().cast());
        }
        Lease { address, bytes, state }
    }

    /// References held: one by the lease, one by each packet that is not freed.
    pub fn references(&self) -> u16 {
        // SAFETY: the state lives at least until this lease gives its reference up.
        unsafe { sys::genie_shared_references(self.shared()) }
    }

    fn shared(&self) -> *mut sys::SharedInfo {
        // SAFETY: only computes an address inside the state, which is alive.
        unsafe { &raw mut (*self.state.as_ptr()).shared }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: the lease's own reference, given up once. The state may be gone after this.
        unsafe { sys::genie_shared_release(self.shared(), self.address.cast()) };
    }
}

/// Called by DPDK or by `Lease::drop` when the reference count reaches zero: so exactly once.
unsafe extern "C" fn freed(_address: *mut c_void, opaque: *mut c_void) {
    // SAFETY: `opaque` is the pointer that `Lease::new` leaked, and nobody refers to it any more.
    let mut state = unsafe { Box::from_raw(opaque.cast::<LeaseState>()) };
    if let Some(on_free) = state.on_free.take() {
        // A panic must not unwind into DPDK; `extern "C"` would abort the process.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(on_free));
    }
}
