/* SPDX-License-Identifier: Apache-2.0 */
/* score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle. */
#include "common.clh"

#define HB (PRHS_UH < 4 ? PRHS_UH : 4)
#define BLOCK 16

typedef struct sums {
    float top, sum, mid_top, mid_sum;
} sums;

/* Takes a block of scores; valid and inside: lanes that count, and that lie in the middle (all ones or 0). Returns the middle's
   weights relative to z->mid_top; *scale is what the earlier ones have to be multiplied with. */
float16 add_block(sums *z, float16 s, int16 valid, int16 inside, float *scale)
{
    int16 good = valid & (s < INFINITY);
    float16 all = select((float16)(LOWEST), s, good), mid = select((float16)(LOWEST), s, good & inside);
    float m = fmax(z->top, max16(all)), mm = fmax(z->mid_top, max16(mid));
    z->sum = z->sum * exp(z->top - m) + sum16(select((float16)(0.0f), exp(s - m), good));
    z->top = m;
    *scale = exp(z->mid_top - mm);
    float16 w = select((float16)(0.0f), exp(s - mm), good & inside);
    z->mid_sum = z->mid_sum * *scale + sum16(w);
    z->mid_top = mm;
    return select(w, (float16)(NAN), inside & valid & ~good);
}

void score_heads(const prhs_k_score *a, const prhs_set *set, const entry *e, long b, int u, int h0, int chunk, int first, int last,
                 const __global int *pages, mem q, mem k_mem, mem ws)
{
    sums z[HB];
    const __global uchar *qp[HB];
    const int head = u * PRHS_UH / PRHS_G;
#if PRHS_MOMENTS
    vf m1[HB][NV], m2[HB][NV], pivot[NV];
    for (int v = 0; v < NV; v++)
        pivot[v] = set->mid_end > set->mid_begin ? load_vec(PRHS_KV, k_row(&a->kv, k_mem, pages, set->mid_end - 1, head), v) : (vf)(0.0f);
#endif
    for (int h = 0; h < HB; h++) {
        qp[h] = row_at(&a->q, q, e->row0, u * PRHS_UH + min(h0 + h, PRHS_UH - 1));
        z[h] = (sums){ LOWEST, 0.0f, LOWEST, 0.0f };
#if PRHS_MOMENTS
        for (int v = 0; v < NV; v++)
            m1[h][v] = m2[h][v] = 0.0f;
#endif
    }
    for (int i = first; i < last; i += BLOCK) {
        int n = min(BLOCK, last - i);
        /* Between the sinks and the middle (PSAW) nothing is scored, unless everything is. */
        if (!a->full && i >= set->sink_end && i + n <= set->mid_begin)
            continue;
        const __global uchar *kp[BLOCK];
        float s[HB][BLOCK];
        int16 pos = i + LANES, valid = (pos < last) & (a->full ? (int16)(-1) : (pos < set->sink_end) | (pos >= set->mid_begin));
        int16 inside = valid & (pos >= set->mid_begin) & (pos < set->mid_end);
        for (int t = 0; t < BLOCK; t++)
            kp[t] = 0;
        for (int t = 0; t < n; t++) {
            int j = i + t;
            vf dot[HB];
#pragma unroll
            for (int h = 0; h < HB; h++)
                dot[h] = 0.0f;
            if (a->full || j < set->sink_end || j >= set->mid_begin) {
                kp[t] = k_row(&a->kv, k_mem, pages, j, head);
#pragma unroll
                for (int v = 0; v < NV; v++) {
                    vf x = load_vec(PRHS_KV, kp[t], v);
#pragma unroll
                    for (int h = 0; h < HB; h++)
                        dot[h] += x * load_vec(PRHS_Q, qp[h], v);
                }
            }
#pragma unroll
            for (int h = 0; h < HB; h++)
                s[h][t] = sum_lanes(dot[h]) * a->shape.scale;
        }
        for (int h = 0; h < HB; h++) {
            for (int t = n; t < BLOCK; t++)
                s[h][t] = 0.0f;
            if (h0 + h < PRHS_UH) {
                __global float *out = FLOATS(ws, a->work.score_off) + (b * a->shape.heads + u * PRHS_UH + h0 + h) * a->work.score_stride;
                for (int t = 0; t < n; t++)
                    if (kp[t])
                        out[i + t] = s[h][t];
            }
            float scale;
            float16 w = add_block(&z[h], vload16(0, s[h]), valid, inside, &scale);
#if PRHS_MOMENTS
            vstore16(w, 0, s[h]);
            for (int v = 0; v < NV; v++) {
                m1[h][v] *= scale;
                m2[h][v] *= scale;
            }
#endif
        }
#if PRHS_MOMENTS
        for (int t = max(0, set->mid_begin - i); t < min(n, set->mid_end - i); t++)
#pragma unroll
            for (int v = 0; v < NV; v++) {
                vf x = load_vec(PRHS_KV, kp[t], v) - pivot[v], xx = x * x;
#pragma unroll
                for (int h = 0; h < HB; h++) {
                    m1[h][v] += s[h][t] * x;
                    m2[h][v] += s[h][t] * xx;
                }
            }
#endif
    }
    for (int h = 0; h < HB && h0 + h < PRHS_UH; h++) {
        long slot = (b * a->shape.heads + u * PRHS_UH + h0 + h) * a->work.score_chunks + chunk;
        vstore4((float4)(z[h].top, z[h].sum, z[h].mid_top, z[h].mid_sum), slot, FLOATS(ws, a->work.norm_off));
#if PRHS_MOMENTS
        for (int v = 0; v < NV; v++) {
            VSTORE(m1[h][v], v, FLOATS(ws, a->work.mom_off) + slot * 2 * PRHS_D);
            VSTORE(m2[h][v], v, FLOATS(ws, a->work.mom_off) + slot * 2 * PRHS_D + PRHS_D);
        }
#endif
    }
}

__kernel void prhs_score(mem seqs, mem pages, mem q, mem k_mem, mem ws, const prhs_k_score args)
{
    prhs_k_score a = args;
    const long id = get_global_id(0), num = get_global_size(0);
    long next = id, count = 0;
    for (long b = 0; b < a.batch.max_seqs; b++) {
        entry e = entry_of(&a.batch, seqs, b);
        if (e.kind == IDLE)
            continue;
        int n = e.pos0 + 1, size = chunk_tokens(n, a.work.score_chunk_min, a.work.score_chunks), chunks = (n + size - 1) / size;
        for (int u = 0; u < a.shape.units; u++) {
            prhs_set set = *set_at(ws, &a.work, &a.shape, b, u);
            if (!(a.modes >> set.mode & 1))
                continue;
            for (; next < count + chunks; next += num) {
                int chunk = (int)(next - count);
                for (int h0 = 0; h0 < PRHS_UH; h0 += HB)
                    score_heads(&a, &set, &e, b, u, h0, chunk, chunk * size, min((chunk + 1) * size, n), pages_of(&a.batch, pages, b), q,
                                k_mem, ws);
            }
            count += chunks;
        }
    }
}
