/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file prhs.h
 * The whole library. Tiers: common, log (0); device (1); cache, ops (2); policy, session, audit (3). opencl.h is separate.
 */
#ifndef PRHS_PRHS_H
#define PRHS_PRHS_H

#include <prhs/audit.h>
#include <prhs/cache.h>
#include <prhs/common.h>
#include <prhs/device.h>
#include <prhs/log.h>
#include <prhs/ops.h>
#include <prhs/policy.h>
#include <prhs/session.h>

#endif
