/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs-llama perplexity: documents of context + decode tokens from a text; the context is prefilled densely once, then each policy
 * decodes the rest, teacher-forced, from the same cached rows. A policy's state is per layer, so that layers can be run one after
 * the other over all decode rows: linear layers as large products, attention step by step. Only where layers use each other's lists
 * a step goes through all layers before the next one.
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comparator_run.h"
#include "documents.h"
#include "record.h"

/* prhs_seq arrays on the device: prompts, what is cached, then one a decode step (all known before; PLAN_DECODE is not used). */
enum { PLAN_PROMPT, PLAN_CACHED, PLAN_STEP };

/* One --policy: the library's, or a comparator. */
typedef struct contender {
    prhs_policy policy;
    uint32_t *list_layers;   /* [layers] or NULL */
    comparator rival;        /* NONE: it is a policy */
} contender;

typedef struct job {
    common_options common;
    run_shape shape;
    char *const *text_files;
    uint32_t text_count;
    const char *json_file;
    const char *policy_text[MAX_POLICIES];
    size_t policies;
    engine_audits audits;
    record_options record_options;
    record record;           /* of the dense run, while it lasts */
    loaded l;
    engine e;
    compute *c;
    documents texts;
    contender *contenders;   /* [policies] */
    comparator_prompts prompts;
    prhs_buffer *last_q;     /* [layers][docs][H*D]: queries of the contexts' last rows */
    int32_t *token, *position, *target; /* of rows */
    double *nll;
    result *results;
} job;

static const char help[] =
    "usage: prhs-llama perplexity --model FILE [options] TEXT-FILE...\n"
    "  --model FILE        GGUF model of the llama family\n"
    "  --device NAME       cpu, opencl, cuda, each also as NAME:INDEX, or any (default)\n"
    "  --linear WHERE      auto (default): on a cuda device cuBLAS, on an OpenCL GPU CLBlast, elsewhere and without them this machine's\n"
    "                      BLAS; host: this machine's BLAS; clblast: CLBlast, on any OpenCL device; or the file of a libcublas or libclblast\n"
    "  --weights TYPE      f32 (default); with cuBLAS also f16\n"
    "  --policy NAME[,key=value...]  may be repeated; dense is always run first, as the baseline\n"
    "                      keys: k kmin target s refs gate tau floor eps m rb rf g sinks local dense n join residual psaw psaw_layer phi\n"
    "                      alpha etf etf_layer psi gamma; map=0.1.1.3...: the layer whose lists each layer uses\n"
    "                      comparators, as their papers define them: quest (keys: k page dense) and h2o (keys: k recent dense)\n"
    "  --docs N            documents, spread evenly over the text (8)\n"
    "  --context N         tokens prefilled a document (3584)\n"
    "  --decode N          tokens decoded a document (512)\n"
    "  --kv TYPE           f16 (default), f32 or bf16\n"
    "  --set I/N           the I-th (from 0) of N sets of documents that have no token in common (0/1)\n"
    "  --at-end            one document a text: its last tokens\n"
    "  --timing            no audits: dropped mass is what the policy itself knows, times are those of normal use\n"
    "  --audit-rate X      audits of this share of the steps whose mass is not known, drawn at random, and the bounds that follow,\n"
    "                      instead of audits of every step\n"
    "  --audit-seed N      which ones (0)\n"
    "  --json FILE         one object a policy, with values by document ('-': standard output)\n"
    RECORD_HELP
    "  --verbose           the library's own messages\n";

/* The three kinds of plans; `seed` marks prompts that seed by themselves. */
static bool write_plans(job *j, bool seed) {
    const run_shape *s = &j->shape;
    size_t n = (size_t)(PLAN_STEP + s->decode) * s->docs;
    prhs_seq *seqs = calloc(n, sizeof *seqs);
    if (!seqs)
        return false;
    for (uint32_t p = 0; p < PLAN_STEP + s->decode; p++)
        for (uint32_t d = 0; d < s->docs; d++) {
            prhs_seq *seq = &seqs[(size_t)p * s->docs + d];
            seq->slot = (int32_t)d;
            seq->row_begin = p == PLAN_PROMPT ? 0 : (int32_t)d;
            seq->row_count = p == PLAN_PROMPT ? (int32_t)s->context : 1;
            seq->kv_len = (int32_t)(p < PLAN_STEP ? s->context : s->context + p - PLAN_STEP + 1);
            seq->flags = p == PLAN_PROMPT ? PRHS_SEQ_PREFILL | (seed ? PRHS_SEQ_SEED : 0) : p == PLAN_CACHED ? PRHS_SEQ_SEED : 0;
            seq->prompt_len = (int32_t)s->context;
        }
    bool ok = engine_plan(&j->e, 0, PLAN_STEP + s->decode, seqs);
    free(seqs);
    return ok;
}

/* The last query of a document's context in a layer, rows being documents. */
static prhs_rows last_queries(const job *j, uint32_t layer) {
    prhs_rows q = j->e.out; /* as long as a row of the output */
    q.mem = (prhs_mem){ j->last_q, (uint64_t)layer * j->shape.docs * (uint64_t)q.row * 4 };
    return q;
}

static bool keep_query(job *j, uint32_t layer, uint32_t doc, uint32_t row) {
    const prhs_rows to = last_queries(j, layer);
    return prhs_queue_copy(j->e.queue, engine_row(&to, doc), engine_row(&j->e.q, row), (size_t)to.row * 4) == PRHS_OK;
}

/* One document's context through all layers, with the policy's window and frozen rows. */
static bool prefill_doc(job *j, engine_session *s, uint32_t doc) {
    const uint32_t n = j->shape.context, layers = j->l.m.layers;
    const compute_ops *ops = j->c->ops;
    for (uint32_t i = 0; i < n; i++)
        j->position[i] = (int32_t)i;
    bool ok = ops->embed(j->c, documents_ids(&j->texts, doc), j->position, n);
    engine_call call = { .plan = PLAN_PROMPT, .seq = doc, .seqs = 1, .row = 0, .count = n, .append = true,
                         .kinds = PRHS_HAS_PREFILL | PRHS_HAS_SEED };
    for (; ok && call.layer < layers; call.layer++) {
        const uint32_t frozen = prhs_etf_frozen(&s->policy, layers, call.layer, n);
        progress("prefill", (size_t)doc * layers + call.layer + 1, (size_t)j->shape.docs * layers);
        ok = !interrupted && ops->qkv(j->c, call.layer, n) && record_prompt(&j->record, &j->e, call.layer, doc, 0, n) &&
             comparator_prompts_take(&j->prompts, &j->e, call.layer, doc, n) &&
             keep_query(j, call.layer, doc, n - 1) && engine_step(&j->e, s, &call) && ops->rest(j->c, call.layer, frozen, n);
    }
    return ok && prhs_queue_finish(j->e.queue) == PRHS_OK;
}

static bool prefill(job *j, engine_session *s, bool seed) {
    bool ok = write_plans(j, seed);
    for (uint32_t d = 0; ok && d < j->shape.docs; d++)
        ok = prefill_doc(j, s, d);
    return ok;
}

/* Takes the shared context of a layer into the policy's slots and seeds them with its last queries. */
static bool adopt(job *j, engine_session *s, uint32_t layer) {
    const prhs_rows q = last_queries(j, layer);
    engine_call call = { .layer = layer, .plan = PLAN_CACHED, .seq = 0, .seqs = j->shape.docs, .count = j->shape.docs,
                         .kinds = PRHS_HAS_SEED, .q = &q };
    return engine_attach(&j->e, s, layer, PLAN_CACHED) && engine_step(&j->e, s, &call);
}

/* All decode rows through one layer; row r * docs + d belongs to step r of document d. */
static bool decode_layer(job *j, engine_session *s, uint32_t layer, bool shared, double *attention) {
    const uint32_t docs = j->shape.docs, steps = j->shape.decode;
    const size_t rows = (size_t)docs * steps;
    if ((shared && !adopt(j, s, layer)) || !j->c->ops->qkv(j->c, layer, rows) || !record_decoded(&j->record, &j->e, layer, steps) ||
        prhs_queue_finish(j->e.queue) != PRHS_OK)
        return false;
    double start = now();
    for (uint32_t r = 0; r < steps; r++) {
        engine_call call = { .layer = layer, .plan = PLAN_STEP + r, .seq = 0, .seqs = docs, .row = (size_t)r * docs, .count = docs,
                             .append = true, .kinds = PRHS_HAS_DECODE };
        if (interrupted || !engine_step(&j->e, s, &call))
            return false;
    }
    if (prhs_queue_finish(j->e.queue) != PRHS_OK)
        return false;
    *attention += now() - start;
    return j->c->ops->rest(j->c, layer, 0, rows);
}

/* A step through all layers; its rows are the first ones. */
static bool decode_step(job *j, engine_session *s, uint32_t r, result *res) {
    const uint32_t docs = j->shape.docs;
    const size_t at = (size_t)r * docs;
    if (interrupted || !j->c->ops->embed(j->c, j->token + at, j->position + at, docs))
        return false;
    for (uint32_t i = 0; i < j->l.m.layers; i++) {
        engine_call call = { .layer = i, .plan = PLAN_STEP + r, .seqs = docs, .count = docs, .append = true, .kinds = PRHS_HAS_DECODE };
        if (!j->c->ops->qkv(j->c, i, docs) || !engine_step(&j->e, s, &call) || !j->c->ops->rest(j->c, i, 0, docs))
            return false;
    }
    return j->c->ops->score(j->c, docs, j->target + at, j->nll + at, res->best + at);
}

static bool decode_steps(job *j, engine_session *s, bool shared, result *res) {
    bool ok = true;
    for (uint32_t i = 0; ok && shared && i < j->l.m.layers; i++)
        ok = adopt(j, s, i);
    for (uint32_t r = 0; ok && r < j->shape.decode; r++) {
        ok = decode_step(j, s, r, res);
        progress(res->name, r + 1, j->shape.decode);
    }
    res->attention = NAN; /* linear layers run between its steps */
    return ok;
}

/* A comparator's layers; `run` has no session. */
static bool decode_rival(job *j, comparator_run *run, uint32_t layer, double *attention) {
    const size_t rows = (size_t)j->shape.docs * j->shape.decode;
    return j->c->ops->qkv(j->c, layer, rows) && comparator_run_layer(run, layer, PLAN_STEP, attention) && j->c->ops->rest(j->c, layer, 0, rows);
}

static bool decode_layers(job *j, engine_session *s, comparator_run *run, bool shared, result *res) {
    const uint32_t layers = j->l.m.layers;
    const size_t rows = (size_t)j->shape.docs * j->shape.decode;
    bool ok = j->c->ops->embed(j->c, j->token, j->position, rows);
    for (uint32_t i = 0; ok && i < layers; i++) {
        ok = run ? decode_rival(j, run, i, &res->attention) : decode_layer(j, s, i, shared, &res->attention);
        progress(res->name, i + 1, layers);
    }
    return ok && j->c->ops->score(j->c, rows, j->target, j->nll, res->best);
}

static void set_rows(job *j) {
    const uint32_t docs = j->shape.docs;
    for (uint32_t r = 0; r < j->shape.decode; r++)
        for (uint32_t d = 0; d < docs; d++) {
            const int32_t *ids = documents_ids(&j->texts, d) + j->shape.context + r;
            const size_t row = (size_t)r * docs + d;
            j->position[row] = (int32_t)(j->shape.context + r);
            j->token[row] = ids[0];
            j->target[row] = ids[1];
        }
}

/* What became of the decode rows. */
static void take_rows(const job *j, result *res) {
    const uint32_t docs = j->shape.docs;
    for (size_t i = 0; i < (size_t)docs * j->shape.decode; i++) {
        res->nll[i % docs] += j->nll[i] / j->shape.decode;
        res->right[i % docs] += res->best[i] == j->target[i];
    }
}

static bool decode(job *j, const contender *c, engine_session *s, bool shared, result *res) {
    set_rows(j);
    const double start = now();
    if (!(c->list_layers ? decode_steps(j, s, shared, res) : decode_layers(j, s, NULL, shared, res)))
        return false;
    take_rows(j, res);
    res->seconds = now() - start;
    return result_take(res, &j->e, s, &j->shape);
}

/* ETF changes the prompt's own rows, so such a policy prefills for itself, over the shared pages: it runs last. */
static bool own_prefill(const prhs_policy *p) { return p->psaw || p->etf; }

static bool run_policy(job *j, const contender *c, result *res) {
    engine_session s;
    res->drawn = j->audits.rate > 0.0;
    bool own = own_prefill(&c->policy);
    bool ok = engine_session_open(&j->e, &c->policy, c->list_layers, &j->audits, &s) && (!own || prefill(j, &s, true)) &&
              decode(j, c, &s, !own, res);
    res->policy = c->policy;
    engine_session_close(&s);
    return ok;
}

static bool run_rival(job *j, const contender *c, result *res) {
    comparator_run *run = comparator_run_open(&j->e, &c->rival, &j->prompts, &j->shape, j->audits.every);
    set_rows(j);
    const double start = now();
    bool ok = run && decode_layers(j, NULL, run, true, res);
    res->seconds = now() - start;
    res->comparator = true;
    res->attention = NAN; /* the host's choices say nothing of what a device would take */
    if (ok)
        take_rows(j, res);
    ok = ok && comparator_run_take(run, res);
    comparator_run_close(run);
    return ok;
}

static bool run_one(job *j, const contender *c, result *res) {
    return c->rival.kind == COMPARATOR_NONE ? run_policy(j, c, res) : run_rival(j, c, res);
}

static bool begin_record(job *j) {
    uint32_t *contexts = malloc(sizeof *contexts * j->shape.docs);
    for (uint32_t d = 0; contexts && d < j->shape.docs; d++)
        contexts[d] = j->shape.context;
    bool ok = contexts && record_begin(&j->record, &j->record_options, &j->l.m, contexts, j->shape.docs, j->shape.decode);
    free(contexts);
    return ok;
}

static bool parse_contenders(job *j) {
    bool h2o = false;
    for (size_t i = 0; i < j->policies; i++) {
        contender *c = &j->contenders[i];
        if (!comparator_parse("prhs-llama", j->policy_text[i], &c->rival) ||
            (c->rival.kind == COMPARATOR_NONE && !parse_policy(j->policy_text[i], j->l.m.layers, &c->policy, &c->list_layers)))
            return false;
        h2o = h2o || c->rival.kind == COMPARATOR_H2O;
    }
    return !h2o || comparator_prompts_make(&j->prompts, &j->e);
}

static bool run_all(job *j) {
    prhs_policy dense;
    engine_session s;
    if (!parse_contenders(j))
        return false;
    prhs_policy_preset("dense", j->l.m.layers, &dense);
    bool ok = engine_session_open(&j->e, &dense, NULL, &(engine_audits){ 0 }, &s) && begin_record(j) && prefill(j, &s, false);
    engine_session_close(&s);
    for (int own = 0; ok && own < 2; own++)
        for (size_t i = 0; ok && i < j->policies; i++)
            if (own_prefill(&j->contenders[i].policy) == (own == 1)) {
                ok = run_one(j, &j->contenders[i], &j->results[i]);
                ok = record_end(&j->record, ok) && ok; /* dense comes first: its rows are recorded */
            }
    return record_end(&j->record, false) && ok;
}

static bool allocate(job *j) {
    const size_t rows = j->e.rows, queries = (size_t)j->l.m.layers * j->shape.docs * (size_t)j->e.out.row;
    j->token = malloc(sizeof(int32_t) * rows);
    j->position = malloc(sizeof(int32_t) * rows);
    j->target = malloc(sizeof(int32_t) * rows);
    j->nll = malloc(sizeof(double) * rows);
    j->results = calloc(j->policies, sizeof *j->results);
    j->contenders = calloc(j->policies, sizeof *j->contenders);
    bool ok = j->contenders && j->token && j->position && j->target && j->nll && j->results &&
              prhs_buffer_create(j->e.dev, queries * 4, &j->last_q) == PRHS_OK;
    for (size_t i = 0; ok && i < j->policies; i++)
        ok = result_make(&j->results[i], j->policy_text[i], &j->shape);
    return ok;
}

static void release(job *j) {
    void *blocks[] = { j->token, j->position, j->target, j->nll, j->prompts.given };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    for (size_t i = 0; j->results && i < j->policies; i++)
        result_free(&j->results[i]);
    for (size_t i = 0; j->contenders && i < j->policies; i++)
        free(j->contenders[i].list_layers);
    free(j->contenders);
    free(j->results);
    documents_free(&j->texts);
    if (j->e.queue)
        prhs_queue_finish(j->e.queue);
    compute_close(j->c);
    prhs_buffer_destroy(j->last_q);
    if (j->e.m)
        engine_close(&j->e);
    unload_model(&j->l);
}

static int perplexity(job *j) {
    if (!load_model(&j->common, &j->l))
        return 1;
    int status = 1;
    prhs_log log = stderr_log(&j->common);
    bool ok = documents_read(&j->texts, &j->l, j->text_files, j->text_count, &j->shape);
    const size_t steps = (size_t)j->shape.docs * j->shape.decode;
    const engine_params p = { .backend = j->common.backend, .index = j->common.index, .seqs = j->shape.docs,
                              .tokens = j->shape.context + j->shape.decode, .plans = PLAN_STEP + j->shape.decode,
                              .rows = steps > j->shape.context ? steps : j->shape.context, .kv_dtype = j->common.kv_dtype };
    if (ok && engine_open(&j->e, &j->l.m, &p, &log) && (j->c = compute_open(&j->e, j->common.linear, j->common.half)) && allocate(j) &&
        run_all(j)) {
        prhs_device_info info = { .size = sizeof info };
        prhs_device_get_info(j->e.dev, &info);
        report_table(stdout, &j->shape, &info, j->results, j->policies);
        status = !j->json_file || report_json(j->json_file, &j->shape, &info, j->c, j->results, j->policies) ? 0 : 1;
    }
    release(j);
    return interrupted ? 130 : status;
}

/* I/N with I below N. */
static bool parse_set(const char *text, run_shape *s) {
    char first[16];
    const char *slash = strchr(text, '/');
    const size_t n = slash ? (size_t)(slash - text) : sizeof first;
    if (n >= sizeof first)
        return false;
    memcpy(first, text, n);
    first[n] = 0;
    return parse_u32(first, &s->set) && parse_u32(slash + 1, &s->sets) && s->sets > 0 && s->sets <= 1024 && s->set < s->sets;
}

/* A share of steps in place of all of them. */
static bool parse_rate(const char *text, engine_audits *a) {
    char *end;
    a->every = false;
    a->rate = strtod(text, &end);
    return end != text && !*end && a->rate > 0.0 && a->rate <= 1.0;
}

static int parse(job *j, int argc, char **argv) {
    enum { MODEL = 256, DEVICE, LINEAR, WEIGHTS, POLICY, DOCS, CONTEXT, DECODE, KV, SET, AT_END, TIMING, RATE, SEED, JSON, VERBOSE };
    static const struct option options[] = {
        { "model", 1, 0, MODEL }, { "device", 1, 0, DEVICE }, { "linear", 1, 0, LINEAR },
        { "weights", 1, 0, WEIGHTS }, { "policy", 1, 0, POLICY }, { "docs", 1, 0, DOCS },
        { "context", 1, 0, CONTEXT }, { "decode", 1, 0, DECODE }, { "kv", 1, 0, KV }, { "at-end", 0, 0, AT_END },
        { "set", 1, 0, SET },
        RECORD_OPTIONS, { "timing", 0, 0, TIMING }, { "audit-rate", 1, 0, RATE }, { "audit-seed", 1, 0, SEED }, { "json", 1, 0, JSON }, { "verbose", 0, 0, VERBOSE }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
    };
    bool ok = true;
    for (int c; ok && (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case MODEL: j->common.model = optarg; break;
        case DEVICE: ok = parse_device(optarg, &j->common); break;
        case LINEAR: j->common.linear = optarg; break;
        case WEIGHTS: ok = parse_weights(optarg, &j->common); break;
        case POLICY:
            ok = j->policies < MAX_POLICIES;
            if (ok && strcmp(optarg, "dense") != 0)
                j->policy_text[j->policies++] = optarg;
            break;
        case DOCS: ok = parse_u32(optarg, &j->shape.docs) && j->shape.docs > 0; break;
        case CONTEXT: ok = parse_u32(optarg, &j->shape.context) && j->shape.context > 0; break;
        case DECODE: ok = parse_u32(optarg, &j->shape.decode) && j->shape.decode > 0; break;
        case KV: ok = parse_kv(optarg, &j->common); break;
        case SET: ok = parse_set(optarg, &j->shape); break;
        case AT_END: j->shape.at_end = true; break;
        case TIMING: j->audits.every = false; break;
        case RATE: ok = parse_rate(optarg, &j->audits); break;
        case SEED: ok = parse_u32(optarg, &j->audits.seed); break;
        case JSON: j->json_file = optarg; break;
        case 'R':
        case 'L':
        case 'Q':
        case 'M': ok = record_option(c, optarg, &j->record_options); break;
        case VERBOSE: j->common.level = PRHS_LOG_DEBUG; break;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
        if (!ok)
            fprintf(stderr, "prhs-llama: '%s' is no value for this option (see --help)\n", optarg);
    }
    if (!ok || optind >= argc || (optind + 1 != argc && !j->shape.at_end)) {
        if (ok)
            fputs("prhs-llama: one text file is needed (with --at-end one or more)\n", stderr);
        return 2;
    }
    j->text_files = argv + optind;
    j->text_count = (uint32_t)(argc - optind);
    return -1;
}

int cmd_perplexity(int argc, char **argv) {
    job j = { .shape = { .docs = 8, .context = 3584, .decode = 512, .sets = 1 }, .common = { .kv_dtype = PRHS_F16, .level = PRHS_LOG_WARN },
              .policy_text = { "dense" }, .policies = 1, .record_options = RECORD_DEFAULTS, .audits = { .every = true } };
    int status = parse(&j, argc, argv);
    return status >= 0 ? status : perplexity(&j);
}
