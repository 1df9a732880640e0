/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of a trace file, as docs/trace.md has them: what the reader and the writer share. */
#ifndef PRHS_TRACE_FORMAT_H
#define PRHS_TRACE_FORMAT_H

#include "trace.h"

#define TRACE_MAGIC "prhstrc\n"
enum {
    TRACE_VERSION = 1,
    TRACE_HEADER = 96,
    TRACE_SEQ = 8,
    TRACE_ENTRY = 40,
    TRACE_BLOCK_ROWS = 64,
    TRACE_MAX_BLOCK_ROWS = 4096
};

/* Offsets in the header. */
enum {
    AT_VERSION = 8,
    AT_HEADER_SIZE = 12,
    AT_LAYERS = 16,
    AT_FIRST_LAYER = 20,
    AT_LAYER_COUNT = 24,
    AT_HEADS = 28,
    AT_KV_HEADS = 32,
    AT_DIM = 36,
    AT_SCALE = 40,
    AT_SEQS = 44,
    AT_BLOCKS = 48,
    AT_INDEX = 56,
    AT_FILE_SIZE = 64,
    AT_INDEX_HASH = 72,
    AT_FLAGS = 80,
    AT_HEADER_HASH = 88
};

/* Flags. */
enum { TRACE_HAS_PROMPTS = 1 };

/* Offsets in an entry of the index. */
enum { AT_OFFSET = 0, AT_HASH = 8, AT_LAYER = 16, AT_SEQ = 20, AT_KIND = 24, AT_FIRST = 28, AT_ROWS = 32, AT_ZERO = 36 };

static inline uint32_t trace_get32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t trace_get64(const unsigned char *p) { return trace_get32(p) | (uint64_t)trace_get32(p + 4) << 32; }

static inline void trace_put32(unsigned char *p, uint32_t x) {
    for (int i = 0; i < 4; i++)
        p[i] = (unsigned char)(x >> 8 * i);
}

static inline void trace_put64(unsigned char *p, uint64_t x) {
    trace_put32(p, (uint32_t)x);
    trace_put32(p + 4, (uint32_t)(x >> 32));
}

/* XXH64, seed 0. */
uint64_t trace_hash(const void *data, size_t size);
/* A sentence about a shape that no trace can have, or NULL. */
const char *trace_shape_error(const trace_shape *shape);

#endif
