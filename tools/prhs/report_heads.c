/* SPDX-License-Identifier: Apache-2.0 */
/* Dropped mass by layer and query head, and how far its estimate is off there. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { ROWS = 1024, FIELDS = 1 << 16 /* more than these are not drawn */ };

/* What a layer says of a head: a list by head, or an object for each head; `list` NULL: of itself. */
typedef struct source {
    const char *list, *member;
} source;

static const source exact_all = { "head_delta", "delta.mean" }, output_error = { "head_error", "error.mean" },
                    exact_shared = { "head_exact", "estimator.exact_mean" }, estimated = { "head_estimate", "estimator.mean" },
                    layer_exact = { NULL, "estimator.exact_mean" }, layer_estimated = { NULL, "estimator.mean" };

static double value_at(const cJSON *layer, source s, size_t head) {
    if (!s.list)
        return report_number_at(layer, s.member);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(layer, s.list);
    const cJSON *x = cJSON_GetArrayItem(list, (int)head);
    if (cJSON_IsArray(list))
        return cJSON_IsNumber(x) && isfinite(x->valuedouble) ? x->valuedouble : NAN;
    x = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(layer, "heads"), (int)head);
    return report_number_at(x, s.member);
}

static size_t heads_of(const cJSON *layers) {
    const cJSON *layer;
    int most = 0;
    cJSON_ArrayForEach(layer, layers) {
        const int a = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(layer, "head_delta"));
        const int b = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(layer, "heads"));
        most = a > most ? a : most;
        most = b > most ? b : most;
    }
    return (size_t)most;
}

/* All values of a policy, [layers][heads]; NULL: there are none to draw. */
static double *values_of(const cJSON *layers, source s, size_t heads, double *high) {
    const size_t rows = (size_t)cJSON_GetArraySize(layers);
    if (!rows || !heads || rows > ROWS || heads > FIELDS / rows)
        return NULL;
    double *values = report_alloc(rows * heads, sizeof *values);
    const cJSON *layer;
    size_t at = 0, there = 0;
    cJSON_ArrayForEach(layer, layers)
        for (size_t h = 0; h < heads; h++, at++) {
            values[at] = value_at(layer, s, h);
            there += isfinite(values[at]) ? 1 : 0;
            *high = isfinite(values[at]) && values[at] > *high ? values[at] : *high;
        }
    if (there)
        return values;
    free(values);
    return NULL;
}

static double *ids_of(const cJSON *layers) {
    double *ids = report_alloc((size_t)cJSON_GetArraySize(layers), sizeof *ids);
    const cJSON *layer;
    size_t at = 0;
    cJSON_ArrayForEach(layer, layers) {
        const double id = report_number(layer, "layer");
        ids[at] = isnan(id) ? (double)at : id;
        at++;
    }
    return ids;
}

/* Rows of both masses beside each other; by layer alone there is no head to name. */
static void scatter_table(page *p, const heat *exact, const double *hat, bool by_head) {
    static const char *const heads[] = { "layer", "head", "δ exact", "δ̂", "δ̂ / δ, each + 0.0001" };
    const char *const layers[] = { heads[0], heads[2], heads[3], heads[4] };
    table_begin(p, exact->title, by_head ? heads : layers, by_head ? 5 : 4);
    for (size_t i = 0; i < exact->rows * exact->columns; i++) {
        if (isnan(exact->values[i]) || isnan(hat[i]))
            continue;
        table_row(p);
        table_number(p, exact->row_ids[i / exact->columns]);
        if (by_head)
            table_number(p, (double)(i % exact->columns));
        table_number(p, exact->values[i]);
        table_number(p, hat[i]);
        table_number(p, (hat[i] + 1e-4) / (exact->values[i] + 1e-4));
        table_row_end(p);
    }
    table_end(p);
}

static void scatter(page *p, const char *policy, const heat *exact, const double *hat, bool by_head) {
    const size_t n = exact->rows * exact->columns;
    plot_point *points = report_alloc(n, sizeof *points);
    char(*names)[48] = report_alloc(n, sizeof *names);
    plot_series series = { .name = by_head ? "a query head of a layer" : "a layer", .style = report_style(policy), .small = by_head,
                           .points = points };
    plot what = { .title = exact->title, .note = exact->note, .x = { "exact δ on shared steps, + 0.0001", true, NULL, 0 },
                  .y = { "δ̂, its estimate, + 0.0001", true, NULL, 0 }, .series = &series, .count = 1, .x_line = NAN, .diagonal = true };
    for (size_t i = 0; i < n; i++) {
        if (isnan(exact->values[i]) || isnan(hat[i]))
            continue;
        const int length = snprintf(names[i], sizeof names[i], "layer %.10g", exact->row_ids[i / exact->columns]);
        if (by_head)
            snprintf(names[i] + length, sizeof names[i] - (size_t)length, ", head %zu", i % exact->columns);
        points[series.count++] = (plot_point){ exact->values[i] + 1e-4, hat[i] + 1e-4, names[i], 0 };
    }
    plot_figure(p, &what);
    scatter_table(p, exact, hat, by_head);
    figure_end(p);
    free(points);
    free(names);
}

static char *titled(const char *what, const char *policy) {
    const size_t size = strlen(what) + strlen(policy) + 4;
    char *title = report_alloc(size, 1);
    snprintf(title, size, "%s: %s", what, policy);
    return title;
}

/* A policy. */
typedef struct subject {
    const cJSON *layers;
    const char *name;
    double *ids; /* [rows] */
    size_t rows, heads;
} subject;

static void heat_map(page *p, const subject *of, source s, const char *what, const char *note, double high) {
    double ignored = 0, *values = values_of(of->layers, s, of->heads, &ignored);
    char *title = titled(what, of->name);
    heat h = { .title = title, .note = note, .row_name = "layer", .column_name = "head", .values = values, .row_ids = of->ids,
               .rows = of->rows, .columns = of->heads, .high = high };
    if (values) {
        heat_figure(p, &h);
        heat_table(p, &h);
        figure_end(p);
    }
    free(title);
    free(values);
}

/* By head where the document goes that far, else by layer; false: neither. */
static bool estimates(page *p, const subject *of, bool by_head) {
    const size_t columns = by_head ? of->heads : 1;
    double ignored = 0, *exact = values_of(of->layers, by_head ? exact_shared : layer_exact, columns, &ignored);
    double *hat = values_of(of->layers, by_head ? estimated : layer_estimated, columns, &ignored);
    char *title = titled(by_head ? "δ̂ against δ by layer and query head" : "δ̂ against δ by layer", of->name);
    heat h = { .title = title, .note = "Means over shared steps.", .values = exact, .row_ids = of->ids, .rows = of->rows, .columns = columns };
    const bool there = exact && hat;
    if (there)
        scatter(p, of->name, &h, hat, by_head);
    free(title);
    free(exact);
    free(hat);
    return there;
}

static void policy_heads(page *p, const cJSON *policy, double high_delta, double high_error) {
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(policy, "layers");
    const subject of = { layers, report_string(policy, "policy", ""), ids_of(layers), (size_t)cJSON_GetArraySize(layers), heads_of(layers) };
    heat_map(p, &of, exact_all, "δ by layer and query head", "Mean dropped mass of sparse steps; one scale for all policies of the file.",
             high_delta);
    heat_map(p, &of, output_error, "Output error by layer and query head",
             "Mean distance from dense attention's output, relative; one scale for all policies of the file.", high_error);
    if (!estimates(p, &of, true))
        estimates(p, &of, false);
    free(of.ids);
}

static double highest(const cJSON *policies, source s) {
    const cJSON *policy;
    double high = 0;
    cJSON_ArrayForEach(policy, policies) {
        const cJSON *layers = cJSON_GetObjectItemCaseSensitive(policy, "layers");
        free(values_of(layers, s, heads_of(layers), &high));
    }
    return high;
}

void report_heads(page *p, const cJSON *policies) {
    const double high_delta = highest(policies, exact_all), high_error = highest(policies, output_error);
    const cJSON *policy;
    cJSON_ArrayForEach(policy, policies)
        policy_heads(p, policy, high_delta, high_error);
}
