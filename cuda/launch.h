/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel is launched with: one struct by value, the same for the host (src/cuda/), nvcc and the emulator of the tests. Buffers come
 * as base addresses indexed by role; the offsets in the op's own arguments count from there.
 */
#ifndef PRHS_CUDA_LAUNCH_H
#define PRHS_CUDA_LAUNCH_H

#ifdef DEV
#define PRHS_DRAW_FN DEV
#endif
#include "kargs.h"

/* The roles of src/kernels.def, as indices into `mem`. */
typedef enum prhs_role {
    PRHS_R_SEQS, PRHS_R_PAGES, PRHS_R_Q, PRHS_R_KIN, PRHS_R_VIN, PRHS_R_K, PRHS_R_V, PRHS_R_STATE, PRHS_R_WORK, PRHS_R_OUT, PRHS_R_LSE,
    PRHS_R_PARTS, PRHS_R_PARTS_LSE, PRHS_R_QREF, PRHS_R_MOMENTS_IN, PRHS_R_DROPPED, PRHS_R_SPREADS, PRHS_R_COSINE, PRHS_R_DELTA,
    PRHS_ROLES
} prhs_role;

/* prhs_cu_<op>: the launch struct of every op. */
#define X(NAME, name, ...)                \
    typedef struct prhs_cu_##name {       \
        unsigned char *mem[PRHS_ROLES];   \
        prhs_k_##name a;                  \
    } prhs_cu_##name;
#include "kernels.def"
#undef X

/* To divide by `divisor` >= 1: inverse = floor((2^32 - 1) / divisor). */
typedef struct prhs_quotient {
    prhs_i32 divisor;
    prhs_u32 inverse;
} prhs_quotient;

/* What happens to a decode row besides that its K and V are stored as they come: anything, nothing, or that V is added to the sums. */
typedef enum prhs_copies { PRHS_COPIES_NOT, PRHS_COPIES_ONLY, PRHS_COPIES_SUM } prhs_copies;

/* append + plan, or plan alone (appends 0). */
typedef struct prhs_cu_prepare {
    unsigned char *mem[PRHS_ROLES];
    prhs_k_append append;
    prhs_k_plan plan;
    prhs_quotient by_units, by_kv_heads, by_block;
    prhs_i32 appends, copies;             /* how decode rows that come alone are appended: see prhs_copies */
} prhs_cu_prepare;

/* finish. */
typedef struct prhs_cu_close {
    unsigned char *mem[PRHS_ROLES];
    prhs_k_finish a;
    prhs_k_moments moments;
    prhs_i32 has_moments, reserved;       /* of the heads that have retrieved in this step */
    prhs_quotient by_heads, by_unit_heads;
} prhs_cu_close;

/* attend. */
typedef struct prhs_cu_serve {
    unsigned char *mem[PRHS_ROLES];
    prhs_k_attend attend;
    prhs_i32 pass, reserved;              /* attends before this one in the step: which counts are read */
} prhs_cu_serve;

/* Threads of prhs_aim. */
#define PRHS_AIM_THREADS 512

/* What a warp of the rings of attend has in dynamic shared memory besides its rows and its queries. */
#define PRHS_SERVE_WARP 1248

/* select. */
typedef struct prhs_cu_retrieve {
    unsigned char *mem[PRHS_ROLES];
    prhs_k_select select;
    prhs_i32 pass;                        /* attends before it in the step: the next one's counts are written */
    prhs_i32 room;                        /* keys that shared memory holds; by the capacity up to PRHS_K_SLICE, else by the device */
} prhs_cu_retrieve;

/*
 * A decode step of which a block takes each unit, of one query head and with rows of its own, from the plan to the output. `batch` is the
 * caller's in all of it.
 */
typedef struct prhs_cu_whole {
    unsigned char *mem[PRHS_ROLES];
    prhs_k_kv kv;
    prhs_k_batch batch;
    prhs_k_shape shape;
    prhs_k_rows q, k, v, out;
    prhs_i64 lse_off;
    prhs_k_state state;
    prhs_k_work work;
    prhs_k_policy policy;
    prhs_quotient by_units, by_block;
    prhs_i32 appends, copies, write, validate; /* as of prhs_cu_prepare and prhs_k_append */
    /* what only units that retrieve look at */
    prhs_cu_score score;
    prhs_cu_retrieve retrieve;
    prhs_k_moments moments;
} prhs_cu_whole;

/* Its dynamic shared memory: a warp's ring, places of rows, a tile's scores a warp. */
#define PRHS_WHOLE_RING 12288 /* bytes a warp */
#define PRHS_WHOLE_PLACES(warps) ((warps) > 4 ? 1600 : 640)
#define PRHS_WHOLE_SHARED(warps) ((warps) * (PRHS_WHOLE_RING + 128) + 8 * PRHS_WHOLE_PLACES(warps))

/*
 * prhs_retrieve's dynamic shared memory, in words, for `room` keys: three bitmaps of so many bits, and the keys, which are looked at a few
 * at a time, past the last one too.
 */
#define PRHS_RETRIEVE_MOST 1024     /* threads */
#define PRHS_RETRIEVE_LEAST 256
#define PRHS_TEAM 8                 /* blocks that take a unit together, where the hardware can start them so */
#define PRHS_RETRIEVE_ROOM 49152    /* keys near the threshold of a sliced middle, at most */
#define PRHS_RETRIEVE_SAMPLE(run) ((2048 / (run) > 64 ? 2048 / (run) : 64) & ~1) /* keys, in pairs of neighbours */
#define PRHS_RETRIEVE_PAST 512
#define PRHS_TEAM_FEW 1024
#define PRHS_TEAM_ROOM(held) (4 * PRHS_TEAM_FEW + (held)) /* words of it in which a team's block holds so many keys */
#define PRHS_RETRIEVE_BITS(room) (((room) + 255) / 128 * 4)
#define PRHS_RETRIEVE_WORDS(room) (3 * PRHS_RETRIEVE_BITS(room) + (room) + PRHS_RETRIEVE_PAST)
#define PRHS_RETRIEVE_SHARED(room) (4 * PRHS_RETRIEVE_WORDS(room))

/* Scratch of the moments of a head of `dim` channels, in bytes. */
#define PRHS_MOMENT_SLICES 16
#define PRHS_MOMENT_SHARED(dim) (PRHS_MOMENT_SLICES * 2 * (dim) * 4)

#endif
