/* SPDX-License-Identifier: Apache-2.0 */
#include "forward.h"

#include <stdlib.h>
#include <time.h>

#include "options.h"

bool forward_open(forward *f, const model *m, const forward_params *params, const prhs_log *log) {
    engine_params p = params->engine;
    *f = (forward){ .graphs = params->graphs };
    p.rows = p.seqs > CHUNK ? p.seqs : CHUNK;
    p.plans = FORWARD_PLANS;
    return engine_open(&f->e, m, &p, log) && (f->c = compute_open(&f->e, params->linear, params->half)) != NULL &&
           prhs_event_create(f->e.dev, &f->event[0]) == PRHS_OK && prhs_event_create(f->e.dev, &f->event[1]) == PRHS_OK;
}

void forward_close(forward *f) {
    if (!f->e.m)
        return;
    if (f->e.queue)
        prhs_queue_finish(f->e.queue);
    record_end(&f->record, false);
    prhs_event_destroy(f->event[0]);
    prhs_event_destroy(f->event[1]);
    engine_session_close(&f->s);
    compute_close(f->c);
    engine_close(&f->e);
    *f = (forward){ 0 };
}

bool forward_session(forward *f, const prhs_policy *policy, const uint32_t *list_layers) {
    f->recorded = false; /* a graph holds the session it was recorded with */
    engine_session_close(&f->s);
    return engine_session_open(&f->e, policy, list_layers, &(engine_audits){ 0 }, &f->s);
}

bool forward_begin(forward *f, const uint32_t *lengths) {
    prhs_seq *seqs = calloc(f->e.seqs, sizeof *seqs);
    bool ok = seqs != NULL;
    for (uint32_t s = 0; ok && s < f->e.seqs; s++)
        seqs[s] = (prhs_seq){ .slot = (int32_t)s, .row_begin = (int32_t)s, .row_count = 1, .kv_len = (int32_t)lengths[s] };
    ok = ok && f->c->ops->begin(f->c, seqs);
    free(seqs);
    return ok;
}

/* Rows [first, first + rows) of a prompt through all layers. */
static bool chunk(forward *f, uint32_t seq, const int32_t *ids, uint32_t first, uint32_t rows, uint32_t count) {
    const compute_ops *ops = f->c->ops;
    int32_t positions[CHUNK];
    prhs_seq *plan = calloc(f->e.seqs, sizeof *plan);
    if (!plan)
        return false;
    plan[seq] = (prhs_seq){ .slot = (int32_t)seq, .row_count = (int32_t)rows, .kv_len = (int32_t)(first + rows),
                            .flags = PRHS_SEQ_PREFILL | (first + rows == count ? PRHS_SEQ_SEED : 0), .prompt_len = (int32_t)count };
    for (uint32_t i = 0; i < rows; i++)
        positions[i] = (int32_t)(first + i);
    bool ok = engine_plan(&f->e, PLAN_PROMPT, 1, plan) && ops->embed(f->c, ids + first, positions, rows);
    free(plan);
    engine_call call = { .plan = PLAN_PROMPT, .seq = seq, .seqs = 1, .count = rows, .append = true,
                         .kinds = PRHS_HAS_PREFILL | PRHS_HAS_SEED };
    for (; ok && call.layer < f->e.m->layers && !interrupted; call.layer++) {
        /* Rows that ETF froze keep their hidden state. */
        const uint32_t frozen = prhs_etf_frozen(&f->s.policy, f->e.m->layers, call.layer, count);
        const uint32_t skip = frozen > first ? (frozen - first < rows ? frozen - first : rows) : 0;
        ok = ops->qkv(f->c, call.layer, rows) && record_prompt(&f->record, &f->e, call.layer, seq, first, rows) &&
             engine_step(&f->e, &f->s, &call) && ops->rest(f->c, call.layer, skip, rows);
    }
    return ok;
}

bool forward_prompt(forward *f, uint32_t seq, const int32_t *ids, uint32_t count, uint32_t *last) {
    bool ok = true;
    for (uint32_t at = 0; ok && at < count && !interrupted; at += CHUNK) {
        const uint32_t rows = count - at < CHUNK ? count - at : CHUNK;
        ok = chunk(f, seq, ids, at, rows, count);
        *last = rows - 1;
    }
    return ok;
}

bool forward_layers(forward *f) {
    const compute_ops *ops = f->c->ops;
    const uint32_t seqs = f->e.seqs;
    engine_call call = { .plan = PLAN_DECODE, .seqs = seqs, .count = seqs, .append = true, .kinds = PRHS_HAS_DECODE };
    bool ok = ops->feed(f->c);
    for (; ok && call.layer < f->e.m->layers; call.layer++)
        ok = ops->qkv(f->c, call.layer, seqs) && record_decoded(&f->record, &f->e, call.layer, 1) &&
             engine_step(&f->e, &f->s, &call) && ops->rest(f->c, call.layer, 0, seqs);
    return ok;
}

static bool step(forward *f) { return forward_layers(f) && f->c->ops->choose(f->c, 0, 0, f->e.seqs, NULL); }

/* The first step runs by itself, so that everything is loaded; only then one is recorded. */
bool forward_steps(forward *f, uint32_t count) {
    const compute_ops *ops = f->c->ops;
    const bool graphs = f->graphs && ops->record;
    for (uint32_t i = 0; i < count && !interrupted; i++) {
        if (f->recorded ? !ops->replay(f->c) : !step(f))
            return false;
        if (graphs && !f->recorded && !(f->recorded = ops->record(f->c) && ops->recorded(f->c, step(f))))
            return false;
    }
    return true;
}

static bool wait_for(prhs_event *event) {
    const struct timespec pause = { 0, 20000 };
    prhs_status status;
    while ((status = prhs_event_query(event)) == PRHS_NOT_READY)
        nanosleep(&pause, NULL);
    return status == PRHS_OK;
}

/* The first tokens come at once. Then two bursts are under way at a time; where a burst is one token, each is looked at before the next. */
bool forward_greedy(forward *f, uint32_t count, forward_sink *sink, void *user) {
    const compute_ops *ops = f->c->ops;
    if (interrupted)
        return true;
    if (!ops->fetch(f->c, 0, 1) || prhs_queue_finish(f->e.queue) != PRHS_OK)
        return false;
    bool wanted = sink(user, f->c->tokens, 0, 1);
    uint32_t seen = 1, bursts = 0;
    for (uint32_t at = 1; at < count && wanted && !interrupted;) {
        const uint32_t n = count - at < ops->burst ? count - at : ops->burst;
        if (!forward_steps(f, n) || !ops->fetch(f->c, at, n) || prhs_event_record(f->e.queue, f->event[bursts++ % 2]) != PRHS_OK)
            return false;
        if (interrupted) /* some of these steps were not taken */
            break;
        at += n;
        const uint32_t until = ops->burst == 1 || at == count ? at : at - n;
        if (until == seen)
            continue;
        if (!wait_for(f->event[until == at ? (bursts - 1) % 2 : bursts % 2]))
            return false;
        wanted = sink(user, f->c->tokens, seen, until - seen);
        seen = until;
    }
    return true;
}
