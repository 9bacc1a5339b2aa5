#include "shim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_gpudev.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* The version of the headers, to compare with rte_version() of the library found at run time. */
uint32_t genie_header_version(void)
{
	return RTE_VERSION_NUM(RTE_VER_YEAR, RTE_VER_MONTH, RTE_VER_MINOR, RTE_VER_RELEASE);
}

int genie_errno(void)
{
	return rte_errno;
}

/* ---- ports -------------------------------------------------------------------------------- */

int genie_port_by_name(const char *name, uint16_t *port)
{
	return rte_eth_dev_get_port_by_name(name, port);
}

int genie_port_info(uint16_t port, struct genie_port_info *out)
{
	struct rte_eth_dev_info info;
	struct rte_ether_addr mac;
	int failed = rte_eth_dev_info_get(port, &info);

	if (failed == 0)
		failed = rte_eth_macaddr_get(port, &mac);
	if (failed != 0)
		return failed;
	memset(out, 0, sizeof(*out));
	snprintf(out->driver, sizeof(out->driver), "%s",
		 info.driver_name == NULL ? "" : info.driver_name);
	out->tx_offloads = info.tx_offload_capa;
	out->rx_offloads = info.rx_offload_capa;
	out->max_rx_pktlen = info.max_rx_pktlen;
	out->min_mtu = info.min_mtu;
	out->max_mtu = info.max_mtu;
	rte_eth_dev_get_mtu(port, &out->mtu);
	memcpy(out->mac, mac.addr_bytes, sizeof(out->mac));
	return 0;
}

/* One queue each way. On failure `step` says in words what was refused. */
int genie_port_start(uint16_t port, const struct genie_port_setup *setup, uint64_t *offloads,
		     const char **step)
{
	struct rte_eth_dev_info info;
	struct rte_eth_conf conf;
	struct rte_eth_txconf txconf;
	uint16_t rx = setup->rx_descriptors, tx = setup->tx_descriptors;
	int socket = rte_eth_dev_socket_id(port);
	int failed, own_mtu;

	*step = "read the device's limits";
	failed = rte_eth_dev_info_get(port, &info);
	if (failed != 0)
		return failed;

	memset(&conf, 0, sizeof(conf));
	/* af_packet states the frames of Ethernet as its limit, whatever its ring and the interface
	 * carry; the MTU is the interface's, and the caller has looked at that. */
	own_mtu = setup->mtu != 0 && strcmp(info.driver_name, "net_af_packet") != 0;
	if (own_mtu)
		conf.rxmode.mtu = setup->mtu;
	conf.intr_conf.rxq = setup->interrupts;
	/* A chain of two (headers; payload where it lies) is what the sender builds. */
	conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
	if (setup->checksum_offload) {
		conf.txmode.offloads |= info.tx_offload_capa &
			(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
		conf.rxmode.offloads |= info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_CHECKSUM;
	}
	*offloads = conf.txmode.offloads;

	*step = "configure the device";
	failed = rte_eth_dev_configure(port, 1, 1, &conf);
	if (failed != 0)
		return failed;
	*step = "size the device's queues";
	failed = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx);
	if (failed != 0)
		return failed;
	*step = "set up the receive queue";
	failed = rte_eth_rx_queue_setup(port, 0, rx, socket, NULL, setup->rx_pool);
	if (failed != 0)
		return failed;
	txconf = info.default_txconf;
	txconf.offloads = conf.txmode.offloads;
	*step = "set up the transmit queue";
	failed = rte_eth_tx_queue_setup(port, 0, tx, socket, &txconf);
	if (failed != 0)
		return failed;
	if (own_mtu) {
		*step = "set the device's MTU";
		failed = rte_eth_dev_set_mtu(port, setup->mtu);
		/* Software devices without a wire (net_ring, vhost) know no MTU: any frame passes. */
		if (failed != 0 && failed != -ENOTSUP)
			return failed;
	}
	*step = "start the device";
	return rte_eth_dev_start(port);
}

int genie_port_stop_and_close(uint16_t port)
{
	int stopped = rte_eth_dev_stop(port);
	int closed = rte_eth_dev_close(port);

	return stopped != 0 ? stopped : closed;
}

int genie_port_link_up(uint16_t port)
{
	struct rte_eth_link link;

	memset(&link, 0, sizeof(link));
	if (rte_eth_link_get_nowait(port, &link) != 0)
		return -1;
	return link.link_status;
}

int genie_port_stats(uint16_t port, struct genie_port_stats *out)
{
	struct rte_eth_stats stats;
	int failed = rte_eth_stats_get(port, &stats);

	if (failed != 0)
		return failed;
	out->rx_packets = stats.ipackets;
	out->tx_packets = stats.opackets;
	out->rx_bytes = stats.ibytes;
	out->tx_bytes = stats.obytes;
	out->rx_missed = stats.imissed;
	out->rx_errors = stats.ierrors;
	out->tx_errors = stats.oerrors;
	out->rx_no_mbuf = stats.rx_nombuf;
	return 0;
}

uint16_t genie_rx_burst(uint16_t port, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, 0, mbufs, count);
}

uint16_t genie_tx_burst(uint16_t port, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, 0, mbufs, count);
}

/* Asks the driver to free what the device has sent; -ENOTSUP where it cannot be asked. */
int genie_tx_done_cleanup(uint16_t port)
{
	return rte_eth_tx_done_cleanup(port, 0, 0);
}

int genie_rx_interrupt_fd(uint16_t port)
{
	return rte_eth_dev_rx_intr_ctl_q_get_fd(port, 0);
}

int genie_rx_interrupt_enable(uint16_t port)
{
	return rte_eth_dev_rx_intr_enable(port, 0);
}

int genie_rx_interrupt_disable(uint16_t port)
{
	return rte_eth_dev_rx_intr_disable(port, 0);
}

/* Two ports over two rings: what one sends, the other receives, the very same mbufs. */
int genie_ring_pair(const char *name, unsigned int frames, uint16_t *left, uint16_t *right)
{
	struct rte_ring *there, *back;
	char of[RTE_RING_NAMESIZE];
	int port;

	snprintf(of, sizeof(of), "%s>", name);
	there = rte_ring_create(of, frames, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
	if (there == NULL)
		return -rte_errno;
	snprintf(of, sizeof(of), "%s<", name);
	back = rte_ring_create(of, frames, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
	if (back == NULL) {
		rte_ring_free(there);
		return -rte_errno;
	}
	snprintf(of, sizeof(of), "%s_a", name);
	port = rte_eth_from_rings(of, &back, 1, &there, 1, 0);
	if (port < 0)
		return -rte_errno;
	*left = (uint16_t)port;
	snprintf(of, sizeof(of), "%s_b", name);
	port = rte_eth_from_rings(of, &there, 1, &back, 1, 0);
	if (port < 0)
		return -rte_errno;
	*right = (uint16_t)port;
	return 0;
}

/* ---- pools and mbufs ---------------------------------------------------------------------- */

struct rte_mempool *genie_pool_create(const char *name, unsigned int count, unsigned int cache,
				      uint16_t data_room)
{
	return rte_pktmbuf_pool_create(name, count, cache, 0, data_room, SOCKET_ID_ANY);
}

/* A pool whose mbufs' data lies in `memory`, `element` bytes each. */
struct rte_mempool *genie_pool_create_external(const char *name, unsigned int count,
					       void *memory, uint64_t iova, size_t bytes,
					       uint16_t element)
{
	struct rte_pktmbuf_extmem extmem = {
		.buf_ptr = memory,
		.buf_iova = iova,
		.buf_len = bytes,
		.elt_size = element,
	};

	return rte_pktmbuf_pool_create_extbuf(name, count, 0, 0, element, SOCKET_ID_ANY,
					      &extmem, 1);
}

unsigned int genie_pool_available(const struct rte_mempool *pool)
{
	return rte_mempool_avail_count(pool);
}

struct rte_mbuf *genie_mbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

/* Frees a chain: every segment goes back to its pool, attached memory loses one reference. */
void genie_mbuf_free(struct rte_mbuf *mbuf)
{
	rte_pktmbuf_free(mbuf);
}

void *genie_mbuf_data(const struct rte_mbuf *mbuf)
{
	return rte_pktmbuf_mtod(mbuf, void *);
}

uint16_t genie_mbuf_data_len(const struct rte_mbuf *mbuf)
{
	return rte_pktmbuf_data_len(mbuf);
}

uint32_t genie_mbuf_packet_len(const struct rte_mbuf *mbuf)
{
	return rte_pktmbuf_pkt_len(mbuf);
}

struct rte_mbuf *genie_mbuf_next(const struct rte_mbuf *mbuf)
{
	return mbuf->next;
}

/* Grows the last segment by `len` bytes: the address of the new bytes, or NULL without room. */
void *genie_mbuf_append(struct rte_mbuf *mbuf, uint16_t len)
{
	return rte_pktmbuf_append(mbuf, len);
}

/* Cuts `len` bytes off the end of a packet of one segment: 0, or -1 when it is shorter. */
int genie_mbuf_trim(struct rte_mbuf *mbuf, uint16_t len)
{
	return rte_pktmbuf_trim(mbuf, len);
}

int genie_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail)
{
	return rte_pktmbuf_chain(head, tail);
}

int genie_mbuf_is_external(const struct rte_mbuf *mbuf)
{
	return RTE_MBUF_HAS_EXTBUF(mbuf) ? 1 : 0;
}

/* Points a fresh mbuf at `len` bytes of foreign memory and takes one reference in `shared`. */
void genie_mbuf_attach(struct rte_mbuf *mbuf, void *address, uint64_t iova, uint16_t len,
		       struct rte_mbuf_ext_shared_info *shared)
{
	rte_mbuf_ext_refcnt_update(shared, 1);
	rte_pktmbuf_attach_extbuf(mbuf, address, iova, len, shared);
	mbuf->data_off = 0;
	mbuf->data_len = len;
	mbuf->pkt_len = len;
}

/* Asks the device to fill in the IPv4 and UDP checksums of an untagged frame. */
void genie_mbuf_offload_checksums(struct rte_mbuf *mbuf, uint64_t offloads)
{
	mbuf->l2_len = 14;
	mbuf->l3_len = 20;
	mbuf->ol_flags |= RTE_MBUF_F_TX_IPV4;
	if (offloads & RTE_ETH_TX_OFFLOAD_IPV4_CKSUM)
		mbuf->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
	if (offloads & RTE_ETH_TX_OFFLOAD_UDP_CKSUM)
		mbuf->ol_flags |= RTE_MBUF_F_TX_UDP_CKSUM;
}

/* 1: the device found the UDP checksum good; -1: bad; 0: it did not look. */
int genie_mbuf_rx_checksum(const struct rte_mbuf *mbuf)
{
	uint64_t seen = mbuf->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;

	if (seen == RTE_MBUF_F_RX_L4_CKSUM_GOOD)
		return 1;
	/* virtio marks frames of its own host "none": never on a wire, so never damaged. */
	if (seen == RTE_MBUF_F_RX_L4_CKSUM_NONE)
		return 1;
	return seen == RTE_MBUF_F_RX_L4_CKSUM_BAD ? -1 : 0;
}

uint64_t genie_tx_offload_udp_checksum(void)
{
	return RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
}

uint64_t genie_tx_offload_segments(void)
{
	return RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
}

uint64_t genie_tx_offload_ipv4_checksum(void)
{
	return RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
}

/* ---- the reference count of attached memory ----------------------------------------------- */

/* Room that Rust keeps for it: `SharedInfo` in lib.rs. */
_Static_assert(sizeof(struct rte_mbuf_ext_shared_info) <= 24, "SharedInfo is too small");
_Static_assert(_Alignof(struct rte_mbuf_ext_shared_info) <= 8, "SharedInfo is aligned too little");

/* One reference, the caller's own. */
void genie_shared_init(struct rte_mbuf_ext_shared_info *shared,
		       rte_mbuf_extbuf_free_callback_t freed, void *opaque)
{
	shared->free_cb = freed;
	shared->fcb_opaque = opaque;
	rte_mbuf_ext_refcnt_set(shared, 1);
}

uint16_t genie_shared_references(const struct rte_mbuf_ext_shared_info *shared)
{
	return rte_mbuf_ext_refcnt_read(shared);
}

/* Gives up the caller's own reference, as freeing an attached mbuf gives up the mbuf's. */
void genie_shared_release(struct rte_mbuf_ext_shared_info *shared, void *address)
{
	if (rte_mbuf_ext_refcnt_update(shared, -1) == 0)
		shared->free_cb(address, shared->fcb_opaque);
}

/* ---- foreign memory ----------------------------------------------------------------------- */

int genie_extmem_register(void *address, size_t bytes, size_t page)
{
	return rte_extmem_register(address, bytes, NULL, 0, page) == 0 ? 0 : -rte_errno;
}

int genie_extmem_unregister(void *address, size_t bytes)
{
	return rte_extmem_unregister(address, bytes) == 0 ? 0 : -rte_errno;
}

static struct rte_device *device_of(uint16_t port)
{
	struct rte_eth_dev_info info;

	return rte_eth_dev_info_get(port, &info) == 0 ? info.device : NULL;
}

/* Lets the port's device reach the memory (IOMMU); its I/O address is its virtual address. */
int genie_dma_map(uint16_t port, void *address, size_t bytes)
{
	struct rte_device *device = device_of(port);

	if (device == NULL)
		return -ENOTSUP;
	return rte_dev_dma_map(device, address, (uint64_t)(uintptr_t)address, bytes) == 0
		? 0 : -rte_errno;
}

int genie_dma_unmap(uint16_t port, void *address, size_t bytes)
{
	struct rte_device *device = device_of(port);

	if (device == NULL)
		return -ENOTSUP;
	return rte_dev_dma_unmap(device, address, (uint64_t)(uintptr_t)address, bytes) == 0
		? 0 : -rte_errno;
}

/* ---- GPUDev ------------------------------------------------------------------------------- */

int genie_gpu_info(int16_t gpu, struct genie_gpu_info *out)
{
	struct rte_gpu_info info;
	int failed = rte_gpu_info_get(gpu, &info);

	if (failed != 0)
		return failed;
	memset(out, 0, sizeof(*out));
	snprintf(out->name, sizeof(out->name), "%s", info.name == NULL ? "" : info.name);
	out->total_memory = info.total_memory;
	out->page_size = info.page_size;
	out->numa_node = info.numa_node;
	return 0;
}

/* The first GPU after `from` (-1: the first), or RTE_GPU_ID_NONE = -1. */
int16_t genie_gpu_next(int16_t from)
{
	return rte_gpu_find_next((int16_t)(from + 1), RTE_GPU_ID_ANY);
}
