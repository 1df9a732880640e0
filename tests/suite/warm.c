/* SPDX-License-Identifier: Apache-2.0 */
/* Warm decode steps: no allocation, no wait, no compile, no copy; the same number of launches whatever the batch holds. */
#include "groups.h"
#include "world.h"

static const char *const presets[] = { "cis-mass", "dense", "streaming", "topk", "cis", "cpe" };

static const char *row_name(int row) { return presets[row]; }

static prhs_counters counters(t_ctx *t) {
    prhs_counters c = { .size = sizeof c };
    T_OK(t, prhs_device_get_counters(t->dev, &c));
    return c;
}

/* One layer's step on the batch that is on the device; returns its launches. */
static uint64_t counted(t_world *w, uint32_t layer) {
    t_ctx *t = w->t;
    prhs_step step = PRHS_STEP_INIT;
    step.layer = layer;
    step.batch = w->batch.b;
    step.batch.kinds = PRHS_HAS_DECODE;
    step.kv = w->cache[layer].kv;
    step.q = w->q.r;
    step.k = w->k.r;
    step.v = w->v.r;
    step.out = w->out.r;
    step.lse = w->lse.mem;
    prhs_counters a = counters(t);
    T_OK(t, prhs_session_step(w->session, t->queue, &step));
    prhs_counters b = counters(t);
    T_CHECK(t, b.allocations == a.allocations, "a warm step made %u allocations", (unsigned)(b.allocations - a.allocations));
    T_CHECK(t, b.waits == a.waits, "a warm step waited %u times", (unsigned)(b.waits - a.waits));
    T_CHECK(t, b.compiles == a.compiles, "a warm step compiled %u programs", (unsigned)(b.compiles - a.compiles));
    T_CHECK(t, b.copies == a.copies, "a warm step made %u copies", (unsigned)(b.copies - a.copies));
    /* The path that really ran: generic kernels exactly where OpenCL's wide ones were taken away, unless there are those for GPUs. */
    const uint64_t launches = b.launches - a.launches, generic = b.generic - a.generic;
    const bool narrow = t->info.backend == PRHS_BACKEND_OPENCL && !(t->info.caps & PRHS_CAP_WIDE);
    if (narrow && t->info.caps & PRHS_CAP_GPU)
        T_CHECK(t, generic < launches, "all of %u launches took the generic path", (unsigned)launches);
    else
        T_CHECK(t, generic == (narrow ? launches : 0), "of %u launches %u took the generic path", (unsigned)launches, (unsigned)generic);
    return launches;
}

static void run(t_ctx *t, int row) {
    t_world w;
    uint64_t launches[W_LAYERS] = { 0 };
    t_setup s = t_setup_default(t, presets[row], &t_shapes[S_G1_D32]);
    const uint64_t most = t->info.backend == PRHS_BACKEND_CUDA ? 6 : 12;
    t_world_make(t, &w, &s);
    t_wseq *seq = t_world_seq(&w, 1, 0);
    t_world_prompt(&w, seq, 70, 64);
    t_world_one(&w, seq, 1, 0);
    for (int step = 0; step < 30; step++) {
        t_world_reserve(&w, seq, 1);
        seq->version[seq->len] = (uint64_t)seq->len;
        seq->len++;
        w.batch.seqs[0].kv_len = seq->len;
        for (int32_t i = 0; i < seq->pages; i++)
            w.batch.pages[i] = seq->page[i];
        if (step == 20)
            w.batch.seqs[0].slot = -1; /* an idle batch costs the same launches */
        t_batch_upload(t, &w.batch);
        for (uint32_t l = 0; l < s.layers; l++) {
            uint64_t n = counted(&w, l);
            T_CHECK(t, n > 0 && n <= most, "a step of layer %u took %u launches", l, (unsigned)n);
            T_CHECK(t, step == 0 || n == launches[l], "step %d took %u launches instead of %u", step, (unsigned)n,
                    (unsigned)launches[l]);
            launches[l] = n;
        }
    }
    prhs_counters a = counters(t);
    T_OK(t, prhs_session_fork(w.session, t->queue, 3, 0));
    T_OK(t, prhs_session_move(w.session, t->queue, 4, 3));
    T_OK(t, prhs_session_reset(w.session, t->queue, 4));
    T_OK(t, prhs_session_truncate(w.session, t->queue, 1, &w.batch.b, &w.cache[1].kv));
    prhs_counters b = counters(t);
    T_CHECK(t, a.allocations == b.allocations && a.waits == b.waits && a.compiles == b.compiles,
            "fork, move, reset or truncate allocated, waited or compiled");
    T_OK(t, prhs_queue_finish(t->queue));
    T_CHECK(t, counters(t).waits == b.waits + 1, "one prhs_queue_finish() counts as %u waits", (unsigned)(counters(t).waits - b.waits));
}

const t_group t_group_warm = { "warm", sizeof presets / sizeof *presets, 6, row_name, run };
