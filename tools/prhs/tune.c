/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs tune: times bench's ops with one number of work-groups a compute unit after the other. A candidate is a tuning file like any caller's, so
 * that what is measured is what a row does.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tune.h"

static const char help[] =
    "usage: prhs tune --backend cuda|opencl [options]\n"
    "Measures how many work-groups a compute unit each op's launch should have, as prhs bench measures ops: medians, K/V rotated over copies,\n"
    "on CUDA inside graphs. The result changes times, never a bit of an output.\n"
    TOOL_DEVICE_HELP
    "  --shape B,N,H,H_KV,D  sequences, tokens, query heads, KV heads, head dimension; may be repeated. A row of tuning is for a head dimension\n"
    "                    and a number of heads that share a K/V row (GPU: 16,4096,32,32,128  16,8192,32,8,128  8,4096,9,3,64;\n"
    "                    CPU: 1,8192,32,32,128  1,8192,32,8,128  1,4096,9,3,64)\n"
    "  --dtype TYPE      f16 (default), bf16 or f32 K/V\n"
    "  --repeat N        timed calls an op, replays on CUDA (20)\n"
    "  --rounds N        through all candidates (3); one that is not the quicker in every round is not taken\n"
    "  --rotate MIB      what a rotation goes through: K/V where the device computes in host memory (1024), else what calls touch (256)\n"
    "  --write FILE      puts the rows into FILE, in place of older ones of the same classes: src/tuning.def, or a file for PRHS_TUNING and\n"
    "                    prhs_device_params.tuning\n"
    "  --json FILE       all medians as a document ('-': standard output)\n";

/* One option; -1: go on, else the exit status. */
static int take(int c, const char *value, tune *t) {
    uint64_t n = 0;
    bool good = true;
    int mine = tool_device_option(c, value, &t->o.device);
    if (mine)
        return mine > 0 ? -1 : TOOL_USAGE;
    switch (c) {
    case 'S': good = bench_parse_shape(value, &t->o); break;
    case 'T': good = bench_parse_dtype(value, &t->o); break;
    case 'r':
        good = tool_number("--repeat", value, 1, 10000, &n);
        t->o.repeat = (uint32_t)n;
        break;
    case 'R':
        good = tool_number("--rotate", value, 1, 1 << 20, &n);
        t->o.rotate_bytes = n << 20;
        break;
    case 'n':
        good = tool_number("--rounds", value, 1, TUNE_ROUNDS, &n);
        t->rounds = (int)n;
        break;
    case 'w': t->write = value; break;
    case 'j': t->o.json = value; break;
    case 'h': fputs(help, stdout); return TOOL_OK;
    default: return tool_usage("tune");
    }
    return good ? -1 : TOOL_USAGE;
}

static int parse(int argc, char **argv, tune *t) {
    static const struct option options[] = {
        TOOL_DEVICE_OPTIONS,     { "shape", 1, 0, 'S' }, { "dtype", 1, 0, 'T' }, { "repeat", 1, 0, 'r' }, { "rotate", 1, 0, 'R' },
        { "rounds", 1, 0, 'n' }, { "write", 1, 0, 'w' }, { "json", 1, 0, 'j' },  { "help", 0, 0, 'h' },   { 0, 0, 0, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int status = take(c, optarg, t);
        if (status >= 0)
            return status;
    }
    if (optind < argc) {
        fprintf(stderr, "prhs: tune takes options only, not '%s'\n", argv[optind]);
        return tool_usage("tune");
    }
    return -1;
}

/* What is known of the device that the options choose, before anything is masked. */
static int describe(tune *t) {
    prhs_device *device = NULL;
    prhs_device_params params = t->o.device;
    params.tuning = "";
    params.caps_mask = PRHS_CAPS_ALL;
    int status = tool_open(&params, &device);
    if (status != TOOL_OK)
        return status;
    t->info.size = sizeof t->info;
    bench_must(prhs_device_get_info(device, &t->info));
    bench_must(prhs_device_close(device));
    t->o.device.backend = t->info.backend;
    return TOOL_OK;
}

/* Class, candidates and shapes that suit the device. */
static bool settle(tune *t) {
    static const int cuda[] = { 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 }, cpu[] = { 4, 1, 2, 8, 16, 32 }, gpu[] = { 8, 1, 2, 4, 16, 32 };
    static const char *const of_gpu[] = { "16,4096,32,32,128", "16,8192,32,8,128", "8,4096,9,3,64" },
                            *const of_cpu[] = { "1,8192,32,32,128", "1,8192,32,8,128", "1,4096,9,3,64" };
    const bool wide = t->info.backend == PRHS_BACKEND_OPENCL && t->info.caps & PRHS_CAP_WIDE;
    int major = 0, minor = 0;
    if (t->info.backend == PRHS_BACKEND_CPU) {
        fprintf(stderr, "prhs: the cpu backend has no work-groups to tune\n");
        return false;
    }
    if (t->info.backend == PRHS_BACKEND_CUDA) {
        sscanf(t->info.platform, "CUDA, compute capability %d.%d", &major, &minor);
        snprintf(t->device_class, sizeof t->device_class, "sm_%d", major * 10 + minor);
    } else {
        snprintf(t->device_class, sizeof t->device_class, "%s", wide ? "cpu" : "gpu");
    }
    const int *groups = t->info.backend == PRHS_BACKEND_CUDA ? cuda : wide ? cpu : gpu;
    t->candidates = t->info.backend == PRHS_BACKEND_CUDA ? (int)(sizeof cuda / sizeof *cuda) : (int)(sizeof cpu / sizeof *cpu);
    memcpy(t->groups, groups, (size_t)t->candidates * sizeof *groups);
    for (int i = 0; i < 3 && (t->o.shape_count == 0 || i > 0) && t->o.shape_count == (uint32_t)i; i++)
        bench_parse_shape((wide ? of_cpu : of_gpu)[i], &t->o);
    return bench_resolve_kept(&t->o);
}

typedef struct measuring {
    tune *t;
    uint32_t shape;
    int candidate, round;
} measuring;

static void on_row(void *user, const bench_row *row) {
    const measuring *m = user;
    tune_sample *samples = m->t->samples[m->shape];
    int *n = &m->t->names[m->shape], i = 0;
    while (i < *n && strcmp(samples[i].name, row->name) != 0)
        i++;
    if (i == TUNE_NAMES)
        return;
    samples[i].name = row->name;
    samples[i].median[m->candidate][m->round] = row->median;
    *n = i == *n ? i + 1 : *n;
}

/* All ops of a shape with one candidate. */
static int measure(tune *t, uint32_t shape, int candidate, int round, const char *path) {
    measuring m = { t, shape, candidate, round };
    const bench_shape *s = &t->o.shapes[shape];
    bench b;
    FILE *f = fopen(path, "w");
    for (const char *const *op = tune_ops; f && *op; op++) {
        char line[160];
        tune_row(t, s, *op, t->groups[candidate], line, sizeof line);
        fputs(line, f);
    }
    if (!f || fclose(f) != 0) {
        fprintf(stderr, "prhs tune: could not write %s\n", path);
        return TOOL_FAILED;
    }
    t->o.device.tuning = path;
    int status = bench_open(&b, &t->o);
    if (status != TOOL_OK)
        return status;
    b.on_row = on_row;
    b.user = &m;
    bench_ops(&b, s);
    return bench_close(&b);
}

static int measure_all(tune *t) {
    const char *folder = getenv("TMPDIR");
    char path[512];
    if (snprintf(path, sizeof path, "%s/prhs-tune-XXXXXX", folder && *folder ? folder : "/tmp") >= (int)sizeof path)
        return TOOL_FAILED;
    const int file = mkstemp(path);
    int status = file < 0 ? TOOL_FAILED : TOOL_OK;
    if (file < 0)
        fprintf(stderr, "prhs tune: could not make %s\n", path);
    else
        close(file);
    /* Once before it counts: what runs first is slower. */
    if (status == TOOL_OK)
        status = measure(t, 0, 0, 0, path);
    for (uint32_t i = 0; i < t->o.shape_count && status == TOOL_OK; i++)
        for (int r = 0; r < t->rounds && status == TOOL_OK; r++) {
            fprintf(stderr, "shape %u of %u, round %d of %d\n", i + 1, t->o.shape_count, r + 1, t->rounds);
            for (int c = 0; c < t->candidates && status == TOOL_OK; c++)
                status = measure(t, i, c, r, path);
        }
    if (file >= 0)
        remove(path);
    return status;
}

int tool_tune(int argc, char **argv) {
    static tune t = { .rounds = 3, .o = { .device = PRHS_DEVICE_PARAMS_INIT, .kept_part = 8, .page_size = 16, .repeat = 20, .dtype = PRHS_F16 } };
    int status = parse(argc, argv, &t);
    if (status >= 0)
        return status;
    status = describe(&t);
    if (status != TOOL_OK)
        return status;
    if (!settle(&t))
        return TOOL_USAGE;
    status = measure_all(&t);
    if (status != TOOL_OK)
        return status;
    tune_print(&t, t.o.json && strcmp(t.o.json, "-") == 0 ? stderr : stdout);
    const bool written = !t.write || tune_write(&t), told = !t.o.json || tune_json(&t);
    return written && told ? TOOL_OK : TOOL_FAILED;
}
