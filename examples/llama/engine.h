/* SPDX-License-Identifier: Apache-2.0 */
/* The model on a libprhs device: caches of all layers, steps, and sessions with one policy each. */
#ifndef ENGINE_H
#define ENGINE_H

#include <prhs/prhs.h>

#include "model.h"

#define ENGINE_PAGE 16

/* A device with the paged K/V of `seqs` sequences of `tokens` tokens, and the rows of a step. */
typedef struct engine {
    const model *m;
    prhs_device *dev;
    prhs_queue *queue;
    prhs_dtype kv_dtype;
    uint32_t seqs, tokens, pages_per_seq;
    prhs_kv *kv;                                     /* [layers] */
    prhs_buffer **caches;                            /* of the layers' K and V, in turn: as few buffers as hold them */
    uint32_t cache_count;
    prhs_buffer *pages, *seq, *heads, *result;
    prhs_rows q, k, v, out;                          /* float32, in `heads` and `result` */
    size_t rows;                                     /* that they hold */
    uint32_t plans;                                  /* prhs_seq arrays that `seq` holds */
} engine;

typedef struct engine_session {
    prhs_session *s;
    prhs_buffer *state, *work;
    prhs_policy policy;
} engine_session;

/* What a session audits; all zeros: nothing. */
typedef struct engine_audits {
    bool every;    /* every sparse step */
    double rate;   /* else this share of those whose dropped mass is not known */
    uint32_t seed;
} engine_audits;

typedef struct engine_params {
    prhs_backend_kind backend;
    uint32_t index, seqs, tokens, plans;
    size_t rows;
    prhs_dtype kv_dtype;
    uint64_t cache_buffer; /* bytes of the largest buffer of the caches; 0: what the device allows */
} engine_params;

bool engine_open(engine *e, const model *m, const engine_params *params, const prhs_log *log);
void engine_close(engine *e);
/* list_layers: as in prhs_session_params, or NULL. */
bool engine_session_open(engine *e, const prhs_policy *policy, const uint32_t *list_layers, const engine_audits *audits, engine_session *s);
void engine_session_close(engine_session *s);

/* Writes `count` prhs_seq arrays of e->seqs entries at plan index `first`. */
bool engine_plan(engine *e, uint32_t first, uint32_t count, const prhs_seq *seqs);

/* The rows' buffers. `joined`: a row's q, k and v lie one after the other, as one product gives them; else each is an array of its own. */
bool engine_make_rows(engine *e, bool joined);

/* Where row `row` begins. */
prhs_mem engine_row(const prhs_rows *rows, size_t row);

/* Rows [0, rows) of `width` floats to the host, one after the other. Waits for the queue. */
bool engine_read_rows(engine *e, const prhs_rows *from, size_t rows, size_t width, float *to);

/* Sequences [seq, seq + seqs) of a plan, with `rows` query rows in all. */
prhs_batch engine_batch(const engine *e, uint32_t plan, uint32_t seq, uint32_t seqs, size_t rows, uint32_t kinds);

/* One layer of one step: rows [row, row + count) of the engine's, sequences [seq, seq + seqs) of plan `plan`. */
typedef struct engine_call {
    uint32_t layer, plan, seq, seqs, kinds;
    size_t row, count;
    bool append;
    const prhs_rows *q;                              /* NULL: the engine's */
} engine_call;
bool engine_step(engine *e, engine_session *s, const engine_call *call);
/* All sequences of a plan are cached already: value sums, no references. */
bool engine_attach(engine *e, engine_session *s, uint32_t layer, uint32_t plan);
bool engine_stats(engine *e, engine_session *s, uint32_t slot, prhs_stats *stats);

#endif
