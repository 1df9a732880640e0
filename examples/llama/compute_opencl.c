/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linear algebra on an OpenCL device: float32 weights and all rows in its memory, products by CLBlast, the rest by the kernels of layers.cl, all
 * on the engine's queue. A step waits for nothing and asks the host for nothing.
 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clblast.h"
#include "tables.h"

#define GROUP 256u /* work-items of a row that is summed, at most */
#define LANES 64u  /* of one that is not */

extern const unsigned char llama_layers_cl[]; /* layers.cl, terminated */

enum { EMBED, ROPE, SWIGLU, NORM, CHOOSE, SCORE, KERNELS }; /* from NORM on a group is a row */

/* Device memory. float: norms and turns of tables.h; [rows][dim], [rows][2 * ffn], [LOGIT_ROWS][vocab]; what products read: [rows][dim] and
   [rows][ffn]; layers.cl's scores [rows][4]. int32_t: [rows]; [seqs], tokens [tokens][seqs]. CLBlast's own. */
enum {
    NORMS, TURNS, X, BOTH, LOGITS, NORMED, GATED, SCORES,
    IDS, POSITIONS, TARGET, BEST,
    NEXT, NEXT_POSITIONS, MADE, TOKENS,
    SCRATCH, BUFFERS
};

/* The products' weights: of a layer; behind all layers the embedding, and the output where it is another. A buffer each, since drivers limit one. */
enum { QKV, OUT, GATE_UP, DOWN, WEIGHTS };

typedef struct opencl_compute {
    compute head;
    clblast cl;
    cl_command_queue queue;
    cl_program program;
    cl_kernel kernel[KERNELS];
    size_t group[KERNELS];
    prhs_buffer *buffers[BUFFERS], **weights;
    cl_mem mem[BUFFERS];
    cl_mem at;           /* the positions of the rows in X */
    float *scores;       /* SCORES on the host */
} opencl_compute;

static opencl_compute *of(compute *c) { return (opencl_compute *)c; }

static bool good(const char *call, int status) {
    if (status)
        fprintf(stderr, "prhs-llama: %s returns %d\n", call, status);
    return status == 0;
}

static bool put(opencl_compute *g, int to, size_t first, const void *host, size_t count) {
    return prhs_queue_write(g->head.e->queue, (prhs_mem){ g->buffers[to], first * 4 }, host, count * 4) == PRHS_OK;
}

static bool get(opencl_compute *g, void *host, int from, size_t first, size_t count) {
    return prhs_queue_read(g->head.e->queue, host, (prhs_mem){ g->buffers[from], first * 4 }, count * 4) == PRHS_OK;
}

static bool wait(opencl_compute *g) { return prhs_queue_finish(g->head.e->queue) == PRHS_OK; }

/* --- kernels and products --- */

typedef struct arg {
    size_t size;
    const void *value;
} arg;
#define ARG(x) { sizeof(x), &(x) }
#define RUN(g, kernel, wide, rows, ...) run(g, kernel, wide, rows, (const arg[]){ __VA_ARGS__ }, sizeof((const arg[]){ __VA_ARGS__ }) / sizeof(arg))

/* `wide` elements a row; where a group is a row it needs none of them. */
static bool run(opencl_compute *g, int kernel, size_t wide, size_t rows, const arg *args, size_t count) {
    const size_t lanes = g->group[kernel], groups = kernel < NORM ? (wide + lanes - 1) / lanes : 1;
    for (cl_uint i = 0; i < count; i++)
        if (!good("clSetKernelArg", g->cl.SetKernelArg(g->kernel[kernel], i, args[i].size, args[i].value)))
            return false;
    return good("clEnqueueNDRangeKernel", g->cl.EnqueueNDRangeKernel(g->queue, g->kernel[kernel], 2, NULL, (const size_t[]){ groups * lanes, rows },
                                                                     (const size_t[]){ lanes, 1 }, 0, NULL, NULL));
}

/* What a product multiplies and gives. Rows of x are `in` floats, of y `out`. */
typedef struct product {
    cl_mem x, y;
    size_t x_at, y_at, in, out; /* floats */
    float beta;                 /* y = x * w^T + beta * y */
} product;

static bool linear(opencl_compute *g, const product *p, const prhs_buffer *w, size_t rows) {
    return good("CLBlastSgemm", g->cl.sgemm(CLBLAST_COLUMNS, CLBLAST_T, CLBLAST_N, p->out, rows, p->in, 1.0f, prhs_opencl_buffer(w), 0, p->in, p->x,
                                            p->x_at, p->in, p->beta, p->y, p->y_at, p->out, &g->queue, NULL, g->mem[SCRATCH]));
}

static bool norm(opencl_compute *g, size_t row, size_t which, size_t rows) {
    const model *m = g->head.m;
    const cl_int at = (cl_int)(row * m->dim), weight_at = (cl_int)(which * m->dim), dim = (cl_int)m->dim;
    return RUN(g, NORM, dim, rows, ARG(g->mem[X]), ARG(at), ARG(g->mem[NORMS]), ARG(weight_at), ARG(g->mem[NORMED]), ARG(dim), ARG(m->eps));
}

static prhs_buffer *weight(const opencl_compute *g, uint32_t layer, int which) { return g->weights[WEIGHTS * (size_t)layer + (size_t)which]; }

static cl_mem row_mem(prhs_mem mem, size_t *floats) {
    *floats = (size_t)mem.offset / 4;
    return prhs_opencl_buffer(mem.buffer);
}

/* --- a layer's parts --- */

static bool embed(opencl_compute *g, int ids, int positions, size_t rows) {
    const cl_mem table = prhs_opencl_buffer(weight(g, g->head.m->layers, 0));
    const cl_int dim = (cl_int)g->head.m->dim;
    g->at = g->mem[positions];
    return RUN(g, EMBED, (size_t)dim, rows, ARG(g->mem[ids]), ARG(table), ARG(g->mem[X]), ARG(dim));
}

static bool opencl_embed(compute *c, const int32_t *ids, const int32_t *positions, size_t rows) {
    opencl_compute *g = of(c);
    return put(g, IDS, 0, ids, rows) && put(g, POSITIONS, 0, positions, rows) && embed(g, IDS, POSITIONS, rows) && wait(g);
}

static bool opencl_qkv(compute *c, uint32_t layer, size_t rows) {
    opencl_compute *g = of(c);
    const model *m = c->m;
    const cl_int heads = (cl_int)(m->heads + m->kv_heads), dim = (cl_int)m->head_dim, stride = (cl_int)row_floats(m);
    product p = { .x = g->mem[NORMED], .in = m->dim, .out = row_floats(m) };
    p.y = row_mem(c->e->q.mem, &p.y_at); /* where the buffer begins: q, k and v of a row are one */
    return norm(g, 0, 2 * layer, rows) && linear(g, &p, weight(g, layer, QKV), rows) &&
           RUN(g, ROPE, (size_t)heads * m->head_dim / 2, rows, ARG(p.y), ARG(g->mem[TURNS]), ARG(g->at), ARG(heads), ARG(dim), ARG(stride));
}

static bool opencl_rest(compute *c, uint32_t layer, size_t first, size_t rows) {
    opencl_compute *g = of(c);
    const model *m = c->m;
    const size_t n = rows - first, ffn = m->ffn, at = first * m->dim;
    const cl_int wide = (cl_int)ffn;
    product out = { .y = g->mem[X], .y_at = at, .in = q_floats(m), .out = m->dim, .beta = 1.0f };
    const product up = { .x = g->mem[NORMED], .y = g->mem[BOTH], .in = m->dim, .out = 2 * ffn };
    const product down = { .x = g->mem[GATED], .y = g->mem[X], .y_at = at, .in = ffn, .out = m->dim, .beta = 1.0f };
    out.x = row_mem(engine_row(&c->e->out, first), &out.x_at);
    return n == 0 || (linear(g, &out, weight(g, layer, OUT), n) && norm(g, first, 2 * layer + 1, n) &&
                      linear(g, &up, weight(g, layer, GATE_UP), n) && RUN(g, SWIGLU, ffn, n, ARG(g->mem[BOTH]), ARG(g->mem[GATED]), ARG(wide)) &&
                      linear(g, &down, weight(g, layer, DOWN), n));
}

/* --- logits and what becomes of them --- */

static bool logits_of(opencl_compute *g, size_t row, size_t rows) {
    const model *m = g->head.m;
    const product p = { .x = g->mem[NORMED], .y = g->mem[LOGITS], .in = m->dim, .out = m->vocab };
    return norm(g, row, 2 * m->layers, rows) && linear(g, &p, weight(g, m->layers, m->output != m->embedding), rows);
}

static bool opencl_logits(compute *c, size_t row, float *logits) {
    opencl_compute *g = of(c);
    return logits_of(g, row, 1) && get(g, logits, LOGITS, 0, c->m->vocab) && wait(g);
}

static bool score(opencl_compute *g, size_t row, size_t rows) {
    const cl_int at = (cl_int)row, vocab = (cl_int)g->head.m->vocab;
    return logits_of(g, row, rows) && RUN(g, SCORE, (size_t)vocab, rows, ARG(g->mem[LOGITS]), ARG(g->mem[TARGET]), ARG(at), ARG(g->mem[SCORES]),
                                          ARG(g->mem[BEST]), ARG(vocab));
}

static bool opencl_score(compute *c, size_t rows, const int32_t *target, double *nll, int32_t *best) {
    opencl_compute *g = of(c);
    bool ok = put(g, TARGET, 0, target, rows);
    for (size_t at = 0; ok && at < rows; at += LOGIT_ROWS)
        ok = score(g, at, rows - at < LOGIT_ROWS ? rows - at : LOGIT_ROWS);
    ok = ok && get(g, g->scores, SCORES, 0, 4 * rows) && get(g, best, BEST, 0, rows) && wait(g);
    for (size_t i = 0; ok && i < rows; i++) {
        const float *s = g->scores + 4 * i;
        nll[i] = log((double)s[1] + (double)s[2]) + (double)s[0] - (double)s[3];
    }
    return ok;
}

/* --- the decode loop --- */

static bool opencl_begin(compute *c, const prhs_seq *seqs) {
    return prhs_queue_fill(c->e->queue, (prhs_mem){ of(c)->buffers[MADE], 0 }, 0, c->e->seqs * sizeof(int32_t)) == PRHS_OK &&
           engine_plan(c->e, PLAN_DECODE, 1, seqs);
}

/* PLAN_DECODE is where the plans begin. */
static bool choose(opencl_compute *g, size_t row, size_t seq, size_t count, cl_int given) {
    const cl_mem plan = prhs_opencl_buffer(g->head.e->seq);
    const cl_int vocab = (cl_int)g->head.m->vocab, first = (cl_int)seq, all = (cl_int)g->head.e->seqs;
    return (given || logits_of(g, row, count)) &&
           RUN(g, CHOOSE, 1, count, ARG(g->mem[LOGITS]), ARG(given), ARG(plan), ARG(g->mem[NEXT]), ARG(g->mem[NEXT_POSITIONS]), ARG(g->mem[MADE]),
               ARG(g->mem[TOKENS]), ARG(vocab), ARG(first), ARG(all));
}

static bool opencl_choose(compute *c, size_t row, size_t seq, size_t count, const int32_t *ids) {
    opencl_compute *g = of(c);
    bool ok = !ids || (put(g, NEXT, seq, ids, count) && wait(g));
    for (size_t at = 0; ok && at < count; at += LOGIT_ROWS)
        ok = choose(g, row + at, seq + at, count - at < LOGIT_ROWS ? count - at : LOGIT_ROWS, ids != NULL);
    return ok;
}

static bool opencl_feed(compute *c) { return embed(of(c), NEXT, NEXT_POSITIONS, c->e->seqs); }

static bool opencl_fetch(compute *c, uint32_t first, uint32_t count) {
    const size_t row = c->e->seqs, at = first * row;
    return get(of(c), c->tokens + at, TOKENS, at, count * row);
}

/* --- from open to close --- */

static void opencl_close(compute *c) {
    opencl_compute *g = of(c);
    wait(g);
    for (int i = 0; i < KERNELS; i++)
        if (g->kernel[i])
            good("clReleaseKernel", g->cl.ReleaseKernel(g->kernel[i]));
    if (g->program)
        good("clReleaseProgram", g->cl.ReleaseProgram(g->program));
    if (g->cl.clear)
        good("CLBlastClearCache", g->cl.clear()); /* its programs are of a context that ends */
    for (int i = 0; i < BUFFERS; i++)
        prhs_buffer_destroy(g->buffers[i]);
    for (size_t i = 0; g->weights && i < WEIGHTS * (size_t)c->m->layers + 2; i++)
        prhs_buffer_destroy(g->weights[i]);
    free(g->weights);
    free(g->scores);
    free(c->tokens);
    free(g);
}

static bool build(opencl_compute *g) {
    static const char *const names[KERNELS] = { "llama_embed", "llama_rope", "llama_swiglu", "llama_norm", "llama_choose", "llama_score" };
    const cl_device_id device = prhs_opencl_device(g->head.e->dev);
    const char *source = (const char *)llama_layers_cl;
    char options[96], text[2048] = "";
    cl_int error = CL_SUCCESS;
    snprintf(options, sizeof options, "-cl-std=CL1.2 -DGROUP=%u -DSEQ_INTS=%zu -DKV_LEN=%zu", GROUP, sizeof(prhs_seq) / 4, offsetof(prhs_seq, kv_len) / 4);
    g->program = g->cl.CreateProgramWithSource(prhs_opencl_context(g->head.e->dev), 1, &source, NULL, &error);
    if (!good("clCreateProgramWithSource", error))
        return false;
    if (!good("clBuildProgram", g->cl.BuildProgram(g->program, 1, &device, options, NULL, NULL))) {
        g->cl.GetProgramBuildInfo(g->program, device, CL_PROGRAM_BUILD_LOG, sizeof text - 1, text, NULL);
        fprintf(stderr, "prhs-llama: layers.cl: %s\n", text);
        return false;
    }
    for (int i = 0; i < KERNELS; i++) {
        size_t most = 1;
        g->kernel[i] = g->cl.CreateKernel(g->program, names[i], &error);
        if (!good("clCreateKernel", error) || !good("clGetKernelWorkGroupInfo", g->cl.GetKernelWorkGroupInfo(g->kernel[i], device, CL_KERNEL_WORK_GROUP_SIZE,
                                                                                                            sizeof most, &most, NULL)))
            return false;
        for (g->group[i] = i < NORM ? LANES : GROUP; g->group[i] > 1 && g->group[i] > most;)
            g->group[i] /= 2;
    }
    return true;
}

/* The most that any product of the model needs, which is what it needs for the most rows. */
static bool scratch_bytes(opencl_compute *g, size_t *most) {
    const model *m = g->head.m;
    const size_t rows = g->head.e->rows, vocab_rows = rows < LOGIT_ROWS ? rows : LOGIT_ROWS, q = q_floats(m);
    const size_t shapes[][3] = { { rows, m->dim, row_floats(m) }, { rows, q, m->dim }, { rows, m->dim, 2 * (size_t)m->ffn }, { rows, m->ffn, m->dim },
                                 { vocab_rows, m->dim, m->vocab } };
    *most = 16;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const size_t in = shapes[i][1], out = shapes[i][2];
        size_t bytes = 0;
        if (!good("CLBlastSGemmTempBufferSize", g->cl.temp_size(CLBLAST_COLUMNS, CLBLAST_T, CLBLAST_N, out, shapes[i][0], in, 0, in, 0, in, 0, out,
                                                                &g->queue, &bytes)))
            return false;
        *most = bytes > *most ? bytes : *most;
    }
    return true;
}

static bool place_all(opencl_compute *g) {
    const model *m = g->head.m;
    const engine *e = g->head.e;
    size_t words[BUFFERS] = {
        [NORMS] = norm_floats(m), [TURNS] = turn_floats(e), [X] = e->rows * m->dim, [BOTH] = e->rows * 2 * m->ffn,
        [LOGITS] = (size_t)LOGIT_ROWS * m->vocab, [NORMED] = e->rows * m->dim, [GATED] = e->rows * m->ffn, [SCORES] = 4 * e->rows,
        [IDS] = e->rows, [POSITIONS] = e->rows, [TARGET] = e->rows, [BEST] = e->rows, [NEXT] = e->seqs, [NEXT_POSITIONS] = e->seqs,
        [MADE] = e->seqs, [TOKENS] = (size_t)e->tokens * e->seqs,
    };
    if (!scratch_bytes(g, &words[SCRATCH]))
        return false;
    words[SCRATCH] = (words[SCRATCH] + 3) / 4;
    for (int i = 0; i < BUFFERS; i++) {
        if (prhs_buffer_create(e->dev, words[i] * 4, &g->buffers[i]) != PRHS_OK)
            return false;
        g->mem[i] = prhs_opencl_buffer(g->buffers[i]);
    }
    return true;
}

static bool write_weight(opencl_compute *g, size_t index, const float *from, size_t floats) {
    engine *e = g->head.e;
    return prhs_buffer_create(e->dev, floats * sizeof *from, &g->weights[index]) == PRHS_OK &&
           prhs_queue_write(e->queue, (prhs_mem){ g->weights[index], 0 }, from, floats * sizeof *from) == PRHS_OK;
}

static bool write_weights(opencl_compute *g) {
    const model *m = g->head.m;
    const size_t dim = m->dim, last = WEIGHTS * (size_t)m->layers;
    bool ok = (g->weights = calloc(last + 2, sizeof *g->weights)) != NULL && write_weight(g, last, m->embedding, m->vocab * dim) &&
              (m->output == m->embedding || write_weight(g, last + 1, m->output, m->vocab * dim));
    for (uint32_t i = 0; ok && i < m->layers; i++) {
        const layer_weights *w = &m->layer[i];
        const size_t first = WEIGHTS * (size_t)i;
        ok = write_weight(g, first + QKV, w->wq, row_floats(m) * dim) && write_weight(g, first + OUT, w->wo, q_floats(m) * dim) &&
             write_weight(g, first + GATE_UP, w->gate, 2 * (size_t)m->ffn * dim) && write_weight(g, first + DOWN, w->down, m->ffn * dim);
    }
    return ok && wait(g);
}

static bool set_up(opencl_compute *g, const char *file, char *why, size_t cap) {
    engine *e = g->head.e;
    if (!clblast_open_cl(&g->cl, why, cap) || !clblast_open(&g->cl, file, why, cap))
        return false;
    snprintf(why, cap, "the model does not get onto the OpenCL device");
    g->head.tokens = calloc((size_t)e->tokens * e->seqs, sizeof *g->head.tokens);
    g->scores = malloc(4 * e->rows * sizeof *g->scores);
    return g->head.tokens && g->scores && build(g) && place_all(g) && write_weights(g) &&
           tables_write(e, (prhs_mem){ g->buffers[NORMS], 0 }, (prhs_mem){ g->buffers[TURNS], 0 }) && engine_make_rows(e, true);
}

static const compute_ops opencl_ops = {
    .name = "clblast", .burst = 8, .close = opencl_close, .embed = opencl_embed, .qkv = opencl_qkv, .rest = opencl_rest, .logits = opencl_logits,
    .score = opencl_score, .begin = opencl_begin, .choose = opencl_choose, .feed = opencl_feed, .fetch = opencl_fetch,
};

bool compute_opencl_gpu(const engine *e) {
    clblast cl = { 0 };
    char why[512];
    cl_device_type type = 0;
    const cl_device_id device = prhs_opencl_device(e->dev);
    return device && clblast_open_cl(&cl, why, sizeof why) && cl.GetDeviceInfo(device, CL_DEVICE_TYPE, sizeof type, &type, NULL) == CL_SUCCESS &&
           (type & CL_DEVICE_TYPE_GPU);
}

compute *compute_opencl_open(engine *e, const char *file, char *why, size_t cap) {
    opencl_compute *g = prhs_opencl_device(e->dev) ? calloc(1, sizeof *g) : NULL;
    snprintf(why, cap, g ? "" : "this device is no OpenCL device");
    if (!g)
        return NULL;
    g->head = (compute){ &opencl_ops, e, e->m, NULL, false };
    g->queue = prhs_opencl_queue(e->queue);
    if (set_up(g, file, why, cap))
        return &g->head;
    opencl_close(&g->head);
    return NULL;
}
