/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-alone gate and merge, against double precision. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cases.h"
#include "groups.h"

static prhs_ops *make_ops(t_ctx *t, const t_shape *sh, uint32_t rows) {
    prhs_ops_params p = PRHS_OPS_PARAMS_INIT;
    prhs_ops *ops;
    p.shape = (prhs_shape){ sh->heads, sh->kv_heads, sh->dim, 0 };
    p.max_seqs = p.max_slots = p.list_cap = 1;
    p.max_rows = rows;
    p.max_kv_len = 64;
    p.kv_dtype = sh->kv;
    p.q_dtype = sh->q;
    p.out_dtype = sh->out;
    T_OK(t, prhs_ops_create(t->dev, &p, &ops));
    t_own(t, T_OPS, ops, 0);
    return ops;
}

static const char *shape_name(int row) { return t_shapes[row].name; }

/* --- gate ------------------------------------------------------------------------------------------------------------------ */

#define GATE_ROWS 11

typedef struct gate_data {
    uint32_t rows, heads, dim;
    float *q, *ref, *moments, *dropped, *spreads, *lse;
} gate_data;

static gate_data make_gate(t_ctx *t, const t_shape *sh) {
    gate_data g = { GATE_ROWS, sh->heads, sh->dim, NULL, NULL, NULL, NULL, NULL, NULL };
    size_t n = (size_t)g.rows * g.heads;
    g.q = t_alloc(t, n * g.dim * 4);
    g.ref = t_alloc(t, n * g.dim * 4);
    g.moments = t_alloc(t, n * g.dim * 8);
    g.dropped = t_alloc(t, n * 4);
    g.spreads = t_alloc(t, n * 4);
    g.lse = t_alloc(t, n * 4);
    t_normals(g.ref, n * g.dim, t_rand(t));
    t_normals(g.q, n * g.dim, t_rand(t));
    t_normals(g.moments, 2 * n * g.dim, t_rand(t));
    for (size_t i = 0; i < n; i++) {
        uint32_t row = (uint32_t)(i / g.heads);
        g.lse[i] = 5.0f + t_normal(t);
        g.dropped[i] = g.lse[i] - 3.0f + 2.0f * t_normal(t);
        g.spreads[i] = 4.0f * fabsf(t_normal(t));
        for (uint32_t d = 0; d < g.dim; d++) {
            float *var = &g.moments[(2 * i + 1) * g.dim + d];
            *var = fabsf(*var);
            g.q[i * g.dim + d] =
                t_round(sh->q, row == 1 ? g.ref[i * g.dim + d] : g.ref[i * g.dim + d] + 0.5f * g.q[i * g.dim + d]);
        }
        if (row == 2)
            g.dropped[i] = -INFINITY; /* nothing dropped */
        if (row == 3)
            memset(g.q + i * g.dim, 0, g.dim * 4);
        if (row == 4)
            g.moments[2 * i * g.dim] = NAN;
        if (row == 5)
            g.dropped[i] = g.lse[i] + 300.0f; /* clipped at 20 */
        if (row == 6)
            memset(g.ref + i * g.dim, 0, g.dim * 4);
        if (row == 7)
            g.lse[i] = NAN;
        if (row == 8)
            g.dropped[i] = g.lse[i] - 120.0f;
        if (row == 9)
            g.spreads[i] = NAN;
        for (uint32_t d = 0; d < g.dim && row == 10; d++) /* along the reference only */
            g.q[i * g.dim + d] = t_round(sh->q, 1.5f * g.ref[i * g.dim + d]);
    }
    return g;
}

/* known: the gate was told what scores vary by. */
static void check_gate(t_ctx *t, const gate_data *g, size_t i, int known, float cosine, float delta) {
    double qq = 0, rr = 0, qr = 0, dr = 0, first = 0, second = 0, size = 0, scale = (double)(float)(1.0 / sqrt((double)g->dim));
    for (uint32_t d = 0; d < g->dim; d++) {
        double q = (double)g->q[i * g->dim + d], r = (double)g->ref[i * g->dim + d];
        double mean = (double)g->moments[2 * i * g->dim + d];
        qq += q * q;
        rr += r * r;
        qr += q * r;
        dr += (q - r) * r;
        first += (q - r) * mean;
        size += fabs((q - r) * mean) * scale;
    }
    const double a = known && rr > 0 ? dr / rr : 0;
    for (uint32_t d = 0; d < g->dim; d++) {
        double q = (double)g->q[i * g->dim + d], r = (double)g->ref[i * g->dim + d], var = (double)g->moments[(2 * i + 1) * g->dim + d];
        second += scale * scale * (q - r - a * r) * (q - r - a * r) * var;
        size += 0.5 * scale * scale * ((q - r) * (q - r) + a * a * r * r) * var;
    }
    if (known)
        second += a * a * (double)g->spreads[i];
    size += known ? 0.5 * a * a * (double)g->spreads[i] : 0;
    double want = qq > 0 && rr > 0 ? qr / sqrt(qq * rr) : 0;
    T_CHECK(t, t_near((double)cosine, want, 1e-6), "row %zu: cosine %.9g instead of %.9g", i / g->heads, (double)cosine, want);
    double l = (double)g->dropped[i] + scale * first + 0.5 * second - (double)g->lse[i];
    double est = g->dropped[i] == -INFINITY ? 0 : 1 / (1 + exp(-(l > 20 ? 20 : l)));
    double bar = 1e-6 * fmax(1.0, size + (isinf(g->dropped[i]) ? 0 : fabs((double)g->dropped[i])) + fabs((double)g->lse[i]));
    T_CHECK(t, isnan(est) ? isnan(delta) : fabs((double)delta - est) <= bar * est + 1e-30,
            "row %zu: estimate %.9g instead of %.9g", i / g->heads, (double)delta, est);
}

static void run_gate(t_ctx *t, int row) {
    const t_shape *sh = &t_shapes[row];
    gate_data g = make_gate(t, sh);
    prhs_ops *ops = make_ops(t, sh, GATE_ROWS);
    size_t n = (size_t)g.rows * g.heads;
    t_rows q = t_rows_new(t, sh->q, g.rows, g.heads, g.dim, 1);
    t_rows_put(t, &q, g.q);
    prhs_gate_params p = { sizeof p,
                           GATE_ROWS,
                           t_buffer_of(t, g.ref, n * g.dim * 4).mem,
                           t_buffer_of(t, g.moments, n * g.dim * 8).mem,
                           t_buffer_of(t, g.dropped, n * 4).mem,
                           t_buffer_of(t, g.spreads, n * 4).mem,
                           t_buffer_of(t, g.lse, n * 4).mem,
                           t_buffer(t, n * 4).mem,
                           t_buffer(t, n * 4).mem };
    for (int known = 1; known >= 0; known--) {
        p.spreads = known ? p.spreads : t_none();
        T_OK(t, prhs_op_gate(ops, t->queue, &q.r, &p));
        float *cosine = t_fetch(t, p.cosine, n * 4), *delta = t_fetch(t, p.delta, n * 4);
        for (size_t i = 0; i < n; i++)
            check_gate(t, &g, i, known, cosine[i], delta[i]);
    }
}

const t_group t_group_gate = { "gate", S_COUNT, 4, shape_name, run_gate };

/* --- merge ----------------------------------------------------------------------------------------------------------------- */

#define MERGE_ROWS 6

static void merged(const float *o, const float *lse, uint32_t parts, size_t part_o, size_t part_l, uint32_t dim, t_judged *j) {
    double top = -INFINITY, sum = 0, acc[256] = { 0 };
    int bad = 0;
    for (uint32_t p = 0; p < parts; p++) {
        const double l = (double)lse[p * part_l];
        bad |= isnan(l);
        top = l > top ? l : top; /* no fmax(): GCC 12 for 64-bit ARM breaks down on it here */
    }
    for (uint32_t p = 0; p < parts; p++) {
        double w = lse[p * part_l] == -INFINITY ? 0 : exp((double)lse[p * part_l] - top);
        sum += w;
        for (uint32_t d = 0; w > 0 && d < dim; d++)
            acc[d] += w * (double)o[p * part_o + d];
    }
    for (uint32_t d = 0; d < dim; d++)
        j->o[d] = bad ? (double)NAN : sum > 0 ? acc[d] / sum : 0;
    j->lse = bad ? (double)NAN : sum > 0 ? top + log(sum) : -(double)INFINITY;
    j->bar = 2e-6;
}

static void run_merge(t_ctx *t, int row) {
    const t_shape *sh = &t_shapes[row];
    prhs_ops *ops = make_ops(t, sh, MERGE_ROWS);
    char where[96];
    for (uint32_t parts = 1; parts <= 40; parts = parts * 3 + 1) {
        uint32_t gap = parts % 2 ? 0 : 8, head = sh->dim + gap, line = head * sh->heads + gap, part = line * MERGE_ROWS + gap;
        size_t n = (size_t)parts * part, nl = (size_t)parts * MERGE_ROWS * sh->heads;
        float *o = t_alloc(t, n * 4), *lse = t_alloc(t, nl * 4);
        t_normals(o, n, t_rand(t));
        for (size_t i = 0; i < nl; i++) {
            uint32_t r = (uint32_t)(i / sh->heads % MERGE_ROWS), p = (uint32_t)(i / sh->heads / MERGE_ROWS);
            lse[i] = 3.0f * t_normal(t);
            if (r == 0 || (r == 1 && p % 2))
                lse[i] = -INFINITY;
            if (r == 2 && p == parts - 1)
                lse[i] = NAN;
            if (r == 3)
                lse[i] *= 1000.0f;
            if (lse[i] == -INFINITY) /* an empty part's output is not read */
                for (uint32_t d = 0; d < sh->dim; d++)
                    o[(size_t)p * part + (size_t)r * line + i % sh->heads * head + d] = NAN;
        }
        prhs_merge_params m = {
            sizeof m,       parts,          MERGE_ROWS,     t_buffer_of(t, o, n * 4).mem,    gap ? part : 0,
            gap ? line : 0, gap ? head : 0, t_buffer_of(t, lse, nl * 4).mem, t_buffer(t, MERGE_ROWS * sh->heads * 4).mem
        };
        t_rows out = t_rows_new(t, sh->out, MERGE_ROWS, sh->heads, sh->dim, gap != 0);
        T_OK(t, prhs_op_merge(ops, t->queue, &m, &out.r));
        float *got = t_rows_get(t, &out), *got_lse = t_fetch(t, m.out_lse, MERGE_ROWS * sh->heads * 4);
        for (uint32_t i = 0; i < MERGE_ROWS * sh->heads; i++) {
            t_judged j;
            merged(o + (size_t)(i / sh->heads) * line + i % sh->heads * head, lse + i, parts, part,
                   (size_t)MERGE_ROWS * sh->heads, sh->dim, &j);
            snprintf(where, sizeof where, "%u parts, row %u head %u", parts, i / sh->heads, i % sh->heads);
            t_check_row(t, &j, got + (size_t)i * sh->dim, got_lse[i], sh->dim, sh->out, where);
        }
        m.out_lse = t_none();
        t_poison(t, out.buf);
        T_OK(t, prhs_op_merge(ops, t->queue, &m, &out.r));
        T_CHECK(t, !memcmp(got, t_rows_get(t, &out), (size_t)MERGE_ROWS * sh->heads * sh->dim * 4), "without log-sum-exp");
    }
}

const t_group t_group_merge = { "merge", S_COUNT, 4, shape_name, run_merge };
