/* SPDX-License-Identifier: Apache-2.0 */
/* The table on standard output, and the JSON document. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

/* Standard error when the document goes to standard output. */
static FILE *table(const replay *r) { return r->o->json && strcmp(r->o->json, "-") == 0 ? stderr : stdout; }

static void cell(FILE *to, int width, const char *format, double x) {
    char text[32] = "-";
    if (!isnan(x))
        snprintf(text, sizeof text, format, x);
    fprintf(to, " %*s", width, text);
}

const char *replay_grade(const replay_result *result) {
    const prhs_policy *p = &result->policy;
    return p->k == 0 ? "unknown" : p->gate == PRHS_GATE_MASS ? "estimate" : "stale";
}

void replay_head_line(const replay *r) {
    FILE *to = table(r);
    const trace_shape *s = &r->shape;
    uint64_t context = 0, steps = 0;
    for (uint32_t i = 0; i < s->seqs; i++) {
        context += replay_seq(r, i)->context;
        steps += replay_seq(r, i)->steps;
    }
    fprintf(to, "%s: layers %u-%u of %u, %u query and %u KV heads of %u; %u sequence%s, on average %.0f + %.0f tokens\n",
            r->o->file, s->first_layer, s->first_layer + s->layer_count - 1, s->layers, s->heads, s->kv_heads, s->dim, s->seqs,
            s->seqs == 1 ? "" : "s", (double)context / s->seqs, (double)steps / s->seqs);
    fprintf(to, "%s: %s (%s)\n\n", prhs_backend_name(r->info.backend), r->info.name, r->info.platform);
}

void replay_table_head(const replay *r) {
    FILE *to = table(r);
    fprintf(to, "%-40s %6s %6s %7s %8s %7s %7s %8s %7s %7s %6s %6s", "policy", "rho", "kept", "KiB", "of dense", "delta", "p99",
            "error", "p99", "max", "dh/d", "in1.25");
    if (r->o->parts & REPLAY_TIME)
        fprintf(to, " %9s %8s %8s %8s %7s", "median us", "p99", "worst", "first", "p99/med");
    fputc('\n', to);
}

static void heads_table(FILE *to, const replay *r, const replay_result *x) {
    for (uint32_t l = 0; l < r->shape.layer_count; l++) {
        const replay_layer *layer = &x->layers[l];
        fprintf(to, "  layer %u: rho", r->shape.first_layer + l);
        cell(to, 0, "%.3f", layer->stats.rho);
        fputs("; delta by head", to);
        for (uint32_t h = 0; h < r->shape.heads; h++)
            cell(to, 0, "%.4f", layer->head_delta[h].mean);
        fputs("; error", to);
        for (uint32_t h = 0; h < r->shape.heads; h++)
            cell(to, 0, "%.2g", layer->head_error[h].mean);
        fputc('\n', to);
    }
}

/* What became of a policy's target. */
static void target_line(FILE *to, const replay_result *x) {
    const prhs_stats *s = &x->stats;
    fprintf(to, "  target %g: within it", (double)x->policy.target);
    cell(to, 0, "%.4f", s->audited.count ? (double)s->within / (double)s->audited.count : NAN);
    fputs(" of exact masses; missed, and dense,", to);
    cell(to, 0, "%.4f", s->steps ? (double)s->missed / (double)s->steps : NAN);
    fputs(" of unit-steps; tokens attended", to);
    cell(to, 0, "%.0f", s->attended);
    fputc('\n', to);
}

void replay_table_line(const replay *r, const replay_result *x) {
    FILE *to = table(r);
    const bool accuracy = x->parts & REPLAY_ACCURACY, time = x->parts & REPLAY_TIME;
    fprintf(to, "%-40s", x->name);
    cell(to, 6, "%.3f", accuracy ? x->stats.rho : NAN);
    cell(to, 6, "%.0f", accuracy ? x->stats.kept : NAN);
    cell(to, 7, "%.0f", accuracy ? x->bytes / 1024 : NAN);
    cell(to, 8, "%.3f", accuracy ? x->bytes / x->dense_bytes : NAN);
    cell(to, 7, "%.4f", accuracy ? x->delta.mean : NAN);
    cell(to, 7, "%.4f", accuracy ? x->delta.p99 : NAN);
    cell(to, 8, "%.2g", accuracy ? x->error.mean : NAN);
    cell(to, 7, "%.2g", accuracy ? x->error.p99 : NAN);
    cell(to, 7, "%.2g", accuracy ? x->error.max : NAN);
    cell(to, 6, "%.3f", accuracy ? x->estimate.median : NAN);
    cell(to, 6, "%.3f", accuracy ? x->estimate.within : NAN);
    if (time) {
        cell(to, 9, "%.1f", x->median * 1e6);
        cell(to, 8, "%.1f", x->p99 * 1e6);
        cell(to, 8, "%.1f", x->worst * 1e6);
        cell(to, 8, "%.1f", x->first * 1e6);
        cell(to, 7, "%.2f", x->p99 / x->median);
    }
    fputc('\n', to);
    if (accuracy && x->policy.target > 0.0f)
        target_line(to, x);
    if (accuracy && r->o->heads)
        heads_table(to, r, x);
    fflush(to);
}

void replay_coverage_line(const replay *r, const replay_result *x) {
    FILE *to = table(r);
    const replay_coverage *c = &x->coverage;
    if (x->rival.kind != COMPARATOR_NONE) {
        fprintf(to, "%s: a comparator, which no session audits\n", x->name);
        return;
    }
    if (!c->runs) {
        fprintf(to, "%s: no step whose dropped mass only an audit knows\n", x->name);
        return;
    }
    fprintf(to,
            "%s: mean delta %.5f; audits of %.0f of %llu unit-steps: bounds at %g %% hold for %u of %u seeds, median width %.5f, "
            "widest %.5f\n",
            x->name, c->exact, c->audits, (unsigned long long)c->unknown, 100 * r->o->confidence, c->held, c->runs,
            c->width_median, c->width_most);
}

/* --- JSON -------------------------------------------------------------------------------------------------------------- */

/* JSON has neither NaN nor infinity: such a value is null. */
static void number(cJSON *object, const char *key, double x) {
    if (isnan(x) || isinf(x))
        cJSON_AddNullToObject(object, key);
    else
        cJSON_AddNumberToObject(object, key, x);
}

static cJSON *child(cJSON *object, const char *key) { return cJSON_AddObjectToObject(object, key); }

static void add_summary(cJSON *o, const replay_summary *s) {
    number(o, "n", (double)s->n);
    number(o, "mean", s->mean);
    number(o, "p99", s->p99);
    number(o, "max", s->max);
}

static void add_delta(cJSON *to, const replay_summary *s) {
    cJSON *o = child(to, "delta");
    cJSON_AddStringToObject(o, "grade", "exact");
    add_summary(o, s);
}

static void add_estimate(cJSON *to, const replay_result *x, const replay_estimate *e) {
    cJSON *o = child(to, "estimator");
    cJSON_AddStringToObject(o, "grade", replay_grade(x));
    number(o, "n", (double)e->n);
    number(o, "mean", e->mean);
    number(o, "exact_mean", e->exact);
    number(o, "median_ratio", e->median);
    number(o, "within_1.25", e->within);
}

static void add_stats(cJSON *to, const prhs_stats *s) {
    number(to, "rho", s->rho);
    number(to, "kept", s->kept);
    number(to, "attended", s->attended);
    number(to, "unit_steps", (double)s->steps);
    number(to, "dense", (double)s->dense);
    number(to, "shared", (double)s->share);
    number(to, "retrieved", (double)s->retrieve);
    number(to, "cosine_failed", (double)s->cosine_failed);
    number(to, "mass_failed", (double)s->mass_failed);
    number(to, "missed", (double)s->missed);
    number(to, "within", (double)s->within);
}

static void add_coverage(const replay *r, cJSON *o, const replay_coverage *c) {
    number(o, "confidence", r->o->confidence);
    number(o, "seeds", c->runs);
    number(o, "held", c->held);
    number(o, "rate", c->rate);
    number(o, "unit_steps", (double)c->steps);
    number(o, "unknown", (double)c->unknown);
    number(o, "audits_mean", c->audits);
    number(o, "exact_mean", c->exact);
    number(o, "deviation", c->deviation);
    number(o, "width_median", c->width_median);
    number(o, "width_max", c->width_most);
    number(o, "farthest_miss", c->miss_most);
}

static cJSON *layer_object(const replay *r, const replay_result *x, uint32_t l) {
    const replay_layer *layer = &x->layers[l];
    cJSON *o = cJSON_CreateObject();
    number(o, "layer", r->shape.first_layer + l);
    add_stats(o, &layer->stats);
    add_delta(o, &layer->delta);
    add_summary(child(o, "error"), &layer->error);
    add_estimate(o, x, &layer->estimate);
    cJSON *heads = cJSON_AddArrayToObject(o, "heads");
    for (uint32_t h = 0; h < r->shape.heads; h++) {
        cJSON *head = cJSON_CreateObject();
        add_delta(head, &layer->head_delta[h]);
        add_summary(child(head, "error"), &layer->head_error[h]);
        cJSON_AddItemToArray(heads, head);
    }
    return o;
}

static cJSON *policy_object(const replay *r, const replay_result *x) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "policy", x->name);
    if (x->rival.kind != COMPARATOR_NONE)
        cJSON_AddTrueToObject(o, "comparator");
    if (x->parts & REPLAY_ACCURACY) {
        add_stats(o, &x->stats);
        number(o, "bytes_per_step", x->bytes);
        number(o, "bytes_of_dense", x->bytes / x->dense_bytes);
        add_delta(o, &x->delta);
        add_summary(child(o, "error"), &x->error);
        add_estimate(o, x, &x->estimate);
        cJSON *sequences = cJSON_AddArrayToObject(o, "sequences");
        for (uint32_t i = 0; i < r->shape.seqs; i++) {
            cJSON *sequence = cJSON_CreateObject();
            add_estimate(sequence, x, &x->sequences[i]);
            cJSON_AddItemToArray(sequences, sequence);
        }
        cJSON *steps = child(o, "retrieving_by_step");
        add_summary(steps, &x->retrieving);
        number(steps, "median", x->retrieving_median);
        cJSON *layers = cJSON_AddArrayToObject(o, "layers");
        for (uint32_t l = 0; l < r->shape.layer_count; l++)
            cJSON_AddItemToArray(layers, layer_object(r, x, l));
    }
    if (x->coverage.runs)
        add_coverage(r, child(o, "coverage"), &x->coverage);
    if (x->parts & REPLAY_TIME) {
        cJSON *time = child(o, "time");
        number(time, "median_s", x->median);
        number(time, "p99_s", x->p99);
        number(time, "worst_s", x->worst);
        number(time, "mean_s", x->mean);
        number(time, "first_s", x->first);
        number(time, "seed_s", x->seed);
        number(time, "p99_of_median", x->p99 / x->median);
        number(time, "worst_of_median", x->worst / x->median);
    }
    return o;
}

static void add_trace(const replay *r, cJSON *root) {
    const trace_shape *s = &r->shape;
    cJSON *o = child(root, "trace");
    cJSON_AddStringToObject(o, "file", r->o->file);
    number(o, "model_layers", s->layers);
    number(o, "first_layer", s->first_layer);
    number(o, "layers", s->layer_count);
    number(o, "heads", s->heads);
    number(o, "kv_heads", s->kv_heads);
    number(o, "dim", s->dim);
    number(o, "scale", (double)s->scale);
    cJSON *seqs = cJSON_AddArrayToObject(o, "sequences");
    for (uint32_t i = 0; i < s->seqs; i++) {
        cJSON *seq = cJSON_CreateObject();
        number(seq, "context", replay_seq(r, i)->context);
        number(seq, "steps", replay_seq(r, i)->steps);
        cJSON_AddItemToArray(seqs, seq);
    }
}

bool replay_json(const replay *r, const replay_result *results, uint32_t count, const char *extra_key, void *extra) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "kind", "replay");
    cJSON_AddNumberToObject(root, "format", 1);
    cJSON_AddNumberToObject(root, "version", prhs_version());
    add_trace(r, root);
    cJSON_AddStringToObject(root, "backend", prhs_backend_name(r->info.backend));
    cJSON_AddStringToObject(root, "device", r->info.name);
    cJSON_AddStringToObject(root, "platform", r->info.platform);
    number(root, "repeat", r->o->repeat);
    cJSON_AddBoolToObject(root, "seeded", !r->o->no_seed);
    cJSON_AddBoolToObject(root, "graphs", tool_has_graphs(&r->info) && !r->o->direct);
    cJSON *list = cJSON_AddArrayToObject(root, "policies");
    for (uint32_t i = 0; i < count; i++)
        cJSON_AddItemToArray(list, policy_object(r, &results[i]));
    if (extra)
        cJSON_AddItemToObject(root, extra_key, extra);
    char *text = cJSON_Print(root);
    FILE *f = strcmp(r->o->json, "-") == 0 ? stdout : fopen(r->o->json, "w");
    bool good = text && f && fprintf(f, "%s\n", text) > 0;
    if (f && f != stdout)
        good = fclose(f) == 0 && good;
    if (!good)
        fprintf(stderr, "prhs replay: %s cannot be written\n", r->o->json);
    cJSON_free(text);
    cJSON_Delete(root);
    return good;
}
