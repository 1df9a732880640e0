/* SPDX-License-Identifier: Apache-2.0 */
/* score: every candidate key against the decision row's queries, with the normalisers and, on demand, the moments of the middle and the
   weighted sum of its values. */
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

/* What every head block of an item needs. */
typedef struct job {
    const prhs_k_score *a;
    const prhs_set *set;
    const __global int *pages;
    long b;
    int u, h0, head; /* unit, first head of the block within it, KV head */
} job;

bool scored(const job *j, int pos) { return j->a->full || pos < j->set->sink_end || pos >= j->set->mid_begin; }

/* Scores of positions [i, i + n) for HB heads, and where their keys lie; NULL: not scored. */
void score_block(const job *j, const __global uchar *const *q, mem k_mem, int i, int n, const __global uchar **k, float s[HB][BLOCK])
{
    for (int t = 0; t < n; t++) {
        vf dot[HB];
#pragma unroll
        for (int h = 0; h < HB; h++)
            dot[h] = 0.0f;
        k[t] = 0;
        if (scored(j, i + t)) {
            k[t] = k_row(&j->a->kv, k_mem, j->pages, i + t, j->head);
#pragma unroll
            for (int v = 0; v < NV; v++) {
                vf x = load_vec(PRHS_KV, k[t], v);
#pragma unroll
                for (int h = 0; h < HB; h++)
                    dot[h] += x * load_vec(PRHS_Q, q[h], v);
            }
        }
#pragma unroll
        for (int h = 0; h < HB; h++)
            s[h][t] = sum_lanes(dot[h]) * j->a->shape.scale;
    }
}

/* The scores themselves, for select, by position. */
void put_scores(const job *j, int h, int i, int n, const __global uchar *const *k, const float *s, mem ws)
{
    const prhs_k_work *w = &j->a->work;
    __global float *out = FLOATS(ws, w->score_off) + (j->b * j->a->shape.heads + j->u * PRHS_UH + h) * w->score_stride;
    for (int t = 0; t < n; t++)
        if (k[t])
            out[i + t] = s[t];
}

#if PRHS_MOMENTS
typedef struct moments {
    vf pivot[NV], m1[HB][NV], m2[HB][NV];
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
    vf value[HB][NV];
#endif
} moments;

void moments_begin(const job *j, mem k_mem, moments *m)
{
    const prhs_set *set = j->set;
    for (int v = 0; v < NV; v++) {
        m->pivot[v] = set->mid_end > set->mid_begin
                          ? load_vec(PRHS_KV, k_row(&j->a->kv, k_mem, j->pages, set->mid_end - 1, j->head), v)
                          : (vf)(0.0f);
        for (int h = 0; h < HB; h++)
            m->m1[h][v] = m->m2[h][v] = 0.0f;
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        for (int h = 0; h < HB; h++)
            m->value[h][v] = 0.0f;
#endif
    }
}

/* What was summed before the top of head h rose. */
void moments_fade(moments *m, int h, float scale)
{
    for (int v = 0; v < NV; v++) {
        m->m1[h][v] *= scale;
        m->m2[h][v] *= scale;
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        m->value[h][v] *= scale;
#endif
    }
}

/* Rows [first, last) of a block with their weights. */
void moments_add(moments *m, const __global uchar *const *k, int first, int last, float w[HB][BLOCK])
{
#pragma unroll
    for (int v = 0; v < NV; v++) {
        vf m1[HB], m2[HB]; /* of this block alone: errors grow with its rows, then with the blocks */
#pragma unroll
        for (int h = 0; h < HB; h++)
            m1[h] = m2[h] = 0.0f;
        for (int t = first; t < last; t++) {
            vf x = load_vec(PRHS_KV, k[t], v) - m->pivot[v], xx = x * x;
#pragma unroll
            for (int h = 0; h < HB; h++) {
                m1[h] += w[h][t] * x;
                m2[h] += w[h][t] * xx;
            }
        }
#pragma unroll
        for (int h = 0; h < HB; h++) {
            m->m1[h][v] += m1[h];
            m->m2[h][v] += m2[h];
        }
    }
}

#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
/* The values of positions [i + first, i + last). */
void values_add(const job *j, moments *m, mem v_mem, int i, int first, int last, float w[HB][BLOCK])
{
    for (int t = first; t < last; t++) {
        const __global uchar *row = v_row(&j->a->kv, v_mem, j->pages, i + t, j->head);
#pragma unroll
        for (int v = 0; v < NV; v++) {
            vf x = load_vec(PRHS_KV, row, v);
#pragma unroll
            for (int h = 0; h < HB; h++)
                m->value[h][v] += w[h][t] * x;
        }
    }
}
#endif

void moments_put(const job *j, const moments *m, int h, long slot, mem ws)
{
    __global float *out = FLOATS(ws, j->a->work.mom_off) + slot * 2 * PRHS_D;
    for (int v = 0; v < NV; v++) {
        VSTORE(m->m1[h][v], v, out);
        VSTORE(m->m2[h][v], v, out + PRHS_D);
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        VSTORE(m->value[h][v], v, FLOATS(ws, j->a->work.vmid_off) + slot * PRHS_D);
#endif
    }
}
#endif

/* HB heads over the chunk [first, last); heads past the unit compute its last one again and are not written. */
void score_heads(const job *j, const entry *e, int chunk, int first, int last, mem q, mem k_mem, mem v_mem, mem ws)
{
    const prhs_k_score *a = j->a;
    const prhs_set *set = j->set;
    sums z[HB];
    const __global uchar *qp[HB];
#if PRHS_MOMENTS
    moments m;
    moments_begin(j, k_mem, &m);
#endif
    for (int h = 0; h < HB; h++) {
        qp[h] = row_at(&a->q, q, e->row0, j->u * PRHS_UH + min(j->h0 + h, PRHS_UH - 1));
        z[h] = (sums){ LOWEST, 0.0f, LOWEST, 0.0f };
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
        score_block(j, qp, k_mem, i, n, kp, s);
        for (int h = 0; h < HB; h++) {
            float scale;
            for (int t = n; t < BLOCK; t++)
                s[h][t] = 0.0f;
            if (j->h0 + h < PRHS_UH)
                put_scores(j, j->h0 + h, i, n, kp, s[h], ws);
            float16 w = add_block(&z[h], vload16(0, s[h]), valid, inside, &scale);
#if PRHS_MOMENTS
            vstore16(w, 0, s[h]);
            moments_fade(&m, h, scale);
#endif
        }
#if PRHS_MOMENTS
        moments_add(&m, kp, max(0, set->mid_begin - i), min(n, set->mid_end - i), s);
#endif
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        values_add(j, &m, v_mem, i, max(0, set->mid_begin - i), min(n, set->mid_end - i), s);
#endif
    }
    for (int h = 0; h < HB && j->h0 + h < PRHS_UH; h++) {
        long slot = (j->b * a->shape.heads + j->u * PRHS_UH + j->h0 + h) * a->work.score_chunks + chunk;
        vstore4((float4)(z[h].top, z[h].sum, z[h].mid_top, z[h].mid_sum), slot, FLOATS(ws, a->work.norm_off));
#if PRHS_MOMENTS
        moments_put(j, &m, h, slot, ws);
#endif
    }
}

KERNEL void prhs_score(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem ws, const prhs_k_score args)
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
            if (!(a.modes >> set.mode & 1) || !prhs_is_drawn(a.sample, e.slot, u, e.pos0))
                continue;
            for (; next < count + chunks; next += num) {
                int chunk = (int)(next - count);
                job j = { &a, &set, pages_of(&a.batch, pages, b), b, u, 0, u * PRHS_UH / PRHS_G };
                for (; j.h0 < PRHS_UH; j.h0 += HB)
                    score_heads(&j, &e, chunk, chunk * size, min((chunk + 1) * size, n), q, k_mem, v_mem, ws);
            }
            count += chunks;
        }
    }
}
