/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend on GPUs: a group takes a chunk of a row's set for up to HB heads. Tiles of TILE rows: each lane has LOADS keys and as many
 * values under way, dots meet in local memory, and every team goes on with its own rows' scores, a running maximum and sums of its own.
 * At the chunk's end the teams are merged in their order.
 */
#include "gpu.clh"

#define HB (PRHS_UH < 4 ? PRHS_UH : 4)
#define LOADS 4
#define TILE (TEAMS * LOADS)
#define SCORES (LOADS * HB)                   /* of a team and tile */
#define OWN ((TEAMS * SCORES + GROUP - 1) / GROUP) /* of all scores, a lane adds up */
#define PITCH (TEAM + 1)                      /* parts of a score, padded against bank conflicts */
#define SPAN (TILE > 256 ? TILE : 256 / TILE * TILE) /* rows that are looked up together */
#define PARTS_SIZE (TEAMS * SCORES * PITCH > TEAMS * PRHS_D ? TEAMS * SCORES * PITCH : TEAMS * PRHS_D)

typedef struct memory {
    walk_memory walk;
    long k_at[SPAN], v_at[SPAN];  /* byte offsets of rows */
    float parts[PARTS_SIZE];      /* of scores; at the end the teams' sums */
    float scores[TEAMS * SCORES]; /* [team][load][head] */
    float top[TEAMS * HB], sum[TEAMS * HB];
} memory;

typedef struct job {
    const prhs_k_attend *a;
    const __global int *list, *pages;
    prhs_set set;
    int all, head; /* KV head */
    int team, lane;
    bool busy;     /* the lane is in a team */
    mem k, v;
} job;

/* Looks up where rows [first, first + n) of the set lie. */
void find_rows(const job *j, int first, int n, __local memory *m)
{
    const prhs_k_kv *kv = &j->a->kv;
    const long k_head = kv->k_off + j->head * kv->k_head * element(PRHS_KV), v_head = kv->v_off + j->head * kv->v_head * element(PRHS_KV);
    SYNC();
    for (int i = LID; i < n; i += GROUP) {
        const int p = j->all ? first + i : set_position(&j->set, j->list, first + i);
        const int2 at = place_of(kv, j->pages, p);
        m->k_at[i] = k_head + (at.x * kv->k_page + at.y * kv->k_token) * element(PRHS_KV);
        m->v_at[i] = v_head + (at.x * kv->v_page + at.y * kv->v_token) * element(PRHS_KV);
    }
    SYNC();
}

/* What a team has seen so far of a head: a lane's channels. */
typedef struct running {
    float top, sum;
    vf acc;
} running;

/* The team's rows of a tile of n rows, of which the lane loads its channels; rows past the end are zero and never count. */
void load_tile(const job *j, int first, int n, const __local memory *m, raw *k, raw *v)
{
    const int off = j->lane * 8 * element(PRHS_KV);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int t = i * TEAMS + j->team;
        const bool there = j->busy && t < n;
        k[i] = there ? load_raw(j->k + m->k_at[first + t] + off) : (raw)(0);
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int t = i * TEAMS + j->team;
        const bool there = j->busy && t < n;
        v[i] = there ? load_raw(j->v + m->v_at[first + t] + off) : (raw)(0);
    }
}

/* Scores of a tile into local memory. */
void score_tile(const job *j, const raw *k, const vf *q, int n, __local memory *m)
{
    if (j->busy) {
        __local float *out = m->parts + j->team * SCORES * PITCH + j->lane;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const vf x = unpack(k[i]);
#pragma unroll
            for (int h = 0; h < HB; h++)
                out[(i * HB + h) * PITCH] = sum_lanes(x * q[h]);
        }
    }
    SYNC();
#pragma unroll
    for (int o = 0; o < OWN; o++) {
        const int i = LID + o * GROUP, token = i % SCORES / HB * TEAMS + i / SCORES;
        if (i < TEAMS * SCORES) {
            const __local float *part = m->parts + i * PITCH;
            float dot = 0.0f;
#pragma unroll
            for (int l = 0; l < TEAM; l++)
                dot += part[l];
            m->scores[i] = token < n ? dot * j->a->shape.scale : -INFINITY;
        }
    }
    SYNC();
}

/* The team's rows with their weights. A score that is NaN or +inf makes the sum NaN, and all that comes of it. */
void add_tile(const job *j, const raw *v, int n, running *x, const __local memory *m)
{
    float w[HB][LOADS];
    const __local float *s = m->scores + j->team * SCORES;
#pragma unroll
    for (int h = 0; h < HB; h++) {
        float top = x[h].top;
        bool bad = false;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            w[h][i] = s[i * HB + h];
            bad |= bad_score(w[h][i]);
            top = fmax(top, w[h][i]);
        }
        const float scale = exp(x[h].top - top);
        float sum = bad ? NAN : 0.0f;
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            sum += w[h][i] = exp(w[h][i] - top);
        x[h].sum = x[h].sum * scale + sum;
        x[h].acc *= scale;
        x[h].top = top;
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const vf y = unpack(v[i]);
#pragma unroll
        for (int h = 0; h < HB; h++)
            x[h].acc += w[h][i] * y;
    }
}

/* Merges the teams and writes heads [h0, h0 + HB) of the unit; `at` is the part of head h0. */
void put_parts(const job *j, const running *x, int h0, long at, mem ws, __local memory *m)
{
    const prhs_k_work *work = &j->a->work;
    if (j->busy && j->lane == 0)
        for (int h = 0; h < HB; h++) {
            m->top[j->team * HB + h] = x[h].top;
            m->sum[j->team * HB + h] = x[h].sum;
        }
    SYNC();
    for (int h = 0; h < HB && h0 + h < PRHS_UH; h++) {
        float top = LOWEST, sum = 0.0f;
        for (int t = 0; t < TEAMS; t++)
            top = fmax(top, m->top[t * HB + h]);
        for (int t = 0; t < TEAMS; t++)
            sum += m->sum[t * HB + h] * exp(m->top[t * HB + h] - top);
        if (j->busy)
            vstore8(x[h].acc * exp(x[h].top - top), 0, m->parts + j->team * PRHS_D + j->lane * 8);
        SYNC();
        const long slot = at + (long)h * work->chunks;
        for (int d = LID; d < PRHS_D; d += GROUP) {
            float o = 0.0f;
            for (int t = 0; t < TEAMS; t++)
                o += m->parts[t * PRHS_D + d];
            FLOATS(ws, work->part_off)[slot * PRHS_D + d] = isnan(sum) ? NAN : sum > 0.0f ? o / sum : 0.0f;
        }
        if (LID == 0)
            FLOATS(ws, work->part_lse_off)[slot] = isnan(sum) ? NAN : sum > 0.0f ? top + log(sum) : -INFINITY;
        SYNC();
    }
}

/* Heads [h0, h0 + HB) of the unit; heads past the unit compute the last one again and are not written. */
void attend_heads(const job *j, long q_row, int u, int h0, int first, int last, long at, mem q_mem, mem ws, __local memory *m)
{
    running x[HB];
    vf q[HB];
#pragma unroll
    for (int h = 0; h < HB; h++) {
        const int head = u * PRHS_UH + min(h0 + h, PRHS_UH - 1);
        q[h] = j->busy ? load_vec(PRHS_Q, row_at(&j->a->q, q_mem, q_row, head), j->lane) : (vf)(0.0f);
        x[h].top = LOWEST;
        x[h].sum = 0.0f;
        x[h].acc = 0.0f;
    }
    for (int span = first; span < last; span += SPAN) {
        const int end = min(span + SPAN, last);
        find_rows(j, span, end - span, m);
        for (int i = span; i < end; i += TILE) {
            raw k[LOADS], v[LOADS];
            load_tile(j, i - span, end - i, m, k, v);
            score_tile(j, k, q, end - i, m);
            add_tile(j, v, end - i, x, m);
        }
    }
    put_parts(j, x, h0, at, ws, m);
}

/* What a place of the walk stands for. */
typedef struct item {
    long b;
    int r, u;
} item;

item item_of(const prhs_k_attend *a, long i)
{
    item x;
    x.u = (int)(i % a->shape.units);
    x.r = (int)(i / a->shape.units % a->batch.rows);
    x.b = i / a->shape.units / a->batch.rows;
    return x;
}

int end_of(const entry *e, int r) { return e->flags & PRHS_SEQ_FULL ? e->kv_len - 1 : e->pos0 + r; }

/* How many tokens item i attends to; *work: how. */
int tokens_of(const prhs_k_attend *a, long i, mem seqs, mem ws, int *work)
{
    const item x = item_of(a, i);
    const entry e = entry_of(&a->batch, seqs, x.b);
    const prhs_set set = *set_at(ws, &a->work, &a->shape, x.b, x.u);
    *work = a->work.work_off == PRHS_NONE ? PRHS_WORK_SET : INTS(ws, a->work.work_off)[i];
    return x.r < e.rows ? work_tokens(&set, *work, end_of(&e, x.r)) : 0;
}

void attend_chunk(const prhs_k_attend *a, long i, int chunk, mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem ws,
                  __local memory *m)
{
    job j;
    int work;
    const item x = item_of(a, i);
    const entry e = entry_of(&a->batch, seqs, x.b);
    const int n = tokens_of(a, i, seqs, ws, &work), size = chunk_tokens(n, a->work.chunk_min, a->work.chunks);
    j.a = a;
    j.set = *set_at(ws, &a->work, &a->shape, x.b, x.u);
    j.list = a->state.list_off == PRHS_NONE ? 0 : SLOT_AT(state, &a->state, list_off, e.slot, int) + (long)x.u * a->state.list_cap;
    j.pages = pages_of(&a->batch, pages, x.b);
    j.all = work == PRHS_WORK_ALL;
    j.head = x.u * PRHS_UH / PRHS_G;
    j.team = min(LID / TEAM, TEAMS - 1);
    j.lane = LID % TEAM;
    j.busy = LID < TEAMS * TEAM;
    j.k = k_mem;
    j.v = v_mem;
    for (int h0 = 0; h0 < PRHS_UH; h0 += HB) {
        const long at = ((i / a->shape.units) * a->shape.heads + x.u * PRHS_UH + h0) * a->work.chunks + chunk;
        attend_heads(&j, e.row0 + x.r, x.u, h0, chunk * size, min((chunk + 1) * size, n), at, q, ws, m);
    }
}

KERNEL void prhs_attend(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem ws, const prhs_k_attend args)
{
    __local memory m;
    prhs_k_attend a = args;
    const long items = (long)a.batch.max_seqs * a.batch.rows * a.shape.units;
    walk w = walk_begin(items);
    for (long first = 0; first << w.n < items; first += WINDOW) {
        int counts[EACH], place, chunk, work;
        for (int i = 0; i < EACH; i++) {
            const long item = walk_item(&w, first + i * GROUP + LID);
            const int n = item < items ? tokens_of(&a, item, seqs, ws, &work) : 0;
            counts[i] = n > 0 ? chunk_count(n, a.work.chunk_min, a.work.chunks) : 0;
        }
        walk_window(&w, counts, &m.walk);
        for (; walk_chunk(&w, &m.walk, &place, &chunk); walk_on(&w))
            attend_chunk(&a, walk_item(&w, first + place), chunk, seqs, pages, q, k_mem, v_mem, state, ws, &m);
    }
}
