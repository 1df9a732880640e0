/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill: causal attention of prompt rows. A work item takes ROWS rows of one head; keys come in tiles of 16 at absolute positions,
 * transposed once a tile, so that 16 tokens' scores of a row accumulate side by side. A row's bits depend on its position only.
 */
#include "common.clh"

#define ROWS 16
#define TILE 16

typedef struct rows {
    int count;
    int index[ROWS], pos[ROWS], start[ROWS]; /* row, position, PSAW's start (0 where it lies inside the sinks) */
} rows;

void attend_rows(const prhs_k_prefill *a, const rows *x, int h, const __global int *pages, mem q, mem k_mem, mem v_mem, mem out, mem lse)
{
    const int head = h / PRHS_G;
    float qs[ROWS][PRHS_D], kt[PRHS_D][TILE], top[ROWS], sum[ROWS];
    vf acc[ROWS][NV];
    int bad[ROWS], last = 0, lowest = INT_MAX;
    for (int i = 0; i < x->count; i++) {
        for (int v = 0; v < NV; v++) {
            VSTORE(load_vec(PRHS_Q, row_at(&a->q, q, x->index[i], h), v), v, qs[i]);
            acc[i][v] = 0.0f;
        }
        top[i] = LOWEST;
        sum[i] = 0.0f;
        bad[i] = 0;
        last = max(last, x->pos[i]);
        lowest = min(lowest, x->start[i]);
    }
    for (int k0 = 0; k0 <= last; k0 += TILE) {
        const int n = min(TILE, last + 1 - k0);
        if (k0 >= a->sinks && k0 + n <= lowest)
            continue;
        const __global uchar *vp[TILE];
        for (int t = 0; t < n; t++) {
            const __global uchar *kp = k_row(&a->kv, k_mem, pages, k0 + t, head);
            vp[t] = v_row(&a->kv, v_mem, pages, k0 + t, head);
            for (int v = 0; v < NV; v++) {
                float c[VW];
                VSTORE(load_vec(PRHS_KV, kp, v), 0, c);
                for (int l = 0; l < VW; l++)
                    kt[v * VW + l][t] = c[l];
            }
        }
        for (int t = n; t < TILE; t++)
            for (int d = 0; d < PRHS_D; d++)
                kt[d][t] = 0.0f;
        vf values[TILE][NV];
        for (int t = 0; t < n; t++)
            for (int v = 0; v < NV; v++)
                values[t][v] = load_vec(PRHS_KV, vp[t], v);
        for (int i = 0; i < x->count; i++) {
            if (x->pos[i] < k0 || (k0 >= a->sinks && k0 + n <= x->start[i]))
                continue;
            /* Sums of 8 instead of one long one, four side by side: faster, and closer to the exact dot product. */
            float16 dot = 0.0f;
            for (int c = 0; c < PRHS_D; c += 32) {
                float16 s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
                for (int d = c; d < min(c + 32, PRHS_D); d += 4) {
                    s0 += qs[i][d] * vload16(0, kt[d]);
                    s1 += qs[i][d + 1] * vload16(0, kt[d + 1]);
                    s2 += qs[i][d + 2] * vload16(0, kt[d + 2]);
                    s3 += qs[i][d + 3] * vload16(0, kt[d + 3]);
                }
                dot += (s0 + s1) + (s2 + s3);
            }
            int16 p = k0 + LANES, seen = (p <= x->pos[i]) & ((p < a->sinks) | (p >= x->start[i]));
            /* Scaled after the maximum is taken off: near it the difference is exact. */
            float16 s = select((float16)(-INFINITY), dot, seen);
            bad[i] |= any(!(s < INFINITY));
            float m = fmax(max16(s), top[i]), scale = exp((top[i] - m) * a->shape.scale), w[TILE];
            s = exp((s - m) * a->shape.scale);
            vstore16(s, 0, w);
            sum[i] = sum[i] * scale + sum16(s);
            top[i] = m;
            for (int v = 0; v < NV; v++) {
                vf add = 0.0f;
                for (int t = 0; t < n; t++)
                    if (w[t] != 0.0f)
                        add += w[t] * values[t][v];
                acc[i][v] = acc[i][v] * scale + add;
            }
        }
    }
    for (int i = 0; i < x->count; i++) {
        for (int v = 0; v < NV; v++)
            store_vec(PRHS_OUT, row_at(&a->out, out, x->index[i], h), v,
                      bad[i] ? (vf)(NAN) : sum[i] > 0.0f ? acc[i][v] / sum[i] : (vf)(0.0f));
        if (a->lse_off != PRHS_NONE)
            FLOATS(lse, a->lse_off)[(long)x->index[i] * a->shape.heads + h] =
                bad[i] ? NAN : sum[i] > 0.0f ? top[i] * a->shape.scale + log(sum[i]) : -INFINITY;
    }
}

__kernel void prhs_prefill(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem out, mem lse, const prhs_k_prefill args)
{
    prhs_k_prefill a = args;
    const long id = get_global_id(0), num = get_global_size(0);
    long next = id, count = 0;
    for (long b = 0; b < a.batch.max_seqs; b++) {
        const __global prhs_seq *s = seq_at(&a.batch, seqs, b);
        if (!seq_ok(&a.batch, s) || !(s->flags & PRHS_SEQ_PREFILL))
            continue;
        int tiles = (s->row_count + ROWS - 1) / ROWS, frozen = 0;
        if (a.etf && s->prompt_len > 0)
            frozen = (int)(((ulong)a.etf * (ulong)(s->prompt_len - 1)) >> 32);
        else if (a.etf && a.fault_off != PRHS_NONE)
            atomic_or((volatile __global int *)INTS(state, a.fault_off), PRHS_FAULT_PROMPT);
        for (; next < count + (long)tiles * a.shape.heads; next += num) {
            /* The longest rows first: a round ends with short ones. */
            int tile = tiles - 1 - (int)((next - count) / a.shape.heads), h = (int)((next - count) % a.shape.heads);
            rows x;
            x.count = 0;
            for (int i = tile * ROWS; i < min((tile + 1) * ROWS, s->row_count); i++) {
                int pos = s->kv_len - s->row_count + i, start = (int)(((ulong)a.psaw * (ulong)pos) >> 32);
                if (pos < frozen)
                    continue;
                x.index[x.count] = s->row_begin + i;
                x.pos[x.count] = pos;
                x.start[x.count++] = start <= a.sinks ? 0 : start;
            }
            if (x.count)
                attend_rows(&a, &x, h, pages_of(&a.batch, pages, b), q, k_mem, v_mem, out, lse);
        }
        count += (long)tiles * a.shape.heads;
    }
}
