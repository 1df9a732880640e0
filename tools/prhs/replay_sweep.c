/* SPDX-License-Identifier: Apache-2.0 */
/* prhs replay --sweep: a grid of parameters, its Pareto front, and what meets a target with the fewest bytes. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

enum { GRID_MAX = 4096 };

bool replay_list_parse(const char *option, const char *key, const char *text, replay_list *list) {
    char *save = NULL;
    *list = (replay_list){ .key = key };
    bool good = strlen(text) < sizeof list->text;
    if (good)
        strcpy(list->text, text);
    for (char *word = strtok_r(list->text, ",", &save); good && word; word = strtok_r(NULL, ",", &save)) {
        char *end;
        strtod(word, &end);
        good = !*end && end != word && list->count < REPLAY_VALUES;
        if (good)
            list->values[list->count++] = word;
    }
    if (good && list->count)
        return true;
    fprintf(stderr, "prhs: %s takes up to %d numbers with commas between them, not '%s'\n", option, REPLAY_VALUES, text);
    return false;
}

/* A point of the grid: what is left of a result when the next one is run. */
typedef struct point {
    char name[256];
    double bytes, of_dense, error, error_p99, delta, rho, kept, missed;
    bool front;
} point;

typedef struct grid {
    point *points;
    uint32_t count, room;
} grid;

/* Point i's words: the policy, then a value of each list. */
static bool name_of(const replay_options *o, const char *policy, uint32_t i, char *name, size_t room) {
    size_t n = (size_t)snprintf(name, room, "%s", policy);
    for (int l = 0; l < REPLAY_LISTS && n < room; l++) {
        const replay_list *list = &o->lists[l];
        if (!list->count)
            continue;
        n += (size_t)snprintf(name + n, room - n, ",%s=%s", list->key, list->values[i % list->count]);
        i /= list->count;
    }
    return n < room;
}

static bool add_point(replay *r, const char *name, grid *g) {
    replay_result x;
    bool ok = replay_policy(r, name, REPLAY_ACCURACY, &x);
    if (ok) {
        point *p = &g->points[g->count++];
        *p = (point){ .bytes = x.bytes,
                      .of_dense = x.bytes / x.dense_bytes,
                      .error = x.error.mean,
                      .error_p99 = x.error.p99,
                      .delta = x.delta.mean,
                      .rho = x.stats.rho,
                      .kept = x.stats.kept,
                      .missed = (double)x.stats.missed };
        snprintf(p->name, sizeof p->name, "%s", name);
    }
    replay_result_free(r, &x);
    return ok;
}

/* Combinations that contradict themselves (an m larger than a small k) are left out, with the sentence. */
static bool run_grid(replay *r, grid *g) {
    const replay_options *o = r->o;
    char name[256];
    prhs_policy policy;
    comparator rival;
    uint32_t combinations = g->room / o->policy_count, skipped = 0;
    for (uint32_t p = 0; p < o->policy_count; p++)
        for (uint32_t i = 0; i < combinations; i++) {
            if (!name_of(o, o->policies[p], i, name, sizeof name)) {
                fprintf(stderr, "prhs replay: the policy's name is too long\n");
                return false;
            }
            if (!replay_parse(name, r->shape.layers, &policy, &rival))
                skipped++;
            else if (!add_point(r, name, g))
                return false;
        }
    if (skipped)
        fprintf(stderr, "prhs replay: %u combinations left out\n", skipped);
    return g->count > 0;
}

static int by_bytes(const void *a, const void *b) {
    const point *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return (x->error > y->error) - (x->error < y->error);
}

/* Sorted by bytes, a point is on the front if its error is below that of all before it. NaN never is. */
static void find_front(grid *g) {
    double best = INFINITY;
    qsort(g->points, g->count, sizeof *g->points, by_bytes);
    for (uint32_t i = 0; i < g->count; i++) {
        g->points[i].front = g->points[i].error < best;
        if (g->points[i].front)
            best = g->points[i].error;
    }
}

/* The first, since they are sorted. A policy that drops nothing has no dropped mass: it meets every target of one. */
static const point *recommend(const replay_options *o, const grid *g) {
    for (uint32_t i = 0; i < g->count; i++)
        if ((isnan(o->target_error) || g->points[i].error <= o->target_error) &&
            (isnan(o->target_delta) || isnan(g->points[i].delta) || g->points[i].delta <= o->target_delta))
            return &g->points[i];
    return NULL;
}

static void print_front(const replay *r, const grid *g, const point *best) {
    FILE *to = r->o->json && strcmp(r->o->json, "-") == 0 ? stderr : stdout;
    fprintf(to, "%u combinations; those that no other one beats in both bytes and mean error:\n", g->count);
    fprintf(to, "%-48s %8s %8s %8s %8s %8s %6s %6s\n", "policy", "KiB", "of dense", "error", "p99", "delta", "rho", "kept");
    for (uint32_t i = 0; i < g->count; i++) {
        const point *p = &g->points[i];
        if (p->front || p == best)
            fprintf(to, "%-48s %8.0f %8.3f %8.4f %8.4f %8.4f %6.3f %6.0f%s\n", p->name, p->bytes / 1024, p->of_dense, p->error,
                    p->error_p99, p->delta, p->rho, p->kept, p == best ? "  <- recommended" : "");
    }
}

static cJSON *document(const grid *g, const point *best) {
    cJSON *o = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(o, "points");
    for (uint32_t i = 0; i < g->count; i++) {
        const point *p = &g->points[i];
        const struct {
            const char *key;
            double value;
        } numbers[] = { { "bytes_per_step", p->bytes },
                        { "bytes_of_dense", p->of_dense },
                        { "error", p->error },
                        { "error_p99", p->error_p99 },
                        { "delta", p->delta },
                        { "rho", p->rho },
                        { "kept", p->kept },
                        { "missed", p->missed } };
        cJSON *at = cJSON_CreateObject();
        cJSON_AddStringToObject(at, "policy", p->name);
        for (size_t j = 0; j < sizeof numbers / sizeof numbers[0]; j++)
            if (isnan(numbers[j].value) || isinf(numbers[j].value))
                cJSON_AddNullToObject(at, numbers[j].key);
            else
                cJSON_AddNumberToObject(at, numbers[j].key, numbers[j].value);
        cJSON_AddBoolToObject(at, "front", p->front);
        cJSON_AddItemToArray(list, at);
    }
    if (best)
        cJSON_AddStringToObject(o, "recommended", best->name);
    else
        cJSON_AddNullToObject(o, "recommended");
    return o;
}

int replay_sweep(replay *r) {
    const replay_options *o = r->o;
    uint64_t size = o->policy_count;
    grid g = { 0 };
    for (int i = 0; i < REPLAY_LISTS; i++)
        size *= o->lists[i].count ? o->lists[i].count : 1;
    if (size > GRID_MAX) {
        fprintf(stderr, "prhs replay: the lists make %llu combinations; %d are the most\n", (unsigned long long)size, GRID_MAX);
        return TOOL_USAGE;
    }
    g.room = (uint32_t)size;
    g.points = replay_alloc(size, sizeof *g.points);
    bool ok = g.points && (replay_head_line(r), run_grid(r, &g)), met = true;
    if (ok) {
        const bool wanted = !isnan(o->target_error) || !isnan(o->target_delta);
        find_front(&g);
        const point *best = wanted ? recommend(o, &g) : NULL;
        met = !wanted || best;
        print_front(r, &g, best);
        if (!met)
            fprintf(stderr, "prhs replay: no combination meets the target\n");
        ok = !o->json || replay_json(r, NULL, 0, "sweep", document(&g, best));
    }
    free(g.points);
    return ok && met ? TOOL_OK : TOOL_FAILED;
}
