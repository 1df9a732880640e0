/* SPDX-License-Identifier: Apache-2.0 */
/* Which row of tuning an op gets: the nearest one; the built-in rows parse; files that are none are refused with a sentence. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../src/backend.h"

static int bad;
static char sentence[512], path[64];

static void on_message(void *user, prhs_log_level level, const char *text) {
    (void)user, (void)level;
    snprintf(sentence, sizeof sentence, "%s", text);
}

static const prhs_log listener = { PRHS_LOG_ERROR, NULL, on_message };

static void check(int good, const char *what) {
    bad += !good;
    printf("%s %s\n", good ? "ok  " : "FAIL", what);
}

static void write_file(const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static const char table[] = "/* of two backends */\n"
                            "X(cuda, sm_80, any, any, 0, 0, 3)\n"
                            "  X(cuda, sm_80, attend, f16, 128, 1, 11)  \n"
                            "\n"
                            "X(cuda, sm_80, attend, f16, 64, 8, 12)\n"
                            "X(cuda, sm_90, attend, f16, 128, 1, 21)\n"
                            "// the same with float32\n"
                            "X(cuda, sm_90, attend, f32, 128, 1, 22)\n"
                            "X(cuda, sm_90, moments, f16, 128, 1, 23)\n"
                            "X(cuda, sm_80, score, any, 0, 0, 13)\n"
                            "X(opencl, cpu, attend, f16, 128, 1, 31)\n"
                            "X(opencl, gpu, any, any, 0, 0, 32)\n";

static const struct lookup {
    const char *what;
    prhs_backend_kind backend;
    prhs_i32 device;
    prhs_op_kind op;
    prhs_i32 dtype, dim, sharers;
    unsigned groups;
} lookups[] = {
    { "exact", PRHS_BACKEND_CUDA, 80, PRHS_OP_ATTEND, PRHS_K_F16, 128, 1, 11 },
    { "nearest head dimension and heads that share", PRHS_BACKEND_CUDA, 80, PRHS_OP_ATTEND, PRHS_K_F16, 80, 6, 12 },
    { "nearest heads that share", PRHS_BACKEND_CUDA, 80, PRHS_OP_ATTEND, PRHS_K_F16, 128, 2, 11 },
    { "the other 16-bit dtype", PRHS_BACKEND_CUDA, 90, PRHS_OP_ATTEND, PRHS_K_BF16, 128, 1, 21 },
    { "float32", PRHS_BACKEND_CUDA, 90, PRHS_OP_ATTEND, PRHS_K_F32, 64, 1, 22 },
    { "float32 where it has no row", PRHS_BACKEND_CUDA, 80, PRHS_OP_ATTEND, PRHS_K_F32, 128, 1, 11 },
    { "8.6 takes 8.0", PRHS_BACKEND_CUDA, 86, PRHS_OP_ATTEND, PRHS_K_F16, 128, 1, 11 },
    { "8.9 takes 8.0", PRHS_BACKEND_CUDA, 89, PRHS_OP_ATTEND, PRHS_K_F16, 128, 1, 11 },
    { "8.0 takes 9.0 where it has no row", PRHS_BACKEND_CUDA, 80, PRHS_OP_MOMENTS, PRHS_K_F16, 128, 1, 23 },
    { "12.0 takes 9.0", PRHS_BACKEND_CUDA, 120, PRHS_OP_ATTEND, PRHS_K_F16, 128, 1, 21 },
    { "the op's row of another device before any op's", PRHS_BACKEND_CUDA, 90, PRHS_OP_SCORE, PRHS_K_F16, 128, 1, 13 },
    { "any op", PRHS_BACKEND_CUDA, 90, PRHS_OP_GATE, 0, 128, 1, 3 },
    { "the file's any op before a built-in row of the op", PRHS_BACKEND_CUDA, 80, PRHS_OP_SELECT, 0, 128, 1, 3 },
    { "opencl, cpu", PRHS_BACKEND_OPENCL, PRHS_CLASS_CPU, PRHS_OP_ATTEND, PRHS_K_F16, 64, 4, 31 },
    { "opencl, gpu", PRHS_BACKEND_OPENCL, PRHS_CLASS_GPU, PRHS_OP_ATTEND, PRHS_K_F16, 128, 1, 32 },
    { "a file without rows for this class: the built-in ones", PRHS_BACKEND_OPENCL, PRHS_CLASS_CPU, PRHS_OP_SCORE, PRHS_K_F16, 128, 1, 4 },
};

static void run_lookups(void) {
    write_file(table);
    for (size_t i = 0; i < sizeof lookups / sizeof lookups[0]; i++) {
        const struct lookup *l = &lookups[i];
        prhs_tuning tuning;
        const prhs_op_key key = { .kind = l->op, .dim = l->dim, .unit_heads = l->sharers, .group = l->sharers, .kv_dtype = l->dtype };
        prhs_status status = prhs_tuning_open(&tuning, path, l->backend, l->device, &listener);
        check(status == PRHS_OK && prhs_tuning_groups(&tuning, &key) == l->groups, l->what);
        prhs_tuning_close(&tuning);
    }
}

static const struct spoilt {
    const char *text, *words;
} files[] = {
    { "X(cuda, sm_80, attend, f16, 128, 1)\n", "line 1: it has not seven values" },
    { "X(cuda, sm_80, attend, f16, 128, 1, 2, 3)\n", "line 1: it has not seven values" },
    { "X(cuda, sm_80, attend, f16, 128, 1, 2)\nhello\n", "line 2: it is no X(...)" },
    { "X(cuda, sm_80, attend, f16, 128, 1, 2) X\n", "line 1: it is no X(...)" },
    { "\nX(metal, sm_80, attend, f16, 128, 1, 2)\n", "line 2: the backend is neither" },
    { "X(cuda, gpu, attend, f16, 128, 1, 2)\n", "no such class" },
    { "X(opencl, sm_80, attend, f16, 128, 1, 2)\n", "no such class" },
    { "X(cuda, sm_80, attention, f16, 128, 1, 2)\n", "no such op" },
    { "X(cuda, sm_80, attend, f8, 128, 1, 2)\n", "the dtype is none of" },
    { "X(cuda, sm_80, attend, f16, 512, 1, 2)\n", "the head dimension" },
    { "X(cuda, sm_80, attend, f16, 128, -1, 2)\n", "the heads that share" },
    { "X(cuda, sm_80, attend, f16, 128, 1, 5000)\n", "the work-groups are out of range" },
    { "X(opencl, cpu, attend, f16, 128, 1, 0)\n", "the work-groups are out of range" },
    { "X(opencl, cpu, attend, f16, 128, 1, 2)\n", "has no row for the cuda backend" },
    { "", "has no row for the cuda backend" },
};

static void refused(const char *words) {
    prhs_tuning tuning;
    sentence[0] = '\0';
    prhs_status status = prhs_tuning_open(&tuning, path, PRHS_BACKEND_CUDA, 90, &listener);
    check(status == PRHS_ERR_ARGUMENT && strstr(sentence, words) && strstr(sentence, path), words);
    prhs_tuning_close(&tuning);
}

int main(void) {
    prhs_tuning tuning;
    const prhs_op_key select = { .kind = PRHS_OP_SELECT }, gate = { .kind = PRHS_OP_GATE };
    snprintf(path, sizeof path, "/tmp/prhs-tuning-%ld", (long)getpid());
    for (int i = 0; i < 2; i++) { /* NULL without the variable, and "" in spite of it, are the built-in rows */
        if (i)
            setenv("PRHS_TUNING", "/no/such/file", 1);
        check(prhs_tuning_open(&tuning, i ? "" : NULL, PRHS_BACKEND_CUDA, 90, &listener) == PRHS_OK, "the built-in rows");
        check(prhs_tuning_groups(&tuning, &select) > 0 && prhs_tuning_groups(&tuning, &gate) == 0, "as many as are resident, but for select");
        prhs_tuning_close(&tuning);
    }
    check(prhs_tuning_open(&tuning, NULL, PRHS_BACKEND_CUDA, 90, &listener) == PRHS_ERR_ARGUMENT && strstr(sentence, "/no/such/file"),
          "the environment's file");
    prhs_tuning_close(&tuning);
    run_lookups();
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        write_file(files[i].text);
        refused(files[i].words);
    }
    remove(path);
    refused("cannot be read: ");
    return bad ? 1 : 0;
}
