/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

volatile sig_atomic_t interrupted;

bool parse_u32(const char *text, uint32_t *out) {
    char *end;
    errno = 0;
    unsigned long x = strtoul(text, &end, 10);
    if (end == text || *end || errno || x > UINT32_MAX || text[0] == '-')
        return false;
    *out = (uint32_t)x;
    return true;
}

bool parse_device(const char *text, common_options *o) {
    const char *colon = strchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : strlen(text);
    o->index = 0;
    if (colon && !parse_u32(colon + 1, &o->index))
        return false;
    if (n == 3 && memcmp(text, "cpu", n) == 0)
        o->backend = PRHS_BACKEND_CPU;
    else if (n == 6 && memcmp(text, "opencl", n) == 0)
        o->backend = PRHS_BACKEND_OPENCL;
    else if (n == 4 && memcmp(text, "cuda", n) == 0)
        o->backend = PRHS_BACKEND_CUDA;
    else if (n == 3 && memcmp(text, "any", n) == 0)
        o->backend = PRHS_BACKEND_ANY;
    else
        return false;
    return true;
}

bool parse_kv(const char *text, common_options *o) {
    static const char *const names[] = { "f32", "f16", "bf16" };
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            o->kv_dtype = (prhs_dtype)i;
            return true;
        }
    return false;
}

bool parse_weights(const char *text, common_options *o) {
    o->half = strcmp(text, "f16") == 0;
    return o->half || strcmp(text, "f32") == 0;
}

/* Names of values that are not numbers. */
static bool parse_word(const char *key, const char *value, prhs_policy *p) {
    static const struct {
        const char *key, *value;
        int number;
    } words[] = {
        { "gate", "none", PRHS_GATE_NONE }, { "gate", "cosine", PRHS_GATE_COSINE }, { "gate", "mass", PRHS_GATE_MASS },
        { "residual", "none", PRHS_RESIDUAL_NONE }, { "residual", "mean", PRHS_RESIDUAL_MEAN },
        { "join", "sum", PRHS_JOIN_SUM }, { "join", "max", PRHS_JOIN_MAX }, { "join", "head", PRHS_JOIN_PER_HEAD },
    };
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(key, words[i].key) == 0 && strcmp(value, words[i].value) == 0) {
            if (key[0] == 'g')
                p->gate = (prhs_gate)words[i].number;
            else if (key[0] == 'r')
                p->residual = (prhs_residual)words[i].number;
            else
                p->join = (prhs_join)words[i].number;
            return true;
        }
    return false;
}

static bool parse_number(const char *key, const char *value, prhs_policy *p) {
    const struct {
        const char *key;
        uint32_t *to;
    } integers[] = {
        { "k", &p->k },           { "sinks", &p->sinks },       { "local", &p->local },        { "dense", &p->dense_layers },
        { "n", &p->min_sparse_n }, { "s", &p->block },          { "m", &p->dilate_m },         { "rb", &p->dilate_back },
        { "rf", &p->dilate_ahead }, { "g", &p->granularity },   { "psaw", &p->psaw },          { "psaw_layer", &p->psaw_layer },
        { "etf", &p->etf },       { "etf_layer", &p->etf_layer },
    };
    const struct {
        const char *key;
        float *to;
    } reals[] = {
        { "tau", &p->tau }, { "floor", &p->tau }, { "eps", &p->eps }, { "phi", &p->psaw_phi }, { "alpha", &p->psaw_alpha },
        { "psi", &p->etf_psi }, { "gamma", &p->etf_gamma },
    };
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++)
        if (strcmp(key, integers[i].key) == 0)
            return parse_u32(value, integers[i].to);
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++)
        if (strcmp(key, reals[i].key) == 0) {
            char *end;
            *reals[i].to = strtof(value, &end);
            return end != value && !*end;
        }
    return false;
}

bool parse_policy(const char *text, uint32_t layers, prhs_policy *policy) {
    char copy[256], *save = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    char *name = strtok_r(copy, ",", &save);
    if (!name || prhs_policy_preset(name, layers, policy) != PRHS_OK) {
        fprintf(stderr, "prhs-llama: there is no policy '%s'; there are:", name ? name : "");
        for (size_t i = 0; prhs_policy_name(i, NULL); i++)
            fprintf(stderr, " %s", prhs_policy_name(i, NULL));
        fputc('\n', stderr);
        return false;
    }
    for (char *item; (item = strtok_r(NULL, ",", &save));) {
        char *equals = strchr(item, '=');
        if (equals)
            *equals++ = 0;
        if (!equals || (!parse_word(item, equals, policy) && !parse_number(item, equals, policy))) {
            fprintf(stderr, "prhs-llama: '%s' in --policy %s is not understood (see --help)\n", item, text);
            return false;
        }
    }
    const char *why;
    if (prhs_policy_check(policy, layers, &why) != PRHS_OK) {
        fprintf(stderr, "prhs-llama: --policy %s: %s\n", text, why);
        return false;
    }
    return true;
}

bool load_model(const common_options *o, loaded *l) {
    char error[512];
    *l = (loaded){ 0 };
    if (!o->model) {
        fprintf(stderr, "prhs-llama: name a GGUF file with --model (scripts/fetch brings a small one)\n");
        return false;
    }
    l->file = gguf_open(o->model, error, sizeof error);
    if (!l->file || !(l->tokens = bpe_open(l->file, error, sizeof error)) || !model_load(l->file, &l->m, error, sizeof error)) {
        fprintf(stderr, "prhs-llama: %s\n", error);
        unload_model(l);
        return false;
    }
    if (bpe_count(l->tokens) > l->m.vocab) {
        fprintf(stderr, "prhs-llama: the model cannot be used: its vocabulary has more tokens than its embedding has rows\n");
        unload_model(l);
        return false;
    }
    return true;
}

void unload_model(loaded *l) {
    model_free(&l->m);
    bpe_close(l->tokens);
    gguf_close(l->file);
    *l = (loaded){ 0 };
}

char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    if (f && fseek(f, 0, SEEK_END) == 0) {
        long n = ftell(f);
        rewind(f);
        text = n >= 0 ? malloc((size_t)n + 1) : NULL;
        if (text)
            *size = fread(text, 1, (size_t)n, f);
    }
    if (f)
        fclose(f);
    return text;
}

static void to_stderr(void *user, prhs_log_level level, const char *text) {
    (void)user;
    fprintf(stderr, "prhs-llama: %s%s\n", level == PRHS_LOG_WARN ? "warning: " : "", text);
}

prhs_log stderr_log(const common_options *o) { return (prhs_log){ o->level, NULL, to_stderr }; }

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void progress(const char *what, size_t done, size_t all) {
    const int width = 30;
    if (isatty(STDERR_FILENO)) {
        int full = all ? (int)(done * (size_t)width / all) : width;
        fprintf(stderr, "\r%-24.24s [%.*s%*s] %3d%%%s", what, full, "##############################", width - full, "",
                all ? (int)(done * 100 / all) : 100, done >= all ? "\n" : "");
    } else if (all && (done == all || done * 10 / all != (done - 1) * 10 / all)) {
        fprintf(stderr, "%s: %d%%\n", what, (int)(done * 100 / all));
    }
}
