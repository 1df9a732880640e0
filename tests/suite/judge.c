/* SPDX-License-Identifier: Apache-2.0 */
/* Decode attention over sets, held against double precision. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cases.h"

void t_judge(const float *q, const float *K, const float *V, uint32_t kv_heads, uint32_t hk, uint32_t dim, double scale,
             const int32_t *positions, size_t n, t_judged *j) {
    double top = -INFINITY, sum = 0, widest = 0, o[256] = { 0 };
    int bad = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++) {
            const float *k = K + ((size_t)positions[i] * kv_heads + hk) * dim,
                        *v = V + ((size_t)positions[i] * kv_heads + hk) * dim;
            double s = 0, wide = 0;
            for (uint32_t d = 0; d < dim; d++) {
                s += (double)q[d] * (double)k[d];
                wide += fabs((double)q[d] * (double)k[d]);
            }
            s *= scale;
            wide *= scale;
            if (pass == 0) {
                bad |= isnan(s) || s == (double)INFINITY;
                top = s > top ? s : top;
                widest = wide > widest && isfinite(wide) ? wide : widest;
            } else if (s > -(double)INFINITY) {
                double w = exp(s - top);
                sum += w;
                for (uint32_t d = 0; d < dim; d++)
                    o[d] += w * (double)v[d];
            }
        }
    for (uint32_t d = 0; d < dim; d++)
        j->o[d] = bad ? (double)NAN : sum > 0 ? o[d] / sum : 0;
    j->lse = bad ? (double)NAN : sum > 0 ? top + log(sum) : -(double)INFINITY;
    j->bar = 1e-6 * fmax(1.0, widest / 8);
}

int t_near(double a, double b, double bar) {
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b);
    if (isinf(a) || isinf(b))
        return a == b;
    return fabs(a - b) <= bar * fmax(1.0, fabs(b));
}

void t_allow_tensor(t_ctx *t, prhs_dtype kv, t_judged *j, float lse, const char *what) {
    const bool bf16 = kv == PRHS_BF16;
    if (kv == PRHS_F32 || !(t->info.caps & t->opt->caps_mask & PRHS_CAP_TENSOR))
        return;
    T_CHECK(t, t_near((double)lse, j->lse, j->bar * (bf16 ? 32 : 4)), "%s: log-sum-exp %.9g instead of %.9g", what, (double)lse, j->lse);
    j->bar = fmax(j->bar, bf16 ? 0x1p-7 : 0x1p-10);
}

void t_check_row(t_ctx *t, const t_judged *j, const float *o, float lse, uint32_t dim, prhs_dtype type, const char *what) {
    double error = 0, norm = 0, step = type == PRHS_F32 ? 0 : type == PRHS_F16 ? 0x1p-11 : 0x1p-8;
    T_CHECK(t, t_near((double)lse, j->lse, j->bar), "%s: log-sum-exp %.9g instead of %.9g", what, (double)lse, j->lse);
    for (uint32_t d = 0; d < dim; d++) {
        T_CHECK(t, isnan(o[d]) == isnan(j->o[d]), "%s: channel %u is %g instead of %g", what, d, (double)o[d], j->o[d]);
        if (isnan(o[d]))
            continue;
        double off = fabs((double)o[d] - j->o[d]) - step * (fabs(j->o[d]) + (type == PRHS_F16 ? 0x1p-14 : 0));
        error += off > 0 ? off * off : 0;
        norm += j->o[d] * j->o[d];
    }
    if (norm > 0)
        t->worst = fmax(t->worst, sqrt(error / norm) / j->bar);
    T_CHECK(t, sqrt(error) <= j->bar * sqrt(norm), "%s: off by %.3g normwise, the bar is %.3g", what,
            sqrt(error / (norm > 0 ? norm : 1)), j->bar);
}

size_t t_set_positions(const prhs_set *set, const int32_t *list, int32_t pos, int32_t *out) {
    size_t n = 0;
    int32_t end = set->end < pos + 1 ? set->end : pos + 1;
#define PUT(j)                                                                                                                   \
    do {                                                                                                                         \
        if (out)                                                                                                                 \
            out[n] = (j);                                                                                                        \
        n++;                                                                                                                     \
    } while (0)
    for (int32_t j = 0; j < set->sink_end && j < end; j++)
        PUT(j);
    for (int32_t j = set->edge_begin; j < set->edge_end; j++)
        PUT(j);
    for (int32_t i = 0; i < set->count; i++)
        for (int32_t j = list[i]; j < list[i] + set->run; j++)
            PUT(j);
    for (int32_t j = set->win_begin; j < end; j++)
        PUT(j);
#undef PUT
    return n;
}

/* lists: by sequence and unit, [C_SEQS][units][list_cap]. */
void t_bench_attend(t_bench *b, const prhs_set *sets, const int32_t *lists, const char *what) {
    t_ctx *t = b->t;
    char where[160];
    t_poison(t, b->out.buf);
    t_poison(t, b->lse);
    T_OK(t, prhs_op_attend(b->ops, t->queue, &b->batch.b, &b->cache.kv, &b->q.r, b->state.mem, b->ws.mem, &b->out.r, b->lse.mem));
    float *out = t_rows_get(t, &b->out), *lse = t_fetch(t, b->lse.mem, b->lse.size);
    int32_t *positions = t_alloc(t, (b->max_len + 1) * sizeof *positions);
    for (int i = 0; i < C_SEQS; i++)
        for (int32_t r = 0; r < t_bench_rows(b, i); r++)
            for (uint32_t h = 0; h < b->sh->heads; h++) {
                size_t u = (size_t)i * b->units + h / b->unit_heads, row = (size_t)(b->batch.seqs[i].row_begin + r);
                int32_t pos = b->batch.seqs[i].flags & PRHS_SEQ_FULL ? INT32_MAX - 1 : b->c->len[i] - t_bench_rows(b, i) + r;
                size_t n = t_set_positions(&sets[u], lists + u * b->params.list_cap, pos, positions);
                t_judged j;
                t_judge(t_bench_q(b, i, r) + (size_t)h * b->sh->dim, b->K[i], b->V[i], b->sh->kv_heads, h / b->group, b->sh->dim,
                        (double)b->scale, positions, n, &j);
                snprintf(where, sizeof where, "%s: sequence %d row %d head %u", what, i, r, h);
                t_check_row(t, &j, out + (row * b->sh->heads + h) * b->sh->dim, lse[row * b->sh->heads + h], b->sh->dim,
                            b->sh->out, where);
            }
    T_CHECK(t, t_rows_untouched(t, &b->out, 0), "%s: a row that belongs to nobody was written", what);
    T_CHECK(t, t_rows_untouched(t, &b->out, b->max_rows - 1), "%s: the last row was written", what);
}
