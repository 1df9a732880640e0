/* SPDX-License-Identifier: Apache-2.0 */
/* prhs info: devices, capabilities, and the path that every op takes for a shape. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "tool.h"

static const char help[] =
    "usage: prhs info [--shape H,H_KV,D] [--brief]\n"
    "Lists every device as --backend and --device name it, what it can do, and which kernels each op takes and why.\n"
    "  --shape H,H_KV,D  query heads, KV heads, head dimension (32,8,128; f16 K/V)\n"
    "  --brief           devices only, one line each: backend, index, platform, name (tab-separated)\n";

static void print_paths(const prhs_device_info *info, const prhs_shape *shape) {
    prhs_device_params params = PRHS_DEVICE_PARAMS_INIT;
    prhs_ops_params ops = PRHS_OPS_PARAMS_INIT;
    prhs_op_path paths[32];
    size_t n = sizeof paths / sizeof paths[0];
    prhs_device *device = NULL;
    params.backend = info->backend;
    params.index = info->index;
    ops.shape = *shape;
    ops.max_seqs = ops.max_rows = ops.max_slots = ops.list_cap = 1;
    ops.max_kv_len = 1024;
    if (prhs_device_open(&params, &tool_log, &device) != PRHS_OK)
        return;
    if (prhs_ops_get_paths(device, &ops, paths, &n) == PRHS_OK) {
        printf("    kernels for %u query heads, %u KV heads of %u, f16:\n", shape->heads, shape->kv_heads, shape->dim);
        for (size_t i = 0; i < n; i++)
            printf("        %-14s %-15s %s\n", paths[i].op, paths[i].path ? paths[i].path : "none", paths[i].why);
    }
    prhs_device_close(device);
}

static void print_size(const char *what, uint64_t bytes) {
    if (bytes)
        printf(", %s %.1f GiB", what, (double)bytes / (1 << 30));
}

static const struct {
    uint32_t bit;
    const char *name;
} capabilities[] = {
    { PRHS_CAP_WIDE, "wide" },     { PRHS_CAP_THREADS, "threads" }, { PRHS_CAP_HOST_MEM, "host-memory" },
    { PRHS_CAP_TENSOR, "tensor" }, { PRHS_CAP_SM90, "sm_90" },      { PRHS_CAP_OVERLAP, "overlap" },
    { PRHS_CAP_GPU, "gpu" },
    { PRHS_CAP_AVX2, "avx2" },     { PRHS_CAP_AVX512, "avx512" },
};

static void print_device(const prhs_device_info *d) {
    printf("%s %u: %s\n    platform %s, driver %s\n    %u compute units", prhs_backend_name(d->backend), d->index, d->name, d->platform,
           d->driver, d->compute_units);
    print_size("memory", d->memory);
    print_size("largest buffer", d->max_buffer);
    printf("\n    capabilities:");
    for (size_t i = 0; i < sizeof capabilities / sizeof capabilities[0]; i++)
        if (d->caps & capabilities[i].bit)
            printf(" %s", capabilities[i].name);
    printf("\n");
}

/* The caller's array of all devices; NULL where it cannot be had. */
static prhs_device_info *devices(size_t *n) {
    *n = 0;
    if (prhs_enumerate(NULL, n, &tool_log) != PRHS_OK)
        return NULL;
    prhs_device_info *infos = calloc(*n + 1, sizeof *infos);
    if (infos)
        infos->size = sizeof *infos;
    if (infos && prhs_enumerate(infos, n, &tool_log) == PRHS_OK)
        return infos;
    free(infos);
    return NULL;
}

int tool_info(int argc, char **argv) {
    static const struct option options[] = { { "shape", 1, 0, 's' }, { "brief", 0, 0, 'q' }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 } };
    prhs_shape shape = { 32, 8, 128, 0.0f };
    bool brief = false;
    char more;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        switch (c) {
        case 's':
            if (sscanf(optarg, "%u,%u,%u%c", &shape.heads, &shape.kv_heads, &shape.dim, &more) != 3) {
                fprintf(stderr, "prhs: --shape takes three numbers, as in 32,8,128\n");
                return TOOL_USAGE;
            }
            break;
        case 'q': brief = true; break;
        case 'h': fputs(help, stdout); return TOOL_OK;
        default: return tool_usage("info");
        }
    }
    size_t n = 0;
    prhs_device_info *infos = devices(&n);
    if (!infos)
        return TOOL_FAILED;
    for (size_t i = 0; i < n; i++) {
        if (brief) {
            printf("%s\t%u\t%s\t%s\n", prhs_backend_name(infos[i].backend), infos[i].index, infos[i].platform, infos[i].name);
            continue;
        }
        print_device(&infos[i]);
        print_paths(&infos[i], &shape);
    }
    free(infos);
    return TOOL_OK;
}
