/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill: causal attention of prompt rows. A work item takes ROWS rows of one head; keys come in tiles of 16 at absolute positions,
 * transposed once a tile, so that 16 tokens' scores of a row accumulate side by side. A row's bits depend on its position only.
 */
#include "common.clh"

#define ROWS 16
#define TILE 16
#define FOLD 16

typedef struct rows {
    int count;
    int index[ROWS], pos[ROWS], start[ROWS]; /* row, position, PSAW's start (0 where it lies inside the sinks) */
} rows;

/*
 * What a row has seen so far; top is of q.k, not scaled: near it the difference is exact. Tiles are gathered FOLD at a time in `part`,
 * and then added to `all`, which is relative to `all_top`: so that errors do not grow with the number of tiles.
 */
typedef struct running {
    float q[PRHS_D], top, all_top, sum, all_sum;
    int bad;
    vf part[NV], all[NV];
} running;

typedef struct tile {
    float k[PRHS_D][TILE]; /* transposed */
    vf v[TILE][NV];
    int first, n;
} tile;

void load_tile(const prhs_k_prefill *a, const __global int *pages, int head, mem k_mem, mem v_mem, tile *x)
{
    for (int t = 0; t < x->n; t++) {
        const __global uchar *k = k_row(&a->kv, k_mem, pages, x->first + t, head), *v = v_row(&a->kv, v_mem, pages, x->first + t, head);
        for (int i = 0; i < NV; i++) {
            float c[VW];
            VSTORE(load_vec(PRHS_KV, k, i), 0, c);
            for (int l = 0; l < VW; l++)
                x->k[i * VW + l][t] = c[l];
            x->v[t][i] = load_vec(PRHS_KV, v, i);
        }
    }
    for (int t = x->n; t < TILE; t++)
        for (int d = 0; d < PRHS_D; d++)
            x->k[d][t] = 0.0f;
}

/* q.k of the tile's keys. Sums of 8 instead of one long one, four side by side: faster, and closer to the exact dot product. */
float16 dots(const running *r, const tile *x)
{
    float16 dot = 0.0f;
    for (int c = 0; c < PRHS_D; c += 32) {
        float16 s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        for (int d = c; d < min(c + 32, PRHS_D); d += 4) {
            s0 += r->q[d] * vload16(0, x->k[d]);
            s1 += r->q[d + 1] * vload16(0, x->k[d + 1]);
            s2 += r->q[d + 2] * vload16(0, x->k[d + 2]);
            s3 += r->q[d + 3] * vload16(0, x->k[d + 3]);
        }
        dot += (s0 + s1) + (s2 + s3);
    }
    return dot;
}

void fold(running *r, float factor)
{
    float scale = exp((r->all_top - r->top) * factor);
    r->all_sum = r->all_sum * scale + r->sum;
    for (int v = 0; v < NV; v++) {
        r->all[v] = r->all[v] * scale + r->part[v];
        r->part[v] = 0.0f;
    }
    r->all_top = r->top;
    r->sum = 0.0f;
}

/* The tile's tokens from `start` on, and the sinks, up to the row's own position. */
void add_tile(running *r, const tile *x, int pos, int start, int sinks, float factor)
{
    float w[TILE];
    int mine[TILE]; /* a row that is not seen may hold NaN; one that is seen counts even where its weight has become 0 */
    int16 p = x->first + LANES, seen = (p <= pos) & ((p < sinks) | (p >= start));
    float16 s = select((float16)(-INFINITY), dots(r, x), seen);
    r->bad |= any(!(s < INFINITY));
    float m = fmax(max16(s), r->top), scale = exp((r->top - m) * factor);
    s = exp((s - m) * factor);
    vstore16(s, 0, w);
    vstore16(seen, 0, mine);
    r->sum = r->sum * scale + sum16(s);
    r->top = m;
    for (int v = 0; v < NV; v++) {
        vf add = 0.0f;
        for (int t = 0; t < x->n; t++)
            if (mine[t])
                add += w[t] * x->v[t][v];
        r->part[v] = r->part[v] * scale + add;
    }
    if (x->first / TILE % FOLD == FOLD - 1)
        fold(r, factor);
}

void put_row(const prhs_k_prefill *a, running *r, int index, int h, mem out, mem lse)
{
    fold(r, a->shape.scale);
    for (int v = 0; v < NV; v++)
        store_vec(PRHS_OUT, row_at(&a->out, out, index, h), v,
                  r->bad ? (vf)(NAN) : r->all_sum > 0.0f ? r->all[v] / r->all_sum : (vf)(0.0f));
    if (a->lse_off != PRHS_NONE)
        FLOATS(lse, a->lse_off)[(long)index * a->shape.heads + h] =
            r->bad ? NAN : r->all_sum > 0.0f ? r->top * a->shape.scale + log(r->all_sum) : -INFINITY;
}

void attend_rows(const prhs_k_prefill *a, const rows *x, int h, const __global int *pages, mem q, mem k_mem, mem v_mem, mem out, mem lse)
{
    running r[ROWS];
    tile t;
    int last = 0, lowest = INT_MAX;
    for (int i = 0; i < x->count; i++) {
        for (int v = 0; v < NV; v++) {
            VSTORE(load_vec(PRHS_Q, row_at(&a->q, q, x->index[i], h), v), v, r[i].q);
            r[i].part[v] = r[i].all[v] = 0.0f;
        }
        r[i].top = r[i].all_top = LOWEST;
        r[i].sum = r[i].all_sum = 0.0f;
        r[i].bad = 0;
        last = max(last, x->pos[i]);
        lowest = min(lowest, x->start[i]);
    }
    for (t.first = 0; t.first <= last; t.first += TILE) {
        t.n = min(TILE, last + 1 - t.first);
        if (t.first >= a->sinks && t.first + t.n <= lowest)
            continue;
        load_tile(a, pages, h / PRHS_G, k_mem, v_mem, &t);
        for (int i = 0; i < x->count; i++)
            if (x->pos[i] >= t.first && (t.first < a->sinks || t.first + t.n > x->start[i]))
                add_tile(&r[i], &t, x->pos[i], x->start[i], a->sinks, a->shape.scale);
    }
    for (int i = 0; i < x->count; i++)
        put_row(a, &r[i], x->index[i], h, out, lse);
}

KERNEL void prhs_prefill(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem out, mem lse, const prhs_k_prefill args)
{
    prhs_k_prefill a = args;
    const long id = get_global_id(0), num = get_global_size(0);
    long next = id, count = 0;
    for (long b = 0; b < a.batch.max_seqs; b++) {
        const __global prhs_seq *s = seq_at(&a.batch, seqs, b);
        if (!seq_ok(&a.batch, s) || !(s->flags & PRHS_SEQ_PREFILL))
            continue;
        const int tiles = (s->row_count + ROWS - 1) / ROWS, frozen = frozen_rows(&a, s, state);
        for (; next < count + (long)tiles * a.shape.heads; next += num) {
            /* The longest rows first: a round ends with short ones. */
            int tile = tiles - 1 - (int)((next - count) / a.shape.heads), h = (int)((next - count) % a.shape.heads);
            rows x;
            x.count = 0;
            for (int i = tile * ROWS; i < min((tile + 1) * ROWS, s->row_count); i++) {
                const int pos = s->kv_len - s->row_count + i;
                if (pos < frozen)
                    continue;
                x.index[x.count] = s->row_begin + i;
                x.pos[x.count] = pos;
                x.start[x.count++] = prompt_start(&a, pos);
            }
            if (x.count)
                attend_rows(&a, &x, h, pages_of(&a.batch, pages, b), q, k_mem, v_mem, out, lse);
        }
        count += (long)tiles * a.shape.heads;
    }
}
