/* SPDX-License-Identifier: Apache-2.0 */
#ifndef PRHS_WINDOW_H
#define PRHS_WINDOW_H

#include <prhs/policy.h>

/* The fixed-point factors a_l of PSAW and ETF: position = a * t >> 32. 0 where they are off. */
uint32_t prhs_psaw_factor(const prhs_policy *policy, uint32_t layers, uint32_t layer);
uint32_t prhs_etf_factor(const prhs_policy *policy, uint32_t layers, uint32_t layer);

#endif
