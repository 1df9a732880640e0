/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times ggml's FLASH_ATTN_EXT on the CPU: one query row over N cached tokens in float16, K/V rotated over copies. bench/peers/ggml builds it.
 * usage: ggml_dense THREADS CALLS H,H_KV,D,N ...    prints a line of JSON a shape
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ggml-cpu.h>
#include <ggml.h>

enum { COPIES = 4, WARM = 8, MOST = 4096 };

static void die(const char *what) {
    fprintf(stderr, "ggml_dense: %s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* Numbers in (-1, 1); ggml's own random functions are not part of its interface. */
static float next_number(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

static struct ggml_tensor *cache_of(struct ggml_context *ctx, int dim, int tokens, int heads, uint64_t *state) {
    struct ggml_tensor *t = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, dim, tokens, heads);
    ggml_fp16_t *data = t->data;
    for (int64_t i = 0; i < ggml_nelements(t); i++)
        data[i] = ggml_fp32_to_fp16(next_number(state));
    return t;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(int threads, int calls, int heads, int kv_heads, int dim, int tokens) {
    const size_t kv = (size_t)2 * dim * tokens * kv_heads * COPIES * 2;
    struct ggml_init_params params = { kv + (64 << 20), NULL, false };
    struct ggml_context *ctx = ggml_init(params);
    struct ggml_cgraph *graphs[COPIES];
    static double us[MOST];
    uint64_t state = 1;
    double sum = 0;
    if (!ctx)
        die("no memory");
    struct ggml_tensor *q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, dim, 1, heads);
    for (int64_t i = 0; i < ggml_nelements(q); i++)
        ((float *)q->data)[i] = next_number(&state);
    for (int i = 0; i < COPIES; i++) {
        struct ggml_tensor *k = cache_of(ctx, dim, tokens, kv_heads, &state), *v = cache_of(ctx, dim, tokens, kv_heads, &state);
        graphs[i] = ggml_new_graph(ctx);
        ggml_build_forward_expand(graphs[i], ggml_flash_attn_ext(ctx, q, k, v, NULL, 0.125f, 0.0f, 0.0f));
    }
    struct ggml_threadpool_params pool_params = ggml_threadpool_params_default(threads);
    struct ggml_threadpool *pool = ggml_threadpool_new(&pool_params);
    struct ggml_cplan plan = ggml_graph_plan(graphs[0], threads, pool);
    uint8_t *work = plan.work_size ? malloc(plan.work_size) : NULL;
    for (int i = -WARM; i < calls; i++) {
        const double begin = now();
        plan.work_data = work;
        if (ggml_graph_compute(graphs[(i + WARM) % COPIES], &plan) != GGML_STATUS_SUCCESS)
            die("ggml_graph_compute() failed");
        if (i >= 0)
            us[i] = now() - begin;
    }
    qsort(us, (size_t)calls, sizeof *us, by_value);
    for (int i = 0; i < calls; i++)
        sum += us[i];
    printf("{\"shape\": [%d, %d, %d, %d], \"calls\": %d, \"threads\": %d, \"median_us\": %.1f, \"min_us\": %.1f, \"max_us\": %.1f, \"mean_us\": %.1f}\n",
           heads, kv_heads, dim, tokens, calls, threads, us[calls / 2], us[0], us[calls - 1], sum / calls);
    fflush(stdout);
    free(work);
    ggml_threadpool_free(pool);
    ggml_free(ctx);
}

int main(int argc, char **argv) {
    const int threads = argc > 3 ? atoi(argv[1]) : 0, calls = argc > 3 ? atoi(argv[2]) : 0;
    if (threads < 1 || calls < 1 || calls > MOST)
        die("usage: ggml_dense THREADS CALLS H,H_KV,D,N ...");
    ggml_cpu_init();
    for (int i = 3; i < argc; i++) {
        int h, hk, d, n;
        if (sscanf(argv[i], "%d,%d,%d,%d", &h, &hk, &d, &n) != 4 || h < 1 || hk < 1 || h % hk || d < 1 || n < 1)
            die("a shape is H,H_KV,D,N");
        run(threads, calls, h, hk, d, n);
    }
    return 0;
}
