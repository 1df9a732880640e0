/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds that need no device: src/bound.c. */
#ifndef PRHS_BOUND_H
#define PRHS_BOUND_H

#include <stdint.h>

/* prhs_k_sample.limit of a probability in (0, 1], rounded up. */
uint32_t prhs_audit_limit(double rate);

#endif
