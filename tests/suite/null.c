/* SPDX-License-Identifier: Apache-2.0 */
/* NULL for each pointer argument of every public call: refused or allowed as documented, and nothing changes. */
#include <string.h>

#include "groups.h"
#include "null.h"

static const char *row_name(int row) {
    (void)row;
    return "every pointer argument";
}

static void run(t_ctx *t, int row) {
    t_env *e = t_alloc(t, sizeof *e);
    (void)row;
    t_env_make(t, e);
    void *before = t_env_state(e);
    for (int i = 0; i < t_null_count; i++) {
        t_env *copy = t_alloc(t, sizeof *copy);
        *copy = *e;
        t_hush(t);
        t_null_cases[i].run(t, copy);
        if (copy->new_dev)
            t_own(t, T_DEVICE, copy->new_dev, 0);
        if (copy->new_session)
            T_FAIL(t, "%s: a session was made", t_null_cases[i].name);
        T_OK(t, prhs_queue_finish(e->queue));
    }
    void *after = t_env_state(e);
    T_CHECK(t, !memcmp(before, after, e->sizes.slot), "a refused call changed a slot's state");
    t_hush(t);
    T_OK(t, t_env_step(e));
    T_CHECK(t, t->sentences == 0, "a valid step after the refused calls logged: %s", t->sentence);
}

const t_group t_group_null = { "null", 1, 1, row_name, run };
