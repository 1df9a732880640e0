/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moments of one head by a whole block: those of the middle, which score left in chunks, minus the attended rows; of keys, then where they
 * are wanted of values, for which the first moment about zero is all there is. Work is cut into
 * MOMENT_SLICES slices whatever the block's size, and the slices are added in order: the bits are the same in any block.
 */
#ifndef PRHS_MOMENTS_CUH
#define PRHS_MOMENTS_CUH

#include "common.cuh"

#define MOMENT_SLICES PRHS_MOMENT_SLICES
#define MOMENT_TILE 32                                 /* rows that a warp takes at a time */

struct moment_job {
    const prhs_k_moments &a;
    byte *const *mem;
    const prhs_set &set;
    const int *list, *pages;
    const float *scores, *sums; /* sums: the head's chunks', `stride` floats each */
    const byte *base;           /* of the rows: the cache's keys or values */
    int stride;
    bool values;
    i64 slot; /* of the head's first score chunk */
    int head; /* KV head */
    int chunks, rows; /* score chunks; attended rows of the middle */
    float top, total; /* the middle's maximum and weight */
};

/* A lane's part: 8 channels. */
struct moment_sums {
    float m1[8], m2[8];
};

/* Row i of the attended part of the middle: edge, list, the window's part. */
DEV int attended_position(const moment_job &j, int i)
{
    const prhs_set &s = j.set;
    const int edge = s.edge_end - s.edge_begin;
    if (i < edge)
        return s.edge_begin + i;
    i -= edge;
    if (i < s.count * s.run)
        return s.run == 1 ? j.list[i] : j.list[i / s.run] + i % s.run;
    return s.win_begin + i - s.count * s.run;
}

/* Maximum and weight of the middle, by every warp for itself. */
DEV void merge_middle(const float *norm, int chunks, float *top, float *total)
{
    float m = LOWEST, sum = 0.0f;
    for (int i = lane_id(); i < chunks; i += 32)
        m = fmaxf(m, norm[i * 4 + 2]);
    m = warp_max(m);
    for (int i = lane_id(); i < chunks; i += 32)
        sum += norm[i * 4 + 3] * expf(norm[i * 4 + 2] - m);
    *top = m;
    *total = warp_sum(sum);
}

/* The moments of chunk `chunk`; width lanes have the channels. */
DEV void add_chunk(const moment_job &j, int chunk, int channel, moment_sums *x)
{
    const int dim = j.a.shape.dim;
    const float scale = expf(FLOATS(j.mem[PRHS_R_WORK], j.a.work.norm_off)[(j.slot + chunk) * 4 + 2] - j.top);
    const float4 *m = (const float4 *)(j.sums + (i64)chunk * j.stride + channel);
    const int second = j.values ? 0 : dim / 4; /* values have none */
    const float4 y[4] = { m[0], m[1], m[second], m[second + 1] };
#pragma unroll
    for (int i = 0; i < 2; i++) {
        x->m1[4 * i] += y[i].x * scale, x->m1[4 * i + 1] += y[i].y * scale;
        x->m1[4 * i + 2] += y[i].z * scale, x->m1[4 * i + 3] += y[i].w * scale;
        x->m2[4 * i] += y[i + 2].x * scale, x->m2[4 * i + 1] += y[i + 2].y * scale;
        x->m2[4 * i + 2] += y[i + 2].z * scale, x->m2[4 * i + 3] += y[i + 2].w * scale;
    }
}

/* Takes up to 32 rows from row `first` on out: a lane finds a row, then `width` lanes share each. */
template <int T, int UNROLL>
DEV void take_out(const moment_job &j, int first, int width, const float pivot[8], moment_sums *x)
{
    const int dim = j.a.shape.dim, lane = lane_id(), channel = lane % width * 8, per = 32 / width, row = first + lane;
    const int n = min(MOMENT_TILE, j.rows - first);
    i64 at = 0;
    float weight = 0.0f;
    if (row < j.rows) {
        const int position = attended_position(j, row);
        const float s = j.scores[position];
        const place row_at = place_of(j.a.kv, j.pages, position, j.head);
        at = j.values ? row_at.v : row_at.k;
        weight = bad_score(s) ? NEVER : expf(s - j.top);
    }
    for (int base = 0; base < n; base += UNROLL * per) {
        raw8<T> raw[UNROLL];
        float w[UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            const int from = base + i * per + lane / width;
            w[i] = __shfl_sync(FULL, weight, from & 31);
            const unsigned low = __shfl_sync(FULL, (unsigned)at, from & 31), high = __shfl_sync(FULL, (unsigned)(at >> 32), from & 31);
            w[i] = from < n ? w[i] : 0.0f;
            raw[i] = zero_raw<T>();
            if (w[i] != 0.0f && channel < dim)
                raw[i] = load_raw<T>(j.base + (i64)((unsigned long long)high << 32 | low) + channel * (T == PRHS_K_F32 ? 4 : 2));
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            float y[8];
            floats_of(raw[i], y);
            if (w[i] == 0.0f)
                continue;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                const float d = y[c] - pivot[c];
                x->m1[c] -= w[i] * d;
                x->m2[c] -= w[i] * (d * d);
            }
        }
    }
}

/* The block's slices into scratch, [slice][2][dim]. */
template <int T> DEV void moment_slices(const moment_job &j, int width, float *scratch)
{
    const int dim = j.a.shape.dim, channel = lane_id() % width * 8, warps = blockDim.x >> 5;
    float pivot[8];
    if (channel < dim && !j.values) {
        const i64 last = place_of(j.a.kv, j.pages, j.set.mid_end - 1, j.head).k;
        floats_of(load_raw<T>(j.mem[PRHS_R_K] + last + channel * (T == PRHS_K_F32 ? 4 : 2)), pivot);
    } else {
        floats_of(zero_raw<T>(), pivot);
    }
    for (int slice = warp_id(); slice < MOMENT_SLICES; slice += warps) {
        moment_sums x = {};
        for (int i = slice; i < j.chunks; i += MOMENT_SLICES)
            if (lane_id() < width && channel < dim)
                add_chunk(j, i, channel, &x);
        for (int first = slice * MOMENT_TILE; first < j.rows; first += MOMENT_SLICES * MOMENT_TILE)
            take_out<T, T == PRHS_K_F32 ? 4 : 8>(j, first, width, pivot, &x);
        for (int w = width; w < 32; w <<= 1)
#pragma unroll
            for (int c = 0; c < 8; c++) {
                x.m1[c] += __shfl_xor_sync(FULL, x.m1[c], w);
                x.m2[c] += __shfl_xor_sync(FULL, x.m2[c], w);
            }
        if (lane_id() >= width || channel >= dim)
            continue;
        float4 *to = (float4 *)(scratch + slice * 2 * dim + channel);
        to[0] = make_float4(x.m1[0], x.m1[1], x.m1[2], x.m1[3]);
        to[1] = make_float4(x.m1[4], x.m1[5], x.m1[6], x.m1[7]);
        to[dim / 4] = make_float4(x.m2[0], x.m2[1], x.m2[2], x.m2[3]);
        to[dim / 4 + 1] = make_float4(x.m2[4], x.m2[5], x.m2[6], x.m2[7]);
    }
}

/* Mean and variance, or the mean value, from the slices, which a barrier has made visible. */
DEV void put_moments(const moment_job &j, const float *scratch, float dropped, float *out)
{
    const int dim = j.a.shape.dim;
    const i64 last = place_of(j.a.kv, j.pages, j.set.mid_end - 1, j.head).k;
    float z = expf(dropped - j.top);
    const float least = j.total * 0x1p-20f;
    z = z < least ? least : z;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float m1 = 0.0f, m2 = 0.0f;
        for (int i = 0; i < MOMENT_SLICES; i++) {
            m1 += scratch[i * 2 * dim + d];
            m2 += scratch[(i * 2 + 1) * dim + d];
        }
        const float mean = m1 / z, var = m2 / z - mean * mean;
        if (j.values) {
            out[d] = mean;
            continue;
        }
        out[d] = load_one(j.a.kv.dtype, j.mem[PRHS_R_K] + last, d) + mean;
        out[dim + d] = var < 0.0f ? 0.0f : var;
    }
}

/*
 * Head h of entry b, whose unit has retrieved `set`, by all threads of the block together: the list, l_dropped, the scores and their
 * chunks are in memory. scratch: PRHS_MOMENT_SHARED(dim) bytes of shared memory. Ends with a barrier.
 */
DEV void moments_of_head(const prhs_k_moments &a, byte *const mem[], i64 b, int h, const entry &e, const prhs_set &set, float *scratch)
{
    const int dim = a.shape.dim, u = h / a.shape.unit_heads, width = dim <= 32 ? 4 : dim <= 64 ? 8 : dim <= 128 ? 16 : 32;
    byte *state = mem[PRHS_R_STATE];
    const i64 row = b * a.shape.heads + h;
    const bool values = a.state.vhat_off != PRHS_NONE;
    float *out = SLOT_AT(state, a.state, moment_off, e.slot, float) + (i64)h * 2 * dim;
    float *vhat = SLOT_AT(state, a.state, vhat_off, e.slot, float) + (i64)h * dim;
    const float dropped = SLOT_AT(state, a.state, head_off, e.slot, prhs_head_ref)[h].l_dropped;
    if (dropped == NOTHING) {
        for (int d = threadIdx.x; d < 2 * dim; d += blockDim.x)
            out[d] = 0.0f;
        for (int d = threadIdx.x; d < dim && values; d += blockDim.x)
            vhat[d] = 0.0f;
        return;
    }
    moment_job j = { a, mem, set, SLOT_AT(state, a.state, list_off, e.slot, int) + (i64)u * a.state.list_cap,
                     pages_of(a.batch, mem[PRHS_R_PAGES], e.table), FLOATS(mem[PRHS_R_WORK], a.work.score_off) + row * a.work.score_stride,
                     nullptr, nullptr, 0, false, row * a.work.score_chunks, h / a.shape.group, score_chunks(a.work, e.pos0 + 1),
                     set.edge_end - set.edge_begin + set.count * set.run + max(set.mid_end - set.win_begin, 0), 0.0f, 0.0f };
    merge_middle(FLOATS(mem[PRHS_R_WORK], a.work.norm_off) + j.slot * 4, j.chunks, &j.top, &j.total);
#pragma unroll 1
    for (int pass = 0; pass < 1 + values; pass++) {
        j.values = pass;
        j.stride = pass ? dim : 2 * dim;
        j.sums = FLOATS(mem[PRHS_R_WORK], pass ? a.work.vmid_off : a.work.mom_off) + j.slot * j.stride;
        j.base = mem[pass ? PRHS_R_V : PRHS_R_K];
        if (a.kv.dtype == PRHS_K_F32)
            moment_slices<PRHS_K_F32>(j, width, scratch);
        else if (a.kv.dtype == PRHS_K_F16)
            moment_slices<PRHS_K_F16>(j, width, scratch);
        else
            moment_slices<PRHS_K_BF16>(j, width, scratch);
        __syncthreads();
        put_moments(j, scratch, dropped, pass ? vhat : out);
        __syncthreads();
    }
}

#endif
