/* SPDX-License-Identifier: Apache-2.0 */
/* Capacity must cost nothing: short sequences in a session for 64 slots of 131072 tokens, against a session sized for them. */
#include <stdio.h>

#include "bench.h"

enum { SLOTS = 64, CAPACITY = 131072, SHORT = 1024 };

static double one(bench *b, const bench_shape *s, const bench_cache *cache, const step_case *c, bool large, double sized) {
    bench_cache own = *cache;
    step_bench m = { .b = b, .s = s, .cache = &own, .c = c };
    uint32_t mark = b->buffer_count, timed = step_count(c, b->o->repeat);
    char name[96];
    snprintf(name, sizeof name, "%s, %s", large ? "64 slots x 131072" : "sized", c->name);
    bench_row first = { 0 }, r = { .section = "slots", .name = name, .shape = *s, .dense = sized };
    if (large) {
        m.seqs = SLOTS;
        m.max_kv_len = CAPACITY;
        own.page_stride = (CAPACITY + b->o->page_size - 1) / b->o->page_size;
        own.pages = bench_pages(b, SLOTS, cache->page_stride, own.page_stride);
    }
    step_begin(&m, timed);
    step_time(&m, timed, &first, &r);
    step_end(&m);
    bench_report_row(b, &r);
    if (large) {
        snprintf(name, sizeof name, "    %.3f of the session sized for them", r.mean / sized);
        bench_report_note(b, NULL, 0, name);
    }
    bench_release(b, mark);
    return r.mean;
}

void bench_slots(bench *b) {
    static const uint32_t batches[] = { 1, 8, SLOTS };
    const step_case *const cases[] = { &step_dense, &step_cis, &step_mass };
    bench_shape s = { 0, SHORT, 32, 8, 128, SHORT / 8 };
    if (!b->o->preset) {
        s = b->o->shapes[0];
        s.n = SHORT;
        s.kept = SHORT / 8;
    }
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        /* The table of the large session names pages of all slots. */
        bench_shape all = s;
        bench_cache cache;
        uint32_t mark = b->buffer_count;
        all.batch = SLOTS;
        s.batch = batches[i];
        bench_cache_make(b, &all, s.kept, step_count(&step_cis, b->o->repeat) + 32, &cache);
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++)
            one(b, &s, &cache, cases[j], true, one(b, &s, &cache, cases[j], false, 0));
        bench_release(b, mark);
    }
}
