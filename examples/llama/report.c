/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool result_make(result *r, const char *name, const run_shape *shape) {
    r->name = name;
    r->nll = calloc(shape->docs, sizeof *r->nll);
    r->best = calloc((size_t)shape->docs * shape->decode, sizeof *r->best);
    r->right = calloc(shape->docs, sizeof *r->right);
    return r->nll && r->best && r->right;
}

void result_free(result *r) {
    free(r->nll);
    free(r->best);
    free(r->right);
    layer_stats_free(r->layers);
}

bool result_take(result *r, engine *e, engine_session *s, const run_shape *shape) {
    r->layers = layer_stats_take(e, s, &r->stats, &r->audit);
    if (!r->layers)
        return false;
    r->layer_count = e->m->layers;
    r->heads = e->m->heads;
    r->bytes = bytes_per_step(e, s, r->layers, shape->context + (shape->decode + 1) / 2.0, &r->dense_bytes);
    return true;
}

static double mean(const double *x, uint32_t n) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i];
    return sum / n;
}

static double agreement(const result *a, const result *b, const run_shape *s, uint32_t doc) {
    uint32_t same = 0;
    for (uint32_t r = 0; r < s->decode; r++)
        same += a->best[(size_t)r * s->docs + doc] == b->best[(size_t)r * s->docs + doc];
    return (double)same / s->decode;
}

static double top1(const result *a, const result *b, const run_shape *s) {
    double sum = 0.0;
    for (uint32_t d = 0; d < s->docs; d++)
        sum += agreement(a, b, s, d);
    return sum / s->docs;
}

/* The best-graded mass there is: audits of all steps; else retrievals and shared steps together, as the policy knows them. */
static prhs_mass mass_of(const prhs_stats *s, bool drawn) {
    if (!drawn && (s->audited.count || s->retrieved.count + s->shared.count == 0))
        return s->audited;
    uint64_t n = s->retrieved.count + s->shared.count;
    if (n == 0)
        return (prhs_mass){ PRHS_GRADE_UNKNOWN, NAN, 0 };
    double sum = (s->retrieved.count ? s->retrieved.mean * (double)s->retrieved.count : 0.0) +
                 (s->shared.count ? s->shared.mean * (double)s->shared.count : 0.0);
    return (prhs_mass){ s->shared.count ? s->shared.grade : s->retrieved.grade, sum / (double)n, n };
}

/* Of all steps. */
static prhs_mass mass_of_all(const result *r) { return r->drawn ? r->audit.mean : mass_of(&r->stats, false); }

static const char *grade_name(prhs_grade g) {
    static const char *const names[] = { [PRHS_GRADE_UNKNOWN] = "unknown", [PRHS_GRADE_EXACT] = "exact", [PRHS_GRADE_ESTIMATE] = "estimate",
                                         [PRHS_GRADE_STALE] = "stale", [PRHS_GRADE_SAMPLED] = "sampled", [PRHS_GRADE_BOUND] = "bound" };
    return names[g];
}

static void cell(FILE *to, int width, const char *format, double x) {
    char text[32] = "-";
    if (!isnan(x))
        snprintf(text, sizeof text, format, x);
    fprintf(to, " %*s", width, text);
}

static double share(uint64_t part, uint64_t all) { return all ? (double)part / (double)all : NAN; }

static bool aims(const result *r) { return r->policy.target > 0.0f; }

/* What became of targets: of all exact masses, and of all steps, those that attended densely because no list would do. */
static void target_table(FILE *to, const result *results, size_t n) {
    bool any = false;
    for (size_t i = 0; i < n; i++)
        any = any || aims(&results[i]);
    if (!any)
        return;
    fprintf(to, "\n%-44s %6s %7s %7s %9s\n", "policy with a target", "target", "within", "missed", "attended");
    for (size_t i = 0; i < n; i++) {
        const result *r = &results[i];
        if (!aims(r))
            continue;
        fprintf(to, "%-44s", r->name);
        cell(to, 6, "%.3g", (double)r->policy.target);
        cell(to, 7, "%.4f", share(r->stats.within, r->stats.audited.count));
        cell(to, 7, "%.4f", share(r->stats.missed, r->stats.steps));
        cell(to, 9, "%.0f", r->stats.attended);
        fputc('\n', to);
    }
}

/* What audits that were drawn say of all steps. */
static void audit_table(FILE *to, const result *results, size_t n) {
    bool any = false;
    for (size_t i = 0; i < n; i++)
        any = any || results[i].drawn;
    if (!any)
        return;
    fprintf(to, "\n%-44s %9s %9s %9s %9s %11s\n", "policy, drawn audits", "not known", "audits", "least", "most", "information");
    for (size_t i = 0; i < n; i++) {
        const prhs_audit_report *a = &results[i].audit;
        if (!results[i].drawn || a->steps == 0)
            continue;
        fprintf(to, "%-44s %9llu %9llu", results[i].name, (unsigned long long)a->unknown, (unsigned long long)a->audits);
        cell(to, 9, "%.4f", a->bound.low);
        cell(to, 9, "%.4f", a->bound.high);
        cell(to, 11, "%.4f", a->information.high);
        fputc('\n', to);
    }
    fputs("of the mean dropped mass, each with 95 % confidence; information: nats\n", to);
}

void report_table(FILE *to, const run_shape *s, const prhs_device_info *device, const result *results, size_t n) {
    fprintf(to, "%s: %s; %u documents of %u + %u tokens\n\n", prhs_backend_name(device->backend), device->name, s->docs, s->context,
            s->decode);
    fprintf(to, "%-44s %6s %6s %8s %7s %6s %7s %-8s %9s %8s\n", "policy", "kept", "rho", "loss", "nll", "top-1", "delta", "grade",
            "attend s", "tokens/s");
    for (size_t i = 0; i < n; i++) {
        const result *r = &results[i];
        prhs_mass m = mass_of_all(r);
        fprintf(to, "%-44s", r->name);
        cell(to, 6, "%.0f", r->stats.kept);
        cell(to, 6, "%.3f", r->stats.rho);
        cell(to, 8, "%.4f", mean(r->nll, s->docs) - mean(results[0].nll, s->docs));
        cell(to, 7, "%.4f", mean(r->nll, s->docs));
        cell(to, 6, "%.3f", top1(r, &results[0], s));
        cell(to, 7, "%.4f", m.mean);
        fprintf(to, " %-8s", m.count ? grade_name(m.grade) : "-");
        cell(to, 9, "%.2f", r->attention);
        cell(to, 8, "%.1f", (double)s->docs * s->decode / r->seconds);
        fputc('\n', to);
    }
    target_table(to, results, n);
    audit_table(to, results, n);
}

/* JSON has no NaN: such a value is null. */
static void number(cJSON *object, const char *key, double x) {
    if (isnan(x))
        cJSON_AddNullToObject(object, key);
    else
        cJSON_AddNumberToObject(object, key, x);
}

/* Six digits: no mass is known better, and there are many. */
static cJSON *short_number(double x) {
    char text[32];
    if (isnan(x))
        return cJSON_CreateNull();
    snprintf(text, sizeof text, "%.6g", x);
    return cJSON_CreateNumber(strtod(text, NULL));
}

static void add_estimator(cJSON *to, const prhs_stats *s) {
    cJSON *o = cJSON_AddObjectToObject(to, "estimator");
    estimate_check e = check_estimate(&s->retrieved, &s->shared, &s->audited);
    cJSON_AddStringToObject(o, "grade", grade_name(s->shared.grade));
    number(o, "n", (double)e.n);
    cJSON_AddItemToObject(o, "mean", short_number(e.mean));
    cJSON_AddItemToObject(o, "exact_mean", short_number(e.exact_mean));
}

/* Arrays by query head: the exact mass where steps are audited; the estimate of shared steps, the exact mass of the same. */
static void add_heads(cJSON *to, const layer_stats *layer, uint32_t heads, bool drawn) {
    cJSON *delta = cJSON_AddArrayToObject(to, "head_delta"), *estimate = cJSON_AddArrayToObject(to, "head_estimate"),
          *exact = cJSON_AddArrayToObject(to, "head_exact");
    for (uint32_t h = 0; h < heads; h++) {
        const prhs_head_stats *s = &layer->heads[h];
        estimate_check e = check_estimate(&s->retrieved, &s->shared, &s->audited);
        prhs_mass m = mass_of(&(prhs_stats){ .retrieved = s->retrieved, .shared = s->shared, .audited = s->audited }, drawn);
        cJSON_AddItemToArray(delta, short_number(m.mean));
        cJSON_AddItemToArray(estimate, short_number(e.mean));
        cJSON_AddItemToArray(exact, short_number(e.exact_mean));
    }
}

/* A dense layer keeps no books: all of it is null. */
static cJSON *layer_object(const result *r, uint32_t layer) {
    const layer_stats *s = &r->layers[layer];
    cJSON *o = cJSON_CreateObject();
    prhs_mass m = mass_of(&s->all, r->drawn);
    cJSON_AddNumberToObject(o, "layer", layer);
    cJSON_AddItemToObject(o, "rho", short_number(s->all.rho));
    cJSON_AddItemToObject(o, "kept", short_number(s->all.kept));
    cJSON_AddItemToObject(o, "attended", short_number(s->all.attended));
    cJSON_AddItemToObject(o, "delta", short_number(m.mean));
    add_estimator(o, &s->all);
    add_heads(o, s, r->heads, r->drawn);
    return o;
}

static void add_audit(cJSON *to, const prhs_audit_report *a) {
    cJSON *o = cJSON_AddObjectToObject(to, "audit");
    number(o, "steps", (double)a->steps);
    number(o, "unknown", (double)a->unknown);
    number(o, "audits", (double)a->audits);
    number(o, "confidence", a->confidence);
    number(o, "low", a->bound.low);
    number(o, "high", a->bound.high);
    number(o, "information", a->information.high);
    number(o, "estimator_mean_off", a->estimator.mean_off);
}

static cJSON *object_of(const run_shape *s, const result *r, const result *dense) {
    cJSON *o = cJSON_CreateObject(), *docs = cJSON_AddArrayToObject(o, "documents");
    prhs_mass m = mass_of_all(r);
    cJSON_AddStringToObject(o, "policy", r->name);
    number(o, "kept", r->stats.kept);
    number(o, "rho", r->stats.rho);
    number(o, "loss", mean(r->nll, s->docs) - mean(dense->nll, s->docs));
    number(o, "nll", mean(r->nll, s->docs));
    number(o, "top1", top1(r, dense, s));
    if (r->comparator)
        cJSON_AddTrueToObject(o, "comparator");
    number(o, "delta", m.mean);
    cJSON_AddStringToObject(o, "grade", grade_name(m.count ? m.grade : PRHS_GRADE_UNKNOWN));
    number(o, "delta_exact_retrieved", r->stats.retrieved.mean);
    number(o, "delta_shared", r->stats.shared.mean);
    number(o, "attended", r->stats.attended);
    if (aims(r)) {
        number(o, "target", (double)r->policy.target);
        number(o, "within", share(r->stats.within, r->stats.audited.count));
        number(o, "missed", share(r->stats.missed, r->stats.steps));
    }
    add_estimator(o, &r->stats);
    if (r->drawn)
        add_audit(o, &r->audit);
    number(o, "bytes_per_step", r->bytes);
    number(o, "bytes_of_dense", r->bytes / r->dense_bytes);
    number(o, "tokens", (double)s->docs * s->decode);
    number(o, "seconds", r->seconds);
    number(o, "attention_seconds", r->attention);
    for (uint32_t d = 0; d < s->docs; d++) {
        cJSON *doc = cJSON_CreateObject();
        number(doc, "nll", r->nll[d]);
        number(doc, "loss", r->nll[d] - dense->nll[d]);
        number(doc, "top1", agreement(r, dense, s, d));
        number(doc, "right", (double)r->right[d] / s->decode);
        cJSON_AddItemToArray(docs, doc);
    }
    cJSON *layers = cJSON_AddArrayToObject(o, "layers");
    for (uint32_t l = 0; l < r->layer_count; l++)
        cJSON_AddItemToArray(layers, layer_object(r, l));
    return o;
}

cJSON *report_begin(const char *kind, const prhs_device_info *device, const compute *c) {
    static const char *const kv_names[] = { "f32", "f16", "bf16" };
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "kind", kind);
    cJSON_AddNumberToObject(root, "format", 1);
    cJSON_AddNumberToObject(root, "version", prhs_version());
    cJSON_AddStringToObject(root, "backend", prhs_backend_name(device->backend));
    cJSON_AddStringToObject(root, "device", device->name);
    cJSON_AddStringToObject(root, "linear", c->ops->name);
    cJSON_AddStringToObject(root, "weights", c->half ? "f16" : "f32");
    cJSON_AddStringToObject(root, "kv", kv_names[c->e->kv_dtype]);
    return root;
}

bool report_end(const char *path, cJSON *root) {
    char *text = cJSON_Print(root);
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    bool ok = text && f && fprintf(f, "%s\n", text) > 0;
    if (f && f != stdout)
        ok = fclose(f) == 0 && ok;
    if (!ok)
        fprintf(stderr, "prhs-llama: %s cannot be written\n", path);
    cJSON_free(text);
    cJSON_Delete(root);
    return ok;
}

bool report_json(const char *path, const run_shape *s, const prhs_device_info *device, const compute *c, const result *results, size_t n) {
    cJSON *root = report_begin("perplexity", device, c);
    number(root, "context", s->context);
    number(root, "decode", s->decode);
    if (s->sets > 1) {
        number(root, "set", s->set);
        number(root, "sets", s->sets);
    }
    cJSON *list = cJSON_AddArrayToObject(root, "policies");
    for (size_t i = 0; i < n; i++)
        cJSON_AddItemToArray(list, object_of(s, &results[i], &results[0]));
    return report_end(path, root);
}
