/* SPDX-License-Identifier: Apache-2.0 */
/* Which file, flavour and compile-time constants serve an op, and how wide it is launched. Data; nothing here calls OpenCL. */
#include "host.h"

#include <stdio.h>
#include <string.h>

#define D 1
#define G 2
#define UH 4
#define KV 8
#define Q 16
#define OUT 32
#define MOM 64

/* cl/<file>.cl has the kernel prhs_<op>; `uses` are the constants it is compiled with. gpu: the same for GPUs, where there is one, and
   the work-items that a group of it has. */
static const struct {
    const char *file;
    unsigned uses;
    const char *gpu;
    int group;
} ops[PRHS_OP_COUNT] = {
    [PRHS_OP_APPEND] = { "append", D | KV | Q, "gpu_append", 128 },
    [PRHS_OP_RANGE_SUM] = { "append", D | KV, "gpu_append", 128 },
    [PRHS_OP_TRUNCATE] = { "append", 0, NULL, 0 },
    [PRHS_OP_RECALL] = { "recall", D | UH | Q, "gpu_recall", 64 },
    [PRHS_OP_PLAN] = { "plan", D | UH | Q, "gpu_plan", 64 },
    [PRHS_OP_SCORE] = { "score", D | G | UH | KV | Q | MOM, "gpu_score", 128 },
    [PRHS_OP_AIM] = { "select", D | UH | Q, NULL, 0 },
    [PRHS_OP_SELECT] = { "select", D | UH | Q, "gpu_select", 128 },
    [PRHS_OP_MOMENTS] = { "moments", D | G | UH | KV, "gpu_moments", 128 },
    [PRHS_OP_ATTEND] = { "attend", D | G | UH | KV | Q, "gpu_attend", 128 },
    [PRHS_OP_FINISH] = { "finish", D | G | UH | Q | OUT, "gpu_finish", 64 },
    [PRHS_OP_AUDIT] = { "audit", UH, NULL, 0 },
    [PRHS_OP_PREFILL] = { "prefill", D | G | KV | Q | OUT, "gpu_prefill", 128 },
    [PRHS_OP_COMBINE] = { "merge", D | UH | OUT, "gpu_merge", 128 },
    [PRHS_OP_MERGE] = { "merge", D | OUT, "gpu_merge", 128 },
    [PRHS_OP_GATE] = { "gate", D | Q, NULL, 0 },
};

const char *prhs_cl_flavour_name(prhs_cl_flavour flavour) {
    return flavour == PRHS_CL_WIDE ? "wide" : flavour == PRHS_CL_GPU ? "gpu" : "generic";
}

size_t prhs_cl_local(prhs_op_kind kind, prhs_cl_flavour flavour, size_t most) {
    const size_t group = (size_t)ops[kind].group;
    size_t local = flavour == PRHS_CL_WIDE ? 1 : PRHS_CL_LOCAL;
    if (flavour == PRHS_CL_GPU)
        return group <= most ? group : 0;
    while (local > 1 && local > most)
        local /= 2;
    return local;
}

static bool usable(const prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour flavour, const char **why) {
    const char *failed = prhs_cl_failed(dev, key, flavour);
    if (failed)
        *why = failed;
    return !failed;
}

bool prhs_cl_choose(const prhs_cl_device *dev, const prhs_op_key *key, prhs_cl_flavour *flavour, const char **why) {
    const uint32_t caps = dev->head.info.caps;
    *flavour = PRHS_CL_GENERIC;
    if (!prhs_cl_source_of(key->kind, PRHS_CL_GENERIC)) {
        *why = "this build has no OpenCL kernel for it";
        return false;
    }
    if (caps & PRHS_CAP_WIDE) {
        /* The wide kernels hold a head in whole float16 vectors. */
        *why = "the head dimension is no multiple of 16, as the wide kernels need it";
        if (key->dim % 16 == 0 && usable(dev, key, PRHS_CL_WIDE, why)) {
            *flavour = PRHS_CL_WIDE;
            *why = "a CPU-type device: work-groups of one, vectors of 16";
            return true;
        }
    } else if (!(caps & PRHS_CAP_GPU)) {
        *why = "the wide and the gpu kernels are masked, or the device's work-groups are too small for these";
    } else if (!prhs_cl_source_of(key->kind, PRHS_CL_GPU)) {
        *why = "it has no kernel for GPUs";
    } else if (usable(dev, key, PRHS_CL_GPU, why)) {
        *flavour = PRHS_CL_GPU;
        *why = "work-groups with local memory, a team of lanes a row";
        return true;
    }
    return usable(dev, key, PRHS_CL_GENERIC, why);
}

const struct prhs_cl_source *prhs_cl_source_of(prhs_op_kind kind, prhs_cl_flavour flavour) {
    const char *file = flavour == PRHS_CL_GPU ? ops[kind].gpu : ops[kind].file;
    for (const struct prhs_cl_source *s = prhs_cl_sources; file && s->name; s++)
        if (strcmp(s->name, file) == 0)
            return s;
    return NULL;
}

static size_t add(char *options, size_t at, const char *name, prhs_i32 value) {
    int n = at < PRHS_CL_OPTIONS_MAX ? snprintf(options + at, PRHS_CL_OPTIONS_MAX - at, " -D%s=%d", name, (int)value) : 0;
    return at + (n > 0 ? (size_t)n : 0);
}

void prhs_cl_options(const prhs_op_key *key, prhs_cl_flavour flavour, char options[PRHS_CL_OPTIONS_MAX]) {
    char only[48];
    const struct {
        unsigned use;
        const char *name;
        prhs_i32 value;
    } constants[] = {
        { D, "PRHS_D", key->dim },          { G, "PRHS_G", key->group },      { UH, "PRHS_UH", key->unit_heads },
        { KV, "PRHS_KV", key->kv_dtype },   { Q, "PRHS_Q", key->q_dtype },    { OUT, "PRHS_OUT", key->out_dtype },
        { MOM, "PRHS_MOMENTS", key->moments },
    };
    size_t at = (size_t)snprintf(options, PRHS_CL_OPTIONS_MAX, "-cl-std=CL1.2");
    at = add(options, at, "PRHS_WIDE", flavour == PRHS_CL_WIDE);
    if (flavour == PRHS_CL_GPU)
        at = add(options, at, "PRHS_GROUP", ops[key->kind].group);
    /* Files with several kernels compile only this one. */
    snprintf(only, sizeof only, "PRHS_ONLY_%s", prhs_op_name(key->kind));
    at = add(options, at, only, 1);
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++)
        if (ops[key->kind].uses & constants[i].use)
            at = add(options, at, constants[i].name, constants[i].value);
}

/* Work items by capacity, as docs/kernels.md cuts them. */
static uint64_t items_of(const prhs_op *op) {
#define PRODUCT(a, b, c, d) ((uint64_t)(a) * (uint64_t)(b) * (uint64_t)(c) * (uint64_t)(d))
    switch (op->kind) {
    case PRHS_OP_APPEND: return PRODUCT(op->args.append.batch.max_seqs, op->args.append.shape.kv_heads, 1, 1);
    case PRHS_OP_RANGE_SUM: return PRODUCT(op->args.range_sum.batch.max_seqs, op->args.range_sum.shape.kv_heads, 1, 1);
    case PRHS_OP_TRUNCATE: return PRODUCT(op->args.truncate.batch.max_seqs, op->args.truncate.shape.units, 1, 1);
    case PRHS_OP_RECALL: return PRODUCT(op->args.recall.batch.max_seqs, op->args.recall.shape.units, 1, 1);
    case PRHS_OP_PLAN: return PRODUCT(op->args.plan.batch.max_seqs, op->args.plan.shape.units, 1, 1);
    case PRHS_OP_SCORE:
        return PRODUCT(op->args.score.batch.max_seqs, op->args.score.shape.units, op->args.score.work.score_chunks, 1);
    case PRHS_OP_AIM: return PRODUCT(op->args.aim.batch.max_seqs, op->args.aim.shape.units, 1, 1);
    case PRHS_OP_SELECT: return PRODUCT(op->args.select.batch.max_seqs, op->args.select.shape.units, 1, 1);
    case PRHS_OP_MOMENTS: return PRODUCT(op->args.moments.batch.max_seqs, op->args.moments.shape.heads, 1, 1);
    case PRHS_OP_ATTEND:
        return PRODUCT(op->args.attend.batch.max_seqs, op->args.attend.batch.rows, op->args.attend.shape.units,
                       op->args.attend.work.chunks);
    case PRHS_OP_FINISH: return PRODUCT(op->args.finish.batch.max_seqs, op->args.finish.shape.units, 1, 1);
    case PRHS_OP_AUDIT: return PRODUCT(op->args.audit.batch.max_seqs, op->args.audit.shape.units, 1, 1);
    case PRHS_OP_PREFILL: /* tiles of every sequence's rows: at most one a row */
        return PRODUCT(op->args.prefill.batch.max_rows, op->args.prefill.shape.kv_heads, 1, 1);
    case PRHS_OP_COMBINE:
        return PRODUCT(op->args.combine.batch.max_seqs, op->args.combine.batch.rows, op->args.combine.shape.heads, 1);
    case PRHS_OP_MERGE: return PRODUCT(op->args.merge.rows, op->args.merge.shape.heads, 1, 1);
    case PRHS_OP_GATE: return PRODUCT(op->args.gate.rows, op->args.gate.shape.heads, 1, 1);
    case PRHS_OP_COUNT: break;
    }
#undef PRODUCT
    return 1;
}

size_t prhs_cl_groups(uint64_t grid, const prhs_op *op, const prhs_op *append) {
    /* A persistent grid whose groups stride over the items: its size follows the device, not the capacity. */
    uint64_t items = items_of(op) + (append ? items_of(append) : 0);
    uint64_t groups = items < grid ? items : grid;
    return groups ? (size_t)groups : 1;
}
