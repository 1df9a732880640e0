/* SPDX-License-Identifier: Apache-2.0 */
#include "layer_stats.h"

#include <math.h>
#include <stdlib.h>

static bool take(prhs_stats_request *r, uint32_t layers, uint32_t heads, layer_stats *out, prhs_stats *all) {
    *all = (prhs_stats){ .size = sizeof *all };
    bool ok = prhs_stats_request_get(r, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, all) == PRHS_OK;
    for (uint32_t l = 0; ok && l < layers; l++) {
        out[l].all = (prhs_stats){ .size = sizeof out[l].all };
        ok = prhs_stats_request_get(r, PRHS_ALL_SLOTS, l, &out[l].all) == PRHS_OK;
        for (uint32_t h = 0; ok && h < heads; h++) {
            out[l].heads[h] = (prhs_head_stats){ .size = sizeof(prhs_head_stats) };
            ok = prhs_stats_request_get_head(r, PRHS_ALL_SLOTS, l, h, &out[l].heads[h]) == PRHS_OK;
        }
    }
    return ok;
}

layer_stats *layer_stats_make(uint32_t layers, uint32_t heads) {
    layer_stats *out = calloc(layers, sizeof *out);
    prhs_head_stats *rows = calloc((size_t)layers * heads, sizeof *rows);
    if (!out || !rows) {
        free(rows);
        free(out);
        return NULL;
    }
    for (uint32_t l = 0; l < layers; l++)
        out[l].heads = rows + (size_t)l * heads;
    return out;
}

layer_stats *layer_stats_take(engine *e, engine_session *s, prhs_stats *all, prhs_audit_report *audit) {
    const uint32_t layers = e->m->layers, heads = e->m->heads;
    prhs_stats_request *r = NULL;
    *audit = (prhs_audit_report){ .size = sizeof *audit, .confidence = 0.95 };
    layer_stats *out = layer_stats_make(layers, heads);
    bool ok = out && prhs_stats_request_create(s->s, &r) == PRHS_OK && prhs_stats_request_enqueue(r, e->queue) == PRHS_OK &&
         prhs_queue_finish(e->queue) == PRHS_OK && take(r, layers, heads, out, all) &&
         prhs_stats_request_get_audit(r, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, PRHS_ALL_HEADS, audit) == PRHS_OK;
    prhs_stats_request_destroy(r);
    if (ok)
        return out;
    layer_stats_free(out);
    return NULL;
}

void layer_stats_free(layer_stats *layers) {
    if (layers)
        free(layers[0].heads);
    free(layers);
}

estimate_check check_estimate(const prhs_mass *retrieved, const prhs_mass *shared, const prhs_mass *audited) {
    estimate_check none = { 0, NAN, NAN };
    if (!shared->count || audited->count != retrieved->count + shared->count || (retrieved->count && retrieved->grade != PRHS_GRADE_EXACT))
        return none;
    double sum = audited->mean * (double)audited->count - (retrieved->count ? retrieved->mean * (double)retrieved->count : 0.0);
    return (estimate_check){ shared->count, shared->mean, sum / (double)shared->count };
}

/* K and V rows of a layer, all its units, in a step of one sequence. */
static double rows_of(const engine_session *s, const model *m, const prhs_stats *st, uint32_t layer, double n) {
    const double units = prhs_session_units(s->s), steps = (double)st->steps;
    if (layer < s->policy.dense_layers || st->steps == 0)
        return 2 * n * m->kv_heads;
    const double scored = n - prhs_psaw_start(&s->policy, m->layers, layer, (uint32_t)n);
    const double each = s->policy.residual == PRHS_RESIDUAL_RETRIEVED ? 2 : 1; /* its value, too */
    double rows = 2 * st->attended + each * scored * (double)(st->retrieve + st->missed) / steps;
    if (st->mass_failed)
        rows += 2 * st->kept * (double)st->mass_failed / steps;
    return rows * units;
}

double bytes_per_step(const engine *e, const engine_session *s, const layer_stats *layers, double n, double *dense) {
    const model *m = e->m;
    const double row = (double)m->head_dim * (double)prhs_dtype_size(e->kv_dtype);
    double rows = 0.0;
    for (uint32_t l = 0; l < m->layers; l++)
        rows += rows_of(s, m, &layers[l].all, l, n);
    *dense = 2 * n * m->kv_heads * m->layers * row;
    return rows * row;
}
