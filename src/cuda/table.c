/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which kernel serves an op, with how many threads and how much shared memory, and how many items it has. Data; nothing here calls the
 * driver.
 */
#include "host.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "../../cuda/launch.h"

/* How a kernel's name goes on after prhs_<stem>. */
typedef enum naming {
    PLAIN,   /* nothing */
    SHARING, /* for decode: see choose_sharing() */
    PROMPT   /* for prompts: see choose_prompt() */
} naming;

static const struct {
    const char *file, *stem;
    naming naming;
} kernels[PRHS_OP_COUNT] = {
    [PRHS_OP_APPEND] = { "append", "append", PLAIN },   [PRHS_OP_RANGE_SUM] = { "append", "range_sum", PLAIN },
    [PRHS_OP_TRUNCATE] = { "append", "truncate", PLAIN }, [PRHS_OP_PLAN] = { "plan", "prepare", PLAIN },
    [PRHS_OP_RECALL] = { "recall", "recall", PLAIN },
    [PRHS_OP_SCORE] = { "score", "score", SHARING },    [PRHS_OP_SELECT] = { "select", "retrieve", PLAIN },
    [PRHS_OP_AIM] = { "aim", "aim", PLAIN },
    [PRHS_OP_MOMENTS] = { "moments", "moments", PLAIN }, [PRHS_OP_ATTEND] = { "serve", "serve", SHARING },
    [PRHS_OP_FINISH] = { "finish", "finish", PLAIN },   [PRHS_OP_AUDIT] = { "audit", "audit", PLAIN },
    [PRHS_OP_PREFILL] = { "prefill", "prefill", PROMPT }, [PRHS_OP_COMBINE] = { "merge", "combine", PLAIN },
    [PRHS_OP_MERGE] = { "merge", "merge", PLAIN },      [PRHS_OP_GATE] = { "gate", "gate", PLAIN },
};

static const char *dtype_name(prhs_i32 dtype) { return dtype == PRHS_K_F32 ? "f32" : dtype == PRHS_K_F16 ? "f16" : "bf16"; }

/* Index of the smallest of least, 2 least, 4 least, ... that is not below n; at most `most`. */
static int rung(prhs_i32 n, prhs_i32 least, int most) {
    int i = 0;
    while (i < most && n > least << i)
        i++;
    return i;
}

static bool tensor(const prhs_nv_device *dev, const prhs_op_key *key, const char **why) {
    *why = key->kv_dtype == PRHS_K_F32                    ? "float32 K/V"
           : !(dev->head.info.caps & PRHS_CAP_TENSOR) ? "the tensor cores are masked"
                                                      : "16-bit K/V";
    return key->kv_dtype != PRHS_K_F32 && dev->head.info.caps & PRHS_CAP_TENSOR;
}

/*
 * From how many heads that share their rows the tensor cores, with their rings of rows, are worth it. attend with one head does as much
 * either way, and more blocks fit without rings. The two do not sum in the same order: this is part of the bits and no row of tuning.def.
 */
enum { SERVE_SHARERS = 2, SCORE_SHARERS = 1 };

/*
 * score and serve, whose blocks let h heads of a unit share each K/V row; _m: with moments. On tensor cores: _<K/V dtype>_d<head size,
 * padded>_h<4 or 8; score 1, 4 or 8, with moments 1 or 4>, with rings of rows in shared memory. Else _<K/V dtype>_l<lanes>_h<1, 4>: rows
 * of up to 64, 128, 256 channels take 8, 16, 32 lanes.
 */
static void choose_sharing(const prhs_nv_device *dev, const prhs_op_key *key, prhs_nv_choice *choice, const char **why) {
#define TENSOR(d) { "tensor d" #d " h1", "tensor d" #d " h4", "tensor d" #d " h8" }
#define SIMT(l) { "simt l" #l " h1", "simt l" #l " h4" }
    static const char *const tensor_paths[3][3] = { TENSOR(64), TENSOR(128), TENSOR(256) };
    static const char *const simt_paths[3][2] = { SIMT(8), SIMT(16), SIMT(32) };
#undef TENSOR
#undef SIMT
    if (key->moments == PRHS_NV_COUNTS) {
        snprintf(choice->name, sizeof choice->name, "prhs_count_%s", prhs_op_name(key->kind));
        choice->file = "count";
        choice->counts = true;
        *why = "one kernel serves every legal shape";
        return;
    }
    if (key->moments & PRHS_NV_WHOLE) {
        snprintf(choice->name, sizeof choice->name, "prhs_whole_%s_d%d%s", dtype_name(key->kv_dtype), 64 << rung(key->dim, 64, 2),
                 key->moments & PRHS_K_MOMENTS_KEYS ? "_m" : "");
        choice->file = "whole";
        choice->shared = PRHS_WHOLE_SHARED(8);
        choice->threads = 256; /* or half of them: see whole.c */
        *why = "a head has its own rows";
        return;
    }
    const char *stem = kernels[key->kind].stem, *dtype = dtype_name(key->kv_dtype), *moments = key->moments ? "_m" : "";
    const bool score = key->kind == PRHS_OP_SCORE;
    if (score && key->moments == PRHS_K_MOMENTS_VALUES) { /* score's second kernel */
        snprintf(choice->name, sizeof choice->name, "prhs_values");
        *why = "one kernel serves every legal shape";
        return;
    }
    const int d = rung(key->dim, 64, 2);
    if (tensor(dev, key, why) && key->unit_heads >= (score ? SCORE_SHARERS : SERVE_SHARERS)) {
        static const int heads[3] = { 1, 4, 8 };
        const bool eight = !key->moments && key->unit_heads > 4 && d < 2;
        const int h = eight ? 2 : !score || key->unit_heads > 1;
        snprintf(choice->name, sizeof choice->name, "prhs_%s_%s_d%d_h%d%s", stem, dtype, 64 << d, heads[h], moments);
        choice->file = score ? "score_mma" : "serve_mma";
        choice->path = tensor_paths[d][h];
        choice->shared = score ? 16384u * (2 + (unsigned)d) : 32768u << d;
        if (!score) /* four warps, each with the queries of h heads */
            choice->shared += 4u * (PRHS_SERVE_WARP + (unsigned)(heads[h] * (64 << d)) * (key->q_dtype == PRHS_K_F32 ? 4 : 2));
        *why = score ? "16-bit keys" : "16-bit K/V, and heads that share their rows";
        return;
    }
    /* Without tensor cores heads are scored one by one, and attend one by one to 16-bit rows. */
    const int h = key->unit_heads > 1 && !score && key->kv_dtype == PRHS_K_F32;
    snprintf(choice->name, sizeof choice->name, "prhs_%s_%s_l%d_h%d%s", stem, dtype, 8 << d, h ? 4 : 1, moments);
    choice->path = simt_paths[d][h];
    if (key->kv_dtype != PRHS_K_F32 && dev->head.info.caps & PRHS_CAP_TENSOR)
        *why = "a head has its own rows: float32 arithmetic keeps up with the memory";
}

/*
 * _<K/V dtype>_d<head size, padded>; _<K/V dtype>_simt_d<...> where tensor cores would do, but are masked. Shared memory: a tile of queries,
 * keys and values on their way, as the files' headers add it up.
 */
static void choose_prompt(const prhs_nv_device *dev, const prhs_op_key *key, prhs_nv_choice *choice, const char **why) {
    static const struct {
        unsigned shared, more, lanes; /* more: where q has another dtype than K/V */
    } tiles[2][3] = {
        { { 44048, 0, 64 }, { 76816, 0, 64 }, { 105488, 0, 32 } },
        { { 41088, 16384, 128 }, { 82048, 32768, 128 }, { 82048, 32768, 64 } },
    };
    const bool on_tensor = tensor(dev, key, why);
    const int d = rung(key->dim, 64, 2);
    snprintf(choice->name, sizeof choice->name, "prhs_prefill_%s%s_d%d", dtype_name(key->kv_dtype),
             on_tensor || key->kv_dtype == PRHS_K_F32 ? "" : "_simt", 64 << d);
    choice->file = on_tensor ? "prefill" : "prefill_simt";
    choice->path = on_tensor ? "tensor cores" : "simt";
    choice->shared = tiles[on_tensor][d].shared + (key->q_dtype == key->kv_dtype ? 0 : tiles[on_tensor][d].more);
    choice->lanes = tiles[on_tensor][d].lanes;
}

bool prhs_nv_choose(const prhs_nv_device *dev, const prhs_op_key *key, prhs_nv_choice *choice, const char **why) {
    *choice = (prhs_nv_choice){ .file = kernels[key->kind].file, .path = "simt", .threads = 128 };
    switch (kernels[key->kind].naming) {
    case PLAIN:
        snprintf(choice->name, sizeof choice->name, "prhs_%s", kernels[key->kind].stem);
        *why = "one kernel serves every legal shape";
        break;
    case SHARING: choose_sharing(dev, key, choice, why); break;
    case PROMPT: choose_prompt(dev, key, choice, why); break;
    }
    if (key->kind == PRHS_OP_AIM)
        choice->threads = PRHS_AIM_THREADS;
    if (key->kind == PRHS_OP_SELECT) {
        /* By the launch's capacity: see prhs_nv_size(). */
        choice->threads = PRHS_RETRIEVE_MOST;
        choice->sized = true;
        choice->teams = key->moments & PRHS_NV_TEAM;
        if (choice->teams)
            snprintf(choice->name, sizeof choice->name, "prhs_retrieve_team");
    }
    if (key->kind == PRHS_OP_FINISH)
        choice->shared = PRHS_MOMENT_SHARED((unsigned)key->dim);
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

/*
 * Keys that the slices of the longest middle may keep, as guess_of() in cuda/slices.cuh tells it of each, and some more: shorter middles
 * keep fewer, so that the room decides about none of them as long as it is less than PRHS_RETRIEVE_ROOM and than what the device has.
 */
static prhs_i32 room_of_slices(const prhs_k_select *a) {
    const int run = a->policy.run > 1 ? a->policy.run : 1;
    const float samples = (float)(PRHS_RETRIEVE_SAMPLE(run)), n = (float)(a->batch.max_kv_len / run), keep = (float)(a->policy.k / run);
    const float rank = keep * (samples / n), wanted = rank + 8.0f + 6.0f * sqrtf(rank);
    const float most = (wanted + 8.0f + 6.0f * sqrtf(wanted)) * (n / samples) * 1.01f + 256.0f;
    const prhs_i32 least = PRHS_K_SLICE + 256;
    return most >= (float)PRHS_RETRIEVE_ROOM ? PRHS_RETRIEVE_ROOM : most <= (float)least ? least : ((prhs_i32)most + 255) / 256 * 256;
}

/*
 * attend's items are for warps. Where there are no lists, and so as many items as the rows need, as many warps as items, but at least one block
 * on every multiprocessor.
 */
unsigned prhs_nv_most_blocks(const prhs_nv_choice *choice, const prhs_op *op, unsigned units) {
    if (op->kind != PRHS_OP_ATTEND || op->args.attend.state.list_off != PRHS_NONE)
        return UINT_MAX;
    const uint64_t warps = choice->threads / 32, blocks = (prhs_nv_blocks(choice, op) + warps - 1) / warps;
    return blocks < units ? units : blocks < UINT_MAX ? (unsigned)blocks : UINT_MAX;
}

bool prhs_nv_teams_exist(const prhs_nv_device *dev, const prhs_op_key *key) {
    enum { LEAST = 2 * PRHS_TEAM }; /* multiprocessors; smaller parts of a device may have no place for a team */
    return key->kind == PRHS_OP_SELECT && dev->major == 9 && dev->head.info.caps & PRHS_CAP_SM90 && dev->head.info.compute_units >= LEAST &&
           !dev->refused[prhs_nv_image_of("select")];
}

/* What a team's block needs to hold its part of the longest middle, in whole groups of L_D. */
static prhs_i32 room_of_teams(prhs_i32 n) {
    const prhs_i32 groups = (n + PRHS_K_GROUP - 1) / PRHS_K_GROUP;
    return PRHS_TEAM_ROOM((groups + PRHS_TEAM - 1) / PRHS_TEAM * PRHS_K_GROUP);
}

prhs_i32 prhs_nv_size(const prhs_nv_device *dev, const prhs_nv_choice *choice, const prhs_op *op, unsigned *threads, unsigned *shared) {
    const prhs_k_select *a = &op->args.select;
    const prhs_i32 n = a->batch.max_kv_len;
    const uint64_t items = prhs_nv_blocks(choice, op), units = dev->head.info.compute_units;
    prhs_i32 room = n <= PRHS_K_SLICE ? (n + 163) / 4 * 4 : room_of_slices(a), most = PRHS_RETRIEVE_ROOM;
    if (choice->teams && room < room_of_teams(n))
        room = room_of_teams(n);
    while (most > PRHS_K_SLICE && PRHS_RETRIEVE_SHARED(most) > (prhs_i64)choice->shared)
        most -= 1024; /* the device's, whatever the capacity is */
    room = room < most ? room : most;
    /* Of 64 registers a thread: as many threads as are resident at once. Short middles leave most of them idle. */
    *threads = items <= units ? PRHS_RETRIEVE_MOST : items <= 2 * units || n > PRHS_K_SLICE ? PRHS_RETRIEVE_MOST / 2 : PRHS_RETRIEVE_LEAST;
    while (*threads > PRHS_RETRIEVE_LEAST && *threads * 8 > (unsigned)n)
        *threads /= 2;
    while (n <= PRHS_K_SLICE && *threads < PRHS_RETRIEVE_MOST && *threads * 16 < (unsigned)n) /* what registers hold */
        *threads *= 2;
    *shared = (unsigned)PRHS_RETRIEVE_SHARED(room);
    if (n > PRHS_K_SLICE && *shared > choice->shared / 2) /* it is alone anyway */
        *threads = PRHS_RETRIEVE_MOST;
    return room;
}

int prhs_nv_role(prhs_op_kind kind, int i) {
    enum {
        SEQS = PRHS_R_SEQS, PAGES = PRHS_R_PAGES, Q = PRHS_R_Q, KIN = PRHS_R_KIN, VIN = PRHS_R_VIN, K = PRHS_R_K, V = PRHS_R_V,
        STATE = PRHS_R_STATE, WORK = PRHS_R_WORK, OUT = PRHS_R_OUT, LSE = PRHS_R_LSE, PARTS = PRHS_R_PARTS,
        PARTS_LSE = PRHS_R_PARTS_LSE, QREF = PRHS_R_QREF, MOMENTS_IN = PRHS_R_MOMENTS_IN, DROPPED = PRHS_R_DROPPED,
        SPREADS = PRHS_R_SPREADS, COSINE = PRHS_R_COSINE, DELTA = PRHS_R_DELTA
    };
    static const unsigned char roles[PRHS_OP_COUNT][PRHS_OP_MAX_MEMS] = {
#define X(NAME, name, mems, ...) [PRHS_OP_##NAME] = { __VA_ARGS__ },
#include "../kernels.def"
#undef X
    };
    return roles[kind][i];
}

static uint64_t per_block(uint64_t items, unsigned each) { return (items + each - 1) / each; }

static uint64_t pairs(prhs_i32 a, prhs_i32 b) { return (uint64_t)a * (uint64_t)b; }

/* Tiles of (row, head) lanes, as many as there can be. */
static uint64_t prompt_blocks(const prhs_k_prefill *a, unsigned lanes) {
    return (per_block(pairs(a->batch.max_rows, a->shape.group), lanes) + (uint64_t)a->batch.max_seqs) * (uint64_t)a->shape.kv_heads;
}

/* A thread a unit of score's or attend's. */
static uint64_t count_blocks(const prhs_op *op) {
    const bool scores = op->kind == PRHS_OP_SCORE;
    const prhs_k_batch *batch = scores ? &op->args.score.batch : &op->args.attend.batch;
    return per_block(pairs(batch->max_seqs, scores ? op->args.score.shape.units : op->args.attend.shape.units), 128);
}

uint64_t prhs_nv_blocks(const prhs_nv_choice *choice, const prhs_op *op) {
    if (choice->counts)
        return count_blocks(op);
    switch (op->kind) {
#define BLOCKS(NAME, name, expression) \
    case PRHS_OP_##NAME: { \
        const prhs_k_##name *a = &op->args.name; \
        return expression; \
    }
        BLOCKS(APPEND, append, pairs(a->batch.max_seqs, a->shape.kv_heads) + (uint64_t)a->batch.max_rows)
        BLOCKS(RANGE_SUM, range_sum, pairs(a->batch.max_seqs, a->shape.kv_heads))
        BLOCKS(TRUNCATE, truncate, per_block(pairs(a->batch.max_seqs, a->shape.units), 128))
        BLOCKS(RECALL, recall, pairs(a->batch.max_seqs, a->shape.units))
        BLOCKS(PLAN, plan, per_block(pairs(a->batch.max_seqs, a->shape.units + a->shape.kv_heads), 4))
        BLOCKS(SCORE, score, pairs(a->batch.max_seqs, a->shape.units) * (uint64_t)a->work.score_chunks)
        BLOCKS(AIM, aim, pairs(a->batch.max_seqs, a->shape.units))
        BLOCKS(SELECT, select, pairs(a->batch.max_seqs, a->shape.units) * (choice->teams ? PRHS_TEAM : PRHS_K_SLICES((uint64_t)a->batch.max_kv_len)))
        BLOCKS(MOMENTS, moments, pairs(a->batch.max_seqs, a->shape.heads))
        BLOCKS(ATTEND, attend, pairs(a->batch.max_seqs, a->batch.rows) * pairs(a->shape.units, a->work.chunks))
        BLOCKS(FINISH, finish, pairs(a->batch.max_seqs, a->batch.rows > 1 ? a->shape.units : a->shape.heads))
        BLOCKS(AUDIT, audit, pairs(a->batch.max_seqs, a->shape.units))
        BLOCKS(COMBINE, combine, pairs(a->batch.max_seqs, a->batch.rows) * (uint64_t)a->shape.heads)
        BLOCKS(MERGE, merge, per_block(pairs(a->rows, a->shape.heads), 4))
        BLOCKS(GATE, gate, per_block(pairs(a->rows, a->shape.heads), 4))
        BLOCKS(PREFILL, prefill, prompt_blocks(a, choice->lanes))
#undef BLOCKS
    case PRHS_OP_COUNT: break;
    }
    return 1;
}
