/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs-llama speed: tokens a second of decoding alone, by context, batch and policy. Sequences are pieces of a text; each is prefilled, then all
 * decode greedily side by side, whatever they come to say.
 */
#include <cjson/cJSON.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "report.h"

enum { MAX_SHAPES = 8, MAX_RUNS = 16, WARM = 8 }; /* WARM: steps before the clock starts, the recorded one among them */

typedef struct list {
    uint32_t item[MAX_SHAPES], count;
} list;

typedef struct race {
    common_options common;
    list contexts, batches;
    const char *policy_text[MAX_RUNS], *text_file, *json_file;
    uint32_t policies, count, repeat;
    bool graphs;
    loaded l;
    int32_t *ids;
    size_t n_ids;
    forward f;
    cJSON *root, *rows;
} race;

static const char help[] =
    "usage: prhs-llama speed --model FILE [options] TEXT-FILE\n"
    "  --model FILE        GGUF model of the llama family\n"
    "  --device NAME       cpu, opencl, cuda, each also as NAME:INDEX, or any (default)\n"
    "  --linear WHERE      auto (default): on a cuda device cuBLAS, on an OpenCL GPU CLBlast, elsewhere and without them this machine's\n"
    "                      BLAS; host: this machine's BLAS; clblast: CLBlast, on any OpenCL device; or the file of a libcublas or libclblast\n"
    "  --weights TYPE      f32 (default); with cuBLAS also f16\n"
    "  --policy NAME[,key=value...]  may be repeated (cis-mass); dense is always run first, as the baseline\n"
    "  --context N         tokens of a sequence when the last one is decoded; may be repeated (4096, 8192)\n"
    "  --batch N           sequences side by side; may be repeated (1, 16)\n"
    "  -n, --tokens N      tokens that are timed, a sequence (128)\n"
    "  --repeat N          the fastest of N times so many tokens (3)\n"
    "  --kv TYPE           f16 (default), f32 or bf16\n"
    "  --no-graph          on a cuda device: enqueue every decode step by itself instead of replaying a graph\n"
    "  --json FILE         one object a row ('-': standard output)\n"
    "  --verbose           the library's own messages\n";

/* Every sequence's prompt, spread evenly over the text, and its first token. */
static bool fill(race *r, uint32_t batch, uint32_t prompt) {
    uint32_t *lengths = malloc(batch * sizeof *lengths), last = 0;
    bool ok = lengths != NULL;
    for (uint32_t s = 0; ok && s < batch; s++)
        lengths[s] = prompt;
    ok = ok && forward_begin(&r->f, lengths);
    for (uint32_t s = 0; ok && s < batch && !interrupted; s++) {
        progress("prefill", s + 1, batch);
        ok = forward_prompt(&r->f, s, r->ids + (r->n_ids - prompt) / batch * s, prompt, &last) &&
             r->f.c->ops->choose(r->f.c, last, s, 1, NULL);
    }
    free(lengths);
    return ok;
}

/* Seconds that r->count steps take, waiting included: the least of r->repeat times. */
static bool timed(race *r, double *seconds) {
    prhs_queue *queue = r->f.e.queue;
    if (!forward_steps(&r->f, WARM) || prhs_queue_finish(queue) != PRHS_OK)
        return false;
    for (uint32_t i = 0; i < r->repeat && !interrupted; i++) {
        const double start = now();
        if (!forward_steps(&r->f, r->count) || prhs_queue_finish(queue) != PRHS_OK)
            return false;
        const double took = now() - start;
        *seconds = i == 0 || took < *seconds ? took : *seconds;
    }
    return !interrupted;
}

static void add_row(race *r, uint32_t context, uint32_t batch, const char *policy, double seconds, double dense, const prhs_stats *stats) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "context", context);
    cJSON_AddNumberToObject(o, "batch", batch);
    cJSON_AddStringToObject(o, "policy", policy);
    cJSON_AddNumberToObject(o, "tokens_per_second", batch * (double)r->count / seconds);
    cJSON_AddNumberToObject(o, "step_seconds", seconds / r->count);
    cJSON_AddNumberToObject(o, "times_dense", batch * (double)r->count / seconds / dense);
    cJSON_AddNumberToObject(o, "attended", stats->attended);
    cJSON_AddItemToArray(r->rows, o);
}

static bool run_policy(race *r, uint32_t context, uint32_t batch, const char *text, double *dense) {
    prhs_policy policy;
    prhs_stats stats;
    double seconds = 0.0;
    uint32_t *lists = NULL;
    bool ok = parse_policy(text, r->l.m.layers, &policy, &lists) && forward_session(&r->f, &policy, lists);
    free(lists);
    if (!ok || !fill(r, batch, context - WARM - r->repeat * r->count) || !timed(r, &seconds) ||
        !engine_stats(&r->f.e, &r->f.s, PRHS_ALL_SLOTS, &stats))
        return false;
    const double speed = batch * (double)r->count / seconds;
    *dense = *dense > 0.0 ? *dense : speed;
    printf("%8u %6u %-44s %10.1f %8.3f %8.3f %9.0f\n", context, batch, text, speed, 1e3 * seconds / r->count, speed / *dense,
           stats.attended);
    fflush(stdout);
    add_row(r, context, batch, text, seconds, *dense, &stats);
    return true;
}

static bool race_at(race *r, uint32_t context, uint32_t batch) {
    prhs_log log = stderr_log(&r->common);
    const forward_params p = { { .backend = r->common.backend, .index = r->common.index, .seqs = batch, .tokens = context,
                                 .kv_dtype = r->common.kv_dtype },
                               r->common.linear, r->common.half, r->graphs };
    double dense = 0.0;
    bool ok = forward_open(&r->f, &r->l.m, &p, &log);
    for (uint32_t i = 0; ok && i < r->policies && !interrupted; i++)
        ok = run_policy(r, context, batch, r->policy_text[i], &dense);
    forward_close(&r->f);
    return ok && !interrupted;
}

static bool read_ids(race *r) {
    size_t size = 0;
    char *text = read_file(r->text_file, &size);
    if (!text) {
        fprintf(stderr, "prhs-llama: %s cannot be read\n", r->text_file);
        return false;
    }
    r->n_ids = bpe_encode(r->l.tokens, text, size, &r->ids);
    free(text);
    for (uint32_t i = 0; i < r->contexts.count; i++) {
        const uint32_t context = r->contexts.item[i];
        if (r->n_ids != SIZE_MAX && context <= r->l.m.context && r->n_ids >= context &&
            context > WARM + (uint64_t)r->repeat * r->count)
            continue;
        fprintf(stderr, "prhs-llama: --context %u: the text has %zu tokens, the model reads %u at most, and %llu are decoded\n", context,
                r->n_ids, r->l.m.context, (unsigned long long)(WARM + (uint64_t)r->repeat * r->count));
        return false;
    }
    return true;
}

/* What the table was made with. */
static bool head(race *r) {
    prhs_log log = stderr_log(&r->common);
    const forward_params p = { { .backend = r->common.backend, .index = r->common.index, .seqs = 1, .tokens = 1,
                                 .kv_dtype = r->common.kv_dtype },
                               r->common.linear, r->common.half, r->graphs };
    prhs_device_info info = { .size = sizeof info };
    const bool ok = forward_open(&r->f, &r->l.m, &p, &log) && prhs_device_get_info(r->f.e.dev, &info) == PRHS_OK;
    if (ok) {
        const compute_ops *ops = r->f.c->ops;
        printf("%s: %s; linear layers: %s, %s weights; %s; the fastest of %u times %u tokens\n\n", prhs_backend_name(info.backend), info.name,
               ops->name, r->f.c->half ? "float16" : "float32",
               r->graphs && ops->record ? "steps replayed from a graph" : "steps enqueued one by one", r->repeat, r->count);
        r->root = report_begin("speed", &info, r->f.c);
        cJSON_AddBoolToObject(r->root, "graph", r->graphs && ops->record);
        cJSON_AddNumberToObject(r->root, "tokens", r->count);
        cJSON_AddNumberToObject(r->root, "repeat", r->repeat);
        r->rows = cJSON_AddArrayToObject(r->root, "rows");
        printf("%8s %6s %-44s %10s %8s %8s %9s\n", "context", "batch", "policy", "tokens/s", "ms/step", "x dense", "attended");
    }
    forward_close(&r->f);
    return ok;
}

static int speed(race *r) {
    if (!load_model(&r->common, &r->l))
        return 1;
    bool ok = read_ids(r) && head(r);
    for (uint32_t i = 0; ok && i < r->contexts.count; i++)
        for (uint32_t j = 0; ok && j < r->batches.count; j++)
            ok = race_at(r, r->contexts.item[i], r->batches.item[j]);
    if (ok && r->json_file)
        ok = report_end(r->json_file, r->root);
    else
        cJSON_Delete(r->root);
    free(r->ids);
    unload_model(&r->l);
    return interrupted ? 130 : ok ? 0 : 1;
}

static bool append(list *l, const char *text) {
    return l->count < MAX_SHAPES && parse_u32(text, &l->item[l->count]) && l->item[l->count++] > 0;
}

static int parse(race *r, int argc, char **argv) {
    enum { MODEL = 256, DEVICE, LINEAR, WEIGHTS, POLICY, CONTEXT, BATCH, REPEAT, KV, NO_GRAPH, JSON, VERBOSE };
    static const struct option options[] = {
        { "model", 1, 0, MODEL }, { "device", 1, 0, DEVICE }, { "linear", 1, 0, LINEAR },
        { "weights", 1, 0, WEIGHTS }, { "policy", 1, 0, POLICY },
        { "context", 1, 0, CONTEXT }, { "batch", 1, 0, BATCH }, { "tokens", 1, 0, 'n' }, { "repeat", 1, 0, REPEAT }, { "kv", 1, 0, KV },
        { "no-graph", 0, 0, NO_GRAPH }, { "json", 1, 0, JSON }, { "verbose", 0, 0, VERBOSE }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "n:h", options, NULL)) != -1;) {
        switch (c) {
        case MODEL: r->common.model = optarg; break;
        case DEVICE: ok = parse_device(optarg, &r->common); break;
        case LINEAR: r->common.linear = optarg; break;
        case WEIGHTS: ok = parse_weights(optarg, &r->common); break;
        case POLICY:
            ok = r->policies < MAX_RUNS;
            if (ok && strcmp(optarg, "dense") != 0)
                r->policy_text[r->policies++] = optarg;
            break;
        case CONTEXT: ok = append(&r->contexts, optarg); break;
        case BATCH: ok = append(&r->batches, optarg); break;
        case 'n': ok = parse_u32(optarg, &r->count) && r->count > 0; break;
        case REPEAT: ok = parse_u32(optarg, &r->repeat) && r->repeat > 0; break;
        case KV: ok = parse_kv(optarg, &r->common); break;
        case NO_GRAPH: r->graphs = false; break;
        case JSON: r->json_file = optarg; break;
        case VERBOSE: r->common.level = PRHS_LOG_DEBUG; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
        if (!ok)
            fprintf(stderr, "prhs-llama: '%s' is no value for this option (see --help)\n", optarg);
    }
    if (!ok || optind + 1 != argc) {
        if (ok)
            fputs("prhs-llama: one text file is needed\n", stderr);
        return 2;
    }
    r->text_file = argv[optind];
    return -1;
}

int cmd_speed(int argc, char **argv) {
    race r = { .policy_text = { "dense" }, .policies = 1, .count = 128, .repeat = 3, .graphs = true,
               .common = { .kv_dtype = PRHS_F16, .level = PRHS_LOG_WARN } };
    int status = parse(&r, argc, argv);
    if (status >= 0)
        return status;
    if (r.policies == 1)
        r.policy_text[r.policies++] = "cis-mass";
    if (r.contexts.count == 0)
        r.contexts = (list){ { 4096, 8192 }, 2 };
    if (r.batches.count == 0)
        r.batches = (list){ { 1, 16 }, 2 };
    return speed(&r);
}
