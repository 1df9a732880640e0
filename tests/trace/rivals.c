/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quest and H2O in `prhs replay` beside their papers' rules in double precision, on a trace of random data: what each head drops,
 * how far its output is off, tokens and bytes. A trace without the prompts' queries must be refused for H2O, and for nothing
 * else. usage: trace-rivals PRHS FOLDER [BACKEND [CAPS]]
 */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"
#include "synth.h"

enum { MOST_TOKENS = 256, MOST_HEADS = 8, MOST_DIM = 64 };

/* What the rules come to; sums over the steps of all sequences. */
typedef struct expected {
    double delta[MOST_HEADS], error[MOST_HEADS], error_max[MOST_HEADS], attended;
} expected;

/* A layer of a sequence, rounded as the file has it. */
typedef struct scene {
    const synth *s;
    uint32_t layer, seq, context, steps;
    double q[MOST_TOKENS][MOST_HEADS][MOST_DIM], k[MOST_TOKENS][MOST_HEADS][MOST_DIM], v[MOST_TOKENS][MOST_HEADS][MOST_DIM];
    double given[MOST_HEADS][MOST_TOKENS];
    bool kept[MOST_HEADS][MOST_TOKENS]; /* H2O: not evicted */
} scene;

static scene x;

static double rounded(trace_kind kind, uint32_t at, size_t i) {
    return (double)trace_from_f16(trace_to_f16(synth_value(x.s, x.layer, x.seq, kind, at, i)));
}

static void set_scene(const synth *s, uint32_t layer, uint32_t seq) {
    const trace_shape *p = &s->shape;
    memset(&x, 0, sizeof x);
    x.s = s;
    x.layer = layer;
    x.seq = seq;
    x.context = s->contexts[seq];
    x.steps = s->steps[seq];
    for (uint32_t at = 0; at < x.context + x.steps; at++)
        for (uint32_t d = 0; d < p->dim; d++) {
            for (uint32_t h = 0; h < p->heads; h++)
                x.q[at][h][d] = rounded(TRACE_Q, at, (size_t)h * p->dim + d);
            for (uint32_t h = 0; h < p->kv_heads; h++) {
                x.k[at][h][d] = rounded(TRACE_K, at, (size_t)h * p->dim + d);
                x.v[at][h][d] = rounded(TRACE_V, at, (size_t)h * p->dim + d);
            }
        }
}

static uint32_t kv_head(uint32_t h) { return h / (x.s->shape.heads / x.s->shape.kv_heads); }

/* Weights of the first n tokens for the row at n - 1 and head h; `in` NULL: all. They add up to 1. Returns the share of all that
 * `in` has. */
static double softmax(uint32_t h, uint32_t n, const bool *in, double *w) {
    double top = -INFINITY, all = 0.0, some = 0.0;
    for (uint32_t j = 0; j < n; j++) {
        w[j] = 0.0;
        for (uint32_t d = 0; d < x.s->shape.dim; d++)
            w[j] += x.q[n - 1][h][d] * x.k[j][kv_head(h)][d] * (double)x.s->shape.scale;
        top = fmax(top, w[j]);
    }
    for (uint32_t j = 0; j < n; j++) {
        w[j] = exp(w[j] - top);
        all += w[j];
        some += !in || in[j] ? w[j] : 0.0;
    }
    for (uint32_t j = 0; j < n; j++)
        w[j] = !in || in[j] ? w[j] / some : 0.0;
    return some / all;
}

static void judge(uint32_t h, uint32_t n, const bool *in, expected *e) {
    double w[MOST_TOKENS], all[MOST_TOKENS], off = 0.0, size = 0.0;
    e->delta[h] += 1.0 - softmax(h, n, in, w);
    softmax(h, n, NULL, all);
    for (uint32_t d = 0; d < x.s->shape.dim; d++) {
        double got = 0.0, want = 0.0;
        for (uint32_t j = 0; j < n; j++) {
            got += w[j] * x.v[j][kv_head(h)][d];
            want += all[j] * x.v[j][kv_head(h)][d];
        }
        off += (got - want) * (got - want);
        size += want * want;
    }
    e->error[h] += sqrt(off / size);
    e->error_max[h] = fmax(e->error_max[h], sqrt(off / size));
}

/* The token of largest value that `in` lacks, of those below n; -1: none. */
static int best(const double *value, const bool *in, uint32_t n) {
    int found = -1;
    for (uint32_t j = 0; j < n; j++)
        if (!in[j] && (found < 0 || value[j] > value[found]))
            found = (int)j;
    return found;
}

static double count(const bool *in, uint32_t n) {
    double sum = 0.0;
    for (uint32_t j = 0; j < n; j++)
        sum += in[j];
    return sum;
}

/* Pages of `page` tokens; k / page of them, three at least, the last one always. */
static void quest(uint32_t k, uint32_t page, expected *e) {
    for (uint32_t n = x.context + 1; n <= x.context + x.steps; n++)
        for (uint32_t h = 0; h < x.s->shape.heads; h++) {
            const uint32_t last = (n - 1) / page, budget = (k / page > 3 ? k / page : 3) - 1;
            double bound[MOST_TOKENS] = { 0 };
            bool taken[MOST_TOKENS] = { false }, in[MOST_TOKENS] = { false };
            for (uint32_t p = 0; p < last; p++)
                for (uint32_t d = 0; d < x.s->shape.dim; d++) {
                    double most = -INFINITY;
                    for (uint32_t j = p * page; j < (p + 1) * page; j++)
                        most = fmax(most, x.q[n - 1][h][d] * x.k[j][kv_head(h)][d]);
                    bound[p] += most;
                }
            for (uint32_t i = 0; i < budget && i < last; i++)
                taken[best(bound, taken, last)] = true;
            for (uint32_t j = 0; j < n; j++)
                in[j] = j / page == last || taken[j / page];
            judge(h, n, in, e);
            e->attended += count(in, n);
        }
}

/* `recent` tokens and k behind them, by what they were given by rows so far: the prompt's see all, later ones what is kept. */
static void h2o(uint32_t k, uint32_t recent, expected *e) {
    const uint32_t group = x.s->shape.heads / x.s->shape.kv_heads;
    double w[MOST_TOKENS];
    for (uint32_t n = 1; n <= x.context; n++)
        for (uint32_t h = 0; h < x.s->shape.heads; h++) {
            softmax(h, n, NULL, w);
            for (uint32_t j = 0; j < n; j++)
                x.given[kv_head(h)][j] += w[j];
        }
    for (uint32_t hk = 0; hk < x.s->shape.kv_heads; hk++)
        for (uint32_t n = x.context + 1; n <= x.context + x.steps; n++) {
            const uint32_t behind = n > recent ? n - recent : 0;
            bool *kept = x.kept[hk], in[MOST_TOKENS] = { false };
            if (n == x.context + 1)
                for (uint32_t j = 0; j < x.context; j++)
                    kept[j] = true;
            kept[n - 1] = true;
            while (count(kept, behind) > k) {
                int least = -1;
                for (uint32_t j = 0; j < behind; j++)
                    if (kept[j] && (least < 0 || x.given[hk][j] < x.given[hk][least]))
                        least = (int)j;
                kept[least] = false;
            }
            memcpy(in, kept, n);
            e->attended += count(in, n);
            for (uint32_t g = 0; g < group; g++) {
                judge(hk * group + g, n, in, e);
                softmax(hk * group + g, n, in, w);
                for (uint32_t j = 0; j < n; j++)
                    x.given[hk][j] += w[j];
            }
        }
}

/* --- the program -------------------------------------------------------------------------------------------------------- */

typedef struct rival {
    const char *text;
    bool h2o;
    uint32_t k, page_or_recent, dense;
} rival;

static double number(const cJSON *o, const char *key) {
    const cJSON *n = cJSON_GetObjectItem(o, key);
    return cJSON_IsNumber(n) ? n->valuedouble : NAN;
}

static void near(const rival *r, uint32_t layer, int head, const char *what, double got, double want, double bar) {
    check(fabs(got - want) <= bar, "%s: layer %u head %d: %s is %.9g instead of %.9g", r->text, layer, head, what, got, want);
}

static double check_layer(const synth *s, const rival *r, uint32_t layer, const cJSON *o) {
    expected e = { .attended = 0 };
    double steps = 0;
    for (uint32_t seq = 0; seq < s->shape.seqs; seq++) {
        set_scene(s, layer, seq);
        (r->h2o ? h2o : quest)(layer < r->dense ? MOST_TOKENS * r->page_or_recent : r->k, r->page_or_recent, &e);
        steps += s->steps[seq];
    }
    for (uint32_t h = 0; h < s->shape.heads; h++) {
        const cJSON *head = cJSON_GetArrayItem(cJSON_GetObjectItem(o, "heads"), (int)h);
        const cJSON *delta = cJSON_GetObjectItem(head, "delta"), *error = cJSON_GetObjectItem(head, "error");
        near(r, layer, (int)h, "steps", number(error, "n"), steps, 0);
        near(r, layer, (int)h, "mean error", number(error, "mean"), e.error[h] / steps, 4e-6 + 1e-5 * e.error[h] / steps);
        near(r, layer, (int)h, "largest error", number(error, "max"), e.error_max[h], 8e-6 + 1e-5 * e.error_max[h]);
        if (layer < r->dense)
            check(number(delta, "n") == 0, "%s: a mass in dense layer %u", r->text, layer);
        else
            near(r, layer, (int)h, "mean delta", number(delta, "mean"), e.delta[h] / steps, 2e-6);
    }
    const uint32_t lists = r->h2o ? s->shape.kv_heads : s->shape.heads;
    if (layer >= r->dense)
        near(r, layer, -1, "kept", number(o, "kept"), e.attended / (steps * lists), 1e-9 * e.attended);
    /* Two rows for every token and list, in a dense layer for every KV head; Quest's pages have two rows each. */
    const double rows = layer < r->dense ? 2 * e.attended / lists * s->shape.kv_heads : 2 * e.attended;
    double pages = 0;
    for (uint32_t seq = 0; seq < s->shape.seqs && !r->h2o && layer >= r->dense; seq++)
        for (uint32_t i = 1; i <= s->steps[seq]; i++)
            pages += 2.0 * (s->contexts[seq] + i) / r->page_or_recent * s->shape.kv_heads;
    return (rows + pages) * 2 * s->shape.dim / steps;
}

static char path[512], json[512];

static int run(const char *program, const char *device, const char *words, cJSON **root) {
    char command[4096];
    size_t size;
    snprintf(command, sizeof command, "%s replay %s %s --json %s %s", program, device, words, json, path);
    fflush(stdout);
    remove(json);
    const int status = system(command);
    *root = NULL;
    if (access(json, R_OK) == 0) {
        unsigned char *text = synth_bytes(json, &size);
        text[size] = 0;
        *root = cJSON_Parse((const char *)text);
        free(text);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void compare(const char *program, const char *device, const synth *s, const rival *r) {
    char words[256];
    cJSON *root;
    snprintf(words, sizeof words, "--policy topk,k=16,sinks=2,local=8 --policy %s", r->text);
    const int status = run(program, device, words, &root);
    if (status == 77)
        exit(77);
    check(status == 0 && root, "%s: status %d", r->text, status);
    const cJSON *o = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "policies"), 1);
    const cJSON *layers = cJSON_GetObjectItem(o, "layers");
    check(cJSON_IsTrue(cJSON_GetObjectItem(o, "comparator")) && !cJSON_GetObjectItem(o, "time"), "%s: what it is", r->text);
    double bytes = 0;
    for (uint32_t i = 0; i < s->shape.layer_count; i++)
        bytes += check_layer(s, r, s->shape.first_layer + i, cJSON_GetArrayItem(layers, (int)i));
    near(r, 0, -1, "bytes", number(o, "bytes_per_step"), bytes, 1e-9 * bytes);
    near(r, 0, -1, "rho", number(o, "rho"), r->h2o ? 0.0 : 2.0 / r->page_or_recent, 1e-12);
    cJSON_Delete(root);
}

int main(int argc, char **argv) {
    static const uint32_t contexts[] = { 150, 61, 97 }, steps[] = { 21, 13, 70 };
    static const rival rivals[] = { { "quest,k=48,page=8,dense=1", false, 48, 8, 1 },
                                    { "quest,k=16,page=16,dense=0", false, 16, 16, 0 },
                                    { "h2o,k=20,recent=12", true, 20, 12, 0 },
                                    { "h2o,k=7,recent=100,dense=2", true, 7, 100, 2 } };
    synth s = { .shape = { 3, 1, 2, 6, 2, 64, 0.1f, 3, 1 }, .contexts = contexts, .steps = steps, .seed = 3, .drift = 0.7f };
    char device[128];
    cJSON *root;
    if (argc < 3)
        return 2;
    snprintf(device, sizeof device, "--backend %.40s --caps %.40s", argc > 3 ? argv[3] : "cpu", argc > 4 ? argv[4] : "ffffffff");
    snprintf(path, sizeof path, "%.400s/rivals-%ld.trace", argv[2], (long)getpid());
    snprintf(json, sizeof json, "%.400s/rivals-%ld.json", argv[2], (long)getpid());
    synth_write(&s, path);
    for (size_t i = 0; i < sizeof rivals / sizeof rivals[0]; i++)
        compare(argv[1], device, &s, &rivals[i]);
    check(run(argv[1], device, "--sweep --policy quest,dense=0 --k 48,96", &root) == 0 &&
              cJSON_GetArraySize(cJSON_GetObjectItem(cJSON_GetObjectItem(root, "sweep"), "points")) == 2,
          "a sweep of quest's tokens");
    cJSON_Delete(root);
    s.shape.prompts = 0;
    synth_write(&s, path);
    check(run(argv[1], device, "--policy h2o,k=20,recent=12", &root) == 1, "h2o without the prompts' queries");
    cJSON_Delete(root);
    check(run(argv[1], device, "--policy quest,k=48,page=8", &root) == 0, "quest without the prompts' queries");
    cJSON_Delete(root);
    remove(path);
    remove(json);
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
