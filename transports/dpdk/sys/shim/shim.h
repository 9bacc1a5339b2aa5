/* What Genie calls of DPDK: its inline functions made callable, and its large structures filled in
 * here, so that no layout of DPDK is repeated in Rust. Source compatible with DPDK 22.11 and 23.11. */
#ifndef GENIE_DPDK_SHIM_H
#define GENIE_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_mbuf.h>

/* Mirrored by `PortInfo` in lib.rs. */
struct genie_port_info {
	char driver[32];
	uint64_t tx_offloads;
	uint64_t rx_offloads;
	uint32_t max_rx_pktlen;
	uint16_t min_mtu;
	uint16_t max_mtu;
	uint16_t mtu;
	uint8_t mac[6];
};

/* Mirrored by `PortSetup` in lib.rs. */
struct genie_port_setup {
	struct rte_mempool *rx_pool;
	uint16_t rx_descriptors;
	uint16_t tx_descriptors;
	uint16_t mtu; /* 0: what the device has */
	uint8_t interrupts;
	uint8_t checksum_offload;
};

/* Mirrored by `PortStats` in lib.rs. */
struct genie_port_stats {
	uint64_t rx_packets, tx_packets, rx_bytes, tx_bytes;
	uint64_t rx_missed, rx_errors, tx_errors, rx_no_mbuf;
};

/* Mirrored by `GpuInfo` in lib.rs. */
struct genie_gpu_info {
	char name[64];
	uint64_t total_memory;
	uint64_t page_size;
	int16_t numa_node;
};

#endif
