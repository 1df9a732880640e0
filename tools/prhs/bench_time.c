/* SPDX-License-Identifier: Apache-2.0 */
/* Timing: events between calls of one queue or between replays of a graph, and the memory's own speed. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"

double bench_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_summary(double *seconds, uint32_t n, bench_row *row) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += seconds[i];
    qsort(seconds, n, sizeof *seconds, by_value);
    row->calls = n;
    row->median = n % 2 ? seconds[n / 2] : (seconds[n / 2 - 1] + seconds[n / 2]) / 2;
    row->min = seconds[0];
    row->max = seconds[n - 1];
    row->mean = sum / n;
}

/* --- loops ------------------------------------------------------------------------------------------------------------ */

void bench_loop_make(bench *b, void (*fn)(void *arg, uint32_t i), void *arg, uint32_t calls, bench_loop *loop) {
    *loop = (bench_loop){ b, fn, arg, calls, 0, NULL };
    if (!b->graphs)
        return;
    bench_graph_begin(b);
    for (uint32_t i = 0; i < calls; i++)
        fn(arg, i);
    loop->graph = bench_graph_end(b);
}

void bench_loop_run(bench_loop *loop) {
    if (loop->graph) {
        bench_graph_launch(loop->b, loop->graph);
        return;
    }
    for (uint32_t i = 0; i < loop->calls; i++)
        loop->fn(loop->arg, loop->next++);
}

void bench_loop_free(bench_loop *loop) {
    bench_must(prhs_queue_finish(loop->b->queue));
    bench_graph_destroy(loop->graph);
}

enum { GRAPH_CALLS = 20, GRAPH_WARM = 2, PLAIN_CALLS = 16, MANY_WARM = 2 };

/* Calls between two events outside of graphs. Where the queue is far away an event costs more than a short call; long ones are not warmed up so often. */
static uint32_t plain_calls(const bench *b, uint32_t warm) { return b->host_reads || warm < MANY_WARM ? 1 : PLAIN_CALLS; }

void bench_time(bench *b, void (*fn)(void *arg, uint32_t i), void *arg, uint32_t copies, uint32_t warm, uint32_t calls, bench_row *row) {
    bench_loop loop;
    prhs_event **events = bench_alloc(calls + 1, sizeof *events);
    double *seconds = bench_alloc(calls, sizeof *seconds);
    for (uint32_t i = 0; i <= calls; i++)
        bench_must(prhs_event_create(b->dev, &events[i]));
    bench_loop_make(b, fn, arg, b->graphs ? (GRAPH_CALLS + copies - 1) / copies * copies : plain_calls(b, warm), &loop);
    for (uint32_t i = 0; i < (b->graphs ? GRAPH_WARM : warm); i++)
        bench_loop_run(&loop);
    if (!b->graphs)
        bench_must(prhs_queue_finish(b->queue));
    bench_must(prhs_event_record(b->queue, events[0]));
    for (uint32_t i = 0; i < calls; i++) {
        bench_loop_run(&loop);
        bench_must(prhs_event_record(b->queue, events[i + 1]));
    }
    bench_must(prhs_queue_finish(b->queue));
    for (uint32_t i = 0; i < calls; i++) {
        bench_must(prhs_event_elapsed(events[i], events[i + 1], &seconds[i]));
        seconds[i] /= loop.calls;
    }
    for (uint32_t i = 0; i <= calls; i++)
        prhs_event_destroy(events[i]);
    bench_loop_free(&loop);
    bench_summary(seconds, calls, row);
    row->calls = calls * loop.calls;
    free(events);
    free(seconds);
}

/* --- what the memory can do ------------------------------------------------------------------------------------------- */

typedef struct reader {
    const uint64_t *data;
    size_t words;
    uint64_t sum;
} reader;

static void *read_all(void *arg) {
    reader *r = arg;
    uint64_t sum[16] = { 0 };
    for (size_t i = 0; i + 16 <= r->words; i += 16)
        for (int j = 0; j < 16; j++)
            sum[j] += r->data[i + (size_t)j];
    for (int j = 0; j < 16; j++)
        r->sum += sum[j];
    return NULL;
}

/* Host threads read a block that no cache holds: the ceiling of devices that compute in host memory. */
static double read_seconds(const uint64_t *data, size_t words, uint32_t threads) {
    pthread_t id[256];
    reader part[256];
    double from = bench_clock();
    for (uint32_t i = 0; i < threads; i++) {
        part[i] = (reader){ data + words / threads * i, words / threads, 0 };
        if (pthread_create(&id[i], NULL, read_all, &part[i]) != 0)
            bench_must(PRHS_ERR_MEMORY);
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(id[i], NULL);
        sum += part[i].sum;
    }
    double seconds = bench_clock() - from;
    return sum == 1 ? seconds * 2 : seconds; /* the sum is needed, or nothing would be read */
}

typedef struct copying {
    bench *b;
    prhs_mem from, to;
    uint64_t size;
} copying;

static void copy_once(void *arg, uint32_t i) {
    const copying *c = arg;
    bench_must(prhs_queue_copy(c->b->queue, i % 2 ? c->from : c->to, i % 2 ? c->to : c->from, c->size));
}

void bench_ceilings(bench *b) {
    const uint64_t size = UINT64_C(512) << 20;
    uint32_t mark = b->buffer_count;
    bench_row row = { 0 };
    copying c = { b, bench_buffer(b, size), bench_buffer(b, size), size };
    bench_must(prhs_queue_fill(b->queue, c.from, 1, size));
    bench_time(b, copy_once, &c, 2, 2, 10, &row);
    b->copy_rate = row.median > 0 ? 2 * (double)size / row.median : 0;
    bench_release(b, mark);
    if (!b->host_reads)
        return;
    uint32_t threads = b->info.backend == PRHS_BACKEND_CPU && b->o->device.threads ? b->o->device.threads : b->info.compute_units;
    uint64_t *data = bench_alloc(size / 8, 8);
    memset(data, 1, size);
    double seconds[10];
    for (int i = 0; i < 10; i++)
        seconds[i] = read_seconds(data, size / 8, threads < 256 ? threads : 256);
    bench_summary(seconds, 10, &row);
    b->read_rate = (double)size / row.median;
    free(data);
}
