/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prhs-llama perplexity: documents of context + decode tokens from a text; the context is prefilled densely once, then each policy
 * decodes the rest, teacher-forced, from the same cached rows. A policy's state is per layer, so that layers can be run one after
 * the other over all decode rows: linear layers as large products, attention step by step.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute.h"
#include "record.h"
#include "report.h"

/* prhs_seq arrays on the device: prompts, what is cached, then one a decode step (all known before; PLAN_DECODE is not used). */
enum { PLAN_PROMPT, PLAN_CACHED, PLAN_STEP };

typedef struct job {
    common_options common;
    run_shape shape;
    const char *text_file, *json_file;
    const char *policy_text[MAX_POLICIES];
    size_t policies;
    bool timing;
    record_options record_options;
    record record;           /* of the dense run, while it lasts */
    loaded l;
    engine e;
    compute *c;
    int32_t *ids;
    size_t n_ids;
    prhs_buffer *last_q;     /* [layers][docs][H*D]: queries of the contexts' last rows */
    int32_t *token, *position, *target; /* of rows */
    double *nll;
    result *results;
} job;

static const char help[] =
    "usage: prhs-llama perplexity --model FILE [options] TEXT-FILE\n"
    "  --model FILE        GGUF model of the llama family\n"
    "  --device NAME       cpu, opencl, cuda, each also as NAME:INDEX, or any (default)\n"
    "  --linear WHERE      auto (default): on a cuda device cuBLAS, elsewhere and without it this machine's BLAS; host: this machine's\n"
    "                      BLAS; or the file of a libcublas\n"
    "  --weights TYPE      f32 (default); with cuBLAS also f16\n"
    "  --policy NAME[,key=value...]  may be repeated; dense is always run first, as the baseline\n"
    "                      keys: k kmin target s gate tau floor eps m rb rf g sinks local dense n join residual psaw psaw_layer phi\n"
    "                      alpha etf etf_layer psi gamma\n"
    "  --docs N            documents, spread evenly over the text (8)\n"
    "  --context N         tokens prefilled a document (3584)\n"
    "  --decode N          tokens decoded a document (512)\n"
    "  --kv TYPE           f16 (default), f32 or bf16\n"
    "  --at-end            one document: the last tokens of the text\n"
    "  --timing            no audits: dropped mass is what the policy itself knows, times are those of normal use\n"
    "  --json FILE         one object a policy, with values by document ('-': standard output)\n"
    RECORD_HELP
    "  --verbose           the library's own messages\n";

static size_t doc_start(const job *j, uint32_t doc) {
    size_t need = (size_t)j->shape.context + j->shape.decode;
    if (j->shape.at_end)
        return j->n_ids - need - 1;
    return (size_t)doc * ((j->n_ids - need - 2) / j->shape.docs);
}

static const int32_t *doc_ids(const job *j, uint32_t doc) { return j->ids + doc_start(j, doc); }

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
    bool ok = ops->embed(j->c, doc_ids(j, doc), j->position, n);
    engine_call call = { .plan = PLAN_PROMPT, .seq = doc, .seqs = 1, .row = 0, .count = n, .append = true,
                         .kinds = PRHS_HAS_PREFILL | PRHS_HAS_SEED };
    for (; ok && call.layer < layers; call.layer++) {
        const uint32_t frozen = prhs_etf_frozen(&s->policy, layers, call.layer, n);
        progress("prefill", (size_t)doc * layers + call.layer + 1, (size_t)j->shape.docs * layers);
        ok = !interrupted && ops->qkv(j->c, call.layer, n) && record_prompt(&j->record, &j->e, call.layer, doc, 0, n) &&
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

static bool score(job *j, result *res) {
    const uint32_t docs = j->shape.docs;
    const size_t rows = (size_t)docs * j->shape.decode;
    if (!j->c->ops->score(j->c, rows, j->target, j->nll, res->best))
        return false;
    for (size_t i = 0; i < rows; i++)
        res->nll[i % docs] += j->nll[i] / j->shape.decode;
    return true;
}

static bool decode(job *j, engine_session *s, bool shared, result *res) {
    const uint32_t docs = j->shape.docs, steps = j->shape.decode, layers = j->l.m.layers;
    for (uint32_t r = 0; r < steps; r++)
        for (uint32_t d = 0; d < docs; d++) {
            const int32_t *ids = doc_ids(j, d) + j->shape.context + r;
            const size_t row = (size_t)r * docs + d;
            j->position[row] = (int32_t)(j->shape.context + r);
            j->token[row] = ids[0];
            j->target[row] = ids[1];
        }
    double start = now();
    if (!j->c->ops->embed(j->c, j->token, j->position, (size_t)docs * steps))
        return false;
    for (uint32_t i = 0; i < layers; i++) {
        if (!decode_layer(j, s, i, shared, &res->attention))
            return false;
        progress(res->name, i + 1, layers);
    }
    if (!score(j, res))
        return false;
    res->seconds = now() - start;
    return result_take(res, &j->e, s, &j->shape);
}

/* ETF changes the prompt's own rows, so such a policy prefills for itself, over the shared pages: it runs last. */
static bool own_prefill(const prhs_policy *p) { return p->psaw || p->etf; }

static bool run_policy(job *j, const prhs_policy *policy, result *res) {
    engine_session s;
    bool own = own_prefill(policy);
    bool ok = engine_session_open(&j->e, policy, !j->timing, &s) && (!own || prefill(j, &s, true)) && decode(j, &s, !own, res);
    res->policy = *policy;
    engine_session_close(&s);
    return ok;
}

static bool begin_record(job *j) {
    uint32_t *contexts = malloc(sizeof *contexts * j->shape.docs);
    for (uint32_t d = 0; contexts && d < j->shape.docs; d++)
        contexts[d] = j->shape.context;
    bool ok = contexts && record_begin(&j->record, &j->record_options, &j->l.m, contexts, j->shape.docs, j->shape.decode);
    free(contexts);
    return ok;
}

static bool run_all(job *j) {
    prhs_policy policy[MAX_POLICIES], dense;
    engine_session s;
    for (size_t i = 0; i < j->policies; i++)
        if (!parse_policy(j->policy_text[i], j->l.m.layers, &policy[i]))
            return false;
    prhs_policy_preset("dense", j->l.m.layers, &dense);
    bool ok = engine_session_open(&j->e, &dense, false, &s) && begin_record(j) && prefill(j, &s, false);
    engine_session_close(&s);
    for (int own = 0; ok && own < 2; own++)
        for (size_t i = 0; ok && i < j->policies; i++)
            if (own_prefill(&policy[i]) == (own == 1)) {
                ok = run_policy(j, &policy[i], &j->results[i]);
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
    bool ok = j->token && j->position && j->target && j->nll && j->results &&
              prhs_buffer_create(j->e.dev, queries * 4, &j->last_q) == PRHS_OK;
    for (size_t i = 0; ok && i < j->policies; i++)
        ok = result_make(&j->results[i], j->policy_text[i], &j->shape);
    return ok;
}

static void release(job *j) {
    void *blocks[] = { j->token, j->position, j->target, j->nll, j->ids };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    for (size_t i = 0; j->results && i < j->policies; i++)
        result_free(&j->results[i]);
    free(j->results);
    if (j->e.queue)
        prhs_queue_finish(j->e.queue);
    compute_close(j->c);
    prhs_buffer_destroy(j->last_q);
    if (j->e.m)
        engine_close(&j->e);
    unload_model(&j->l);
}

static bool read_text(job *j) {
    size_t size = 0;
    char *text = read_file(j->text_file, &size);
    if (!text) {
        fprintf(stderr, "prhs-llama: %s cannot be read\n", j->text_file);
        return false;
    }
    j->n_ids = bpe_encode(j->l.tokens, text, size, &j->ids);
    free(text);
    size_t need = (size_t)j->shape.context + j->shape.decode + 2;
    if (j->n_ids == SIZE_MAX || j->n_ids < need || j->shape.context + j->shape.decode > j->l.m.context) {
        fprintf(stderr, "prhs-llama: %s has %zu tokens; a document needs %zu, and the model reads %u at most\n", j->text_file, j->n_ids,
                need, j->l.m.context);
        return false;
    }
    return true;
}

static int perplexity(job *j) {
    if (!load_model(&j->common, &j->l))
        return 1;
    int status = 1;
    prhs_log log = stderr_log(&j->common);
    const size_t steps = (size_t)j->shape.docs * j->shape.decode;
    engine_params p = { j->common.backend, j->common.index, j->shape.docs, j->shape.context + j->shape.decode,
                        PLAN_STEP + j->shape.decode, steps > j->shape.context ? steps : j->shape.context, j->common.kv_dtype };
    if (read_text(j) && engine_open(&j->e, &j->l.m, &p, &log) && (j->c = compute_open(&j->e, j->common.linear, j->common.half)) && allocate(j) &&
        run_all(j)) {
        prhs_device_info info = { .size = sizeof info };
        prhs_device_get_info(j->e.dev, &info);
        report_table(stdout, &j->shape, &info, j->results, j->policies);
        status = !j->json_file || report_json(j->json_file, &j->shape, &info, j->c, j->results, j->policies) ? 0 : 1;
    }
    release(j);
    return interrupted ? 130 : status;
}

static int parse(job *j, int argc, char **argv) {
    enum { MODEL = 256, DEVICE, LINEAR, WEIGHTS, POLICY, DOCS, CONTEXT, DECODE, KV, AT_END, TIMING, JSON, VERBOSE };
    static const struct option options[] = {
        { "model", 1, 0, MODEL }, { "device", 1, 0, DEVICE }, { "linear", 1, 0, LINEAR },
        { "weights", 1, 0, WEIGHTS }, { "policy", 1, 0, POLICY }, { "docs", 1, 0, DOCS },
        { "context", 1, 0, CONTEXT }, { "decode", 1, 0, DECODE }, { "kv", 1, 0, KV }, { "at-end", 0, 0, AT_END },
        RECORD_OPTIONS, { "timing", 0, 0, TIMING }, { "json", 1, 0, JSON }, { "verbose", 0, 0, VERBOSE }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 },
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
        case AT_END: j->shape.at_end = true; break;
        case TIMING: j->timing = true; break;
        case JSON: j->json_file = optarg; break;
        case 'R':
        case 'L':
        case 'M': ok = record_option(c, optarg, &j->record_options); break;
        case VERBOSE: j->common.level = PRHS_LOG_DEBUG; break;
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
    if (j->shape.at_end)
        j->shape.docs = 1;
    j->text_file = argv[optind];
    return -1;
}

int cmd_perplexity(int argc, char **argv) {
    job j = { .shape = { .docs = 8, .context = 3584, .decode = 512 }, .common = { .kv_dtype = PRHS_F16, .level = PRHS_LOG_WARN },
              .policy_text = { "dense" }, .policies = 1, .record_options = RECORD_DEFAULTS };
    int status = parse(&j, argc, argv);
    return status >= 0 ? status : perplexity(&j);
}
