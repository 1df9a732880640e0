/* SPDX-License-Identifier: Apache-2.0 */
/* Decode steps of a benchmark by context length, each beside the time that its bytes take at the memory's read speed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

enum { CONTEXTS = PLOT_TICKS, SERIES = 64, PANELS = 64 };

typedef struct step {
    const cJSON *o;
    const char *name;
    double tokens, mean, roof; /* tokens of context; µs; NaN: not said */
} step;

/* Steps whose batch, heads and head dimension are the same. */
typedef struct panel {
    double shape[4];
    step *steps;
    size_t count;
} panel;

static double shape_of(const cJSON *row, int i) {
    const cJSON *x = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(row, "shape"), i);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

/* Rows of their own, whose first step is another row. */
static bool is_step(const cJSON *row) {
    const char *name = report_string(row, "name", "");
    return strcmp(report_string(row, "section", ""), "decode steps, by layer") == 0 && name[0] != ' ' &&
           !cJSON_GetObjectItemCaseSensitive(row, "of") && shape_of(row, 1) > 0;
}

static void add(panel *panels, size_t *count, const cJSON *row, size_t most, double read) {
    const double shape[] = { shape_of(row, 0), shape_of(row, 2), shape_of(row, 3), shape_of(row, 4) };
    const double mean = report_number(row, "mean_s");
    size_t at = 0;
    while (at < *count && memcmp(panels[at].shape, shape, sizeof shape) != 0)
        at++;
    if (at == PANELS)
        return;
    if (at == *count) {
        memcpy(panels[at].shape, shape, sizeof shape);
        panels[(*count)++].steps = report_alloc(most, sizeof(step));
    }
    panels[at].steps[panels[at].count++] = (step){ row, report_string(row, "name", ""), shape_of(row, 1),
                                                   1e6 * (isnan(mean) ? report_number(row, "median_s") : mean),
                                                   read > 0 ? 1e6 * report_number(row, "bytes") / read : NAN };
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Different context lengths, ascending. */
static size_t contexts_of(const panel *n, double *contexts) {
    size_t count = 0;
    for (size_t i = 0; i < n->count; i++) {
        size_t j = 0;
        while (j < count && contexts[j] != n->steps[i].tokens)
            j++;
        if (j == count && count < CONTEXTS)
            contexts[count++] = n->steps[i].tokens;
    }
    qsort(contexts, count, sizeof *contexts, by_value);
    return count;
}

static int by_x(const void *a, const void *b) {
    const plot_point *x = a, *y = b;
    return (x->x > y->x) - (x->x < y->x);
}

/* A series a name: its times, then its roofline. */
static size_t lines(const panel *n, plot_series *series, char (*roofs)[96]) {
    size_t count = 0;
    for (size_t i = 0; i < n->count; i++) {
        const step *s = &n->steps[i];
        size_t at = 0;
        while (at < count && strcmp(series[at].name, s->name) != 0)
            at += 2;
        if (at + 2 > SERIES)
            continue;
        if (at == count) {
            const uint32_t style = (uint32_t)(count / 2) % PLOT_STYLES;
            snprintf(roofs[at], sizeof roofs[at], "roofline of: %.70s", s->name);
            series[at] = (plot_series){ .name = s->name, .style = style, .line = true, .points = report_alloc(n->count, sizeof(plot_point)) };
            series[at + 1] = (plot_series){ .name = roofs[at], .style = style, .line = true, .dashed = true, .small = true,
                                            .points = report_alloc(n->count, sizeof(plot_point)) };
            count += 2;
        }
        series[at].points[series[at].count++] = (plot_point){ s->tokens, s->mean, s->name, 0 };
        if (!isnan(s->roof))
            series[at + 1].points[series[at + 1].count++] = (plot_point){ s->tokens, s->roof, roofs[at], 0 };
    }
    for (size_t i = 0; i < count; i++)
        qsort(series[i].points, series[i].count, sizeof *series[i].points, by_x);
    return count;
}

/* Rooflines that no row tells are no series. */
static size_t without_empty(plot_series *series, size_t count) {
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (series[i].count)
            series[kept++] = series[i];
        else
            free(series[i].points);
    return kept;
}

static void table(page *p, const char *title, const panel *n, const double *contexts, size_t count) {
    static const char *const heads[] = { "tokens", "<step", "mean, µs", "roofline, µs", "roof / mean", "median, µs", "worst, µs", "× dense",
                                         "kept", "ρ" };
    table_begin(p, title, heads, sizeof heads / sizeof heads[0]);
    for (size_t c = 0; c < count; c++)
        for (size_t i = 0; i < n->count; i++) {
            const step *s = &n->steps[i];
            if (s->tokens != contexts[c])
                continue;
            table_row(p);
            table_number(p, s->tokens);
            table_text(p, s->name);
            table_number(p, s->mean);
            table_number(p, s->roof);
            table_number(p, s->roof / s->mean);
            table_number(p, 1e6 * report_number(s->o, "median_s"));
            table_number(p, 1e6 * report_number(s->o, "max_s"));
            table_number(p, report_number(s->o, "times_dense"));
            table_number(p, report_number(s->o, "kept"));
            table_number(p, report_number(s->o, "rho"));
            table_row_end(p);
        }
    table_end(p);
}

static void panel_figure(page *p, const panel *n, double read) {
    double contexts[CONTEXTS];
    plot_series series[SERIES];
    char roofs[SERIES][96], title[160], note[200];
    const size_t n_contexts = contexts_of(n, contexts);
    const size_t count = without_empty(series, lines(n, series, roofs));
    snprintf(title, sizeof title, "Decode step of one layer: batch %g, %g query heads, %g KV heads of %g", n->shape[0], n->shape[1], n->shape[2],
             n->shape[3]);
    if (read > 0)
        snprintf(note, sizeof note, "Mean step. Roofline: bytes that must move, at the %.4g GB/s that the memory reads.", read * 1e-9);
    else
        snprintf(note, sizeof note, "Mean step. The file does not say how fast the memory reads: there is no roofline.");
    plot_figure(p, &(plot){ .title = title, .note = note, .x = { "tokens of context", true, contexts, n_contexts },
                            .y = { "µs", true, NULL, 0 }, .series = series, .count = count, .x_line = NAN,
                            .dashed_name = read > 0 ? "dashed, hollow marks: the roofline of the same mark" : NULL });
    table(p, title, n, contexts, n_contexts);
    figure_end(p);
    for (size_t i = 0; i < count; i++)
        free(series[i].points);
}

void report_latency(page *p, const report_file *file) {
    const cJSON *rows = cJSON_GetObjectItemCaseSensitive(file->root, "rows"), *row;
    const double read = report_number(file->root, "read_bytes_per_second");
    panel *panels = report_alloc(PANELS, sizeof *panels);
    size_t count = 0, most = (size_t)cJSON_GetArraySize(rows);
    cJSON_ArrayForEach(row, rows) {
        if (is_step(row))
            add(panels, &count, row, most, read);
    }
    if (!count)
        page_raw(p, "<p>The file holds no decode steps.</p>\n");
    for (size_t i = 0; i < count; i++) {
        panel_figure(p, &panels[i], read);
        free(panels[i].steps);
    }
    free(panels);
}
