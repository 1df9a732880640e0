/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "policy_text.h"

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

bool parse_policy(const char *text, uint32_t layers, prhs_policy *policy, uint32_t **list_layers) {
    return policy_parse("prhs-llama", text, layers, policy, list_layers);
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
