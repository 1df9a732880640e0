/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loops, compiled once per instruction set from lanes_body.h; a device picks a table when it is opened and keeps it, so
 * that its bits never change. Rows of floats are padded with zeros to PRHS_CPU_PAD(dim) elements. Every result of a row or a lane
 * is computed by the same sequence of operations, whatever else is in the call.
 */
#ifndef PRHS_CPU_LANES_H
#define PRHS_CPU_LANES_H

#include <stdint.h>

#define PRHS_CPU_TILE 64 /* K/V rows, and prompt query lanes, that are handled together */
#define PRHS_CPU_PAD(dim) (((dim) + 15) & ~15)
#define PRHS_CPU_LOWEST (-3e38f) /* where running maxima start: finite, so that -inf - max is no NaN */

/* K or V rows of a tile: TILE pointers are readable (the last row repeats), n of them count. */
typedef struct prhs_cpu_tile {
    const char *row[PRHS_CPU_TILE];
    int n, dtype, dim;
} prhs_cpu_tile;

/* A running softmax: the maximum, the sum relative to it, and the factor that the last tile put on what came before. */
typedef struct prhs_cpu_norm {
    float max, sum, corr;
} prhs_cpu_norm;

/* What prompt query lanes may see: [0, sinks) and [start, pos]. */
typedef struct prhs_cpu_mask {
    int sinks, start[PRHS_CPU_TILE], pos[PRHS_CPU_TILE];
} prhs_cpu_mask;

typedef struct prhs_cpu_lanes {
    const char *name;
    /* s[j*TILE + r] = scale * q_j . k_r. `ahead` (NULL, or two tiles' pointers or NULL): rows that will be read next. */
    void (*dot)(const prhs_cpu_tile *k, const float *q, int nq, float scale, float *s, const prhs_cpu_tile *const *ahead);
    /* s -> exp(s - max), updating the norm; NaN and +inf make the sum NaN. The tail of s up to TILE is overwritten. */
    void (*soften)(float *s, int n, prhs_cpu_norm *norm);
    /* acc_j = acc_j * corr_j + sum_r p[j*pq + r*pr] * v_r */
    void (*axpy)(const prhs_cpu_tile *v, const float *p, int pq, int pr, int nq, const float *corr, float *acc);
    /* m_j[0], m_j[1] = themselves * corr_j + sum_r w[j*TILE + r] * (k_r - c), ... * (k_r - c)^2 */
    void (*moments)(const prhs_cpu_tile *k, const float *w, int nq, const float *corr, const float *c, float *m);
    /* Rows as floats, padded. */
    void (*expand)(const prhs_cpu_tile *t, float *out);
    /* s[r*TILE + lane] = sum_d k[r][d] * qt[d*TILE + lane] for all TILE rows of k; `lanes` is a multiple of 16. */
    void (*qk)(const float *k, const float *qt, int lanes, int dim, float *s);
    /* The same as soften, per lane, of scale * s; max is that of s itself; key r has position first + r; mask NULL: everything is seen. */
    void (*soften_lanes)(float *s, int lanes, float scale, int first, const prhs_cpu_mask *mask, float *max, float *sum,
                         float *corr);
    /* x -> exp(x), n elements; at most 1.5 ulp off. */
    void (*exps)(float *x, int n);
} prhs_cpu_lanes;

extern const prhs_cpu_lanes prhs_cpu_lanes_base, prhs_cpu_lanes_avx2, prhs_cpu_lanes_avx512;

/* The PRHS_CAP_* of this processor that a table is made for. */
uint32_t prhs_cpu_lanes_caps(void);
/* The best table for these capabilities. */
const prhs_cpu_lanes *prhs_cpu_lanes_pick(uint32_t caps);

#endif
