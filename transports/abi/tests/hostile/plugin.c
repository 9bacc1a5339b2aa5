/* Plugins that are wrong in one way each, chosen by -DFAULT_... when compiled. */
#include "genie_transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef NAME
#define NAME "hostile"
#endif

static void say(struct genie_text *out, const char *text) {
    if (out != NULL) {
        size_t bytes = strlen(text) < out->capacity ? strlen(text) : out->capacity;
        memcpy(out->data, text, bytes);
        out->bytes = bytes;
    }
}

static int32_t facts(struct genie_text *out) {
#if defined(FAULT_GARBAGE_FACTS)
    say(out, "\xff\xfe{{{ not json");
#elif defined(FAULT_HUGE_TEXT)
    out->bytes = (size_t)-1;
    memset(out->data, 'x', out->capacity);
#elif defined(FAULT_STRANGE_NAME)
    say(out, "{\"name\":\"../evil\",\"version\":\"1\",\"capabilities\":2}");
#else
    say(out, "{\"name\":\"" NAME "\",\"version\":\"1.0\",\"capabilities\":2}");
#endif
    return 0;
}

static int32_t probe(struct genie_slice options, struct genie_text *out) {
    (void)options;
#if defined(FAULT_ABORT_IN_PROBE)
    fprintf(stderr, "something is wrong\n");
    abort();
#elif defined(FAULT_HANG_IN_PROBE)
    for (;;) {
        pause();
    }
#elif defined(FAULT_FLOOD_IN_PROBE)
    for (;;) {
        puts("{\"found\":{\"facts\":{\"name\":\"forged\"}}}");
        fputs("flood flood flood flood flood\n", stderr);
    }
#elif defined(FAULT_EXIT_IN_PROBE)
    exit(0);
#elif defined(FAULT_NOTHING_HERE)
    say(out, "no device\n\x1b[31m was found");
    return GENIE_IO;
#endif
    say(out, "fine");
    return 0;
}

/* Everything else is never called: any function will do. */
static int32_t never(void) { return GENIE_UNSUPPORTED; }

#if defined(FAULT_CRASH_IN_CONSTRUCTOR)
__attribute__((constructor)) static void begin(void) { *(volatile int *)8 = 1; }
#elif defined(FAULT_HANG_IN_CONSTRUCTOR)
__attribute__((constructor)) static void begin(void) {
    for (;;) {
        pause();
    }
}
#endif

#if !defined(FAULT_NO_ENTRY)
const struct genie_transport *genie_transport_v1(void) {
    static struct genie_transport table;
#if defined(FAULT_NULL_TABLE)
    return NULL;
#elif defined(FAULT_CRASH_IN_ENTRY)
    *(volatile int *)8 = 1;
#endif
    void (**functions)(void) = (void (**)(void))&table.facts;
    size_t count = (sizeof table - offsetof(struct genie_transport, facts)) / sizeof *functions;
    for (size_t i = 0; i < count; i++) {
        functions[i] = (void (*)(void))never;
    }
    table.size = sizeof table;
    table.major = GENIE_TRANSPORT_MAJOR;
    table.minor = GENIE_TRANSPORT_MINOR;
    table.facts = facts;
    table.probe = probe;
#if defined(FAULT_WRONG_MAJOR)
    table.major = 7;
#elif defined(FAULT_SMALL_TABLE)
    table.size = 64;
#elif defined(FAULT_NULL_FUNCTION)
    table.connection_poll = NULL;
#elif defined(FAULT_NEWER_MINOR)
    table.minor = 9;
    table.size = sizeof table + 800;
#endif
    return &table;
}
#endif
