/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill in float32 arithmetic: for float32 K/V, and for 16-bit K/V where tensor cores are not to be used. A block takes a tile of
 * lanes and walks through blocks of 32 keys, cut at absolute positions. Thread (ty, tx) of 16 x 8 computes the scores of its 4 lanes
 * (D > 128: 2) and every eighth key, then its lanes' output in every eighth group of four channels. Threads: 128. Dynamic shared memory,
 * bytes: d64: 43536, d128: 76304, d256: 103952. Grid: as in prefill.cu, with 64 lanes a tile, for d256 32.
 *
 * Values that are not finite are zeros in the products, since 0 * NaN is NaN, and are added afterwards to the lanes that weigh them.
 */
#include "prefill.cuh"

#define KEYS 32
#define FOLD 4 /* blocks of keys whose sums are gathered before they are added to the rest: errors do not grow with their number */

template <int T, int DP> struct geometry {
    static constexpr int dtype = T;
    static constexpr int own = DP > 128 ? 2 : 4, lanes = 16 * own;      /* lanes of a thread, of the tile */
    static constexpr int words = DP / 32;                                /* groups of four channels of a thread */
    static constexpr int row = DP + 4, v_row = DP, weight_row = KEYS + 4; /* floats; padded where eight rows are read at once */
    static constexpr int q_at = 0, k_at = lanes * row, v_at = k_at + KEYS * row, weight_at = v_at + KEYS * v_row,
                         odd_at = weight_at + lanes * weight_row;
    static constexpr int pieces = DP / 8;
};

/*
 * What a lane has seen so far, this thread's channels of it, sums over this thread's keys. top is of q.k, not scaled: near it the
 * difference is exact. The folded blocks are in `all`, relative to `all_top`.
 */
template <class G> struct running {
    float part[G::own][G::words * 4], all[G::own][G::words * 4];
    float top[G::own], sum[G::own], all_top[G::own], all_sum[G::own];
};

template <class G> DEV void clear_running(running<G> &x)
{
#pragma unroll
    for (int r = 0; r < G::own; r++) {
#pragma unroll
        for (int i = 0; i < G::words * 4; i++)
            x.part[r][i] = x.all[r][i] = 0.0f;
        x.top[r] = x.all_top[r] = LOWEST;
        x.sum[r] = x.all_sum[r] = 0.0f;
    }
}

/* Changes no bit of a lane for which nothing was added since the last time. */
template <class G> DEV void fold(running<G> &x, float scale)
{
#pragma unroll
    for (int r = 0; r < G::own; r++) {
        const float factor = expf((x.all_top[r] - x.top[r]) * scale);
        x.all_sum[r] = x.all_sum[r] * factor + x.sum[r];
        x.all_top[r] = x.top[r];
        x.sum[r] = 0.0f;
#pragma unroll
        for (int i = 0; i < G::words * 4; i++) {
            x.all[r][i] = x.all[r][i] * factor + x.part[r][i];
            x.part[r][i] = 0.0f;
        }
    }
}

template <class G> DEV void load_queries(const prhs_cu_prefill &p, const tile &t, float *q)
{
    for (int i = threadIdx.x; i < G::lanes * G::v_row; i += PREFILL_THREADS) {
        const int lane = i / G::v_row, d = i % G::v_row;
        const bool real = lane < t.lanes && d < p.a.shape.dim;
        q[lane * G::row + d] =
            real ? load_one(p.a.q.dtype, row_at(p.a.q, p.mem[PRHS_R_Q], lane_row(p.a, t, lane), lane_head(p.a, t, lane)), d) : 0.0f;
    }
}

DEV bool finite(float x) { return fabsf(x) <= 3.402823466e38f; }

/* Keys and values of a block as floats, zeros past the tile's last row. A key whose value is not finite gets its bit in `odd`. */
template <class G> DEV void load_block(const prhs_cu_prefill &p, const tile &t, int key, int last, float *shared, unsigned *odd)
{
    const int *pages = pages_of(p.a.batch, p.mem[PRHS_R_PAGES], t.b);
    for (int i = threadIdx.x; i < KEYS * G::pieces; i += PREFILL_THREADS) {
        const int j = i / G::pieces, d = i % G::pieces * 8;
        float k[8] = { 0 }, v[8] = { 0 };
        if (key + j <= last && d < p.a.shape.dim) {
            const place at = place_of(p.a.kv, pages, key + j, t.hk);
            floats_of<G::dtype>(load_raw<G::dtype>(p.mem[PRHS_R_K] + at.k + d * element(G::dtype)), k);
            floats_of<G::dtype>(load_raw<G::dtype>(p.mem[PRHS_R_V] + at.v + d * element(G::dtype)), v);
        }
        bool all_finite = true;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            all_finite = all_finite && finite(v[e]);
            v[e] = finite(v[e]) ? v[e] : 0.0f;
        }
        if (!all_finite)
            atomicOr(odd, 1u << j);
        float4 *to_k = (float4 *)(shared + G::k_at + j * G::row + d), *to_v = (float4 *)(shared + G::v_at + j * G::v_row + d);
        to_k[0] = make_float4(k[0], k[1], k[2], k[3]);
        to_k[1] = make_float4(k[4], k[5], k[6], k[7]);
        to_v[0] = make_float4(v[0], v[1], v[2], v[3]);
        to_v[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

/*
 * q.k of the thread's lanes and keys, in sums of 4, then 16; what is lost where these are added up is in `low`: a rounded score of some size
 * is off by more than a weight may be.
 */
template <class G> DEV void dots(const float *shared, int dim, float s[G::own][4], float low[G::own][4])
{
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    const float *q = shared + G::q_at + ty * G::own * G::row, *k = shared + G::k_at + tx * G::row;
#pragma unroll
    for (int r = 0; r < G::own; r++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[r][i] = low[r][i] = 0.0f;
#pragma unroll 1
    for (int c = 0; c < dim; c += 16) {
        float sum[G::own][4] = { { 0 } };
#pragma unroll
        for (int d = c; d < c + 16; d += 4) {
            float4 a[G::own];
#pragma unroll
            for (int r = 0; r < G::own; r++)
                a[r] = *(const float4 *)(q + r * G::row + d);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float4 b = *(const float4 *)(k + i * 8 * G::row + d);
#pragma unroll
                for (int r = 0; r < G::own; r++)
                    sum[r][i] += fmaf(a[r].w, b.w, fmaf(a[r].z, b.z, fmaf(a[r].y, b.y, a[r].x * b.x)));
            }
        }
#pragma unroll
        for (int r = 0; r < G::own; r++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float before = s[r][i], after = before + sum[r][i], back = after - before;
                low[r][i] += (before - (after - back)) + (sum[r][i] - back);
                s[r][i] = after;
            }
    }
#pragma unroll
    for (int r = 0; r < G::own; r++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            low[r][i] = finite(low[r][i]) ? low[r][i] : 0.0f;
}

/*
 * Scores become weights relative to the lane's maximum, in shared memory; what was gathered since the last fold is brought to a new one. A
 * token that weighs nothing because it is hidden or its score is -inf is told from one whose weight vanishes by the sign of its 0.
 */
template <class G> DEV void soften(const prhs_cu_prefill &p, const tile &t, int key, bool hide, float s[G::own][4],
                                   const float low[G::own][4], float *shared, running<G> &x)
{
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    const float scale = p.a.shape.scale;
#pragma unroll
    for (int r = 0; r < G::own; r++) {
        const int lane = ty * G::own + r, pos = lane < t.lanes ? lane_pos(p.a, t, lane) : -1, start = window_start(p.a, max(pos, 0));
        float top = x.top[r], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = key + i * 8 + tx;
            if (hide && (j > pos || (j >= p.a.sinks && j < start)))
                s[r][i] = NOTHING;
            top = fmaxf(top, s[r][i]);
        }
#pragma unroll
        for (int w = 1; w < 8; w <<= 1)
            top = fmaxf(top, __shfl_xor_sync(FULL, top, w));
        const float factor = expf((x.top[r] - top) * scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float w = s[r][i] == NOTHING ? -0.0f : expf((s[r][i] - top + low[r][i]) * scale);
            sum += w;
            shared[G::weight_at + lane * G::weight_row + i * 8 + tx] = w;
        }
        x.sum[r] = x.sum[r] * factor + sum;
        x.top[r] = top;
#pragma unroll
        for (int i = 0; i < G::words * 4; i++)
            x.part[r][i] *= factor;
    }
}

template <class G> DEV void add_values(const float *shared, int dim, running<G> &x)
{
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    const float *w = shared + G::weight_at + ty * G::own * G::weight_row, *v = shared + G::v_at + tx * 4;
#pragma unroll 1
    for (int j = 0; j < KEYS; j += 4) {
        float4 a[G::own];
#pragma unroll
        for (int r = 0; r < G::own; r++)
            a[r] = *(const float4 *)(w + r * G::weight_row + j);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int i = 0; i < G::words; i++) {
                if (i * 32 >= dim)
                    continue;
                const float4 b = *(const float4 *)(v + (j + e) * G::v_row + i * 32);
#pragma unroll
                for (int r = 0; r < G::own; r++) {
                    const float c = e == 0 ? a[r].x : e == 1 ? a[r].y : e == 2 ? a[r].z : a[r].w;
                    float *o = x.part[r] + i * 4;
                    o[0] = fmaf(c, b.x, o[0]);
                    o[1] = fmaf(c, b.y, o[1]);
                    o[2] = fmaf(c, b.z, o[2]);
                    o[3] = fmaf(c, b.w, o[3]);
                }
            }
    }
}

/* The values that are not finite, for the lanes that weigh them. */
template <class G> DEV void add_odd(const prhs_cu_prefill &p, const tile &t, int key, unsigned odd, const float *shared, running<G> &x)
{
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    const int *pages = pages_of(p.a.batch, p.mem[PRHS_R_PAGES], t.b);
#pragma unroll 1
    for (; odd; odd &= odd - 1) {
        const int j = __ffs(odd) - 1;
        const byte *row = p.mem[PRHS_R_V] + place_of(p.a.kv, pages, key + j, t.hk).v;
#pragma unroll
        for (int i = 0; i < G::words * 4; i++) {
            const int d = i / 4 * 32 + tx * 4 + i % 4;
            const float v = d < p.a.shape.dim ? load_one(G::dtype, row, d) : 0.0f;
#pragma unroll
            for (int r = 0; r < G::own; r++) {
                const float w = shared[G::weight_at + (ty * G::own + r) * G::weight_row + j];
                if (!finite(v) && __float_as_uint(w) != 0x80000000u)
                    x.part[r][i] += v;
            }
        }
    }
}

template <class G> DEV void put_lanes(const prhs_cu_prefill &p, const tile &t, running<G> &x)
{
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    fold<G>(x, p.a.shape.scale);
#pragma unroll
    for (int r = 0; r < G::own; r++) {
        const int lane = ty * G::own + r;
        float sum = x.all_sum[r];
#pragma unroll
        for (int w = 1; w < 8; w <<= 1)
            sum += __shfl_xor_sync(FULL, sum, w);
        if (lane >= t.lanes)
            continue;
        const int row = lane_row(p.a, t, lane), head = lane_head(p.a, t, lane);
        byte *out = row_at(p.a.out, p.mem[PRHS_R_OUT], row, head);
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int i = 0; i < G::words * 4; i += 2) {
            const int d = i / 4 * 32 + tx * 4 + i % 4;
            if (d < p.a.shape.dim)
                store_pair(p.a.out.dtype, out, d, ended(x.all[r][i], sum, inverse), ended(x.all[r][i + 1], sum, inverse));
        }
        if (p.a.lse_off != PRHS_NONE && tx == 0)
            FLOATS(p.mem[PRHS_R_LSE], p.a.lse_off)[(i64)row * p.a.shape.heads + head] =
                sum == 0.0f ? NOTHING : isnan(sum) ? NEVER : x.all_top[r] * p.a.shape.scale + logf(sum);
    }
}

template <class G> DEV void attend(const prhs_cu_prefill &p, const tile &t, float *shared)
{
    const view all = view_of(p.a, t, 0, G::lanes), own = view_of(p.a, t, warp_id() * 4 * G::own, 4 * G::own);
    unsigned *odd = (unsigned *)(shared + G::odd_at);
    running<G> x;
    clear_running<G>(x);
    load_queries<G>(p, t, shared + G::q_at);
    if (threadIdx.x < 2)
        odd[threadIdx.x] = 0;
    int before = 0, turn = 0;
    for (int i = block_from(all, p.a.sinks, 0, KEYS); i * KEYS <= all.last; i = block_from(all, p.a.sinks, i + 1, KEYS)) {
        __syncthreads();
        load_block<G>(p, t, i * KEYS, all.last, shared, odd + turn);
        if (i / FOLD != before / FOLD)
            fold<G>(x, p.a.shape.scale);
        before = i;
        if (threadIdx.x == 0)
            odd[turn ^ 1] = 0; /* nobody reads the last block's any more */
        __syncthreads();
        if (sees_some(own, p.a.sinks, i * KEYS, KEYS)) {
            float s[G::own][4], low[G::own][4];
            dots<G>(shared, p.a.shape.dim, s, low);
            soften<G>(p, t, i * KEYS, !sees_all(own, p.a.sinks, i * KEYS, KEYS), s, low, shared, x);
            __syncwarp();
            add_values<G>(shared, p.a.shape.dim, x);
            if (odd[turn])
                add_odd<G>(p, t, i * KEYS, odd[turn], shared, x);
            __syncwarp();
        }
        turn ^= 1;
    }
    put_lanes<G>(p, t, x);
}

template <class G> DEV void prefill(const prhs_cu_prefill &p, float *shared)
{
    tile t;
    grid_begin();
    for (i64 next = blockIdx.x; find_tile<G::lanes, KEYS>(p, next, (int *)shared, &t); next += gridDim.x) {
        attend<G>(p, t, shared);
        __syncthreads();
    }
}

#define PREFILL(name, T, DP, blocks)                                 \
    KERNEL(name, prhs_cu_prefill, PREFILL_THREADS, blocks)           \
    {                                                                \
        DYNAMIC_SHARED(shared);                                      \
        prefill<geometry<T, DP>>(p, (float *)shared);                \
    }

PREFILL(prhs_prefill_f32_d64, PRHS_K_F32, 64, 2)
PREFILL(prhs_prefill_f32_d128, PRHS_K_F32, 128, 2)
PREFILL(prhs_prefill_f32_d256, PRHS_K_F32, 256, 2)
PREFILL(prhs_prefill_f16_simt_d64, PRHS_K_F16, 64, 2)
PREFILL(prhs_prefill_f16_simt_d128, PRHS_K_F16, 128, 2)
PREFILL(prhs_prefill_f16_simt_d256, PRHS_K_F16, 256, 2)
PREFILL(prhs_prefill_bf16_simt_d64, PRHS_K_BF16, 64, 2)
PREFILL(prhs_prefill_bf16_simt_d128, PRHS_K_BF16, 128, 2)
PREFILL(prhs_prefill_bf16_simt_d256, PRHS_K_BF16, 256, 2)
