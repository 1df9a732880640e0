/* SPDX-License-Identifier: Apache-2.0 */
/* The generated NULL cases. */
#ifndef PRHS_TEST_NULL_H
#define PRHS_TEST_NULL_H

#include "env.h"

typedef struct t_null_case {
    const char *name;
    void (*run)(t_ctx *t, t_env *e);
} t_null_case;

extern const t_null_case t_null_cases[];
extern const int t_null_count;

#endif
