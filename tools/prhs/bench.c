/* SPDX-License-Identifier: Apache-2.0 */
/* prhs bench: its options, and what runs when. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const char help[] =
    "usage: prhs bench [options]\n"
    "Times every op and whole decode steps with scripted retrieval, each beside own dense attention and the memory's speed,\n"
    "then start-up. "
    "K/V are rotated over so many copies that caches do not help. Times come from events in one queue.\n"
    TOOL_DEVICE_HELP
    "  --shape B,N,H,H_KV,D  sequences, tokens, query heads, KV heads, head dimension; may be repeated\n"
    "                    (1,8192,32,32,128  1,8192,32,8,128  1,4096,9,3,64)\n"
    "  --kept PART       sparse steps keep N / PART tokens (8)\n"
    "  --dtype TYPE      f16 (default), bf16 or f32 K/V\n"
    "  --page N          tokens a page (16)\n"
    "  --layout ORDER    of a page: hnd (default: a head's tokens lie together) or nhd\n"
    "  --repeat N        timed calls an op (20)\n"
    "  --rotate MIB      K/V that a rotation goes through (1024)\n"
    "  --only PART       ops, steps or start\n"
    "  --json FILE       all figures as a document ('-': standard output)\n";

static bool parse_shape(const char *text, bench_options *o) {
    bench_shape s;
    char end;
    if (o->shape_count == sizeof o->shapes / sizeof o->shapes[0] ||
        sscanf(text, "%u,%u,%u,%u,%u%c", &s.batch, &s.n, &s.heads, &s.kv_heads, &s.dim, &end) != 5 || !s.batch || s.n < 1024) {
        fprintf(stderr, "prhs: --shape takes B,N,H,H_KV,D with N of at least 1024, at most 16 times; not '%s'\n", text);
        return false;
    }
    o->shapes[o->shape_count++] = s;
    return true;
}

static bool parse_only(const char *text, bench_options *o) {
    o->ops = strcmp(text, "ops") == 0;
    o->steps = strcmp(text, "steps") == 0;
    o->start = strcmp(text, "start") == 0;
    if (!o->ops && !o->steps && !o->start)
        fprintf(stderr, "prhs: --only takes ops, steps or start, not '%s'\n", text);
    return o->ops || o->steps || o->start;
}

static bool parse_dtype(const char *text, bench_options *o) {
    static const struct {
        const char *name;
        prhs_dtype type;
    } types[] = { { "f16", PRHS_F16 }, { "bf16", PRHS_BF16 }, { "f32", PRHS_F32 } };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(text, types[i].name) == 0) {
            o->dtype = types[i].type;
            return true;
        }
    fprintf(stderr, "prhs: --dtype takes f16, bf16 or f32, not '%s'\n", text);
    return false;
}

static bool parse_number(const char *name, const char *text, uint64_t low, uint64_t high, uint32_t *value) {
    uint64_t n = 0;
    if (!tool_number(name, text, low, high, &n))
        return false;
    *value = (uint32_t)n;
    return true;
}

/* One option; -1: go on, else the exit status. */
static int take(int c, const char *value, bench_options *o, bool *child) {
    uint32_t mib = 0;
    bool good = true;
    int mine = tool_device_option(c, value, &o->device);
    if (mine)
        return mine > 0 ? -1 : TOOL_USAGE;
    switch (c) {
    case 'S': good = parse_shape(value, o); break;
    case 'k': good = parse_number("--kept", value, 2, 64, &o->kept_part); break;
    case 'T': good = parse_dtype(value, o); break;
    case 'p': good = parse_number("--page", value, 1, 256, &o->page_size); break;
    case 'L':
        o->nhd = strcmp(value, "nhd") == 0;
        good = o->nhd || strcmp(value, "hnd") == 0;
        if (!good)
            fprintf(stderr, "prhs: --layout takes hnd or nhd, not '%s'\n", value);
        break;
    case 'r': good = parse_number("--repeat", value, 1, 10000, &o->repeat); break;
    case 'R':
        good = parse_number("--rotate", value, 1, 1 << 20, &mib);
        o->rotate_bytes = (uint64_t)mib << 20;
        break;
    case 'o': good = parse_only(value, o); break;
    case 'j': o->json = value; break;
    case 'X': *child = true; break;
    case 'h': fputs(help, stdout); return TOOL_OK;
    default: return tool_usage("bench");
    }
    return good ? -1 : TOOL_USAGE;
}

static int run(const bench_options *o, const char *program) {
    bench b = { .o = o, .rng = 20260208 };
    int status = tool_open(&o->device, &b.dev);
    if (status != TOOL_OK)
        return status;
    bench_must(prhs_device_get_info(b.dev, &b.info));
    bench_must(prhs_queue_create(b.dev, &b.queue));
    bench_ceilings(&b);
    bench_report_begin(&b);
    for (uint32_t i = 0; i < o->shape_count; i++) {
        if (o->ops)
            bench_ops(&b, &o->shapes[i]);
        if (o->steps)
            bench_steps(&b, &o->shapes[i]);
    }
    if (o->start)
        bench_start(&b, &o->shapes[0], program);
    prhs_queue_destroy(b.queue);
    status = bench_report_end(&b) ? TOOL_OK : TOOL_FAILED;
    return prhs_device_close(b.dev) == PRHS_OK ? status : TOOL_FAILED;
}

int tool_bench(int argc, char **argv) {
    static const struct option options[] = {
        TOOL_DEVICE_OPTIONS,      { "shape", 1, 0, 'S' },  { "kept", 1, 0, 'k' }, { "dtype", 1, 0, 'T' }, { "page", 1, 0, 'p' },
        { "layout", 1, 0, 'L' },  { "repeat", 1, 0, 'r' }, { "rotate", 1, 0, 'R' }, { "only", 1, 0, 'o' }, { "json", 1, 0, 'j' },
        { "start-child", 0, 0, 'X' }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    bench_options o = { .device = PRHS_DEVICE_PARAMS_INIT, .kept_part = 8, .page_size = 16, .repeat = 20, .dtype = PRHS_F16,
                        .rotate_bytes = UINT64_C(1) << 30, .ops = true, .steps = true, .start = true };
    bool child = false;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int status = take(c, optarg, &o, &child);
        if (status >= 0)
            return status;
    }
    if (optind < argc) {
        fprintf(stderr, "prhs: bench takes options only, not '%s'\n", argv[optind]);
        return tool_usage("bench");
    }
    if (o.shape_count == 0) {
        parse_shape("1,8192,32,32,128", &o);
        parse_shape("1,8192,32,8,128", &o);
        parse_shape("1,4096,9,3,64", &o);
    }
    return child ? bench_start_child(&o, &o.shapes[0]) : run(&o, argv[0]);
}
