/* SPDX-License-Identifier: Apache-2.0 */
/* Work-groups of a launch, as data: the rows of tuning.def, and of a file that the caller names. */
#ifndef PRHS_TUNING_H
#define PRHS_TUNING_H

#include <stdbool.h>

#include <prhs/device.h>

#include "kargs.h"

struct prhs_op_key;

/* Classes of OpenCL devices; those of CUDA are compute capabilities times ten. */
enum { PRHS_CLASS_CPU = 1, PRHS_CLASS_GPU = 2 };

typedef struct prhs_tuning_row {
    prhs_i32 device;       /* class */
    prhs_i32 op;           /* prhs_op_kind; PRHS_OP_COUNT: any */
    prhs_i32 dtype;        /* of K/V; -1: any */
    prhs_i32 dim, sharers; /* 0: any */
    prhs_i32 groups;       /* a compute unit */
    bool own;              /* of the caller's file: goes before the built-in ones */
} prhs_tuning_row;

typedef struct prhs_tuning {
    prhs_tuning_row *rows; /* of this backend */
    size_t count;
    prhs_i32 device;
} prhs_tuning;

/*
 * Reads the built-in rows and those of a file: `path`, or where that is NULL $PRHS_TUNING; "": none. PRHS_ERR_ARGUMENT: the file cannot be
 * read, a line is no row, or no row is for this backend. PRHS_ERR_MEMORY. *tuning is safe to close in any case.
 */
prhs_status prhs_tuning_open(prhs_tuning *tuning, const char *path, prhs_backend_kind backend, prhs_i32 device, const prhs_log *log);
void prhs_tuning_close(prhs_tuning *tuning);

/* Of the row that is nearest to an op's key and this device. Pure. */
unsigned prhs_tuning_groups(const prhs_tuning *tuning, const struct prhs_op_key *key);

#endif
