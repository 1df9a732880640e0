/* SPDX-License-Identifier: Apache-2.0 */
/* What a layer step costs outside a graph: kernels that are enqueued, the calling thread's time, the device's. */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"

static prhs_counters counters_of(const bench *b) {
    prhs_counters c = { .size = sizeof c };
    bench_must(prhs_device_get_counters(b->dev, &c));
    return c;
}

/* Each step alone, so that no full queue makes the caller wait. */
static void time_calls(step_bench *m, uint32_t timed, bench_row *row) {
    bench *b = m->b;
    double *host = bench_alloc(timed, sizeof *host), *seconds = bench_alloc(timed, sizeof *seconds);
    bench_row of_host = { 0 };
    prhs_event *events[2];
    uint64_t launches = 0;
    for (int i = 0; i < 2; i++)
        bench_must(prhs_event_create(b->dev, &events[i]));
    for (uint32_t at = 0; at < m->steps; at++) {
        step_records(m, at);
        bench_must(prhs_queue_finish(b->queue));
        uint64_t before = counters_of(b).launches;
        bench_must(prhs_event_record(b->queue, events[0]));
        double from = bench_clock();
        for (uint32_t layer = 0; layer < BENCH_LAYERS; layer++)
            step_layer(m, layer);
        double spent = bench_clock() - from;
        bench_must(prhs_event_record(b->queue, events[1]));
        bench_must(prhs_queue_finish(b->queue));
        if (at < m->steps - timed)
            continue;
        uint32_t i = at - (m->steps - timed);
        launches += counters_of(b).launches - before;
        host[i] = spent / BENCH_LAYERS;
        bench_must(prhs_event_elapsed(events[0], events[1], &seconds[i]));
        seconds[i] /= BENCH_LAYERS;
    }
    for (int i = 0; i < 2; i++)
        prhs_event_destroy(events[i]);
    bench_summary(seconds, timed, row);
    bench_summary(host, timed, &of_host);
    row->host = of_host.median;
    row->launches = (double)launches / timed / BENCH_LAYERS;
    free(host);
    free(seconds);
}

/* What the library does on the host in replays of a step: nothing. */
static void count_replays(step_bench *m) {
    bench *b = m->b;
    bench_loop loop;
    char text[160];
    bench_loop_make(b, step_layer, m, BENCH_LAYERS, &loop);
    bench_must(prhs_queue_finish(b->queue));
    prhs_counters from = counters_of(b);
    for (uint32_t i = 0; i < b->o->repeat; i++)
        bench_loop_run(&loop);
    prhs_counters to = counters_of(b);
    snprintf(text, sizeof text, "%u replays: %.0f launches, %.0f allocations, %.0f waits, %.0f copies by the library", b->o->repeat,
             (double)(to.launches - from.launches), (double)(to.allocations - from.allocations), (double)(to.waits - from.waits),
             (double)(to.copies - from.copies));
    bench_report_note(b, "replay_launches", (double)(to.launches - from.launches), text);
    bench_loop_free(&loop);
}

void bench_host(bench *b, const bench_shape *s, bool replays) {
    const step_case *const cases[] = { &step_dense, &step_cis, &step_mass };
    bench_cache cache;
    uint32_t mark = b->buffer_count;
    bench_cache_make(b, s, s->kept, step_count(&step_cis, b->o->repeat) + 32, &cache);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        step_bench m = { .b = b, .s = s, .cache = &cache, .c = cases[i] };
        bench_row r = { .section = "outside a graph, by layer", .name = cases[i]->name, .shape = *s };
        char text[120];
        uint32_t timed = step_count(cases[i], b->o->repeat);
        step_begin(&m, timed);
        time_calls(&m, timed, &r);
        bench_report_row(b, &r);
        snprintf(text, sizeof text, "    %.2f launches, %.2f us of the calling thread", r.launches, r.host * 1e6);
        bench_report_note(b, NULL, 0, text);
        if (cases[i] == &step_mass && b->graphs && replays)
            count_replays(&m);
        step_end(&m);
    }
    bench_release(b, mark);
}
