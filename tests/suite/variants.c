/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel that was compiled ahead: short sessions beside the reference session for each K/V dtype, each size that heads are padded to and
 * each number of heads that kernels let share their rows. They retrieve with moments and, because they are audited, score without too. The
 * prompt kernels that tensor cores replace come with `--caps fffffff7`.
 */
#include "groups.h"
#include "reference.h"

#define SHAPE(kv, d, g) { #kv " D" #d " G" #g, g, 1, d, PRHS_##kv, PRHS_F32, PRHS_F32 }
#define HEADS(kv, d) SHAPE(kv, d, 1), SHAPE(kv, d, 4), SHAPE(kv, d, 8)
#define DIMS(kv) HEADS(kv, 64), HEADS(kv, 128), HEADS(kv, 256)

static const t_shape shapes[] = { SHAPE(F16, 128, 4), SHAPE(F32, 64, 1), DIMS(F16), DIMS(BF16), DIMS(F32) };
enum { QUICK = 2 }; /* the first two, which come again: a taste */

/* Retrievals come from blocks alone: so few steps have no room for borderline verdicts. */
static void every_other_step(prhs_policy *p) {
    p->k = 8;
    p->block = 2;
    p->eps = 1.0f;
    p->tau = -1.0f;
}

/* Scores with a second kernel. */
static void and_values(prhs_policy *p) {
    every_other_step(p);
    p->residual = PRHS_RESIDUAL_RETRIEVED;
}

static const char *row_name(int row) { return shapes[row].name; }

static void run(t_ctx *t, int row) {
    if (t->info.backend == PRHS_BACKEND_OPENCL)
        t_skip(t, "OpenCL compiles one source for whatever shape a session has: the other groups' shapes do");
    const r_row r = { shapes[row].name, "cis-mass", 0, NHD, 2, 1, SUM, 1, row % 2 ? every_other_step : and_values, 0, 16 };
    r_run_shape(t, &r, &shapes[row], 3, 150);
}

const t_group t_group_variants = { "variants", sizeof shapes / sizeof *shapes, QUICK, row_name, run };
