/* SPDX-License-Identifier: Apache-2.0 */
/* prhs bench: its options. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

static const char help[] =
    "usage: prhs bench [options]\n"
    "Times every op and whole decode steps with scripted retrieval, beside own dense attention and the memory's speed, then start-up.\n"
    "K/V are rotated over so many copies that caches do not help. Times come from events in one queue; on CUDA around captured graphs.\n"
    TOOL_DEVICE_HELP
    "  --shape B,N,H,H_KV,D  sequences, tokens, query heads, KV heads, head dimension; may be repeated\n"
    "                    (1,8192,32,32,128  1,8192,32,8,128  1,4096,9,3,64)\n"
    "  --preset NAME     shapes: paper (8 and 16 x 1024, 2048 and 4096) or long (8 KV heads, up to 131072); may be repeated\n"
    "  --kept PART       sparse steps keep N / PART tokens (8),\n"
    "  --kept-tokens N   or this many; goes for all shapes\n"
    "  --dtype TYPE      f16 (default), bf16 or f32 K/V\n"
    "  --page N          tokens a page (16)\n"
    "  --layout ORDER    of a page: hnd (default: a head's tokens lie together) or nhd\n"
    "  --repeat N        timed calls an op, replays on CUDA (20)\n"
    "  --rotate MIB      what a rotation goes through: K/V where the device computes in host memory (1024), else what calls touch (256)\n"
    "  --only PART       ops, steps, select, host (what a step costs outside a graph), cross (sparse against dense by N and kept tokens),\n"
    "                    sure (what gates and audits cost a step), slots (64 slots of 131072 tokens with short sequences), prefill,\n"
    "                    start or all; may be repeated\n"
    "                    (ops, steps, start; CUDA: also host, cross, and select with a preset)\n"
    "  --no-graph        CUDA: calls one by one\n"
    "  --json FILE       all figures as a document ('-': standard output)\n";

static bool add_shape(bench_options *o, const bench_shape *s) {
    if (o->shape_count == sizeof o->shapes / sizeof o->shapes[0]) {
        fprintf(stderr, "prhs: bench takes at most %zu shapes\n", sizeof o->shapes / sizeof o->shapes[0]);
        return false;
    }
    o->shapes[o->shape_count++] = *s;
    return true;
}

bool bench_parse_shape(const char *text, bench_options *o) {
    bench_shape s = { 0 };
    char end;
    if (sscanf(text, "%u,%u,%u,%u,%u%c", &s.batch, &s.n, &s.heads, &s.kv_heads, &s.dim, &end) != 5 || !s.batch || s.n < 1024) {
        fprintf(stderr, "prhs: --shape takes B,N,H,H_KV,D with N of at least 1024, not '%s'\n", text);
        return false;
    }
    return add_shape(o, &s);
}

static bool parse_preset(const char *text, bench_options *o) {
    static const struct {
        const char *preset;
        bench_shape shape;
    } shapes[] = {
        { "paper", { 8, 1024, 32, 32, 128, 0 } },    { "paper", { 8, 2048, 32, 32, 128, 0 } },  { "paper", { 8, 4096, 32, 32, 128, 0 } },
        { "paper", { 16, 1024, 32, 32, 128, 0 } },   { "paper", { 16, 2048, 32, 32, 128, 0 } }, { "paper", { 16, 4096, 32, 32, 128, 0 } },
        { "long", { 8, 4096, 32, 8, 128, 0 } },      { "long", { 16, 8192, 32, 8, 128, 0 } },   { "long", { 1, 32768, 32, 8, 128, 0 } },
        { "long", { 8, 32768, 32, 8, 128, 1024 } },  { "long", { 1, 131072, 32, 8, 128, 2048 } },
    };
    bool known = false;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (strcmp(shapes[i].preset, text) == 0) {
            known = true;
            if (!add_shape(o, &shapes[i].shape))
                return false;
        }
    if (!known)
        fprintf(stderr, "prhs: --preset takes paper or long, not '%s'\n", text);
    o->preset = true;
    return known;
}

static bool parse_only(const char *text, bench_options *o) {
    static const struct {
        const char *name;
        uint32_t part;
    } parts[] = { { "ops", BENCH_OPS },     { "steps", BENCH_STEPS }, { "select", BENCH_SELECT },
                  { "host", BENCH_HOST },   { "cross", BENCH_CROSS }, { "slots", BENCH_SLOTS },
                  { "start", BENCH_START }, { "prefill", BENCH_PREFILL }, { "sure", BENCH_SURE },
                  { "all", BENCH_ALL } };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strcmp(parts[i].name, text) == 0) {
            o->parts |= parts[i].part;
            return true;
        }
    fprintf(stderr, "prhs: --only takes ops, steps, select, host, cross, sure, slots, prefill, start or all, not '%s'\n", text);
    return false;
}

bool bench_parse_dtype(const char *text, bench_options *o) {
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

static bool parse_layout(const char *text, bench_options *o) {
    o->nhd = strcmp(text, "nhd") == 0;
    if (o->nhd || strcmp(text, "hnd") == 0)
        return true;
    fprintf(stderr, "prhs: --layout takes hnd or nhd, not '%s'\n", text);
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
    case 'S': good = bench_parse_shape(value, o); break;
    case 'P': good = parse_preset(value, o); break;
    case 'k': good = parse_number("--kept", value, 2, 64, &o->kept_part); break;
    case 'K': good = parse_number("--kept-tokens", value, 64, 1 << 20, &o->kept_tokens); break;
    case 'T': good = bench_parse_dtype(value, o); break;
    case 'p': good = parse_number("--page", value, 1, 256, &o->page_size); break;
    case 'L': good = parse_layout(value, o); break;
    case 'r': good = parse_number("--repeat", value, 1, 10000, &o->repeat); break;
    case 'R':
        good = parse_number("--rotate", value, 1, 1 << 20, &mib);
        o->rotate_bytes = (uint64_t)mib << 20;
        break;
    case 'o': good = parse_only(value, o); break;
    case 'g': o->direct = true; break;
    case 'j': o->json = value; break;
    case 'X': *child = true; break;
    case 'h': fputs(help, stdout); return TOOL_OK;
    default: return tool_usage("bench");
    }
    return good ? -1 : TOOL_USAGE;
}

bool bench_resolve_kept(bench_options *o) {
    for (uint32_t i = 0; i < o->shape_count; i++) {
        bench_shape *s = &o->shapes[i];
        if (o->kept_tokens)
            s->kept = o->kept_tokens;
        else if (!s->kept)
            s->kept = s->n / o->kept_part;
        if (s->kept > s->n / 2 || s->kept < 64) {
            fprintf(stderr, "prhs: of %u tokens, 64 to %u can be kept, not %u\n", s->n, s->n / 2, s->kept);
            return false;
        }
    }
    return true;
}

int bench_parse(int argc, char **argv, bench_options *o, bool *child) {
    static const struct option options[] = {
        TOOL_DEVICE_OPTIONS,     { "shape", 1, 0, 'S' },  { "preset", 1, 0, 'P' },   { "kept", 1, 0, 'k' }, { "kept-tokens", 1, 0, 'K' },
        { "dtype", 1, 0, 'T' },  { "page", 1, 0, 'p' },   { "layout", 1, 0, 'L' },   { "repeat", 1, 0, 'r' }, { "rotate", 1, 0, 'R' },
        { "only", 1, 0, 'o' },   { "json", 1, 0, 'j' },   { "no-graph", 0, 0, 'g' }, { "start-child", 0, 0, 'X' },
        { "help", 0, 0, 'h' },   { 0, 0, 0, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int status = take(c, optarg, o, child);
        if (status >= 0)
            return status;
    }
    if (optind < argc) {
        fprintf(stderr, "prhs: bench takes options only, not '%s'\n", argv[optind]);
        return tool_usage("bench");
    }
    if (o->shape_count == 0) {
        bench_parse_shape("1,8192,32,32,128", o);
        bench_parse_shape("1,8192,32,8,128", o);
        bench_parse_shape("1,4096,9,3,64", o);
    }
    return bench_resolve_kept(o) ? -1 : TOOL_USAGE;
}
