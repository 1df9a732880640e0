/* SPDX-License-Identifier: Apache-2.0 */
/* prhs-llama generate: the prompt in chunks, then token after token. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

#define CHUNK 256

typedef struct generation {
    common_options common;
    prhs_policy policy;
    const char *policy_text, *prompt;
    uint32_t count, seed;
    float temperature;
    bool ids, stats;
    loaded l;
    engine e;
    engine_session s;
    float *x, *q, *k, *v, *out, *tmp, *logits;
    uint64_t random;
} generation;

static const char help[] =
    "usage: prhs-llama generate --model FILE [options] PROMPT\n"
    "  --model FILE        GGUF model of the llama family\n"
    "  --device NAME       cpu, opencl, cuda, each also as NAME:INDEX, or any (default)\n"
    "  --policy NAME[,key=value...]  default cis-mass; keys: k s gate tau floor eps m rb rf g sinks local dense n join residual\n"
    "                      psaw psaw_layer phi alpha etf etf_layer psi gamma\n"
    "  --kv TYPE           f16 (default), f32 or bf16\n"
    "  -n, --tokens N      tokens to generate (128)\n"
    "  --temperature T     0 (default): greedy\n"
    "  --seed N            of the sampler (1)\n"
    "  --file              PROMPT is the name of a file\n"
    "  --ids               print token ids instead of text\n"
    "  --stats             what was read and dropped, to standard error\n"
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

/* Rows of tokens at positions first ... through all layers; logits of the last row. */
static bool forward(generation *g, const int32_t *ids, uint32_t rows, uint32_t first, bool prompt, bool last, uint32_t prompt_len) {
    const model *m = &g->l.m;
    int32_t positions[CHUNK];
    for (uint32_t i = 0; i < rows; i++)
        positions[i] = (int32_t)(first + i);
    prhs_seq seq = { .slot = 0, .row_begin = 0, .row_count = (int32_t)rows, .kv_len = (int32_t)(first + rows),
                     .flags = prompt ? PRHS_SEQ_PREFILL | (last ? PRHS_SEQ_SEED : 0) : 0, .prompt_len = (int32_t)prompt_len };
    engine_call call = { .plan = 0, .seq = 0, .seqs = 1, .row = 0, .count = rows, .append = true,
                         .kinds = prompt ? PRHS_HAS_PREFILL | PRHS_HAS_SEED : PRHS_HAS_DECODE };
    model_embed(m, ids, rows, g->x);
    if (!engine_plan(&g->e, 0, 1, &seq))
        return false;
    for (call.layer = 0; call.layer < m->layers && !interrupted; call.layer++) {
        model_qkv(m, call.layer, g->x, rows, positions, g->q, g->k, g->v, g->tmp);
        if (!engine_upload(&g->e, g->q, g->k, g->v, rows) || !engine_step(&g->e, &g->s, &call) || !engine_download(&g->e, g->out, rows))
            return false;
        /* Rows that ETF froze keep their hidden state. */
        uint32_t frozen = prompt ? prhs_etf_frozen(&g->policy, m->layers, call.layer, prompt_len) : 0;
        uint32_t skip = frozen > first ? (frozen - first < rows ? frozen - first : rows) : 0;
        if (skip < rows)
            model_rest(m, call.layer, g->x + (size_t)skip * m->dim, g->out + (size_t)skip * m->dim, rows - skip, g->tmp);
    }
    if (!prompt || last)
        model_logits(m, g->x + (size_t)(rows - 1) * m->dim, 1, g->logits, g->tmp);
    return true;
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
    if (!engine_stats(&g->e, &g->s, 0, &st))
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

static bool run(generation *g, const int32_t *prompt, uint32_t n) {
    double start = now();
    for (uint32_t at = 0; at < n && !interrupted; at += CHUNK) {
        uint32_t rows = n - at < CHUNK ? n - at : CHUNK;
        if (!forward(g, prompt + at, rows, at, true, at + rows == n, n))
            return false;
    }
    double prefilled = now();
    uint32_t made = 0;
    while (made < g->count && !interrupted) {
        int32_t id = sample(g, g->logits);
        if (id == bpe_eos(g->l.tokens))
            break;
        emit(g, id);
        made++;
        if (made < g->count && !forward(g, &id, 1, n + made - 1, false, false, 0))
            return false;
    }
    putchar('\n');
    fflush(stdout);
    if (g->stats)
        fprintf(stderr, "prompt %u tokens in %.2f s; %u tokens, %.1f a second\n", n, prefilled - start, made, made / (now() - prefilled));
    return !g->stats || report_saved(g);
}

static bool set_up(generation *g, uint32_t prompt) {
    const model *m = &g->l.m;
    prhs_log log = stderr_log(&g->common);
    engine_params p = { g->common.backend, g->common.index, 1, prompt + g->count, 1, CHUNK, g->common.kv_dtype };
    const size_t q = (size_t)m->heads * m->head_dim, kv = (size_t)m->kv_heads * m->head_dim;
    g->x = malloc(sizeof(float) * CHUNK * m->dim);
    g->q = malloc(sizeof(float) * CHUNK * q);
    g->k = malloc(sizeof(float) * CHUNK * kv);
    g->v = malloc(sizeof(float) * CHUNK * kv);
    g->out = malloc(sizeof(float) * CHUNK * q);
    g->tmp = malloc(sizeof(float) * CHUNK * (m->dim + 2 * (size_t)m->ffn));
    g->logits = malloc(sizeof(float) * m->vocab);
    return g->x && g->q && g->k && g->v && g->out && g->tmp && g->logits && engine_open(&g->e, m, &p, &log) &&
           engine_session_open(&g->e, &g->policy, false, &g->s);
}

static int generate(generation *g, const char *text, size_t size) {
    int32_t *ids = NULL;
    size_t n = bpe_encode(g->l.tokens, text, size, &ids);
    bool ok = n != SIZE_MAX && n > 0 && n + g->count <= g->l.m.context;
    if (!ok)
        fprintf(stderr, "prhs-llama: the prompt has %zu tokens; it must have one at least, and %u with the continuation at most\n", n,
                g->l.m.context);
    ok = ok && set_up(g, (uint32_t)n) && run(g, ids, (uint32_t)n);
    engine_session_close(&g->s);
    if (g->e.m)
        engine_close(&g->e);
    float *blocks[] = { g->x, g->q, g->k, g->v, g->out, g->tmp, g->logits };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    free(ids);
    return interrupted ? 130 : ok ? 0 : 1;
}

static bool parse_temperature(const char *text, float *out) {
    char *end;
    *out = strtof(text, &end);
    return end != text && !*end && *out >= 0.0f;
}

static int parse(generation *g, int argc, char **argv, bool *file) {
    enum { MODEL = 256, DEVICE, POLICY, KV, TEMPERATURE, SEED, FILE_, IDS, STATS, VERBOSE };
    static const struct option options[] = {
        { "model", 1, 0, MODEL }, { "device", 1, 0, DEVICE }, { "policy", 1, 0, POLICY }, { "kv", 1, 0, KV }, { "tokens", 1, 0, 'n' },
        { "temperature", 1, 0, TEMPERATURE }, { "seed", 1, 0, SEED }, { "file", 0, 0, FILE_ }, { "ids", 0, 0, IDS },
        { "stats", 0, 0, STATS }, { "verbose", 0, 0, VERBOSE }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "n:h", options, NULL)) != -1;) {
        switch (c) {
        case MODEL: g->common.model = optarg; break;
        case DEVICE: ok = parse_device(optarg, &g->common); break;
        case POLICY: g->policy_text = optarg; break;
        case KV: ok = parse_kv(optarg, &g->common); break;
        case 'n': ok = parse_u32(optarg, &g->count) && g->count > 0; break;
        case TEMPERATURE: ok = parse_temperature(optarg, &g->temperature); break;
        case SEED: ok = parse_u32(optarg, &g->seed); break;
        case FILE_: *file = true; break;
        case IDS: g->ids = true; break;
        case STATS: g->stats = true; break;
        case VERBOSE: g->common.level = PRHS_LOG_DEBUG; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
        if (!ok)
            fprintf(stderr, "prhs-llama: '%s' is no value for this option (see --help)\n", optarg);
    }
    if (!ok || optind + 1 != argc) {
        if (ok)
            fputs("prhs-llama: one prompt is needed\n", stderr);
        return 2;
    }
    g->prompt = argv[optind];
    return -1;
}

int cmd_generate(int argc, char **argv) {
    generation g = { .policy_text = "cis-mass", .count = 128, .seed = 1, .common = { .kv_dtype = PRHS_F16, .level = PRHS_LOG_WARN } };
    bool file = false;
    int status = parse(&g, argc, argv, &file);
    if (status >= 0)
        return status;
    g.random = ((uint64_t)g.seed << 1 | 1) * UINT64_C(0x9e3779b97f4a7c15);
    size_t size = strlen(g.prompt);
    char *text = file ? read_file(g.prompt, &size) : NULL;
    if (file && !text) {
        fprintf(stderr, "prhs-llama: %s cannot be read\n", g.prompt);
        return 1;
    }
    status = 1;
    if (load_model(&g.common, &g.l)) {
        if (parse_policy(g.policy_text, g.l.m.layers, &g.policy))
            status = generate(&g, text ? text : g.prompt, size);
        else
            status = 2;
        unload_model(&g.l);
    }
    free(text);
    return status;
}
