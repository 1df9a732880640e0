/* SPDX-License-Identifier: Apache-2.0 */
/* Checks and resources. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "record.h"

#define T_GUARD_BYTE 0xA5

void t_fail(t_ctx *t, const char *file, int line, const char *format, ...) {
    const char *base = strrchr(file, '/');
    int n = snprintf(t->why, sizeof t->why, "%s:%d: ", base ? base + 1 : file, line);
    va_list args;
    va_start(args, format);
    vsnprintf(t->why + n, sizeof t->why - (size_t)n, format, args);
    va_end(args);
    longjmp(t->out, 1);
}

void t_skip(t_ctx *t, const char *reason) {
    t->skipped = 1;
    snprintf(t->why, sizeof t->why, "%s", reason);
    longjmp(t->out, 2);
}

void t_status(t_ctx *t, const char *file, int line, const char *what, prhs_status want, prhs_status got) {
    if (got == want)
        return;
    t_fail(t, file, line, "%.300s: %s instead of %s (%.400s)", what, prhs_status_name(got), prhs_status_name(want), t->sentence);
}

void t_hush(t_ctx *t) {
    t->sentence[0] = 0;
    t->sentences = 0;
    t->warnings = 0;
}

void t_own(t_ctx *t, t_kind kind, void *ptr, size_t size) {
    if (t->owned == t->own_cap) {
        t->own_cap = t->own_cap ? 2 * t->own_cap : 256;
        t->own = realloc(t->own, t->own_cap * sizeof *t->own);
        if (!t->own) {
            fputs("prhs-tests: out of memory\n", stderr);
            exit(2);
        }
    }
    t->own[t->owned++] = (t_owned){ kind, ptr, size, t->queue, 0 };
}

static void destroy(t_ctx *t, t_owned *o) {
    if (o->dead)
        return;
    o->dead = 1;
    switch (o->kind) {
    case T_HOST: free(o->ptr); break;
    case T_BUFFER:
    case T_FOREIGN: prhs_buffer_destroy(o->ptr); break;
    case T_SESSION: prhs_session_destroy(o->ptr); break;
    case T_OPS: prhs_ops_destroy(o->ptr); break;
    case T_REQUEST: prhs_stats_request_destroy(o->ptr); break;
    case T_EVENT: prhs_event_destroy(o->ptr); break;
    case T_GRAPH: t_graph_destroy(o->ptr); break;
    case T_QUEUE: prhs_queue_destroy(o->ptr); break;
    case T_DEVICE: prhs_device_close(o->ptr); break;
    }
    (void)t;
}

void t_drop(t_ctx *t, void *ptr) {
    for (size_t i = t->owned; i-- > 0;)
        if (t->own[i].ptr == ptr && !t->own[i].dead) {
            destroy(t, &t->own[i]);
            while (t->owned && t->own[t->owned - 1].dead)
                t->owned--;
            return;
        }
}

size_t t_mark(t_ctx *t) { return t->owned; }

void t_release_to(t_ctx *t, size_t mark) {
    prhs_queue_finish(t->queue);
    while (t->owned > mark)
        destroy(t, &t->own[--t->owned]);
}

void t_release(t_ctx *t) { t_release_to(t, 0); }

void *t_alloc(t_ctx *t, size_t size) {
    void *p = calloc(1, size ? size : 1);
    T_CHECK(t, p, "out of host memory for %zu bytes", size);
    t_own(t, T_HOST, p, 0);
    return p;
}

/* The guards: T_GUARD bytes before the memory, and from its last byte to the buffer's end. */
static size_t behind(size_t size) { return T_GUARD + (16 - size % 16) % 16; }

t_buf t_buffer(t_ctx *t, size_t size) {
    size_t total = T_GUARD + size + behind(size);
    uint8_t *image = malloc(total);
    prhs_buffer *b = NULL;
    T_CHECK(t, image, "out of host memory for %zu bytes", total);
    t_own(t, T_HOST, image, 0);
    T_OK(t, prhs_buffer_create(t->dev, total, &b));
    t_own(t, T_BUFFER, b, size);
    memset(image, T_GUARD_BYTE, total);
    memset(image + T_GUARD, T_POISON, size);
    prhs_mem all = { b, 0 };
    T_OK(t, prhs_queue_write(t->queue, all, image, total));
    T_OK(t, prhs_queue_finish(t->queue));
    t_drop(t, image);
    t_buf buf = { { b, T_GUARD }, size };
    return buf;
}

t_buf t_buffer_of(t_ctx *t, const void *data, size_t size) {
    t_buf buf = t_buffer(t, size);
    t_put(t, buf.mem, data, size);
    return buf;
}

void t_poison(t_ctx *t, t_buf buf) {
    uint8_t *bytes = malloc(buf.size);
    T_CHECK(t, bytes, "out of host memory for %zu bytes", buf.size);
    t_own(t, T_HOST, bytes, 0);
    memset(bytes, T_POISON, buf.size);
    t_put(t, buf.mem, bytes, buf.size);
    t_drop(t, bytes);
}

void t_put(t_ctx *t, prhs_mem dst, const void *src, size_t size) {
    if (!size)
        return;
    T_OK(t, prhs_queue_write(t->queue, dst, src, size));
    T_OK(t, prhs_queue_finish(t->queue));
}

void t_get(t_ctx *t, void *dst, prhs_mem src, size_t size) {
    if (!size)
        return;
    T_OK(t, prhs_queue_read(t->queue, dst, src, size));
    T_OK(t, prhs_queue_finish(t->queue));
}

void *t_fetch(t_ctx *t, prhs_mem src, size_t size) {
    void *p = t_alloc(t, size);
    t_get(t, p, src, size);
    return p;
}

static void check_bands(t_ctx *t, const t_owned *o) {
    uint8_t front[T_GUARD], back[2 * T_GUARD];
    prhs_mem before = { o->ptr, 0 }, after = { o->ptr, (T_GUARD + o->size) & ~(uint64_t)15 };
    size_t over = (T_GUARD + o->size) % 16, n = over + behind(o->size); /* whole 16-byte words are read */
    T_OK(t, prhs_queue_read(o->queue, front, before, T_GUARD));
    T_OK(t, prhs_queue_read(o->queue, back, after, n));
    T_OK(t, prhs_queue_finish(o->queue));
    for (size_t k = 0; k < T_GUARD; k++)
        T_CHECK(t, front[k] == T_GUARD_BYTE, "guard band hit: %zu bytes before a buffer of %zu bytes", T_GUARD - k, o->size);
    for (size_t k = over; k < n; k++)
        T_CHECK(t, back[k] == T_GUARD_BYTE, "guard band hit: byte %zu behind a buffer of %zu bytes", k - over, o->size);
}

void t_check_guards(t_ctx *t) {
    for (size_t i = 0; i < t->owned; i++)
        if (t->own[i].kind == T_BUFFER && !t->own[i].dead)
            check_bands(t, &t->own[i]);
}
