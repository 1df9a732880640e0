/* SPDX-License-Identifier: Apache-2.0 */
/* prhs bench: what runs when. */
#include <stdio.h>

#include "bench.h"

/* The shape with most K/V: its dense attention shows best what the memory can do. */
static const bench_shape *largest(const bench_options *o) {
    const bench_shape *most = &o->shapes[0];
    for (uint32_t i = 1; i < o->shape_count; i++) {
        const bench_shape *s = &o->shapes[i];
        if ((uint64_t)s->batch * s->n * s->kv_heads * s->dim > (uint64_t)most->batch * most->n * most->kv_heads * most->dim)
            most = s;
    }
    return most;
}

static void run_parts(bench *b, const char *program) {
    const bench_options *o = b->o;
    bool cuda = b->info.backend == PRHS_BACKEND_CUDA;
    uint32_t parts = o->parts;
    if (!parts)
        parts = BENCH_OPS | BENCH_STEPS | BENCH_START | (cuda ? BENCH_HOST | BENCH_CROSS | (o->preset ? BENCH_SELECT : 0) : 0);
    if (!b->host_reads && parts != BENCH_START)
        bench_dense(b, largest(o));
    for (uint32_t i = 0; i < o->shape_count; i++) {
        if (parts & BENCH_OPS)
            bench_ops(b, &o->shapes[i]);
        if (parts & BENCH_STEPS)
            bench_steps(b, &o->shapes[i]);
    }
    if (parts & BENCH_SELECT)
        bench_select(b);
    if (parts & BENCH_HOST) {
        bench_host(b, &o->shapes[0], true);
        if (o->shape_count > 1) /* short sequences may take one launch where long ones take several */
            bench_host(b, &o->shapes[o->shape_count - 1], false);
    }
    if (parts & BENCH_CROSS)
        bench_cross(b, &o->shapes[0]);
    if (parts & BENCH_SURE)
        bench_sure(b, &o->shapes[0]);
    if (parts & BENCH_SLOTS)
        bench_slots(b);
    if (parts & BENCH_PREFILL)
        bench_prefill(b);
    if (parts & BENCH_START)
        bench_start(b, &o->shapes[0], program);
}

int bench_open(bench *b, bench_options *o) {
    *b = (bench){ .o = o, .rng = 20260208 };
    int status = tool_open(&o->device, &b->dev);
    if (status != TOOL_OK)
        return status;
    b->info.size = sizeof b->info;
    bench_must(prhs_device_get_info(b->dev, &b->info));
    bench_must(prhs_queue_create(b->dev, &b->queue));
    const bool cuda = b->info.backend == PRHS_BACKEND_CUDA;
    b->graphs = bench_has_graphs(b) && !o->direct;
    b->row_type = cuda ? o->dtype : PRHS_F32;
    b->host_reads = b->info.backend == PRHS_BACKEND_CPU || (b->info.caps & PRHS_CAP_WIDE);
    b->normal_bytes = b->host_reads ? UINT64_C(16) << 20 : UINT64_C(64) << 20;
    b->pool.slab_bytes = b->host_reads ? UINT64_C(256) << 20 : UINT64_C(4) << 30;
    b->pool.budget = UINT64_C(48) << 30;
    if (b->info.memory && b->info.memory / 10 * 6 < b->pool.budget)
        b->pool.budget = b->info.memory / 10 * 6;
    if (b->info.max_buffer && b->info.max_buffer < b->pool.slab_bytes)
        b->pool.slab_bytes = b->info.max_buffer;
    if (!o->rotate_bytes)
        o->rotate_bytes = b->host_reads ? UINT64_C(1) << 30 : UINT64_C(256) << 20;
    return TOOL_OK;
}

int bench_close(bench *b) {
    bench_pool_free(b);
    bench_normals_free(b);
    prhs_queue_destroy(b->queue);
    return prhs_device_close(b->dev) == PRHS_OK ? TOOL_OK : TOOL_FAILED;
}

static int run(bench_options *o, const char *program) {
    bench b;
    int status = bench_open(&b, o);
    if (status != TOOL_OK)
        return status;
    bench_ceilings(&b);
    bench_report_begin(&b);
    run_parts(&b, program);
    const bool written = bench_report_end(&b);
    status = bench_close(&b);
    return written ? status : TOOL_FAILED;
}

int tool_bench(int argc, char **argv) {
    bench_options o = { .device = PRHS_DEVICE_PARAMS_INIT, .kept_part = 8, .page_size = 16, .repeat = 20, .dtype = PRHS_F16 };
    bool child = false;
    int status = bench_parse(argc, argv, &o, &child);
    if (status >= 0)
        return status;
    return child ? bench_start_child(&o, &o.shapes[0]) : run(&o, argv[0]);
}
