/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which unit-steps are audited: a counter-based generator that the host, OpenCL C and CUDA compute alike, so that the same seed means the
 * same audits everywhere, in any batch and any order of launches. Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
 * easy as 1, 2, 3", SC 2011); its first word decides.
 */
#ifndef PRHS_DRAW_H
#define PRHS_DRAW_H

#if defined(__OPENCL_VERSION__) || defined(__OPENCL_C_VERSION__)
#include "device_types.h"
typedef ulong prhs_u64;
#else
#include <prhs/device_types.h>
typedef uint64_t prhs_u64;
#endif

#ifndef PRHS_DRAW_FN /* how the includer declares functions in a header */
#define PRHS_DRAW_FN static inline
#endif

/* The unit-steps of one layer that are audited. */
typedef struct prhs_k_sample {
    prhs_u32 seed[2];                     /* low word, high word */
    prhs_u32 limit;                       /* audited where the drawn word is at most this: probability (limit + 1) / 2^32 */
    prhs_i32 layer;
} prhs_k_sample;

/* The first word of Philox4x32-10 for a key of two words and a counter of four. */
PRHS_DRAW_FN prhs_u32 prhs_philox(prhs_u32 k0, prhs_u32 k1, prhs_u32 c0, prhs_u32 c1, prhs_u32 c2, prhs_u32 c3)
{
    for (int i = 0; i < 10; i++) {
        const prhs_u64 a = (prhs_u64)0xD2511F53u * c0, b = (prhs_u64)0xCD9E8D57u * c2;
        c0 = (prhs_u32)(b >> 32) ^ c1 ^ k0;
        c1 = (prhs_u32)b;
        c2 = (prhs_u32)(a >> 32) ^ c3 ^ k1;
        c3 = (prhs_u32)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

/* Whether the step at `position` (of row 0) of a unit is audited. */
PRHS_DRAW_FN int prhs_is_drawn(prhs_k_sample s, prhs_i32 slot, prhs_i32 unit, prhs_i32 position)
{
    return s.limit == 0xffffffffu ||
           prhs_philox(s.seed[0], s.seed[1], (prhs_u32)position, (prhs_u32)s.layer, (prhs_u32)unit, (prhs_u32)slot) <= s.limit;
}

#endif
