/* SPDX-License-Identifier: Apache-2.0 */
/* Every documented error: its status, its sentence, and that nothing changed. The table is errors.def. */
#include <math.h>
#include <string.h>

#include "env.h"
#include "groups.h"

typedef enum call {
    ENUMERATE,
    OPEN,
    INFO,
    COUNTERS,
    CLOSE,
    BUFFER_CREATE,
    WRAP_HOST,
    WRITE,
    READ,
    COPY,
    FILL,
    EVENT_RECORD,
    EVENT_QUERY,
    EVENT_ELAPSED,
    LAYOUT,
    OPS_CREATE,
    APPEND,
    RANGE_SUM,
    SCORE,
    SELECT,
    MOMENTS,
    GATE,
    ATTEND,
    PREFILL,
    MERGE,
    POLICY_PRESET,
    POLICY_CHECK,
    SIZES,
    CREATE,
    STEP,
    ATTACH,
    TRUNCATE,
    COMMIT,
    RESET,
    FORK,
    MOVE,
    EXPORT,
    IMPORT,
    REQUEST_GET,
    REQUEST_GET_HEAD,
    REQUEST_GET_AUDIT,
    REQUEST_ENQUEUE,
    VIEW,
    POLL
} call;

enum {
#define X(name, ...) E_##name,
#include "errors.def"
#undef X
    E_COUNT
};

static const struct error {
    const char *name;
    call call;
    prhs_status status;
    const char *words;
} errors[] = {
#define X(name, call, spoil, status, words) { #name, call, status, words },
#include "errors.def"
#undef X
};

static void spoil(t_env *e, int which) {
    switch (which) {
#define X(name, call, spoil, status, words)                                                                                      \
    case E_##name:                                                                                                               \
        spoil;                                                                                                                   \
        break;
#include "errors.def"
#undef X
    }
}

static prhs_status call_device(t_env *e, call c) {
    switch (c) {
    case ENUMERATE: return prhs_enumerate(e->no_infos ? NULL : e->infos, &e->count, &e->log);
    case INFO: return prhs_device_get_info(e->dev, &e->info);
    case COUNTERS: return prhs_device_get_counters(e->dev, &e->counters);
    case OPEN: return prhs_device_open(&e->device_params, &e->log, &e->new_dev);
    case CLOSE: return prhs_device_close(e->second);
    case BUFFER_CREATE: return prhs_buffer_create(e->dev, e->size, &e->new_buf);
    case WRAP_HOST: return prhs_buffer_wrap_host(e->dev, e->space, e->size, &e->new_buf);
    case WRITE: return prhs_queue_write(e->queue, e->mem, e->space, e->size);
    case READ: return prhs_queue_read(e->queue, e->space, e->mem, e->size);
    case COPY: return prhs_queue_copy(e->queue, e->dst, e->mem, e->size);
    case FILL: return prhs_queue_fill(e->queue, e->mem, 0, e->size);
    case EVENT_RECORD: return prhs_event_record(e->queue, e->event);
    case EVENT_QUERY: return prhs_event_query(e->event);
    default: return prhs_event_elapsed(e->event, e->fresh, &e->elapsed);
    }
}

static prhs_status call_ops(t_env *e, call c) {
    switch (c) {
    case LAYOUT: return prhs_ops_get_layout(e->dev, &e->ops_params, &e->layout);
    case OPS_CREATE: return prhs_ops_create(e->dev, &e->ops_params, &e->new_ops);
    case APPEND: return prhs_op_append(e->ops, e->queue, &e->batch, &e->kv, &e->k, &e->v, e->ops_state);
    case RANGE_SUM: return prhs_op_range_sum(e->ops, e->queue, &e->batch, &e->kv, e->sign, e->ops_state);
    case SCORE: return prhs_op_score(e->ops, e->queue, &e->batch, &e->kv, &e->q, 0, e->moments, e->ops_ws);
    case SELECT: return prhs_op_select(e->ops, e->queue, &e->batch, &e->q, &e->select, e->ops_state, e->ops_ws);
    case MOMENTS: return prhs_op_moments(e->ops, e->queue, &e->batch, &e->kv, 0, e->ops_state, e->ops_ws);
    case GATE: return prhs_op_gate(e->ops, e->queue, &e->q, &e->gate);
    case ATTEND: return prhs_op_attend(e->ops, e->queue, &e->batch, &e->kv, &e->q, e->ops_state, e->ops_ws, &e->out, e->lse);
    case PREFILL:
        return prhs_op_prefill(e->ops, e->queue, &e->batch, &e->kv, &e->q, &e->policy, e->layers, e->layer, &e->out, e->lse);
    case MERGE: return prhs_op_merge(e->ops, e->queue, &e->merge, &e->out);
    case POLICY_PRESET: return prhs_policy_preset(e->name, e->layers, &e->policy);
    default: return prhs_policy_check(&e->policy, e->layers, &e->why);
    }
}

static prhs_status call_session(t_env *e, call c) {
    prhs_session *s = e->session;
    switch (c) {
    case SIZES: return prhs_session_get_sizes(e->dev, &e->session_params, &e->sizes);
    case CREATE: return prhs_session_create(e->dev, &e->session_params, e->queue, e->state, e->ws, &e->new_session);
    case STEP: return prhs_session_step(s, e->queue, &e->step);
    case ATTACH: return prhs_session_attach(s, e->queue, e->layer, &e->batch, &e->kv);
    case TRUNCATE: return prhs_session_truncate(s, e->queue, e->layer, &e->batch, &e->kv);
    case COMMIT: return prhs_session_commit(s, e->queue, e->layer, &e->batch, &e->kv);
    case RESET: return prhs_session_reset(s, e->queue, e->slot);
    case FORK: return prhs_session_fork(s, e->queue, e->slot2, e->slot);
    case MOVE: return prhs_session_move(s, e->queue, e->slot2, e->slot);
    case EXPORT: return prhs_session_export(s, e->queue, e->slot, e->blob_mem);
    case IMPORT: return prhs_session_import(s, e->queue, e->slot, e->blob_mem);
    case REQUEST_GET: return prhs_stats_request_get(e->request, e->slot, e->layer, &e->stats);
    case REQUEST_GET_HEAD: return prhs_stats_request_get_head(e->request, e->slot, e->layer, e->head, &e->head_stats);
    case REQUEST_GET_AUDIT: return prhs_stats_request_get_audit(e->request, e->slot, e->layer, e->head, &e->audit);
    case REQUEST_ENQUEUE: return prhs_stats_request_enqueue(e->request, e->queue);
    case VIEW: return prhs_session_view(s, e->blob, e->layer, e->unit, &e->view);
    default: return prhs_session_poll(s, e->queue);
    }
}

static prhs_status make_call(t_env *e, call c) {
    return c < LAYOUT ? call_device(e, c) : c < SIZES ? call_ops(e, c) : call_session(e, c);
}

static void check_error(t_ctx *t, const t_env *env, int row, const void *before) {
    const struct error *x = &errors[row];
    t_env *e = t_alloc(t, sizeof *e);
    *e = *env;
    e->layer = x->call == PREFILL || x->call >= SIZES ? 1 : 0;
    spoil(e, row);
    t_hush(t);
    prhs_status status = make_call(e, x->call);
    T_CHECK(t, status == x->status, "%s: %s instead of %s (%s)", x->name, prhs_status_name(status), prhs_status_name(x->status),
            t->sentence);
    if (x->call == POLICY_CHECK)
        T_CHECK(t, e->why && strstr(e->why, x->words), "%s: the sentence is \"%s\"", x->name, e->why ? e->why : "NULL");
    else if (x->words)
        T_CHECK(t, t->sentences == 1 && strstr(t->sentence, x->words), "%s: %u sentences, the last is \"%s\", which lacks \"%s\"",
                x->name, t->sentences, t->sentence, x->words);
    T_CHECK(t, !e->new_dev && !e->new_buf && !e->new_ops && !e->new_session, "%s: the refused call made something", x->name);
    void *after = t_env_state((t_env *)env);
    T_CHECK(t, !memcmp(before, after, env->sizes.slot), "%s: the refused call changed the state", x->name);
}

static void run_table(t_ctx *t) {
    t_env *e = t_alloc(t, sizeof *e);
    t_env_make(t, e);
    void *before = t_env_state(e);
    for (int row = 0; row < E_COUNT; row++)
        check_error(t, e, row, before);
    t_hush(t);
    T_OK(t, t_env_step(e));
    T_CHECK(t, t->sentences == 0, "a valid step after the refused calls logged: %s", t->sentence);
}

/* A buffer that lacks the last byte of what a call needs. */
static void run_last_byte(t_ctx *t, t_env *e) {
    prhs_step step = e->step;
    uint64_t need = step.batch.max_seqs * sizeof(prhs_seq);
    step.batch.seqs.offset = 0;
    T_OK(t, prhs_buffer_create(e->dev, need - 1, &step.batch.seqs.buffer));
    t_own(t, T_FOREIGN, step.batch.seqs.buffer, 0);
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_session_step(e->session, e->queue, &step));
    T_CHECK(t, strstr(t->sentence, "batch.seqs needs"), "a batch that lacks one byte said \"%s\"", t->sentence);
    T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_queue_write(e->queue, step.batch.seqs, e->space, need));
    T_OK(t, prhs_queue_write(e->queue, step.batch.seqs, e->space, need - 1));
    T_OK(t, prhs_queue_finish(e->queue));
}

/* Errors that depend on the backend, and those of a request in flight. */
static void run_special(t_ctx *t) {
    t_env *e = t_alloc(t, sizeof *e);
    t_env_make(t, e);
    if (t->info.backend == PRHS_BACKEND_CPU) {
        T_STATUS(t, PRHS_ERR_ARGUMENT, prhs_buffer_wrap_host(e->dev, (char *)e->space + 4, 64, &e->new_buf));
        T_CHECK(t, strstr(t->sentence, "align"), "wrapping misaligned memory said \"%s\"", t->sentence);
        T_OK(t, prhs_buffer_wrap_host(e->dev, e->space, 64, &e->new_buf));
        T_CHECK(t, prhs_buffer_host(e->new_buf) == (void *)e->space, "a wrapped buffer's host address");
        T_CHECK(t, prhs_buffer_size(e->new_buf) == 64, "a wrapped buffer's size");
        prhs_buffer_destroy(e->new_buf);
    } else {
        T_STATUS(t, PRHS_ERR_UNSUPPORTED, prhs_buffer_wrap_host(e->dev, e->space, 64, &e->new_buf));
        T_CHECK(t, strstr(t->sentence, "host memory"), "wrapping host memory said \"%s\"", t->sentence);
    }
    run_last_byte(t, e);
    prhs_status status = prhs_stats_request_enqueue(e->request, e->queue);
    T_CHECK(t, status == PRHS_OK, "enqueueing a request again: %s", prhs_status_name(status));
    status = prhs_stats_request_enqueue(e->request, e->queue);
    T_CHECK(t, status == PRHS_OK || status == PRHS_ERR_STATE, "a request in flight: %s", prhs_status_name(status));
    T_OK(t, prhs_queue_finish(e->queue));
    T_CHECK(t, !strcmp(prhs_status_name((prhs_status)99), "PRHS_?"), "the name of an unknown status");
    T_CHECK(t, prhs_dtype_size((prhs_dtype)9) == 0, "the size of an unknown dtype");
    T_CHECK(t, !strcmp(prhs_backend_name((prhs_backend_kind)9), "?"), "the name of an unknown backend");
}

static const char *row_name(int row) { return row ? "by backend and in flight" : "table"; }

static void run(t_ctx *t, int row) {
    if (row)
        run_special(t);
    else
        run_table(t);
}

const t_group t_group_errors = { "errors", 2, 2, row_name, run };
