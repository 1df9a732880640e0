/* SPDX-License-Identifier: Apache-2.0 */
/* prhs tune: which candidate is best, and where the answer goes. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune.h"

const char *const tune_ops[] = { "append", "score", "select", "moments", "attend", "gate", "merge", "prefill", NULL };

/* Gains below this are noise, and no reason for a row that differs. */
#define NOISE 0.02

void tune_op_of(const char *name, char op[16]) { snprintf(op, 16, "%.*s", (int)strcspn(name, " "), name); }

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static tune_cost spread(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return (tune_cost){ n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2, values[0], values[n - 1] };
}

/* Of one round; 0: not measured. */
static double cost_of_round(const tune *t, uint32_t shape, const char *op, int c, int round) {
    double sum = 0, first[TUNE_ROUNDS];
    int n = 0;
    for (int i = 0; i < t->names[shape]; i++) {
        const tune_sample *s = &t->samples[shape][i];
        char mine[16];
        tune_op_of(s->name, mine);
        memcpy(first, s->median[0], sizeof first);
        const double of = spread(first, t->rounds).median;
        if (strcmp(mine, op) != 0 || of <= 0 || s->median[c][round] <= 0)
            continue;
        sum += log(s->median[c][round] / of);
        n++;
    }
    return n ? exp(sum / n) : 0;
}

tune_cost tune_cost_of(const tune *t, uint32_t shape, const char *op, int c) {
    double costs[TUNE_ROUNDS];
    for (int r = 0; r < t->rounds; r++)
        costs[r] = cost_of_round(t, shape, op, c, r);
    return spread(costs, t->rounds);
}

bool tune_measured(const tune *t, uint32_t shape, const char *op) { return tune_cost_of(t, shape, op, 0).least > 0; }

int tune_best(const tune *t, uint32_t shape, const char *op) {
    const tune_cost first = tune_cost_of(t, shape, op, 0);
    double least = first.median * (1 - NOISE);
    int best = 0;
    for (int c = 1; c < t->candidates; c++) {
        const tune_cost cost = tune_cost_of(t, shape, op, c);
        if (cost.least > 0 && cost.median < least && cost.greatest < first.least) {
            least = cost.median;
            best = c;
        }
    }
    return best;
}

static const char *dtype_of(const tune *t) { return t->o.dtype == PRHS_F32 ? "f32" : t->o.dtype == PRHS_F16 ? "f16" : "bf16"; }

int tune_row(const tune *t, const bench_shape *s, const char *op, int groups, char *line, size_t size) {
    return snprintf(line, size, "X(%s, %s, %s, %s, %u, %u, %d)\n", prhs_backend_name(t->info.backend), t->device_class, op, dtype_of(t), s->dim,
                    s->heads / s->kv_heads, groups);
}

void tune_print(const tune *t, FILE *f) {
    fprintf(f, "%s: %s (%s), class %s, %u compute units\n", prhs_backend_name(t->info.backend), t->info.name, t->info.platform, t->device_class,
            t->info.compute_units);
    for (uint32_t i = 0; i < t->o.shape_count; i++) {
        const bench_shape *s = &t->o.shapes[i];
        fprintf(f, "\n%u x %u tokens, %u query heads, %u KV heads of %u, %s: time with n work-groups a compute unit over that with %d\n", s->batch,
                s->n, s->heads, s->kv_heads, s->dim, dtype_of(t), t->groups[0]);
        fprintf(f, "  %-10s", "");
        for (int c = 0; c < t->candidates; c++)
            fprintf(f, " %6d", t->groups[c]);
        fprintf(f, "   best\n");
        for (const char *const *op = tune_ops; *op; op++) {
            if (!tune_measured(t, i, *op))
                continue;
            fprintf(f, "  %-10s", *op);
            for (int c = 0; c < t->candidates; c++)
                fprintf(f, " %6.3f", tune_cost_of(t, i, *op, c).median);
            fprintf(f, "   %d\n", t->groups[tune_best(t, i, *op)]);
        }
    }
    fprintf(f, "\n");
}

/* Rows of two shapes with equal heads that share and head dimension would be one and the same: the later shape's counts. */
static bool repeated(const tune *t, uint32_t shape) {
    const bench_shape *a = &t->o.shapes[shape];
    for (uint32_t i = shape + 1; i < t->o.shape_count; i++) {
        const bench_shape *b = &t->o.shapes[i];
        if (a->dim == b->dim && a->heads / a->kv_heads == b->heads / b->kv_heads)
            return true;
    }
    return false;
}

/* All rows, or with `line` whether it is an older version of one of them. */
static bool rows(const tune *t, FILE *f, const char *line) {
    for (uint32_t i = 0; i < t->o.shape_count; i++)
        for (const char *const *op = tune_ops; *op; op++) {
            char row[160];
            if (repeated(t, i) || !tune_measured(t, i, *op))
                continue;
            tune_row(t, &t->o.shapes[i], *op, t->groups[tune_best(t, i, *op)], row, sizeof row);
            const size_t key = (size_t)(strrchr(row, ',') - row);
            if (line && strncmp(line, row, key + 1) == 0)
                return true;
            if (f)
                fputs(row, f);
        }
    return false;
}

bool tune_write(const tune *t) {
    char part[1024], line[512];
    FILE *old = fopen(t->write, "r");
    if (snprintf(part, sizeof part, "%s.part", t->write) >= (int)sizeof part)
        part[0] = '\0';
    FILE *f = fopen(part, "w");
    if (f && !old)
        fprintf(f, "/* Made by prhs tune on %s. */\n", t->info.name);
    while (f && old && fgets(line, sizeof line, old))
        if (!rows(t, NULL, line))
            fputs(line, f);
    if (old)
        fclose(old);
    if (f)
        rows(t, f, NULL);
    const bool good = f && !ferror(f) && fclose(f) == 0 && rename(part, t->write) == 0;
    if (!good)
        fprintf(stderr, "prhs tune: could not write %s\n", t->write);
    return good;
}

static cJSON *shape_of(const tune *t, uint32_t i) {
    const bench_shape *s = &t->o.shapes[i];
    const double numbers[] = { s->batch, s->n, s->heads, s->kv_heads, s->dim };
    cJSON *shape = cJSON_CreateObject();
    cJSON_AddItemToObject(shape, "shape", cJSON_CreateDoubleArray(numbers, 5));
    cJSON *best = cJSON_AddObjectToObject(shape, "best"), *medians = cJSON_AddObjectToObject(shape, "median_s");
    for (const char *const *op = tune_ops; *op; op++)
        if (tune_measured(t, i, *op))
            cJSON_AddNumberToObject(best, *op, t->groups[tune_best(t, i, *op)]);
    for (int k = 0; k < t->names[i]; k++) {
        cJSON *all = cJSON_AddArrayToObject(medians, t->samples[i][k].name);
        for (int c = 0; c < t->candidates; c++)
            cJSON_AddItemToArray(all, cJSON_CreateDoubleArray(t->samples[i][k].median[c], t->rounds));
    }
    return shape;
}

bool tune_json(const tune *t) {
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "backend", prhs_backend_name(t->info.backend));
    cJSON_AddStringToObject(root, "device", t->info.name);
    cJSON_AddStringToObject(root, "driver", t->info.driver);
    cJSON_AddStringToObject(root, "class", t->device_class);
    cJSON_AddNumberToObject(root, "compute_units", t->info.compute_units);
    cJSON_AddStringToObject(root, "dtype", dtype_of(t));
    cJSON_AddItemToObject(root, "groups", cJSON_CreateIntArray(t->groups, t->candidates));
    cJSON *shapes = cJSON_AddArrayToObject(root, "shapes");
    for (uint32_t i = 0; i < t->o.shape_count; i++)
        cJSON_AddItemToArray(shapes, shape_of(t, i));
    char *text = cJSON_Print(root);
    const bool standard = strcmp(t->o.json, "-") == 0;
    FILE *f = standard ? stdout : fopen(t->o.json, "w");
    bool good = text && f && fprintf(f, "%s\n", text) > 0;
    if (f && !standard)
        good = fclose(f) == 0 && good;
    if (!good)
        fprintf(stderr, "prhs tune: could not write %s\n", t->o.json);
    cJSON_free(text);
    cJSON_Delete(root);
    return good;
}
