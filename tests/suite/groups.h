/* SPDX-License-Identifier: Apache-2.0 */
/* Every group of cases, once; X(name) for t_group_<name>, in the order in which they run. */
#ifndef PRHS_TEST_GROUPS_H
#define PRHS_TEST_GROUPS_H

#include "harness.h"

#define T_GROUPS(X)                                                                                                              \
    X(policy)                                                                                                                    \
    X(errors)                                                                                                                    \
    X(null)                                                                                                                      \
    X(device)                                                                                                                    \
    X(append) X(retrieve) X(attend) X(prefill) X(merge) X(gate) X(session) X(whole) X(room) X(target) X(hshare) X(recall) X(variants) X(reference) X(slots) X(faults) X(bits) X(graph)     \
        X(replay) X(needle) X(residual) X(audit) X(warm) X(sizes) X(far)

#define X(name) extern const t_group t_group_##name;
T_GROUPS(X)
#undef X

#endif
