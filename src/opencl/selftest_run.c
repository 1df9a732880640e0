/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cases of the self-test, written against the public headers: a few steps of sessions with different policies, in which every
 * op of a step has work of each of its kinds, and the ops that only engines call. Long enough for several chunks, short enough
 * for milliseconds.
 */
#include "host.h"

#include <string.h>

#include <prhs/ops.h>
#include <prhs/session.h>

#include "../cpu/cpu.h"

enum { PAGE = 16, PAGES = 48, STRIDE = 36, SLOTS = 2, ENTRIES = 3, ROWS = 24 };
enum { LONG = 530, SHORT = 60, PROMPT = 20, WHOLE = 160, MOST = 560 }; /* cached tokens; rows of a prompt of WHOLE */
enum { MAX_BUFFERS = 20, POLICIES = 3 };

typedef struct world {
    prhs_device *dev;
    prhs_queue *queue;
    prhs_shape shape;
    prhs_dtype kv, q, out;
    bool per_head, aims, recalls; /* aims: lists are made for a target; recalls: units have several references */
    uint64_t random;
    prhs_buffer *buffers[MAX_BUFFERS];
    int count;
    prhs_status status; /* the first that is not OK; after it nothing happens */
} world;

static void did(world *w, prhs_status status) {
    if (w->status == PRHS_OK)
        w->status = status;
}

/* Memory of the world's own, all NaN and -1. */
static prhs_mem memory(world *w, uint64_t size) {
    if (w->status == PRHS_OK && w->count < MAX_BUFFERS)
        did(w, prhs_buffer_create(w->dev, (size_t)(size + 3) / 4 * 4, &w->buffers[w->count]));
    if (w->status != PRHS_OK)
        return (prhs_mem){ NULL, 0 };
    prhs_buffer *buffer = w->buffers[w->count++];
    memset(prhs_cpu_buffer_host(buffer), 0xff, prhs_buffer_size(buffer));
    return (prhs_mem){ buffer, 0 };
}

/* The device computes in host memory, while calls are made. */
static void *host(prhs_mem mem) { return prhs_cpu_buffer_host(mem.buffer); }

static uint32_t next(world *w) {
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->random >> 32);
}

/* Element i of an array becomes +-m * 2^e with 1 <= m < 2 and e from exponent - 3 to exponent. */
static void put_number(world *w, void *array, size_t i, prhs_dtype type, int exponent) {
    const uint32_t r = next(w), sign = r >> 31, e = (uint32_t)(exponent + 127 - (int)(r & 3)), mantissa = r >> 8 & 0x7fffff;
    const uint32_t bits = sign << 31 | e << 23 | mantissa;
    if (type == PRHS_F32)
        ((uint32_t *)array)[i] = bits;
    else
        ((uint16_t *)array)[i] = (uint16_t)(type == PRHS_BF16 ? bits >> 16 : sign << 15 | (e - 127 + 15) << 10 | mantissa >> 13);
}

/* Memory of `count` random numbers. */
static prhs_mem numbers(world *w, size_t count, prhs_dtype type, int exponent) {
    const prhs_mem mem = memory(w, count * prhs_dtype_size(type));
    for (size_t i = 0; w->status == PRHS_OK && i < count; i++)
        put_number(w, host(mem), i, type, exponent);
    return mem;
}

static void put_float(prhs_mem mem, size_t i, uint32_t bits) { memcpy((char *)host(mem) + 4 * i, &bits, 4); }
#define MINUS_INFINITY 0xff800000u

static prhs_batch make_batch(world *w) {
    prhs_batch b = { .max_seqs = ENTRIES, .page_stride = STRIDE, .max_rows = ROWS, .decode_rows = 2 };
    b.seqs = memory(w, ENTRIES * sizeof(prhs_seq));
    b.pages = memory(w, ENTRIES * STRIDE * sizeof(int32_t));
    for (int i = 0; w->status == PRHS_OK && i < PAGES; i++) { /* the long sequence's pages, then the short one's */
        const int32_t page = (i * 7 + 3) % PAGES;
        memcpy((int32_t *)host(b.pages) + i, &page, sizeof page);
    }
    return b;
}

static prhs_kv make_cache(world *w) {
    prhs_kv kv = { .dtype = w->kv, .page_size = PAGE, .pages = PAGES };
    const size_t elements = (size_t)PAGES * PAGE * w->shape.kv_heads * w->shape.dim;
    prhs_kv_strides_hnd(&kv, w->shape.kv_heads, w->shape.dim);
    kv.k = numbers(w, elements, w->kv, 0);
    kv.v = numbers(w, elements, w->kv, 0);
    return kv;
}

/* A key and a value of the short sequence that are no numbers. */
static void spoil(const world *w, const prhs_kv *kv) {
    const size_t size = prhs_dtype_size(w->kv), page = (size_t)((STRIDE * 7 + 3) % PAGES);
    if (w->status != PRHS_OK)
        return;
    memset((char *)host(kv->k) + ((size_t)kv->k_page * page + (size_t)kv->k_token * 10) * size, 0x7f, size);
    memset((char *)host(kv->v) + ((size_t)kv->v_page * page + (size_t)kv->v_token * 12 + 3) * size, 0xff, size);
}

/* --- sessions ------------------------------------------------------------------------------------------------------------- */

static prhs_policy make_policy(world *w, int which) {
    prhs_policy p = { .size = sizeof p };
    did(w, prhs_policy_preset("cis-mass", 2, &p));
    p.dense_layers = 1;
    p.k = 32;
    p.sinks = 4;
    p.local = 8;
    p.min_sparse_n = 0;
    p.block = 64;
    p.tau = 0.5f;
    p.eps = 0.02f;
    p.join = w->per_head ? PRHS_JOIN_PER_HEAD : which == 2 ? PRHS_JOIN_MAX : PRHS_JOIN_SUM;
    p.residual = which == 0 ? PRHS_RESIDUAL_MEAN : which == 1 ? PRHS_RESIDUAL_RETRIEVED : PRHS_RESIDUAL_NONE;
    if (w->aims) { /* for some of these units k is too little */
        p.target = 0.5f;
        p.k_min = 8;
    } else if (which == 0) {
        p.dilate_m = 2;
        p.dilate_back = 1;
        p.dilate_ahead = 2;
    }
    if (w->recalls)
        p.references = 3;
    if (which == 1) {
        p.granularity = 4;
    } else if (which == 2) {
        p.gate = PRHS_GATE_COSINE;
        p.psaw = p.etf = 1;
        p.psaw_layer = p.etf_layer = 0;
        p.psaw_phi = p.etf_psi = 0.5f;
        p.psaw_alpha = p.etf_gamma = 1.0f;
    }
    return p;
}

static prhs_session *make_session(world *w, int which, prhs_session_params *p) {
    prhs_session *session = NULL;
    prhs_session_sizes sizes = { .size = sizeof sizes };
    *p = (prhs_session_params)PRHS_SESSION_PARAMS_INIT;
    p->policy = make_policy(w, which);
    p->shape = w->shape;
    p->layers = 2;
    p->max_slots = SLOTS;
    p->max_seqs = ENTRIES;
    p->max_rows = ROWS;
    p->decode_rows = 2;
    p->max_kv_len = MOST;
    p->kv_dtype = w->kv;
    p->q_dtype = w->q;
    p->out_dtype = w->out;
    p->audit = p->validate = 1;
    if (w->status == PRHS_OK)
        did(w, prhs_session_get_sizes(w->dev, p, &sizes));
    const prhs_mem state = memory(w, sizes.state), work = memory(w, sizes.workspace);
    if (w->status == PRHS_OK)
        did(w, prhs_session_create(w->dev, p, w->queue, state, work, &session));
    return session;
}

/* The long sequence with `rows` rows, then the short one with `others`, then an entry that is idle. */
static void put_batch(const world *w, const prhs_batch *b, prhs_seq first, prhs_seq second) {
    const prhs_seq seqs[ENTRIES] = { first, second, { .slot = -1 } };
    if (w->status == PRHS_OK)
        memcpy(host(b->seqs), seqs, sizeof seqs);
}

static void do_step(world *w, prhs_session *session, prhs_step *step, uint32_t kinds) {
    step->batch.kinds = kinds;
    if (w->status == PRHS_OK)
        did(w, prhs_session_step(session, w->queue, step));
}

/* Rows to come are row 0 again, less and less. */
static void near_rows(world *w, const prhs_rows *q, int rows) {
    const size_t row = (size_t)w->shape.heads * w->shape.dim, size = prhs_dtype_size(w->q);
    for (int r = 1; w->status == PRHS_OK && r < rows; r++) {
        memcpy((char *)host(q->mem) + (size_t)r * row * size, host(q->mem), row * size);
        for (size_t i = 0; i < row; i += (size_t)(r == 1 ? 16 : 4))
            put_number(w, (char *)host(q->mem) + (size_t)r * row * size, i, w->q, 0);
    }
}

static void run_session(world *w, int which) {
    prhs_session_params p;
    prhs_session *session = make_session(w, which, &p);
    prhs_step step = PRHS_STEP_INIT;
    const size_t heads = w->shape.heads, row = heads * w->shape.dim, kv_row = (size_t)w->shape.kv_heads * w->shape.dim;
    step.layer = 1;
    step.batch = make_batch(w);
    step.kv = make_cache(w);
    spoil(w, &step.kv);
    step.q = (prhs_rows){ numbers(w, ROWS * row, w->q, 1), w->q, 0, 0 };
    step.k = (prhs_rows){ numbers(w, ROWS * kv_row, w->q, 0), w->q, 0, 0 };
    step.v = (prhs_rows){ numbers(w, ROWS * kv_row, w->q, 0), w->q, 0, 0 };
    step.out = (prhs_rows){ memory(w, ROWS * row * prhs_dtype_size(w->out)), w->out, 0, 0 };
    step.lse = memory(w, ROWS * heads * 4);
    /* Cached already, and its last row seeds; beside it a chunk of a prompt. */
    put_batch(w, &step.batch, (prhs_seq){ .kv_len = LONG, .row_count = 1, .flags = PRHS_SEQ_SEED }, (prhs_seq){ .slot = -1 });
    if (w->status == PRHS_OK)
        did(w, prhs_session_attach(session, w->queue, 1, &step.batch, &step.kv));
    put_batch(w, &step.batch, (prhs_seq){ .kv_len = LONG, .row_count = 1, .flags = PRHS_SEQ_SEED },
              (prhs_seq){ 1, 1, PROMPT, SHORT, PRHS_SEQ_PREFILL | PRHS_SEQ_SEED, WHOLE, { 0, 0 } });
    do_step(w, session, &step, PRHS_HAS_PREFILL | PRHS_HAS_SEED);
    /* Queries like the reference and less so; then others. */
    near_rows(w, &step.q, 3);
    put_batch(w, &step.batch, (prhs_seq){ 0, 1, 2, LONG + 2, 0, 0, { 0, 0 } }, (prhs_seq){ 1, 5, 1, SHORT + 1, 0, 0, { 0, 0 } });
    do_step(w, session, &step, PRHS_HAS_DECODE);
    put_batch(w, &step.batch, (prhs_seq){ 0, 7, 1, LONG + 2, 0, 0, { 0, 0 } }, (prhs_seq){ 1, 9, 2, SHORT + 3, 0, 0, { 0, 0 } });
    do_step(w, session, &step, PRHS_HAS_DECODE);
    if (w->recalls) { /* back to the first reference */
        put_batch(w, &step.batch, (prhs_seq){ 0, 1, 1, LONG + 3, 0, 0, { 0, 0 } }, (prhs_seq){ 1, 5, 1, SHORT + 3, 0, 0, { 0, 0 } });
        do_step(w, session, &step, PRHS_HAS_DECODE);
    }
    put_batch(w, &step.batch, (prhs_seq){ 0, 0, 1, LONG - 20, 0, 0, { 0, 0 } }, (prhs_seq){ 1, 1, 1, SHORT + 3, 0, 0, { 0, 0 } });
    if (w->status == PRHS_OK)
        did(w, prhs_session_truncate(session, w->queue, 1, &step.batch, &step.kv));
    prhs_session_destroy(session);
}

/* --- the ops tier's own --------------------------------------------------------------------------------------------------- */

enum { MERGED = 5, PARTS = 3 };

static void run_gate(world *w, prhs_ops *ops, const prhs_rows *q) {
    const size_t heads = MERGED * (size_t)w->shape.heads;
    prhs_gate_params p = PRHS_GATE_PARAMS_INIT;
    p.rows = MERGED;
    p.queries = numbers(w, heads * w->shape.dim, PRHS_F32, 0);
    p.moments = numbers(w, heads * 2 * w->shape.dim, PRHS_F32, -3);
    p.dropped = numbers(w, heads, PRHS_F32, 1);
    p.spreads = numbers(w, heads, PRHS_F32, 0);
    p.lse = numbers(w, heads, PRHS_F32, 1);
    p.cosine = memory(w, heads * 4);
    p.delta = memory(w, heads * 4);
    if (w->status != PRHS_OK)
        return;
    put_float(p.dropped, 0, MINUS_INFINITY);
    did(w, prhs_op_gate(ops, w->queue, q, &p));
}

static void run_merge(world *w, prhs_ops *ops, const prhs_rows *out) {
    const size_t heads = MERGED * (size_t)w->shape.heads;
    prhs_merge_params p = PRHS_MERGE_PARAMS_INIT;
    p.parts = PARTS;
    p.rows = MERGED;
    p.o = numbers(w, PARTS * heads * w->shape.dim, PRHS_F32, 0);
    p.lse = numbers(w, PARTS * heads, PRHS_F32, 2);
    p.out_lse = memory(w, heads * 4);
    for (size_t i = 0; w->status == PRHS_OK && i < PARTS; i++) { /* row 0 without tokens, a head of row 1 with one part */
        for (size_t h = 0; h < w->shape.heads; h++)
            put_float(p.lse, i * heads + h, MINUS_INFINITY);
        if (i != 1)
            put_float(p.lse, i * heads + w->shape.heads, MINUS_INFINITY);
    }
    if (w->status == PRHS_OK)
        did(w, prhs_op_merge(ops, w->queue, &p, out));
}

static void run_attend(world *w, prhs_ops *ops, const prhs_ops_layout *layout, const prhs_rows *q, const prhs_rows *out) {
    prhs_batch b = make_batch(w);
    const prhs_kv kv = make_cache(w);
    const prhs_mem state = memory(w, layout->state_bytes), work = memory(w, layout->workspace_bytes),
                   lse = memory(w, ROWS * (uint64_t)w->shape.heads * 4);
    if (w->status != PRHS_OK)
        return;
    put_batch(w, &b, (prhs_seq){ 0, 1, 2, LONG, 0, 0, { 0, 0 } }, (prhs_seq){ 1, 5, 1, SHORT, 0, 0, { 0, 0 } });
    for (uint32_t i = 0; i < ENTRIES * layout->units; i++) {
        const prhs_set all = { .mode = PRHS_MODE_DENSE, .run = 1, .end = i / layout->units ? SHORT : LONG };
        memcpy((char *)host(work) + layout->sets + i * sizeof all, &all, sizeof all);
    }
    did(w, prhs_op_attend(ops, w->queue, &b, &kv, q, state, work, out, lse));
}

static void run_ops(world *w, prhs_op_kind kind) {
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    prhs_ops_layout layout = { .size = sizeof layout };
    prhs_ops *ops = NULL;
    const size_t row = (size_t)w->shape.heads * w->shape.dim;
    p.shape = w->shape;
    p.max_seqs = ENTRIES;
    p.max_rows = ROWS;
    p.decode_rows = 2;
    p.max_kv_len = MOST;
    p.max_slots = SLOTS;
    p.list_cap = 1;
    p.per_head = w->per_head;
    p.kv_dtype = w->kv;
    p.q_dtype = w->q;
    p.out_dtype = w->out;
    did(w, prhs_ops_get_layout(w->dev, &p, &layout));
    did(w, prhs_ops_create(w->dev, &p, &ops));
    const prhs_rows q = { numbers(w, ROWS * row, w->q, 1), w->q, 0, 0 },
                    out = { memory(w, ROWS * row * prhs_dtype_size(w->out)), w->out, 0, 0 };
    if (kind == PRHS_OP_GATE)
        run_gate(w, ops, &q);
    else if (kind == PRHS_OP_MERGE)
        run_merge(w, ops, &out);
    else
        run_attend(w, ops, &layout, &q, &out);
    prhs_ops_destroy(ops);
}

prhs_status prhs_cl_selftest_run(prhs_device *dev, const prhs_op_key *key, uint64_t seed) {
    const bool tier = key->kind == PRHS_OP_GATE || key->kind == PRHS_OP_MERGE || key->kind == PRHS_OP_COMBINE;
    const uint32_t kv_heads = key->group > 8 ? 1 : 2;
    /* A key names the dtypes that its op uses; rows have the cache's or float32. */
    const prhs_i32 kv = key->kv_dtype ? key->kv_dtype : key->q_dtype ? key->q_dtype : key->out_dtype;
    for (int i = 0; i < (tier ? 1 : POLICIES); i++) {
        world w = { .dev = dev,
                    .shape = { (uint32_t)key->group * kv_heads, kv_heads, (uint32_t)key->dim, 0.0f },
                    .kv = (prhs_dtype)kv,
                    .q = (prhs_dtype)key->q_dtype,
                    .out = (prhs_dtype)key->out_dtype,
                    .per_head = key->unit_heads < key->group,
                    .aims = key->kind == PRHS_OP_AIM,
                    .recalls = key->kind == PRHS_OP_RECALL || key->kind == PRHS_OP_TRUNCATE,
                    .random = seed };
        did(&w, prhs_queue_create(dev, &w.queue));
        if (w.status == PRHS_OK && tier)
            run_ops(&w, key->kind);
        else if (w.status == PRHS_OK)
            run_session(&w, i);
        while (w.count > 0)
            prhs_buffer_destroy(w.buffers[--w.count]);
        prhs_queue_destroy(w.queue);
        if (w.status != PRHS_OK)
            return w.status;
    }
    return PRHS_OK;
}
