/* A GPU for tests on machines without one, registered through GPUDev's driver side.
 *
 * Its memory is a memfd mapped twice. The "device" address has no access rights: a processor that
 * touches it dies, so a test that ends proves that nobody did. The address that cpu_map returns
 * sees the same bytes, as a BAR mapping of a real GPU would. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <unistd.h>

#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_gpudev.h>

/* Debian packages rte_gpudev.h but not gpudev_driver.h; this repeats the driver's side of it,
 * the same in DPDK 22.11 and 23.11. */
struct rte_gpu;

struct rte_gpu_ops {
	int (*dev_info_get)(struct rte_gpu *dev, struct rte_gpu_info *info);
	int (*dev_close)(struct rte_gpu *dev);
	int (*mem_alloc)(struct rte_gpu *dev, size_t size, unsigned int align, void **ptr);
	int (*mem_free)(struct rte_gpu *dev, void *ptr);
	int (*mem_register)(struct rte_gpu *dev, size_t size, void *ptr);
	int (*mem_unregister)(struct rte_gpu *dev, void *ptr);
	int (*mem_cpu_map)(struct rte_gpu *dev, size_t size, void *ptr_in, void **ptr_out);
	int (*mem_cpu_unmap)(struct rte_gpu *dev, void *ptr);
	int (*wmb)(struct rte_gpu *dev);
};

struct rte_gpu_mpshared {
	char name[RTE_DEV_NAME_MAX_LEN];
	void *dev_private;
	struct rte_gpu_info info;
	uint16_t process_refcnt;
};

struct rte_gpu {
	struct rte_device *device;
	struct rte_gpu_mpshared *mpshared;
	struct rte_gpu_ops ops;
	TAILQ_HEAD(, rte_gpu_callback) callbacks;
	int process_state;
	void *process_private;
} __rte_cache_aligned;

struct rte_gpu *rte_gpu_allocate(const char *name);
void rte_gpu_complete_new(struct rte_gpu *dev);
int rte_gpu_release(struct rte_gpu *dev);

/* Mirrored by `FakeGpuCounts` in lib.rs. */
struct genie_fake_gpu_counts {
	uint32_t allocated, freed, registered, unregistered, mapped, unmapped, barriers;
};

struct block {
	void *device;
	void *processor;
	size_t bytes;
	int mapped;
	TAILQ_ENTRY(block) list;
};

static TAILQ_HEAD(, block) blocks = TAILQ_HEAD_INITIALIZER(blocks);
static struct genie_fake_gpu_counts counts;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct block *find(const void *inside)
{
	struct block *block;

	TAILQ_FOREACH(block, &blocks, list)
		if ((const char *)inside >= (char *)block->device &&
		    (const char *)inside < (char *)block->device + block->bytes)
			return block;
	return NULL;
}

static int fake_alloc(struct rte_gpu *dev, size_t size, unsigned int align, void **ptr)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t bytes = RTE_ALIGN_CEIL(size, page);
	struct block *block = calloc(1, sizeof(*block));
	int fd = memfd_create("genie-fake-gpu", MFD_CLOEXEC);

	(void)dev;
	if (align > page || block == NULL || fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
		goto refused;
	block->bytes = bytes;
	block->device = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, fd, 0);
	if (block->device == MAP_FAILED)
		goto refused;
	block->processor = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (block->processor == MAP_FAILED) {
		munmap(block->device, bytes);
		goto refused;
	}
	close(fd);
	pthread_mutex_lock(&lock);
	TAILQ_INSERT_TAIL(&blocks, block, list);
	counts.allocated++;
	pthread_mutex_unlock(&lock);
	*ptr = block->device;
	return 0;
refused:
	if (fd >= 0)
		close(fd);
	free(block);
	rte_errno = ENOMEM;
	return -ENOMEM;
}

static int fake_free(struct rte_gpu *dev, void *ptr)
{
	struct block *block;

	(void)dev;
	pthread_mutex_lock(&lock);
	block = find(ptr);
	if (block == NULL || block->device != ptr) {
		pthread_mutex_unlock(&lock);
		rte_errno = EINVAL;
		return -EINVAL;
	}
	TAILQ_REMOVE(&blocks, block, list);
	counts.freed++;
	pthread_mutex_unlock(&lock);
	munmap(block->device, block->bytes);
	munmap(block->processor, block->bytes);
	free(block);
	return 0;
}

static int fake_register(struct rte_gpu *dev, size_t size, void *ptr)
{
	(void)dev;
	if (size == 0 || ptr == NULL) {
		rte_errno = EINVAL;
		return -EINVAL;
	}
	__atomic_fetch_add(&counts.registered, 1, __ATOMIC_RELAXED);
	return 0;
}

static int fake_unregister(struct rte_gpu *dev, void *ptr)
{
	(void)dev;
	(void)ptr;
	__atomic_fetch_add(&counts.unregistered, 1, __ATOMIC_RELAXED);
	return 0;
}

static int fake_map(struct rte_gpu *dev, size_t size, void *ptr, void **out)
{
	struct block *block;
	int failed = -EINVAL;

	(void)dev;
	pthread_mutex_lock(&lock);
	block = find(ptr);
	if (block != NULL && !block->mapped) {
		size_t offset = (size_t)((char *)ptr - (char *)block->device);

		if (size <= block->bytes - offset) {
			*out = (char *)block->processor + offset;
			block->mapped = 1;
			counts.mapped++;
			failed = 0;
		}
	}
	pthread_mutex_unlock(&lock);
	if (failed != 0)
		rte_errno = EINVAL;
	return failed;
}

static int fake_unmap(struct rte_gpu *dev, void *ptr)
{
	struct block *block;
	int failed = -EINVAL;

	(void)dev;
	pthread_mutex_lock(&lock);
	block = find(ptr);
	if (block != NULL && block->mapped) {
		block->mapped = 0;
		counts.unmapped++;
		failed = 0;
	}
	pthread_mutex_unlock(&lock);
	if (failed != 0)
		rte_errno = EINVAL;
	return failed;
}

static int fake_barrier(struct rte_gpu *dev)
{
	(void)dev;
	__atomic_fetch_add(&counts.barriers, 1, __ATOMIC_RELAXED);
	return 0;
}

static int fake_close(struct rte_gpu *dev)
{
	return rte_gpu_release(dev);
}

/* The new GPU's id, or a negative errno. */
int genie_fake_gpu_add(const char *name)
{
	struct rte_gpu *gpu = rte_gpu_allocate(name);

	if (gpu == NULL)
		return -rte_errno;
	gpu->ops.dev_close = fake_close;
	gpu->ops.mem_alloc = fake_alloc;
	gpu->ops.mem_free = fake_free;
	gpu->ops.mem_register = fake_register;
	gpu->ops.mem_unregister = fake_unregister;
	gpu->ops.mem_cpu_map = fake_map;
	gpu->ops.mem_cpu_unmap = fake_unmap;
	gpu->ops.wmb = fake_barrier;
	gpu->mpshared->info.total_memory = 1u << 30;
	gpu->mpshared->info.page_size = (size_t)sysconf(_SC_PAGESIZE);
	gpu->mpshared->info.numa_node = -1;
	rte_gpu_complete_new(gpu);
	return gpu->mpshared->info.dev_id;
}

void genie_fake_gpu_counts(struct genie_fake_gpu_counts *out)
{
	pthread_mutex_lock(&lock);
	*out = counts;
	pthread_mutex_unlock(&lock);
}
