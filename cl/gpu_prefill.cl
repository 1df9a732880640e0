/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefill on GPUs: causal attention of prompt rows in float32. A group takes ROWS rows of a head and walks over tiles of KEYS keys at absolute
 * positions. Work-item (ty, tx) of 8 x 16 has OWN neighbouring rows and every 16th key of the scores, then groups of four channels of the
 * output. Keys, queries and values pass through local memory a slice at a time. A row's bits depend on its position only.
 */
#include "gpu.clh"

#define OWN (PRHS_D > 128 ? 4 : 8)
#define ROWS (OWN * 8)
#define KEYS 64
#define DEEP 16                      /* channels of a slice of q and k */
#define SOME 32                      /* keys of a slice of v, of 64 channels: sums that long are made anew, so that errors stay small */
#define FOURS ((PRHS_D + 63) / 64)   /* groups of four channels of a work-item */
#define ROW_PITCH (ROWS + 4)
#define KEY_PITCH (KEYS + 4)
#define LANE_PITCH 20                /* of what 16 lanes leave for a row */
#define POOL (SOME * 64 > DEEP * (ROW_PITCH + KEY_PITCH) ? SOME * 64 : DEEP * (ROW_PITCH + KEY_PITCH))

typedef struct memory {
    float4 weights[KEYS * ROW_PITCH / 4]; /* [key][row] */
    float4 pool[POOL / 4];                /* slices; what lanes leave for a row */
    long k_at[KEYS], v_at[KEYS];          /* byte offsets of the tile's rows */
    int pos[ROWS], start[ROWS];           /* position, < 0: no row; PSAW's start, 0 where it lies inside the sinks */
    int last, lowest;
    uint odd[KEYS / SOME];                /* bits of the keys whose values are not all finite */
} memory;

typedef struct job {
    const prhs_k_prefill *a;
    const __global int *pages;
    int first_row, head; /* row of the tile's row 0 */
    mem q, k, v;
} job;

/* What a row has seen so far; top is of q.k, not scaled: near it the difference is exact. sum: of this work-item's keys, NaN once a score was no number. */
typedef struct running {
    float top[OWN], sum[OWN];
    float4 acc[OWN][FOURS];
} running;

#define TX (LID % 16)
#define TY (LID / 16)

bool seen(const prhs_k_prefill *a, const __local memory *m, int row, int p)
{
    return p <= m->pos[row] && (p < a->sinks || p >= m->start[row]);
}

/* Where the tile's keys lie; no key is after `last`. */
void find_keys(const job *j, int first, __local memory *m)
{
    const prhs_k_kv *kv = &j->a->kv;
    const int head = j->head / PRHS_G;
    SYNC();
    for (int i = LID; i < KEYS; i += GROUP) {
        const int2 at = place_of(kv, j->pages, min(first + i, m->last));
        m->k_at[i] = kv->k_off + (at.x * kv->k_page + at.y * kv->k_token + head * kv->k_head) * element(PRHS_KV);
        m->v_at[i] = kv->v_off + (at.x * kv->v_page + at.y * kv->v_token + head * kv->v_head) * element(PRHS_KV);
    }
    if (LID < KEYS / SOME)
        m->odd[LID] = 0;
    SYNC();
}

/* Eight channels from c on of row or key i, transposed into a slice. */
void put_transposed(__local float *to, int pitch, int i, int c, vf x)
{
    to += c * pitch + i;
    to[0] = x.s0;
    to[pitch] = x.s1;
    to[2 * pitch] = x.s2;
    to[3 * pitch] = x.s3;
    to[4 * pitch] = x.s4;
    to[5 * pitch] = x.s5;
    to[6 * pitch] = x.s6;
    to[7 * pitch] = x.s7;
}

/* The work-item's rows of what lies row by row from `from` on. */
void take_rows(const __local float4 *from, float x[OWN])
{
#pragma unroll
    for (int r = 0; r < OWN; r += 4) {
        const float4 y = from[(TY * OWN + r) / 4];
        x[r] = y.x;
        x[r + 1] = y.y;
        x[r + 2] = y.z;
        x[r + 3] = y.w;
    }
}

void load_slice(const job *j, int first, int c, __local memory *m)
{
    __local float *q = (__local float *)m->pool, *k = q + DEEP * ROW_PITCH;
    for (int i = LID; i < ROWS * 2; i += GROUP) {
        const int row = i % ROWS, d = i / ROWS * 8;
        const bool there = c + d < PRHS_D && m->pos[row] >= 0;
        put_transposed(q, ROW_PITCH, row, d,
                       there ? load_vec(PRHS_Q, row_at(&j->a->q, j->q, j->first_row + row, j->head), (c + d) / 8) : (vf)(0.0f));
    }
    for (int i = LID; i < KEYS * 2; i += GROUP) {
        const int key = i % KEYS, d = i / KEYS * 8;
        const bool there = c + d < PRHS_D && first + key <= m->last;
        put_transposed(k, KEY_PITCH, key, d, there ? load_vec(PRHS_KV, j->k + m->k_at[key], (c + d) / 8) : (vf)(0.0f));
    }
}

/* q.k of the work-item's rows and keys: sums over a slice, which are then added up. */
void dots(const job *j, int first, float s[OWN][4], __local memory *m)
{
    const __local float *k = (const __local float *)m->pool + DEEP * ROW_PITCH + TX;
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[r][i] = 0.0f;
#pragma unroll 1
    for (int c = 0; c < PRHS_D; c += DEEP) {
        float part[OWN][4] = { { 0.0f } };
        SYNC();
        load_slice(j, first, c, m);
        SYNC();
#pragma unroll 4
        for (int d = 0; d < DEEP; d++) {
            float x[OWN];
            take_rows(m->pool + d * ROW_PITCH / 4, x);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float y = k[d * KEY_PITCH + i * 16];
#pragma unroll
                for (int r = 0; r < OWN; r++)
                    part[r][i] = fma(x[r], y, part[r][i]);
            }
        }
#pragma unroll
        for (int r = 0; r < OWN; r++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[r][i] += part[r][i];
    }
    SYNC();
}

/* The largest of what 16 lanes leave for the work-item's row r. */
float most(const __local memory *m, int r)
{
    const __local float4 *x = m->pool + (TY * OWN + r) * LANE_PITCH / 4;
    const float4 y = fmax(fmax(x[0], x[1]), fmax(x[2], x[3]));
    return fmax(fmax(y.x, y.y), fmax(y.z, y.w));
}

/* Scores become weights relative to the row's maximum, in local memory; what was summed before fades as that rises. */
void weigh(const job *j, int first, float s[OWN][4], running *x, __local memory *m)
{
    const float factor = j->a->shape.scale;
    __local float *tops = (__local float *)m->pool;
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        float top = LOWEST;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[r][i] = seen(j->a, m, TY * OWN + r, first + TX + i * 16) ? s[r][i] : -INFINITY;
            top = bad_score(s[r][i]) ? top : fmax(top, s[r][i]);
        }
        tops[(TY * OWN + r) * LANE_PITCH + TX] = top;
    }
    SYNC();
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        const float top = fmax(x->top[r], most(m, r)), fade = exp((x->top[r] - top) * factor);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool bad = bad_score(s[r][i]);
            s[r][i] = bad ? 0.0f : exp((s[r][i] - top) * factor);
            sum += bad ? NAN : s[r][i];
        }
        x->sum[r] = x->sum[r] * fade + sum;
        x->top[r] = top;
#pragma unroll
        for (int c = 0; c < FOURS; c++)
            x->acc[r][c] *= fade;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int r = 0; r < OWN; r += 4)
            m->weights[((TX + i * 16) * ROW_PITCH + TY * OWN + r) / 4] = (float4)(s[r][i], s[r + 1][i], s[r + 2][i], s[r + 3][i]);
}

/* Values of SOME keys from number `from` of the tile on, 64 channels from c on. Those that are not finite are zeros here, since 0 * NaN is NaN. */
void load_values(const job *j, int first, int from, int c, __local memory *m)
{
    for (int i = LID; i < SOME * 8; i += GROUP) {
        const int key = from + i / 8, d = c + i % 8 * 8;
        const bool there = d < PRHS_D && first + key <= m->last;
        const vf x = there ? load_vec(PRHS_KV, j->v + m->v_at[key], d / 8) : (vf)(0.0f);
        const int8 fine = isfinite(x);
        const vf y = select((vf)(0.0f), x, fine);
        if (!all(fine))
            atomic_or((volatile __local int *)&m->odd[from / SOME], 1 << i / 8);
        m->pool[i * 2] = y.lo;
        m->pool[i * 2 + 1] = y.hi;
    }
}

/* Adds what load_values() left out, to the rows that see it. */
void add_odd(const job *j, int first, running *x, const __local memory *m)
{
#pragma unroll 1
    for (int half_of = 0; half_of < KEYS / SOME; half_of++)
#pragma unroll 1
        for (uint odd = m->odd[half_of]; odd; odd &= odd - 1) {
            const int key = half_of * SOME + 31 - (int)clz(odd & -odd);
            const __local float *w = (const __local float *)m->weights + key * ROW_PITCH + TY * OWN;
#pragma unroll
            for (int c = 0; c < FOURS; c++) {
                const int d = c * 64 + TX * 4;
                const vf y = d < PRHS_D ? load_vec(PRHS_KV, j->v + m->v_at[key], d / 8) : (vf)(0.0f);
                const float4 z = TX % 2 ? y.hi : y.lo, only = select(z, (float4)(0.0f), isfinite(z));
#pragma unroll
                for (int r = 0; r < OWN; r++)
                    if (seen(j->a, m, TY * OWN + r, first + key))
                        x->acc[r][c] += w[r] * only;
            }
        }
}

void add_values(const job *j, int first, running *x, __local memory *m)
{
#pragma unroll
    for (int c = 0; c < FOURS; c++)
#pragma unroll 1
        for (int from = 0; from < KEYS; from += SOME) {
            float4 add[OWN];
#pragma unroll
            for (int r = 0; r < OWN; r++)
                add[r] = 0.0f;
            SYNC();
            load_values(j, first, from, c * 64, m);
            SYNC();
#pragma unroll 4
            for (int key = 0; key < SOME; key++) {
                const float4 y = m->pool[key * 16 + TX];
                float w[OWN];
                take_rows(m->weights + (from + key) * ROW_PITCH / 4, w);
#pragma unroll
                for (int r = 0; r < OWN; r++)
                    add[r] = fma((float4)(w[r]), y, add[r]);
            }
#pragma unroll
            for (int r = 0; r < OWN; r++)
                x->acc[r][c] += add[r];
        }
    add_odd(j, first, x, m);
}

void store_four(__global uchar *row, int d, float4 x)
{
    store_one(PRHS_OUT, row, d, x.x);
    store_one(PRHS_OUT, row, d + 1, x.y);
    store_one(PRHS_OUT, row, d + 2, x.z);
    store_one(PRHS_OUT, row, d + 3, x.w);
}

void put_rows(const job *j, const running *x, mem out, mem lse, __local memory *m)
{
    __local float *sums = (__local float *)m->pool;
    SYNC();
#pragma unroll
    for (int r = 0; r < OWN; r++)
        sums[(TY * OWN + r) * LANE_PITCH + TX] = x->sum[r];
    SYNC();
#pragma unroll
    for (int r = 0; r < OWN; r++) {
        const int row = TY * OWN + r;
        float sum = 0.0f;
        for (int i = 0; i < 16; i++)
            sum += sums[row * LANE_PITCH + i];
        if (m->pos[row] < 0)
            continue;
#pragma unroll
        for (int c = 0; c < FOURS; c++) {
            const float4 y = isnan(sum) ? (float4)(NAN) : sum > 0.0f ? x->acc[r][c] / sum : (float4)(0.0f);
            if (c * 64 + TX * 4 < PRHS_D)
                store_four(row_at(&j->a->out, out, j->first_row + row, j->head), c * 64 + TX * 4, y);
        }
        if (j->a->lse_off != PRHS_NONE && TX == 0)
            FLOATS(lse, j->a->lse_off)[(long)(j->first_row + row) * j->a->shape.heads + j->head] =
                isnan(sum) ? NAN : sum > 0.0f ? x->top[r] * j->a->shape.scale + log(sum) : -INFINITY;
    }
}

/* Rows [first, first + ROWS) of the sequence, as far as they are there and not frozen. */
void find_prompt_rows(const prhs_k_prefill *a, const __global prhs_seq *s, int first, int frozen, __local memory *m)
{
    SYNC();
    for (int i = LID; i < ROWS; i += GROUP) {
        const int pos = s->kv_len - s->row_count + first + i;
        m->pos[i] = first + i < s->row_count && pos >= frozen ? pos : -1;
        m->start[i] = prompt_start(a, pos);
    }
    SYNC();
    if (LID == 0) {
        m->last = -1;
        m->lowest = INT_MAX;
        for (int i = 0; i < ROWS; i++)
            if (m->pos[i] >= 0) {
                m->last = max(m->last, m->pos[i]);
                m->lowest = min(m->lowest, m->start[i]);
            }
    }
    SYNC();
}

void attend_rows(const job *j, mem out, mem lse, __local memory *m)
{
    running x;
    for (int r = 0; r < OWN; r++) {
        x.top[r] = LOWEST;
        x.sum[r] = 0.0f;
        for (int c = 0; c < FOURS; c++)
            x.acc[r][c] = 0.0f;
    }
    const int last = m->last, lowest = m->lowest / KEYS * KEYS;
#pragma unroll 1
    for (int first = 0; first <= last; first = first + KEYS >= j->a->sinks ? max(first + KEYS, lowest) : first + KEYS) {
        float s[OWN][4];
        find_keys(j, first, m);
        dots(j, first, s, m);
        weigh(j, first, s, &x, m);
        add_values(j, first, &x, m);
    }
    put_rows(j, &x, out, lse, m);
}

KERNEL void prhs_prefill(mem seqs, mem pages, mem q, mem k_mem, mem v_mem, mem state, mem out, mem lse, const prhs_k_prefill args)
{
    __local memory m;
    prhs_k_prefill a = args;
    const long num = get_num_groups(0);
    long next = get_group_id(0), count = 0;
#pragma unroll 1
    for (int b = 0; b < a.batch.max_seqs; b++) {
        const __global prhs_seq *s = seq_at(&a.batch, seqs, b);
        const bool wanted = seq_ok(&a.batch, s) && s->flags & PRHS_SEQ_PREFILL;
        const int tiles = wanted ? (s->row_count + ROWS - 1) / ROWS : 0, frozen = wanted ? frozen_rows(&a, s, state) : 0;
#pragma unroll 1
        for (; next < count + (long)tiles * a.shape.heads; next += num) {
            /* The longest rows first: a round ends with short ones. */
            const int tile = tiles - 1 - (int)((next - count) / a.shape.heads);
            const job j = { &a, pages_of(&a.batch, pages, b), s->row_begin + tile * ROWS, (int)((next - count) % a.shape.heads), q, k_mem, v_mem };
            find_prompt_rows(&a, s, tile * ROWS, frozen, &m);
            attend_rows(&j, out, lse, &m);
        }
        count += (long)tiles * a.shape.heads;
    }
}
