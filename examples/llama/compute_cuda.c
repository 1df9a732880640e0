/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linear algebra on a CUDA device: weights and all rows in its memory, products by cuBLAS, the rest by the kernels of layers.cu, all on the
 * engine's queue. A step waits for nothing and asks the host for nothing, so that a graph can hold it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <prhs/cuda.h>

#include "compute.h"
#include "cublas.h"
#include "driver.h"
#include "layers.h"
#include "tables.h"

#define BUFFERS 20
#define WORKSPACE ((size_t)32 << 20) /* for cuBLAS, which would allocate its own, also while a graph is recorded */
#define GRID 65535u

extern const unsigned char llama_layers[]; /* PTX of layers.cu, terminated */

enum { EMBED, NORM, ROPE, SWIGLU, ROUND, CHOOSE, SCORE, KERNELS }; /* from CHOOSE on with LOGIT_THREADS */

typedef struct cuda_compute {
    compute head;
    driver drv;
    cublas blas;
    void *context, *stream, *module, *kernel[KERNELS];
    prhs_cuda_graph *graph;
    prhs_buffer *buffers[BUFFERS];
    uint32_t count;
    /* What follows is device memory. */
    void *weights;                                     /* as model.block */
    float *norms, *turns;                              /* tables.h */
    float *x, *both, *logits;                          /* [rows][dim], [rows][2 * ffn], [LOGIT_ROWS][vocab] */
    /* What products read, of the weights' type: [rows][dim], [rows][ffn], [rows][H * D] (not used where that is float32). */
    void *normed, *gated, *attended;
    int32_t *ids, *positions, *target, *best;          /* [rows] */
    double *nll;                                       /* [rows] */
    int32_t *next, *next_positions, *made, *tokens;    /* [seqs], tokens [tokens][seqs] */
    const int32_t *at;                                 /* the positions of the rows in x */
} cuda_compute;

static cuda_compute *of(compute *c) { return (cuda_compute *)c; }

static float *pointer(prhs_mem mem) { return (float *)(uintptr_t)(prhs_cuda_pointer(mem.buffer) + mem.offset); }

static bool good(const char *call, int status) {
    if (status)
        fprintf(stderr, "prhs-llama: %s returns %d\n", call, status);
    return status == 0;
}

static bool enter(cuda_compute *g) { return good("cuCtxPushCurrent", g->drv.push(g->context)); }

static bool leave(cuda_compute *g, bool so_far) {
    void *context;
    return good("cuCtxPopCurrent", g->drv.pop(&context)) && so_far;
}

/* A block a row, up to GRID blocks. */
static bool launch(cuda_compute *g, int kernel, size_t rows, void *args) {
    const unsigned grid = rows < GRID ? (unsigned)rows : GRID, block = kernel < CHOOSE ? LAYER_THREADS : LOGIT_THREADS;
    return good("cuLaunchKernel", g->drv.launch(g->kernel[kernel], grid, 1, 1, block, 1, 1, 0, g->stream, &args, NULL));
}

static size_t element(const cuda_compute *g) { return g->head.half ? 2 : 4; }

static const void *weight(const cuda_compute *g, const float *w) {
    return (const char *)g->weights + (size_t)(w - g->head.m->block) * element(g);
}

/* y [rows][out] = x [rows][in] * w^T (+ y where beta is 1); x is of the weights' type, y float32 with rows y_row apart. */
static bool linear(cuda_compute *g, const void *x, const float *w, size_t rows, size_t in, size_t out, float beta, float *y, size_t y_row) {
    const float one = 1.0f;
    const void *a = weight(g, w);
    if (g->head.half)
        return good("cublasGemmEx", g->blas.gemm(g->blas.handle, CUBLAS_T, CUBLAS_N, (int)out, (int)rows, (int)in, &one, a, CUDA_R_16F, (int)in, x,
                                                 CUDA_R_16F, (int)in, &beta, y, CUDA_R_32F, (int)y_row, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    return good("cublasSgemm", g->blas.sgemm(g->blas.handle, CUBLAS_T, CUBLAS_N, (int)out, (int)rows, (int)in, &one, a, (int)in, x, (int)in,
                                             &beta, y, (int)y_row));
}

static bool norm(cuda_compute *g, const float *x, size_t which, size_t rows) {
    const model *m = g->head.m;
    norm_args a = { x, g->norms + which * m->dim, g->normed, (int32_t)rows, (int32_t)m->dim, g->head.half, m->eps };
    return launch(g, NORM, rows, &a);
}

/* --- a layer's parts --- */

static bool embed(cuda_compute *g, const int32_t *ids, const int32_t *positions, size_t rows) {
    const model *m = g->head.m;
    embed_args a = { ids, weight(g, m->embedding), g->x, (int32_t)rows, (int32_t)m->dim, g->head.half };
    g->at = positions;
    return enter(g) && leave(g, launch(g, EMBED, rows, &a));
}

/* Transfers between the host and an array of a device buffer that one of `place` made. */
static prhs_mem mem_of(const cuda_compute *g, const void *device) {
    for (uint32_t i = 0; i < g->count; i++) {
        const uint64_t begin = prhs_cuda_pointer(g->buffers[i]);
        if ((uintptr_t)device >= begin && (uintptr_t)device - begin < prhs_buffer_size(g->buffers[i]))
            return (prhs_mem){ g->buffers[i], (uintptr_t)device - begin };
    }
    return (prhs_mem){ NULL, 0 };
}

static bool put(cuda_compute *g, void *device, const void *host, size_t bytes) {
    return prhs_queue_write(g->head.e->queue, mem_of(g, device), host, bytes) == PRHS_OK;
}

static bool get(cuda_compute *g, void *host, const void *device, size_t bytes) {
    return prhs_queue_read(g->head.e->queue, host, mem_of(g, device), bytes) == PRHS_OK;
}

static bool wait(cuda_compute *g) { return prhs_queue_finish(g->head.e->queue) == PRHS_OK; }

static bool cuda_embed(compute *c, const int32_t *ids, const int32_t *positions, size_t rows) {
    cuda_compute *g = of(c);
    return put(g, g->ids, ids, rows * sizeof *ids) && put(g, g->positions, positions, rows * sizeof *positions) &&
           embed(g, g->ids, g->positions, rows) && wait(g);
}

static bool qkv(cuda_compute *g, uint32_t layer, size_t rows) {
    const model *m = g->head.m;
    const layer_weights *w = &m->layer[layer];
    float *heads = pointer(g->head.e->q.mem);
    rope_args a = { heads, g->turns, g->at, (int32_t)rows, (int32_t)(m->heads + m->kv_heads), (int32_t)m->head_dim, (int32_t)row_floats(m) };
    return norm(g, g->x, 2 * layer, rows) && linear(g, g->normed, w->wq, rows, m->dim, row_floats(m), 0.0f, heads, row_floats(m)) &&
           launch(g, ROPE, rows, &a);
}

static bool cuda_qkv(compute *c, uint32_t layer, size_t rows) { return enter(of(c)) && leave(of(c), qkv(of(c), layer, rows)); }

/* Attention's output as the next product reads it. */
static bool attended(cuda_compute *g, size_t first, size_t rows, const void **out) {
    const float *from = pointer(engine_row(&g->head.e->out, first));
    round_args a = { from, g->attended, (int64_t)(rows * q_floats(g->head.m)) };
    *out = g->head.half ? g->attended : from;
    return !g->head.half || launch(g, ROUND, rows, &a);
}

static bool rest(cuda_compute *g, uint32_t layer, size_t first, size_t rows) {
    const model *m = g->head.m;
    const layer_weights *w = &m->layer[layer];
    float *x = g->x + first * m->dim;
    const void *attention;
    const size_t n = rows - first, ffn = m->ffn;
    swiglu_args a = { g->both, g->gated, (int32_t)n, (int32_t)ffn, g->head.half };
    return attended(g, first, n, &attention) && linear(g, attention, w->wo, n, q_floats(m), m->dim, 1.0f, x, m->dim) &&
           norm(g, x, 2 * layer + 1, n) && linear(g, g->normed, w->gate, n, m->dim, 2 * ffn, 0.0f, g->both, 2 * ffn) &&
           launch(g, SWIGLU, n, &a) && linear(g, g->gated, w->down, n, ffn, m->dim, 1.0f, x, m->dim);
}

static bool cuda_rest(compute *c, uint32_t layer, size_t first, size_t rows) {
    return first == rows || (enter(of(c)) && leave(of(c), rest(of(c), layer, first, rows)));
}

/* --- logits and what becomes of them --- */

static bool logits_of(cuda_compute *g, size_t row, size_t rows) {
    const model *m = g->head.m;
    return norm(g, g->x + row * m->dim, 2 * m->layers, rows) &&
           linear(g, g->normed, m->output, rows, m->dim, m->vocab, 0.0f, g->logits, m->vocab);
}

static bool cuda_logits(compute *c, size_t row, float *logits) {
    cuda_compute *g = of(c);
    return enter(g) && leave(g, logits_of(g, row, 1)) && get(g, logits, g->logits, c->m->vocab * sizeof *logits) && wait(g);
}

static bool score(cuda_compute *g, size_t row, size_t rows) {
    score_args a = { g->logits, g->target + row, g->nll + row, g->best + row, (int32_t)rows, (int32_t)g->head.m->vocab };
    return logits_of(g, row, rows) && launch(g, SCORE, rows, &a);
}

static bool cuda_score(compute *c, size_t rows, const int32_t *target, double *nll, int32_t *best) {
    cuda_compute *g = of(c);
    bool ok = put(g, g->target, target, rows * sizeof *target) && enter(g);
    if (!ok)
        return false;
    for (size_t at = 0; ok && at < rows; at += LOGIT_ROWS)
        ok = score(g, at, rows - at < LOGIT_ROWS ? rows - at : LOGIT_ROWS);
    return leave(g, ok) && get(g, nll, g->nll, rows * sizeof *nll) && get(g, best, g->best, rows * sizeof *best) && wait(g);
}

/* --- the decode loop --- */

static bool cuda_begin(compute *c, const prhs_seq *seqs) {
    cuda_compute *g = of(c);
    return prhs_queue_fill(c->e->queue, mem_of(g, g->made), 0, c->e->seqs * sizeof *g->made) == PRHS_OK &&
           engine_plan(c->e, PLAN_DECODE, 1, seqs);
}

static bool choose(cuda_compute *g, size_t row, size_t seq, size_t count, bool given) {
    const engine *e = g->head.e;
    prhs_seq *plan = (prhs_seq *)(uintptr_t)prhs_cuda_pointer(e->seq) + (size_t)PLAN_DECODE * e->seqs;
    choose_args a = { given ? NULL : g->logits, plan, g->next, g->next_positions, g->made, g->tokens,
                      (int32_t)count, (int32_t)g->head.m->vocab, (int32_t)seq, (int32_t)e->seqs };
    return (given || logits_of(g, row, count)) && launch(g, CHOOSE, count, &a);
}

static bool cuda_choose(compute *c, size_t row, size_t seq, size_t count, const int32_t *ids) {
    cuda_compute *g = of(c);
    bool ok = (!ids || (put(g, g->next + seq, ids, count * sizeof *ids) && wait(g))) && enter(g);
    if (!ok)
        return false;
    for (size_t at = 0; ok && at < count; at += LOGIT_ROWS)
        ok = choose(g, row + at, seq + at, count - at < LOGIT_ROWS ? count - at : LOGIT_ROWS, ids != NULL);
    return leave(g, ok);
}

static bool cuda_feed(compute *c) { return embed(of(c), of(c)->next, of(c)->next_positions, c->e->seqs); }

static bool cuda_fetch(compute *c, uint32_t first, uint32_t count) {
    const size_t row = c->e->seqs, at = first * row;
    return get(of(c), c->tokens + at, of(c)->tokens + at, count * row * sizeof *c->tokens);
}

static bool cuda_record(compute *c) {
    cuda_compute *g = of(c);
    prhs_cuda_graph_destroy(g->graph); /* nothing is destroyed under a capture */
    g->graph = NULL;
    return prhs_cuda_graph_begin(c->e->queue) == PRHS_OK;
}

static bool cuda_recorded(compute *c, bool so_far) {
    cuda_compute *g = of(c);
    return prhs_cuda_graph_end(c->e->queue, &g->graph) == PRHS_OK && so_far;
}

static bool cuda_replay(compute *c) { return prhs_cuda_graph_launch(of(c)->graph, c->e->queue) == PRHS_OK; }

/* --- from open to close --- */

static void cuda_close(compute *c) {
    cuda_compute *g = of(c);
    wait(g);
    prhs_cuda_graph_destroy(g->graph);
    if (g->context && enter(g)) {
        cublas_close(&g->blas);
        if (g->module)
            good("cuModuleUnload", g->drv.unload(g->module));
        if (c->tokens)
            good("cuMemFreeHost", g->drv.host_free(c->tokens));
        leave(g, true);
    }
    for (uint32_t i = 0; i < g->count; i++)
        prhs_buffer_destroy(g->buffers[i]);
    free(g);
}

/* A buffer of `count` elements; its device pointer goes to the pointer at `to`. */
static bool place(cuda_compute *g, void *to, size_t count, size_t size) {
    if (g->count == BUFFERS || prhs_buffer_create(g->head.e->dev, count * size, &g->buffers[g->count]) != PRHS_OK)
        return false;
    void *const device = (void *)(uintptr_t)prhs_cuda_pointer(g->buffers[g->count++]);
    memcpy(to, &device, sizeof device);
    return true;
}

static bool place_all(cuda_compute *g) {
    const model *m = g->head.m;
    const engine *e = g->head.e;
    const struct {
        void *to;
        size_t count, size;
    } arrays[] = {
        { &g->weights, m->floats, element(g) }, { &g->norms, norm_floats(m), 4 },
        { &g->turns, turn_floats(e), 4 }, { &g->x, e->rows * m->dim, 4 }, { &g->both, e->rows * 2 * m->ffn, 4 },
        { &g->logits, (size_t)LOGIT_ROWS * m->vocab, 4 }, { &g->normed, e->rows * m->dim, element(g) },
        { &g->gated, e->rows * m->ffn, element(g) }, { &g->attended, g->head.half ? e->rows * q_floats(m) : 1, 2 },
        { &g->ids, e->rows, 4 }, { &g->positions, e->rows, 4 }, { &g->target, e->rows, 4 }, { &g->best, e->rows, 4 },
        { &g->nll, e->rows, 8 }, { &g->next, e->seqs, 4 }, { &g->next_positions, e->seqs, 4 }, { &g->made, e->seqs, 4 },
        { &g->tokens, (size_t)e->tokens * e->seqs, 4 },
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        if (!place(g, arrays[i].to, arrays[i].count, arrays[i].size))
            return false;
    return true;
}

/* Float16 ones are rounded on the device, by way of the logits. */
static bool write_weights(cuda_compute *g) {
    const model *m = g->head.m;
    const size_t most = g->head.half ? (size_t)LOGIT_ROWS * m->vocab : m->floats;
    bool ok = true;
    for (size_t at = 0; ok && at < m->floats; at += most) {
        const size_t n = m->floats - at < most ? m->floats - at : most;
        round_args a = { g->logits, (char *)g->weights + 2 * at, (int64_t)n };
        ok = put(g, g->head.half ? g->logits : g->weights, m->block + at, n * sizeof(float)) &&
             (!g->head.half || launch(g, ROUND, (n + LAYER_THREADS - 1) / LAYER_THREADS, &a));
    }
    return ok && wait(g);
}

static bool load_kernels(cuda_compute *g) {
    static const char *const names[KERNELS] = { "llama_embed", "llama_norm", "llama_rope", "llama_swiglu", "llama_round", "llama_choose", "llama_score" };
    if (!good("cuModuleLoadDataEx", g->drv.load(&g->module, llama_layers, 0, NULL, NULL)))
        return false;
    for (int i = 0; i < KERNELS; i++)
        if (!good("cuModuleGetFunction", g->drv.function(&g->kernel[i], g->module, names[i])))
            return false;
    return true;
}

/* Inside the context. */
static bool set_up(cuda_compute *g, const char *file, char *why, size_t cap) {
    const size_t tokens = (size_t)g->head.e->tokens * g->head.e->seqs * sizeof(int32_t);
    void *workspace, *host;
    if (!cublas_open(&g->blas, file, why, cap))
        return false;
    snprintf(why, cap, "the model does not get onto the CUDA device");
    if (!place_all(g) || !place(g, &workspace, WORKSPACE, 1) || !load_kernels(g) ||
        !good("cuMemHostAlloc", g->drv.host_alloc(&host, tokens, 0)))
        return false;
    g->head.tokens = host;
    /* The stream first: setting it takes a workspace away again. */
    return good("cublasSetStream", g->blas.set_stream(g->blas.handle, g->stream)) &&
           good("cublasSetWorkspace", g->blas.set_workspace(g->blas.handle, workspace, WORKSPACE)) &&
           good("cublasSetMathMode", g->blas.set_math_mode(g->blas.handle, CUBLAS_DEFAULT_MATH)) &&
           write_weights(g) && tables_write(g->head.e, mem_of(g, g->norms), mem_of(g, g->turns)) && engine_make_rows(g->head.e, true);
}

static const compute_ops cuda_ops = {
    .name = "cublas", .burst = 8, .close = cuda_close, .embed = cuda_embed, .qkv = cuda_qkv, .rest = cuda_rest, .logits = cuda_logits,
    .score = cuda_score, .begin = cuda_begin, .choose = cuda_choose, .feed = cuda_feed, .fetch = cuda_fetch, .record = cuda_record,
    .recorded = cuda_recorded, .replay = cuda_replay,
};

compute *compute_cuda_open(engine *e, const char *cublas, bool half, char *why, size_t cap) {
    cuda_compute *g = calloc(1, sizeof *g);
    snprintf(why, cap, "%s", prhs_cuda_context(e->dev) ? "libcuda.so.1 lacks a call that the example needs" : "this device is no CUDA device");
    if (!g)
        return NULL;
    g->head = (compute){ &cuda_ops, e, e->m, NULL, half };
    if (prhs_cuda_context(e->dev) && driver_open(&g->drv)) {
        g->context = prhs_cuda_context(e->dev);
        g->stream = prhs_cuda_stream(e->queue);
        if (enter(g) && leave(g, set_up(g, cublas, why, cap)))
            return &g->head;
    }
    cuda_close(&g->head);
    return NULL;
}
