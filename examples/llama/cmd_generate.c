/* SPDX-License-Identifier: Apache-2.0 */
/* prhs-llama generate: the prompt in chunks, then token after token. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "options.h"

#define MAX_PROMPTS 64

typedef struct generation {
    common_options common;
    prhs_policy policy;
    uint32_t *list_layers; /* or NULL */
    const char *policy_text;
    char **prompts;
    uint32_t n_prompts, batch;         /* sequence s continues prompt s % n_prompts */
    uint32_t count, seed, cache_buffer; /* cache_buffer: KiB; 0: the device's limit */
    float temperature;
    bool file, ids, stats, graphs;
    record_options record;
    loaded l;
    forward f;
    int32_t *text[MAX_PROMPTS];        /* the prompts' tokens */
    uint32_t length[MAX_PROMPTS];
    float *logits;
    uint64_t random;
    uint32_t made;                     /* tokens of every sequence that are on the host */
    uint32_t *end;                     /* [batch]: how many of them count */
} generation;

static const char help[] =
    "usage: prhs-llama generate --model FILE [options] PROMPT...\n"
    "  --model FILE        GGUF model of the llama family\n"
    "  --device NAME       cpu, opencl, cuda, each also as NAME:INDEX, or any (default)\n"
    "  --policy NAME[,key=value...]  default cis-mass; keys: k kmin target s refs gate tau floor eps m rb rf g sinks local\n"
    "                      dense n join residual psaw psaw_layer phi alpha etf etf_layer psi gamma;\n"
    "                      map=0.1.1.3...: the layer whose lists each layer uses\n"
    "  --kv TYPE           f16 (default), f32 or bf16\n"
    "  --cache-buffer KIB  of the KV cache, which lies in as few buffers as hold it, none is larger (what the device allows)\n"
    "  --linear WHERE      auto (default): on a cuda device cuBLAS, on an OpenCL GPU CLBlast, elsewhere and without them this machine's\n"
    "                      BLAS; host: this machine's BLAS; clblast: CLBlast, on any OpenCL device; or the file of a libcublas or libclblast\n"
    "  --weights TYPE      f32 (default); with cuBLAS also f16\n"
    "  -n, --tokens N      tokens to generate (128)\n"
    "  --batch N           sequences side by side, prompt after prompt and from the first one again (one for each prompt)\n"
    "  --no-graph          on a cuda device: enqueue every decode step by itself instead of replaying a graph\n"
    "  --temperature T     0 (default): greedy\n"
    "  --seed N            of the sampler (1)\n"
    "  --file              PROMPT is the name of a file\n"
    "  --ids               print token ids instead of text\n"
    "  --stats             what was read and dropped, to standard error\n"
    RECORD_HELP
    "  --verbose           the library's own messages\n";

/* xorshift64*: the sampler only needs to be repeatable. */
static double uniform(generation *g) {
    g->random ^= g->random >> 12;
    g->random ^= g->random << 25;
    g->random ^= g->random >> 27;
    return (double)((g->random * UINT64_C(2685821657736338717)) >> 11) * 0x1p-53;
}

static int32_t sample(generation *g, const float *logits) {
    const uint32_t vocab = g->l.m.vocab;
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    if (g->temperature <= 0.0f)
        return (int32_t)best;
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)(logits[i] - logits[best]) / (double)g->temperature);
    double left = uniform(g) * sum;
    for (uint32_t i = 0; i < vocab; i++) {
        left -= exp((double)(logits[i] - logits[best]) / (double)g->temperature);
        if (left <= 0.0)
            return (int32_t)i;
    }
    return (int32_t)best;
}

static void emit(const generation *g, int32_t id) {
    char text[256];
    if (g->ids)
        printf("%d ", id);
    else
        fwrite(text, 1, bpe_decode(g->l.tokens, id, text, sizeof text), stdout);
    fflush(stdout);
}

/* What the sparse steps saved and dropped. */
static bool report_saved(generation *g) {
    prhs_stats st;
    if (!engine_stats(&g->f.e, &g->f.s, PRHS_ALL_SLOTS, &st))
        return false;
    if (isnan(st.kept)) {
        fprintf(stderr, "every step was dense: sparse ones begin beyond the tokens that the policy keeps\n");
        return true;
    }
    fprintf(stderr, "rho %.3f, kept %.0f tokens; dropped mass of retrievals %.4f (exact)", st.rho, st.kept, st.retrieved.mean);
    if (!isnan(st.shared.mean))
        fprintf(stderr, ", of shared steps %.4f (%s)", st.shared.mean,
                st.shared.grade == PRHS_GRADE_ESTIMATE ? "estimate" : st.shared.grade == PRHS_GRADE_STALE ? "stale" : "unknown");
    fputc('\n', stderr);
    return true;
}

/* Takes what arrived: a single sequence is printed at once. Its end, or that of the last sequence, is the end of all. */
static bool take(void *user, const int32_t *tokens, uint32_t first, uint32_t count) {
    generation *g = user;
    uint32_t running = 0;
    for (uint32_t s = 0; s < g->batch; s++) {
        for (uint32_t i = first; g->end[s] == i && i < first + count; i++) {
            const int32_t id = tokens[(size_t)i * g->batch + s];
            if (id == bpe_eos(g->l.tokens))
                break;
            g->end[s]++;
            if (g->batch == 1)
                emit(g, id);
        }
        running += g->end[s] == first + count;
    }
    g->made = first + count;
    return running > 0;
}

static bool prompts(generation *g) {
    uint32_t lengths[MAX_PROMPTS];
    int32_t id;
    for (uint32_t s = 0; s < g->batch; s++)
        lengths[s] = g->length[s % g->n_prompts];
    bool ok = record_begin(&g->f.record, &g->record, &g->l.m, lengths, g->batch, g->count - 1) && forward_begin(&g->f, lengths);
    for (uint32_t s = 0; ok && s < g->batch && !interrupted; s++) {
        uint32_t last = 0;
        compute *c = g->f.c;
        ok = forward_prompt(&g->f, s, g->text[s % g->n_prompts], lengths[s], &last);
        if (ok && g->temperature > 0.0f && (ok = c->ops->logits(c, last, g->logits)))
            id = sample(g, g->logits);
        ok = ok && c->ops->choose(c, last, s, 1, g->temperature > 0.0f ? &id : NULL);
    }
    return ok && prhs_queue_finish(g->f.e.queue) == PRHS_OK;
}

/* The host samples between the steps. */
static bool sampled(generation *g) {
    compute *c = g->f.c;
    int32_t ids[MAX_PROMPTS];
    bool ok = true, wanted = true;
    for (uint32_t at = 0; ok && wanted && at < g->count && !interrupted; at++) {
        if (at > 0) {
            ok = forward_layers(&g->f);
            for (uint32_t s = 0; ok && s < g->batch; s++) {
                ok = c->ops->logits(c, s, g->logits);
                ids[s] = sample(g, g->logits);
            }
            ok = ok && c->ops->choose(c, 0, 0, g->batch, ids);
        }
        ok = ok && c->ops->fetch(c, at, 1) && prhs_queue_finish(g->f.e.queue) == PRHS_OK;
        wanted = ok && take(g, c->tokens, at, 1);
    }
    return ok;
}

static bool run(generation *g) {
    double start = now();
    if (!prompts(g))
        return false;
    double prefilled = now();
    if (!(g->temperature > 0.0f ? sampled(g) : forward_greedy(&g->f, g->count, take, g)))
        return false;
    double end = now();
    for (uint32_t s = 0; g->batch > 1 && s < g->batch; s++) {
        for (uint32_t i = 0; i < g->end[s]; i++)
            emit(g, g->f.c->tokens[(size_t)i * g->batch + s]);
        putchar('\n');
    }
    if (g->batch == 1)
        putchar('\n');
    fflush(stdout);
    if (g->stats)
        fprintf(stderr, "prompt %u tokens in %.2f s; %u tokens, %.1f a second (linear layers: %s)\n", g->length[0], prefilled - start,
                g->made * g->batch, g->made * g->batch / (end - prefilled), g->f.c->ops->name);
    return !g->stats || report_saved(g);
}

/* The prompt's tokens, and whether they fit. */
static bool read_prompt(generation *g, uint32_t i) {
    size_t size = strlen(g->prompts[i]);
    char *text = g->file ? read_file(g->prompts[i], &size) : NULL;
    if (g->file && !text) {
        fprintf(stderr, "prhs-llama: %s cannot be read\n", g->prompts[i]);
        return false;
    }
    const size_t n = bpe_encode(g->l.tokens, text ? text : g->prompts[i], size, &g->text[i]);
    free(text);
    g->length[i] = (uint32_t)n;
    if (n != SIZE_MAX && n > 0 && n + g->count <= g->l.m.context)
        return true;
    fprintf(stderr, "prhs-llama: the prompt has %zu tokens; it must have one at least, and %u with the continuation at most\n", n,
            g->l.m.context);
    return false;
}

static bool set_up(generation *g) {
    uint32_t longest = 0;
    for (uint32_t i = 0; i < g->n_prompts; i++) {
        if (!read_prompt(g, i))
            return false;
        longest = g->length[i] > longest ? g->length[i] : longest;
    }
    prhs_log log = stderr_log(&g->common);
    const forward_params p = { { .backend = g->common.backend, .index = g->common.index, .seqs = g->batch, .tokens = longest + g->count,
                                 .kv_dtype = g->common.kv_dtype, .cache_buffer = (uint64_t)g->cache_buffer << 10 },
                               g->common.linear, g->common.half, g->graphs && !g->record.file };
    g->logits = malloc(sizeof(float) * g->l.m.vocab);
    g->end = calloc(g->batch, sizeof *g->end);
    return g->logits && g->end && forward_open(&g->f, &g->l.m, &p, &log) && forward_session(&g->f, &g->policy, g->list_layers);
}

static int generate(generation *g) {
    bool ok = set_up(g) && run(g);
    ok = record_end(&g->f.record, ok && !interrupted) && ok;
    forward_close(&g->f);
    for (uint32_t i = 0; i < g->n_prompts; i++)
        free(g->text[i]);
    free(g->logits);
    free(g->end);
    return interrupted ? 130 : ok ? 0 : 1;
}

static bool parse_temperature(const char *text, float *out) {
    char *end;
    *out = strtof(text, &end);
    return end != text && !*end && *out >= 0.0f;
}

static int parse(generation *g, int argc, char **argv) {
    enum { MODEL = 256, DEVICE, LINEAR, WEIGHTS, POLICY, KV, CACHE_BUFFER, BATCH, TEMPERATURE, SEED, FILE_, IDS, NO_GRAPH, STATS, VERBOSE };
    static const struct option options[] = {
        { "model", 1, 0, MODEL }, { "device", 1, 0, DEVICE }, { "linear", 1, 0, LINEAR },
        { "weights", 1, 0, WEIGHTS }, { "policy", 1, 0, POLICY }, { "kv", 1, 0, KV }, { "cache-buffer", 1, 0, CACHE_BUFFER },
        { "tokens", 1, 0, 'n' }, { "batch", 1, 0, BATCH }, { "temperature", 1, 0, TEMPERATURE }, { "seed", 1, 0, SEED },
        { "file", 0, 0, FILE_ }, { "ids", 0, 0, IDS }, { "no-graph", 0, 0, NO_GRAPH }, { "stats", 0, 0, STATS }, RECORD_OPTIONS,
        { "verbose", 0, 0, VERBOSE }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "n:h", options, NULL)) != -1;) {
        switch (c) {
        case MODEL: g->common.model = optarg; break;
        case DEVICE: ok = parse_device(optarg, &g->common); break;
        case LINEAR: g->common.linear = optarg; break;
        case WEIGHTS: ok = parse_weights(optarg, &g->common); break;
        case POLICY: g->policy_text = optarg; break;
        case KV: ok = parse_kv(optarg, &g->common); break;
        case CACHE_BUFFER: ok = parse_u32(optarg, &g->cache_buffer) && g->cache_buffer > 0; break;
        case 'n': ok = parse_u32(optarg, &g->count) && g->count > 0; break;
        case BATCH: ok = parse_u32(optarg, &g->batch) && g->batch > 0 && g->batch <= MAX_PROMPTS; break;
        case TEMPERATURE: ok = parse_temperature(optarg, &g->temperature); break;
        case SEED: ok = parse_u32(optarg, &g->seed); break;
        case FILE_: g->file = true; break;
        case IDS: g->ids = true; break;
        case NO_GRAPH: g->graphs = false; break;
        case STATS: g->stats = true; break;
        case 'R':
        case 'L':
        case 'Q':
        case 'M': ok = record_option(c, optarg, &g->record); break;
        case VERBOSE: g->common.level = PRHS_LOG_DEBUG; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
        if (!ok)
            fprintf(stderr, "prhs-llama: '%s' is no value for this option (see --help)\n", optarg);
    }
    g->prompts = argv + optind;
    g->n_prompts = (uint32_t)(argc - optind);
    g->batch = g->batch ? g->batch : g->n_prompts;
    if (ok && (g->n_prompts == 0 || g->n_prompts > MAX_PROMPTS || g->batch < g->n_prompts)) {
        fprintf(stderr, "prhs-llama: one prompt is needed, and no more than --batch or %d\n", MAX_PROMPTS);
        ok = false;
    }
    return ok ? -1 : 2;
}

int cmd_generate(int argc, char **argv) {
    generation g = { .policy_text = "cis-mass", .count = 128, .seed = 1, .graphs = true, .record = RECORD_DEFAULTS,
                     .common = { .kv_dtype = PRHS_F16, .level = PRHS_LOG_WARN } };
    int status = parse(&g, argc, argv);
    if (status >= 0)
        return status;
    g.random = ((uint64_t)g.seed << 1 | 1) * UINT64_C(0x9e3779b97f4a7c15);
    status = 1;
    if (load_model(&g.common, &g.l)) {
        if (parse_policy(g.policy_text, g.l.m.layers, &g.policy, &g.list_layers))
            status = generate(&g);
        else
            status = 2;
        free(g.list_layers);
        unload_model(&g.l);
    }
    return status;
}
