/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill on tensor cores, for 16-bit K/V: causal attention of prompt rows. A block takes a tile of lanes, a warp 32 (D > 128: 16) of
 * them, and walks through blocks of keys that are cut at absolute positions: S = Q K^T in registers, online softmax, O += P V. K and V
 * blocks follow one another through a ring of three slots, two copies ahead. Threads: 128. Dynamic shared memory, bytes: d64: 41088,
 * d128 and d256: 82048; where q has another dtype than K/V, 16384 or 32768 more. Grid: any; best is a block a tile, kv_heads *
 * (ceil(max_rows * group / lanes) + max_seqs) with 128 lanes a tile, for d256 64: the device then hands short tiles to whoever is free.
 *
 * A value that is not finite spoils rows that give it no weight, since 0 * NaN is NaN. Such a tile is seen by its output and goes through
 * once more without such values, and then counts, by the same products, which rows and channels they belong to.
 */
#include "prefill_tile.cuh"

/* What becomes of a value in a pass that is not FAST. */
template <class G> DEV unsigned refine_value(unsigned x, int pass)
{
    const unsigned exponent = G::bf16 ? 0x7f80 : 0x7c00, one = G::bf16 ? 0x3f80 : 0x3c00;
    const bool finite = (x & exponent) != exponent, nan = !finite && (x & (exponent ^ 0x7fff)), minus = x & 0x8000;
    if (pass == FINITE)
        return finite ? x : 0;
    return !finite && nan == (pass == COUNT_NANS) && (nan || minus == (pass == COUNT_MINUS)) ? one : 0;
}

template <class G> DEV void refine(unsigned char *v, int pass)
{
    unsigned *w = (unsigned *)v;
#pragma unroll 1
    for (int i = opaque(threadIdx.x); i < G::slot / 4; i += PREFILL_THREADS)
        w[i] = refine_value<G>(w[i] & 0xffff, pass) | refine_value<G>(w[i] >> 16, pass) << 16;
}

/* --- products and softmax, by warp --- */

/*
 * A thread holds of each stripe two lanes, group = lane / 4 and that + 8, and of every eight columns two: 2 (lane % 4) and the next. Sums
 * are of this thread's columns.
 */
template <class G> struct state {
    float o[G::stripes][2 * G::steps][4];
    float top[G::stripes][2], sum[G::stripes][2]; /* top: of q.k, not scaled */
};

/* KEYS: the block's first ones, of which alone something may be seen. */
template <class G, int KEYS> struct scores {
    float s[G::stripes][KEYS / 8][4];
};

template <class G> struct weights {
    unsigned w[G::stripes][G::keys / 16][4];
};

template <class G> DEV void clear_state(state<G> &x)
{
#pragma unroll
    for (int m = 0; m < G::stripes; m++) {
#pragma unroll
        for (int n = 0; n < 2 * G::steps; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x.o[m][n][e] = 0.0f;
        x.top[m][0] = x.top[m][1] = LOWEST;
        x.sum[m][0] = x.sum[m][1] = 0.0f;
    }
}

/* A part that is not finite has nothing to add to infinities of the main product, but would make them NaN. */
template <class G, int KEYS> DEV void drop_specials(scores<G, KEYS> &x)
{
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x.s[m][n][e] = fabsf(x.s[m][n][e]) <= 3.4e38f ? x.s[m][n][e] : 0.0f;
}

/* S, the queries' rests first where they have any. */
template <class G, int KEYS> DEV void multiply_keys(const unsigned char *shared, const unsigned char *k, bool rests, scores<G, KEYS> &x)
{
    const place_in_block me = here();
    const int l = me.lane;
    /* The words of step i differ from those of step 0 in bits that XOR may flip. */
    const int q_at = word_at<G>(me.warp * G::warp_lanes + l % 16, l / 16), k_at = word_at<G>(l / 16 * 8 + l % 8, l / 8 % 2);
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x.s[m][n][e] = 0.0f;
#pragma unroll 1
    for (int rest = rests; rest >= 0; rest--) {
        const unsigned char *q = shared + (rest ? G::rest_at : G::q_at);
#pragma unroll
        for (int i = 0; i < G::steps; i++) {
            unsigned a[G::stripes][4], b[4];
#pragma unroll
            for (int m = 0; m < G::stripes; m++)
                load_matrices(a[m], q + (q_at ^ i * 32) + m * 16 * G::row);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                load_matrices(b, k + (k_at ^ i * 32) + n * 16 * G::row);
#pragma unroll
                for (int m = 0; m < G::stripes; m++) {
                    multiply<G::bf16>(x.s[m][2 * n], a[m], b[0], b[1]);
                    multiply<G::bf16>(x.s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if (rest)
            drop_specials(x);
    }
}

template <class G, int KEYS> DEV void multiply_values(const weights<G> &w, const unsigned char *v, state<G> &x)
{
    const int l = here().lane, v_at = word_at<G>(l % 16, l / 16);
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int n = 0; n < G::steps; n++) {
            unsigned b[4];
            load_matrices_transposed(b, v + (v_at ^ n * 32) + k * 16 * G::row);
#pragma unroll
            for (int m = 0; m < G::stripes; m++) {
                multiply<G::bf16>(x.o[m][2 * n], w.w[m][k], b[0], b[1]);
                multiply<G::bf16>(x.o[m][2 * n + 1], w.w[m][k], b[2], b[3]);
            }
        }
}

/* Lane of the tile that this thread's half h of stripe m is. */
template <class G> DEV int lane_of(place_in_block me, int m, int h) { return me.warp * G::warp_lanes + m * 16 + h * 8 + me.lane / 4; }

/* A block past the sinks: the keys that a lane sees are one run. SINKS: the block begins with sinks. */
template <class G, int KEYS, bool SINKS> DEV void hide(const prhs_k_prefill &a, const tile &t, int key, scores<G, KEYS> &x)
{
    const place_in_block me = here();
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int lane = lane_of<G>(me, m, h), pos = lane < t.lanes ? lane_pos(a, t, lane) : -1, start = window_start(a, max(pos, 0));
            const int first = key + me.lane % 4 * 2; /* key of n = e = 0 */
            const unsigned run = pos - start + 1;    /* pos = -1: start is 0 */
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int j = first + n * 8 + e;
                    if (SINKS ? j > pos || (j >= a.sinks && j < start) : (unsigned)(j - start) >= run)
                        x.s[m][n][2 * h + e] = NOTHING;
                }
        }
}

DEV float scaled_top(float top, float factor) { return fmaxf(top * factor, LOWEST); }

/*
 * Scores become weights relative to the lane's maximum, 2^(s factor - top); what was gathered so far is brought to a new maximum. Where
 * no lane's maximum moved, the factors are all 1 and the products are left out.
 */
template <class G, int KEYS> DEV void soften(float scale, const signed char *exponents, scores<G, KEYS> &x, state<G> &y)
{
    const place_in_block me = here();
    float old[G::stripes][2];
    bool still = true;
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = y.top[m][h];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                top = fmaxf(top, fmaxf(x.s[m][n][2 * h], x.s[m][n][2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
            top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
            const float factor = scale * power_of_2(exponents[lane_of<G>(me, m, h)]) * LOG2E, new_top = scaled_top(top, factor);
            old[m][h] = exp2_weight(scaled_top(y.top[m][h], factor) - new_top);
            still = still && old[m][h] == 1.0f;
            y.top[m][h] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * h; e < 2 * h + 2; e++) {
                    x.s[m][n][e] = exp2_weight(fmaf(x.s[m][n][e], factor, -new_top));
                    sum += x.s[m][n][e];
                }
            y.sum[m][h] = y.sum[m][h] * old[m][h] + sum;
        }
    if (__all_sync(FULL, still))
        return;
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int n = 0; n < 2 * G::steps; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                y.o[m][n][e] *= old[m][e / 2];
}

/* Counting passes: a token whose score is -inf, or that the lane does not see, weighs 0, every other one 1. */
template <class G, int KEYS> DEV void mark(scores<G, KEYS> &x)
{
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x.s[m][n][e] = x.s[m][n][e] == NOTHING ? 0.0f : 1.0f;
}

template <class G, int KEYS> DEV void pack_weights(const scores<G, KEYS> &x, weights<G> &w)
{
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                w.w[m][k][i] = pack<G>(x.s[m][2 * k + i / 2][i % 2 * 2], x.s[m][2 * k + i / 2][i % 2 * 2 + 1]);
}

template <class G, int KEYS>
DEV void weigh(const prhs_cu_prefill &p, const job &j, int key, const unsigned char *shared, const unsigned char *k, state<G> &x, weights<G> &w)
{
    scores<G, KEYS> s;
    multiply_keys(shared, k, p.a.q.dtype != G::dtype, s);
    if (!sees_all(j.own[here().warp], p.a.sinks, key, KEYS)) {
        if (key < p.a.sinks)
            hide<G, KEYS, true>(p.a, j.t, key, s);
        else
            hide<G, KEYS, false>(p.a, j.t, key, s);
    }
    if (j.pass < COUNT_NANS)
        soften(p.a.shape.scale, (const signed char *)(shared + G::exponent_at), s, x);
    else
        mark(s);
    pack_weights(s, w);
}

/* --- output --- */

/* What a counted channel holds in the end: NaN, or the infinity, unless both came together. */
DEV void put_special(int dtype, byte *row, int d, float count, int pass)
{
    if (count == 0.0f)
        return;
    const float before = load_one(dtype, row, d), inf = __int_as_float(0x7f800000);
    store_one(dtype, row, d, pass == COUNT_PLUS ? inf : pass == COUNT_MINUS && before != inf && !isnan(before) ? -inf : NEVER);
}

/* Eight lanes' results on their way out: a warp's part of the ring. Each row: O, then the sum and the maximum. */
template <class G> DEV float *staged(unsigned char *shared, int warp, int row)
{
    return (float *)(shared + G::ring_at) + (warp * 8 + row) * (G::row / 2 + 8);
}

DEV void store_four(int dtype, byte *row, int d, float4 x)
{
    if (dtype == PRHS_K_F32)
        *(float4 *)(row + 4 * d) = x;
    else if (dtype == PRHS_K_F16)
        *(uint2 *)(row + 2 * d) = make_uint2(floats_half2(x.x, x.y), floats_half2(x.z, x.w));
    else
        *(uint2 *)(row + 2 * d) = make_uint2(floats_bf162(x.x, x.y), floats_bf162(x.z, x.w));
}

/* Output and log-sum-exp of a staged lane, by a warp; true where an output is NaN although no score was. */
template <class G> DEV bool put_lane(const prhs_cu_prefill &p, const tile &t, int lane, int pass, int exponent, const float *o)
{
    const int row = lane_row(p.a, t, lane), head = lane_head(p.a, t, lane), dim = p.a.shape.dim;
    byte *out = row_at(p.a.out, p.mem[PRHS_R_OUT], row, head);
    const float sum = o[G::row / 2], top = o[G::row / 2 + 1], inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    bool nan = false;
    if (pass >= COUNT_NANS) {
        for (int d = lane_id(); d < dim && !isnan(sum); d += 32)
            put_special(p.a.out.dtype, out, d, o[d], pass);
        return false;
    }
    for (int d = 4 * lane_id(); d < dim; d += 128) {
        const float4 x = *(const float4 *)(o + d);
        nan |= isnan(x.x) || isnan(x.y) || isnan(x.z) || isnan(x.w);
        store_four(p.a.out.dtype, out, d,
                   make_float4(ended(x.x, sum, inverse), ended(x.y, sum, inverse), ended(x.z, sum, inverse), ended(x.w, sum, inverse)));
    }
    if (p.a.lse_off != PRHS_NONE && lane_id() == 0) {
        const float scale = p.a.shape.scale * power_of_2(exponent), factor = scale * LOG2E;
        /* scaled_top is rounded: the rest is what all weights are off by. */
        const float rest = fmaf(top, factor, -scaled_top(top, factor)) * 0.693147181f;
        FLOATS(p.mem[PRHS_R_LSE], p.a.lse_off)[(i64)row * p.a.shape.heads + head] =
            sum == 0.0f ? NOTHING : isnan(sum) ? NEVER : top * scale - rest + logf(sum);
    }
    return nan && !isnan(sum);
}

/* Ends with all copies done, and all threads past their products. */
template <class G> DEV bool put_lanes(const prhs_cu_prefill &p, const tile &t, int pass, unsigned char *shared, const state<G> &x)
{
    const place_in_block me = here();
    bool spoilt = false;
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < G::stripes; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float *o = staged<G>(shared, me.warp, me.lane / 4), sum = x.sum[m][h];
#pragma unroll
            for (int n = 0; n < 2 * G::steps; n++)
                *(float2 *)(o + n * 8 + me.lane % 4 * 2) = make_float2(x.o[m][n][2 * h], x.o[m][n][2 * h + 1]);
            sum += __shfl_xor_sync(FULL, sum, 1);
            sum += __shfl_xor_sync(FULL, sum, 2);
            if (me.lane % 4 == 0)
                *(float2 *)(o + G::row / 2) = make_float2(sum, x.top[m][h]);
            __syncwarp();
#pragma unroll 1
            for (int i = 0; i < 8; i++) {
                const int lane = me.warp * G::warp_lanes + m * 16 + h * 8 + i;
                if (lane < t.lanes)
                    spoilt |= put_lane<G>(p, t, lane, pass, ((const signed char *)(shared + G::exponent_at))[lane],
                                          staged<G>(shared, me.warp, i));
            }
            __syncwarp();
        }
    return spoilt;
}

/* --- a tile --- */

#define THIN 16 /* keys */

/*
 * One pass over the keys that the tile sees. Copies run in the order K0 V0 K1 V1 ... through the ring: at each barrier the next but
 * one is sent to the slot that everybody has just left. Of the first block often the sinks alone are seen: it is thin then. What a thin
 * block leaves out weighs 0, so that no bit depends on it.
 */
template <class G> DEV bool attend(const prhs_cu_prefill &p, const job &j, unsigned char *shared)
{
    int k = G::ring_at, v = k + G::slot, spare = v + G::slot;
    int now = block_from(j.all, p.a.sinks, 0, G::keys), next = block_from(j.all, p.a.sinks, now + 1, G::keys);
    bool thin = now == 0 && j.all.low >= G::keys && p.a.sinks <= THIN;
    const int last = thin ? THIN - 1 : j.all.last;
    const byte *at = address<G>(p, j, now * G::keys, page_id<G>(p.a.kv, j, now * G::keys));
    copy_block<G>(p.a.shape, last, shared + k, at, 0, now * G::keys, true);
    copy_block<G>(p.a.shape, last, shared + v, at, 16, now * G::keys, true);
    at = address<G>(p, j, next * G::keys, page_id<G>(p.a.kv, j, next * G::keys));
    state<G> x;
    clear_state<G>(x);
#pragma unroll 1
    while (now * G::keys <= j.all.last) {
        const int then = block_from(j.all, p.a.sinks, next + 1, G::keys);
        weights<G> w;
        copy_wait<1>();
        __syncthreads();
        copy_block<G>(p.a.shape, j.all.last, shared + spare, at, 0, next * G::keys, next * G::keys <= j.all.last);
        const int id = page_id<G>(p.a.kv, j, then * G::keys);
        const bool some = sees_some(j.own[here().warp], p.a.sinks, now * G::keys, G::keys);
        if (some && thin)
            weigh<G, THIN>(p, j, now * G::keys, shared, shared + k, x, w);
        else if (some)
            weigh<G, G::keys>(p, j, now * G::keys, shared, shared + k, x, w);
        copy_wait<1>();
        __syncthreads();
        copy_block<G>(p.a.shape, j.all.last, shared + k, at, 16, next * G::keys, next * G::keys <= j.all.last);
        at = address<G>(p, j, then * G::keys, id);
        if (j.pass != FAST) {
            refine<G>(shared + v, j.pass);
            __syncthreads();
        }
        if (some && thin)
            multiply_values<G, THIN>(w, shared + v, x);
        else if (some)
            multiply_values<G, G::keys>(w, shared + v, x);
        const int left = v;
        v = k;
        k = spare;
        spare = left;
        now = next;
        next = then;
        thin = false;
    }
    return put_lanes<G>(p, j.t, j.pass, shared, x);
}

template <class G> DEV void prefill(const prhs_cu_prefill &p, unsigned char *shared)
{
    __shared__ job j;
    tile t;
    grid_begin();
#pragma unroll 1
    for (i64 next = blockIdx.x; find_tile<G::lanes, G::keys>(p, next, (int *)shared, &t); next = j.next + gridDim.x) {
        set_job<G>(p, t, next, &j);
        __syncthreads();
        load_queries<G>(p, j.t, shared);
#pragma unroll 1
        for (;;) {
            clear_padding<G>(p.a.shape, shared + G::ring_at);
            if (attend<G>(p, j, shared))
                j.spoilt = 1;
            __syncthreads();
            if (!j.spoilt || j.pass == LAST)
                break;
            __syncthreads();
            if (threadIdx.x == 0)
                j.pass++;
            __syncthreads();
        }
    }
}

/* Head sizes well below the padded one have products of their own. */
#define PREFILL(t, BF16, DP, LESS, blocks)                                                    \
    KERNEL(prhs_prefill_##t##_d##DP, prhs_cu_prefill, PREFILL_THREADS, blocks)                \
    {                                                                                         \
        DYNAMIC_SHARED(shared);                                                               \
        if (p.a.shape.dim <= LESS)                                                            \
            prefill<geometry<BF16, DP, LESS>>(p, shared);                                     \
        else                                                                                  \
            prefill<geometry<BF16, DP, DP>>(p, shared);                                       \
    }

PREFILL(f16, false, 64, 48, 2)
PREFILL(f16, false, 128, 96, 2)
PREFILL(f16, false, 256, 192, 2)
PREFILL(bf16, true, 64, 48, 2)
PREFILL(bf16, true, 128, 96, 2)
PREFILL(bf16, true, 256, 192, 2)
