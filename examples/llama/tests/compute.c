/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Linear algebra on a device beside the host's, part by part, on the same rows: no attention in between. usage: compute cuda LIBCUBLAS, or
 * compute opencl clblast. 77, a skip, where there is no such device or no CLBlast.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef PRHS_HAVE_OPENCL
#include <prhs/opencl.h>
#endif

#include "../compute.h"
#include "tiny.h"

/* Odd sizes, so that no block and no chunk of logits comes out even. */
enum { LAYERS = 2, HEADS = 6, KV_HEADS = 3, DIM = 40, FFN = 101, VOCAB = 778, ROWS = 141, SEQS = 5, TOKENS = 90, HIDDEN = HEADS * DIM };

static uint64_t state = 1;

static float uniform(float most) { return most * ((float)(draw(&state) >> 40) / 8388608.0f - 1.0f); }

/* Of ten bits: float16 weights are the very same where `most` is a power of two. */
static float short_uniform(float most) { return most * ((float)(draw(&state) % 1024) / 512.0f - 1.0f); }

typedef struct tensor {
    char name[32];
    uint64_t in, out;
    float most;
} tensor;

/* The output's rows come in pairs of equal ones: every best logit is there twice. */
static void put_data(bytes *b, const tensor *t) {
    float row[HIDDEN];
    for (uint64_t i = 0; i < t->out; i++) {
        for (uint64_t j = 0; j < t->in; j++)
            row[j] = strcmp(t->name, "output.weight") == 0 && i % 2 ? row[j] : t->out == 1 ? 1.0f + uniform(0.5f) : short_uniform(t->most);
        put(b, row, t->in * sizeof *row);
    }
}

static void put_model(bytes *b) {
    tensor t[3 + 9 * LAYERS] = { { "token_embd.weight", HIDDEN, VOCAB, 2.0f }, { "output.weight", HIDDEN, VOCAB, 0.25f },
                                 { "output_norm.weight", HIDDEN, 1, 0.0f } };
    const tensor layer[9] = { { "attn_norm", HIDDEN, 1, 0.0f }, { "ffn_norm", HIDDEN, 1, 0.0f }, { "attn_q", HIDDEN, HIDDEN, 0.25f },
                              { "attn_k", HIDDEN, KV_HEADS * DIM, 0.25f }, { "attn_v", HIDDEN, KV_HEADS * DIM, 0.25f },
                              { "attn_output", HIDDEN, HIDDEN, 0.25f }, { "ffn_gate", HIDDEN, FFN, 0.5f }, { "ffn_up", HIDDEN, FFN, 0.25f },
                              { "ffn_down", FFN, HIDDEN, 0.25f } };
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = { { "llama.block_count", LAYERS }, { "llama.embedding_length", HIDDEN }, { "llama.attention.head_count", HEADS },
                    { "llama.attention.head_count_kv", KV_HEADS }, { "llama.feed_forward_length", FFN } };
    const size_t n = sizeof t / sizeof t[0];
    const float eps = 1e-5f;
    uint64_t offset = 0;
    for (size_t i = 3; i < n; i++) {
        t[i] = layer[(i - 3) % 9];
        snprintf(t[i].name, sizeof t[i].name, "blk.%zu.%s.weight", (i - 3) / 9, layer[(i - 3) % 9].name);
    }
    put_header(b, n, 2 + sizeof numbers / sizeof numbers[0]);
    put_key_text(b, "general.architecture", "llama");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        put_key_u32(b, numbers[i].key, numbers[i].value);
    put_text(b, "llama.attention.layer_norm_rms_epsilon");
    put_u32(b, TINY_F32);
    put(b, &eps, sizeof eps);
    for (size_t i = 0; i < n; offset = (offset + t[i].in * t[i].out * 4 + 31) / 32 * 32, i++)
        put_tensor(b, t[i].name, 2, (const uint64_t[]){ t[i].in, t[i].out }, 0, offset);
    for (size_t i = 0; i < n; i++) {
        put_align(b, 32);
        put_data(b, &t[i]);
    }
}

typedef struct side {
    engine e;
    compute *c;
} side;

static side host, device;
static double bar; /* of differences, over the largest value */

#define CLBLAST_FILE "libclblast.so.1"

/* Makes CLBlast compute small products as it does large ones: by way of copies in the scratch memory that it is given. */
static bool as_if_large(const engine *e) {
#ifdef PRHS_HAVE_OPENCL
    void *lib = dlopen(CLBLAST_FILE, RTLD_NOW | RTLD_LOCAL), *symbol = lib ? dlsym(lib, "CLBlastOverrideParameters") : NULL;
    int (*override)(cl_device_id, const char *kernel, int precision, size_t count, const char **names, const size_t *values);
    memcpy(&override, &symbol, sizeof symbol);
    const char *name = "XGEMM_MIN_INDIRECT_SIZE";
    const size_t one = 1;
    return symbol && override(prhs_opencl_device(e->dev), "GemmRoutine", 32, 1, &name, &one) == 0;
#else
    (void)e;
    return false;
#endif
}

static bool large; /* of the OpenCL device */

static bool open_side(side *s, const model *m, prhs_backend_kind backend, const char *linear, bool half) {
    const engine_params p = { .backend = backend, .seqs = SEQS, .tokens = TOKENS, .plans = 1, .rows = ROWS, .kv_dtype = PRHS_F16 };
    *s = (side){ .c = NULL };
    return engine_open(&s->e, m, &p, NULL) && (!large || backend != PRHS_BACKEND_OPENCL || as_if_large(&s->e)) &&
           (s->c = compute_open(&s->e, linear, half)) != NULL;
}

static void close_side(side *s) {
    compute_close(s->c);
    if (s->e.m)
        engine_close(&s->e);
}

/* Largest difference over the largest value. */
static double distance(const float *a, const float *b, size_t n) {
    double most = 0.0, off = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        off = d <= off ? off : d; /* NaN stays */
        most = fmax(most, fabs((double)a[i]));
    }
    return off / most;
}

static void near(const char *what, const float *a, const float *b, size_t n) {
    const double off = distance(a, b, n);
    check(off < bar, "%s: off by %g of the largest", what, off);
}

/* Rows as they are on a device, packed; `floats` a row. */
static float *rows_of(side *s, const prhs_rows *rows, size_t floats) {
    float *packed = malloc(ROWS * floats * sizeof *packed);
    bool ok = packed != NULL;
    for (size_t i = 0; ok && i < ROWS; i++)
        ok = prhs_queue_read(s->e.queue, packed + i * floats, engine_row(rows, i), floats * sizeof *packed) == PRHS_OK;
    check(ok && prhs_queue_finish(s->e.queue) == PRHS_OK, "rows cannot be read");
    return packed;
}

static void same_rows(const char *what, const prhs_rows *a, const prhs_rows *b, size_t floats) {
    float *x = rows_of(&host, a, floats), *y = rows_of(&device, b, floats);
    near(what, x, y, ROWS * floats);
    free(x);
    free(y);
}

#define BOTH(call_host, call_device) check((call_host) && (call_device), "%s", #call_device)
#define HOST host.c->ops
#define DEVICE device.c->ops

static void same_logits(const char *what, size_t row) {
    static float a[VOCAB], b[VOCAB];
    BOTH(HOST->logits(host.c, row, a), DEVICE->logits(device.c, row, b));
    near(what, a, b, VOCAB);
}

static void layer_parts(void) {
    static float attention[ROWS * HIDDEN];
    int32_t ids[ROWS], positions[ROWS];
    for (int i = 0; i < ROWS; i++) {
        ids[i] = (int32_t)(draw(&state) % VOCAB);
        positions[i] = (int32_t)(draw(&state) % TOKENS);
    }
    positions[7] = TOKENS - 1;
    BOTH(HOST->embed(host.c, ids, positions, ROWS), DEVICE->embed(device.c, ids, positions, ROWS));
    same_logits("embedded rows", ROWS - 1);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const size_t first = layer ? 3 : 0;
        BOTH(HOST->qkv(host.c, layer, ROWS), DEVICE->qkv(device.c, layer, ROWS));
        same_rows("q", &host.e.q, &device.e.q, HIDDEN);
        same_rows("k", &host.e.k, &device.e.k, KV_HEADS * DIM);
        same_rows("v", &host.e.v, &device.e.v, KV_HEADS * DIM);
        for (int i = 0; i < ROWS * HIDDEN; i++)
            attention[i] = uniform(1.0f);
        for (side *s = &host; s; s = s == &host ? &device : NULL)
            check(prhs_queue_write(s->e.queue, s->e.out.mem, attention, sizeof attention) == PRHS_OK &&
                      prhs_queue_finish(s->e.queue) == PRHS_OK && s->c->ops->rest(s->c, layer, first, ROWS),
                  "the rest of a layer");
        for (size_t row = 0; row < ROWS; row += row < 5 ? 1 : 17)
            same_logits("a layer", row);
    }
}

static void scores(void) {
    int32_t target[ROWS], best[2][ROWS];
    double nll[2][ROWS], off = 0.0;
    int wrong = 0;
    for (int i = 0; i < ROWS; i++)
        target[i] = (int32_t)(draw(&state) % VOCAB);
    BOTH(HOST->score(host.c, ROWS, target, nll[0], best[0]), DEVICE->score(device.c, ROWS, target, nll[1], best[1]));
    for (int i = 0; i < ROWS; i++) {
        off = fabs(nll[0][i] - nll[1][i]) <= off ? off : fabs(nll[0][i] - nll[1][i]);
        wrong += best[1][i] % 2 || (!device.c->half && best[0][i] / 2 != best[1][i] / 2); /* of two equal ones the first */
    }
    check(off < 10 * bar && !wrong, "scores: off by %g; %d rows have another best token", off, wrong);
}

static bool plan_of(side *s, prhs_seq plan[SEQS]) {
    return prhs_queue_read(s->e.queue, plan, (prhs_mem){ s->e.seq, 0 }, SEQS * sizeof *plan) == PRHS_OK &&
           prhs_queue_finish(s->e.queue) == PRHS_OK;
}

/* Tokens of the first sequences by logits, of the others by the host; a round for all; what comes of it. */
static void decode_loop(void) {
    const int32_t given[SEQS] = { 5, 700, 0, 777, 31 };
    prhs_seq plan[SEQS] = { { 0 } }, now[2][SEQS];
    for (int s = 0; s < SEQS; s++)
        plan[s] = (prhs_seq){ .slot = s, .row_begin = s, .row_count = 1, .kv_len = 11 * s + 1 };
    side *sides[] = { &host, &device };
    for (int i = 0; i < 2; i++) {
        compute *c = sides[i]->c;
        const compute_ops *ops = c->ops;
        check(ops->begin(c, plan) && ops->choose(c, 130, 0, 2, NULL) && ops->choose(c, 0, 2, 3, given + 2) && ops->choose(c, 0, 0, SEQS, given) &&
                  ops->fetch(c, 0, 2) && plan_of(sides[i], now[i]) && ops->feed(c) && ops->qkv(c, 0, SEQS),
              "the decode loop of %s", ops->name);
        check(memcmp(c->tokens + SEQS, given, sizeof given) == 0 && memcmp(c->tokens + 2, given + 2, 3 * sizeof *given) == 0,
              "%s: tokens are not those that were given", ops->name);
        for (int s = 0; s < SEQS; s++)
            check(now[i][s].kv_len == 11 * s + 3 && now[i][s].slot == s && now[i][s].row_begin == s && now[i][s].row_count == 1,
                  "%s: the plan of sequence %d", ops->name, s);
    }
    for (int s = 0; s < 2; s++)
        check((device.c->half || host.c->tokens[s] / 2 == device.c->tokens[s] / 2) && device.c->tokens[s] % 2 == 0, "the likeliest token of sequence %d", s);
    for (size_t s = 0; s < SEQS; s++)
        same_logits("the next tokens", s);
    for (size_t s = 0; s < SEQS; s++) {
        float q[2][HIDDEN];
        for (int i = 0; i < 2; i++)
            check(prhs_queue_read(sides[i]->e.queue, q[i], engine_row(&sides[i]->e.q, s), sizeof q[i]) == PRHS_OK &&
                      prhs_queue_finish(sides[i]->e.queue) == PRHS_OK,
                  "queries cannot be read");
        near("q of the next tokens", q[0], q[1], HIDDEN); /* at their positions */
    }
}

/* 0, or a skip or a failure that ends the test. */
static int compare(const model *m, prhs_backend_kind backend, const char *library, bool half) {
    const char *name = backend == PRHS_BACKEND_CUDA ? "cublas" : "clblast";
    bar = half ? 2e-3 : 2e-6;
    int status = 0;
    if (!open_side(&device, m, backend, library, half)) {
        status = device.e.dev ? 1 : 77;
        printf(device.e.dev ? "FAIL %s cannot be opened\n" : "skipped: no device for %s\n", name);
    } else if (check(open_side(&host, m, PRHS_BACKEND_CPU, NULL, false), "the cpu backend cannot be opened") &&
               check(strcmp(DEVICE->name, name) == 0 && strcmp(HOST->name, "host") == 0 && device.c->half == half, "%s and %s",
                     DEVICE->name, HOST->name)) {
        layer_parts();
        scores();
        decode_loop();
    }
    close_side(&host);
    close_side(&device);
    return status;
}

int main(int argc, char **argv) {
    begin(300); /* PoCL compiles CLBlast's kernels */
    bytes file = { 0 };
    char error[512] = "";
    model m;
    const prhs_backend_kind backend = argc == 3 && strcmp(argv[1], "cuda") == 0 ? PRHS_BACKEND_CUDA : PRHS_BACKEND_OPENCL;
    put_model(&file);
    gguf *g = open_bytes(&file, error, sizeof error);
    if (argc != 3 || !check(g && model_load(g, &m, error, sizeof error), "%s", error))
        return 1;
    const bool missing = backend == PRHS_BACKEND_OPENCL && !dlopen(CLBLAST_FILE, RTLD_NOW | RTLD_LOCAL);
    if (missing)
        printf("skipped: %s\n", dlerror());
    int status = missing ? 77 : compare(&m, backend, argv[2], false);
    large = backend == PRHS_BACKEND_OPENCL;
    if (status == 0)
        status = compare(&m, backend, argv[2], !large);
    model_free(&m);
    gguf_close(g);
    bytes_free(&file);
    const int all = finish();
    return status ? status : all;
}
