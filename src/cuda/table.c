/* SPDX-License-Identifier: Apache-2.0 */
/* Which kernel serves an op, with how many threads and how much shared memory, and how many items it has. Data; nothing here calls the driver. */
#include "host.h"

#include <stdio.h>

#include "../../cuda/launch.h"

/* How a kernel's name goes on after prhs_<stem>. */
typedef enum naming {
    PLAIN,   /* nothing */
    LANES,   /* _<K/V dtype>_l<lanes a row>_h<heads a block>, and _m with moments */
    PADDED   /* _<K/V dtype>_d<head size, padded> */
} naming;

static const struct {
    const char *file, *stem;
    naming naming;
    unsigned threads;
} kernels[PRHS_OP_COUNT] = {
    [PRHS_OP_APPEND] = { "append", "append", PLAIN, 128 },
    [PRHS_OP_RANGE_SUM] = { "append", "range_sum", PLAIN, 128 },
    [PRHS_OP_TRUNCATE] = { "append", "truncate", PLAIN, 128 },
    [PRHS_OP_PLAN] = { "plan", "prepare", PLAIN, 128 },
    [PRHS_OP_SCORE] = { "score", "score", LANES, 128 },
    [PRHS_OP_SELECT] = { "select", "retrieve", PLAIN, 512 },
    [PRHS_OP_MOMENTS] = { "select", "moments", PLAIN, 128 },
    [PRHS_OP_ATTEND] = { "serve", "serve", LANES, 128 },
    [PRHS_OP_FINISH] = { "finish", "finish", PLAIN, 128 },
    [PRHS_OP_AUDIT] = { "audit", "audit", PLAIN, 128 },
    [PRHS_OP_PREFILL] = { "prefill", "prefill", PADDED, 128 },
    [PRHS_OP_COMBINE] = { "merge", "combine", PLAIN, 128 },
    [PRHS_OP_MERGE] = { "merge", "merge", PLAIN, 128 },
    [PRHS_OP_GATE] = { "gate", "gate", PLAIN, 128 },
};

static const char *dtype_name(prhs_i32 dtype) { return dtype == PRHS_K_F32 ? "f32" : dtype == PRHS_K_F16 ? "f16" : "bf16"; }

/* Index of the smallest power of two times `least` that is not below n; at most 3. */
static int rung(prhs_i32 n, prhs_i32 least) {
    int i = 0;
    while (i < 3 && n > least << i)
        i++;
    return i;
}

/* Rows of up to 32, 64, 128, 256 channels take 4, 8, 16, 32 lanes; a block serves 1, 2, 4 or 8 heads of a unit together. */
static void choose_lanes(const prhs_op_key *key, const char *stem, prhs_nv_choice *choice, const char **why) {
#define PATHS(l) { "simt l" #l " h1", "simt l" #l " h2", "simt l" #l " h4", "simt l" #l " h8" }
    static const char *const paths[4][4] = { PATHS(4), PATHS(8), PATHS(16), PATHS(32) };
#undef PATHS
    const int l = rung(key->dim, 32), h = rung(key->unit_heads, 1);
    snprintf(choice->name, sizeof choice->name, "prhs_%s_%s_l%d_h%d%s", stem, dtype_name(key->kv_dtype), 4 << l, 1 << h,
             key->moments ? "_m" : "");
    choice->path = paths[l][h];
    *why = "l lanes share a K/V row by its head size; h heads of a unit share it by their number";
}

static void choose_padded(const prhs_nv_device *dev, const prhs_op_key *key, const char *stem, prhs_nv_choice *choice, const char **why) {
    const bool tensor = dev->head.info.caps & PRHS_CAP_TENSOR && key->kv_dtype != PRHS_K_F32;
    snprintf(choice->name, sizeof choice->name, "prhs_%s_%s_d%d", stem, dtype_name(key->kv_dtype), 64 << rung(key->dim, 64));
    choice->path = tensor ? "tensor cores" : "simt";
    *why = tensor ? "16-bit K/V" : key->kv_dtype == PRHS_K_F32 ? "float32 K/V" : "the tensor cores are masked";
}

bool prhs_nv_choose(const prhs_nv_device *dev, const prhs_op_key *key, prhs_nv_choice *choice, const char **why) {
    *choice = (prhs_nv_choice){ .file = kernels[key->kind].file, .path = "simt", .threads = kernels[key->kind].threads };
    const char *stem = kernels[key->kind].stem;
    switch (kernels[key->kind].naming) {
    case PLAIN:
        snprintf(choice->name, sizeof choice->name, "prhs_%s", stem);
        *why = "the one kernel there is";
        break;
    case LANES: choose_lanes(key, stem, choice, why); break;
    case PADDED: choose_padded(dev, key, stem, choice, why); break;
    }
    if (prhs_nv_image_of(choice->file) < 0) {
        *why = "this build has no CUDA kernel for it";
        return false;
    }
    if (choice->shared > (unsigned)dev->shared_most) {
        *why = "the device has too little shared memory a block";
        return false;
    }
    return true;
}

int prhs_nv_role(prhs_op_kind kind, int i) {
    enum {
        SEQS = PRHS_R_SEQS, PAGES = PRHS_R_PAGES, Q = PRHS_R_Q, KIN = PRHS_R_KIN, VIN = PRHS_R_VIN, K = PRHS_R_K, V = PRHS_R_V,
        STATE = PRHS_R_STATE, WORK = PRHS_R_WORK, OUT = PRHS_R_OUT, LSE = PRHS_R_LSE, PARTS = PRHS_R_PARTS,
        PARTS_LSE = PRHS_R_PARTS_LSE, QREF = PRHS_R_QREF, MOMENTS_IN = PRHS_R_MOMENTS_IN, DROPPED = PRHS_R_DROPPED,
        COSINE = PRHS_R_COSINE, DELTA = PRHS_R_DELTA
    };
    static const unsigned char roles[PRHS_OP_COUNT][PRHS_OP_MAX_MEMS] = {
#define X(NAME, name, mems, ...) [PRHS_OP_##NAME] = { __VA_ARGS__ },
#include "../kernels.def"
#undef X
    };
    return roles[kind][i];
}

static uint64_t product(prhs_i32 a, prhs_i32 b, prhs_i32 c, prhs_i32 d) { return (uint64_t)a * (uint64_t)b * (uint64_t)c * (uint64_t)d; }

static prhs_i32 blocks_of(const prhs_k_shape *shape) { return shape->units * ((shape->unit_heads + 7) / 8); }

static uint64_t prefill_items(const prhs_k_prefill *a) {
    const prhs_i32 tile = a->tile > 0 ? a->tile : 1;
    return product((a->batch.max_rows + tile - 1) / tile + a->batch.max_seqs, a->shape.heads, 1, 1);
}

uint64_t prhs_nv_items(const prhs_op *op) {
    switch (op->kind) {
#define ITEMS(NAME, name, ...) \
    case PRHS_OP_##NAME: { \
        const prhs_k_##name *a = &op->args.name; \
        return product(__VA_ARGS__); \
    }
        ITEMS(APPEND, append, a->batch.max_seqs, a->shape.kv_heads, 1, 1)
        ITEMS(RANGE_SUM, range_sum, a->batch.max_seqs, a->shape.kv_heads, 1, 1)
        ITEMS(TRUNCATE, truncate, a->batch.max_seqs, a->shape.units, 1, 1)
        ITEMS(PLAN, plan, a->batch.max_seqs, a->shape.units, 1, 1)
        ITEMS(SCORE, score, a->batch.max_seqs, blocks_of(&a->shape), a->work.score_chunks, 1)
        ITEMS(SELECT, select, a->batch.max_seqs, a->shape.units, 1, 1)
        ITEMS(MOMENTS, moments, a->batch.max_seqs, a->shape.heads, 1, 1)
        ITEMS(ATTEND, attend, a->batch.max_seqs, a->batch.rows, blocks_of(&a->shape), a->work.chunks)
        ITEMS(FINISH, finish, a->batch.max_seqs, a->shape.units, 1, 1)
        ITEMS(AUDIT, audit, a->batch.max_seqs, a->shape.units, 1, 1)
        ITEMS(COMBINE, combine, a->batch.max_seqs, a->batch.rows, a->shape.heads, 1)
        ITEMS(MERGE, merge, a->rows, a->shape.heads, 1, 1)
        ITEMS(GATE, gate, a->rows, a->shape.heads, 1, 1)
#undef ITEMS
    case PRHS_OP_PREFILL: return prefill_items(&op->args.prefill);
    case PRHS_OP_COUNT: break;
    }
    return 1;
}
