/* A transport plugin in C, as small as one can be: a connection whose peer is itself.
 *
 *     cc -shared -fPIC -I transports/abi/include -o mirror.so transports/abi/examples/mirror.c
 *     genie-host transport list --transports .
 *
 * What is sent comes back: a frame as a frame, a write into a window that this side offered. It
 * shows the shape of every function; a real transport has a socket where this one has a queue.
 * Its event descriptor is an eventfd that is readable while something waits in the queue.
 */
#include "genie_transport.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MEMORIES 64
#define WINDOWS 16
#define QUEUE 256

struct window {
    bool offered;
    uint32_t number;
    struct genie_part part;
};

struct genie_connection {
    int event;
    bool closed;
    struct genie_memory memories[MEMORIES]; /* key is index + 1; address is null where free */
    struct window windows[WINDOWS];
    struct genie_completion queue[QUEUE];
    size_t first, count;
    uint8_t *lent[QUEUE]; /* bodies that the caller may look at until the next poll */
    size_t lent_count;
    uint64_t last;
};

static void say(struct genie_text *out, const char *text) {
    if (out == NULL) {
        return;
    }
    size_t bytes = strlen(text);
    if (bytes > out->capacity) {
        bytes = out->capacity; /* the texts here are ASCII: they can be cut anywhere */
    }
    memcpy(out->data, text, bytes);
    out->bytes = bytes;
}

static int32_t refuse(struct genie_text *error, int32_t cause, const char *text) {
    say(error, text);
    return cause;
}

static int32_t facts(struct genie_text *out) {
    char text[128];
    snprintf(text, sizeof text, "{\"name\":\"mirror\",\"version\":\"1.0\",\"capabilities\":%u}",
             GENIE_CAN_CONTROL | GENIE_CAN_DATA);
    say(out, text);
    return 0;
}

static int32_t probe(struct genie_slice options, struct genie_text *out) {
    (void)options; /* a JSON object; see Options in transport.rs */
    say(out, "this process, and nobody else");
    return 0;
}

static int32_t no_listen(struct genie_slice options, struct genie_listener **out,
                         struct genie_text *error) {
    (void)options;
    *out = NULL;
    return refuse(error, GENIE_UNSUPPORTED, "the transport mirror cannot listen: connect instead");
}

static int32_t listener_address(struct genie_listener *listener, struct genie_text *out) {
    (void)listener;
    return refuse(out, GENIE_UNSUPPORTED, "no listener");
}

static int32_t listener_event_fd(struct genie_listener *listener) {
    (void)listener;
    return -1;
}

static int32_t listener_accept(struct genie_listener *listener, struct genie_connection **out,
                               struct genie_text *error) {
    (void)listener;
    *out = NULL;
    return refuse(error, GENIE_UNSUPPORTED, "no listener");
}

static void listener_drop(struct genie_listener *listener) { (void)listener; }

static void wake(struct genie_connection *c) {
    uint64_t one = 1;
    ssize_t written = write(c->event, &one, sizeof one);
    (void)written; /* it is full only when it is readable already */
}

static bool room(struct genie_connection *c, size_t completions) {
    return c->count + completions <= QUEUE;
}

static void push(struct genie_connection *c, struct genie_completion completion) {
    c->queue[(c->first + c->count++) % QUEUE] = completion;
    wake(c);
}

static int32_t mirror_connect(struct genie_slice options, struct genie_connection **out,
                              struct genie_text *error) {
    (void)options;
    struct genie_connection *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return refuse(error, GENIE_IO, "no memory for a connection");
    }
    c->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->event < 0) {
        free(c);
        return refuse(error, GENIE_IO, "no descriptor for a connection");
    }
    push(c, (struct genie_completion){.kind = GENIE_CONNECTED, .descriptor = -1});
    *out = c;
    return 0;
}

static int32_t event_fd(struct genie_connection *c) { return c->event; }

static int32_t arm(struct genie_connection *c, struct genie_text *error) {
    (void)error;
    return c->count > 0 || c->closed;
}

static int32_t mirror_poll(struct genie_connection *c, struct genie_completion *completions,
                           size_t capacity, struct genie_text *error) {
    for (size_t i = 0; i < c->lent_count; i++) {
        free(c->lent[i]);
    }
    c->lent_count = 0;
    uint64_t ignored;
    ssize_t drained = read(c->event, &ignored, sizeof ignored);
    (void)drained; /* nothing there is no failure */
    size_t count = 0;
    while (c->count > 0 && count < capacity) {
        completions[count] = c->queue[c->first];
        c->first = (c->first + 1) % QUEUE;
        c->count--;
        if (completions[count].kind == GENIE_FRAME) {
            c->lent[c->lent_count++] = (uint8_t *)completions[count].body.data;
        }
        count++;
    }
    if (count == 0 && c->closed) {
        wake(c);
        return refuse(error, GENIE_CLOSED, "the connection was closed");
    }
    if (c->count > 0 || c->closed) {
        wake(c);
    }
    return (int32_t)count;
}

static int32_t send_frame(struct genie_connection *c, uint32_t kind,
                          const struct genie_slice *parts, size_t count, int32_t descriptor,
                          struct genie_text *error) {
    if (c->closed) {
        return refuse(error, GENIE_CLOSED, "the connection was closed");
    }
    if (descriptor >= 0) {
        return refuse(error, GENIE_UNSUPPORTED, "the transport mirror shares no memory");
    }
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        bytes += parts[i].bytes;
    }
    if (bytes > GENIE_FRAME_BYTES_MAX) {
        return refuse(error, GENIE_INVALID, "the frame is too large");
    }
    if (!room(c, 1)) {
        return refuse(error, GENIE_OUT_OF_CREDIT, "the queue is full");
    }
    uint8_t *body = malloc(bytes > 0 ? bytes : 1);
    if (body == NULL) {
        return refuse(error, GENIE_IO, "no memory for a frame");
    }
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].bytes > 0) {
            memcpy(body + at, parts[i].data, parts[i].bytes);
        }
        at += parts[i].bytes;
    }
    push(c, (struct genie_completion){.kind = GENIE_FRAME,
                                      .frame_kind = kind,
                                      .body = {body, bytes},
                                      .descriptor = -1});
    return 0;
}

static uint64_t queued_bytes(struct genie_connection *c) {
    (void)c;
    return 0;
}

static int32_t register_memory(struct genie_connection *c, const struct genie_memory *memory,
                               uint64_t *key, struct genie_text *error) {
    /* The owner is ours now, also when we refuse. */
    if (memory->kind <= GENIE_MEMORY_PINNED) {
        for (size_t i = 0; i < MEMORIES; i++) {
            if (c->memories[i].address == NULL) {
                c->memories[i] = *memory;
                *key = i + 1;
                return 0;
            }
        }
    }
    if (memory->release != NULL) {
        memory->release(memory->owner);
    }
    return memory->kind <= GENIE_MEMORY_PINNED
               ? refuse(error, GENIE_INVALID, "too many memories are registered")
               : refuse(error, GENIE_UNSUPPORTED, "the transport mirror takes host memory only");
}

static struct genie_memory *memory_of(struct genie_connection *c, const struct genie_part *part) {
    if (part->key == 0 || part->key > MEMORIES) {
        return NULL;
    }
    struct genie_memory *memory = &c->memories[part->key - 1];
    bool inside = memory->address != NULL && part->offset <= memory->bytes &&
                  part->bytes <= memory->bytes - part->offset;
    return inside ? memory : NULL;
}

static void give_up(struct genie_memory *memory) {
    if (memory->address != NULL && memory->release != NULL) {
        memory->release(memory->owner);
    }
    memory->address = NULL;
}

static int32_t unregister(struct genie_connection *c, uint64_t key, struct genie_text *error) {
    struct genie_part any = {key, 0, 0};
    struct genie_memory *memory = memory_of(c, &any);
    if (memory == NULL) {
        return refuse(error, GENIE_INVALID, "the memory is not registered");
    }
    for (size_t i = 0; i < WINDOWS; i++) {
        if (c->windows[i].offered && c->windows[i].part.key == key) {
            return refuse(error, GENIE_INVALID, "a window uses the memory");
        }
    }
    give_up(memory);
    return 0;
}

static struct window *window_of(struct genie_connection *c, uint32_t number) {
    for (size_t i = 0; i < WINDOWS; i++) {
        if (c->windows[i].offered && c->windows[i].number == number) {
            return &c->windows[i];
        }
    }
    return NULL;
}

static int32_t offer(struct genie_connection *c, uint32_t number, const struct genie_part *part,
                     struct genie_text *error) {
    if (memory_of(c, part) == NULL || window_of(c, number) != NULL) {
        return refuse(error, GENIE_INVALID, "the range is not registered, or the window is offered");
    }
    for (size_t i = 0; i < WINDOWS; i++) {
        if (!c->windows[i].offered) {
            c->windows[i] = (struct window){true, number, *part};
            return 0;
        }
    }
    return refuse(error, GENIE_OUT_OF_CREDIT, "too many windows are offered");
}

static int32_t withdraw(struct genie_connection *c, uint32_t number, struct genie_text *error) {
    struct window *window = window_of(c, number);
    if (window == NULL) {
        return refuse(error, GENIE_INVALID, "the window is not offered");
    }
    window->offered = false;
    return 0;
}

static int32_t mirror_write(struct genie_connection *c, uint64_t message,
                            const struct genie_part *parts, size_t count, uint32_t number,
                            uint64_t offset, struct genie_text *error) {
    if (c->closed) {
        return refuse(error, GENIE_CLOSED, "the connection was closed");
    }
    if (count > GENIE_PARTS_MAX || message <= c->last) {
        return refuse(error, GENIE_INVALID, "too many parts, or a message number again");
    }
    struct window *window = window_of(c, number);
    if (window == NULL) {
        /* A real transport waits for the window. */
        return refuse(error, GENIE_UNSUPPORTED, "the transport mirror writes to offered windows");
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (memory_of(c, &parts[i]) == NULL) {
            return refuse(error, GENIE_INVALID, "a part lies outside registered memory");
        }
        bytes += parts[i].bytes;
    }
    if (offset > window->part.bytes || bytes > window->part.bytes - offset) {
        return refuse(error, GENIE_INVALID, "the message reaches beyond its window");
    }
    if (!room(c, 2)) {
        return refuse(error, GENIE_OUT_OF_CREDIT, "the queue is full");
    }
    uint8_t *to = memory_of(c, &window->part)->address + window->part.offset + offset;
    for (size_t i = 0; i < count; i++) {
        memmove(to, memory_of(c, &parts[i])->address + parts[i].offset, parts[i].bytes);
        to += parts[i].bytes;
    }
    c->last = message;
    push(c, (struct genie_completion){.kind = GENIE_PLACED,
                                      .window = number,
                                      .message = message,
                                      .offset = offset,
                                      .bytes = bytes,
                                      .descriptor = -1});
    push(c, (struct genie_completion){.kind = GENIE_WRITTEN, .message = message, .descriptor = -1});
    return 0;
}

static int32_t export_secret(struct genie_connection *c, struct genie_slice label, uint8_t *out32,
                             struct genie_text *error) {
    (void)c;
    (void)label;
    (void)out32;
    return refuse(error, GENIE_UNSUPPORTED, "the transport mirror has no secrets");
}

static int32_t peer_identity(struct genie_connection *c, struct genie_text *out) {
    (void)c;
    say(out, "");
    return 0;
}

static int32_t peer_address(struct genie_connection *c, struct genie_text *out) {
    (void)c;
    say(out, "itself");
    return 0;
}

static int32_t statistics(struct genie_connection *c, struct genie_text *out) {
    char text[64];
    snprintf(text, sizeof text, "{\"waiting\":%zu}", c->count);
    say(out, text);
    return 0;
}

static int32_t mirror_close(struct genie_connection *c, struct genie_slice reason) {
    (void)reason;
    c->closed = true;
    wake(c);
    return 0;
}

static void mirror_drop(struct genie_connection *c) {
    struct genie_completion rest;
    while (c->count > 0) {
        rest = c->queue[c->first];
        c->first = (c->first + 1) % QUEUE;
        c->count--;
        if (rest.kind == GENIE_FRAME) {
            free((uint8_t *)rest.body.data);
        }
    }
    for (size_t i = 0; i < c->lent_count; i++) {
        free(c->lent[i]);
    }
    for (size_t i = 0; i < MEMORIES; i++) {
        give_up(&c->memories[i]);
    }
    close(c->event);
    free(c);
}

const struct genie_transport *genie_transport_v1(void) {
    static const struct genie_transport table = {
        .size = sizeof(struct genie_transport),
        .major = GENIE_TRANSPORT_MAJOR,
        .minor = GENIE_TRANSPORT_MINOR,
        .facts = facts,
        .probe = probe,
        .listen = no_listen,
        .connect = mirror_connect,
        .listener_address = listener_address,
        .listener_event_fd = listener_event_fd,
        .listener_accept = listener_accept,
        .listener_drop = listener_drop,
        .connection_event_fd = event_fd,
        .connection_arm = arm,
        .connection_poll = mirror_poll,
        .connection_send_frame = send_frame,
        .connection_queued_bytes = queued_bytes,
        .connection_register = register_memory,
        .connection_unregister = unregister,
        .connection_offer = offer,
        .connection_withdraw = withdraw,
        .connection_write = mirror_write,
        .connection_export_secret = export_secret,
        .connection_peer_identity = peer_identity,
        .connection_peer_address = peer_address,
        .connection_statistics = statistics,
        .connection_close = mirror_close,
        .connection_drop = mirror_drop,
    };
    return &table;
}
