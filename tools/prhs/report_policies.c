/* SPDX-License-Identifier: Apache-2.0 */
/* What policies lose, against what they retrieve and read: documents of perplexity and replay. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

/* A policy's run; `text` names the text where a document has several. */
typedef struct entry {
    const cJSON *o;
    const char *name;
    char *label; /* name and text */
    uint32_t number;
} entry;

typedef struct entries {
    entry *all;
    size_t count;
    double tokens; /* mean length of a sequence while it is decoded; NaN: not said */
} entries;

/* A column of a table, or an axis. */
typedef struct measure {
    const char *label, *axis; /* axis NULL: the label */
    double (*get)(const entries *all, const entry *e);
} measure;

/* A number, or a summary with a mean. */
static double mean_of(const cJSON *o, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsObject(x) ? report_number(x, "mean") : report_number(o, key);
}

static double rho(const entries *all, const entry *e) { return (void)all, report_number(e->o, "rho"); }
static double kept(const entries *all, const entry *e) { return (void)all, report_number(e->o, "kept"); }
static double loss(const entries *all, const entry *e) { return (void)all, report_number(e->o, "loss"); }
static double top1(const entries *all, const entry *e) { return (void)all, report_number(e->o, "top1"); }
static double error(const entries *all, const entry *e) { return (void)all, mean_of(e->o, "error"); }
static double delta(const entries *all, const entry *e) { return (void)all, mean_of(e->o, "delta"); }
static double megabytes(const entries *all, const entry *e) { return (void)all, report_number(e->o, "bytes_per_step") * 1e-6; }
static double of_dense(const entries *all, const entry *e) { return (void)all, report_number(e->o, "bytes_of_dense"); }
static double micros(const entries *all, const entry *e) { return (void)all, report_number_at(e->o, "time.median_s") * 1e6; }

/* K and V of what is kept, K of everything where a step retrieves. */
static double share_read(const entries *all, const entry *e) {
    const double k = kept(all, e), r = rho(all, e);
    return k / all->tokens + (isnan(r) ? 0 : r / 2);
}

static double estimate(const entries *all, const entry *e) {
    const double x = report_number_at(e->o, "estimator.mean");
    return (void)all, cJSON_GetObjectItemCaseSensitive(e->o, "estimator") ? x : report_number(e->o, "delta_shared");
}

/* A document without estimators: audits saw all steps, of which a share of ρ retrieved. */
static double exact_shared(const entries *all, const entry *e) {
    const double r = rho(all, e);
    if (cJSON_GetObjectItemCaseSensitive(e->o, "estimator"))
        return report_number_at(e->o, "estimator.exact_mean");
    if (strcmp(report_string(e->o, "grade", ""), "exact") != 0 || !(r < 1) || strncmp(e->name, "cpe", 3) == 0)
        return NAN;
    return (delta(all, e) - (r > 0 ? r * report_number(e->o, "delta_exact_retrieved") : 0)) / (1 - r);
}

static double median_ratio(const entries *all, const entry *e) { return (void)all, report_number_at(e->o, "estimator.median_ratio"); }

static double ratio(const entries *all, const entry *e) { return (estimate(all, e) + 1e-4) / (exact_shared(all, e) + 1e-4); }

/* Length of the name that policies of a kind share. */
static size_t family(const char *name) { return strcspn(name, ","); }

static bool is_dense(const entry *e) { return family(e->name) == 5 && strncmp(e->name, "dense", 5) == 0; }

uint32_t report_style(const char *policy) {
    static const char *const known[PLOT_STYLES] = { "cis-mass", "topk", "cis", "cpe", "streaming", "hshare", "quest", "h2o", "dense" };
    uint32_t sum = 0;
    for (uint32_t i = 0; i < PLOT_STYLES; i++)
        if (strlen(known[i]) == family(policy) && strncmp(known[i], policy, family(policy)) == 0)
            return i;
    for (size_t i = 0; i < family(policy); i++)
        sum += (unsigned char)policy[i];
    return sum % PLOT_STYLES;
}

static void add(entries *all, const cJSON *policies, const char *text) {
    const cJSON *o;
    cJSON_ArrayForEach(o, policies) {
        entry *e = &all->all[all->count++];
        const char *name = report_string(o, "policy", "");
        const size_t size = strlen(name) + (text ? strlen(text) : 0) + 8;
        *e = (entry){ o, name, report_alloc(size, 1), (uint32_t)all->count };
        snprintf(e->label, size, "%s%s%s", name, text ? " · " : "", text ? text : "");
    }
}

static entries collect(const cJSON *root, const char *key) {
    const cJSON *policies = cJSON_GetObjectItemCaseSensitive(root, key), *texts = cJSON_GetObjectItemCaseSensitive(root, "texts"), *text;
    size_t n = (size_t)cJSON_GetArraySize(policies);
    cJSON_ArrayForEach(text, texts)
        n += (size_t)cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(text, "policies"));
    entries all = { report_alloc(n, sizeof *all.all), 0, report_number(root, "context") + (report_number(root, "decode") + 1) / 2 };
    add(&all, policies, NULL);
    cJSON_ArrayForEach(text, texts)
        add(&all, cJSON_GetObjectItemCaseSensitive(text, "policies"), report_string(text, "text", ""));
    return all;
}

static void release(entries *all) {
    for (size_t i = 0; i < all->count; i++)
        free(all->all[i].label);
    free(all->all);
}

/* Whether some policy but dense has both. */
static bool has(const entries *all, const measure *x, const measure *y) {
    for (size_t i = 0; i < all->count; i++)
        if (!is_dense(&all->all[i]) && isfinite(x->get(all, &all->all[i])) && isfinite(y->get(all, &all->all[i])))
            return true;
    return false;
}

/* A series a family; names point into `names`. Dense attention is no point of its own where it is the line that others are held against. */
static size_t by_family(const entries *all, const measure *x, const measure *y, plot_series *series, char (*names)[64]) {
    size_t count = 0;
    for (size_t i = 0; i < all->count; i++) {
        const entry *e = &all->all[i];
        const size_t length = family(e->name) < 63 ? family(e->name) : 63;
        size_t at = 0;
        if (is_dense(e) && y->get != micros)
            continue;
        while (at < count && !(strlen(names[at]) == length && strncmp(names[at], e->name, length) == 0))
            at++;
        if (at == count) {
            snprintf(names[at], sizeof names[at], "%.*s", (int)length, e->name);
            series[count++] = (plot_series){ .name = names[at], .style = report_style(e->name),
                                             .points = report_alloc(all->count, sizeof(plot_point)) };
        }
        series[at].points[series[at].count++] = (plot_point){ x->get(all, e), y->get(all, e), e->label, e->number };
    }
    return count;
}

static void table(page *p, const char *caption, const entries *all, const measure *measures, size_t count) {
    const char *heads[10] = { "#", "<policy" };
    for (size_t i = 0; i < count; i++)
        heads[i + 2] = measures[i].label;
    table_begin(p, caption, heads, count + 2);
    for (size_t i = 0; i < all->count; i++) {
        table_row(p);
        table_number(p, all->all[i].number);
        table_text(p, all->all[i].label);
        for (size_t j = 0; j < count; j++)
            table_number(p, measures[j].get(all, &all->all[i]));
        table_row_end(p);
    }
    table_end(p);
}

/* The plot of measures[0] and [1], with a table of all of them. */
static void figure(page *p, const entries *all, plot what, const measure *measures, size_t count, const plot_series *more) {
    plot_series *series = report_alloc(all->count + 1, sizeof *series);
    char(*names)[64] = report_alloc(all->count + 1, sizeof *names);
    size_t n = 0;
    if (more)
        series[n++] = *more;
    n += by_family(all, &measures[0], &measures[1], series + n, names + n);
    what.series = series;
    what.count = n;
    what.x.label = measures[0].axis;
    what.y.label = measures[1].axis;
    plot_figure(p, &what);
    table(p, what.title, all, measures, count);
    figure_end(p);
    for (size_t i = more ? 1 : 0; i < n; i++)
        free(series[i].points);
    free(series);
    free(names);
}

/* Where dense attention stands on a measure. */
static double of_baseline(const entries *all, const measure *m) {
    for (size_t i = 0; i < all->count; i++)
        if (is_dense(&all->all[i]))
            return m->get(all, &all->all[i]);
    return NAN;
}

static const measure m_rho = { "ρ", "ρ, share of unit-steps that retrieve", rho };
static const measure m_loss = { "loss", "loss, nats a token", loss };
static const measure m_error = { "output error", "mean relative output error", error };
static const measure m_bytes = { "MB read", "K and V read a step, MB", megabytes };
static const measure m_share = { "share read", "K and V read, share of dense", share_read };
static const measure m_micros = { "µs", "median layer step, µs", micros };
static const measure m_delta = { "δ", "δ, mean dropped mass", delta };
static const measure m_hat = { "δ̂", "δ̂, estimate on shared steps", estimate };
static const measure m_exact = { "δ exact", "δ, exact on the same steps", exact_shared };
static const measure m_median = { "median of δ̂ / δ", "median of δ̂ / δ", median_ratio };
static const measure m_ratio = { "δ̂ / δ, each + 0.0001", NULL, ratio }, m_dense = { "of dense", NULL, of_dense };
static const measure m_kept = { "kept tokens", NULL, kept }, m_top1 = { "top-1", NULL, top1 };

static void costs(page *p, const entries *all, const measure *y, const measure *extra) {
    const measure against_rho[] = { m_rho, *y, *extra, m_kept, m_delta }, against_bytes[] = { m_bytes, *y, m_dense, m_rho, m_kept },
                  against_share[] = { m_share, *y, m_rho, m_kept };
    const bool is_loss = y->get == loss;
    if (has(all, &m_rho, y))
        figure(p, all, (plot){ .title = is_loss ? "Loss against ρ" : "Output error against ρ", .y.log = true, .x_line = NAN,
                               .note = "Numbers are those of the table. Fewer retrievals: further left; closer to dense attention: further down." },
               against_rho, 5, NULL);
    if (has(all, &m_bytes, y))
        figure(p, all, (plot){ .title = is_loss ? "Loss against bytes read" : "Output error against bytes read", .y.log = true,
                               .x_line = of_baseline(all, &m_bytes), .x_line_name = "dense attention",
                               .note = "Bytes of K and V that a decode step must read." },
               against_bytes, 5, NULL);
    else if (has(all, &m_share, y))
        figure(p, all, (plot){ .title = "Loss against bytes read, computed", .y.log = true, .x_line = 1, .x_line_name = "dense attention",
                               .note = "The file does not say what was read. Shown is kept / tokens + ρ / 2: K and V of kept tokens, and K of all "
                                       "where a step retrieves; without dense layers and the window's growth." },
               against_share, 4, NULL);
}

static void estimates(page *p, const entries *all) {
    const measure measures[] = { m_exact, m_hat, m_ratio }, medians[] = { m_delta, m_median };
    if (has(all, &m_delta, &m_median))
        figure(p, all, (plot){ .title = "Median of estimated over exact dropped mass", .x_line = NAN,
                               .note = "Each shared step's δ̂ over its exact δ, both + 0.0001; 1 is right." },
               medians, 2, NULL);
    if (has(all, &m_exact, &m_hat))
        figure(p, all, (plot){ .title = "Estimated against exact dropped mass", .x.log = true, .y.log = true, .x_line = NAN, .diagonal = true,
                               .note = "Means over shared steps, by policy. On the line the policy knows exactly what it drops." },
               measures, 3, NULL);
}

static void times(page *p, const entries *all) {
    const measure measures[] = { m_bytes, m_micros, m_dense };
    if (has(all, &m_bytes, &m_micros))
        figure(p, all, (plot){ .title = "Time against bytes read", .x_line = NAN, .note = "Median step of one layer." },
               measures, 3, NULL);
}

static int by_x(const void *a, const void *b) {
    const plot_point *x = a, *y = b;
    return (x->x > y->x) - (x->x < y->x);
}

static void sweep(page *p, const cJSON *root) {
    const measure measures[] = { m_bytes, m_error, m_dense, m_rho, m_kept, m_delta };
    const char *best = report_string(root, "recommended", NULL);
    entries all = collect(root, "points");
    plot_series front = { .name = "not beaten in both", .style = 7, .line = true, .small = true,
                          .points = report_alloc(all.count, sizeof(plot_point)) };
    for (size_t i = 0; i < all.count; i++)
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(all.all[i].o, "front")))
            front.points[front.count++] = (plot_point){ megabytes(&all, &all.all[i]), error(&all, &all.all[i]), all.all[i].label, 0 };
    qsort(front.points, front.count, sizeof *front.points, by_x);
    if (has(&all, &m_bytes, &m_error))
        figure(p, &all, (plot){ .title = "Sweep: output error against bytes read", .y.log = true, .x_line = NAN,
                                .note = "All combinations; the line joins those that no other one beats in both." },
               measures, 6, &front);
    if (best) {
        page_raw(p, "<p>Recommended for the target that was set: <strong>");
        page_text(p, best);
        page_raw(p, "</strong></p>\n");
    }
    free(front.points);
    release(&all);
}

void report_policies(page *p, const report_file *file) {
    const cJSON *points = cJSON_GetObjectItemCaseSensitive(file->root, "sweep"), *text;
    entries all = collect(file->root, "policies");
    costs(p, &all, &m_loss, &m_top1);
    costs(p, &all, &m_error, &m_dense);
    times(p, &all);
    estimates(p, &all);
    release(&all);
    if (cJSON_IsObject(points))
        sweep(p, points);
    report_heads(p, cJSON_GetObjectItemCaseSensitive(file->root, "policies"));
    cJSON_ArrayForEach(text, cJSON_GetObjectItemCaseSensitive(file->root, "texts"))
        report_heads(p, cJSON_GetObjectItemCaseSensitive(text, "policies"));
}
