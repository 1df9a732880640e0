/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where rows lie, found ahead of their time. A multiprocessor's loads come back in the order in which they were asked for, so that whoever
 * asks for an index behind rows that are on their way waits for all of them. A warp therefore finds the rows of its next 64 tokens while it
 * attends to the present ones, one step a tile: which chunk (its set and record), which tokens (the list), which pages; then the rows'
 * places lie in shared memory. Each step asks for what the next one needs, and comes just before rows are asked for.
 */
#ifndef PRHS_AHEAD_CUH
#define PRHS_AHEAD_CUH

#include "serve.cuh"

#define SEGMENT 64 /* tokens whose rows are found together */

/* A segment of a chunk, for some heads. */
struct segment {
    const byte *keys, *values; /* the KV head's first rows */
    i64 part;
    int record; /* of the first head; < 0: nothing is judged */
    unsigned char tokens, heads;
    bool begins : 1, ends : 1; /* what is summed: a chunk for these heads */
    bool asks : 1;             /* its queries are new */
};

/* A warp's, in shared memory. QUERY: bytes of the queries of the heads that share rows. */
template <int QUERY> struct __align__(16) ahead_shared {
    row_place at[2][SEGMENT]; /* before a segment's are known: what tells which chunk it is of */
    segment segments[2];
    job j;                    /* whose segments are found */
    bool real;
    __align__(16) byte queries[QUERY];
};

enum { AHEAD_NEW, AHEAD_TICKET, AHEAD_CHUNK, AHEAD_TOKENS, AHEAD_PAGES, AHEAD_READY, AHEAD_OVER };

/* A lane's part of it; what is not per lane is the same for all. `untaken`: queries that nobody has taken yet. */
struct finder {
    walk w;
    int state, base, last, h0, half, word;
    bool begins, asks, untaken;
    int token[2], page[2];
};

DEV void finder_begin(const prhs_k_attend &a, const walk &w, finder *f)
{
    f->w = w;
    f->state = AHEAD_NEW;
    f->base = f->last = f->half = 0;
    f->h0 = a.shape.unit_heads;
    f->begins = f->asks = f->untaken = false;
}

/* The next heads' queries into shared memory. */
template <int HB, int QUERY> DEV void ask_queries(const prhs_cu_serve &p, finder *f, ahead_shared<QUERY> *sh)
{
    const prhs_k_attend &a = p.attend;
    const int row = a.shape.dim * element(a.q.dtype), heads = min(HB, a.shape.unit_heads - f->h0);
    const byte *from = row_at(a.q, p.mem[PRHS_R_Q], sh->j.row, sh->j.u * a.shape.unit_heads + f->h0);
    const i64 step = a.q.head * element(a.q.dtype);
#pragma unroll 1
    for (int h = 0; h < heads; h++)
        for (int c = lane_id() * 16; c < row; c += 512)
            copy_async(sh->queries + h * row + c, from + h * step + c);
    copy_commit();
    f->asks = f->untaken = true;
}

/* Positions of the segment at `base`; what the set keeps in no list is known at once. */
DEV void ask_tokens(finder *f, const job &j, int base, bool begins)
{
    f->base = base;
    f->begins = begins;
    f->asks = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int k = min(base + lane_id() + 32 * i, f->last - 1);
        f->token[i] = j.work == PRHS_WORK_ALL ? k : set_position(j.set, j.list, k);
    }
    f->state = AHEAD_TOKENS;
}

/* The chunk whose view has come. */
template <int HB, int QUERY> DEV void begin_chunk(const prhs_cu_serve &p, finder *f, ahead_shared<QUERY> *sh)
{
    ((int *)sh->at[f->half])[lane_id()] = f->word;
    __syncwarp();
    if (lane_id() == 0)
        sh->real = make_job(p, *(const job_view *)sh->at[f->half], &sh->j);
    __syncwarp();
    if (sh->real) {
        f->last = sh->j.last;
        f->h0 = 0;
        ask_tokens(f, sh->j, sh->j.first, true);
        ask_queries<HB>(p, f, sh);
    } else { /* a count may stand for nothing */
        f->base = f->last = 0;
        f->h0 = p.attend.shape.unit_heads;
        f->state = AHEAD_NEW;
    }
}

DEV unsigned sixteens(const prhs_k_kv &kv, unsigned page, unsigned in, i64 page_step, i64 token_step)
{
    return (unsigned)((steps(page, page_step) + steps(in, token_step)) >> (kv.dtype == PRHS_K_F32 ? 2 : 3));
}

template <int HB, int QUERY> DEV void put_places(const prhs_cu_serve &p, finder *f, ahead_shared<QUERY> *sh)
{
    const prhs_k_attend &a = p.attend;
    const prhs_k_kv &kv = a.kv;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const unsigned in = (unsigned)f->token[i] - page_index(kv, f->token[i]) * (unsigned)kv.page_size;
        const unsigned id = page_id(kv, f->page[i]);
        const unsigned k = sixteens(kv, id, in, kv.k_page, kv.k_token), v = sixteens(kv, id, in, kv.v_page, kv.v_token);
        sh->at[f->half][lane_id() + 32 * i] = row_place{ k, v };
    }
    if (lane_id() == 0) {
        segment *s = &sh->segments[f->half];
        const int first = sh->j.u * a.shape.unit_heads + f->h0, head = small_quotient(first, a.shape.group), size = element(kv.dtype);
        s->keys = p.mem[PRHS_R_K] + (kv.k_off + head * kv.k_head * size);
        s->values = p.mem[PRHS_R_V] + (kv.v_off + head * kv.v_head * size);
        s->part = part_index(a, sh->j, first);
        s->record = sh->j.record < 0 ? -1 : sh->j.record + f->h0;
        s->tokens = (unsigned char)min(SEGMENT, f->last - f->base);
        s->heads = (unsigned char)min(HB, a.shape.unit_heads - f->h0);
        s->begins = f->begins;
        s->ends = f->base + SEGMENT >= f->last;
        s->asks = f->asks;
    }
    f->state = AHEAD_READY;
    __syncwarp();
}

/* After a chunk's last segment: the same rows for the next heads, the unit's next chunk, or another unit's. */
template <int HB, int QUERY> DEV void next_chunk(const prhs_cu_serve &p, const int *prefix, finder *f, ahead_shared<QUERY> *sh)
{
    const prhs_k_attend &a = p.attend;
    job *j = &sh->j;
    if (f->h0 + HB < a.shape.unit_heads) {
        if (f->untaken)
            return;
        f->h0 += HB;
        ask_tokens(f, *j, j->first, true);
        ask_queries<HB>(p, f, sh);
        return;
    }
    int item;
    bool same;
    if (!walk_next(&f->w, prefix, &item, &same)) {
        f->state = f->w.dynamic ? AHEAD_TICKET : AHEAD_OVER;
        if (f->w.dynamic)
            f->word = ask_ticket(f->w);
        return;
    }
    if (same && a.batch.rows == 1 && a.shape.unit_heads <= HB) {
        __syncwarp();
        if (lane_id() == 0) {
            j->first = j->last;
            j->last = min(j->last + j->size, j->tokens);
            j->chunk++;
        }
        __syncwarp();
        f->last = j->last;
        ask_tokens(f, *j, j->first, true);
        return;
    }
    /* Of another item of the same unit its number: where it stands among the unit's. */
    if (same)
        item = f->w.at - 1 - (f->w.index > f->w.t.first ? prefix[f->w.index - f->w.t.first - 1] : 0);
    f->word = ask_view(p, f->w.index, item);
    f->state = AHEAD_CHUNK;
}

/* One step. A step that would overwrite queries waits until they are taken. */
template <int HB, int QUERY> DEV void advance(const prhs_cu_serve &p, const int *prefix, finder *f, ahead_shared<QUERY> *sh)
{
    const prhs_k_kv &kv = p.attend.kv;
    if (f->state == AHEAD_TOKENS) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            f->page[i] = sh->j.pages[page_index(kv, f->token[i])];
        f->state = AHEAD_PAGES;
    } else if (f->state == AHEAD_PAGES) {
        put_places<HB>(p, f, sh);
    } else if (f->state == AHEAD_CHUNK) {
        if (!f->untaken)
            begin_chunk<HB>(p, f, sh);
    } else if (f->state < AHEAD_CHUNK) {
        if (f->state == AHEAD_TICKET)
            f->w.dynamic = walk_ticket(&f->w, __shfl_sync(FULL, f->word, 0));
        if (f->base + SEGMENT < f->last)
            ask_tokens(f, sh->j, f->base + SEGMENT, false);
        else
            next_chunk<HB>(p, prefix, f, sh);
    }
}

/* One step, or (all) as many as the next segment needs; fewer where queries have to be taken first. */
template <int HB, int QUERY> DEV void seek(const prhs_cu_serve &p, const int *prefix, finder *f, ahead_shared<QUERY> *sh, bool all)
{
    int before;
#pragma unroll 1
    do {
        before = f->state;
        advance<HB>(p, prefix, f, sh);
    } while (all && f->state < AHEAD_READY && f->state != before);
}

/* The segment that is ready: which half of the shared memory it has. The next one takes the other half. */
DEV int take_segment(finder *f)
{
    f->state = AHEAD_NEW;
    f->half ^= 1;
    return f->half ^ 1;
}

#endif
