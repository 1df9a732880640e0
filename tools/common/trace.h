/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traces: the queries, keys and values of a model's run in float16, to be replayed through any policy (docs/trace.md). Nothing in
 * a file is believed before it has been checked; what is wrong with one is said in a sentence.
 */
#ifndef PRHS_TRACE_H
#define PRHS_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_ERROR 256 /* room for a sentence */

enum { TRACE_MAX_LAYERS = 4096, TRACE_MAX_SEQS = 4096, TRACE_MAX_TOKENS = 1 << 24 };

typedef enum trace_kind { TRACE_Q, TRACE_K, TRACE_V, TRACE_KINDS } trace_kind;

/* One sequence: decoding begins at position `context`; the last of its rows is at context + steps - 1. */
typedef struct trace_seq {
    uint32_t context, steps;
    uint32_t first_query; /* position: 0 where the prompts' queries were recorded, else context - 1 */
} trace_seq;

typedef struct trace_shape {
    uint32_t layers;                   /* of the model */
    uint32_t first_layer, layer_count; /* recorded */
    uint32_t heads, kv_heads, dim;
    float scale; /* of the scores */
    uint32_t seqs;
    uint32_t prompts; /* 1: with the queries of the prompts' rows; 0: with the last one of each */
} trace_shape;

/* Floats of one row of a kind. */
size_t trace_row(const trace_shape *shape, trace_kind kind);
/* First position that a sequence has rows of a kind for: queries begin with the prompt's last row, which seeds, or its first. */
uint32_t trace_begin(const trace_seq *seq, trace_kind kind);

float trace_from_f16(uint16_t half);
/* Rounds to nearest even. */
uint16_t trace_to_f16(float x);

/* --- writing --- */

typedef struct trace_writer trace_writer;

/*
 * Begins a file of at most `limit` bytes. contexts[shape->seqs], each at least 1; max_steps: decoded rows of a sequence, at most.
 * NULL: not possible, or all of it would not fit; the sentence is in `error`.
 */
trace_writer *trace_create(const char *path, const trace_shape *shape, const uint32_t *contexts, uint32_t max_steps,
                           uint64_t limit, char error[TRACE_ERROR]);

/* Rows [rows][seqs] of one layer: row r of sequence seq + i is at index r * seqs + i and has position first + r. */
typedef struct trace_rows {
    uint32_t layer, seq, seqs, first, rows;
    const float *q, *k, *v; /* contiguous rows of heads * dim and kv_heads * dim */
} trace_rows;

/*
 * Takes rows; those of layers that are not recorded, and queries that a replay does not need, are left out. A sequence's rows
 * come in the order of their positions. True for a NULL writer. false: the file cannot be written, see trace_finish().
 */
bool trace_add(trace_writer *w, const trace_rows *rows);

/* Completes and closes the file, or removes it if anything failed (then the sentence is in `error`) or `keep` is false. NULL:
 * true. */
bool trace_finish(trace_writer *w, bool keep, char error[TRACE_ERROR]);

/* --- reading --- */

typedef struct trace trace;

/* NULL on failure, with one sentence. */
trace *trace_open(const char *path, char error[TRACE_ERROR]);
/* The same from memory, which must stay; the name is for sentences. */
trace *trace_open_memory(const void *data, size_t size, const char *name, char error[TRACE_ERROR]);
void trace_close(trace *t);

const trace_shape *trace_get_shape(const trace *t);
const trace_seq *trace_get_seq(const trace *t, uint32_t seq);

/*
 * Rows [first, first + rows) of a recorded layer, contiguous float16. Only the blocks that hold them are read, and each is
 * checked. false: with a sentence, also for rows that the trace does not have.
 */
bool trace_read(trace *t, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t first, uint32_t rows, uint16_t *out,
                char error[TRACE_ERROR]);

#endif
