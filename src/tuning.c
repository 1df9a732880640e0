/* SPDX-License-Identifier: Apache-2.0 */
/* Reading rows of tuning, and finding the nearest one. The built-in rows are text too, so that one parser serves both. */
#include "tuning.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static const char *const built_in[] = {
#define X(...) #__VA_ARGS__,
#include "tuning.def"
#undef X
};

enum { GROUPS_MOST = 1024 };

/* --- reading --------------------------------------------------------------------------------------------------------------- */

typedef struct reading {
    prhs_tuning *tuning;
    prhs_backend_kind backend;
    size_t cap;
    bool own;
} reading;

/* Index of a word; -1: it is none of them. */
static prhs_i32 word(const char *text, const char *const *words, prhs_i32 n) {
    for (prhs_i32 i = 0; i < n; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    return -1;
}

static prhs_i32 op_of(const char *text) {
    for (prhs_i32 i = 0; i < PRHS_OP_COUNT; i++)
        if (strcmp(text, prhs_op_name((prhs_op_kind)i)) == 0)
            return i;
    return strcmp(text, "any") == 0 ? PRHS_OP_COUNT : -1;
}

/* 0: no such class. */
static prhs_i32 class_of(const char *text, prhs_backend_kind backend) {
    int arch = 0;
    char more;
    if (backend == PRHS_BACKEND_CUDA)
        return sscanf(text, "sm_%d%c", &arch, &more) == 1 && arch >= 80 && arch < 1000 ? arch : 0;
    return strcmp(text, "cpu") == 0 ? PRHS_CLASS_CPU : strcmp(text, "gpu") == 0 ? PRHS_CLASS_GPU : 0;
}

static prhs_status keep(reading *r, const prhs_tuning_row *row) {
    prhs_tuning *t = r->tuning;
    if (t->count == r->cap) {
        const size_t cap = r->cap ? 2 * r->cap : 64;
        prhs_tuning_row *more = realloc(t->rows, cap * sizeof *more);
        if (!more)
            return PRHS_ERR_MEMORY;
        t->rows = more;
        r->cap = cap;
    }
    t->rows[t->count++] = *row;
    return PRHS_OK;
}

/* What stands between the brackets of a row. Rows of other backends are checked and left out. *what: the word that is wrong. */
static prhs_status take(reading *r, const char *text, const char **what) {
    static const char *const backends[] = { "cuda", "opencl" }, *const dtypes[] = { "f32", "f16", "bf16", "any" };
    char backend[16], device[16], op[16], dtype[16], more;
    prhs_tuning_row row = { .own = r->own };
    *what = "it has not seven values";
    if (sscanf(text, " %15[a-z] , %15[a-z0-9_] , %15[a-z_] , %15[a-z0-9] , %d , %d , %d %c", backend, device, op, dtype, &row.dim, &row.sharers,
               &row.groups, &more) != 7)
        return PRHS_ERR_ARGUMENT;
    const prhs_i32 which = word(backend, backends, 2);
    const prhs_backend_kind kind = which == 0 ? PRHS_BACKEND_CUDA : PRHS_BACKEND_OPENCL;
    row.device = class_of(device, kind);
    row.op = op_of(op);
    row.dtype = word(dtype, dtypes, 4);
    *what = which < 0                                                 ? "the backend is neither cuda nor opencl"
            : row.device == 0                                         ? "the backend has no such class of devices"
            : row.op < 0                                              ? "there is no such op"
            : row.dtype < 0                                           ? "the dtype is none of f32, f16, bf16, any"
            : row.dim < 0 || row.dim > 256                            ? "the head dimension is not 0 to 256"
            : row.sharers < 0 || row.sharers > 64                     ? "the heads that share are not 0 to 64"
            : row.groups < (which == 0 ? 0 : 1) || row.groups > GROUPS_MOST ? "the work-groups are out of range"
                                                                      : NULL;
    if (*what)
        return PRHS_ERR_ARGUMENT;
    row.dtype = row.dtype == 3 ? -1 : row.dtype;
    return kind == r->backend ? keep(r, &row) : PRHS_OK;
}

/* A line of a file: a row, nothing, or a comment in lines of its own. */
static prhs_status take_line(reading *r, char *line, const char **what) {
    char *begin = line + strspn(line, " \t"), *end;
    begin[strcspn(begin, "\r\n")] = '\0';
    if (!*begin || *begin == '/' || *begin == '*')
        return PRHS_OK;
    *what = "it is no X(...)";
    if (strncmp(begin, "X(", 2) != 0 || !(end = strchr(begin, ')')) || end[1 + strspn(end + 1, " \t")])
        return PRHS_ERR_ARGUMENT;
    *end = '\0';
    return take(r, begin + 2, what);
}

static prhs_status read_file(reading *r, FILE *f, const char *path, const prhs_log *log) {
    char line[256];
    prhs_status status = PRHS_OK;
    for (int number = 1; status == PRHS_OK && fgets(line, sizeof line, f); number++) {
        const char *what = NULL;
        status = take_line(r, line, &what);
        if (status == PRHS_ERR_ARGUMENT)
            prhs_fail(log, status, "prhs_device_open: the tuning file %s, line %d: %s", path, number, what);
    }
    if (status == PRHS_OK && ferror(f))
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_device_open: the tuning file %s cannot be read", path);
    return status;
}

static prhs_status read_own(reading *r, const char *path, const prhs_log *log) {
    const size_t before = r->tuning->count;
    FILE *f = fopen(path, "r");
    if (!f)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_device_open: the tuning file %s cannot be read: %s", path, strerror(errno));
    r->own = true;
    prhs_status status = read_file(r, f, path, log);
    fclose(f);
    if (status == PRHS_OK && r->tuning->count == before)
        return prhs_fail(log, PRHS_ERR_ARGUMENT, "prhs_device_open: the tuning file %s has no row for the %s backend", path,
                         prhs_backend_name(r->backend));
    return status;
}

prhs_status prhs_tuning_open(prhs_tuning *tuning, const char *path, prhs_backend_kind backend, prhs_i32 device, const prhs_log *log) {
    reading r = { .tuning = tuning, .backend = backend };
    const char *what = NULL;
    prhs_status status = PRHS_OK;
    *tuning = (prhs_tuning){ .device = device };
    path = path ? path : getenv("PRHS_TUNING");
    for (size_t i = 0; i < sizeof built_in / sizeof built_in[0] && status == PRHS_OK; i++)
        if ((status = take(&r, built_in[i], &what)) == PRHS_ERR_ARGUMENT)
            prhs_fail(log, status, "prhs_device_open: the built-in row of tuning (%s): %s", built_in[i], what);
    if (status == PRHS_OK && path && *path)
        status = read_own(&r, path, log);
    return status == PRHS_ERR_MEMORY ? prhs_fail(log, status, "prhs_device_open: no host memory") : status;
}

void prhs_tuning_close(prhs_tuning *tuning) {
    free(tuning->rows);
    *tuning = (prhs_tuning){ 0 };
}

/* --- finding --------------------------------------------------------------------------------------------------------------- */

/* Each is worth more than all below it together. */
enum { NEVER = 1 << 30, OTHER_SOURCE = 1 << 28, ANY_OP = 1 << 26, NEWER = 1 << 24, PER_ARCH = 1 << 15, ANY_SHAPE = 1 << 12, OTHER_SIZE = 1 << 11 };

/* How far two sizes are apart: 8 for a factor of 2, 56 for one of 8; 0 where the op does not depend on it. */
static prhs_i32 apart(prhs_i32 row, prhs_i32 key) {
    if (key == 0)
        return 0;
    if (row == 0)
        return ANY_SHAPE;
    const prhs_i32 far = (row > key ? row : key) * 8 / (row > key ? key : row) - 8;
    return far < 512 ? far : 512;
}

static prhs_i32 dtypes_apart(prhs_i32 row, prhs_i32 key) {
    if (row < 0)
        return ANY_SHAPE;
    return row == key ? 0 : (row == PRHS_K_F32) == (key == PRHS_K_F32) ? 1 : OTHER_SIZE;
}

/* A device runs code for itself or for an older one, so that an older device's row is the better guess. A CPU says nothing of a GPU. */
static prhs_i32 devices_apart(prhs_i32 row, prhs_i32 device) {
    if (row < 80 || device < 80)
        return row == device ? 0 : NEVER;
    const prhs_i32 far = row > device ? row - device : device - row;
    return (far < 255 ? far : 255) * PER_ARCH + (row > device ? NEWER : 0);
}

unsigned prhs_tuning_groups(const prhs_tuning *tuning, const prhs_op_key *key) {
    const prhs_tuning_row *best = NULL;
    prhs_i32 least = NEVER;
    for (size_t i = 0; i < tuning->count; i++) {
        const prhs_tuning_row *row = &tuning->rows[i];
        const prhs_i32 device = devices_apart(row->device, tuning->device);
        if (device == NEVER || (row->op != PRHS_OP_COUNT && row->op != (prhs_i32)key->kind))
            continue;
        const prhs_i32 far = device + (row->own ? 0 : OTHER_SOURCE) + (row->op == PRHS_OP_COUNT ? ANY_OP : 0) +
                             dtypes_apart(row->dtype, key->kv_dtype) + apart(row->dim, key->dim) + apart(row->sharers, key->unit_heads);
        if (far < least) {
            least = far;
            best = row;
        }
    }
    return best ? (unsigned)best->groups : 0;
}
