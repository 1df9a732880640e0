/* SPDX-License-Identifier: Apache-2.0 */
/* One policy over the trace: a session that takes the prompts as cached, then a call for every step and recorded layer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy_text.h"
#include "replay.h"

typedef struct run {
    replay *r;
    prhs_session *session;
    prhs_session_sizes sizes;
    prhs_buffer *state, *work;
    prhs_buffer *blobs; /* exported slots, a slot every `stride` bytes */
    uint64_t stride;
    char *host_blobs;
    float *outs;
    void *graph;         /* of all layers of a step */
    prhs_event **events; /* two a step, then two of the seeding */
    double *seconds;     /* [repeat][steps + 1] */
} run;

static bool run_open(replay *r, const prhs_policy *policy, bool audit, run *x) {
    prhs_session_params p = PRHS_SESSION_PARAMS_INIT;
    *x = (run){ .r = r, .sizes.size = sizeof x->sizes };
    p.policy = *policy;
    p.shape = (prhs_shape){ r->shape.heads, r->shape.kv_heads, r->shape.dim, r->shape.scale };
    p.layers = r->shape.layers;
    p.max_slots = p.max_seqs = p.max_rows = r->shape.seqs;
    p.max_kv_len = r->tokens;
    p.kv_dtype = p.q_dtype = PRHS_F16;
    p.audit = audit;
    p.audit_rate = audit ? 0.0 : r->o->audit_rate;
    if (prhs_session_get_sizes(r->dev, &p, &x->sizes) != PRHS_OK ||
        prhs_buffer_create(r->dev, x->sizes.state ? x->sizes.state : 256, &x->state) != PRHS_OK ||
        prhs_buffer_create(r->dev, x->sizes.workspace ? x->sizes.workspace : 256, &x->work) != PRHS_OK)
        return false;
    return prhs_session_create(r->dev, &p, r->queue, (prhs_mem){ x->state, 0 }, (prhs_mem){ x->work, 0 }, &x->session) == PRHS_OK;
}

static void run_close(run *x) {
    prhs_queue_finish(x->r->queue);
    tool_graph_destroy(x->graph);
    for (uint32_t i = 0; x->events && i < 2 * x->r->steps + 2; i++)
        prhs_event_destroy(x->events[i]);
    free(x->events);
    free(x->seconds);
    prhs_session_destroy(x->session);
    prhs_buffer_destroy(x->state);
    prhs_buffer_destroy(x->work);
    prhs_buffer_destroy(x->blobs);
    free(x->host_blobs);
    free(x->outs);
}

/* --- steps ------------------------------------------------------------------------------------------------------------- */

bool replay_take(const replay *r, uint32_t step) {
    const uint64_t records = r->shape.seqs * sizeof(prhs_seq);
    bool ok = prhs_queue_copy(r->queue, r->seqs, (prhs_mem){ r->records.buffer, step * records }, records) == PRHS_OK;
    for (int kind = 0; ok && kind < TRACE_KINDS; kind++) {
        const size_t bytes = replay_step_bytes(r, (trace_kind)kind);
        const uint64_t at = kind == TRACE_Q ? step : step - 1;
        if (kind == TRACE_Q || step > 0)
            ok = prhs_queue_copy(r->queue, r->now[kind], (prhs_mem){ r->rows[kind].buffer, at * bytes }, bytes) == PRHS_OK;
    }
    return ok;
}

prhs_batch replay_batch(const replay *r, uint32_t kinds) {
    return (prhs_batch){ r->seqs, r->pages, r->shape.seqs, r->page_stride, r->shape.seqs, 1, kinds };
}

/* One recorded layer of the step in work. */
static prhs_status layer_step(const run *x, uint32_t layer, bool seeding) {
    const replay *r = x->r;
    const size_t row = trace_row(&r->shape, TRACE_Q) * r->shape.seqs, kv_row = trace_row(&r->shape, TRACE_K) * r->shape.seqs;
    prhs_step step = PRHS_STEP_INIT;
    step.layer = r->shape.first_layer + layer;
    step.batch = replay_batch(r, seeding ? PRHS_HAS_SEED : PRHS_HAS_DECODE);
    step.kv = r->kv[layer];
    step.q = (prhs_rows){ { r->now[TRACE_Q].buffer, 2 * row * layer }, PRHS_F16, 0, 0 };
    step.out.mem = (prhs_mem){ r->out.buffer, sizeof(float) * row * layer };
    if (!seeding) {
        step.k = (prhs_rows){ { r->now[TRACE_K].buffer, 2 * kv_row * layer }, PRHS_F16, 0, 0 };
        step.v = (prhs_rows){ { r->now[TRACE_V].buffer, 2 * kv_row * layer }, PRHS_F16, 0, 0 };
    } else {
        step.k.dtype = step.v.dtype = PRHS_F16;
    }
    return prhs_session_step(x->session, r->queue, &step);
}

static bool all_layers(const run *x, bool seeding) {
    for (uint32_t layer = 0; layer < x->r->shape.layer_count; layer++)
        if (layer_step(x, layer, seeding) != PRHS_OK)
            return false;
    return true;
}

static bool mark(const run *x, uint32_t event) {
    return !x->events || prhs_event_record(x->r->queue, x->events[event]) == PRHS_OK;
}

/* The prompts as they are cached; without seeds the first step retrieves everywhere. */
static bool begin(const run *x) {
    const replay *r = x->r;
    const prhs_batch batch = replay_batch(r, PRHS_HAS_SEED);
    bool ok = replay_take(r, 0);
    for (uint32_t layer = 0; ok && layer < r->shape.layer_count; layer++)
        ok = prhs_session_attach(x->session, r->queue, r->shape.first_layer + layer, &batch, &r->kv[layer]) == PRHS_OK;
    return ok && mark(x, 2 * r->steps) && (r->o->no_seed || all_layers(x, true)) && mark(x, 2 * r->steps + 1);
}

/* --- audited: what every step did -------------------------------------------------------------------------------------- */

static double norm_of_difference(const float *a, const double *b, uint32_t n) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        double d = (a ? (double)a[i] : 0.0) - b[i];
        sum += d * d;
    }
    return sqrt(sum);
}

void replay_errors(const replay *r, const float *outs, uint32_t layer, uint32_t step, uint32_t seq, replay_samples *s) {
    const size_t row = trace_row(&r->shape, TRACE_Q);
    const double *exact = r->exact + (((size_t)layer * r->steps + step) * r->shape.seqs + seq) * row;
    for (uint32_t h = 0; h < r->shape.heads; h++) {
        const size_t at = (size_t)h * r->shape.dim;
        const double off = norm_of_difference(outs + at, exact + at, r->shape.dim),
                     size = norm_of_difference(NULL, exact + at, r->shape.dim);
        /* What is not finite in the trace's own dense attention is left out of the figures, and only that. */
        double error = isnan(off) ? INFINITY : off == 0.0 ? 0.0 : off / size;
        s->error[replay_sample_at(r, step, seq, layer) + h] = isfinite(size) ? error : NAN;
    }
}

/* Masses from the exported slot, and what retrievals read. */
static bool look_at_state(const run *x, const prhs_policy *policy, uint32_t step, uint32_t seq, replay_samples *s) {
    const replay *r = x->r;
    const char *blob = x->host_blobs + seq * x->stride;
    const uint32_t units = prhs_session_units(x->session);
    for (uint32_t layer = 0; layer < r->shape.layer_count; layer++)
        for (uint32_t u = 0; r->shape.first_layer + layer >= policy->dense_layers && u < units; u++) {
            prhs_unit_view view;
            if (prhs_session_view(x->session, blob, r->shape.first_layer + layer, u, &view) != PRHS_OK)
                return false;
            const size_t at = replay_sample_at(r, step, seq, layer) + (size_t)u * view.head_count;
            const int mode = view.set.mode;
            for (uint32_t h = 0; mode != PRHS_MODE_DENSE && mode != PRHS_MODE_IDLE && h < view.head_count; h++) {
                s->delta[at + h] = view.heads[h].audit;
                s->mode[at + h] = (unsigned char)mode;
                if (mode == PRHS_MODE_SHARE)
                    s->hat[at + h] = view.heads[h].delta;
            }
            s->units[step]++;
            s->retrieved[step] += mode == PRHS_MODE_RETRIEVE;
            if (mode == PRHS_MODE_RETRIEVE) /* scores see the sinks and all from the middle on */
                s->scored += view.set.sink_end + (double)view.set.end - view.set.mid_begin;
        }
    return true;
}

static bool look(run *x, const prhs_policy *policy, uint32_t step, replay_samples *s) {
    replay *r = x->r;
    const uint32_t seqs = r->shape.seqs;
    const size_t outs = (size_t)r->shape.layer_count * seqs * trace_row(&r->shape, TRACE_Q) * sizeof *x->outs;
    bool ok = prhs_queue_read(r->queue, x->outs, r->out, outs) == PRHS_OK;
    for (uint32_t i = 0; ok && i < seqs && x->sizes.slot; i++)
        ok = prhs_session_export(x->session, r->queue, i, (prhs_mem){ x->blobs, i * x->stride }) == PRHS_OK;
    if (ok && x->sizes.slot)
        ok = prhs_queue_read(r->queue, x->host_blobs, (prhs_mem){ x->blobs, 0 }, seqs * x->stride) == PRHS_OK;
    ok = ok && prhs_queue_finish(r->queue) == PRHS_OK;
    for (uint32_t i = 0; ok && i < seqs; i++)
        if (step < replay_seq(r, i)->steps) {
            for (uint32_t layer = 0; layer < r->shape.layer_count; layer++)
                replay_errors(r, x->outs + ((size_t)layer * seqs + i) * trace_row(&r->shape, TRACE_Q), layer, step, i, s);
            ok = look_at_state(x, policy, step, i, s);
        }
    return ok;
}

static bool take_stats(const run *x, replay_result *result) {
    const replay *r = x->r;
    prhs_stats_request *request = NULL;
    bool ok = prhs_stats_request_create(x->session, &request) == PRHS_OK &&
              prhs_stats_request_enqueue(request, r->queue) == PRHS_OK && prhs_queue_finish(r->queue) == PRHS_OK;
    result->stats.size = sizeof result->stats;
    ok = ok && prhs_stats_request_get(request, PRHS_ALL_SLOTS, PRHS_ALL_LAYERS, &result->stats) == PRHS_OK;
    for (uint32_t layer = 0; ok && layer < r->shape.layer_count; layer++) {
        result->layers[layer].stats.size = sizeof result->stats;
        ok = prhs_stats_request_get(request, PRHS_ALL_SLOTS, r->shape.first_layer + layer, &result->layers[layer].stats) ==
             PRHS_OK;
    }
    prhs_stats_request_destroy(request);
    return ok;
}

static bool measure(replay *r, replay_result *result) {
    run x;
    replay_samples s = { 0 };
    bool ok = run_open(r, &result->policy, true, &x) && replay_samples_make(r, &s);
    const size_t outs = (size_t)r->shape.layer_count * r->shape.seqs * trace_row(&r->shape, TRACE_Q);
    x.stride = (x.sizes.slot + 255) / 256 * 256;
    ok = ok && (x.outs = replay_alloc(outs, sizeof *x.outs)) && (x.host_blobs = replay_alloc(r->shape.seqs, x.stride)) &&
         (x.stride == 0 || prhs_buffer_create(r->dev, r->shape.seqs * x.stride, &x.blobs) == PRHS_OK) && begin(&x);
    for (uint32_t step = 0; ok && step < r->steps; step++)
        ok = replay_take(r, step + 1) && all_layers(&x, false) && look(&x, &result->policy, step, &s);
    ok = ok && take_stats(&x, result) && replay_summarise(r, &s, result) && replay_cover(r, &s, result);
    replay_samples_free(&s);
    run_close(&x);
    return ok;
}

/* --- timed: as in normal use ------------------------------------------------------------------------------------------- */

static bool make_events(run *x) {
    const uint32_t n = 2 * x->r->steps + 2;
    x->events = replay_alloc(n, sizeof *x->events);
    x->seconds = replay_alloc((size_t)x->r->o->repeat * (x->r->steps + 1), sizeof *x->seconds);
    for (uint32_t i = 0; x->events && i < n; i++)
        if (prhs_event_create(x->r->dev, &x->events[i]) != PRHS_OK)
            return false;
    return x->events && x->seconds;
}

static bool capture(run *x) {
    if (x->r->o->direct || !tool_has_graphs(&x->r->info))
        return true;
    if (tool_graph_begin(x->r->queue) != PRHS_OK)
        return false;
    bool ok = all_layers(x, false);
    return tool_graph_end(x->r->queue, &x->graph) == PRHS_OK && ok;
}

/* Seconds a layer between two events. */
static bool elapsed(const run *x, uint32_t event, double *seconds) {
    bool ok = prhs_event_elapsed(x->events[event], x->events[event + 1], seconds) == PRHS_OK;
    *seconds /= x->r->shape.layer_count;
    return ok;
}

/* The whole trace once more, from the prompts on; row `repeat` of x->seconds, then the seeding in its last element. */
static bool time_once(run *x, uint32_t repeat) {
    replay *r = x->r;
    double *seconds = x->seconds + (size_t)repeat * (r->steps + 1);
    bool ok = begin(x) && prhs_queue_finish(r->queue) == PRHS_OK && (repeat > 0 || capture(x));
    for (uint32_t step = 0; ok && step < r->steps; step++) {
        ok = replay_take(r, step + 1) && mark(x, 2 * step);
        ok = ok && (x->graph ? tool_graph_launch(x->graph, r->queue) == PRHS_OK : all_layers(x, false)) && mark(x, 2 * step + 1);
    }
    ok = ok && prhs_queue_finish(r->queue) == PRHS_OK;
    for (uint32_t step = 0; ok && step <= r->steps; step++)
        ok = elapsed(x, 2 * step, &seconds[step]);
    return ok;
}

static bool time_steps(replay *r, replay_result *result) {
    run x;
    bool ok = run_open(r, &result->policy, false, &x) && make_events(&x);
    for (uint32_t i = 0; ok && i < r->o->repeat; i++)
        ok = time_once(&x, i);
    ok = ok && replay_times(r, x.seconds, result);
    run_close(&x);
    return ok;
}

bool replay_parse(const char *text, uint32_t layers, prhs_policy *policy, comparator *rival) {
    *policy = (prhs_policy){ 0 };
    return comparator_parse("prhs replay", text, rival) &&
           (rival->kind != COMPARATOR_NONE || policy_parse("prhs replay", text, layers, policy, NULL));
}

bool replay_policy(replay *r, const char *text, uint32_t parts, replay_result *result) {
    *result = (replay_result){ .parts = parts };
    snprintf(result->name, sizeof result->name, "%s", text);
    if (!replay_parse(text, r->shape.layers, &result->policy, &result->rival))
        return false;
    result->layers = replay_alloc(r->shape.layer_count, sizeof *result->layers);
    result->sequences = replay_alloc(r->shape.seqs, sizeof *result->sequences);
    bool ok = result->layers != NULL && result->sequences != NULL;
    for (uint32_t layer = 0; ok && layer < r->shape.layer_count; layer++) {
        result->layers[layer].head_delta = replay_alloc(r->shape.heads, sizeof(replay_summary));
        result->layers[layer].head_error = replay_alloc(r->shape.heads, sizeof(replay_summary));
        ok = result->layers[layer].head_delta && result->layers[layer].head_error;
    }
    if (result->rival.kind != COMPARATOR_NONE) { /* chosen on the host: there is no time to tell */
        result->parts = parts & REPLAY_ACCURACY;
        return ok && (!result->parts || replay_compare(r, result));
    }
    return ok && (!(parts & REPLAY_ACCURACY) || measure(r, result)) && (!(parts & REPLAY_TIME) || time_steps(r, result));
}

void replay_result_free(const replay *r, replay_result *result) {
    for (uint32_t layer = 0; result->layers && layer < r->shape.layer_count; layer++) {
        free(result->layers[layer].head_delta);
        free(result->layers[layer].head_error);
    }
    free(result->layers);
    free(result->sequences);
    *result = (replay_result){ 0 };
}
