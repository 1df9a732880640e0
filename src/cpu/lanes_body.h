/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code of lanes.h over vectors of W floats (GNU C vector extensions: gcc and clang), included by one lanes_*.c per
 * instruction set with W and LANES (the table's name) defined. No header that holds inline code may be included below the target
 * pragma.
 */
#define T PRHS_CPU_TILE
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef int16_t vh __attribute__((vector_size(2 * W)));

#if W == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif W == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#endif
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vi){ __VA_ARGS__ })
#endif

INLINE vf ld(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void st(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf splat(float x) { return x - (vf){ 0 }; }

/* mask ? a : b, lane by lane. */
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* W signed 16-bit integers as 32-bit ones, and W halves as floats, where the instruction set has nothing of its own for them. */
#ifndef WIDEN
INLINE vi widen(const char *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vi);
}

/* The exponent is rebiased by a multiplication, which also normalises subnormals. */
INLINE vf halves(const char *p) {
    vi x = (widen(p) << 13) & (int32_t)0x8fffe000;
    vi special = ((x & 0x0fffe000) > 0x0f7fffff) & 0x7f800000;
    return (vf)((vi)((vf)x * 0x1p112f) | special);
}
#define WIDEN widen
#define HALVES halves
#endif

/* Channels d ... d+W-1 of a row as floats. */
INLINE vf load(int dtype, const char *row, int d) {
    if (dtype == PRHS_K_F32)
        return ld((const float *)(const void *)row + d);
    if (dtype == PRHS_K_BF16)
        return (vf)(WIDEN(row + 2 * (size_t)d) << 16);
    return HALVES(row + 2 * (size_t)d);
}

/* The same at the end of a row whose length W does not divide: its last 8, then zeros. */
INLINE vf load_end(int dtype, const char *row, int d) {
    char tail[4 * W] = { 0 };
    size_t size = dtype == PRHS_K_F32 ? 4 : 2;
    memcpy(tail, row + (size_t)d * size, 8 * size);
    return load(dtype, tail, 0);
}

INLINE vf load_any(int dtype, const char *row, int d, int dim) {
    return W <= 8 || d + W <= dim ? load(dtype, row, d) : load_end(dtype, row, d);
}

/* e^x: x = n ln 2 + r, a polynomial in r, 2^n in two factors so that the result may be subnormal or overflow. NaN stays. */
INLINE vf exp_lanes(vf x) {
    x = choose(x < -110.0f, splat(-110.0f), x);
    x = choose(x > 100.0f, splat(100.0f), x);
    vf shifted = x * 1.44269504f + 12582912.0f;
    vi n = (vi)shifted - 0x4b400000;
    vf f = shifted - 12582912.0f;
    vf r = x - f * 0.693359375f + f * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vi half = n >> 1;
    return p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
}

/* Lane i of the result is the sum over the lanes of p[i]. */
INLINE vf sum_across(vf *p) {
    for (int m = W / 2; m >= 1; m /= 2)
        for (int i = 0; i < m; i++)
            p[i] = PICK(p[2 * i], p[2 * i + 1], EVEN) + PICK(p[2 * i], p[2 * i + 1], ODD);
    return p[0];
}

INLINE void prefetch_row(const char *row, int bytes) {
    for (int i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i);
}

INLINE void dot_block(int dtype, int nq, const prhs_cpu_tile *k, const float *q, float scale, float *s,
                      const prhs_cpu_tile *const *ahead) {
    int dim = k->dim, pad = PRHS_CPU_PAD(dim), bytes = dim * (dtype == PRHS_K_F32 ? 4 : 2);
    for (int r = 0; r < k->n; r += W) {
        vf part[4][W];
        for (int i = 0; i < W; i++) {
            const char *row = k->row[r + i];
            vf acc[4] = { { 0 } };
            if (ahead && ahead[0])
                prefetch_row(ahead[0]->row[r + i], bytes);
            if (ahead && ahead[1])
                prefetch_row(ahead[1]->row[r + i], bytes);
            for (int d = 0; d < dim; d += W) {
                vf x = load_any(dtype, row, d, dim);
                for (int j = 0; j < nq; j++)
                    acc[j] += x * ld(q + j * pad + d);
            }
            for (int j = 0; j < nq; j++)
                part[j][i] = acc[j];
        }
        for (int j = 0; j < nq; j++)
            st(s + j * T + r, sum_across(part[j]) * scale);
    }
}

INLINE void axpy_block(int dtype, int nq, int nv, const prhs_cpu_tile *v, int d, const float *p, int pq, int pr,
                       const float *corr, float *acc) {
    int pad = PRHS_CPU_PAD(v->dim);
    vf sum[4][2] = { { { 0 } } };
    for (int r = 0; r < v->n; r++) {
        vf x[2] = { load_any(dtype, v->row[r], d, v->dim), { 0 } };
        if (nv == 2)
            x[1] = load_any(dtype, v->row[r], d + W, v->dim);
        for (int j = 0; j < nq; j++) {
            vf w = splat(p[j * pq + r * pr]);
            for (int i = 0; i < nv; i++)
                sum[j][i] += w * x[i];
        }
    }
    for (int j = 0; j < nq; j++)
        for (int i = 0; i < nv; i++) {
            float *a = acc + j * pad + d + i * W;
            st(a, ld(a) * corr[j] + sum[j][i]);
        }
}

INLINE void axpy_rows(int dtype, int nq, const prhs_cpu_tile *v, const float *p, int pq, int pr, const float *corr, float *acc) {
    int d = 0;
    for (; d + W < v->dim; d += 2 * W)
        axpy_block(dtype, nq, 2, v, d, p, pq, pr, corr, acc);
    if (d < v->dim)
        axpy_block(dtype, nq, 1, v, d, p, pq, pr, corr, acc);
}

INLINE void moments_block(int dtype, int nq, const prhs_cpu_tile *k, const float *w, const float *corr, const float *c,
                          float *m) {
    int pad = PRHS_CPU_PAD(k->dim);
    for (int d = 0; d < k->dim; d += W) {
        vf sum[4][2] = { { { 0 } } }, pivot = ld(c + d);
        for (int r = 0; r < k->n; r++) {
            vf x = load_any(dtype, k->row[r], d, k->dim) - pivot, xx = x * x;
            for (int j = 0; j < nq; j++) {
                vf weight = splat(w[j * T + r]);
                sum[j][0] += weight * x;
                sum[j][1] += weight * xx;
            }
        }
        for (int j = 0; j < nq; j++)
            for (int i = 0; i < 2; i++) {
                float *a = m + (2 * j + i) * pad + d;
                st(a, ld(a) * corr[j] + sum[j][i]);
            }
    }
}

/* CALL(dtype, nq) with both as constants, for query rows in fours: one copy of the loop for each. */
#define BY_NQ(CALL, dtype, nq)                                                                                                   \
    switch (nq) {                                                                                                                \
    case 1: CALL(dtype, 1); break;                                                                                               \
    case 2: CALL(dtype, 2); break;                                                                                               \
    case 3: CALL(dtype, 3); break;                                                                                               \
    default: CALL(dtype, 4); break;                                                                                              \
    }
#define BY_DTYPE(CALL, dtype, nq)                                                                                                \
    switch (dtype) {                                                                                                             \
    case PRHS_K_F32: BY_NQ(CALL, PRHS_K_F32, nq) break;                                                                          \
    case PRHS_K_F16: BY_NQ(CALL, PRHS_K_F16, nq) break;                                                                          \
    default: BY_NQ(CALL, PRHS_K_BF16, nq) break;                                                                                 \
    }

static void lanes_dot(const prhs_cpu_tile *k, const float *q, int nq, float scale, float *s, const prhs_cpu_tile *const *ahead) {
    for (int j = 0; j < nq; j += 4) {
#define CALL(dtype, n) dot_block(dtype, n, k, q + j * PRHS_CPU_PAD(k->dim), scale, s + j * T, ahead)
        BY_DTYPE(CALL, k->dtype, nq - j)
#undef CALL
        ahead = NULL;
    }
}

static void lanes_axpy(const prhs_cpu_tile *v, const float *p, int pq, int pr, int nq, const float *corr, float *acc) {
    for (int j = 0; j < nq; j += 4) {
#define CALL(dtype, n) axpy_rows(dtype, n, v, p + j * pq, pq, pr, corr + j, acc + j * PRHS_CPU_PAD(v->dim))
        BY_DTYPE(CALL, v->dtype, nq - j)
#undef CALL
    }
}

static void lanes_moments(const prhs_cpu_tile *k, const float *w, int nq, const float *corr, const float *c, float *m) {
    for (int j = 0; j < nq; j += 4) {
#define CALL(dtype, n) moments_block(dtype, n, k, w + j * T, corr + j, c, m + 2 * j * PRHS_CPU_PAD(k->dim))
        BY_DTYPE(CALL, k->dtype, nq - j)
#undef CALL
    }
}

static void lanes_soften(float *s, int n, prhs_cpu_norm *norm) {
    float lane[W], max = norm->max, sum = 0.0f;
    vf top = splat(norm->max), total = { 0 };
    for (int i = n; i % W; i++)
        s[i] = -INFINITY;
    for (int i = 0; i < n; i += W) {
        vf x = ld(s + i);
        top = choose(x > top, x, top);
    }
    st(lane, top);
    for (int i = 0; i < W; i++)
        max = lane[i] > max ? lane[i] : max;
    for (int i = 0; i < n; i += W) {
        vf p = exp_lanes(ld(s + i) - max);
        st(s + i, p);
        total += p;
    }
    st(lane, total);
    for (int i = 0; i < W; i++)
        sum += lane[i];
    st(lane, exp_lanes(splat(norm->max - max)));
    norm->corr = norm->max == max ? 1.0f : lane[0];
    norm->sum = norm->sum * norm->corr + sum;
    norm->max = max;
}

static void lanes_expand(const prhs_cpu_tile *t, float *out) {
    int pad = PRHS_CPU_PAD(t->dim);
    for (int r = 0; r < t->n; r++)
        for (int d = 0; d < pad; d += W) {
            vf x = { 0 };
            if (d < t->dim) {
#define CALL(dtype, n) x = load_any(dtype, t->row[r], d, t->dim)
                BY_DTYPE(CALL, t->dtype, 1)
#undef CALL
            }
            st(out + r * pad + d, x);
        }
}

#define KEYS (W == 16 ? 8 : 4) /* that the registers hold, times two vectors of lanes */

/* Channels [d, d + 8) of KEYS dot products; short chains of additions, which `first` begins, keep the error down. */
INLINE void qk_block(int nv, bool first, const float *k, const float *qt, int pad, int d, float *s) {
    vf acc[8][2] = { { { 0 } } };
    for (int end = d + 8; d < end; d++)
        for (int i = 0; i < KEYS; i++) {
            vf x = splat(k[i * pad + d]);
            for (int v = 0; v < nv; v++)
                acc[i][v] += x * ld(qt + d * T + v * W);
        }
    for (int i = 0; i < KEYS; i++)
        for (int v = 0; v < nv; v++) {
            float *to = s + i * T + v * W;
            st(to, first ? acc[i][v] : ld(to) + acc[i][v]);
        }
}

static void lanes_qk(const float *k, const float *qt, int lanes, int dim, float *s) {
    int pad = PRHS_CPU_PAD(dim);
    for (int r = 0; r < T; r += KEYS)
        for (int d = 0; d < dim; d += 8) {
            int l = 0;
            for (; l + W < lanes; l += 2 * W)
                qk_block(2, d == 0, k + r * pad, qt + l, pad, d, s + r * T + l);
            if (l < lanes)
                qk_block(1, d == 0, k + r * pad, qt + l, pad, d, s + r * T + l);
        }
}

INLINE vf seen(vf s, int j, int l, const prhs_cpu_mask *mask) {
    vi start, pos;
    memcpy(&start, mask->start + l, sizeof start);
    memcpy(&pos, mask->pos + l, sizeof pos);
    vi in = (pos >= j) & ((start <= j) | -(int32_t)(j < mask->sinks));
    return choose(in, s, splat(-INFINITY));
}

static void lanes_soften_lanes(float *s, int lanes, float scale, int first, const prhs_cpu_mask *mask, float *max, float *sum,
                               float *corr) {
    for (int l = 0; l < lanes; l += W) {
        vf old = ld(max + l), top = old, total = { 0 };
        for (int r = 0; r < T; r++) {
            vf x = ld(s + r * T + l);
            if (mask) {
                x = seen(x, first + r, l, mask);
                st(s + r * T + l, x);
            }
            top = choose(x > top, x, top);
        }
        for (int r = 0; r < T; r++) {
            vf p = exp_lanes((ld(s + r * T + l) - top) * scale);
            st(s + r * T + l, p);
            total += p;
        }
        vf c = choose(old == top, splat(1.0f), exp_lanes((old - top) * scale));
        st(corr + l, c);
        st(sum + l, ld(sum + l) * c + total);
        st(max + l, top);
    }
}

static void lanes_exps(float *x, int n) {
    int i = 0;
    for (; i + W <= n; i += W)
        st(x + i, exp_lanes(ld(x + i)));
    if (i < n) {
        float tail[W] = { 0 };
        memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);
        st(tail, exp_lanes(ld(tail)));
        memcpy(x + i, tail, (size_t)(n - i) * sizeof *x);
    }
}

const prhs_cpu_lanes LANES = {
    LANES_NAME, lanes_dot, lanes_soften, lanes_axpy, lanes_moments, lanes_expand, lanes_qk, lanes_soften_lanes, lanes_exps,
};
