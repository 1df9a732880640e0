/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `prhs replay` beside the oracle: a trace of random data, run by the program on a backend and by the reference session with its
 * own verdicts and lists. Dropped mass and output error of every layer and head, verdicts, the estimator and the bytes must be
 * the reference's. usage: trace-replay PRHS FOLDER [BACKEND [CAPS]]
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"
#include "oracle.h"
#include "policy_text.h"
#include "synth.h"

enum { MAX_HEADS = 8, MAX_LAYERS = 4, MAX_RATIOS = 1 << 16, MAX_STEPS = 32, MAX_SEQS = 4 };

/* --- what the reference says ------------------------------------------------------------------------------------------- */

typedef struct head_sums {
    double delta, delta_max, error, error_max;
    int masses, errors;
} head_sums;

typedef struct layer_sums {
    head_sums head[MAX_HEADS];
    int share, retrieve, mass_failed, sparse, close;
    double kept, attended, scored;
} layer_sums;

typedef struct expected {
    layer_sums layer[MAX_LAYERS];
    double ratio[MAX_RATIOS], hat, exact; /* hat, exact: sums of shared steps */
    double seq_ratio[MAX_SEQS][MAX_RATIOS];
    int seq_ratios[MAX_SEQS];
    int ratios;
    double error[MAX_RATIOS];
    int errors;
    int retrieved[MAX_STEPS], units[MAX_STEPS]; /* in layers that are not dense */
} expected;

typedef struct job {
    const synth *s;
    prhs_policy policy;
    oracle_session *o;
    oracle_result *res;
    expected *e;
    bool seed;
    uint32_t seq;
} job;

static oracle_params params_of(const synth *s, const prhs_policy *p) {
    static const int gates[] = { ORACLE_GATE_NONE, ORACLE_GATE_COSINE, ORACLE_GATE_MASS };
    static const int joins[] = { ORACLE_JOIN_SUM, ORACLE_JOIN_MAX, ORACLE_JOIN_PER_HEAD };
    static const int residuals[] = { ORACLE_RESIDUAL_NONE, ORACLE_RESIDUAL_MEAN, ORACLE_RESIDUAL_RETRIEVED };
    return (oracle_params){
        .L = (int)s->shape.layers,
        .H = (int)s->shape.heads,
        .H_kv = (int)s->shape.kv_heads,
        .D = (int)s->shape.dim,
        .slots = (int)s->shape.seqs,
        .scale = (double)s->shape.scale,
        .c_sink = (int)p->sinks,
        .c_local = (int)p->local,
        .k = p->k < 1u << 30 ? (int)p->k : 1 << 30,
        .never_retrieve = p->k == 0,
        .dense_layers = (int)p->dense_layers,
        .min_sparse_n = (int)p->min_sparse_n,
        .block = (int)p->block,
        .references = (int)p->references,
        .gate = gates[p->gate],
        .tau = (double)p->tau,
        .eps = (double)p->eps,
        .m = (int)p->dilate_m,
        .back = (int)p->dilate_back,
        .ahead = (int)p->dilate_ahead,
        .granularity = (int)p->granularity,
        .join = joins[p->join],
        .residual = residuals[p->residual],
        .psaw = (int)p->psaw,
        .psaw_layer = (int)p->psaw_layer,
        .phi = (double)p->psaw_phi,
        .alpha = (double)p->psaw_alpha,
    };
}

/* Rows of a kind as the file has them: [rows][row], rounded to float16. */
static double *rows_of(const synth *s, uint32_t layer, uint32_t seq, trace_kind kind, uint32_t first, uint32_t count) {
    const size_t n = trace_row(&s->shape, kind);
    double *x = oracle_alloc(count * n, sizeof *x);
    for (size_t i = 0; i < count * n; i++)
        x[i] = (double)trace_from_f16(trace_to_f16(synth_value(s, layer, seq, kind, first + (uint32_t)(i / n), i % n)));
    return x;
}

/* |out - dense| / |dense| of a head, dense attention over the first n rows of K and V. */
static double error_of(const job *j, const double *q, const double *K, const double *V, int n, uint32_t head, const double *out) {
    const trace_shape *s = &j->s->shape;
    const uint32_t kv = head / (s->heads / s->kv_heads);
    double *k = oracle_alloc((size_t)n * s->dim, sizeof *k), *v = oracle_alloc((size_t)n * s->dim, sizeof *v);
    int *all = oracle_alloc((size_t)n, sizeof *all);
    double o[256], lse, off = 0, size = 0;
    for (int i = 0; i < n; i++) {
        memcpy(k + (size_t)i * s->dim, K + ((size_t)i * s->kv_heads + kv) * s->dim, s->dim * sizeof *k);
        memcpy(v + (size_t)i * s->dim, V + ((size_t)i * s->kv_heads + kv) * s->dim, s->dim * sizeof *v);
        all[i] = i;
    }
    oracle_attend(q + (size_t)head * s->dim, k, v, (int)s->dim, (double)s->scale, all, n, o, &lse);
    for (uint32_t d = 0; d < s->dim; d++) {
        off += (out[d] - o[d]) * (out[d] - o[d]);
        size += o[d] * o[d];
    }
    free(k);
    free(v);
    free(all);
    return sqrt(off / size);
}

static void count_unit(const job *j, layer_sums *l, const oracle_unit *u, int pos) {
    l->attended += oracle_set_positions(&u->set, u->list, u->n_list, pos, NULL);
    l->share += u->mode == ORACLE_SHARE;
    l->retrieve += u->mode == ORACLE_RETRIEVE;
    l->mass_failed += u->mode == ORACLE_RETRIEVE && u->cause == ORACLE_CAUSE_MASS;
    l->close += fabs(u->margin) < 1e-4 || u->tied;
    if (u->mode == ORACLE_RETRIEVE)
        l->scored += u->set.sink_end + (double)(pos + 1) - u->set.mid_begin;
    if (u->mode == ORACLE_DENSE)
        return;
    l->sparse++;
    if (u->mode == ORACLE_STREAM)
        l->kept += u->set.sink_end + (double)j->policy.local;
    else if (u->mode == ORACLE_RETRIEVE || u->mode == ORACLE_WINDOW)
        l->kept += oracle_set_positions(&u->set, u->list, u->n_list, pos, NULL);
    else /* as when the list was made */
        l->kept += oracle_set_positions(&u->set, u->list, u->n_list, u->ref_pos, NULL);
}

static void count_heads(const job *j, layer_sums *l, const double *q, const double *K, const double *V, int n) {
    const trace_shape *s = &j->s->shape;
    const uint32_t unit_heads = s->heads / (uint32_t)j->res->units;
    for (uint32_t h = 0; h < s->heads; h++) {
        const oracle_head *head = &j->res->head[h];
        const int mode = j->res->unit[h / unit_heads].mode;
        head_sums *to = &l->head[h];
        const double error = error_of(j, q, K, V, n, h, j->res->out + (size_t)h * s->dim);
        to->error += error;
        to->error_max = fmax(to->error_max, error);
        to->errors++;
        if (j->e->errors < MAX_RATIOS)
            j->e->error[j->e->errors++] = error;
        if (mode == ORACLE_DENSE)
            continue;
        to->delta += head->delta_full;
        to->delta_max = fmax(to->delta_max, head->delta_full);
        to->masses++;
        if (mode != ORACLE_SHARE || j->e->ratios == MAX_RATIOS)
            continue;
        const double ratio = (head->delta + 1e-4) / (head->delta_full + 1e-4);
        j->e->ratio[j->e->ratios++] = ratio;
        j->e->seq_ratio[j->seq][j->e->seq_ratios[j->seq]++] = ratio;
        j->e->hat += head->delta;
        j->e->exact += head->delta_full;
    }
}

static void run_layer(const job *j, uint32_t index, uint32_t seq) {
    const synth *s = j->s;
    const uint32_t layer = s->shape.first_layer + index, context = s->contexts[seq], steps = s->steps[seq];
    const size_t qn = trace_row(&s->shape, TRACE_Q), kn = trace_row(&s->shape, TRACE_K);
    layer_sums *l = &j->e->layer[index];
    double *q = rows_of(s, layer, seq, TRACE_Q, context - 1, steps + 1);
    double *K = rows_of(s, layer, seq, TRACE_K, 0, context + steps), *V = rows_of(s, layer, seq, TRACE_V, 0, context + steps);
    oracle_attach(j->o, (int)layer, (int)seq, (int)context, K, V);
    if (j->seed)
        check(oracle_seed(j->o, (int)layer, (int)seq, q, NULL, j->res) == 0, "the reference refuses the seed");
    for (uint32_t r = 0; r < steps; r++) {
        const size_t at = (size_t)(context + r) * kn;
        oracle_append(j->o, (int)layer, (int)seq, 1, K + at, V + at);
        check(oracle_step(j->o, (int)layer, (int)seq, 1, q + (r + 1) * qn, NULL, j->res) == 0, "the reference refuses the step");
        for (int u = 0; u < j->res->units; u++)
            count_unit(j, l, &j->res->unit[u], (int)(context + r));
        for (int u = 0; layer >= j->policy.dense_layers && u < j->res->units; u++) {
            j->e->units[r]++;
            j->e->retrieved[r] += j->res->unit[u].mode == ORACLE_RETRIEVE;
        }
        count_heads(j, l, q + (r + 1) * qn, K, V, (int)(context + r + 1));
    }
    free(q);
    free(K);
    free(V);
}

static void expect(const synth *s, const prhs_policy *policy, bool seed, expected *e) {
    job j = { .s = s, .policy = *policy, .e = e, .seed = seed };
    oracle_params params = params_of(s, policy);
    memset(e, 0, sizeof *e);
    j.o = oracle_session_new(&params);
    if (!check(j.o != NULL, "the reference refuses the policy"))
        return;
    j.res = oracle_result_new(j.o, 1);
    for (uint32_t index = 0; index < s->shape.layer_count; index++)
        for (uint32_t seq = 0; seq < s->shape.seqs; seq++) {
            j.seq = seq;
            run_layer(&j, index, seq);
        }
    oracle_result_free(j.res);
    oracle_session_free(j.o);
}

/* --- what the program says --------------------------------------------------------------------------------------------- */

static double number(const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItem(object, key);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

static void near(const char *what, const char *policy, int layer, int head, double got, double want, double bar) {
    bool same = isnan(want) ? isnan(got) : fabs(got - want) <= bar;
    check(same, "%s: layer %d head %d: %s is %.9g instead of %.9g (bar %.2g)", policy, layer, head, what, got, want, bar);
}

static void check_heads(const char *policy, const cJSON *layer, int index, const layer_sums *l, uint32_t heads) {
    const cJSON *list = cJSON_GetObjectItem(layer, "heads");
    check((uint32_t)cJSON_GetArraySize(list) == heads, "%s: %d heads", policy, cJSON_GetArraySize(list));
    for (uint32_t h = 0; h < heads; h++) {
        const head_sums *want = &l->head[h];
        const cJSON *head = cJSON_GetArrayItem(list, (int)h), *delta = cJSON_GetObjectItem(head, "delta");
        const cJSON *error = cJSON_GetObjectItem(head, "error");
        const double mass = want->masses ? want->delta / want->masses : NAN, mean = want->error / want->errors;
        near("masses", policy, index, (int)h, number(delta, "n"), want->masses, 0);
        near("mean delta", policy, index, (int)h, number(delta, "mean"), mass, 2e-6);
        near("largest delta", policy, index, (int)h, number(delta, "max"), want->masses ? want->delta_max : NAN, 4e-6);
        near("errors", policy, index, (int)h, number(error, "n"), want->errors, 0);
        near("mean error", policy, index, (int)h, number(error, "mean"), mean, 4e-6 + 1e-5 * mean);
        near("largest error", policy, index, (int)h, number(error, "max"), want->error_max, 8e-6 + 1e-5 * want->error_max);
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check_ratios(const char *policy, const cJSON *got, double *ratio, int n) {
    int within = 0, edge = 0;
    qsort(ratio, (size_t)n, sizeof ratio[0], by_value);
    for (int i = 0; i < n; i++) {
        within += ratio[i] >= 0.8 && ratio[i] <= 1.25;
        edge += fabs(ratio[i] - 0.8) < 1e-3 || fabs(ratio[i] - 1.25) < 1e-3;
    }
    const double median = n == 0 ? NAN : n % 2 ? ratio[n / 2] : (ratio[n / 2 - 1] + ratio[n / 2]) / 2;
    near("estimates", policy, -1, -1, number(got, "n"), n, 0);
    near("median ratio", policy, -1, -1, number(got, "median_ratio"), median, 1e-3);
    near("ratios within 1.25", policy, -1, -1, number(got, "within_1.25"), n ? (double)within / n : NAN,
         n ? (edge + 0.5) / n : 0);
}

static void check_estimator(const char *policy, const cJSON *object, uint32_t seqs, expected *e) {
    const cJSON *got = cJSON_GetObjectItem(object, "estimator"), *sequences = cJSON_GetObjectItem(object, "sequences");
    const int n = e->ratios;
    near("mean estimate", policy, -1, -1, number(got, "mean"), n ? e->hat / n : NAN, 1e-5);
    near("mean of the exact masses", policy, -1, -1, number(got, "exact_mean"), n ? e->exact / n : NAN, 2e-6);
    check_ratios(policy, got, e->ratio, n);
    check((uint32_t)cJSON_GetArraySize(sequences) == seqs, "%s: %d sequences", policy, cJSON_GetArraySize(sequences));
    for (uint32_t i = 0; i < seqs; i++)
        check_ratios(policy, cJSON_GetObjectItem(cJSON_GetArrayItem(sequences, (int)i), "estimator"), e->seq_ratio[i],
                     e->seq_ratios[i]);
}

/* Of all heads together; 99 of 100 are not above the percentile. */
static void check_errors(const char *policy, const cJSON *object, expected *e) {
    const cJSON *got = cJSON_GetObjectItem(object, "error");
    int rank = 0;
    qsort(e->error, (size_t)e->errors, sizeof e->error[0], by_value);
    while ((rank + 1) * 100 < 99 * e->errors)
        rank++;
    const double p99 = e->error[rank], max = e->error[e->errors - 1];
    near("errors", policy, -1, -1, number(got, "n"), e->errors, 0);
    near("99th percentile", policy, -1, -1, number(got, "p99"), p99, 8e-6 + 1e-5 * p99);
    near("largest error", policy, -1, -1, number(got, "max"), max, 8e-6 + 1e-5 * max);
}

static void check_steps(const char *policy, const cJSON *object, const expected *e) {
    const cJSON *got = cJSON_GetObjectItem(object, "retrieving_by_step");
    double sum = 0, max = 0, share[MAX_STEPS];
    int n = 0;
    for (; n < MAX_STEPS && e->units[n]; n++) {
        share[n] = (double)e->retrieved[n] / e->units[n];
        sum += share[n];
        max = fmax(max, share[n]);
    }
    qsort(share, (size_t)n, sizeof share[0], by_value);
    const double middle = n == 0 ? NAN : n % 2 ? share[n / 2] : (share[n / 2 - 1] + share[n / 2]) / 2;
    near("steps", policy, -1, -1, number(got, "n"), n, 0);
    near("mean share that retrieves", policy, -1, -1, number(got, "mean"), n ? sum / n : NAN, 1e-9);
    near("largest share that retrieves", policy, -1, -1, number(got, "max"), n ? max : NAN, 1e-9);
    near("median share that retrieves", policy, -1, -1, number(got, "median"), middle, 1e-9);
}

/* Bytes by the definition of docs/trace.md. */
static void check_bytes(const char *policy, const cJSON *object, const synth *s, const prhs_policy *p, const expected *e) {
    double rows = 0;
    uint32_t steps = 0;
    for (uint32_t i = 0; i < s->shape.layer_count; i++) {
        const layer_sums *l = &e->layer[i];
        const bool dense = s->shape.first_layer + i < p->dense_layers;
        /* The reference counts dense layers by unit, whose K/V are read once a KV head. */
        rows += dense && p->join == PRHS_JOIN_PER_HEAD ? 2 * l->attended * s->shape.kv_heads / s->shape.heads : 2 * l->attended;
        rows += p->residual == PRHS_RESIDUAL_RETRIEVED ? 2 * l->scored : l->scored;
        rows += l->mass_failed ? 2 * l->mass_failed * l->kept / l->sparse : 0;
    }
    for (uint32_t i = 0; i < s->shape.seqs; i++)
        steps += s->steps[i];
    const double want = rows * 2 * s->shape.dim / steps;
    near("bytes", policy, -1, -1, number(object, "bytes_per_step"), want, 1e-6 * want);
}

static void check_policy(const cJSON *object, const synth *s, const char *text, bool seed) {
    static expected e;
    prhs_policy policy;
    if (!check(policy_parse("trace-replay", text, s->shape.layers, &policy, NULL), "%s is no policy", text))
        return;
    expect(s, &policy, seed, &e);
    const cJSON *layers = cJSON_GetObjectItem(object, "layers"), *name = cJSON_GetObjectItem(object, "policy");
    check(cJSON_IsString(name) && strcmp(name->valuestring, text) == 0, "another policy's object");
    check(cJSON_GetArraySize(layers) == (int)s->shape.layer_count, "%s: %d layers", text, cJSON_GetArraySize(layers));
    for (uint32_t i = 0; i < s->shape.layer_count; i++) {
        const layer_sums *l = &e.layer[i];
        const cJSON *layer = cJSON_GetArrayItem(layers, (int)i);
        check(l->close == 0, "%s: layer %u: %d verdicts too close to tell; the test needs another seed", text, i, l->close);
        near("layer", text, (int)i, -1, number(layer, "layer"), s->shape.first_layer + i, 0);
        if (s->shape.first_layer + i >= policy.dense_layers) { /* dense layers keep no books */
            near("retrievals", text, (int)i, -1, number(layer, "retrieved"), l->retrieve, 0);
            near("shared steps", text, (int)i, -1, number(layer, "shared"), l->share, 0);
            near("kept", text, (int)i, -1, number(layer, "kept"), l->sparse ? l->kept / l->sparse : NAN, 1e-9 * l->kept);
        }
        check_heads(text, layer, (int)i, l, s->shape.heads);
    }
    check_estimator(text, object, s->shape.seqs, &e);
    check_errors(text, object, &e);
    check_steps(text, object, &e);
    check_bytes(text, object, s, &policy, &e);
    const cJSON *time = cJSON_GetObjectItem(object, "time");
    check(number(time, "median_s") >= 0 && number(time, "p99_s") >= number(time, "median_s") &&
              number(time, "worst_s") >= number(time, "p99_s") && number(time, "first_s") >= 0,
          "%s: times contradict each other", text);
}

static void replay(const char *program, const char *folder, const char *device, const synth *s, const char *more,
                   const char *const *policies) {
    char path[512], json[512], command[4096];
    size_t size, n = 0;
    snprintf(path, sizeof path, "%.400s/replay-%ld.trace", folder, (long)getpid());
    snprintf(json, sizeof json, "%.400s/replay-%ld.json", folder, (long)getpid());
    synth_write(s, path);
    n += (size_t)snprintf(command + n, sizeof command - n, "%s replay %s %s --json %s %s", program, device, more, json, path);
    for (size_t i = 0; policies[i]; i++)
        n += (size_t)snprintf(command + n, sizeof command - n, " --policy %s", policies[i]);
    fflush(stdout);
    int status = system(command);
    status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (status == 77)
        exit(77);
    if (!check(status == 0, "%s: status %d", command, status))
        return;
    unsigned char *text = synth_bytes(json, &size);
    text[size] = 0;
    cJSON *root = cJSON_Parse((const char *)text);
    const cJSON *list = cJSON_GetObjectItem(root, "policies");
    check(root != NULL, "no document");
    for (size_t i = 0; policies[i]; i++)
        check_policy(cJSON_GetArrayItem(list, (int)i), s, policies[i], !strstr(more, "--no-seed"));
    cJSON_Delete(root);
    free(text);
    remove(path);
    remove(json);
}

int main(int argc, char **argv) {
    static const uint32_t contexts[] = { 150, 61, 97 }, steps[] = { 21, 13, 1 };
    static const char *const plain[] = { "dense",
                                         "streaming,sinks=2,local=20,dense=0",
                                         "topk,k=24,sinks=2,local=8",
                                         "cis,k=24,m=4,s=8,tau=0.9,sinks=2,local=8",
                                         "cis-mass,k=24,s=8,eps=0.05,tau=0.5,sinks=2,local=8",
                                         "cis-mass,k=24,s=8,eps=0.05,tau=0.5,sinks=2,local=8,residual=retrieved",
                                         NULL };
    static const char *const other[] = { "cis-mass,k=24,s=16,eps=0.02,tau=0.2,sinks=2,local=8,dense=2",
                                         "cis,k=24,m=0,g=4,s=8,tau=0.9,sinks=3,local=9,join=max,dense=0",
                                         "cis-mass,k=16,s=8,eps=0.05,tau=0.5,sinks=2,local=8,join=head",
                                         "cis-mass,k=16,s=64,refs=3,eps=0.05,tau=0.5,sinks=2,local=8",
                                         "cis-recall,k=16,eps=0.02,sinks=2,local=8",
                                         "cpe,k=16,m=2,s=8,tau=0.9,sinks=2,local=8,psaw_layer=1,dense=0,etf=0",
                                         NULL };
    synth a = {
        .shape = { 4, 1, 2, 4, 2, 32, 0.1767767f, 2, 0 }, .contexts = contexts, .steps = steps, .seed = 11, .drift = 0.6f
    };
    synth b = { .shape = { 3, 0, 3, 6, 2, 64, 0.1f, 3, 1 }, .contexts = contexts, .steps = steps, .seed = 5, .drift = 0.5f };
    char device[128];
    if (argc < 3) {
        fprintf(stderr, "usage: trace-replay PRHS FOLDER [BACKEND [CAPS]]\n");
        return 2;
    }
    snprintf(device, sizeof device, "--backend %.40s --caps %.40s", argc > 3 ? argv[3] : "cpu", argc > 4 ? argv[4] : "ffffffff");
    replay(argv[1], argv[2], device, &a, "", plain);
    replay(argv[1], argv[2], device, &a, "--no-seed --page 7", plain);
    replay(argv[1], argv[2], device, &b, "--no-graph", other);
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
