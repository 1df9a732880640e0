/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: partial attention of one row of a unit over one chunk of its set. Tokens go in blocks of 16: scores of all heads, one running
 * maximum a block, then the values; a K/V row is loaded and converted once for up to HB heads.
 */
#include "common.clh"

#define HB (PRHS_UH < 4 ? PRHS_UH : 4)
#define BLOCK 16

typedef struct part {
    const __global int *list, *pages;
    int all, head; /* KV head */
    prhs_set set;
} part;

int position(const part *p, int i) { return p->all ? i : set_position(&p->set, p->list, i); }

/* Byte addresses of the block's K and V rows; short blocks repeat the last row. */
void rows_of(const prhs_k_attend *a, const part *p, int first, int n, mem k_mem, mem v_mem, const __global uchar **k,
             const __global uchar **v)
{
    for (int t = 0; t < BLOCK; t++) {
        int j = position(p, first + min(t, n - 1));
        k[t] = k_row(&a->kv, k_mem, p->pages, j, p->head);
        v[t] = v_row(&a->kv, v_mem, p->pages, j, p->head);
    }
}

/* Asks for the rows of the next block early: scattered rows are bound by latency. */
void fetch_rows(const __global uchar **k, const __global uchar **v)
{
    int lines = PRHS_D * (PRHS_KV == PRHS_K_F32 ? 4 : 2);
    for (int t = 0; t < BLOCK; t++) {
        prefetch(k[t], lines);
        prefetch(v[t], lines);
    }
}

/* Heads [h0, h0 + HB) of the unit; heads past the unit compute the last one again and are not written. */
void attend_heads(const prhs_k_attend *a, const part *p, const entry *e, int r, int u, int h0, int first, int last, long at, mem q,
                  mem k_mem, mem v_mem, mem ws)
{
    vf acc[HB][NV];
    float top[HB], sum[HB];
    int bad[HB];
    const __global uchar *kp[2][BLOCK], *vp[2][BLOCK], *qp[HB];
    for (int h = 0; h < HB; h++) {
        qp[h] = row_at(&a->q, q, e->row0 + r, u * PRHS_UH + min(h0 + h, PRHS_UH - 1));
        top[h] = LOWEST;
        sum[h] = 0.0f;
        bad[h] = 0;
        for (int v = 0; v < NV; v++)
            acc[h][v] = 0.0f;
    }
    int side = 0;
    rows_of(a, p, first, min(BLOCK, last - first), k_mem, v_mem, kp[0], vp[0]);
    for (int i = first; i < last; i += BLOCK, side ^= 1) {
        int n = min(BLOCK, last - i);
        if (i + BLOCK < last) {
            rows_of(a, p, i + BLOCK, min(BLOCK, last - i - BLOCK), k_mem, v_mem, kp[side ^ 1], vp[side ^ 1]);
            fetch_rows(kp[side ^ 1], vp[side ^ 1]);
        }
        float s[HB][BLOCK];
        for (int t = 0; t < n; t++) {
            vf dot[HB];
#pragma unroll
            for (int h = 0; h < HB; h++)
                dot[h] = 0.0f;
#pragma unroll
            for (int v = 0; v < NV; v++) {
                vf x = load_vec(PRHS_KV, kp[side][t], v);
#pragma unroll
                for (int h = 0; h < HB; h++)
                    dot[h] += x * load_vec(PRHS_Q, qp[h], v);
            }
#pragma unroll
            for (int h = 0; h < HB; h++)
                s[h][t] = sum_lanes(dot[h]) * a->shape.scale;
        }
#pragma unroll
        for (int h = 0; h < HB; h++) {
            for (int t = n; t < BLOCK; t++)
                s[h][t] = -INFINITY;
            float16 x = vload16(0, s[h]);
            bad[h] |= any(!(x < INFINITY));
            float16 m16 = x;
            float8 m8 = fmax(m16.lo, m16.hi);
            float4 m4 = fmax(m8.lo, m8.hi);
            float m = fmax(fmax(fmax(m4.x, m4.y), fmax(m4.z, m4.w)), top[h]), scale = exp(top[h] - m);
            top[h] = m;
            x = exp(x - m);
            vstore16(x, 0, s[h]);
            float8 s8 = x.lo + x.hi;
            float4 s4 = s8.lo + s8.hi;
            sum[h] = sum[h] * scale + ((s4.x + s4.z) + (s4.y + s4.w));
            if (scale != 1.0f)
                for (int v = 0; v < NV; v++)
                    acc[h][v] *= scale;
        }
        /* The block's own sums first: shorter chains of additions. */
        for (int t = 0; t < n; t++)
#pragma unroll
            for (int v = 0; v < NV; v++) {
                vf x = load_vec(PRHS_KV, vp[side][t], v);
#pragma unroll
                for (int h = 0; h < HB; h++)
                    acc[h][v] += s[h][t] * x;
            }
    }
    for (int h = 0; h < HB && h0 + h < PRHS_UH; h++) {
        long slot = at + (long)(h0 + h) * a->work.chunks;
        __global float *o = FLOATS(ws, a->work.part_off) + slot * PRHS_D;
        float lse = bad[h] ? NAN : sum[h] > 0.0f ? top[h] + log(sum[h]) : -INFINITY;
        for (int v = 0; v < NV; v++)
            VSTORE(bad[h] ? (vf)(NAN) : sum[h] > 0.0f ? acc[h][v] / sum[h] : (vf)(0.0f), v, o);
        FLOATS(ws, a->work.part_lse_off)[slot] = lse;
    }
}

/* Groups walk all rows of all units and take every num-th chunk that is really there: what capacity exceeds costs nothing. */
__kernel void prhs_attend(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem ws, const prhs_k_attend args)
{
    prhs_k_attend a = args;
    const long id = get_global_id(0), num = get_global_size(0);
    long next = id, count = 0;
    for (long b = 0; b < a.batch.max_seqs; b++) {
        entry e = entry_of(&a.batch, seqs, b);
        for (int r = 0; r < e.rows; r++)
            for (int u = 0; u < a.shape.units; u++) {
                long row = b * a.batch.rows + r;
                int work = a.work.work_off == PRHS_NONE ? PRHS_WORK_SET : INTS(ws, a.work.work_off)[row * a.shape.units + u];
                if (work == PRHS_WORK_NONE)
                    continue;
                part p;
                p.set = *set_at(ws, &a.work, &a.shape, b, u);
                int end = e.flags & PRHS_SEQ_FULL ? e.kv_len - 1 : e.pos0 + r, n = work_tokens(&p.set, work, end);
                int size = chunk_tokens(n, a.work.chunk_min, a.work.chunks), chunks = (n + size - 1) / size;
                if (next >= count + chunks) {
                    count += chunks;
                    continue;
                }
                p.list = a.state.list_off == PRHS_NONE
                             ? 0
                             : SLOT_AT(state, &a.state, list_off, e.slot, int) + (long)u * a.state.list_cap;
                p.pages = pages_of(&a.batch, pages, b);
                p.all = work == PRHS_WORK_ALL;
                p.head = u * PRHS_UH / PRHS_G;
                for (; next < count + chunks; next += num) {
                    int chunk = (int)(next - count);
                    long at = (row * a.shape.heads + u * PRHS_UH) * a.work.chunks + chunk;
                    for (int h0 = 0; h0 < PRHS_UH; h0 += HB)
                        attend_heads(&a, &p, &e, r, u, h0, chunk * size, min((chunk + 1) * size, n), at, q, k_mem, v_mem, ws);
                }
                count += chunks;
            }
    }
}
