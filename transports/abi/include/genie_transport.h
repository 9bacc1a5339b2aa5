/* The C ABI of Genie's transport plugins, version 1.0.
 *
 * A plugin is a shared object that exports one function:
 *
 *     const struct genie_transport *genie_transport_v1(void);
 *
 * which returns a table that is valid for ever. All functions of the table are required. None may
 * unwind or call longjmp. docs/reference/transports.md says what each must do; the names are those
 * of the Rust traits in transports/abi/src/transport.rs. This header equals transports/abi/src/abi.rs:
 * a test compares sizes and offsets.
 */
#ifndef GENIE_TRANSPORT_H
#define GENIE_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GENIE_TRANSPORT_MAJOR 1
#define GENIE_TRANSPORT_MINOR 0

/* Results: 0 or a count for success, otherwise one of these. */
#define GENIE_OUT_OF_CREDIT (-1) /* try again after GENIE_WRITABLE */
#define GENIE_CLOSED (-2)
#define GENIE_TIMED_OUT (-3)
#define GENIE_REFUSED (-4)
#define GENIE_VERSION (-5)
#define GENIE_PROTOCOL (-6)
#define GENIE_UNSUPPORTED (-7)
#define GENIE_INVALID (-8)
#define GENIE_IO (-9)
#define GENIE_INTERNAL (-10)

/* Bits of "capabilities" in the facts. */
#define GENIE_CAN_CONTROL (1u << 0)
#define GENIE_CAN_DATA (1u << 1)
#define GENIE_CAN_SHARE_MEMORY (1u << 2)
#define GENIE_CAN_GPU_MEMORY (1u << 3)
#define GENIE_CAN_ZERO_COPY (1u << 4)
#define GENIE_CAN_RDMA (1u << 5)
#define GENIE_CAN_NETWORK (1u << 6)

/* Kinds of memory. */
#define GENIE_MEMORY_HOST 0u
#define GENIE_MEMORY_PINNED 1u
#define GENIE_MEMORY_GPU 2u
#define GENIE_MEMORY_DMA_BUF 3u

/* Kinds of completions. */
#define GENIE_CONNECTED 1u
#define GENIE_FRAME 2u
#define GENIE_WRITTEN 3u
#define GENIE_PLACED 4u
#define GENIE_WRITABLE 5u

/* Limits that both sides keep. */
#define GENIE_FRAME_BYTES_MAX 4194368u
#define GENIE_FRAME_QUEUE_BYTES_MAX 8388608u
#define GENIE_WINDOWS_MAX 1024u
#define GENIE_MESSAGES_MAX 4096u
#define GENIE_PARTS_MAX 64u
#define GENIE_MEMORIES_MAX 4096u
#define GENIE_COMPLETIONS_MAX 256u

/* Bytes lent for the call. */
struct genie_slice {
    const uint8_t *data;
    size_t bytes;
};

/* A buffer of the caller's for UTF-8 text; the callee sets bytes <= capacity. May be null. */
struct genie_text {
    uint8_t *data;
    size_t capacity;
    size_t bytes;
};

/* Memory to register. release(owner) is called once, from any thread, when the plugin gives the
 * memory up. */
struct genie_memory {
    uint8_t *address;
    uint64_t bytes;
    uint32_t kind;
    int32_t device;     /* number of the GPU, -1 for host memory */
    int32_t descriptor; /* memfd or dma-buf, -1 for none */
    void *owner;
    void (*release)(void *owner);
};

/* A range of registered memory. */
struct genie_part {
    uint64_t key;
    uint64_t offset;
    uint64_t bytes;
};

/* What a poll returns. Fields that a kind does not have are zero. */
struct genie_completion {
    uint32_t kind;
    uint32_t window;
    uint64_t message;
    uint64_t offset;
    uint64_t bytes;
    struct genie_slice body; /* lent until the next poll of the connection */
    uint32_t frame_kind;
    int32_t descriptor; /* passes to the caller; -1 for none */
};

/* The plugin's own. */
struct genie_listener;
struct genie_connection;

struct genie_transport {
    uint32_t size; /* sizeof(struct genie_transport) */
    uint16_t major;
    uint16_t minor;

    int32_t (*facts)(struct genie_text *out);
    int32_t (*probe)(struct genie_slice options, struct genie_text *out);
    int32_t (*listen)(struct genie_slice options, struct genie_listener **out,
                      struct genie_text *error);
    int32_t (*connect)(struct genie_slice options, struct genie_connection **out,
                       struct genie_text *error);

    int32_t (*listener_address)(struct genie_listener *, struct genie_text *out);
    int32_t (*listener_event_fd)(struct genie_listener *);
    int32_t (*listener_accept)(struct genie_listener *, struct genie_connection **out,
                               struct genie_text *error);
    void (*listener_drop)(struct genie_listener *);

    int32_t (*connection_event_fd)(struct genie_connection *);
    int32_t (*connection_arm)(struct genie_connection *, struct genie_text *error);
    int32_t (*connection_poll)(struct genie_connection *, struct genie_completion *completions,
                               size_t capacity, struct genie_text *error);
    int32_t (*connection_send_frame)(struct genie_connection *, uint32_t kind,
                                     const struct genie_slice *parts, size_t count,
                                     int32_t descriptor, struct genie_text *error);
    uint64_t (*connection_queued_bytes)(struct genie_connection *);
    int32_t (*connection_register)(struct genie_connection *, const struct genie_memory *memory,
                                   uint64_t *key, struct genie_text *error);
    int32_t (*connection_unregister)(struct genie_connection *, uint64_t key,
                                     struct genie_text *error);
    int32_t (*connection_offer)(struct genie_connection *, uint32_t window,
                                const struct genie_part *part, struct genie_text *error);
    int32_t (*connection_withdraw)(struct genie_connection *, uint32_t window,
                                   struct genie_text *error);
    int32_t (*connection_write)(struct genie_connection *, uint64_t message,
                                const struct genie_part *parts, size_t count, uint32_t window,
                                uint64_t offset, struct genie_text *error);
    int32_t (*connection_export_secret)(struct genie_connection *, struct genie_slice label,
                                        uint8_t *out32, struct genie_text *error);
    int32_t (*connection_peer_identity)(struct genie_connection *, struct genie_text *out);
    int32_t (*connection_peer_address)(struct genie_connection *, struct genie_text *out);
    int32_t (*connection_statistics)(struct genie_connection *, struct genie_text *out);
    int32_t (*connection_close)(struct genie_connection *, struct genie_slice reason);
    void (*connection_drop)(struct genie_connection *);
};

const struct genie_transport *genie_transport_v1(void);

#ifdef __cplusplus
}
#endif
#endif
