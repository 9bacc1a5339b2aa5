//! The part of DPDK that Genie uses, declared by hand.
//!
//! Nearly everything goes through `shim/shim.c`: DPDK's fast path is inline functions, which have
//! no symbol to link, and its structures change between releases. The shim is compiled against the
//! installed headers and shows Rust numbers, opaque pointers and five small structures of its own.
//! So no layout of DPDK is repeated here, and no libclang is needed to build.
//!
//! Built with DPDK 22.11; kept source compatible with 23.11. This crate adds no safety and no
//! policy: start reading at `genie-dpdk`.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A packet buffer, or the first of a chain.
#[repr(C)]
pub struct Mbuf {
    _opaque: [u8; 0],
}

/// A pool of packet buffers.
#[repr(C)]
pub struct Mempool {
    _opaque: [u8; 0],
}

/// Room for `struct rte_mbuf_ext_shared_info`; the shim asserts that it fits.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct SharedInfo {
    _room: [u64; 3],
}

/// Called when the last reference to attached memory is given up.
pub type FreedCallback = unsafe extern "C" fn(address: *mut c_void, opaque: *mut c_void);

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PortInfo {
    pub driver: [c_char; 32],
    pub tx_offloads: u64,
    pub rx_offloads: u64,
    pub max_rx_pktlen: u32,
    pub min_mtu: u16,
    pub max_mtu: u16,
    pub mtu: u16,
    pub mac: [u8; 6],
}

#[repr(C)]
#[derive(Debug)]
pub struct PortSetup {
    pub rx_pool: *mut Mempool,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    /// 0: what the device has.
    pub mtu: u16,
    pub interrupts: u8,
    pub checksum_offload: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_missed: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_no_mbuf: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GpuInfo {
    pub name: [c_char; 64],
    pub total_memory: u64,
    pub page_size: u64,
    pub numa_node: i16,
}

/// What the fake GPU was asked to do, so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeGpuCounts {
    pub allocated: u32,
    pub freed: u32,
    pub registered: u32,
    pub unregistered: u32,
    pub mapped: u32,
    pub unmapped: u32,
    pub barriers: u32,
}

unsafe extern "C" {
    // DPDK's own symbols whose signatures are plain.
    pub fn rte_version() -> *const c_char;
    pub fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    pub fn rte_strerror(errno: c_int) -> *const c_char;
    pub fn rte_dev_probe(devargs: *const c_char) -> c_int;
    pub fn rte_eal_hotplug_remove(bus: *const c_char, name: *const c_char) -> c_int;
    pub fn rte_mempool_free(pool: *mut Mempool);
    pub fn rte_gpu_count_avail() -> u16;
    pub fn rte_gpu_mem_alloc(gpu: i16, bytes: usize, align: c_uint) -> *mut c_void;
    pub fn rte_gpu_mem_free(gpu: i16, address: *mut c_void) -> c_int;
    pub fn rte_gpu_mem_register(gpu: i16, bytes: usize, address: *mut c_void) -> c_int;
    pub fn rte_gpu_mem_unregister(gpu: i16, address: *mut c_void) -> c_int;
    pub fn rte_gpu_mem_cpu_map(gpu: i16, bytes: usize, address: *mut c_void) -> *mut c_void;
    pub fn rte_gpu_mem_cpu_unmap(gpu: i16, address: *mut c_void) -> c_int;
    pub fn rte_gpu_wmb(gpu: i16) -> c_int;
    pub fn rte_gpu_close(gpu: i16) -> c_int;

    // shim.c: see there for what each does.
    pub fn genie_header_version() -> u32;
    pub fn genie_errno() -> c_int;

    pub fn genie_port_by_name(name: *const c_char, port: *mut u16) -> c_int;
    pub fn genie_port_info(port: u16, out: *mut PortInfo) -> c_int;
    pub fn genie_port_start(
        port: u16,
        setup: *const PortSetup,
        offloads: *mut u64,
        step: *mut *const c_char,
    ) -> c_int;
    pub fn genie_port_stop_and_close(port: u16) -> c_int;
    pub fn genie_port_link_up(port: u16) -> c_int;
    pub fn genie_port_stats(port: u16, out: *mut PortStats) -> c_int;
    pub fn genie_rx_burst(port: u16, mbufs: *mut *mut Mbuf, count: u16) -> u16;
    pub fn genie_tx_burst(port: u16, mbufs: *mut *mut Mbuf, count: u16) -> u16;
    pub fn genie_tx_done_cleanup(port: u16) -> c_int;
    pub fn genie_rx_interrupt_fd(port: u16) -> c_int;
    pub fn genie_rx_interrupt_enable(port: u16) -> c_int;
    pub fn genie_rx_interrupt_disable(port: u16) -> c_int;
    pub fn genie_ring_pair(
        name: *const c_char,
        frames: c_uint,
        left: *mut u16,
        right: *mut u16,
    ) -> c_int;
    pub fn genie_tx_offload_udp_checksum() -> u64;
    pub fn genie_tx_offload_segments() -> u64;
    pub fn genie_tx_offload_ipv4_checksum() -> u64;

    pub fn genie_pool_create(
        name: *const c_char,
        count: c_uint,
        cache: c_uint,
        data_room: u16,
    ) -> *mut Mempool;
    pub fn genie_pool_create_external(
        name: *const c_char,
        count: c_uint,
        memory: *mut c_void,
        iova: u64,
        bytes: usize,
        element: u16,
    ) -> *mut Mempool;
    pub fn genie_pool_available(pool: *const Mempool) -> c_uint;

    pub fn genie_mbuf_alloc(pool: *mut Mempool) -> *mut Mbuf;
    pub fn genie_mbuf_free(mbuf: *mut Mbuf);
    pub fn genie_mbuf_data(mbuf: *const Mbuf) -> *mut u8;
    pub fn genie_mbuf_data_len(mbuf: *const Mbuf) -> u16;
    pub fn genie_mbuf_packet_len(mbuf: *const Mbuf) -> u32;
    pub fn genie_mbuf_next(mbuf: *const Mbuf) -> *mut Mbuf;
    pub fn genie_mbuf_append(mbuf: *mut Mbuf, len: u16) -> *mut u8;
    pub fn genie_mbuf_trim(mbuf: *mut Mbuf, len: u16) -> c_int;
    pub fn genie_mbuf_chain(head: *mut Mbuf, tail: *mut Mbuf) -> c_int;
    pub fn genie_mbuf_is_external(mbuf: *const Mbuf) -> c_int;
    pub fn genie_mbuf_attach(
        mbuf: *mut Mbuf,
        address: *mut c_void,
        iova: u64,
        len: u16,
        shared: *mut SharedInfo,
    );
    pub fn genie_mbuf_offload_checksums(mbuf: *mut Mbuf, offloads: u64);
    pub fn genie_mbuf_rx_checksum(mbuf: *const Mbuf) -> c_int;

    pub fn genie_shared_init(shared: *mut SharedInfo, freed: FreedCallback, opaque: *mut c_void);
    pub fn genie_shared_references(shared: *const SharedInfo) -> u16;
    pub fn genie_shared_release(shared: *mut SharedInfo, address: *mut c_void);

    pub fn genie_extmem_register(address: *mut c_void, bytes: usize, page: usize) -> c_int;
    pub fn genie_extmem_unregister(address: *mut c_void, bytes: usize) -> c_int;
    pub fn genie_dma_map(port: u16, address: *mut c_void, bytes: usize) -> c_int;
    pub fn genie_dma_unmap(port: u16, address: *mut c_void, bytes: usize) -> c_int;

    pub fn genie_gpu_info(gpu: i16, out: *mut GpuInfo) -> c_int;
    pub fn genie_gpu_next(from: i16) -> i16;
}

#[cfg(feature = "fake-gpu")]
unsafe extern "C" {
    pub fn genie_fake_gpu_add(name: *const c_char) -> c_int;
    pub fn genie_fake_gpu_counts(out: *mut FakeGpuCounts);
}
