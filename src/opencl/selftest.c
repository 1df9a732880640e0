/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of a variant: small cases run on the cpu backend, and every launch of the variant's kind also on the device, with
 * the very same bytes in all its buffers. Then these must be alike: integers and what the op does not write bit by bit, floats
 * but for rounding. A launch that takes a neighbour along is tested with it.
 */
#include "host.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../cpu/cpu.h"

/* Of max(1, |x|). An order of summation makes 1e-6; moments are differences of sums, where few tokens are dropped of nearly equal
 * ones. */
#define TOLERANCE 1e-4
#define TOLERANCE_OF_MOMENTS 2e-3
#define MAX_COPIES 64

enum role { SEQS, PAGES, Q, KIN, VIN, K, V, STATE, WORK, OUT, LSE, PARTS, PARTS_LSE, QREF, MOMENTS_IN, DROPPED, SPREADS, COSINE, DELTA };
static const char *const role_names[] = {
    "seqs", "pages", "q",     "k to append",  "v to append", "k",       "v",       "state",  "workspace",
    "out",  "lse",   "parts", "lse of parts", "qref",        "moments", "dropped", "spreads", "cosine", "delta"
};
static const enum role roles[PRHS_OP_COUNT][PRHS_OP_MAX_MEMS] = {
#define X(NAME, name, mems, ...) [PRHS_OP_##NAME] = { __VA_ARGS__ },
#include "../kernels.def"
#undef X
};

/* A buffer of the cpu backend and its twin on the device. */
typedef struct copy {
    prhs_buffer *cpu;
    prhs_cl_buffer cl;
} copy;

typedef struct selftest {
    prhs_backend backend; /* first: the cpu backend's table with launches that come here */
    prhs_cl_device *cl;
    prhs_cl_variant *variant;
    copy copies[MAX_COPIES];
    int count, launches;
    prhs_status status; /* of the device; what is not OK was logged */
    char *words;
} selftest;

static const prhs_k_shape *shape_of(const prhs_op *op) {
    switch (op->kind) {
#define X(NAME, name, ...)                                                                                                       \
    case PRHS_OP_##NAME:                                                                                                         \
        return &op->args.name.shape;
#include "../kernels.def"
#undef X
    default: return NULL;
    }
}

static const prhs_k_state *state_of(const prhs_op *op) {
    switch (op->kind) {
    case PRHS_OP_APPEND: return &op->args.append.state;
    case PRHS_OP_RANGE_SUM: return &op->args.range_sum.state;
    case PRHS_OP_TRUNCATE: return &op->args.truncate.state;
    case PRHS_OP_RECALL: return &op->args.recall.state;
    case PRHS_OP_PLAN: return &op->args.plan.state;
    case PRHS_OP_AIM: return &op->args.aim.state;
    case PRHS_OP_SELECT: return &op->args.select.state;
    case PRHS_OP_MOMENTS: return &op->args.moments.state;
    case PRHS_OP_FINISH: return &op->args.finish.state;
    case PRHS_OP_AUDIT: return &op->args.audit.state;
    default: return NULL;
    }
}

static const prhs_k_work *work_of(const prhs_op *op) {
    switch (op->kind) {
    case PRHS_OP_PLAN: return &op->args.plan.work;
    case PRHS_OP_SCORE: return &op->args.score.work;
    case PRHS_OP_AIM: return &op->args.aim.work;
    case PRHS_OP_SELECT: return &op->args.select.work;
    case PRHS_OP_MOMENTS: return &op->args.moments.work;
    case PRHS_OP_ATTEND: return &op->args.attend.work;
    case PRHS_OP_FINISH: return &op->args.finish.work;
    case PRHS_OP_AUDIT: return &op->args.audit.work;
    case PRHS_OP_COMBINE: return &op->args.combine.work;
    default: return NULL;
    }
}

static prhs_i32 out_dtype(const prhs_op *op) {
    switch (op->kind) {
    case PRHS_OP_FINISH: return op->args.finish.out.dtype;
    case PRHS_OP_PREFILL: return op->args.prefill.out.dtype;
    case PRHS_OP_COMBINE: return op->args.combine.out.dtype;
    case PRHS_OP_MERGE: return op->args.merge.out.dtype;
    default: return PRHS_K_F32;
    }
}

typedef enum content { BITS, FLOATS, HALVES, BFLOATS, MASSES, SCRATCH } content;

static bool in(prhs_i64 at, prhs_i64 off, prhs_i64 size) { return off != PRHS_NONE && at >= off && at < off + size; }

/* Whether there is a sum of masses at a byte of the statistics, of which the units' come before the heads'. */
static bool sums_masses(const prhs_k_state *k, prhs_i64 at) {
    const prhs_i64 heads_at = k->head_stat_off - k->unit_stat_off, count = (prhs_i64)sizeof(prhs_i64);
    const prhs_i64 sums = (prhs_i64)sizeof(prhs_sample_stat) - count; /* of a sample: all but its count */
    if (at < heads_at)
        return in(at % (prhs_i64)sizeof(prhs_unit_stat), (prhs_i64)offsetof(prhs_unit_stat, sample) + count, sums);
    at = (at - heads_at) % (prhs_i64)sizeof(prhs_head_stat);
    return in(at, (prhs_i64)offsetof(prhs_head_stat, exact_sum), count) ||
           in(at, (prhs_i64)offsetof(prhs_head_stat, estimate_sum), count) ||
           in(at, (prhs_i64)offsetof(prhs_head_stat, audit_sum), count) ||
           in(at, (prhs_i64)offsetof(prhs_head_stat, sample) + count, sums) ||
           in(at, (prhs_i64)offsetof(prhs_head_stat, pair_exact), 4 * count);
}

/* What lies at a byte of the state: one layer of sessions with all arrays, as selftest_run.c makes them. */
static content state_content(const prhs_op *op, prhs_i64 at) {
    const prhs_k_state *k = state_of(op);
    const prhs_i64 heads = shape_of(op)->heads, row = heads * shape_of(op)->dim * 4;
    if (!k || at < k->unit_off)
        return BITS;
    if (at >= k->unit_stat_off)
        return sums_masses(k, (at - k->unit_stat_off) % k->stat_slot_bytes) ? MASSES : BITS;
    at = k->unit_off + (at - k->unit_off) % k->slot_bytes;
    return in(at, k->qref_off, row) || in(at, k->head_off, heads * (prhs_i64)sizeof(prhs_head_ref)) ||
                   in(at, k->moment_off, 2 * row) || in(at, k->spread_off, heads * 8) || in(at, k->vhat_off, row)
               ? FLOATS
               : BITS;
}

static content work_content(const prhs_op *op, prhs_i64 at) {
    const prhs_k_work *w = work_of(op);
    /* finish leaves here what it knows of a row that has to attend again, and how many heads it looks at for that is its own
     * affair. */
    if (op->kind == PRHS_OP_FINISH &&
        in(at, w->lse_off,
           (prhs_i64)op->args.finish.batch.max_seqs * op->args.finish.batch.rows * op->args.finish.shape.heads * 4))
        return SCRATCH;
    return w && at >= w->part_off ? FLOATS : BITS; /* sets and work lie before the parts */
}

static content content_at(const prhs_op *op, enum role role, prhs_i64 at) {
    switch (role) {
    case STATE: return state_content(op, at);
    case WORK: return work_content(op, at);
    case OUT: return out_dtype(op) == PRHS_K_F16 ? HALVES : out_dtype(op) == PRHS_K_BF16 ? BFLOATS : FLOATS;
    case LSE:
    case COSINE:
    case DELTA: return FLOATS;
    default: return BITS;
    }
}

static double number(content what, const unsigned char *p) {
    uint16_t half;
    uint32_t bits;
    float x;
    prhs_i64 mass;
    switch (what) {
    case HALVES: {
        memcpy(&half, p, sizeof half);
        const int exponent = half >> 10 & 31, mantissa = half & 1023;
        const double size =
            exponent == 31 ? mantissa ? NAN : INFINITY : ldexp(mantissa + (exponent ? 1024 : 0), (exponent ? exponent : 1) - 25);
        return half >> 15 ? -size : size;
    }
    case BFLOATS:
        memcpy(&half, p, sizeof half);
        bits = (uint32_t)half << 16;
        memcpy(&x, &bits, sizeof x);
        return x;
    case MASSES: memcpy(&mass, p, sizeof mass); return (double)mass / PRHS_MASS_ONE;
    default: memcpy(&x, p, sizeof x); return x;
    }
}

static bool alike(prhs_op_kind kind, content what, double got, double want) {
    const double rounding = what == HALVES    ? 0x1p-10
                            : what == BFLOATS ? 0x1p-7
                                              : 0.0,
                 tolerance = rounding + (kind == PRHS_OP_MOMENTS ? TOLERANCE_OF_MOMENTS : TOLERANCE);
    if (isnan(got) || isnan(want))
        return isnan(got) && isnan(want);
    return got == want || fabs(got - want) <= tolerance * fmax(1.0, fabs(want));
}

/* Whether byte i is the spread of scores of which none counts beside the middle's largest, so that cpu has no L_D either. */
static bool no_spread(const prhs_op *op, enum role role, const unsigned char *want, size_t i) {
    const prhs_k_state *k = role == STATE ? state_of(op) : NULL;
    if (!k || k->spread_off == PRHS_NONE || (prhs_i64)i < k->unit_off)
        return false;
    const prhs_i64 slot = ((prhs_i64)i - k->unit_off) / k->slot_bytes * k->slot_bytes, at = (prhs_i64)i - slot;
    float l_dropped;
    if (!in(at, k->spread_off, (prhs_i64)shape_of(op)->heads * 8) || (at - k->spread_off) % 8)
        return false;
    memcpy(&l_dropped, want + slot + k->head_off + (at - k->spread_off) / 8 * (prhs_i64)sizeof(prhs_head_ref), sizeof l_dropped);
    return l_dropped == -INFINITY;
}

/* Says where a buffer of the device differs from the cpu backend's, unless that was said already. */
static void compare(selftest *t, const prhs_op *op, enum role role, const unsigned char *got, const unsigned char *want,
                    size_t size) {
    static const size_t sizes[] = { [BITS] = 4, [FLOATS] = 4, [HALVES] = 2, [BFLOATS] = 2, [MASSES] = 8, [SCRATCH] = 4 };
    for (size_t at = 0; at + 4 <= size && !t->words[0]; at += 4) {
        if (memcmp(got + at, want + at, 4) == 0)
            continue;
        const content what = content_at(op, role, (prhs_i64)at);
        const size_t first = at / sizes[what] * sizes[what], step = sizes[what];
        for (size_t i = first; i < at + 4; i += step) {
            if (what == BITS) {
                uint32_t a, b;
                memcpy(&a, got + i, 4);
                memcpy(&b, want + i, 4);
                snprintf(t->words, PRHS_CL_WORDS, "%s + %zu is %#x instead of %#x", role_names[role], i, (unsigned)a,
                         (unsigned)b);
            } else if (what != SCRATCH && !no_spread(op, role, want, i) &&
                       !alike(op->kind, what, number(what, got + i), number(what, want + i))) {
                snprintf(t->words, PRHS_CL_WORDS, "%s + %zu is %.7g instead of %.7g", role_names[role], i, number(what, got + i),
                         number(what, want + i));
            }
        }
    }
}

static void ended(selftest *t, const char *call, cl_int error) {
    if (t->status == PRHS_OK && error != CL_SUCCESS)
        t->status = prhs_cl_fail(&t->cl->head.log, call, error);
}

/* The twin of a buffer, with its content. */
static prhs_buffer *upload(selftest *t, prhs_buffer *cpu) {
    int i = 0;
    cl_int error = CL_SUCCESS;
    while (i < t->count && (t->copies[i].cpu != cpu || t->copies[i].cl.head.size != cpu->size)) /* a new one where another was */
        i++;
    assert(i < MAX_COPIES);
    if (t->status != PRHS_OK)
        return NULL;
    copy *c = &t->copies[i];
    if (i == t->count) {
        c->cl = (prhs_cl_buffer){ { &t->cl->head, cpu->size },
                                  prhs_cl.CreateBuffer(t->cl->context, CL_MEM_READ_WRITE, cpu->size, NULL, &error) };
        if (!c->cl.mem) {
            ended(t, "clCreateBuffer", error);
            return NULL;
        }
        c->cpu = cpu;
        t->count++;
    }
    ended(t, "clEnqueueWriteBuffer",
          prhs_cl.EnqueueWriteBuffer(t->cl->prepare_queue, c->cl.mem, CL_TRUE, 0, cpu->size, prhs_cpu_buffer_host(cpu), 0, NULL,
                                     NULL));
    return &c->cl.head;
}

/* Reads the op's buffers back and holds them against the cpu backend's. */
static void download(selftest *t, const prhs_op *op, const prhs_op *twin) {
    for (int i = 0; i < prhs_op_mems(op->kind) && t->status == PRHS_OK; i++) {
        if (!op->mem[i])
            continue;
        const size_t size = op->mem[i]->size;
        unsigned char *got = malloc(size);
        if (!got) {
            t->status = prhs_fail(&t->cl->head.log, PRHS_ERR_MEMORY, "opencl: no host memory for a self-test");
            return;
        }
        prhs_count(&t->cl->head.counters.waits);
        ended(
            t, "clEnqueueReadBuffer",
            prhs_cl.EnqueueReadBuffer(t->cl->prepare_queue, prhs_cl_mem_of(twin->mem[i]), CL_TRUE, 0, size, got, 0, NULL, NULL));
        if (t->status == PRHS_OK)
            compare(t, op, roles[op->kind][i], got, prhs_cpu_buffer_host(op->mem[i]), size);
        free(got);
    }
}

/* The twin of an op, with what all its buffers hold. */
static prhs_op twin_of(selftest *t, const prhs_op *op) {
    prhs_op twin = *op;
    for (int m = 0; m < prhs_op_mems(op->kind); m++)
        twin.mem[m] = op->mem[m] ? upload(t, op->mem[m]) : NULL;
    return twin;
}

/* Runs ops[0] on both, or an append and what takes it along: `count` is 2. */
static void run_both(selftest *t, prhs_queue *queue, const prhs_op *ops, size_t count) {
    const prhs_op *own = &ops[count - 1];
    const prhs_op twin = twin_of(t, own);
    const prhs_op append = count > 1 ? twin_of(t, &ops[0]) : twin;
    if (t->status == PRHS_OK)
        t->status = prhs_cl_launch(t->cl, t->variant, t->cl->prepare_queue, &twin, count > 1 ? &append : NULL);
    prhs_backend_cpu.ops_enqueue(queue, ops, count);
    download(t, own, &twin);
    if (count > 1)
        download(t, &ops[0], &append);
    t->launches++;
}

static prhs_status enqueue_both(prhs_queue *queue, const prhs_op *ops, size_t n) {
    selftest *t = (selftest *)(uintptr_t)queue->dev->backend;
    for (size_t i = 0, count = 1; i < n && t->status == PRHS_OK; i += count) {
        count = prhs_cl_takes_append(t->variant) && prhs_cl_go_together(ops + i, n - i) ? 2 : 1;
        const prhs_op_key key = prhs_op_key_of(&ops[i + count - 1]);
        if (key.kind == t->variant->key.kind && key.moments == t->variant->key.moments && !t->words[0])
            run_both(t, queue, ops + i, count);
        else
            prhs_backend_cpu.ops_enqueue(queue, &ops[i], count);
    }
    return t->status;
}

/* All cases with one seed. */
static prhs_status attempt(prhs_cl_device *dev, prhs_cl_variant *v, uint64_t seed, char words[PRHS_CL_WORDS]) {
    selftest t = { .backend = prhs_backend_cpu, .cl = dev, .variant = v, .words = words };
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_device *cpu = NULL;
    words[0] = '\0';
    t.backend.ops_enqueue = enqueue_both;
    t.backend.chunking = prhs_cl_chunking;
    params.threads = 1;
    prhs_status status = prhs_backend_cpu.open(&params, NULL, &cpu);
    if (status == PRHS_OK) {
        cpu->backend = &t.backend;
        status = prhs_cl_selftest_run(cpu, &v->key, seed);
        prhs_backend_cpu.close(cpu);
    }
    for (int i = 0; i < t.count; i++)
        prhs_cl.ReleaseMemObject(t.copies[i].cl.mem);
    if (status == PRHS_OK && !t.launches)
        status = PRHS_ERR_STATE;
    if (status != PRHS_OK && t.status == PRHS_OK)
        return prhs_fail(&dev->head.log, status, "opencl: the self-test of %s cannot be run", prhs_op_name(v->key.kind));
    return status;
}

prhs_status prhs_cl_selftest(prhs_cl_device *dev, prhs_cl_variant *v, char words[PRHS_CL_WORDS]) {
    /* A choice may be so close that rounding decides it. That does not happen to other data, too. */
    char again[PRHS_CL_WORDS] = "";
    prhs_status status = attempt(dev, v, 1, words);
    for (uint64_t seed = 2; seed <= 3 && status == PRHS_OK && words[0] && !again[0]; seed++)
        status = attempt(dev, v, seed, again);
    if (!again[0])
        words[0] = '\0';
    return status;
}
