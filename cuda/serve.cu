/* SPDX-License-Identifier: Apache-2.0 */
/* attend without tensor cores: any dtype; float32 arithmetic throughout. */
#include "serve_tile.cuh"

template <int T, int L, int HB> struct warp_shared {
    typename tile<T, L, HB, loads<T, HB>()>::scores s;
    ahead_shared<HB * L * 32> ahead;
};

/* The warp's chunks of a window. While scores become weights the next tile's keys come, while values are added its values. */
template <int T, int L, int HB> DEV void serve_window(const prhs_cu_serve &p, const walk &w, const int *prefix, warp_shared<T, L, HB> *sh)
{
    const int LOADS = loads<T, HB>(), TOKENS = tile<T, L, HB, LOADS>::TOKENS, dim = p.attend.shape.dim;
    finder f;
    raw8<T> k[LOADS], v[LOADS];
    float q[HB][8];
    running<HB> x;
    const row_place *at = nullptr;
    const byte *keys = nullptr, *values = nullptr;
    int left = 0, now = 0; /* rows of the tile that is here, and of its segment after it */
    bool more = false, fresh = false;
    finder_begin(p.attend, w, &f);
    do {
        const int n = left, last = now;
        const bool here = more, inside = left > TOKENS;
        if (here) {
            const segment &s = sh->ahead.segments[now];
            if (fresh && s.asks) {
                copy_wait<0>();
                __syncwarp();
                take_queries<L, HB>(p.attend, sh->ahead.queries, s.heads, q);
                __syncwarp();
                f.untaken = false;
            }
            if (fresh && s.begins)
                start(&x);
            score_rows<T, L, HB, LOADS>(k, q, sh->s);
        }
        seek<HB>(p, prefix, &f, &sh->ahead, !inside);
        more = inside || f.state == AHEAD_READY;
        fresh = !inside;
        if (inside) {
            left -= TOKENS;
            at += TOKENS;
        } else if (more) {
            now = take_segment(&f);
            left = sh->ahead.segments[now].tokens;
            at = sh->ahead.at[now];
            keys = sh->ahead.segments[now].keys;
            values = sh->ahead.segments[now].values;
        }
        __syncwarp();
        if (more)
            load_tile<T, L, HB, false>(keys, at, left, dim, k);
        if (here) {
            soften<TOKENS, HB>(&x, sh->s, n);
            __syncwarp();
            add_values<T, L, HB>(&x, v, sh->s);
        }
        if (more)
            load_tile<T, L, HB, true>(values, at, left, dim, v);
        if (here && !inside && sh->ahead.segments[last].ends)
            put_part<L, HB>(p.attend, x, sh->ahead.segments[last], p.mem[PRHS_R_WORK]);
        __syncwarp();
    } while (more);
}

template <int T, int L, int HB> DEV void serve(const prhs_cu_serve &p)
{
    __shared__ warp_shared<T, L, HB> warps[WARPS];
    __shared__ int prefix[TURNS_EACH * THREADS];
    const int *counts = counts_of(p);
    grid_begin(p);
    walk w = chunks_begin(p);
    while (next_window(p, &w, counts, prefix))
        serve_window<T, L, HB>(p, w, prefix, &warps[warp_id()]);
}

#define SERVE(t, T, l, hb, blocks) \
    KERNEL(prhs_serve_##t##_l##l##_h##hb, prhs_cu_serve, THREADS, blocks) { serve<T, l, hb>(p); }
#define SERVE_LANES(t, T, hb, blocks) \
    SERVE(t, T, 8, hb, blocks)        \
    SERVE(t, T, 16, hb, blocks)       \
    SERVE(t, T, 32, hb, blocks)
/* 16-bit rows that heads share are for tensor cores. */
SERVE_LANES(f32, PRHS_K_F32, 1, 3)
SERVE_LANES(f32, PRHS_K_F32, 4, 2)
SERVE_LANES(f16, PRHS_K_F16, 1, 3)
SERVE_LANES(bf16, PRHS_K_BF16, 1, 3)
