/* SPDX-License-Identifier: Apache-2.0 */
/* Dropped mass by layer and query head, and how far its estimate is off there. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { ROWS = 1024, FIELDS = 1 << 16 /* more than these are not drawn */ };

/* What a layer says of a head: a list by head, or an object for each head. */
typedef struct source {
    const char *list, *member;
} source;

static const source exact_all = { "head_delta", "delta.mean" }, exact_shared = { "head_exact", "estimator.exact_mean" },
                    estimated = { "head_estimate", "estimator.mean" };

static double value_at(const cJSON *layer, source s, size_t head) {
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

static void scatter(page *p, const char *policy, const heat *exact, const double *hat) {
    static const char *const heads[] = { "layer", "head", "δ exact", "δ̂", "δ̂ / δ, each + 0.0001" };
    const size_t n = exact->rows * exact->columns;
    plot_point *points = report_alloc(n, sizeof *points);
    char(*names)[40] = report_alloc(n, sizeof *names);
    plot_series series = { .name = "a query head of a layer", .style = report_style(policy), .small = true, .points = points };
    plot what = { .title = exact->title, .note = exact->note, .x = { "exact δ on shared steps, + 0.0001", true, NULL, 0 },
                  .y = { "δ̂, its estimate, + 0.0001", true, NULL, 0 }, .series = &series, .count = 1, .x_line = NAN, .diagonal = true };
    for (size_t i = 0; i < n; i++) {
        if (isnan(exact->values[i]) || isnan(hat[i]))
            continue;
        snprintf(names[i], sizeof names[i], "layer %.0f, head %zu", exact->row_ids[i / exact->columns], i % exact->columns);
        points[series.count++] = (plot_point){ exact->values[i] + 1e-4, hat[i] + 1e-4, names[i], 0 };
    }
    plot_figure(p, &what);
    table_begin(p, exact->title, heads, 5);
    for (size_t i = 0; i < n; i++) {
        if (isnan(exact->values[i]) || isnan(hat[i]))
            continue;
        table_row(p);
        table_number(p, exact->row_ids[i / exact->columns]);
        table_number(p, (double)(i % exact->columns));
        table_number(p, exact->values[i]);
        table_number(p, hat[i]);
        table_number(p, (hat[i] + 1e-4) / (exact->values[i] + 1e-4));
        table_row_end(p);
    }
    table_end(p);
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

static void policy_heads(page *p, const cJSON *policy, double high) {
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(policy, "layers");
    const char *name = report_string(policy, "policy", "");
    const size_t heads = heads_of(layers);
    double ignored = 0, *all = values_of(layers, exact_all, heads, &ignored), *ids = ids_of(layers);
    double *shared = values_of(layers, exact_shared, heads, &ignored), *hat = values_of(layers, estimated, heads, &ignored);
    char *title = titled("δ by layer and query head", name), *checked = titled("δ̂ against δ by layer and query head", name);
    heat h = { .title = title, .note = "Mean dropped mass of sparse steps; one scale for all policies of the file.", .row_name = "layer",
               .column_name = "head", .values = all, .row_ids = ids, .rows = (size_t)cJSON_GetArraySize(layers), .columns = heads,
               .high = high };
    if (all) {
        heat_figure(p, &h);
        heat_table(p, &h);
        figure_end(p);
    }
    if (shared && hat) {
        h.title = checked;
        h.note = "Means over shared steps.";
        h.values = shared;
        scatter(p, name, &h, hat);
    }
    free(title);
    free(checked);
    free(all);
    free(shared);
    free(hat);
    free(ids);
}

void report_heads(page *p, const cJSON *policies) {
    const cJSON *policy;
    double high = 0;
    cJSON_ArrayForEach(policy, policies) {
        const cJSON *layers = cJSON_GetObjectItemCaseSensitive(policy, "layers");
        free(values_of(layers, exact_all, heads_of(layers), &high));
    }
    cJSON_ArrayForEach(policy, policies)
        policy_heads(p, policy, high);
}
