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

/* What a head has seen so far. */
typedef struct running {
    float top, sum;
    int bad;
    vf acc[NV];
} running;

/* Scores of a block for HB heads: a key row is loaded and converted once. */
void score_block(const prhs_k_attend *a, const __global uchar *const *k, const __global uchar *const *q, int n, float s[HB][BLOCK])
{
    for (int t = 0; t < n; t++) {
        vf dot[HB];
#pragma unroll
        for (int h = 0; h < HB; h++)
            dot[h] = 0.0f;
#pragma unroll
        for (int v = 0; v < NV; v++) {
            vf x = load_vec(PRHS_KV, k[t], v);
#pragma unroll
            for (int h = 0; h < HB; h++)
                dot[h] += x * load_vec(PRHS_Q, q[h], v);
        }
#pragma unroll
        for (int h = 0; h < HB; h++)
            s[h][t] = sum_lanes(dot[h]) * a->shape.scale;
    }
}

/* Turns a block's scores into weights relative to the running maximum. */
void soften(running *x, int n, float *s)
{
    for (int t = n; t < BLOCK; t++)
        s[t] = -INFINITY;
    float16 w = vload16(0, s);
    x->bad |= any(!(w < INFINITY));
    float m = fmax(max16(w), x->top), scale = exp(x->top - m);
    w = exp(w - m);
    vstore16(w, 0, s);
    x->top = m;
    x->sum = x->sum * scale + sum16(w);
    if (scale != 1.0f)
        for (int v = 0; v < NV; v++)
            x->acc[v] *= scale;
}

void add_values(running *x, const __global uchar *const *rows, int n, float s[HB][BLOCK])
{
    for (int t = 0; t < n; t++)
#pragma unroll
        for (int v = 0; v < NV; v++) {
            vf y = load_vec(PRHS_KV, rows[t], v);
#pragma unroll
            for (int h = 0; h < HB; h++)
                x[h].acc[v] += s[h][t] * y;
        }
}

void put_part(const prhs_k_attend *a, const running *x, long slot, mem ws)
{
    __global float *o = FLOATS(ws, a->work.part_off) + slot * PRHS_D;
    for (int v = 0; v < NV; v++)
        VSTORE(x->bad ? (vf)(NAN) : x->sum > 0.0f ? x->acc[v] / x->sum : (vf)(0.0f), v, o);
    FLOATS(ws, a->work.part_lse_off)[slot] = x->bad ? NAN : x->sum > 0.0f ? x->top + log(x->sum) : -INFINITY;
}

/* Heads [h0, h0 + HB) of the unit; heads past the unit compute the last one again and are not written. */
void attend_heads(const prhs_k_attend *a, const part *p, const entry *e, int r, int u, int h0, int first, int last, long at, mem q,
                  mem k_mem, mem v_mem, mem ws)
{
    running x[HB];
    const __global uchar *kp[2][BLOCK], *vp[2][BLOCK], *qp[HB];
    for (int h = 0; h < HB; h++) {
        qp[h] = row_at(&a->q, q, e->row0 + r, u * PRHS_UH + min(h0 + h, PRHS_UH - 1));
        x[h].top = LOWEST;
        x[h].sum = 0.0f;
        x[h].bad = 0;
        for (int v = 0; v < NV; v++)
            x[h].acc[v] = 0.0f;
    }
    int side = 0;
    rows_of(a, p, first, min(BLOCK, last - first), k_mem, v_mem, kp[0], vp[0]);
    for (int i = first; i < last; i += BLOCK, side ^= 1) {
        int n = min(BLOCK, last - i);
        float s[HB][BLOCK];
        if (i + BLOCK < last) {
            rows_of(a, p, i + BLOCK, min(BLOCK, last - i - BLOCK), k_mem, v_mem, kp[side ^ 1], vp[side ^ 1]);
            fetch_rows(kp[side ^ 1], vp[side ^ 1]);
        }
        score_block(a, kp[side], qp, n, s);
#pragma unroll
        for (int h = 0; h < HB; h++)
            soften(&x[h], n, s[h]);
        add_values(x, vp[side], n, s);
    }
    for (int h = 0; h < HB && h0 + h < PRHS_UH; h++)
        put_part(a, &x[h], at + (long)(h0 + h) * a->work.chunks, ws);
}

/* Groups walk all rows of all units and take every num-th chunk that is really there: what capacity exceeds costs nothing. */
KERNEL void prhs_attend(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem ws, const prhs_k_attend args)
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
