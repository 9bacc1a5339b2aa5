/* Prints what the compiler makes of the header: NAME VALUE, one a line. */
#include "genie_transport.h"

#include <stdio.h>

#define SIZE(type) printf(#type " %zu\n", sizeof(struct type))
#define AT(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))
#define VALUE(name) printf(#name " %lld\n", (long long)name)

int main(void) {
    SIZE(genie_slice);
    AT(genie_slice, bytes);
    SIZE(genie_text);
    AT(genie_text, capacity);
    AT(genie_text, bytes);
    SIZE(genie_memory);
    AT(genie_memory, bytes);
    AT(genie_memory, kind);
    AT(genie_memory, device);
    AT(genie_memory, descriptor);
    AT(genie_memory, owner);
    AT(genie_memory, release);
    SIZE(genie_part);
    AT(genie_part, offset);
    AT(genie_part, bytes);
    SIZE(genie_completion);
    AT(genie_completion, window);
    AT(genie_completion, message);
    AT(genie_completion, offset);
    AT(genie_completion, bytes);
    AT(genie_completion, body);
    AT(genie_completion, frame_kind);
    AT(genie_completion, descriptor);
    SIZE(genie_transport);
    AT(genie_transport, major);
    AT(genie_transport, minor);
    AT(genie_transport, facts);
    AT(genie_transport, probe);
    AT(genie_transport, listen);
    AT(genie_transport, connect);
    AT(genie_transport, listener_address);
    AT(genie_transport, listener_event_fd);
    AT(genie_transport, listener_accept);
    AT(genie_transport, listener_drop);
    AT(genie_transport, connection_event_fd);
    AT(genie_transport, connection_arm);
    AT(genie_transport, connection_poll);
    AT(genie_transport, connection_send_frame);
    AT(genie_transport, connection_queued_bytes);
    AT(genie_transport, connection_register);
    AT(genie_transport, connection_unregister);
    AT(genie_transport, connection_offer);
    AT(genie_transport, connection_withdraw);
    AT(genie_transport, connection_write);
    AT(genie_transport, connection_export_secret);
    AT(genie_transport, connection_peer_identity);
    AT(genie_transport, connection_peer_address);
    AT(genie_transport, connection_statistics);
    AT(genie_transport, connection_close);
    AT(genie_transport, connection_drop);
    VALUE(GENIE_TRANSPORT_MAJOR);
    VALUE(GENIE_TRANSPORT_MINOR);
    VALUE(GENIE_OUT_OF_CREDIT);
    VALUE(GENIE_CLOSED);
    VALUE(GENIE_TIMED_OUT);
    VALUE(GENIE_REFUSED);
    VALUE(GENIE_VERSION);
    VALUE(GENIE_PROTOCOL);
    VALUE(GENIE_UNSUPPORTED);
    VALUE(GENIE_INVALID);
    VALUE(GENIE_IO);
    VALUE(GENIE_INTERNAL);
    VALUE(GENIE_CAN_CONTROL);
    VALUE(GENIE_CAN_DATA);
    VALUE(GENIE_CAN_SHARE_MEMORY);
    VALUE(GENIE_CAN_GPU_MEMORY);
    VALUE(GENIE_CAN_ZERO_COPY);
    VALUE(GENIE_CAN_RDMA);
    VALUE(GENIE_CAN_NETWORK);
    VALUE(GENIE_MEMORY_HOST);
    VALUE(GENIE_MEMORY_PINNED);
    VALUE(GENIE_MEMORY_GPU);
    VALUE(GENIE_MEMORY_DMA_BUF);
    VALUE(GENIE_CONNECTED);
    VALUE(GENIE_FRAME);
    VALUE(GENIE_WRITTEN);
    VALUE(GENIE_PLACED);
    VALUE(GENIE_WRITABLE);
    VALUE(GENIE_FRAME_BYTES_MAX);
    VALUE(GENIE_FRAME_QUEUE_BYTES_MAX);
    VALUE(GENIE_WINDOWS_MAX);
    VALUE(GENIE_MESSAGES_MAX);
    VALUE(GENIE_PARTS_MAX);
    VALUE(GENIE_MEMORIES_MAX);
    VALUE(GENIE_COMPLETIONS_MAX);
    return 0;
}
