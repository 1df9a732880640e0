/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score on GPUs: a group takes a chunk of positions for up to HB heads. Tiles of TILE keys, of which each lane has LOADS under way; dots meet
 * in local memory. Normalisers are summed by the work-items that add dots up, moments by the lanes that hold the keys; both are merged at
 * the chunk's end, in an order of their own.
 */
#include "gpu.clh"

#define HB (PRHS_UH < 4 ? PRHS_UH : 4)
#define LOADS 4
#define TILE (TEAMS * LOADS)
#define SCORES (LOADS * HB)                        /* of a team and tile */
#define OWN ((TEAMS * SCORES + GROUP - 1) / GROUP) /* of all scores, a work-item adds up */
#define PITCH (TEAM + 1)                           /* parts of a score, padded against bank conflicts */
#define SPAN (TILE > 256 ? TILE : 256 / TILE * TILE) /* rows that are looked up together */
#define PARTS_SIZE (TEAMS * SCORES * PITCH > TEAMS * PRHS_D ? TEAMS * SCORES * PITCH : TEAMS * PRHS_D)

typedef struct memory {
    walk_memory walk;
    int2 at[SPAN];                /* page and place of rows */
    float parts[PARTS_SIZE];      /* of scores; at the end what is merged */
    float scores[TEAMS * SCORES]; /* [team][load][head] */
} memory;

typedef struct job {
    const prhs_k_score *a;
    const __global int *pages;
    long b;
    int u, h0, head; /* unit, first head of the block within it, KV head */
    prhs_set set;
    int team, lane;
    bool busy; /* the lane is in a team */
    mem k, v, ws;
} job;

bool scored(const job *j, int p) { return j->a->full || p < j->set.sink_end || p >= j->set.mid_begin; }
bool in_middle(const job *j, int p) { return p >= j->set.mid_begin && p < j->set.mid_end; }

const __global uchar *key_at(const job *j, int2 at)
{
    const prhs_k_kv *kv = &j->a->kv;
    return j->k + kv->k_off + (at.x * kv->k_page + at.y * kv->k_token + j->head * kv->k_head + j->lane * 8) * element(PRHS_KV);
}

const __global uchar *value_at(const job *j, int2 at)
{
    const prhs_k_kv *kv = &j->a->kv;
    return j->v + kv->v_off + (at.x * kv->v_page + at.y * kv->v_token + j->head * kv->v_head + j->lane * 8) * element(PRHS_KV);
}

/* A largest score, and the sum of exponentials relative to it. */
typedef struct tally {
    float top, sum;
} tally;

void count_score(tally *t, float s)
{
    const float e = exp(fmin(t->top, s) - fmax(t->top, s));
    t->sum = s > t->top ? t->sum * e + 1.0f : t->sum + e;
    t->top = fmax(t->top, s);
}

tally add_tallies(tally a, tally b)
{
    const float top = fmax(a.top, b.top);
    tally t = { top, a.sum * exp(a.top - top) + b.sum * exp(b.top - top) };
    return t;
}

/* Scores of the tile from position `first` on, of which n are the chunk's; into local memory and, where they count, the workspace. */
void score_tile(const job *j, const raw *k, const vf *q, int first, int n, tally *middle, tally *rest, __local memory *m)
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
        const int i = LID + o * GROUP, t = i / HB, h = i % HB, p = first + t;
        if (i < TEAMS * SCORES) {
            const __local float *part = m->parts + i * PITCH;
            float dot = 0.0f;
#pragma unroll
            for (int l = 0; l < TEAM; l++)
                dot += part[l];
            dot *= j->a->shape.scale;
            m->scores[i] = dot;
            if (t < n && scored(j, p) && j->h0 + h < PRHS_UH) {
                const prhs_k_work *w = &j->a->work;
                FLOATS(j->ws, w->score_off)[(j->b * j->a->shape.heads + j->u * PRHS_UH + j->h0 + h) * w->score_stride + p] = dot;
                if (!bad_score(dot) && in_middle(j, p))
                    count_score(&middle[o], dot);
                else if (!bad_score(dot))
                    count_score(&rest[o], dot);
            }
        }
    }
    SYNC();
}

/* Merges the normalisers and writes them; leaves head h's largest score of the middle in m->scores[h]. */
void put_norms(const job *j, const tally *middle, const tally *rest, long slot, __local memory *m)
{
    for (int o = 0; o < OWN; o++)
        if (LID + o * GROUP < TEAMS * SCORES)
            vstore4((float4)(rest[o].top, rest[o].sum, middle[o].top, middle[o].sum), LID + o * GROUP, m->parts);
    SYNC();
    for (int left = TILE; left > 1; left = (left + 1) / 2) {
        const int half_way = (left + 1) / 2;
        for (int i = LID; i < (left - half_way) * HB; i += GROUP) {
            const float4 x = vload4(i, m->parts), y = vload4(i + half_way * HB, m->parts);
            const tally r = add_tallies((tally){ x.x, x.y }, (tally){ y.x, y.y }), c = add_tallies((tally){ x.z, x.w }, (tally){ y.z, y.w });
            vstore4((float4)(r.top, r.sum, c.top, c.sum), i, m->parts);
        }
        SYNC();
    }
    if (LID < HB) {
        const float4 x = vload4(LID, m->parts);
        const tally all = add_tallies((tally){ x.x, x.y }, (tally){ x.z, x.w });
        m->scores[LID] = x.z;
        if (j->h0 + LID < PRHS_UH)
            vstore4((float4)(all.top, all.sum, x.z, x.w), slot + LID * (long)j->a->work.score_chunks, FLOATS(j->ws, j->a->work.norm_off));
    }
    SYNC();
}

#if PRHS_MOMENTS
/* A team's sums over its rows of the middle: a lane's channels. */
typedef struct moments {
    vf m1[HB], m2[HB];
    float top[HB];
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
    vf value[HB];
#endif
} moments;

/* Weights of the team's rows relative to its largest score so far; what was summed before fades as that rises. */
void weigh(const job *j, int first, int n, moments *x, float w[HB][LOADS], const __local memory *m)
{
    const __local float *s = m->scores + j->team * SCORES;
#pragma unroll
    for (int h = 0; h < HB; h++) {
        float top = x->top[h];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int t = j->team * LOADS + i;
            const float score = s[i * HB + h];
            w[h][i] = t < n && in_middle(j, first + t) ? score : -INFINITY;
            top = fmax(top, bad_score(w[h][i]) ? -INFINITY : w[h][i]);
        }
        const float scale = exp(x->top[h] - top);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            w[h][i] = bad_score(w[h][i]) ? NAN : exp(w[h][i] - top);
        x->m1[h] *= scale;
        x->m2[h] *= scale;
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        x->value[h] *= scale;
#endif
        x->top[h] = top;
    }
}

void add_moments(const job *j, const raw *k, const raw *v, vf pivot, int first, int n, moments *x, const __local memory *m)
{
    float w[HB][LOADS];
    weigh(j, first, n, x, w, m);
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int t = j->team * LOADS + i;
        if (t < n && in_middle(j, first + t)) {
            const vf y = unpack(k[i]) - pivot, yy = y * y;
#pragma unroll
            for (int h = 0; h < HB; h++) {
                x->m1[h] += w[h][i] * y;
                x->m2[h] += w[h][i] * yy;
            }
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
            const vf z = unpack(v[i]);
#pragma unroll
            for (int h = 0; h < HB; h++)
                x->value[h] += w[h][i] * z;
#endif
        }
    }
}

/* The teams' x, times `scale`, added up into out[PRHS_D]. */
void put_sum(const job *j, vf x, float scale, bool wanted, __global float *out, __local memory *m)
{
    if (j->busy)
        vstore8(x * scale, 0, m->parts + j->team * PRHS_D + j->lane * 8);
    SYNC();
    for (int d = LID; wanted && d < PRHS_D; d += GROUP) {
        float sum = 0.0f;
        for (int t = 0; t < TEAMS; t++)
            sum += m->parts[t * PRHS_D + d];
        out[d] = sum;
    }
    SYNC();
}

void put_moments(const job *j, const moments *x, long slot, __local memory *m)
{
#pragma unroll
    for (int h = 0; h < HB; h++) {
        const long at = slot + h * (long)j->a->work.score_chunks;
        const float scale = exp(x->top[h] - m->scores[h]);
        __global float *out = FLOATS(j->ws, j->a->work.mom_off) + at * 2 * PRHS_D;
        const bool wanted = j->h0 + h < PRHS_UH;
        put_sum(j, x->m1[h], scale, wanted, out, m);
        put_sum(j, x->m2[h], scale, wanted, out + PRHS_D, m);
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        put_sum(j, x->value[h], scale, wanted, FLOATS(j->ws, j->a->work.vmid_off) + at * PRHS_D, m);
#endif
    }
}
#endif

/* The team's rows of a tile of n rows, of which the lane loads its channels; what is not scored is not read. */
void load_tile(const job *j, int first, int n, int from, const __local memory *m, raw *k, raw *v)
{
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int t = j->team * LOADS + i;
        k[i] = j->busy && t < n && scored(j, first + t) ? load_raw(key_at(j, m->at[from + t])) : (raw)(0);
    }
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        const int t = j->team * LOADS + i;
        v[i] = j->busy && t < n && in_middle(j, first + t) ? load_raw(value_at(j, m->at[from + t])) : (raw)(0);
    }
#endif
}

/* Looks up where positions [first, first + n) lie. */
void find_rows(const job *j, int first, int n, __local memory *m)
{
    SYNC();
    for (int i = LID; i < n; i += GROUP)
        m->at[i] = place_of(&j->a->kv, j->pages, first + i);
    SYNC();
}

/* Between the sinks and the middle (PSAW) nothing is scored, unless everything is. */
int past_gap(const job *j, int p) { return j->a->full || p < j->set.sink_end ? p : max(p, j->set.mid_begin); }

/* HB heads over the chunk [first, last); heads past the unit compute its last one again and are not written. */
void score_heads(const job *j, long q_row, int chunk, int first, int last, mem q_mem, __local memory *m)
{
    const prhs_k_score *a = j->a;
    vf q[HB];
    tally middle[OWN], rest[OWN];
#if PRHS_MOMENTS
    moments x;
    vf pivot = 0.0f;
    if (j->busy && j->set.mid_end > j->set.mid_begin)
        pivot = unpack(load_raw(key_at(j, place_of(&a->kv, j->pages, j->set.mid_end - 1))));
#pragma unroll
    for (int h = 0; h < HB; h++) {
        x.m1[h] = x.m2[h] = 0.0f;
        x.top[h] = LOWEST;
#if PRHS_MOMENTS == PRHS_K_MOMENTS_VALUES
        x.value[h] = 0.0f;
#endif
    }
#endif
#pragma unroll
    for (int h = 0; h < HB; h++)
        q[h] = load_vec(PRHS_Q, row_at(&a->q, q_mem, q_row, j->u * PRHS_UH + min(j->h0 + h, PRHS_UH - 1)), j->lane);
#pragma unroll
    for (int o = 0; o < OWN; o++)
        middle[o] = rest[o] = (tally){ LOWEST, 0.0f };
    for (int span = past_gap(j, first); span < last; span = past_gap(j, span + SPAN)) {
        const int end = min(span + SPAN, last);
        find_rows(j, span, end - span, m);
        for (int i = span; i < end; i += TILE) {
            raw k[LOADS], v[LOADS];
            load_tile(j, i, end - i, i - span, m, k, v);
            score_tile(j, k, q, i, end - i, middle, rest, m);
#if PRHS_MOMENTS
            add_moments(j, k, v, pivot, i, end - i, &x, m);
#endif
        }
    }
    SYNC(); /* the last tile's scores have been read */
    const long slot = (j->b * a->shape.heads + j->u * PRHS_UH + j->h0) * a->work.score_chunks + chunk;
    put_norms(j, middle, rest, slot, m);
#if PRHS_MOMENTS
    put_moments(j, &x, slot, m);
#endif
}

/* How many tokens item i has to score. */
int tokens_of(const prhs_k_score *a, long i, mem seqs, mem ws)
{
    const long b = i / a->shape.units;
    const int u = (int)(i % a->shape.units);
    const entry e = entry_of(&a->batch, seqs, b);
    const int mode = set_at(ws, &a->work, &a->shape, b, u)->mode;
    return e.kind != IDLE && a->modes >> mode & 1 && prhs_is_drawn(a->sample, e.slot, u, e.pos0) ? e.pos0 + 1 : 0;
}

void score_chunk(const prhs_k_score *a, long i, int chunk, mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem ws, __local memory *m)
{
    job j;
    j.a = a;
    j.b = i / a->shape.units;
    j.u = (int)(i % a->shape.units);
    j.head = j.u * PRHS_UH / PRHS_G;
    j.set = *set_at(ws, &a->work, &a->shape, j.b, j.u);
    j.pages = pages_of(&a->batch, pages, j.b);
    j.team = min(LID / TEAM, TEAMS - 1);
    j.lane = LID % TEAM;
    j.busy = LID < TEAMS * TEAM;
    j.k = k_mem;
    j.v = v_mem;
    j.ws = ws;
    const entry e = entry_of(&a->batch, seqs, j.b);
    const int n = e.pos0 + 1, size = chunk_tokens(n, a->work.score_chunk_min, a->work.score_chunks);
    for (j.h0 = 0; j.h0 < PRHS_UH; j.h0 += HB)
        score_heads(&j, e.row0, chunk, chunk * size, min((chunk + 1) * size, n), q, m);
}

KERNEL void prhs_score(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem ws, const prhs_k_score args)
{
    __local memory m;
    prhs_k_score a = args;
    const long items = (long)a.batch.max_seqs * a.shape.units;
    /* In one share, without rotation: its registers are those with which all groups run side by side. */
    walk w = { get_group_id(0), 0, 0, 0 };
    for (long first = 0; first < items; first += WINDOW) {
        int counts[EACH], place, chunk;
        for (int i = 0; i < EACH; i++) {
            const long item = first + i * GROUP + LID;
            const int n = item < items ? tokens_of(&a, item, seqs, ws) : 0;
            counts[i] = n > 0 ? chunk_count(n, a.work.score_chunk_min, a.work.score_chunks) : 0;
        }
        walk_window(&w, counts, &m.walk);
        for (; walk_chunk(&w, &m.walk, &place, &chunk); w.next += get_num_groups(0))
            score_chunk(&a, first + place, chunk, seqs, pages, q, k_mem, v_mem, ws, &m);
    }
}
